"""The type of a value that a reply is to be: its schema, and how the text becomes the value.

Types are told apart by what they can do, so no package is needed for them but msgspec: pydantic's models and adapters have a
schema of their own; dataclasses, TypedDicts, NamedTuples, enums, attrs classes, msgspec's structs and plain types go through
msgspec.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge.constraint import Constraint
from edge.errors import InvalidReplyError, UsageError, kind_of
from edge.structured.walk import map_schemas

if TYPE_CHECKING:
    from edge.types import FinishReason

__all__ = ["Shape", "shape_of", "shape_of_constraint"]

_HINT = "Pass a JSON Schema as a dict, a dataclass, a TypedDict, a msgspec Struct or a pydantic model."
_DESCRIBING = frozenset(("title", "default", "uniqueItems", "contentEncoding", "writeOnly", "discriminator"))
_DECIMAL = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?$"
_BASE64 = r"^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"


@dataclass(frozen=True, slots=True)
class Shape:
    """See the module.

    Attributes:
        constraint: of the reply.
        decode: makes the value of the whole text; raises anything if it cannot.
        name: of the type, for errors.
    """

    constraint: Constraint
    decode: Callable[[str], Any]
    name: str

    def read(self, text: str, reason: FinishReason | None, *, is_partial: bool) -> Any:
        """Return the value of a reply.

        Args:
            text: the whole of it.
            reason: why it ended.
            is_partial: it ended before it was complete.

        Raises:
            InvalidReplyError: it was cut off, or the text is no such value.
        """
        if is_partial:
            why = "it reached its maximum length" if reason == "length" else f"it ended early ({reason})"
            hint = "Raise max_tokens, or ask for less." if reason == "length" else "Ask again."
            raise InvalidReplyError(f"The reply is not complete: {why} before its text was {self.name}.", hint, text=text)
        try:
            return self.decode(text)
        except Exception as error:
            reason_line = " ".join(str(error).split())[:300]
            raise InvalidReplyError(
                f"The reply is not {self.name}: {reason_line}.", "Ask again, or say in the prompt what is meant.", text=text
            ) from error


def shape_of(source: object) -> Shape:
    """Return the shape of a JSON Schema or a type.

    Args:
        source: a mapping, or True for any JSON; or a type, see the module.

    Raises:
        UsageError: it is neither.
        ConstraintError: the schema is wrong, or too large.
    """
    if isinstance(source, Mapping | bool):
        return shape_of_constraint(Constraint.json_schema(source))
    decode: Callable[[str], Any]
    if hasattr(source, "model_json_schema") and hasattr(source, "model_validate_json"):  # a model of pydantic
        schema, decode = source.model_json_schema(), source.model_validate_json
    elif hasattr(source, "json_schema") and hasattr(source, "validate_json"):  # a TypeAdapter
        schema, decode = source.json_schema(), source.validate_json
    else:
        schema, decode = _with_msgspec(source)
    return Shape(Constraint.json_schema(map_schemas(schema, _plain)), decode, getattr(source, "__name__", None) or str(source))


def shape_of_constraint(constraint: Constraint) -> Shape:
    """Return the shape of a constraint: JSON's own values, or the text itself."""
    return Shape(constraint, json.loads if constraint.is_json else str, f"what its {constraint.noun} asks for")


def _with_msgspec(source: Any) -> tuple[dict[str, Any], Callable[[str], Any]]:
    import msgspec

    if isinstance(source, str | bytes | int | float) or source is None:
        raise UsageError(f"A schema is a JSON Schema or a type, not {kind_of(source)}.", _HINT)
    try:
        schema = msgspec.json.schema(source)
        decoder = msgspec.json.Decoder(source)
    except Exception as error:  # TypeError, NameError of a forward reference and others: all mean the same
        reason = str(error).split("\n")[0]
        raise UsageError(f"No schema can be made of {kind_of(source)}: {reason}.", _HINT) from error
    return schema, decoder.decode


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema of a type in keywords that can be enforced, and without those that only describe.

    An object has the type's fields and no others. That the items of a set differ, and some formats, are left to the type's own
    check.
    """
    plain = {key: value for key, value in schema.items() if key not in _DESCRIBING}
    if "properties" in plain:
        plain.setdefault("additionalProperties", False)
    if plain.get("format") == "decimal":
        plain["pattern"] = _DECIMAL
    if schema.get("contentEncoding") == "base64":
        plain.setdefault("pattern", _BASE64)
    return plain
