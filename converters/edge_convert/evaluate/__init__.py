"""What a converted model is worth: measured against its source on one text and one set of prompts, as a card."""

from __future__ import annotations

__all__ = ["Card", "EvaluateOptions", "enforce", "evaluate", "open_logits", "parse_gate"]

_HOMES = {
    "Card": "edge_convert.evaluate.card",
    "EvaluateOptions": "edge_convert.evaluate.evaluation",
    "enforce": "edge_convert.evaluate.gate",
    "evaluate": "edge_convert.evaluate.evaluation",
    "open_logits": "edge_convert.evaluate.logits",
    "parse_gate": "edge_convert.evaluate.gate",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
