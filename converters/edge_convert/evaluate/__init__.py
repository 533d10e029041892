"""Quality cards: models measured against a reference on one text and one set of prompts.

steps.py       the card as the last step of a conversion, and its gate
evaluation.py  from models to a card
jobs.py        runs jobs in processes of their own (child.py) or as Ray tasks
measure.py     a job: a model, and what is measured of it
passages.py    the texts as tokens: windows of prose, chat prompts with the reference's answers
logits.py      a model of any format: tokens in, logits out; logits_{torch,gguf,onnx,coreml}.py
metrics.py     KL divergence, perplexity, top-1 agreement
card.py        the card as values, Markdown and JSON; page.py: as HTML
gate.py        limits that a model must meet
tasks/         usefulness: questions answered, instructions followed, repetition
"""

from __future__ import annotations

from edge.lazy import lazy_names

__all__ = ["Card", "EvaluateOptions", "enforce", "evaluate", "open_logits", "parse_gate"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "edge_convert.evaluate.card": ("Card",),
        "edge_convert.evaluate.evaluation": ("EvaluateOptions", "evaluate"),
        "edge_convert.evaluate.gate": ("enforce", "parse_gate"),
        "edge_convert.evaluate.logits": ("open_logits",),
    },
)
