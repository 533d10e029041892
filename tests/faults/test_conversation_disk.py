"""Full and read-only disks: what was saved stays, the error is ours, and writing goes on when there is room again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.conversation import ConversationStore
from edge.errors import StorageError
from edge.types import Message

SCRIPT = Path(__file__).with_name("conversation_disk.py")


def run(*command: str) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def assert_it_went_on(result: dict[str, Any]) -> None:
    assert result["n_saved"] > 5
    assert result["while_full"] and result["after"] and result["again"], result
    assert result["large"] == "refused"
    assert result["problems"] == []
    assert all(result["hints"])


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs in a namespace of its own, which only Linux has")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """On a tmpfs of 2 MB, mounted in a namespace that goes away with the process; needs no rights."""
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(tmp_path)], capture_output=True).returncode:
        pytest.skip("this machine does not allow user namespaces; the limit on file sizes below stands in")
    script = 'mount -t tmpfs -o size=2m,mode=700 none "$1" && exec "$2" "$3" fill "$1"'
    result = run("unshare", "-rm", "sh", "-c", script, "sh", str(tmp_path), sys.executable, str(SCRIPT))
    assert_it_went_on(result)
    assert all("full" in text for text in result["messages"]), result
    assert result["is_unchanged"]
    assert "full" in result["open new.db"] and "full" in result["open c.db"], result
    assert result["problems_at_last"] == []


@pytest.mark.skipif(os.name != "posix", reason="needs RLIMIT_FSIZE")
def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    result = run(sys.executable, str(SCRIPT), "limit", str(tmp_path))
    assert_it_went_on(result)
    assert all("disk" in text for text in result["messages"]), result


def test_a_database_that_may_not_grow(tmp_path: Path) -> None:
    """SQLITE_FULL itself, without any help of the system: no more pages than there are."""
    for path in (None, tmp_path / "c.db"):
        with ConversationStore(path) as store:
            info = store.create()
            first = store.append(info.id, Message("user", "x" * 5000), parent=None)
            writer = store._db._writer
            assert writer is not None
            n_pages = writer.execute("PRAGMA page_count").fetchone()[0]
            writer.execute(f"PRAGMA max_page_count = {n_pages + 4}")
            for _ in range(3):
                with pytest.raises(StorageError, match="The disk is full") as caught:
                    store.append(info.id, Message("user", "y" * 100_000), parent=first.id)
                assert "Free some space" in caught.value.hint
                assert store.path(info.id) == [first]
            small = store.append(info.id, Message("user", "a little goes on"), parent=first.id)
            writer.execute("PRAGMA max_page_count = 1000000")
            large = store.append(info.id, Message("user", "y" * 100_000), parent=small.id)
            assert store.path(info.id) == [first, small, large]
            assert store.check() == []


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that other users may enter, unlike pytest's own."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    try:
        yield path
    finally:
        path.chmod(0o755)
        shutil.rmtree(path)


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_a_directory_that_may_not_be_written(open_directory: Path) -> None:
    with ConversationStore(open_directory / "old.db") as store:
        store.create(title="kept")
    (open_directory / "old.db").chmod(0o644)
    open_directory.chmod(0o555)
    result = run(sys.executable, str(SCRIPT), "readonly", str(open_directory))
    for name in ("old.db", "new.db", "deeper/new.db"):
        message, hint = result[name]
        assert str(open_directory / name) in message, result
        assert "EDGE_DATA_DIR" in hint or "Check" in hint, result
    open_directory.chmod(0o755)
    assert [file.name for file in open_directory.iterdir()] == ["old.db"]
    with ConversationStore(open_directory / "old.db") as store:
        assert [info.title for info in store.list()] == ["kept"]
