"""Crashes, several processes at once, readers while files are added: the collection stays whole."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edge.child import python_command
from edge.documents import AddReport, Collection, watch
from tests.unit.documents.conftest import concept_embedder

N_FILES = 30


def write_files(folder: Path, version: int) -> None:
    folder.mkdir(exist_ok=True)
    for number in range(N_FILES):
        text = "\n\n".join(f"Version {version} of file {number}, part {part}: " + "words " * 60 for part in range(4))
        (folder / f"{number}.txt").write_text(text)


def add(store: str, folder: str) -> None:
    """Child: add a folder."""
    with Collection.open("test", store=Path(store), embedder=concept_embedder()) as collection:
        print("ready", flush=True)
        collection.add(folder)


def start(store: Path, folder: Path) -> subprocess.Popen[bytes]:
    command = python_command(f"{__name__}:add", str(store), str(folder))
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def test_a_kill_at_any_moment_leaves_a_whole_collection(tmp_path: Path) -> None:
    store, folder = tmp_path / "store", tmp_path / "files"
    seconds = random.Random(os.environ.get("PYTEST_RANDOMLY_SEED", "7"))
    for version in range(6):
        write_files(folder, version)
        process = start(store, folder)
        assert process.stdout
        with process.stdout:
            process.stdout.readline()
            time.sleep(seconds.uniform(0, 1.0))
            process.send_signal(signal.SIGKILL)
        process.wait()
        check(store)
    with Collection.open("test", store=store, embedder=concept_embedder()) as collection:
        report = collection.update()
        assert len(collection.documents()) == N_FILES
        assert report.n_vectors == report.n_passages > N_FILES
        assert {hit.text.split()[1] for hit in collection.search("Version", 50)} == {"5"}
        best = collection.search("Version 5 of file 17, part 2: words", 1, "meaning")[0]
        assert best.document.name == "17.txt"


def check(store: Path) -> None:
    """Check that what a kill left is consistent: the file, each document's passages, and each vector."""
    with sqlite3.connect(store / "test/documents.db") as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        n_indexed = db.execute("SELECT count(*) FROM chunk_fts WHERE chunk_fts MATCH 'version'").fetchone()[0]
        n_chunks = db.execute("SELECT count(*) FROM chunk").fetchone()[0]
        assert n_indexed == n_chunks
    db.close()
    with Collection.open("test", store=store, embedder=concept_embedder()) as collection:
        for document in collection.documents():
            texts = [passage.text for passage in collection.passages(document.document_id)]
            assert len({text.split()[1] for text in texts}) == 1, "passages of two versions"
            assert len(texts) == document.n_passages > 0
        if collection.info.n_vectors:
            for hit in collection.search("Version 3 of file 9", 20, "meaning"):
                expected = float(concept_embedder().embed([hit.text, "Version 3 of file 9"]).similarity()[0, 1])
                assert hit.similarity == pytest.approx(expected, abs=1e-4)


def test_two_processes_add_one_after_the_other(tmp_path: Path) -> None:
    write_files(tmp_path / "files", 1)
    processes = [start(tmp_path / "store", tmp_path / "files") for _ in range(2)]
    for process in processes:
        assert process.communicate()[0] == b"ready\n"
        assert process.returncode == 0
    check(tmp_path / "store")
    with Collection.open("test", store=tmp_path / "store", embedder="") as collection:
        info = collection.info
        assert (info.n_documents, info.n_vectors) == (N_FILES, info.n_passages)


def test_readers_see_whole_documents_while_others_write(tmp_path: Path) -> None:
    write_files(tmp_path / "files", 0)
    is_over = threading.Event()

    def read(collection: Collection) -> int:
        n_read = 0
        while not is_over.is_set():
            for document in collection.documents():
                assert len({passage.text.split()[1] for passage in collection.passages(document.document_id)}) == 1
            assert all("Version" in hit.text for hit in collection.search("file 3 part 2", 5))
            n_read += 1
        return n_read

    with Collection.open("test", store=tmp_path / "store", embedder=concept_embedder()) as collection:
        collection.add(tmp_path / "files")
        other = Collection.open("test", store=tmp_path / "store", embedder=concept_embedder())
        with other, ThreadPoolExecutor() as pool:
            readers = [pool.submit(read, one) for one in (collection, other)]
            try:
                for version in (1, 2):
                    write_files(tmp_path / "files", version)
                    assert collection.update().added == N_FILES
            finally:
                is_over.set()
            assert all(reader.result() > 0 for reader in readers)


def test_watching_follows_the_files(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "a.txt").write_text("kettle")
    (folder / "picture.png").write_bytes(b"\x89PNG\0\0")
    reports: list[AddReport] = []
    is_over = threading.Event()

    def change(report: AddReport) -> None:
        reports.append(report)
        if len(reports) == 1:
            (folder / "b.txt").write_text("teapot")
        elif len(reports) == 2:
            (folder / "a.txt").unlink()
        else:
            is_over.set()

    with Collection.open("test", store=tmp_path / "store", embedder="") as collection:
        collection.add(folder)
        watch(collection, interval_s=0.02, is_over=is_over, on_change=change)
        assert [(one.added, one.unchanged, one.removed) for one in reports] == [(0, 1, 0), (1, 1, 0), (0, 1, 1)]
        assert [len(one.skipped) for one in reports] == [1, 0, 0], "what is skipped is said once"
        assert [document.path.name for document in collection.documents()] == ["b.txt"]


def test_a_foreign_file_is_not_touched(tmp_path: Path) -> None:
    from edge.errors import StorageError

    folder = tmp_path / "store/test"
    folder.mkdir(parents=True)
    with sqlite3.connect(folder / "documents.db") as db:
        db.execute("CREATE TABLE theirs (x)")
    db.close()
    before = (folder / "documents.db").read_bytes()
    with pytest.raises(StorageError, match="another program"):
        Collection.open("test", store=tmp_path / "store")
    assert (folder / "documents.db").read_bytes() == before


def test_a_damaged_file_says_what_to_do(tmp_path: Path) -> None:
    from edge.errors import StorageError

    folder = tmp_path / "store/test"
    folder.mkdir(parents=True)
    (folder / "documents.db").write_bytes(b"nonsense" * 1000)
    with pytest.raises(StorageError, match="add them again"):
        Collection.open("test", store=tmp_path / "store")
