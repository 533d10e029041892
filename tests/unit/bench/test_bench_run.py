"""Rounds over candidates, with workers that only count."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from xml.etree import ElementTree

import msgspec
import pytest

from edge.bench.bandwidth import decode_bytes
from edge.bench.plot import plot
from edge.bench.run import Candidate, Options, run_bench
from edge.bench.values import Result, ratio_stat, stat
from edge.errors import BackendError, UsageError
from edge.formats.artifact import open_artifact
from edge.plan import PlanRequest, make_plan
from tests.unit.bench.fakes import device, sample, setting, write_gguf

QUICK = Options(n_prompt=100, n_decode=10, n_rounds=4)


class Worker:
    """Speeds by the number of threads; `log` has what happened, in order."""

    log: ClassVar[list[tuple[str, int]]] = []
    fails_in: ClassVar[tuple[str, int, type[BaseException]] | None] = None

    def __init__(self, plan: Any, *, with_energy: bool) -> None:
        self.n, self.n_runs = plan.n_threads, 0
        self.load_s, self.energy = 0.5, "counted" if with_energy else ""
        self._act("open")

    def run(self, n_prompt: int, n_decode: int) -> Any:
        self._act("run")
        self.n_runs += 1
        return sample(1.0 / self.n, 2.0 / self.n, n_prompt, n_decode, decode_joules=5.0, peak_bytes=self.n << 20)

    def close(self) -> None:
        self.log.append(("close", self.n))

    def stop(self) -> None:
        self.log.append(("stop", self.n))

    def _act(self, what: str) -> None:
        self.log.append((what, self.n))
        if self.fails_in is not None and self.fails_in[:2] == (what, self.n):
            raise self.fails_in[2]("The engine gave up.")


@pytest.fixture
def worker() -> type[Worker]:
    class Own(Worker):
        log: ClassVar[list[tuple[str, int]]] = []

    return Own


@pytest.fixture
def candidates(tmp_path: Path) -> list[Candidate]:
    artifact = open_artifact(write_gguf(tmp_path / "tiny.gguf"))
    plans = [make_plan(device(), artifact, PlanRequest(backend="fake", context=1024, threads=n, n_seq=1)) for n in (1, 2, 4)]
    return [Candidate(f"{plan.n_threads} threads", plan) for plan in plans]


def run(candidates: list[Candidate], worker: type[Worker], options: Options = QUICK, **changes: Any) -> Result:
    return run_bench(
        candidates, options, changes.pop("device", device()), open_worker=worker, measure_bandwidth=lambda *_: 1e9, **changes
    )


def test_candidates_take_turns_forwards_and_backwards(candidates: list[Candidate], worker: type[Worker]) -> None:
    run(candidates, worker)
    assert [n for what, n in worker.log if what == "run"] == [1, 2, 4, 4, 2, 1, 1, 2, 4, 4, 2, 1]
    assert [n for what, n in worker.log if what == "open"] == [1, 2, 4]
    assert sorted(n for what, n in worker.log if what == "close") == [1, 2, 4]


def test_figures(candidates: list[Candidate], worker: type[Worker]) -> None:
    result = run(candidates, worker)
    first, second, _ = result.rows
    assert result.is_complete
    assert second.decode_tokens_per_s is not None
    assert second.decode_tokens_per_s.median == pytest.approx(10.0)
    assert second.prefill_tokens_per_s is not None
    assert second.prefill_tokens_per_s.median == pytest.approx(200.0)
    assert first.decode_ratio is None
    assert second.decode_ratio is not None
    assert second.decode_ratio.median == pytest.approx(2.0)
    assert second.peak_bytes == 2 << 20
    assert second.decode_joules == pytest.approx(0.5)
    assert second.load_s == 0.5
    assert result.energy == "counted"
    assert len(second.samples) == 4


def test_share_of_bandwidth(candidates: list[Candidate], worker: type[Worker]) -> None:
    row = run(candidates, worker).rows[0]
    # One block, the output, and keys and values of what is in the window: 2 * 64 numbers of 2 bytes a token.
    assert row.decode_bytes == 4 * 64 * 64 * 4 + 105 * 2 * 64 * 2
    assert row.bandwidth_share == pytest.approx(5.0 * row.decode_bytes / 1e9)


def test_only_experts_that_work_are_read(tmp_path: Path) -> None:
    artifact = open_artifact(write_gguf(tmp_path / "tiny.gguf"))
    header = artifact.header
    assert header is not None
    plain = decode_bytes(artifact, setting(), 0)
    tensors = tuple(
        replace(tensor, name="blk.0.ffn_up_exps.weight") if tensor.name == "blk.0.attn_q.weight" else tensor
        for tensor in header.tensors
    )
    metadata = {**header.metadata, "llama.expert_count": 8, "llama.expert_used_count": 2}
    mixed = replace(artifact, header=replace(header, tensors=tensors, metadata=metadata))
    assert plain is not None
    assert decode_bytes(mixed, setting(), 0) == plain - 64 * 64 * 4 * 6 // 8


def test_one_that_fails_leaves_the_others(candidates: list[Candidate], worker: type[Worker]) -> None:
    worker.fails_in = ("open", 2, BackendError)
    result = run(candidates, worker)
    assert result.rows[1].error == "The engine gave up."
    assert result.rows[1].decode_tokens_per_s is None
    assert not result.is_complete
    assert [len(row.samples) for row in result.rows] == [4, 0, 4]
    assert [what for what, n in worker.log if n == 2] == ["open"]


def test_ctrl_c_gives_what_there_is(candidates: list[Candidate], worker: type[Worker]) -> None:
    class Impatient(worker):  # type: ignore[valid-type, misc]
        def run(self, n_prompt: int, n_decode: int) -> Any:
            if self.n == 4 and self.n_runs == 1:
                raise KeyboardInterrupt
            return super().run(n_prompt, n_decode)

    result = run(candidates, Impatient)
    assert [len(row.samples) for row in result.rows] == [1, 1, 1]
    assert not result.is_complete
    assert {n for what, n in worker.log if what == "stop"} == {1, 2, 4}


def test_models_that_do_not_fit_together_take_turns_in_memory(candidates: list[Candidate], worker: type[Worker]) -> None:
    need = candidates[0].plan.memory.total_bytes
    small = device()
    small = replace(small, memory=replace(small.memory, available_bytes=2 * need))
    run(candidates, worker, Options(100, 10, 2), device=small)
    assert worker.log[:4] == [("open", 1), ("run", 1), ("close", 1), ("open", 2)]
    assert sum(what == "open" for what, _ in worker.log) == 6


@pytest.mark.parametrize("options", [Options(0, 1, 1), Options(1, 0, 1), Options(1, 1, 0), Options(1000, 100, 1)])
def test_what_cannot_be_measured(candidates: list[Candidate], worker: type[Worker], options: Options) -> None:
    with pytest.raises(UsageError):
        run(candidates, worker, options)
    assert worker.log == []


def test_nothing_to_measure(worker: type[Worker]) -> None:
    with pytest.raises(UsageError):
        run([], worker)


def test_progress_ends_at_one(candidates: list[Candidate], worker: type[Worker]) -> None:
    shares: list[float] = []
    run(candidates, worker, on_progress=lambda text, share: shares.append(share))
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_json_comes_back(candidates: list[Candidate], worker: type[Worker]) -> None:
    result = run(candidates, worker)
    assert msgspec.json.decode(json.dumps(msgspec.to_builtins(result)), type=Result) == result


def test_picture(candidates: list[Candidate], worker: type[Worker]) -> None:
    worker.fails_in = ("open", 4, BackendError)
    named = [replace(candidate, name=f"<{candidate.name}> & more") for candidate in candidates]
    root = ElementTree.fromstring(plot(run(named, worker)))
    names = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text") if text.get("text-anchor") == "end"]
    assert names == ["<1 threads> & more", "<2 threads> & more"] * 4  # four panels; what failed has no bar
    bars = [float(bar.get("width", 0)) for bar in root.iter("{http://www.w3.org/2000/svg}rect") if bar.get("x")]
    assert bars[1] == pytest.approx(2 * bars[0], rel=1e-3)


def test_statistics() -> None:
    one = stat([3.0])
    assert (one.median, one.min, one.max, one.spread) == (3.0, 3.0, 3.0, 0.0)
    five = stat([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (five.quartile_1, five.median, five.quartile_3) == (2.0, 3.0, 4.0)
    assert five.spread == pytest.approx(2 / 3)
    assert ratio_stat([2.0, 20.0], [1.0, 10.0]).median == 2.0
