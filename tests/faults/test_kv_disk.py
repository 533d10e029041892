"""Full, limited, read-only and unreadable disks: the block store goes without them, never gives wrong bytes, and comes back."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from edge.kv.blocks import fingerprint
from edge.kv.store import BlockStore, StoreOptions

SCRIPT = Path(__file__).with_name("kv_disk.py")
MODEL = fingerprint({"weights": "a"})


def run(*command: str) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def assert_it_went_on(result: dict[str, Any]) -> None:
    assert result["opened"] is None
    assert result["while_full"]["wrong"] == 0 and result["while_full"]["right"] > 3, result
    assert result["other_reads"] == result["while_full"]["right"]  # another process reads what there is, too
    assert result["after"] and result["after_problem"] is None, result
    assert result["at_last"]["right"] >= result["while_full"]["right"] and result["at_last"]["wrong"] == 0
    assert (result["report"], result["left"]) == ([0, 0, 0], 0)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs in a namespace of its own, which only Linux has")
@pytest.mark.parametrize("what", ["clear", "gc", "forget", "stats", "verify"])
def test_a_store_on_a_disk_that_was_full_before_it_was_opened(tmp_path: Path, what: str) -> None:
    """On a tmpfs of 48 MB, as above."""
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(tmp_path)], capture_output=True).returncode:
        pytest.skip("this machine allows no mounts in a user namespace")
    script = 'mount -t tmpfs -o size=48m,mode=700 none "$1" && exec "$2" "$3" "$4" "$1"'
    result = run("unshare", "-rm", "sh", "-c", script, "sh", str(tmp_path), sys.executable, str(SCRIPT), f"opened-{what}")
    assert result["before"] > 100 and result["fails"] and result["problem"] is None, result
    assert result["right"] == result["after"] and (result["free"] >> 20) >= (12 if what == "clear" else 2), result
    if what == "clear":
        assert result["after"] == 0
    elif what in ("stats", "verify"):
        assert result["after"] > result["before"] // 2


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs in a namespace of its own, which only Linux has")
@pytest.mark.parametrize("what", ["clear", "gc", "forget", "stats", "verify"])
def test_a_store_on_a_disk_that_may_hold_no_more_files(tmp_path: Path, what: str) -> None:
    """There is space, but creating the files beside an index fails: `kv clear` has to work all the same."""
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(tmp_path)], capture_output=True).returncode:
        pytest.skip("this machine allows no mounts in a user namespace")
    script = 'mount -t tmpfs -o size=96m,nr_inodes=900,mode=700 none "$1" && exec "$2" "$3" "$4" "$1"'
    result = run("unshare", "-rm", "sh", "-c", script, "sh", str(tmp_path), sys.executable, str(SCRIPT), f"uncreated-{what}")
    assert result["before"] > 100 and result["fails"] and result["problem"] is None, result
    assert result["right"] == result["after"], result
    if what == "clear":
        assert result["after"] == 0
    else:
        assert result["after"] >= result["before"] - 32


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs in a namespace of its own, which only Linux has")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """On a tmpfs of 4 MB, mounted in a namespace that goes away with the process; needs no rights."""
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(tmp_path)], capture_output=True).returncode:
        pytest.skip("this machine does not allow user namespaces; the limit on file sizes below stands in")
    script = 'mount -t tmpfs -o size=4m,mode=700 none "$1" && exec "$2" "$3" fill "$1"'
    result = run("unshare", "-rm", "sh", "-c", script, "sh", str(tmp_path), sys.executable, str(SCRIPT))
    assert_it_went_on(result)
    assert result["problems"] == ["the disk is full"]


@pytest.mark.parametrize("what", ["quota-bytes", "quota-files", "unopened-bytes", "unopened-files"])
def test_a_quota_that_is_used_up(tmp_path: Path, what: str) -> None:
    """A preloaded library plays the file system, since no quota can be set up without rights. SQLite calls it an I/O error."""
    library = tmp_path / "quota.so"
    built = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SCRIPT.with_name("quota.c")), "-ldl"]
    if sys.platform != "linux" or shutil.which("cc") is None or subprocess.run(built, capture_output=True).returncode:
        pytest.skip("there is no C compiler here")
    (tmp_path / "disk").mkdir()
    result = run("env", f"LD_PRELOAD={library}", sys.executable, str(SCRIPT), what, str(tmp_path / "disk"))
    assert (result["before"], result["problem"]) == (160, None)
    assert result["stored"] >= 38, "blocks made room for new ones"
    assert result["checked"]["wrong"] == 0 and result["checked"]["right"] == result["cleared"] >= 38
    assert (result["after"], result["after_problem"], result["left"]) == (True, None, 0)


@pytest.mark.skipif(os.name != "posix", reason="needs RLIMIT_FSIZE")
def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    result = run(sys.executable, str(SCRIPT), "limit", str(tmp_path))
    assert_it_went_on(result)
    assert result["problems"] == ["files may not grow that large here"]


@pytest.mark.skipif(os.name != "posix", reason="needs permissions")
@pytest.mark.parametrize("what", ["readonly", "unreadable"])
def test_a_directory_that_may_not_be_used(what: str) -> None:
    # Not below tmp_path: nobody, whom root becomes for this, may not pass the directories above that.
    with tempfile.TemporaryDirectory() as directory:
        result = run(sys.executable, str(SCRIPT), what, directory)
    assert result["problem"] == "its files may not be used by this user"
    assert result["checked"] == {"right": 0, "wrong": 0, "gone": 3} and not result["stored"]
    assert [result[name] for name in ("stats", "verify", "gc", "clear")] == ["StorageError"] * 4
    assert result["mode"] == (0o500 if what == "readonly" else 0)  # it does not help itself to what it was denied
    was_open = result["was_open"]
    assert not was_open["stored"] and was_open["checked"]["wrong"] == 0 and was_open["problem"] is not None
    if what == "readonly":
        assert was_open["checked"]["right"] == 1  # a store that was open already can still read
    assert result["after"] and result["after_problem"] is None
    assert result["at_last"]["wrong"] == 0


def test_writes_that_stop_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the lowest level: write(2) takes less and less, and then fails, at every point of a block's file."""
    real = os.write
    left = [0]

    def short(fd: int, data: memoryview) -> int:
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        n_written = real(fd, data[: min(left[0], 61)])
        left[0] -= n_written
        return n_written

    with BlockStore(tmp_path / "kv", StoreOptions(budget_bytes=1 << 24, min_free_bytes=0, sync=False, retry_s=0.0)) as store:
        monkeypatch.setattr(os, "write", short)
        for quota in range(0, 720, 40):
            left[0] = quota
            assert store.put(None, [quota, 1], bytes(500), fingerprint=MODEL, namespace="ns", start=0) is not None
            assert store.flush(60.0) and store.problem == "the disk is full"
            assert store.match(MODEL, "ns", [quota, 1]).n_tokens == 0
            assert not list((tmp_path / "kv").glob("tmp/*")) and not list((tmp_path / "kv").glob("blocks/*/*"))
        left[0] = 10_000
        store.put(None, [9, 1], bytes(500), fingerprint=MODEL, namespace="ns", start=0)
        assert store.flush(60.0) and store.problem is None
        (ref,) = store.match(MODEL, "ns", [9, 1]).blocks
        assert store.read(ref) == bytes(500)
        assert store.stats().n_dropped == 18


def test_a_failing_fsync_or_rename_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with BlockStore(tmp_path / "kv", StoreOptions(budget_bytes=1 << 24, min_free_bytes=0, retry_s=0.0)) as store:
        for owner, name in ((os, "fsync"), (Path, "replace")):
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, fail)
                for token in range(3):
                    store.put(None, [token], bytes(500), fingerprint=MODEL, namespace="ns", start=0)
                assert store.flush(60.0) and store.problem == "the disk has errors"
            assert not list((tmp_path / "kv").glob("tmp/*")) and not list((tmp_path / "kv").glob("blocks/*/*"))
        store.put(None, [9], bytes(500), fingerprint=MODEL, namespace="ns", start=0)
        assert store.flush(60.0) and store.problem is None and store.stats().n_blocks == 1
        assert store.gc().n_indexed == 0
