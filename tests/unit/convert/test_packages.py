"""What a conversion asks for is what it imports: PyTorch only where something runs it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.errors import BackendUnavailableError
from edge_convert.targets import check_packages

WITHOUT_TORCH = """
import sys
from pathlib import Path

sys.modules["torch"] = None  # as if it were not installed
from edge_convert.onnx.export import OnnxOptions, export_onnx

export_onnx(Path(sys.argv[1]), Path(sys.argv[2]), OnnxOptions(precision="fp32"), lambda text, done: None)
"""


def test_onnx_is_written_without_pytorch(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", WITHOUT_TORCH, str(tiny_checkpoint("llama")), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (out / "model.onnx").is_file()


def test_what_lacks_is_named_only_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import util

    there = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "torch" else there(name))
    check_packages(["onnx"])
    for formats, more in ((["gguf"], ()), (["onnx", "gguf"], ()), (["onnx"], ("torch",))):
        with pytest.raises(BackendUnavailableError, match="not installed: torch"):
            check_packages(formats, *more)
