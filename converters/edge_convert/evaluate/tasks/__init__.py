"""Usefulness: what a model does with questions and instructions, beside how near its logits are to its reference's.

facts.py       short questions with known answers: how many it answers, and how many as its teacher does
answering.py   the replies of a model of any format: edge's own engine; answering_torch.py: transformers for checkpoints
asks.py        a prompt, a reply, and how replies are made
intervals.py   shares and means with their confidence intervals
"""

from __future__ import annotations

from edge.lazy import lazy_names

__all__ = ["FactsResult", "measure_facts", "read_questions"]

__getattr__, __dir__ = lazy_names(
    __name__, {"edge_convert.evaluate.tasks.facts": ("FactsResult", "measure_facts", "read_questions")}
)
