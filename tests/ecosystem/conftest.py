"""The environment in which programs of others live that ask our server, set up by `make install-ecosystem`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ENVIRONMENT = Path(sys.prefix) / "ecosystem"


class Others:
    """Runs programs of that environment.

    Args:
        home: a folder for what they write.
    """

    def __init__(self, home: Path) -> None:
        self._home = home

    def run(self, *command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a program by its name until it ends. It finds no proxy, key or settings of the person who runs the tests."""
        name, *arguments = command
        env = {"HOME": str(self._home), "PATH": "/usr/bin:/bin", "PYTHONUTF8": "1", **variables}
        if root := os.environ.get("SYSTEMROOT"):
            env["SYSTEMROOT"] = root
        return subprocess.run(
            [ENVIRONMENT / "bin" / name, *arguments], cwd=self._home, env=env, capture_output=True, text=True, check=False
        )


@pytest.fixture
def others(tmp_path: Path) -> Others:
    """Programs of others. Where they are missing these tests fail; they are not skipped, since they are the point."""
    if not (ENVIRONMENT / "bin" / "python").exists():
        pytest.fail(f"{ENVIRONMENT} is missing. Set it up with: make install-ecosystem")
    return Others(tmp_path)
