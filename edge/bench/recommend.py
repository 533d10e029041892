"""Which models of the catalogue suit this device, and how fast they would answer: predicted, before gigabytes are downloaded.

The prediction is a roofline: decoding a token reads all weights once, prefill multiplies by all weights once for each token,
and the slower of memory and computation decides. Memory bandwidth and computation are measured here in two seconds. Where other
models were measured on this device, the prediction is corrected by what they showed.

Source: the roofline model (Williams et al., 2009).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edge.plan.speed import TURN_PROMPT
from edge.plan.verdict import Verdict, free_memory, memory_need, memory_verdict

if TYPE_CHECKING:
    from edge.catalog import CatalogEntry, Installed
    from edge.config.schema import Settings
    from edge.device.profile import DeviceProfile

__all__ = ["Measured", "Prediction", "Recommendation", "Roof", "best_of", "candidates", "measure_roof", "predict", "recommend"]

# How near llama.cpp comes to the roofs. Decode of a 1B model reaches 0.6 to 0.9 of the bandwidth, of SmolLM2-135M 0.35 to 0.6
# (docs/bench.md): a share of it, and a fixed time for what is neither.
_OF_BANDWIDTH, _STEP_S = 0.85, 0.002
_OF_COMPUTE_DECODE, _OF_COMPUTE_PREFILL = 0.5, 0.8
_LEAST_TOKENS_PER_S = 8.0
"""Slower than that is slower than most people read."""
_LONGEST_FIRST_TOKEN_S = 5.0


@dataclass(frozen=True, slots=True)
class Roof:
    """What the device can do.

    Attributes:
        bytes_per_s: that `n_threads` threads read from memory together.
        flops_per_s: float32 operations of a matrix product on as many threads.
        n_threads: as many as decode uses.
    """

    bytes_per_s: float
    flops_per_s: float
    n_threads: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """How fast a model would answer.

    Attributes:
        prefill_tokens_per_s, decode_tokens_per_s: speeds.
    """

    prefill_tokens_per_s: float
    decode_tokens_per_s: float

    @property
    def first_token_s(self) -> float:
        """Seconds to the first token of an answer to a prompt of 256 tokens."""
        return TURN_PROMPT / self.prefill_tokens_per_s + 1 / self.decode_tokens_per_s


Measured = Prediction
"""The same, measured."""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A chat model of the catalogue.

    Attributes:
        name, entry: of the catalogue.
        size_bytes: of its files; about, where `is_exact` is false; None if unknown.
        model: on this device; None if it is not.
        verdict: whether it fits into the memory that is free now; None if its size is unknown.
        predicted: None if its size or number of weights is unknown.
        measured: on this device; None if it was not.
    """

    name: str
    entry: CatalogEntry
    size_bytes: int | None
    is_exact: bool
    model: Installed | None
    verdict: Verdict | None
    predicted: Prediction | None = None
    measured: Measured | None = None

    @property
    def is_here(self) -> bool:
        """True if it is on this device."""
        return self.model is not None

    @property
    def need_bytes(self) -> int | None:
        """Memory that it takes with a useful context."""
        return memory_need(self.size_bytes) if self.size_bytes else None

    @property
    def errors(self) -> tuple[float, float] | None:
        """Error of the prediction of prefill and decode, as a share of what was measured: 0.2 is 20 % too fast."""
        if self.predicted is None or self.measured is None:
            return None
        one, other = self.predicted, self.measured
        return (
            one.prefill_tokens_per_s / other.prefill_tokens_per_s - 1,
            one.decode_tokens_per_s / other.decode_tokens_per_s - 1,
        )


def measure_roof(n_threads: int, available_bytes: int) -> Roof:
    """Measure bandwidth and computation in a process of its own.

    Args:
        n_threads: as many as decode uses.
        available_bytes: free memory.

    Raises:
        EdgeError: they could not be measured.
    """
    from edge.bench.bandwidth import sweep_bytes
    from edge.bench.process import bandwidth_here, compute_here

    return Roof(bandwidth_here(n_threads, sweep_bytes(available_bytes)), compute_here(n_threads), n_threads)


