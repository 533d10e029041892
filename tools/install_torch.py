"""Install torch for the converters without gigabytes of CUDA libraries that they do not use.

    python tools/install_torch.py [constraints file]

On Linux, PyPI's torch is the CUDA build. Where pip's own settings offer a CPU build (its version ends in "+cpu"), that is
taken, else the one of PyTorch's own index; where that cannot be reached, PyPI's, with a word about its size. On macOS there is
only one.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def main() -> int:
    """Install the version that the constraints file pins."""
    constraints = Path(sys.argv[1] if len(sys.argv) > 1 else "constraints.txt")
    wanted = pinned(constraints.read_text(encoding="utf-8"))
    if is_installed(wanted):
        return 0
    if platform.system() != "Linux" or is_cpu_build(offered(wanted)):
        return pip("install", f"torch=={wanted}", "--constraint", str(constraints))
    # torch itself from there, what it needs from the usual place.
    if pip("install", "--no-deps", f"torch=={wanted}", "--index-url", CPU_INDEX, "--retries", "1", "--timeout", "20") == 0:
        return pip("install", f"torch=={wanted}", "--constraint", str(constraints))
    print(f"There is no CPU build of torch {wanted} at {CPU_INDEX}: taking PyPI's, which brings CUDA libraries of several GB.")
    return pip("install", f"torch=={wanted}", "--constraint", str(constraints))


def pinned(constraints: str) -> str:
    """Return the version that a constraints file pins.

    Raises:
        SystemExit: it pins none.
    """
    found = re.search(r"^torch==([0-9.]+)", constraints, re.MULTILINE)
    if not found:
        sys.exit("The constraints file pins no version of torch. Make it again with: make lock")
    return found[1]


def is_installed(wanted: str) -> bool:
    """Return whether this very version is installed, whatever it was built for."""
    try:
        return version("torch").partition("+")[0] == wanted
    except PackageNotFoundError:
        return False


def offered(wanted: str) -> str:
    """Return the version that pip would take by its own settings, "2.13.0+cpu" or "2.13.0"; "" where it finds none."""
    arguments = ("install", "--dry-run", "--no-deps", "--ignore-installed", "--quiet", "--report", "-", f"torch=={wanted}")
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        return ""
    return str(json.loads(done.stdout)["install"][0]["metadata"]["version"])


def is_cpu_build(found: str) -> bool:
    """Return whether a version is a build for the CPU only."""
    return found.endswith("+cpu")


def pip(*arguments: str) -> int:
    """Run pip and give its exit code."""
    return subprocess.run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]).returncode


if __name__ == "__main__":
    sys.exit(main())
