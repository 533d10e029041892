"""`edge docs`: what it adds, lists, finds, shows and removes."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge.documents import Collection
from edge.documents.places import Place, parse_place
from edge.errors import DownloadError
from edge_cli.app import App
from tests.unit.cli.conftest import Call
from tests.unit.documents.conftest import GUIDE, concept_embedder


def load(name: str | None = None, **_: object) -> Any:
    """As `load_embedder`."""
    return concept_embedder(name or "all-minilm-l6-v2")


APP = App(embedder=load)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a page and a binary file; the data directory is new."""
    monkeypatch.setenv("EDGE_DATA_DIR", str(tmp_path / "data"))
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "guide.md").write_text(GUIDE)
    (folder / "car.txt").write_text("The automobile is in the garage.")
    (folder / "picture.png").write_bytes(b"\x89PNG\0\0")
    monkeypatch.chdir(folder)
    return folder


def test_add_search_show_and_remove(call: Call, files: Path) -> None:
    added = call("docs", "add", ".", app=APP)
    assert (added.code, added.out) == (0, "")
    assert "2 documents read, 0 unchanged, 1 skipped; 2 passages" in added.err
    assert f"skipped {files}/picture.png: it is a binary file" in added.err

    found = call("docs", "search", "-n", "1", "new", "gasket?", app=APP)
    assert found.code == 0
    assert found.out.startswith("guide.md:1-12  Guide\n")
    hits = json.loads(call("docs", "search", "--json", "--how", "meaning", "vehicle", app=APP).out)
    assert (hits[0]["citation"], hits[0]["lines"], hits[0]["page"]) == ("car.txt:1", [1, 1], None)
    assert hits[0]["similarity"] > 0.2

    assert "Order it by its number." in call("docs", "show", "guide.md:12", app=APP).out
    shown = json.loads(call("docs", "show", str(files / "car.txt"), "--json", app=APP).out)
    assert [passage["text"] for passage in shown] == ["The automobile is in the garage."]
    (files / "car.txt").write_text("It is gone.")
    assert "has changed since it was read" in call("docs", "show", "car.txt", app=APP).err

    listed = json.loads(call("docs", "ls", "--json", app=APP).out)
    assert [(one["name"], one["n_vectors"], len(one["documents"])) for one in listed] == [("docs", 2, 2)]
    assert "guide.md" in call("docs", "ls", app=APP).out

    removed = call("docs", "rm", "guide.md", app=APP)
    assert (removed.code, removed.err) == (0, "1 document removed from docs.\n")
    nothing = call("docs", "search", "--how", "words", "gasket", app=APP)
    assert (nothing.code, nothing.out, nothing.err) == (1, "", "Nothing found for: gasket\n")


def test_update_reads_what_changed(call: Call, files: Path) -> None:
    call("docs", "add", "--words", "-c", "mine", ".", app=APP)
    (files / "car.txt").unlink()
    (files / "new.txt").write_text("A teapot.")
    report = json.loads(call("docs", "update", "-c", "mine", "--json", app=APP).out)
    assert (report["added"], report["unchanged"], report["removed"], report["n_vectors"]) == (1, 1, 1, 0)
    assert report["skipped"] == [{"path": f"{files}/picture.png", "reason": "it is a binary file"}]
    assert "words only" in call("docs", "ls", "--collections", app=APP).out


def test_without_a_model_words_have_to_do(call: Call, files: Path) -> None:
    def fail(name: str | None = None, **_: object) -> Any:
        raise DownloadError("The server is away.")

    added = call("docs", "add", "car.txt", app=App(embedder=fail))
    assert added.code == 0
    assert "The server is away. So passages are found by their words only; edge docs update tries again." in added.err
    assert call("docs", "search", "garage", app=App(embedder=fail)).code == 0
    named = call("docs", "add", "-m", "special", "car.txt", app=App(embedder=fail))
    assert (named.code, "The server is away." in named.err) == (1, True)
    assert json.loads(call("docs", "update", "--json", app=APP).out)["n_vectors"] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["add", "nowhere"], 2, "There is no file or folder nowhere."),
        (["add", "picture.png"], 1, "it is a binary file"),
        (["add", "-c", "../up", "car.txt"], 2, "cannot be the name of a collection"),
        (["add", "--words", "-m", "x", "car.txt"], 2, "exclude each other"),
        (["search", "-c", "none", "x"], 2, "There is no collection of documents 'none'."),
        (["show", "other.md:3"], 2, "No document of docs is called 'other.md'"),
        (["show", "car.txt:99"], 2, "has no passage at 99"),
        (["show", "twin.txt"], 2, "2 documents are called 'twin.txt'"),
        (["rm"], 2, "or give --all"),
        (["rm", "--all"], 2, "no terminal to ask on"),
        (["rm", "nowhere"], 1, "no document of docs is at nowhere"),
    ],
)
def test_what_is_wrong_is_said(call: Call, files: Path, arguments: list[str], code: int, said: str) -> None:
    for name in ("one", "two"):
        (files / name).mkdir()
        (files / name / "twin.txt").write_text("Tea")
    call("docs", "add", "--words", "car.txt", "one", "two", app=APP)
    found = call("docs", *arguments, app=APP)
    assert (found.code, found.out) == (code, "")
    assert said in found.err


def test_a_collection_is_deleted_as_a_whole(call: Call, files: Path, tmp_path: Path) -> None:
    call("docs", "add", "--words", ".", app=APP)
    found = call("docs", "rm", "--all", "--yes", app=APP)
    assert (found.code, found.err) == (0, "2 documents removed from docs.\n")
    assert list((tmp_path / "data/documents").iterdir()) == []
    assert "There are no documents yet" in call("docs", "ls", app=APP).err


