"""Numbers as people read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge.plan import Plan
    from edge.reply import Reply
    from edge.types import Usage

__all__ = ["memory_lines", "reuse_text", "size", "stats_line"]


def size(n_bytes: float) -> str:
    """Bytes of files and disks, with a unit of 1,000 as they are sold: 98.4 MB. Memory goes by edge.plan.receipt.size_text."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(n_bytes) < 1000:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


def stats_line(reply: Reply) -> str:
    """What one reply took, on one line."""
    from edge.units import size_text

    usage, timing, cost = reply.usage, reply.timing, reply.cost
    parts = [
        f"first token after {timing.first_token_ms / 1000:.2f} s",
        f"{timing.tokens_per_s(usage.n_generated):.1f} tokens/s",
        f"{usage.n_generated:,} tokens written",
        f"{usage.n_prompt:,} tokens read ({reuse_text(usage)})",
        f"{timing.total_ms / 1000:.2f} s in all",
    ]
    if cost.memory_bytes:
        parts.append(f"{size_text(cost.memory_bytes)} of memory")
    if cost.energy_j is not None:
        parts.append(f"{cost.energy_j:.1f} J")
    if reply.held_back:
        parts.append(f"held back: {reply.held_back}")
    return ", ".join(parts)


def reuse_text(usage: Usage) -> str:
    """Where the tokens of a prompt came from."""
    if usage.is_answer_cached:
        return "answered before: from the answer cache"
    n_memory = usage.n_reused - usage.n_restored
    parts = [f"{n:,} from {where}" for n, where in ((n_memory, "memory"), (usage.n_restored, "disk")) if n]
    saved = f", {usage.saved_ms / 1000:.2f} s saved" if usage.saved_ms >= 10 else ""
    return " and ".join(parts) + saved if parts else "none reused"


def memory_lines(plan: Plan) -> list[tuple[str, str]]:
    """The memory estimate of a plan as rows of name and size."""
    from edge.units import size_text

    memory = plan.memory
    return [
        ("weights", size_text(memory.weights_bytes)),
        (f"KV cache ({plan.n_ctx:,} tokens, {plan.kv_type_k}/{plan.kv_type_v})", size_text(memory.kv_bytes)),
        ("working buffers", size_text(memory.compute_bytes)),
        ("total", size_text(memory.total_bytes)),
        ("available", size_text(memory.available_bytes)),
    ]
