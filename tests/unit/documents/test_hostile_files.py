"""Files that are too much for a parser, or none at all: each gets a word, and the others are read."""

from __future__ import annotations

import os
import socket
import zipfile
from pathlib import Path

import pytest

from edge.documents import Collection
from edge.documents.reading import FileReader
from tests.tiny_documents import docx_bomb, make_docx, make_encrypted_pdf, make_pdf, pdf_bomb

BILLION_LAUGHS = """<!DOCTYPE lol [<!ENTITY a "ha ha ha ha ha ha ha ha">
<!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">]>"""


def write_all(folder: Path) -> dict[str, str]:
    """Write hostile files, and return name -> words of the reason."""
    (folder / "binary.dat").write_bytes(bytes(range(256)))
    (folder / "late.txt").write_bytes(b"text " * 2000 + b"\0")
    (folder / "latin.txt").write_bytes("Müller sagt".encode("latin-1"))
    (folder / "empty.txt").touch()
    (folder / "blank.txt").write_text(" \n\n\t\n")
    (folder / "encrypted.pdf").write_bytes(make_encrypted_pdf())
    (folder / "damaged.pdf").write_bytes(b"%PDF-1.4\n" + os.urandom(2000))
    (folder / "scanned.pdf").write_bytes(make_pdf([[], []]))
    (folder / "old.doc").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600))
    (folder / "bomb.docx").write_bytes(docx_bomb())
    (folder / "laughs.docx").write_bytes(make_docx([("", "&c;")], before=BILLION_LAUGHS))
    (folder / "cut.docx").write_bytes(make_docx([("", "words " * 500)])[:300])
    with (folder / "huge.log").open("wb") as file:
        file.write(b"a line\n" * 1000)
        file.truncate(2 << 30)
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        archive.writestr("a", "b")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "up").symlink_to(folder)
    (folder / "dangling").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
    return {
        "binary.dat": "binary",
        "late.txt": "binary",
        "latin.txt": "not UTF-8 text",
        "empty.txt": "empty",
        "blank.txt": "no text",
        "encrypted.pdf": "encrypted with a password",
        "damaged.pdf": "damaged",
        "scanned.pdf": "only pictures",
        "old.doc": "old office format",
        "bomb.docx": "unpacks to more than",
        "laughs.docx": "declares entities",
        "cut.docx": "damaged",
        "huge.log": "2.1 GB",
        "archive.zip": "archive",
        "loop": "symbolic links",
        "up": "link to a folder",
        "dangling": "missing",
        "pipe": "not a file",
        "socket": "not a file",
    }


def test_each_hostile_file_has_a_word_and_the_rest_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "f"  # short, for the socket
    folder.mkdir()
    expected = write_all(folder)
    (folder / "good.txt").write_text("A kettle.")
    (folder / "zz.md").write_text("# A pot")
    with Collection.open("test", store=tmp_path / "store", embedder="") as collection:
        report = collection.add(folder)
        assert {one.path.name for one in report.skipped} == set(expected)
        for one in report.skipped:
            assert expected[one.path.name] in one.reason, one
            assert one.reason.startswith(("it ", "reading it ", "its parser ")), one
        assert [document.path.name for document in collection.documents()] == ["good.txt", "zz.md"]
        again = collection.update()
        assert (again.added, again.unchanged, len(again.skipped)) == (0, 2, len(expected))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_keeps_what_was_read_before(tmp_path: Path) -> None:
    file = tmp_path / "closed.txt"
    file.write_text("A kettle.")
    with Collection.open("test", store=tmp_path / "store", embedder="") as collection:
        collection.add(file)
        os.utime(file, (1, 1))
        file.chmod(0)
        report = collection.update()
        assert [one.reason for one in report.skipped] == ["it cannot be opened: Permission denied"]
        assert collection.search("kettle")


def test_a_document_that_cannot_be_read_any_more_keeps_its_passages(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("A kettle.")
    with Collection.open("test", store=tmp_path / "store", embedder="") as collection:
        collection.add(file)
        file.write_bytes(b"\xff\0")
        assert collection.update().skipped
        assert collection.search("kettle")
        file.write_text("A teapot.")
        assert (collection.update().added, collection.search("kettle")) == (1, [])


def test_a_pdf_bomb_costs_its_own_time_and_memory_only(tmp_path: Path) -> None:
    bomb, good = tmp_path / "bomb.pdf", tmp_path / "good.pdf"
    bomb.write_bytes(pdf_bomb())
    good.write_bytes(make_pdf([["Fine"]]))
    assert bomb.stat().st_size < 100_000
    with FileReader(timeout_s=3.0, memory_bytes=1 << 30) as reader:
        answer = reader.read(bomb, "pdf")
        assert "takes" in answer.refused or "parser" in answer.refused or "characters of text" in answer.refused, answer
        assert not answer.blocks
        assert reader.read(good, "pdf").blocks[0].text == "Fine"


def hang(memory_bytes: str) -> None:
    """Child: never answer."""
    import time

    time.sleep(600)


def crash(memory_bytes: str) -> None:
    """Child: die as a parser does."""
    import signal
    import sys

    sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGSEGV)


def devour(memory_bytes: str) -> None:
    """Child: take memory without end."""
    import sys

    sys.stdin.readline()
    held = []
    while True:
        held.append(bytearray(os.urandom(1 << 20) * 8))


@pytest.mark.parametrize(
    ("child", "reason"),
    [
        (hang, "takes longer than 1.00 s"),
        (crash, "its parser died of SIGSEGV"),
        (devour, "takes more than 209.7 MB of memory"),
    ],
)
def test_a_parser_that_hangs_crashes_or_devours_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, child: object, reason: str
) -> None:
    from edge.child import python_command
    from edge.documents import reading

    (tmp_path / "a.txt").write_text("text")
    name = child.__name__  # type: ignore[attr-defined]
    monkeypatch.setattr(reading, "python_command", lambda entry, *rest: python_command(f"{__name__}:{name}", *rest))
    with FileReader(timeout_s=1.0 if child is hang else 60.0, memory_bytes=200 << 20) as reader:
        assert reason in reader.read(tmp_path / "a.txt", "text").refused
        monkeypatch.undo()
        assert reader.read(tmp_path / "a.txt", "text").blocks
