"""Bodies of requests: read within bounds, decoded into structs, and checked for fields that nobody reads."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Collection
from typing import TypeVar

import msgspec
from starlette.types import Receive, Scope

from edge.units import type_words
from edge_serve import limits
from edge_serve.errors import ApiError, ClientGoneError

__all__ = ["decode", "header", "read_body", "type_fault"]

T = TypeVar("T", bound=msgspec.Struct)

_PLACE = re.compile(r" - at `\$\.?([^`]*)`")
_MISSING = re.compile(r"missing required field `([^`]*)`")
_PLAIN = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MOST_IGNORED = 20


def header(scope: Scope, name: bytes) -> str:
    """Return a header of a request, of several the first; "" if it is not there."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


async def read_body(scope: Scope, receive: Receive, *, of_any_type: bool = False) -> bytes:
    """Read the body of a request.

    Args:
        scope, receive: of ASGI.
        of_any_type: also read a body that is not said to be JSON.

    Raises:
        ApiError: it is too long, too slow, or not said to be JSON.
        ClientGoneError: the client closed its connection meanwhile.
    """
    kind = header(scope, b"content-type").partition(";")[0].strip().lower()
    if not of_any_type and kind != "application/json" and not kind.endswith("+json"):
        raise ApiError(
            415, f"The body is {kind or 'of no stated type'}; this server reads JSON. Send Content-Type: application/json."
        )
    length = header(scope, b"content-length")
    if length.isdecimal() and int(length) > limits.BODY_BYTES:
        raise _too_long()
    parts: list[bytes] = []
    n_bytes, until = 0, time.monotonic() + limits.BODY_S
    while True:
        try:
            message = await asyncio.wait_for(receive(), min(limits.BODY_IDLE_S, until - time.monotonic()))
        except asyncio.TimeoutError:
            raise ApiError(408, "The body of the request did not arrive in time. Send it at once.") from None
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        part = message.get("body", b"")
        n_bytes += len(part)
        if n_bytes > limits.BODY_BYTES:
            raise _too_long()
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def decode(data: bytes, kind: type[T], refused: Collection[str] = ()) -> tuple[T, list[str]]:
    """Decode a body.

    Args:
        data: the body.
        kind: a struct with all fields that are read.
        refused: fields that are refused by name when they have a value, since without them the answer would be another.

    Returns:
        (the body, names of its fields that nobody reads).

    Raises:
        ApiError: it is not JSON, has a value of a wrong type, or a refused field.
    """
    try:
        fields = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        body = msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        place, missing = _PLACE.search(str(error)), _MISSING.search(str(error))
        param = ".".join(found[1] for found in (place, missing) if found) or None
        code = "missing_required_parameter" if missing else "invalid_type"
        raise ApiError(400, f"The body is wrong: {type_fault(error)}.", code=code, param=param) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(400, f"The body is not valid JSON: {error}.", code="invalid_json") from None
    except RecursionError:
        raise ApiError(400, "The body is nested too deeply.", code="invalid_json") from None
    for name in refused:
        if name in fields and bytes(fields[name]) not in (b"null", b"[]", b"{}", b"false", b'""'):
            raise ApiError(
                400, f"{name} is not supported by this server. Leave it out.", code="unsupported_parameter", param=name
            )
    known = {field.encode_name for field in msgspec.structs.fields(kind)} | set(refused)
    ignored = [name for name, value in fields.items() if name not in known and bytes(value) != b"null"]
    return body, [name for name in ignored if _PLAIN.fullmatch(name)][:_MOST_IGNORED]


def type_fault(error: msgspec.ValidationError) -> str:
    """Return what is wrong with a value, in plain words and those of JSON: "lora is text, and should be a list or null"."""
    return type_words(str(error)).replace("a table", "an object")


def _too_long() -> ApiError:
    return ApiError(413, f"The body is longer than the {limits.BODY_BYTES:,} bytes that this server reads. Send less.")
