"""The sampling parameters for the editor and `/set`: names, explanations, parsing and formatting of values."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edge.errors import UsageError
from edge.types import Sampling

__all__ = ["PARAMETERS", "Parameter", "describe", "with_value"]

Kind = Literal["number", "integer", "optional", "texts", "bias"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One field of Sampling: its name, the kind of its value, and a one-line explanation."""

    name: str
    kind: Kind
    help: str


PARAMETERS: Mapping[str, Parameter] = {
    parameter.name: parameter
    for parameter in (
        Parameter("temperature", "number", "0 always takes the likeliest token; higher values vary more"),
        Parameter("top_k", "integer", "keep the k likeliest tokens; 0 keeps all"),
        Parameter("top_p", "number", "keep the likeliest tokens that add up to p; 1 keeps all"),
        Parameter("min_p", "number", "drop tokens less likely than this share of the likeliest; 0 is off"),
        Parameter("typical_p", "number", "locally typical sampling; 1 is off"),
        Parameter("max_tokens", "optional", "longest reply in tokens; none is no limit"),
        Parameter("max_repeats", "integer", "repeats in a row after which a reply is stopped; 0 is never"),
        Parameter("seed", "optional", "the same seed gives the same answer; none is random"),
        Parameter("repeat_penalty", "number", "makes recent tokens less likely; 1 is off"),
        Parameter("repeat_last_n", "integer", "how many tokens the penalties look back; -1 is all"),
        Parameter("frequency_penalty", "number", "subtracted for every earlier occurrence; 0 is off"),
        Parameter("presence_penalty", "number", "subtracted once when a token occurred; 0 is off"),
        Parameter("dry_multiplier", "number", "penalty for repeated sequences; 0 is off"),
        Parameter("dry_base", "number", "how fast it grows with the length of the repeat"),
        Parameter("dry_allowed_length", "integer", "repeats up to this many tokens have no penalty"),
        Parameter("dry_penalty_last_n", "integer", "how many tokens DRY looks back; -1 is all"),
        Parameter("dry_sequence_breakers", "texts", "texts that end a repeat, as a JSON list"),
        Parameter("xtc_probability", "number", "chance to exclude the likeliest tokens; 0 is off"),
        Parameter("xtc_threshold", "number", "how likely a token must be to be excluded"),
        Parameter("stop", "texts", "texts that end the reply, as a JSON list"),
        Parameter("logit_bias", "bias", 'token id to bias, as JSON: {"42": -1.5}'),
    )
}


def find(name: str) -> Parameter:
    """Return the parameter of that name; blanks and hyphens count as underscores.

    Raises:
        UsageError: there is none; the hint names the closest.
    """
    key = name.strip().lower().replace("-", "_").replace(" ", "_")
    if key in PARAMETERS:
        return PARAMETERS[key]
    near = difflib.get_close_matches(key, PARAMETERS, n=1)
    hint = f"Did you mean {near[0]}?" if near else "/set shows all parameters."
    raise UsageError(f"There is no parameter {name!r}.", hint)


def with_value(sampling: Sampling, name: str, text: str) -> Sampling:
    """Return the sampling with one parameter set to a value as typed.

    Raises:
        UsageError: no such parameter, not a value of its kind, or out of range.
    """
    parameter = find(name)
    changes: dict[str, Any] = {parameter.name: _parse(parameter, text.strip())}
    return dataclasses.replace(sampling, **changes)


def describe(sampling: Sampling, name: str) -> str:
    """Return a parameter's value as text that `with_value` accepts."""
    value = getattr(sampling, name)
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return json.dumps({str(key): bias for key, bias in value.items()}) if value else ""
    if isinstance(value, tuple):
        return json.dumps(list(value), ensure_ascii=False) if value else ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _parse(parameter: Parameter, text: str) -> object:
    if parameter.kind == "optional":
        return None if text.lower() in ("", "none", "auto", "off") else _number(parameter, text)
    if parameter.kind in ("integer", "number"):
        return _number(parameter, text)
    return _texts(parameter, text) if parameter.kind == "texts" else _bias(parameter, text)


def _number(parameter: Parameter, text: str) -> float:
    is_float = parameter.kind == "number"
    try:
        return float(text) if is_float else int(text.replace(",", "").replace("_", ""))
    except ValueError:
        noun, example = ("number", 0.7) if is_float else ("whole number", 40)
        raise UsageError(f"{parameter.name} is {text!r}, which is not a {noun}.", f"Write it like {example}.") from None


def _texts(parameter: Parameter, text: str) -> tuple[str, ...]:
    if not text.startswith("["):
        return (text,) if text else ()
    try:
        values = json.loads(text)
    except ValueError:
        raise UsageError(f"{parameter.name} is not a JSON list.", 'Write it like ["one", "two"].') from None
    if not all(isinstance(value, str) for value in values):
        raise UsageError(f"{parameter.name} must be texts.", 'Write it like ["one", "two"].')
    return tuple(values)


def _bias(parameter: Parameter, text: str) -> dict[int, float]:
    try:
        values = json.loads(text or "{}")
        return {int(token): float(bias) for token, bias in values.items()}
    except (ValueError, TypeError, AttributeError):
        raise UsageError(f"{parameter.name} is not a JSON object.", 'Write it like {"42": -1.5}.') from None
