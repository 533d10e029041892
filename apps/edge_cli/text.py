"""Figures of a reply and a plan as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.units import duration_text, size_text

if TYPE_CHECKING:
    from edge.plan import Plan
    from edge.reply import Reply
    from edge.types import Usage

__all__ = ["memory_lines", "reuse_text", "stats_line"]


def stats_line(reply: Reply) -> str:
    """Return the speed, tokens and cost of a reply on one line."""
    usage, timing, cost = reply.usage, reply.timing, reply.cost
    parts = [
        f"first token after {duration_text(timing.first_token_ms / 1000)}",
        f"{timing.tokens_per_s(usage.n_generated):.1f} tokens/s",
        f"{usage.n_generated:,} tokens generated",
        f"{usage.n_prompt:,} prompt tokens ({reuse_text(usage)})",
        f"{duration_text(timing.total_ms / 1000)} in all",
    ]
    if cost.memory_bytes:
        parts.append(f"{size_text(cost.memory_bytes)} of memory")
    if cost.energy_j is not None:
        parts.append(f"{cost.energy_j:.1f} J")
    if reply.held_back:
        parts.append(f"throttled: {reply.held_back}")
    return ", ".join(parts)


def reuse_text(usage: Usage) -> str:
    """Return where the tokens of a prompt came from."""
    if usage.is_answer_cached:
        return "from the answer cache"
    n_memory = usage.n_reused - usage.n_restored
    parts = [f"{n:,} from {where}" for n, where in ((n_memory, "memory"), (usage.n_restored, "disk")) if n]
    saved = f", {duration_text(usage.saved_ms / 1000)} saved" if usage.saved_ms >= 10 else ""
    return " and ".join(parts) + saved if parts else "none reused"


def memory_lines(plan: Plan) -> list[tuple[str, str]]:
    """Return the memory estimate of a plan as rows of name and size."""
    memory = plan.memory
    return [
        ("weights", size_text(memory.weights_bytes)),
        (f"KV cache ({plan.n_ctx:,} tokens, {plan.kv_type_k}/{plan.kv_type_v})", size_text(memory.kv_bytes)),
        ("working buffers", size_text(memory.compute_bytes)),
        ("total", size_text(memory.total_bytes)),
        ("available", size_text(memory.available_bytes)),
    ]
