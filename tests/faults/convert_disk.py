"""Disk test of a conversion, run in a process of its own. Prints one JSON object.

DIRECTORY SOURCE FORMAT ROOM    the directory is a disk: leave ROOM bytes, convert, make room, convert again
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from edge_cli.main import run
from edge_convert import pipeline

OPTIONS: dict[str, list[str]] = {
    "gguf": ["--quant", "Q4_0", "--calibration-tokens", "256"],
    "onnx": ["--to", "onnx"],
    "coreml": ["--to", "coreml", "--variants", "fp16", "--context", "64"],
}


def fill(directory: Path, room: int) -> Path:
    """Leave `room` bytes on the disk of a directory; return the file that takes the others."""
    path = directory / "ballast"
    path.write_bytes(bytes(max(0, shutil.disk_usage(directory).free - room)))
    return path


def tree(folder: Path) -> dict[str, str]:
    """Return the files below a folder with their SHA-256."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def main(directory: str, source: str, form: str, room: str) -> None:
    folder = Path(directory)
    out = folder / "out"
    # The plan would refuse a disk that is full already; this one fills up while the conversion runs.
    pipeline.check_resources = lambda plan, **_: None
    ballast = fill(folder, int(room))
    runs: list[dict[str, Any]] = []
    for _ in range(2):
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            code = run(["convert", source, *OPTIONS[form], "--no-card", "--out", str(out)])
        runs.append({"code": code, "said": said.getvalue(), "files": tree(out) if out.exists() else {}})
        ballast.unlink(missing_ok=True)
        if code == 0:
            break
    sys.stdout.write(json.dumps(runs) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
