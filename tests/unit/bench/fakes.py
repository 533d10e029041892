"""A device whose speed follows from the settings by a formula, with noise, and a clock that only it moves."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from edge.bench.divergence import Divergence
from edge.bench.process import setting_of
from edge.bench.values import Sample, Setting
from edge.device import CapturedSystem, DeviceProfile, probe

FIXTURES = Path(__file__).parents[2] / "fixtures" / "devices"


def device(name: str = "laptop-rtx4060") -> DeviceProfile:
    return probe(CapturedSystem((FIXTURES / f"{name}.txt").read_text()))


def setting(**changes: Any) -> Setting:
    values: dict[str, Any] = {
        "backend": "llamacpp", "accelerator": "cpu", "threads": 4, "threads_batch": 4, "n_ubatch": 512,
        "flash_attention": True, "kv_type_k": "f16", "kv_type_v": "f16", "gpu_layers": 0, "n_ctx": 1280,
    }  # fmt: skip
    return Setting(**{**values, **changes})


def sample(prefill_s: float = 1.0, decode_s: float = 1.0, n_prompt: int = 100, n_decode: int = 10, **changes: Any) -> Sample:
    values: dict[str, Any] = {
        "first_token_s": prefill_s * 1.01, "prefill_s": prefill_s, "decode_s": decode_s, "n_prompt": n_prompt,
        "n_decode": n_decode, "prefill_cpu_s": prefill_s, "decode_cpu_s": decode_s, "peak_bytes": 1 << 20,
    }  # fmt: skip
    return Sample(**{**values, **changes})


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Machine:
    """Measures settings: `cost` gives the seconds of prefill and decode of 100 and 10 tokens; noise is a share of them."""

    def __init__(
        self, cost: Callable[[Setting], tuple[float, float]], *, noise: float = 0.0, seed: int = 1, clock: Clock | None = None
    ) -> None:
        self.cost, self.noise, self.random = cost, noise, random.Random(seed)
        self.clock = clock or Clock()
        self.measured: list[Setting] = []

    def measure(self, asked: Setting, n_prompt: int = 100, n_decode: int = 10) -> Sample:
        self.measured.append(asked)
        prefill_s, decode_s = (
            seconds * n / usual * self.random.lognormvariate(0, self.noise)
            for seconds, n, usual in zip(self.cost(asked), (n_prompt, n_decode), (100, 10), strict=True)
        )
        self.clock.now += prefill_s + decode_s
        return sample(prefill_s, decode_s, n_prompt, n_decode)


def write_gguf(path: Path, *, name: str = "Tiny", n_ctx: int = 4096, seed: int = 0) -> Path:
    """A whole GGUF of a model so small that the fake backend is as good as any."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_block_count(1)
    writer.add_embedding_length(64)
    writer.add_context_length(n_ctx)
    writer.add_head_count(2)
    writer.add_feed_forward_length(64)
    rng = np.random.default_rng(seed)
    for tensor in ("token_embd", "blk.0.attn_q", "blk.0.attn_k", "blk.0.attn_v", "output"):
        writer.add_tensor(f"{tensor}.weight", rng.standard_normal((64, 64)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class FakeWorker:
    """A process on a machine, whose engines all compute the same unless `divergences` says otherwise.

    Args:
        machine: of it.
        plan: engine and format.
        divergences: "engine format" -> mean divergence from the usual engine.
        exact: the same from the exact weights, each as a mean and how far every second token is above and below it.
        is_exact: this process has the exact weights.
    """

    load_s, energy = 0.1, ""

    def __init__(
        self,
        machine: Machine,
        plan: Any,
        divergences: dict[str, float] | None = None,
        exact: dict[str, tuple[float, float]] | None = None,
        *,
        is_exact: bool = False,
    ) -> None:
        self.machine, self.setting, self.plan = machine, setting_of(plan), plan
        self.divergences, self.exact, self.is_exact = divergences or {}, exact or {}, is_exact

    def run(self, n_prompt: int, n_decode: int) -> Any:
        return self.machine.measure(self.setting, n_prompt, n_decode)

    def pass_ms(self) -> dict[int, float]:
        return {1: 10.0, 2: 11.0, 4: 13.0, 8: 18.0, 16: 28.0}

    def write_logits(self, path: Path) -> None:
        path.write_text("exact" if self.is_exact else self.plan.artifact.format)

    def compare_logits(self, path: Path) -> Divergence:
        other = f"+{self.setting.prefill_with}" if self.setting.prefill_with else ""
        name = f"{self.setting.backend}{other} {self.plan.artifact.format}"
        if path.read_text() == "exact":
            mean, apart = self.exact[name]
            return Divergence(mean=mean, agreement=0.95, each=(mean + apart, mean - apart) * 64)
        return Divergence(mean=self.divergences.get(name, 0.004), agreement=0.95)

    def close(self) -> None: ...

    stop = close
