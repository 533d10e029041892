"""From a ladder to settings: what of the best rung the user's settings can say."""

from __future__ import annotations

import os

from edge.bench.ladder_values import Ladder, Rung

__all__ = ["chosen_rung", "settings_of"]

_WITH_LOSS = ("kv-type", "layers")
"""Steps that change what the model says; its own weights, packed as they came, are not among them, in floats or not."""


def chosen_rung(ladder: Ladder, *, with_loss: bool) -> Rung | None:
    """Return the highest rung that was taken; without the steps that lose quality of the model as it came, unless asked.

    Args:
        ladder: from `run_ladder`.
        with_loss: with 8-bit keys and values and fewer layers, too.
    """
    taken = (rung for rung in reversed(ladder.rungs) if rung.is_taken)
    return next((rung for rung in taken if with_loss or rung.name not in _WITH_LOSS), None)


def settings_of(ladder: Ladder, *, with_loss: bool) -> dict[str, object]:
    """Return the settings of the chosen rung: dotted key -> value. Empty if nothing was measured.

    None is a setting that the rung does without, so that one of an earlier ladder must not stay.

    Batch and attention are not settings; the plan chooses them, or `edge tune`. So are threads, unless one was better than all.

    Args:
        ladder, with_loss: as in `chosen_rung`.
    """
    rung = chosen_rung(ladder, with_loss=with_loss)
    if rung is None or rung.setup is None:
        return {}
    setup, found = rung.setup, dict[str, object]()
    if rung.name == "layers":
        found["model"] = os.fsdecode(setup.path)
    found |= {
        "backend": setup.backend,
        "kv.enabled": setup.disk,
        "chat.read_ahead": setup.read_ahead,
        "engine.speculate": setup.speculates or setup.draft is not None,
        "kv_type_k": setup.kv_type,
        "kv_type_v": setup.kv_type,
        "engine.prefill_with": setup.prefill_with,
        "engine.draft": os.fsdecode(setup.draft) if setup.draft is not None else None,
    }
    is_own = setup.accelerator == "cpu" and not any(one.name == "threads" and one.is_taken for one in ladder.rungs)
    return found | {"threads": setup.threads if is_own else None}