def predict(roof: Roof, size_bytes: int, parameters: int) -> Prediction:
    """Return how fast a model of this size would answer on the CPU.

    Args:
        roof: of the device.
        size_bytes: of its weights.
        parameters: number of them.
    """
    flops = 2.0 * parameters
    read_s = size_bytes / (_OF_BANDWIDTH * roof.bytes_per_s)
    decode_s = max(read_s, flops / (_OF_COMPUTE_DECODE * roof.flops_per_s)) + _STEP_S
    prefill_s = flops / (_OF_COMPUTE_PREFILL * roof.flops_per_s) + read_s / TURN_PROMPT
    return Prediction(1 / prefill_s, 1 / decode_s)


def candidates(settings: Settings, device: DeviceProfile) -> list[Recommendation]:
    """Return the chat models of the catalogue that llama.cpp runs, with the one first that has the most weights and fits.

    Nothing is measured or predicted.

    Raises:
        EdgeError: the catalogue or the models' directory cannot be read.
    """
    from edge.catalog import list_models, load_catalog

    catalog, free = load_catalog(settings), free_memory(device)
    here = {model.name: model for model in reversed(list_models(settings)) if model.format == "gguf"}
    found = []
    for name, entry in catalog.items():
        first = next((artifact for artifact in entry.artifacts if artifact.form == "gguf"), None)
        if entry.base or entry.embeddings or entry.voice or first is None:
            continue
        model = here.get(name)
        exact = model.size_bytes if model is not None else first.size_bytes
        size = exact or first.about_bytes
        verdict = memory_verdict(size, free) if size else None
        found.append(Recommendation(name, entry, size, bool(exact), model, verdict))
    ranks = {"fits": 0, "tight": 1, "too large": 2, None: 3}
    return sorted(found, key=lambda one: (ranks[one.verdict], -(one.entry.parameters or 0)))


def recommend(
    settings: Settings, device: DeviceProfile, roof: Roof, measured: Mapping[str, Measured] | None = None
) -> list[Recommendation]:
    """Return `candidates` with their speed, predicted and, as far as that was done, measured.

    Args:
        settings: directories.
        device: from `edge.device.probe`.
        roof: of the device.
        measured: speeds of models here, by name; what `edge tune` measured is known without.

    Raises:
        EdgeError: as `candidates`.
    """
    found = []
    for one in candidates(settings, device):
        predicted = predict(roof, one.size_bytes, one.entry.parameters) if one.size_bytes and one.entry.parameters else None
        speed = (measured or {}).get(one.name) or (_tuned(one.model, settings, device) if one.model is not None else None)
        found.append(replace(one, predicted=predicted, measured=speed))
    return [replace(one, predicted=_corrected(one, found)) for one in found]


def _corrected(one: Recommendation, models: list[Recommendation]) -> Prediction | None:
    """Return a prediction times how far those of the other measured models were off: the median, for prefill and for decode."""
    errors = [other.errors for other in models if other is not one and other.errors is not None]
    if one.predicted is None or not errors:
        return one.predicted
    prefill, decode = (1 + statistics.median(error[phase] for error in errors) for phase in (0, 1))
    return Prediction(one.predicted.prefill_tokens_per_s / prefill, one.predicted.decode_tokens_per_s / decode)


def best_of(models: list[Recommendation]) -> Recommendation | None:
    """Return the model with the most weights that fits and is fast enough to read along; None if there is none."""

    def is_fast(one: Recommendation) -> bool:
        speed = one.measured or one.predicted
        return (
            speed is not None
            and speed.decode_tokens_per_s >= _LEAST_TOKENS_PER_S
            and speed.first_token_s <= _LONGEST_FIRST_TOKEN_S
        )

    return next((one for one in models if one.verdict == "fits" and is_fast(one)), None)


def _tuned(model: Installed, settings: Settings, device: DeviceProfile) -> Measured | None:
    """Return what `edge tune` measured with this model on this device."""
    from edge.catalog import resolve
    from edge.errors import EdgeError
    from edge.plan.tuning import look_up

    try:
        artifact = resolve(str(model.path), settings=settings, download=False)
    except (EdgeError, OSError):
        return None  # its file is damaged, as using it will say
    tuning = look_up(device, artifact, cache_dir=settings.paths.cache_dir).tuning
    if tuning is None or tuning.backend != "llamacpp":
        return None  # the prediction is one of llama.cpp
    return Measured(tuning.prefill_tokens_per_s, tuning.decode_tokens_per_s)
