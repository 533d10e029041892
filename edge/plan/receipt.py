"""The request that goes into a plan, and the plan that comes out, with a receipt in which every choice has its reason."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from edge.names import Accelerator

if TYPE_CHECKING:
    from edge.adapters import Adapter
    from edge.formats.artifact import Artifact

__all__ = ["Choice", "MemoryEstimate", "Plan", "PlanRequest", "PrefillPlan", "Safety"]


_ROUNDING = 256
"""The context window is made in steps of so many tokens."""


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """The user's wishes. None leaves a choice to the plan.

    Attributes:
        backend: name of an engine, as in `edge.registry.ENGINES`.
        require: the accelerator that must be used; the plan fails rather than use another.
        context: cells of the KV cache, in tokens.
        threads: threads for decode and for prefill.
        gpu_layers: layers to put on the accelerator; 0 is none, -1 is all.
        kv_type_k, kv_type_v: types of keys and values, of `edge.names.KV_TYPES`; ONNX and Core ML models have one of their own.
        n_seq: sequences side by side in the KV cache.
        threads_batch: threads for prefill, where they are not those of `threads`.
        n_ubatch: tokens computed in one pass of prefill.
        flash_attention: False turns it off; otherwise it is on where the accelerator has it.
    """

    backend: str | None = None
    require: Accelerator | None = None
    context: int | None = None
    threads: int | None = None
    gpu_layers: int | None = None
    kv_type_k: str | None = None
    kv_type_v: str | None = None
    n_seq: int | None = None
    threads_batch: int | None = None
    n_ubatch: int | None = None
    flash_attention: bool | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """One line of the receipt.

    Attributes:
        what: name of the setting ("context").
        value: its value, as text ("8,192 tokens").
        reason: why, in plain words and with the numbers it rests on.
    """

    what: str
    value: str
    reason: str


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Memory that the model will take, estimated from its files before loading. All in bytes.

    Attributes:
        weights_bytes: the tensors of the model.
        kv_bytes: the KV cache (and recurrent state) for the whole context.
        compute_bytes: scratch buffers of the engine and its libraries.
        total_bytes: the sum.
        available_bytes: free memory less the safety margin.
        device_bytes: of total_bytes, the part in an accelerator's own memory; 0 where it shares main memory.
        device_available_bytes: of available_bytes, the accelerator's own part.
        draft_bytes, adapter_bytes, prefill_bytes: of total_bytes, those of a draft model, of adapters and of the engine that
            prefills in the place of the first, which the first three do not count.
    """

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    total_bytes: int
    available_bytes: int
    device_bytes: int = 0
    device_available_bytes: int = 0
    draft_bytes: int = 0
    adapter_bytes: int = 0
    prefill_bytes: int = 0


@dataclass(frozen=True, slots=True)
class PrefillPlan:
    """The engine that prefills long prompts for the one of a plan; see `edge.backends.paired`.

    Attributes:
        plan: how it runs.
        least: fewest tokens of a chunk that are worth handing over.
        per_token: how many more for each token before them, whose keys and values are handed over first.
    """

    plan: Plan
    least: int
    per_token: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """The settings with which one model runs on this device, and the reason of each.

    Attributes:
        backend: name of the engine.
        accelerator: the device that computes.
        artifact: the model file.
        n_ctx: cells of the KV cache, in tokens, shared by all sequences.
        n_seq: sequences side by side.
        n_threads: threads for decode (one token at a time: bound by memory).
        n_threads_batch: threads for prefill (bound by arithmetic).
        n_ubatch: tokens computed in one pass.
        gpu_layers: layers on the accelerator; the output layer counts as one.
        kv_type_k, kv_type_v: types of keys and values.
        flash_attention: attention is fused into one kernel, as quantised values need it.
        use_mmap: map the file rather than read it.
        use_extra_buffers: let the engine repack weights for this CPU.
        memory: the estimate.
        choices: every choice with its reason.
        fallbacks: accelerators to try instead, the best first, where the engine finds out that `accelerator` does not work.
        draft: how the model that drafts for it runs; None without one.
        pass_costs: (tokens, cost) of passes over several tokens of a reply, as multiples of one over a single token, as far as
            `edge tune` measured them here.
        adapters: that it is loaded with.
        prefill: the engine that prefills long prompts in its place; None if it does that itself.
    """

    backend: str
    accelerator: Accelerator
    artifact: Artifact
    n_ctx: int
    n_seq: int
    n_threads: int
    n_threads_batch: int
    n_ubatch: int
    gpu_layers: int
    kv_type_k: str
    kv_type_v: str
    flash_attention: bool
    use_mmap: bool
    use_extra_buffers: bool
    memory: MemoryEstimate
    choices: tuple[Choice, ...]
    fallbacks: tuple[Accelerator, ...] = ()
    draft: Plan | None = None
    pass_costs: tuple[tuple[int, float], ...] = ()
    adapters: tuple[Adapter, ...] = ()
    prefill: PrefillPlan | None = None

    @property
    def notices(self) -> list[str]:
        """What the user should know before the first answer."""
        trained = self.artifact.facts.n_ctx_train
        if not trained or self.n_ctx < trained + _ROUNDING:
            return []
        return [
            f"The context window has {self.n_ctx:,} tokens, and {self.artifact.name} was trained for {trained:,}: it may lose "
            "the thread beyond that."
        ]

    def explain(self) -> str:
        """Return the receipt as plain text: one aligned line a choice."""
        width_what = max((len(choice.what) for choice in self.choices), default=0)
        width_value = max((len(choice.value) for choice in self.choices), default=0)
        lines = [f"{c.what:<{width_what}}  {c.value:<{width_value}}  {c.reason}".rstrip() for c in self.choices]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as values that JSON knows; the model is given by name, path, size and hash."""
        result: dict[str, Any] = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in ("artifact", "memory", "choices", "draft", "adapters", "prefill")
        }
        result["artifact"] = {
            "name": self.artifact.name,
            "path": str(self.artifact.path),
            "format": self.artifact.format,
            "size_bytes": self.artifact.size_bytes,
            "sha256": self.artifact.sha256,
        }
        result["memory"] = asdict(self.memory)
        result["choices"] = [asdict(choice) for choice in self.choices]
        result["draft"] = self.draft.to_dict() if self.draft is not None else None
        result["prefill"] = None
        if (other := self.prefill) is not None:
            result["prefill"] = {"plan": other.plan.to_dict(), "least": other.least, "per_token": other.per_token}
        result["adapters"] = [asdict(adapter) | {"path": str(adapter.path)} for adapter in self.adapters]
        return result


@dataclass(frozen=True, slots=True)
class Safety:
    """Limits on loading an engine on this device, from a trial of its kernels in a child process.

    Attributes:
        use_extra_buffers: repacked and AMX layouts may be used.
        note: what was turned off, why, and what would make it faster; "" when nothing was.
    """

    use_extra_buffers: bool
    note: str
