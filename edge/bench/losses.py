"""What an engine costs in quality: its distance from the usual one, and of both from the file's own weights.

The usual engine rounds, too: with K-quants llama.cpp is 0.02 nats away from the weights that it reads, so another engine can be
nearer to them and far from it. What both are measured against is llama.cpp on these weights as float32, which it unpacks
itself; inputs of products, keys and values are float32 then, too.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edge.bench.run import MEMORY_SHARE, Measuring
from edge.errors import EdgeError, ModelTooLargeError, StorageError, UnsupportedError
from edge.plan.make import make_plan
from edge.plan.receipt import PlanRequest
from edge.plan.speed import LOSSLESS_NATS, is_lossless

if TYPE_CHECKING:
    from edge.bench.divergence import Divergence
    from edge.bench.values import Setting
    from edge.device.profile import DeviceProfile
    from edge.formats.artifact import Artifact
    from edge.plan.receipt import Plan, Safety

__all__ = ["Loss", "Losses", "Tuned", "exact_plan"]

_FLOAT_BYTES, _MOST_BYTES = 4, 4 << 30  # of a weight, and of all of them: what can be written and computed in seconds
_OVERHEAD = 1.3  # of memory, for the largest tensor while it is unpacked, and for the pass
_CERTAINTY = 2.0  # standard errors


class Tuned(Measuring, Protocol):
    """The used part of a `Worker`; tests replace it."""

    def pass_ms(self) -> dict[int, float]: ...
    def write_logits(self, path: Path) -> None: ...
    def compare_logits(self, path: Path) -> Divergence: ...


@dataclass(frozen=True, slots=True)
class Loss:
    """What a setting costs. The attributes are those of an EngineSpeed."""

    divergence: float | None = None
    agreement: float | None = None
    exact: float | None = None
    exact_limit: float = LOSSLESS_NATS

    def refusal(self, usual: str, usual_exact: float | None) -> str:
        """Say why it is not taken, whatever it gains; "" if it loses nothing.

        Args:
            usual: name of the usual engine.
            usual_exact: distance of that one from the exact weights.
        """
        if is_lossless(self.divergence, self.exact, self.exact_limit):
            return ""
        if self.exact is not None and usual_exact is not None:
            return (
                f"faster, and not taken unasked: it is {self.exact:.3f} nats from the file's own weights, more than "
                f"{LOSSLESS_NATS} and than {usual} ({usual_exact:.3f})"
            )
        if self.divergence is None:
            return "faster, and not taken unasked: what it costs in quality could not be measured"
        return f"faster, and not taken unasked: it diverges by {self.divergence:.3f} nats, more than {LOSSLESS_NATS}"


class Losses:
    """Measures what settings cost, each once.

    Args:
        reference: file of the usual engine's logits on the published file. Where there is none, the usual setting writes it.
        ask: calls a function with the process of a setting; None if that failed.
        write_exact: writes the logits of the exact weights to a new file.

    Attributes:
        usual: the usual setting.
    """

    def __init__(
        self,
        reference: Path,
        *,
        ask: Callable[[Setting, Callable[[Tuned], Any]], Any],
        write_exact: Callable[[Path], None],
    ) -> None:
        self._reference, self._exact_path = reference, reference.with_name("exact.npz")
        self._ask, self._write_exact = ask, write_exact
        self._from_usual: dict[Setting, Divergence | None] = {}
        self._from_exact: dict[Setting, Divergence | None] = {}
        self._is_reference = self._has_tried = False
        self.usual: Setting | None = None

    @property
    def is_reference(self) -> bool:
        """The usual setting wrote the reference: so this is the published file."""
        return self._is_reference

    def measure(self, setting: Setting) -> Loss:
        """Return what a setting costs, as far as it can be said."""
        assert self.usual is not None  # the search begins with it
        if not self._reference.exists():
            self._is_reference = self._ask(self.usual, self._write_reference) is True
        if not (self._is_reference and setting == self.usual):
            self._compare(setting, self._reference, self._from_usual)
        if self._is_reference:  # the exact weights are those of the published file
            for one in (self.usual, setting):
                self._compare(one, self._exact_path, self._from_exact)
        return self.known(setting)

    def _write_reference(self, worker: Tuned) -> bool:
        worker.write_logits(self._reference)
        return True

    def _compare(self, setting: Setting, path: Path, found: dict[Setting, Divergence | None]) -> None:
        if setting not in found and path.exists():
            found[setting] = self._ask(setting, lambda worker: worker.compare_logits(path))

    def known(self, setting: Setting) -> Loss:
        """Return what was measured of a setting so far."""
        found = self._from_usual.get(setting)
        loss = Loss(found.mean, found.agreement) if found is not None else Loss()
        if self._is_reference and setting == self.usual:
            loss = Loss(0.0, 1.0)
        ours = self._from_exact.get(setting)
        usual = self._from_exact.get(self.usual) if self.usual is not None else None
        if ours is None or usual is None:
            return loss
        return replace(loss, exact=ours.mean, exact_limit=_limit(ours, usual))

    def refusal(self, setting: Setting, usual_text: str) -> str:
        """Say why an engine that is faster is not taken; "" if it loses nothing. Looks for the exact weights first, once."""
        assert self.usual is not None
        self.measure(self.usual)
        if self._is_reference and not self._has_tried:
            self._has_tried = True
            try:
                self._write_exact(self._exact_path)
            except EdgeError:  # the usual engine remains the measure
                self._exact_path.unlink(missing_ok=True)
        usual = self.measure(self.usual)
        return self.measure(setting).refusal(usual_text, usual.exact)


def _limit(ours: Divergence, usual: Divergence) -> float:
    """Return how far an engine may be from the exact weights: as far as the usual one, as surely as the text can tell."""
    same = usual.each[-len(ours.each) :]  # of a pair of engines only the end of the text is compared
    apart = [one - other for one, other in zip(ours.each, same, strict=True)]
    error = statistics.stdev(apart) / len(apart) ** 0.5 if len(apart) > 1 else 0.0
    mean = usual.mean if len(same) == len(usual.each) else statistics.fmean(same)
    return max(LOSSLESS_NATS, mean + _CERTAINTY * error)


def exact_plan(device: DeviceProfile, artifact: Artifact, n_ctx: int, safety: Safety | None, folder: Path) -> Plan:
    """Return the plan of a process that unpacks a file's weights to float32 and computes exactly with them.

    Args:
        device: from `edge.device.probe`.
        artifact: the file.
        n_ctx: of the usual plan.
        safety: as for `make_plan`.
        folder: where the weights are written.

    Raises:
        UnsupportedError: it is no GGUF file.
        ModelTooLargeError, StorageError: there is no room in memory or on the disk, or it would take too long.
        BackendUnavailableError: llama.cpp cannot run it here.
    """
    if artifact.header is None:
        raise UnsupportedError("Only the weights of a GGUF file can be unpacked.")
    n_bytes = artifact.header.n_params * _FLOAT_BYTES
    if n_bytes > _MOST_BYTES or n_bytes * _OVERHEAD > device.memory.available_bytes * MEMORY_SHARE:
        raise ModelTooLargeError("The model is too large to be computed in 32 bits.", "Use a smaller one.")
    if shutil.disk_usage(folder).free < 2 * n_bytes:
        raise StorageError("The disk has no room for the weights in 32 bits.", "Free some.")
    request = PlanRequest(backend="llamacpp", require="cpu", context=n_ctx, n_seq=1)
    plan = make_plan(device, artifact, request, safety=safety)
    memory = replace(plan.memory, weights_bytes=n_bytes, total_bytes=int(n_bytes * _OVERHEAD))
    # Flash attention would round keys and values to float16, whatever their type. One thread waits for no other: on a busy
    # machine it is several times faster than two.
    exact = {"kv_type_k": "f32", "kv_type_v": "f32", "flash_attention": False, "n_threads": 1, "n_threads_batch": 1}
    return replace(plan, memory=memory, **exact)  # type: ignore[arg-type]
