"""What a converted model is worth: measured against its source on one text and one set of prompts, as a card."""

from __future__ import annotations

from edge.lazy import lazy_names

__all__ = ["Card", "EvaluateOptions", "enforce", "evaluate", "open_logits", "parse_gate"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Card": "edge_convert.evaluate.card",
        "EvaluateOptions": "edge_convert.evaluate.evaluation",
        "enforce": "edge_convert.evaluate.gate",
        "evaluate": "edge_convert.evaluate.evaluation",
        "open_logits": "edge_convert.evaluate.logits",
        "parse_gate": "edge_convert.evaluate.gate",
    },
)
