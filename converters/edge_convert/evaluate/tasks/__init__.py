"""Usefulness: what a model does with questions and instructions, beside how near its logits are to its reference's.

suite.py          the prompts of all tasks: asked within a time, judged together
facts.py          short questions with known answers: how many it answers, and how many as its teacher does
question_sets.py  the questions: edge's own, a file of the user's, sets that a package brings
instructions.py   prompts that say how to answer; checks.py: what code can check of a reply; languages.py: which one it is in
repetition.py     how much long replies repeat themselves
answering.py      the replies of a model of any format: edge's own engine; answering_torch.py: transformers for checkpoints
store.py          replies on the disk, so that a run goes on
asks.py           a prompt, and how it is answered
intervals.py      shares and means with their confidence intervals
verdict.py        the sentence that says what a model is good for
report.py         the figures as texts
"""

from __future__ import annotations

from edge.lazy import lazy_names

__all__ = ["FactsResult", "measure_facts", "read_questions"]

__getattr__, __dir__ = lazy_names(
    __name__, {"edge_convert.evaluate.tasks.facts": ("FactsResult", "measure_facts", "read_questions")}
)
