"""What an answer rests on: passages of documents, chosen for a question and put in an order that the KV cache knows.

choose.py     the passages for a question, or none where nothing is about it
relevance.py  tells whether a passage is about a question
path.py       the passages of a conversation so far
sources.py    the collections that a loaded model answers from
order.py      orders of earlier prompts, so that the next one begins alike; warming.py, beginnings prefilled ahead
answers.py    earlier answers, given again to a question that means the same
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.lazy import lazy_names

if TYPE_CHECKING:
    from edge.grounding.choose import Chosen, Docs, Grounding, Source
    from edge.grounding.order import Orders

__all__ = ["Chosen", "Docs", "Grounding", "Orders", "Source"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {"edge.grounding.choose": ("Chosen", "Docs", "Grounding", "Source"), "edge.grounding.order": ("Orders",)},
)
