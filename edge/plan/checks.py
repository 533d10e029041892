"""Requests that cannot be met, whatever memory there is: impossible values, and settings that a model or its engine fixes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.errors import UsageError
from edge.plan.memory import KV_BLOCKS
from edge.registry import ENGINES

if TYPE_CHECKING:
    from edge.device.profile import Cpu
    from edge.formats.artifact import Artifact
    from edge.plan.receipt import PlanRequest
    from edge.registry import EngineRow

__all__ = ["check_model", "check_request", "engines_with"]

_MAX_SEQUENCES = 255
_MAX_UBATCH = 16384


def check_request(request: PlanRequest, cpu: Cpu) -> None:
    """Refuse values that are impossible on any device, or on this one's CPU.

    Raises:
        UsageError: there is one, or two exclude each other.
    """
    if request.context is not None and request.context < 1:
        raise UsageError(f"A context of {request.context} tokens is not possible.", "Ask for 512 or more.")
    if request.n_seq is not None and not 1 <= request.n_seq <= _MAX_SEQUENCES:
        raise UsageError(f"{request.n_seq} sequences are not possible.", f"Use 1 to {_MAX_SEQUENCES}.")
    if request.gpu_layers is not None and request.gpu_layers < -1:
        raise UsageError(f"{request.gpu_layers} layers are not possible.", "Use -1 for all of them, 0 for none.")
    for n_threads in (request.threads, request.threads_batch):
        if n_threads is not None and not 1 <= n_threads <= cpu.usable_logical:
            why = f" ({'; '.join(cpu.limits)})" if cpu.limits else ""
            raise UsageError(
                f"{n_threads} threads are asked for, and this process has {cpu.usable_logical} CPUs{why}. "
                "Threads beyond that only wait for each other.",
                f"Use --threads {cpu.usable_logical} or fewer, or leave it out.",
            )
    if request.n_ubatch is not None and not 1 <= request.n_ubatch <= _MAX_UBATCH:
        raise UsageError(f"A batch of {request.n_ubatch} tokens is not possible.", f"Use 1 to {_MAX_UBATCH}; 512 is usual.")
    if request.flash_attention is False and request.kv_type_v not in (None, "f16"):
        raise UsageError(
            f"Values stored as {request.kv_type_v} need flash attention, which was to be off.",
            "Use --kv-type f16, or leave flash attention on.",
        )


def check_model(request: PlanRequest, artifact: Artifact, row: EngineRow, cpu: Cpu) -> None:
    """Refuse settings that this model, or the engine that reads it, does not let one choose.

    Raises:
        UsageError: there is one.
    """
    _check_kv_type(request, artifact, row, cpu)
    facts = artifact.facts
    if facts.n_ctx_max is not None and (request.context or 0) > facts.n_ctx_max:
        raise UsageError(
            f"A context of {request.context:,} tokens is asked for, and {artifact.name} was built for {facts.n_ctx_max:,}.",
            f"Ask for {facts.n_ctx_max:,} or fewer, or convert it with --context {request.context}.",
        )
    if "gpu_layers" not in row.options and request.gpu_layers is not None and request.gpu_layers > 0:
        raise UsageError(
            f"{request.gpu_layers} layers on an accelerator are asked for; {row.title} runs a model on one device.",
            "Use --gpu-layers -1 or 0, or the model as GGUF.",
        )
    if "flash_attention" not in row.options and request.flash_attention is False:
        raise UsageError(f"{row.title} computes attention as the model says, so it cannot be turned off.", "Leave it on.")
    if "threads_batch" not in row.options and request.threads_batch not in (None, request.threads):
        raise UsageError(f"{row.title} has one number of threads for prefill and decode.", "Leave out that for prefill.")
    if facts.chunk is not None and request.n_ubatch not in (None, facts.chunk):
        raise UsageError(
            f"{artifact.name} was built for batches of {facts.chunk} tokens, and {request.n_ubatch} are asked for.",
            "Leave out the batch.",
        )


def engines_with(kv_type: str, artifact: Artifact, cpu: Cpu) -> list[str]:
    """Return the engines that can store keys and values of a model in a type on this CPU, by name."""
    if artifact.facts.kv_type is not None:
        return []
    return [
        name
        for name, row in ENGINES.items()
        if row.is_automatic and artifact.format in row.formats and kv_type in row.kv_types and not _missing(row, kv_type, cpu)
    ]


def _missing(row: EngineRow, kv_type: str, cpu: Cpu) -> str:
    """Return the instruction set that an engine needs for a type of keys and values and the CPU lacks; "" for none."""
    needed = row.kv_needs.get(kv_type, "")
    return "" if needed in cpu.features else needed


def _check_kv_type(request: PlanRequest, artifact: Artifact, row: EngineRow, cpu: Cpu) -> None:
    facts = artifact.facts
    for name, width in ((request.kv_type_k, facts.head_dim_k), (request.kv_type_v, facts.head_dim_v)):
        if name in (None, facts.kv_type):
            continue
        if facts.kv_type is not None:
            raise UsageError(
                f"{artifact.name} stores its KV cache as {facts.kv_type}, and {name} is asked for.",
                "Leave out --kv-type, or use the model as GGUF.",
            )
        if name not in KV_BLOCKS:
            raise UsageError(f"There is no KV type {name!r}.", f"Use one of: {', '.join(KV_BLOCKS)}.")
        if row.kv_types and name not in row.kv_types:
            others = "".join(f" For {name}: --backend {other}." for other in engines_with(name, artifact, cpu))
            raise UsageError(
                f"{row.title} cannot store a KV cache as {name}.", f"Use one of: {', '.join(row.kv_types)}.{others}"
            )
        if missing := _missing(row, name, cpu):
            raise UsageError(
                f"{row.title} stores a KV cache as {name} only on CPUs with {missing}: without it that is slow.",
                "Use --kv-type f16.",
            )
        if width % KV_BLOCKS[name][0]:
            raise UsageError(
                f"{artifact.name} cannot store its KV cache as {name}: its heads are {width} numbers wide, and {name} "
                f"packs {KV_BLOCKS[name][0]} at a time.",
                "Use --kv-type f16.",
            )
    usual = facts.kv_type or "f16"
    keys, values = request.kv_type_k or usual, request.kv_type_v or usual
    if not row.kv_mixed and keys != values:
        raise UsageError(
            f"{row.title} stores keys and values in one type, and this asks for {keys} and {values}.",
            f"Use --kv-type {keys if keys != usual else values}, or give kv_type_k and kv_type_v the same value.",
        )