def test_an_interrupt_keeps_what_was_read(call: Call, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(type(concept_embedder())):  # type: ignore[misc]
        def embed(self, *_: object, **__: object) -> Any:
            raise KeyboardInterrupt

    def load_interrupted(name: str | None = None, **_: object) -> Any:
        return Interrupted(concept_embedder()._engine, "concepts")

    found = call("docs", "add", ".", app=App(embedder=load_interrupted))
    assert (found.code, found.err) == (130, "Interrupted: 2 documents are there. The same command goes on.\n")
    again = json.loads(call("docs", "add", ".", "--json", app=APP).out)
    assert (again["unchanged"], again["n_vectors"]) == (2, 2)


def test_watch_follows_until_it_is_stopped(call: Call, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call("docs", "add", "--words", ".", app=APP)
    looks: list[object] = []

    def wait(self: threading.Event, timeout: float | None = None) -> bool:
        looks.append(timeout)
        if len(looks) > 1:
            raise KeyboardInterrupt
        (files / "new.txt").write_text("A teapot.")
        return False

    from edge.documents import watching

    event = type("Event", (threading.Event,), {"wait": wait})
    monkeypatch.setattr(watching, "threading", SimpleNamespace(Event=event))
    found = call("docs", "watch", "--interval", "3", app=APP)
    assert (found.code, looks) == (130, [3.0, 3.0])
    assert f"Watching {files}\n0 documents read, 2 unchanged" in found.err
    assert "1 document read, 2 unchanged" in found.err


def test_a_file_opens_at_its_line(call: Call, files: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    editor = tmp_path / "vim"
    editor.write_text(f"#!{sys.executable}\nimport sys; open({str(tmp_path / 'said')!r}, 'w').write(' '.join(sys.argv[1:]))\n")
    editor.chmod(0o755)
    monkeypatch.setenv("VISUAL", f"{editor} --wait")
    call("docs", "add", "--words", ".", app=APP)
    assert call("docs", "show", "guide.md:12", "--open", app=APP).code == 0
    assert (tmp_path / "said").read_text() == f"--wait +1 {files}/guide.md"


@pytest.mark.parametrize("editor", ["/no/such/editor", "vim 'unclosed"])
def test_an_editor_that_cannot_be_started_is_an_error_with_its_name(
    call: Call, files: Path, monkeypatch: pytest.MonkeyPatch, editor: str
) -> None:
    monkeypatch.setenv("VISUAL", editor)
    call("docs", "add", "--words", ".", app=APP)
    found = call("docs", "show", "guide.md:12", "--open", app=APP)
    assert found.code == 2
    assert editor in found.err
    (files / "guide.md").unlink()
    assert "any more" in call("docs", "show", "guide.md:12", "--open", app=APP).err


@pytest.mark.parametrize(
    "name", [b"f\xff.txt", b"two\nlines.txt", b"x\x1b[31m\x1b]0;title\x07.txt", b"two  blanks 'and' \"quotes\".txt"]
)
def test_odd_names_are_one_harmless_line_that_finds_them_again(call: Call, files: Path, name: bytes) -> None:
    try:
        Path(os.fsdecode(name)).write_text("odd kangaroo")
        (files / (os.fsdecode(name) + ".bin")).write_bytes(bytes(range(256)))
    except OSError:
        pytest.skip("this file system has no such names")
    added = call("docs", "add", "--words", ".", app=APP)
    assert added.code == 0
    assert "\x1b" not in added.err and "skipped" in added.err
    place = call("docs", "search", "kangaroo", app=APP).out.partition("  ")[0] if b"  " not in name else os.fsdecode(name)
    assert "\n" not in place and place.isprintable()
    shown = call("docs", "show", place, app=APP)
    assert "odd kangaroo" in shown.out
    assert "changed" not in shown.err
    assert "\x1b" not in shown.out + call("docs", "ls", app=APP).out


def test_names_of_collections_are_completed(call: Call, files: Path) -> None:
    from edge_cli.completers import complete_collection

    for name in ("project", "private", "docs"):
        call("docs", "add", "--words", "-c", name, "car.txt", app=APP)
    assert [item.value for item in complete_collection(None, None, "pr")] == ["private", "project"]


def test_a_name_that_is_not_unicode_is_listed(call: Call, files: Path) -> None:
    try:
        Path(os.fsdecode(b"f\xff.txt")).write_text("odd kettle")
    except OSError:
        pytest.skip("this file system has no such names")
    assert call("docs", "add", "--words", ".", app=APP).code == 0
    assert call("docs", "search", "odd", app=APP).code == 0
    assert call("docs", "ls", "--json", app=APP).code == 0


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("guide.md", Place("guide.md")),
        ("guide.md:12", Place("guide.md", (12, 12))),
        ("a/b c.py:12-18", Place("a/b c.py", (12, 18))),
        ("manual.pdf, page 4", Place("manual.pdf", page=4)),
        ("manual.pdf#4", Place("manual.pdf", page=4)),
        ("manual.pdf#page=4", Place("manual.pdf", page=4)),
        ("x:9-3", Place("x", (9, 9))),
    ],
)
def test_places_are_read(text: str, place: Place) -> None:
    assert parse_place(text) == place


def test_a_citation_leads_back_to_its_passage(files: Path, tmp_path: Path) -> None:
    from edge.documents.places import find_place

    (files / "odd:7").write_text("A name that looks like a place.")
    with Collection.open("test", store=tmp_path / "store", embedder="") as collection:
        collection.add(files)
        for document in collection.documents():
            for passage in collection.passages(document.document_id):
                assert passage in find_place(collection, passage.citation)[1]
        assert find_place(collection, "odd:7")[0].path.name == "odd:7"
