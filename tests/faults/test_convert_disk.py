"""A disk that fills up while a conversion writes: the disk is named, nothing half made is left, and the next run resumes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra [convert]: pip install 'edge-assistant[convert]'")

from tests.checkpoints import make_checkpoint

SCRIPT = Path(__file__).with_name("convert_disk.py")
WHOLE = pytest.mark.prove(whole_only=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs in a namespace of its own, which only Linux has")
@pytest.mark.parametrize(
    ("form", "room", "kept", "made"),
    [
        ("gguf", 300_000, ["source"], "gguf-Q4_0"),  # edge writes
        ("gguf", 1_700_000, ["gguf-base", "imatrix", "source"], "gguf-Q4_0"),  # llama.cpp writes
        pytest.param("gguf", 0, [], "gguf-Q4_0", marks=WHOLE),
        pytest.param("onnx", 300_000, ["source"], "onnx-int4", marks=WHOLE),
        pytest.param("coreml", 1_000_000, ["source"], "coreml-fp16", marks=WHOLE),
    ],
)
def test_a_disk_that_fills_up(form: str, room: int, kept: list[str], made: str, tmp_path: Path) -> None:
    """On a tmpfs of 32 MB, mounted in a namespace that goes away with the process; needs no rights."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("this machine allows no mounts in a user namespace")
    source = make_checkpoint(tmp_path / "tiny", "llama")
    script = 'mount -t tmpfs -o size=32m,mode=700 none "$3" && exec "$@"'
    command = [sys.executable, str(SCRIPT), str(disk), str(source), form, str(room)]
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script, "sh", *command], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    full, again = json.loads(done.stdout.splitlines()[-1])
    assert_full(full, disk / "out", kept)
    assert again["code"] == 0, again["said"]
    assert {name.split("/")[0] for name in again["files"]} == {made}


def assert_full(run: dict[str, Any], out: Path, kept: list[str]) -> None:
    """The first run said so, and left the finished steps and nothing else."""
    assert run["code"] == 1
    said = " ".join(run["said"].split())
    assert f"The disk of {out} is full. Free some space and run the same command again: it resumes." in said
    names = [name.split("/", 1) for name in run["files"]]
    assert all(folder.startswith(".work-") for folder, _ in names)
    assert sorted(name.removesuffix(".done") for _, name in names if name.endswith(".done")) == kept
    assert {name.split("/")[0].removesuffix(".done") for _, name in names} == set(kept)
