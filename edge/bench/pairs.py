"""Pairs of engines that `edge tune` measures: one prefills long prompts, the other one decodes (edge/backends/paired.py)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from edge.plan.receipt import PrefillPlan
from edge.plan.speed import turn_seconds

if TYPE_CHECKING:
    from edge.bench.values import Sample, Setting
    from edge.plan.receipt import Plan

__all__ = ["LEAST", "paired_plan", "promising_pairs"]

LEAST = 64
"""Tokens of a chunk that another engine prefills while pairs are measured; half of the text that their loss is measured on."""


def promising_pairs(samples: Mapping[Setting, Sequence[Sample]], limit_s: float) -> list[tuple[Setting, Setting]]:
    """Return the pairs (engine that decodes, engine that prefills) that would be faster, by the speeds of each.

    Args:
        samples: a setting of each engine, with its measurements.
        limit_s: a turn of a chat has to take less than this, the loading of both included.
    """

    def median(setting: Setting, name: str) -> float:
        return float(statistics.median(getattr(sample, name) for sample in samples[setting]))

    def seconds(decoder: Setting, prefiller: Setting) -> float:
        load_s = median(decoder, "load_s") + median(prefiller, "load_s")
        return turn_seconds(median(prefiller, "prefill_tokens_per_s"), median(decoder, "decode_tokens_per_s"), load_s)

    pairs = [(decoder, prefiller) for decoder in samples for prefiller in samples if decoder.backend != prefiller.backend]
    return [pair for pair in pairs if seconds(*pair) < limit_s]


def paired_plan(decoder: Plan, prefiller: Plan, least: int) -> Plan:
    """Return the plan of two engines, with the memory of both.

    Args:
        decoder, prefiller: of one model.
        least: as in PrefillPlan.
    """
    own, more = decoder.memory, prefiller.memory.total_bytes
    memory = replace(own, total_bytes=own.total_bytes + more, prefill_bytes=more)
    return replace(decoder, memory=memory, prefill=PrefillPlan(prefiller, least))
