"""What was measured, as values that go to JSON and back, and the statistics over them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec

__all__ = ["FORMAT", "Result", "Row", "Sample", "Setting", "Stat", "ratio_stat", "stat"]

FORMAT = 1
"""Of the JSON of `edge bench`. It grows with every change after which an older reader would misread it."""


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What a candidate ran with; names as in a Plan."""

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


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt read and one reply written.

    Attributes:
        first_token_s: from the beginning of the prompt until the first token of the reply is chosen.
        prefill_s: of that, until the prompt is read.
        decode_s: from the first token to the last.
        n_prompt, n_decode: tokens read; tokens written after the first one.
        prefill_cpu_s, decode_cpu_s: processor time of all threads.
        prefill_joules, decode_joules: energy, where the device tells it. Of the whole device, idle draw included.
        peak_bytes: most memory that the process has had so far, libraries included; not what only an accelerator holds.
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

    @property
    def prefill_tokens_per_s(self) -> float:
        """Speed of reading."""
        return self.n_prompt / self.prefill_s

    @property
    def decode_tokens_per_s(self) -> float:
        """Speed of writing."""
        return self.n_decode / self.decode_s


class Stat(msgspec.Struct, frozen=True, kw_only=True):
    """A median and how far values lie around it."""

    median: float
    quartile_1: float
    quartile_3: float
    min: float
    max: float

    @property
    def spread(self) -> float:
        """Distance of the quartiles as a share of the median."""
        return (self.quartile_3 - self.quartile_1) / self.median if self.median else 0.0


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate.

    Attributes:
        name: what it is called in tables.
        model, path, format, size_bytes: the artifact.
        setting: what it ran with.
        load_s: median time from opening the file to the end of a first step.
        first_token_s, prefill_tokens_per_s, decode_tokens_per_s: over the rounds; None without a round.
        decode_ratio: decode speed over that of the first candidate in the same round; None for the first.
        prefill_ratio: likewise.
        peak_bytes: the largest of all rounds.
        prefill_joules, decode_joules: medians, for each token; None where no meter was to be had.
        decode_bytes: bytes of weights and KV that writing one token reads, by the model's layout; None where unknown.
        bandwidth_share: of the memory bandwidth that was measured, the share that decode reaches.
        samples: every round.
        error: why there is nothing, or not everything; "" otherwise.
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
        n_prompt, n_decode, n_rounds: as asked for.
        bandwidth_bytes_per_s: of reading memory, the best of several sweeps; None where it was not measured.
        energy: where energy comes from, or why it is not known.
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
    """Median, quartiles and extremes of at least one value."""
    ordered = sorted(values)
    low, middle, high = (ordered * 3)[:3] if len(ordered) == 1 else statistics.quantiles(ordered, n=4, method="inclusive")
    return Stat(median=middle, quartile_1=low, quartile_3=high, min=ordered[0], max=ordered[-1])


def ratio_stat(ours: Sequence[float], theirs: Sequence[float]) -> Stat:
    """Statistics of ours over theirs, round by round: what slows the machine down for a while falls on both."""
    return stat([mine / other for mine, other in zip(ours, theirs, strict=False)])
