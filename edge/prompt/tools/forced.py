"""The grammars of calls: of a reply that has to be one, and of one that a reply began by itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from edge.messages import Tool
from edge.prompt.tools.base import Format
from edge.prompt.tools.grammar import Held, Rules, json_schema

__all__ = ["grammar_of_call", "held_call"]


def grammar_of_call(format: Format, tools: Sequence[Tool], special_token: Callable[[str], int | None]) -> str | None:
    """Return a Lark grammar of one call of one of these tools; None if it is not known how to write one.

    Args:
        format: of the model.
        tools: that may be called.
        special_token: returns the id of a word that is a special token.
    """
    rules = Rules(format.markers, special_token, is_single=True)
    if format.around is not None:
        before, behind = format.around
        call = rules.add(f"%json {json.dumps(json_schema(tools, format.key), ensure_ascii=False)}")
        return rules.source(f"{rules.text(before)} {call} {rules.text(behind)}")
    if format.hold is None:
        return None
    opening = rules.text(format.opens[0])
    grammar = format.hold(rules, tools).grammar
    return grammar.replace("start: ", f"start: {opening} ", 1)


def held_call(format: Format, tools: Sequence[Tool], special_token: Callable[[str], int | None]) -> Held | None:
    """Return what a call is held to once a reply has begun one; None if it is left to the model.

    Args:
        format, tools, special_token: as for `grammar_of_call`.
    """
    return format.hold(Rules(format.markers, special_token), tools) if format.hold is not None else None
