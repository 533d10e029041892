"""kill -9 while blocks are written, and never a wrong block afterwards: 500 times in `make prove`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.prove import proof_size

SCRIPT = Path(__file__).with_name("kv_kills.py")


@pytest.mark.prove
@pytest.mark.skipif(os.name != "posix", reason="forks and kills")
@pytest.mark.parametrize(
    ("seed", "budget_blocks", "encrypt"),
    [(1, 3000, "plain"), (2, 3000, "plain"), (3, 3000, "encrypt"), (4, 60, "plain"), (5, 300, "encrypt")],
)
def test_every_block_is_right_after_a_kill(tmp_path: Path, seed: int, budget_blocks: int, encrypt: str) -> None:
    """With room for everything, and with so little that blocks are evicted all the time."""
    n_kills = proof_size(16, 100)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "kv"), str(n_kills), str(seed), str(budget_blocks), encrypt],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["problems"] == [], done.stderr
    assert result["n_said"] > n_kills / 4 and result["n_looks"] > n_kills / 8  # they had the time to write something
    assert result["n_blocks"] > 5
