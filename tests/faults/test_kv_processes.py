"""Several processes on one block store at once: nothing wrong, nothing stuck, never more than the budget."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge.kv.rows import DISK_BLOCK_BYTES
from edge.kv.store import BlockStore, StoreOptions
from tests.prove import proof_size

SCRIPT = Path(__file__).with_name("kv_hammer.py")
SECONDS = proof_size(3.0, 30.0)


@pytest.mark.prove
@pytest.mark.skipif(os.name != "posix", reason="the store needs flock")
@pytest.mark.parametrize(("n_processes", "budget_blocks"), [(2, 100), (3, 100_000)])
def test_processes_do_not_harm_each_other(tmp_path: Path, n_processes: int, budget_blocks: int) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(tmp_path / "kv"), str(SECONDS), str(seed), str(budget_blocks)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(n_processes)
    ]
    try:
        finished = [process.communicate(timeout=SECONDS + 300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * n_processes, [err for _, err in finished]
    results = [json.loads(out) for out, _ in finished]
    for result in results:
        assert (result["messages"], result["problem"]) == ([], None)
        for bad in ("wrong", "lost", "damaged", "disagreed"):
            assert result.get(bad, 0) == 0, result
        assert result["read"] > 10 and result["put"] > 10, result
        assert result["most_bytes"] <= budget_blocks * DISK_BLOCK_BYTES
    if budget_blocks < 1000:
        assert sum(result["evicted"] for result in results) > 0
    with BlockStore(tmp_path / "kv", StoreOptions(budget_bytes=budget_blocks * DISK_BLOCK_BYTES, min_free_bytes=0)) as store:
        report = store.gc()
        assert (report.n_indexed, report.n_removed, report.n_missing) == (0, 0, 0)
        assert store.verify().damaged == ()
    assert not list((tmp_path / "kv").glob("tmp/*")) and not list((tmp_path / "kv").glob("live/*"))
