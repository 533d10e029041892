"""A collection: what goes in, what is found, and what is gone after it was removed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge.documents import AddProgress, Collection, collections
from edge.errors import CancelledError, StorageError, UsageError
from tests.unit.documents.conftest import GUIDE, concept_embedder


def names(collection: Collection) -> list[str]:
    return [document.path.name for document in collection.documents()]


def test_what_was_added_is_found_with_its_place(collection: Collection, files: Path) -> None:
    report = collection.add(files)
    assert (report.added, report.unchanged, report.removed, report.skipped) == (3, 0, 0, [])
    best = collection.search("Which gasket does a leaking kettle need?")[0]
    assert best.document == files / "guide.md"
    assert best.lines is not None
    assert best.text in GUIDE
    first, last = best.lines
    assert best.text == "\n".join(GUIDE.split("\n")[first - 1 : last])
    assert best.citation == f"guide.md:{first}-{last}"
    assert (best.page, best.title) == (None, "Guide")
    assert best.score > 0
    assert collection.search("cupboard")[0].lines == (1, 3)
    assert collection.search("boil")[0].document.name == "boil.py"
    assert collection.search("zeppelin") == []


def test_only_changes_are_read(collection: Collection, files: Path) -> None:
    collection.add(files)
    before = {document.path: document.document_id for document in collection.documents()}
    (files / "note.txt").write_text("The teapot broke.")
    os.utime(files / "guide.md", (1, 1))  # another time, the same content
    (files / "deep/boil.py").unlink()
    (files / "new.txt").write_text("Saucers")
    report = collection.update()
    assert (report.added, report.unchanged, report.removed) == (2, 1, 1)
    assert names(collection) == ["guide.md", "new.txt", "note.txt"]
    assert collection.search("cupboard") == []
    after = {document.path: document.document_id for document in collection.documents()}
    assert after[files / "note.txt"] == before[files / "note.txt"]
    assert collection.update().unchanged == 3


def test_a_hidden_file_that_was_named_stays_while_it_is_there(collection: Collection, files: Path) -> None:
    (files / ".hidden").mkdir()
    (files / ".hidden/a.txt").write_text("Saucer")
    (files / ".note").write_text("Spoon")
    collection.add(files)
    assert collection.search("saucer spoon") == []
    collection.add([files / ".hidden", files / ".note"])
    collection.add(files)
    assert len(collection.search("saucer spoon")) == 2
    (files / ".note").unlink()
    (files / ".hidden/a.txt").unlink()
    (files / ".hidden/b.txt").write_text("Cup")
    assert collection.update().removed == 2
    assert collection.search("saucer spoon") == []


def test_a_folder_that_is_gone_keeps_its_documents_and_a_file_does_not(
    collection: Collection, files: Path, tmp_path: Path
) -> None:
    (tmp_path / "single.txt").write_text("Milk jug")
    collection.add([files, tmp_path / "single.txt"])
    files.rename(tmp_path / "elsewhere")
    (tmp_path / "single.txt").unlink()
    report = collection.update()
    assert (report.removed, [one.reason for one in report.skipped]) == (1, ["it is missing; its documents are kept"])
    files.mkdir()
    assert "empty now" in collection.update().skipped[0].reason
    assert names(collection) == ["boil.py", "guide.md", "note.txt"]
    assert collection.info.sources == (files,)


def test_deleting_deletes_from_the_disk(collection: Collection, files: Path) -> None:
    secret = "xylophonsecret"
    (files / "secret.txt").write_text(f"The word is {secret}.")
    collection.add(files)

    def traces() -> list[str]:
        return [file.name for file in collection.folder.iterdir() if secret[:8].encode() in file.read_bytes()]

    assert traces()
    assert collection.remove(files / "secret.txt") == 1
    assert traces() == []
    assert collection.remove(files / "secret.txt") == 0
    (files / "note.txt").write_text(f"For a moment {secret} is here.")
    collection.update()
    assert traces()
    (files / "note.txt").write_text("And gone.")
    (files / "secret.txt").unlink()
    collection.update()
    assert traces() == []


def test_a_deleted_collection_is_overwritten(files: Path, tmp_path: Path) -> None:
    (files / "secret.txt").write_text("The word is xylophonsecret.")
    collection = Collection.open("test", store=tmp_path / "store", embedder=concept_embedder())
    collection.add(files)
    kept = [tmp_path / file.name for file in collection.folder.iterdir()]
    for link in kept:
        os.link(collection.folder / link.name, link)
    assert any(b"xylophonsecret" in link.read_bytes() for link in kept)
    collection.delete()
    assert not collection.folder.exists()
    for link in kept:
        assert b"xylophon" not in link.read_bytes()
    vectors = [link for link in kept if link.name.startswith("vectors-")]
    assert len(vectors) == 2
    assert not any(byte for link in vectors for byte in link.read_bytes())


def test_nobody_deletes_what_another_process_adds_to(collection: Collection, files: Path, tmp_path: Path) -> None:
    def refuse(progress: AddProgress) -> None:
        if progress.phase == "read" and progress.path is not None:
            other = Collection.open("test", store=collection.folder.parent, embedder="")
            with other, pytest.raises(StorageError, match="Another process adds documents to test, so nothing was deleted"):
                other.delete()

    assert collection.add(files, refuse).added == 3
    with Collection.open("test", store=collection.folder.parent, embedder="") as other:
        other.delete()
    with pytest.raises(StorageError, match="was deleted meanwhile"):
        collection.update()
    assert not collection.folder.exists()


def test_several_paths_are_removed_at_once(collection: Collection, files: Path) -> None:
    collection.add(files)
    assert [collection.holds(files / name) for name in ("deep", "guide.md", "none")] == [True, True, False]
    assert collection.remove(files / "deep", files / "guide.md", files / "none") == 2
    assert names(collection) == ["note.txt"]


def test_removing_a_folder_removes_what_is_below_it(collection: Collection, files: Path) -> None:
    collection.add(files)
    assert collection.remove(files / "deep") == 1
    assert collection.remove(files) == 2
    assert (collection.documents(), collection.info.sources) == ([], ())
    assert collection.update().added == 0


def test_files_are_private(collection: Collection, files: Path) -> None:
    collection.add(files)
    assert {oct(file.stat().st_mode & 0o777) for file in collection.folder.iterdir()} == {"0o600"}
    assert oct(collection.folder.stat().st_mode & 0o777) == "0o700"


def test_collections_are_apart_and_listed(tmp_path: Path, files: Path) -> None:
    store = tmp_path / "store"
    assert collections(store) == []
    with Collection.open("one", store=store, embedder="") as one, Collection.open("two", store=store, embedder="") as two:
        one.add(files / "note.txt")
        two.add(files / "guide.md")
        assert two.search("teapot") == []
    listed = collections(store)
    assert [(info.name, info.n_documents, info.sources) for info in listed] == [
        ("one", 1, (files / "note.txt",)),
        ("two", 1, (files / "guide.md",)),
    ]
    with Collection.open("one", store=store, embedder="") as one:
        one.delete()
    assert [info.name for info in collections(store)] == ["two"]


def test_stopping_keeps_what_was_read(collection: Collection, files: Path) -> None:
    def stop(progress: AddProgress) -> bool:
        return progress.done < 2

    with pytest.raises(CancelledError):
        collection.add(files, on_progress=stop)
    assert len(collection.documents()) == 2
    assert collection.update().added == 1


def test_earlier_answers_are_gone_once_a_document_changed(collection: Collection, files: Path) -> None:
    collection.add(files)
    for is_stopped in (False, True):
        collection.answers_file.write_bytes(b"what the note said")
        os.link(collection.answers_file, kept := files.parent / f"answers-{is_stopped}")
        assert collection.update().removed == 0
        assert collection.answers_file.exists()
        next(files.rglob("*.*")).unlink()
        if is_stopped:
            with pytest.raises(CancelledError):
                collection.update(lambda progress: False)
        else:
            collection.update()
        assert not collection.answers_file.exists()
        assert kept.read_bytes() == bytes(18), "overwritten"


def test_passages_come_in_order(collection: Collection, files: Path) -> None:
    (files / "long.txt").write_text("\n\n".join(f"Paragraph {number} has some words of its own. " * 8 for number in range(40)))
    collection.add(files / "long.txt")
    document = collection.documents()[0]
    passages = collection.passages(document.document_id)
    assert [passage.position for passage in passages] == list(range(document.n_passages))
    assert document.n_passages > 5
    assert collection.passages(999) == []


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "x" * 65, "a b"])
def test_a_name_is_checked(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="name of a collection"):
        Collection.open(name, store=tmp_path)


def test_wrong_questions_are_refused(collection: Collection, files: Path) -> None:
    with pytest.raises(UsageError, match="no path"):
        collection.add([])
    with pytest.raises(UsageError, match="no file or folder"):
        collection.add(files / "nothing")
    with pytest.raises(UsageError, match="empty"):
        collection.search(" ")
    with pytest.raises(UsageError, match="k is 0"):
        collection.search("tea", k=0)
    with pytest.raises(UsageError, match="how is"):
        collection.search("tea", how="magic")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no vectors"):
        collection.search("tea", how="meaning")
