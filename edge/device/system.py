"""Files, commands, packages and the environment, as the device probe reads them.

`System` is this machine. `RecordingSystem` writes a capture of it, and `CapturedSystem` replays one: in tests, or from a bug
report.

A capture is one text file in the form of `tail -n +1 FILE...`, a heading before each part:

    ==> /proc/meminfo <==                       a file
    ==> $ sysctl hw <==                         a command and its output
    ==> @package llama_cpp 0.3.36 <==           an installed Python package, then the names of its shared libraries
    ==> @system <==                             {"os": "linux", "machine": "aarch64", ...} as JSON
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CapturedSystem", "Package", "RecordingSystem", "System"]

_HEADING = re.compile(r"^==> (.+) <==$", re.MULTILINE)
# The variables that the probe reads; no others may get into a capture, which people send to others.
_KEPT_VARIABLES = ("CUDA_VISIBLE_DEVICES", "KUBERNETES_SERVICE_HOST", "container")


@dataclass(frozen=True, slots=True)
class Package:
    """An installed Python package, found without importing it.

    Attributes:
        version: of the distribution; "" where it does not say.
        libraries: names of the shared libraries inside the package.
    """

    version: str
    libraries: tuple[str, ...]


class System:
    """This machine, as far as the probe reads it. Nothing here raises for something that is missing.

    Attributes:
        os_name: "linux", "darwin", ...
        machine: "x86_64", "aarch64", "arm64", ...
        release: of the kernel.
        python: version of the interpreter.
        environ: environment variables.
        affinity: CPUs this process may run on, or None where the system does not say.
    """

    def __init__(self) -> None:
        self.os_name = sys.platform
        if hasattr(os, "uname"):
            self.machine, self.release = os.uname().machine, os.uname().release
        else:
            import platform

            self.machine, self.release = platform.machine(), platform.release()
        self.python = ".".join(str(part) for part in sys.version_info[:3])
        self.environ: Mapping[str, str] = os.environ
        self.affinity: frozenset[int] | None = None
        if hasattr(os, "sched_getaffinity"):
            self.affinity = frozenset(os.sched_getaffinity(0))

    def read(self, path: str) -> str:
        """Return a file as text, without NULs and space around it; "" where it cannot be read."""
        try:
            data = Path(path).read_bytes()
        except OSError:  # most of these files exist on some machines only, and drivers answer reads with odd errors
            return ""
        return data.replace(b"\0", b" ").decode("utf-8", "replace").strip()

    def exists(self, path: str) -> bool:
        """Return whether there is such a file or folder."""
        return os.path.exists(path)  # noqa: PTH110 (Path.exists raises PermissionError before Python 3.12)

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder, sorted; [] where it cannot be listed."""
        try:
            return sorted(os.listdir(folder))  # noqa: PTH208
        except OSError:
            return []

    def run(self, *command: str, timeout_s: float = 2.0) -> str:
        """Return the output of a command; "" where it is missing, fails silently or takes too long."""
        import subprocess

        try:
            done = subprocess.run(command, capture_output=True, timeout=timeout_s, stdin=subprocess.DEVNULL, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout.decode("utf-8", "replace").strip()

    def run_all(self, commands: Iterable[Sequence[str]]) -> list[str]:
        """Run several commands at once, so that the slowest one sets the time."""
        wanted = list(commands)
        results = [""] * len(wanted)

        def work(index: int) -> None:
            results[index] = self.run(*wanted[index])

        threads = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(len(wanted))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    def package(self, module: str, *distributions: str) -> Package | None:
        """Return an installed package, None where it is not.

        Args:
            module: its import name. It is looked for, not imported.
            distributions: names that it may be installed under.
        """
        from importlib.util import find_spec

        try:
            spec = find_spec(module)
        except (ImportError, ValueError):
            return None
        if spec is None or not spec.submodule_search_locations:
            return None
        locations = list(spec.submodule_search_locations)
        libraries = [
            name
            for location in locations
            for folder in ("lib", "libs", "capi", "bin")
            for name in self.names(os.path.join(location, folder))  # noqa: PTH118
            if name.endswith((".so", ".dylib", ".dll"))
        ]
        return Package(self._version(locations, distributions), tuple(sorted(set(libraries))))

    def _version(self, locations: Sequence[str], distributions: Sequence[str]) -> str:
        """Return the installed version. The name of a folder beside the package has it, which is ten times faster to read than
        importlib.metadata is to import; only an editable install needs that."""
        for location in locations:
            for name in self.names(os.path.dirname(location)):  # noqa: PTH120
                for distribution in distributions:
                    start = distribution.replace("-", "_") + "-"
                    if name.startswith(start) and name.endswith(".dist-info"):
                        return name[len(start) : -len(".dist-info")]
        from importlib import metadata

        for distribution in distributions:
            try:
                return metadata.version(distribution)
            except metadata.PackageNotFoundError:
                continue
        return ""


class CapturedSystem(System):
    """A machine replayed from a capture.

    Args:
        text: the capture, in the form given at the top of this file.

    Raises:
        ValueError: its @system part is missing, is not JSON, or names no system.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        pieces = _HEADING.split(text)
        self.parts = {pieces[i]: pieces[i + 1].strip("\n") for i in range(1, len(pieces), 2)}
        facts = json.loads(self.parts.get("@system", ""))
        if not isinstance(facts, dict) or not {"os", "machine"} <= facts.keys():
            raise ValueError("The capture does not say which system it is of.")
        self.os_name = facts["os"]
        self.machine = facts["machine"]
        self.release = facts.get("release", "")
        self.python = facts.get("python", "")
        self.environ = facts.get("environ", {})
        affinity = facts.get("affinity")
        self.affinity = None if affinity is None else frozenset(affinity)

    def read(self, path: str) -> str:
        return self.parts.get(path, "").strip()

    def exists(self, path: str) -> bool:
        return path in self.parts or any(part.startswith(path + "/") for part in self.parts)

    def names(self, folder: str) -> list[str]:
        start = folder.rstrip("/") + "/"
        return sorted({part[len(start) :].split("/", 1)[0] for part in self.parts if part.startswith(start)})

    def run(self, *command: str, timeout_s: float = 2.0) -> str:
        return self.parts.get("$ " + " ".join(command), "").strip()

    def package(self, module: str, *distributions: str) -> Package | None:
        for heading, body in self.parts.items():
            words = heading.split()
            if words[:2] == ["@package", module]:
                return Package(words[2] if len(words) > 2 else "", tuple(body.split()))
        return None


class RecordingSystem(System):
    """This machine, with a record of everything that is read from it."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: dict[str, str] = {}

    def read(self, path: str) -> str:
        text = super().read(path)
        if text:
            self._parts[path] = text
        return text

    def exists(self, path: str) -> bool:
        found = super().exists(path)
        if found:
            self._parts.setdefault(path, "")
        return found

    def run(self, *command: str, timeout_s: float = 2.0) -> str:
        text = super().run(*command, timeout_s=timeout_s)
        if text:
            self._parts["$ " + " ".join(command)] = text
        return text

    def package(self, module: str, *distributions: str) -> Package | None:
        package = super().package(module, *distributions)
        if package is not None:
            self._parts[f"@package {module} {package.version}".rstrip()] = "\n".join(package.libraries)
        return package

    def capture(self) -> str:
        """Return everything read so far, as a text for `CapturedSystem`."""
        facts = {
            "os": self.os_name,
            "machine": self.machine,
            "release": self.release,
            "python": self.python,
            "affinity": None if self.affinity is None else sorted(self.affinity),
            "environ": {name: self.environ[name] for name in _KEPT_VARIABLES if name in self.environ},
        }
        parts = {"@system": json.dumps(facts), **self._parts}
        return "\n".join(f"==> {heading} <==\n{body}\n" for heading, body in parts.items())
