"""Measurements as values that convert to JSON and back, and statistics over them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec

__all__ = ["FORMAT", "Result", "Row", "Sample", "Setting", "Stat", "ratio_stat", "stat"]

FORMAT = 1
"""Version of the JSON of `edge bench`, raised with every change that an older reader would misread."""


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a candidate; names as in a Plan. `prefill_with` is the engine that prefills, if it is another one."""

    backend: str
    accelerator: str
    threads: int
    threads_batch: int
    n_ubatch: int
    flash_attention: bool
    kv_type_k: str
    kv_type_v: str
    gpu_layers: int
    n_ctx: int
    prefill_with: str = ""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One prefill and one decode.

    Attributes:
        first_token_s: from the start of prefill until the first token of the reply is chosen.
        prefill_s: of that, prefill alone.
        decode_s: from the first token to the last.
        n_prompt, n_decode: tokens prefilled; tokens decoded after the first one.
        prefill_cpu_s, decode_cpu_s: processor time of all threads.
        prefill_joules, decode_joules: energy of the whole device, idle draw included, if it has a meter.
        load_s: time that its process took to load the model, where `edge tune` counts it.
        peak_bytes: most memory of the process so far, libraries included; without memory of accelerators.
    """

    first_token_s: float
    prefill_s: float
    decode_s: float
    n_prompt: int
    n_decode: int
    prefill_cpu_s: float
    decode_cpu_s: float
    peak_bytes: int
    prefill_joules: float | None = None
    decode_joules: float | None = None
    load_s: float = 0.0

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prefill speed."""
        return self.n_prompt / self.prefill_s

    @property
    def decode_tokens_per_s(self) -> float:
        """Decode speed."""
        return self.n_decode / self.decode_s


class Stat(msgspec.Struct, frozen=True, kw_only=True):
    """A median, quartiles and extremes."""

    median: float
    quartile_1: float
    quartile_3: float
    min: float
    max: float

    @property
    def spread(self) -> float:
        """Interquartile range as a share of the median."""
        return (self.quartile_3 - self.quartile_1) / self.median if self.median else 0.0


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate.

    Attributes:
        name: for tables.
        model, path, format, size_bytes: the artifact.
        setting: its settings.
        load_s: median time from opening the file to the end of a first step.
        first_token_s, prefill_tokens_per_s, decode_tokens_per_s: over the rounds; None without a round.
        decode_ratio: decode speed over that of the first candidate in the same round; None for the first.
        prefill_ratio: likewise.
        peak_bytes: the largest of all rounds.
        prefill_joules, decode_joules: medians per token; None without a meter.
        decode_bytes: bytes of weights and KV cache that decoding one token reads, by the model's layout; None if unknown.
        bandwidth_share: share of the measured memory bandwidth that decode reaches.
        samples: every round.
        error: why rounds are missing; "" if none are.
    """

    name: str
    model: str
    path: str
    format: str
    size_bytes: int
    setting: Setting
    load_s: float | None = None
    first_token_s: Stat | None = None
    prefill_tokens_per_s: Stat | None = None
    decode_tokens_per_s: Stat | None = None
    prefill_ratio: Stat | None = None
    decode_ratio: Stat | None = None
    peak_bytes: int | None = None
    prefill_joules: float | None = None
    decode_joules: float | None = None
    decode_bytes: int | None = None
    bandwidth_share: float | None = None
    samples: tuple[Sample, ...] = ()
    error: str = ""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run.

    Attributes:
        format: see FORMAT.
        edge: version of edge.
        device: name of the machine.
        processor: name and number of cores.
        measured_at: UTC, "2026-11-26T10:40:00Z".
        n_prompt, n_decode, n_rounds: as requested.
        bandwidth_bytes_per_s: of reading memory, the best of several sweeps; None if not measured.
        energy: source of energy figures, or why there is none.
        is_complete: every candidate had every round.
        rows: the candidates, in the order given.
    """

    format: int
    edge: str
    device: str
    processor: str
    measured_at: str
    n_prompt: int
    n_decode: int
    n_rounds: int
    bandwidth_bytes_per_s: float | None
    energy: str
    is_complete: bool
    rows: tuple[Row, ...]


def stat(values: Sequence[float]) -> Stat:
    """Return median, quartiles and extremes of at least one value."""
    ordered = sorted(values)
    low, middle, high = (ordered * 3)[:3] if len(ordered) == 1 else statistics.quantiles(ordered, n=4, method="inclusive")
    return Stat(median=middle, quartile_1=low, quartile_3=high, min=ordered[0], max=ordered[-1])


def ratio_stat(ours: Sequence[float], theirs: Sequence[float]) -> Stat:
    """Return statistics of ours over theirs, round by round, so that a slow moment of the machine affects both."""
    return stat([mine / other for mine, other in zip(ours, theirs, strict=False)])
