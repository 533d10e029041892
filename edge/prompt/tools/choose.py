"""Chooses the family of a template by words in the template's own text."""

from __future__ import annotations

from edge.prompt.tools.base import Format
from edge.prompt.tools.gemma import FUNCTION_GEMMA, GEMMA4
from edge.prompt.tools.granite3 import GRANITE3
from edge.prompt.tools.hermes import HERMES, QWEN_XML
from edge.prompt.tools.lfm2 import LFM2
from edge.prompt.tools.llama3 import LLAMA3
from edge.prompt.tools.mistral import MISTRAL
from edge.prompt.tools.phi4 import PHI4

__all__ = ["FALLBACK", "FORMATS", "choose_format"]

_WORDS: tuple[tuple[str, Format | None], ...] = (
    ("<arg_key>", None),  # GLM
    ('<|"|>', GEMMA4),
    ("<start_function_call>", FUNCTION_GEMMA),
    ("<start_function_declaration>", FUNCTION_GEMMA),
    ("<function=", QWEN_XML),
    ("<|tool_call_start|>", LFM2),
    ("<|tool_list_start|>", LFM2),
    ("List of tools: [", LFM2),
    ("[TOOL_CALLS]", MISTRAL),
    ("[AVAILABLE_TOOLS]", MISTRAL),
    ("<|start_of_role|>tools", GRANITE3),
    ("<|start_of_role|>available_tools", GRANITE3),
    ("<|tool|>", PHI4),
    ("<tool_call>", HERMES),
    ("<|python_tag|>", LLAMA3),
    ("Environment: ipython", LLAMA3),
    ('{"name": function name, "parameters":', LLAMA3),
)
"""The first that a template contains decides."""

FORMATS = (HERMES, QWEN_XML, LLAMA3, MISTRAL, LFM2, FUNCTION_GEMMA, GEMMA4, PHI4, GRANITE3)

FALLBACK = HERMES
"""For models without a format of their own, where a caller wants one all the same."""


def choose_format(source: str) -> Format | None:
    """Return how a model with this template writes tool calls; None if its template does not tell."""
    return next((format for word, format in _WORDS if word in source), None)
