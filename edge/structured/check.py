"""What is said at the end of a reply under a constraint: that it is not complete, or breaks what was not enforced."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from edge.errors import EdgeError

if TYPE_CHECKING:
    from edge.constraint import Constraint
    from edge.types import FinishReason

__all__ = ["breach_of", "notice_of_end"]

_WHY = {
    "length": "it reached its maximum length, or the context window is full",
    "repetition": "it only repeated itself",
    "cancelled": "it was stopped",
}


def notice_of_end(
    constraint: Constraint,
    text: str,
    reason: FinishReason,
    *,
    is_partial: bool,
    stopped_by: str | None = None,
    ignored: Sequence[str] = (),
) -> str:
    """Return what the user should know about the end of a reply; "" if nothing.

    Args:
        constraint: of the reply.
        text: the whole of it.
        reason: why it ended.
        is_partial: it ended before it was complete.
        stopped_by: the stop text that ended it.
        ignored: keywords of the schema that were not enforced.
    """
    if is_partial:
        why = f"the stop text {stopped_by!r} came first" if stopped_by is not None else _WHY.get(reason, "the model ended it")
        what = "JSON of this reply is" if constraint.is_json else "text of this reply is"
        return f"The {what} not complete, because {why}."
    if not ignored or not constraint.is_json:
        return ""
    try:
        breach = breach_of(constraint, text)
    except ImportError:
        return f"Whether this reply keeps {', '.join(ignored)} was not checked: pip install 'edge-assistant[structured]'"
    return f"This reply breaks its schema where that was not enforced: {breach}." if breach else ""


def breach_of(constraint: Constraint, text: str) -> str:
    """Return how a text breaks its schema; "" if it does not.

    Raises:
        ImportError: jsonschema-rs is not installed.
    """
    import jsonschema_rs

    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"it is not JSON ({error})"
    try:
        # The engine of regular expressions that takes linear time, and nothing of the network: the schema is another's.
        validator = jsonschema_rs.validator_for(
            json.loads(constraint.source), retriever=_refuse, pattern_options=jsonschema_rs.RegexOptions()
        )
        breach = next(validator.iter_errors(value), None)
    except (ValueError, jsonschema_rs.ReferencingError) as error:
        return f"the schema itself is wrong ({str(error).splitlines()[0][:200]})"
    if breach is None:
        return ""
    place = "/".join(map(str, ["#", *breach.instance_path]))
    return f"{breach.message[:200]} (at {place})"


def _refuse(uri: str) -> NoReturn:
    raise EdgeError(f"edge does not fetch {uri}.")
