"""The part of the protobuf wire format that reading and editing ONNX and Core ML models takes.

The bytes are not trusted: every length is checked against the data, and nothing is copied while reading.

Source: protobuf.dev, "Encoding".
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["Message", "ProtobufError", "bytes_field", "fields", "number_field", "varints"]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10
_MASK = (1 << 64) - 1
_EMPTY = memoryview(b"")


class ProtobufError(ValueError):
    """These bytes are not a protobuf message."""


def fields(data: memoryview) -> Iterator[tuple[int, int | memoryview, int, int]]:
    """Yield the fields of a message, one level deep.

    Args:
        data: the message.

    Yields:
        (number, value, start, end): a number for varints and fixed widths (unsigned), the bytes of everything else; the field,
        tag included, is at [start, end).

    Raises:
        ProtobufError: the message is damaged or truncated.
    """
    position, size = 0, len(data)
    while position < size:
        start = position
        tag, position = _read_varint(data, position)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise ProtobufError("a field has the number 0")
        value: int | memoryview
        if kind == _VARINT:
            value, position = _read_varint(data, position)
        elif kind in (_FIXED64, _FIXED32):
            width = 8 if kind == _FIXED64 else 4
            value = int.from_bytes(_take(data, position, width), "little")
            position += width
        elif kind == _BYTES:
            length, position = _read_varint(data, position)
            value = _take(data, position, length)
            position += length
        else:
            raise ProtobufError(f"a field has the unknown kind {kind}")
        yield number, value, start, position


class Message:
    """The fields of a message by their numbers, one level deep. Of a field that must be single, the last one counts.

    Args:
        data: the message.

    Raises:
        ProtobufError: the message, or a field that is asked for, is damaged.
    """

    def __init__(self, data: memoryview = _EMPTY) -> None:
        self._fields: dict[int, list[int | memoryview]] = {}
        for number, value, _, _ in fields(data):
            self._fields.setdefault(number, []).append(value)

    def number(self, field: int) -> int | None:
        """Return an integer, None where it is missing."""
        return next((value for value in reversed(self._fields.get(field, ())) if isinstance(value, int)), None)

    def numbers(self, field: int) -> list[int]:
        """Return all integers of a repeated field, packed or not."""
        return [number for value in self._fields.get(field, ()) for number in varints(value)]

    def all(self, *numbers: int) -> list[memoryview]:
        """Return all messages, texts or bytes of some fields."""
        found = [value for number in numbers for value in self._fields.get(number, ())]
        if any(isinstance(value, int) for value in found):
            raise ProtobufError("a message is expected, and there is a number")
        return found  # type: ignore[return-value]

    def texts(self, field: int) -> list[str]:
        """Return all texts of a repeated field."""
        try:
            return [bytes(value).decode("utf-8") for value in self.all(field)]
        except UnicodeDecodeError as error:
            raise ProtobufError(f"a name is not text: {error}") from error

    def text(self, field: int) -> str:
        """Return a text, "" where it is missing."""
        return (self.texts(field) or [""])[-1]

    def inner(self, field: int) -> Message:
        """Return the message in a field, an empty one where it is missing."""
        return Message((self.all(field) or [_EMPTY])[-1])


def varints(value: int | memoryview) -> list[int]:
    """Return the numbers of a repeated integer field: one, or several packed together. Signed, 64 bits.

    Raises:
        ProtobufError: the numbers are damaged.
    """
    if isinstance(value, int):
        return [_signed(value)]
    found, position = [], 0
    while position < len(value):
        number, position = _read_varint(value, position)
        found.append(_signed(number))
    return found


def number_field(number: int, value: int) -> bytes:
    """Encode a field with an integer; negative ones as two's complement of 64 bits."""
    return _varint(number << 3 | _VARINT) + _varint(value & _MASK)


def bytes_field(number: int, value: bytes) -> bytes:
    """Encode a field with bytes, text or a message."""
    return _varint(number << 3 | _BYTES) + _varint(len(value)) + value


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _take(data: memoryview, position: int, length: int) -> memoryview:
    if length > len(data) - position:
        raise ProtobufError("a field is cut off")
    return data[position : position + length]


def _read_varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift, byte in enumerate(data[position : position + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value & _MASK, position + shift + 1
    raise ProtobufError("a number is cut off or too long")


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
