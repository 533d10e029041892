"""The settings that `edge tune` tries beside the engine, as far as the engines have them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edge.bench.tuner import Knob
from edge.bench.values import Setting

if TYPE_CHECKING:
    from edge.device.profile import Cpu
    from edge.registry import EngineRow, Option

__all__ = ["setting_knobs", "thread_counts"]

_BATCHES = (128, 256, 512, 1024, 2048)

Each = Callable[..., Callable[[Setting], list[Setting]]]
"""Takes values and names of fields; returns what finds the settings that have one of the values in all these fields."""


def setting_knobs(
    rows: Sequence[EngineRow], cpu: Cpu, n_prompt: int, each: Each, kv_types: Callable[[Setting], list[Setting]]
) -> list[Knob]:
    """Return the knobs of some engines.

    Args:
        rows: the engines.
        cpu: of the device.
        n_prompt: tokens of the prompt that is measured; a larger batch cannot matter.
        each: see Each.
        kv_types: returns the settings with other types of KV cache.
    """
    counts = thread_counts(cpu)
    batches = [size for size in _BATCHES if size <= n_prompt]
    knobs: dict[Option, Knob] = {
        "threads": Knob("threads", "decode", each(counts, "threads"), _threads_text),
        "threads_batch": Knob("threads, prefill", "prefill", each(counts, "threads_batch"), lambda s: str(s.threads_batch)),
        "n_ubatch": Knob("batch", "prefill", each(batches, "n_ubatch"), lambda s: f"{s.n_ubatch} tokens"),
        "flash_attention": Knob("flash attention", "turn", each((True, False), "flash_attention"), _flash_text),
        "kv_type": Knob("KV cache", "chat", kv_types, lambda s: s.kv_type_k),
    }
    options = {option for row in rows for option in row.options}
    if "threads_batch" not in options:  # one number of threads for prefill and decode
        knobs["threads"] = Knob("threads", "turn", each(counts, "threads", "threads_batch"), _threads_text)
    return [knob for option, knob in knobs.items() if option in options]


def thread_counts(cpu: Cpu) -> list[int]:
    """Return numbers of threads worth trying: half the fast cores, one less, all, with slow ones, all hardware threads."""
    fast, slow = cpu.usable_performance, cpu.usable_efficiency
    counts = {max(1, fast // 2), max(1, fast - 1), fast, fast + slow, cpu.usable_logical}
    return sorted(count for count in counts if 1 <= count <= cpu.usable_logical)


def _threads_text(setting: Setting) -> str:
    return str(setting.threads)


def _flash_text(setting: Setting) -> str:
    return "on" if setting.flash_attention else "off"
