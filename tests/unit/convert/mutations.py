"""Damage to model files, seeded: values of JSON files, keys of GGUF files, headers of safetensors, and bytes of each."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 7, 2**31 - 1, 2**31, 2**63, 10**9, 10**30, 1e308, -1.5, 0.0, float("nan"), float("inf")),
    *("", "a", "7", "\ud800", "\0", "ü", "x" * 5000),
    *([], [1], ["a"], [None], [[]], {}, {"a": 1}, {"type": "X"}, [0] * 1000),
)
_NUMBERS: tuple[Any, ...] = (0, 1, -1, 5, 7, 10**6, 2**31 - 1, 10**9, 0.0, -1.0, float("nan"), float("inf"), True, "x", "")
_ENTRIES: dict[type, tuple[Any, ...]] = {
    str: ("", "a b c", "x" * 100_000),
    int: (0, 7, -1),
    float: (float("nan"), -1e30),
    bool: (False,),
}
_WHOLE = (b"", b"null", b"[]", b'{"a":' * 100_000 + b"1" + b"}" * 100_000)
_MOST_CHILDREN = 40
_DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "I64", "U8", "BOOL", "X", "", 4, None)


def damage_json(data: bytes, rng: random.Random) -> bytes:
    """Return a JSON file with other bytes, or with one or two other values."""
    if rng.random() < 0.15:
        start = rng.randrange(len(data))
        inserted = (b"\xef\xbb\xbf", b"\xff", b"\0", b'"', b"}", b"9" * 5000)
        ways = (*_WHOLE, data[:start], data[:start] + rng.choice(inserted) + data[start:], inserted[0] + data)
        return rng.choice(ways)
    content = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 2))):
        *way, last = rng.choice([place for place in _places(content) if place])
        parent = content
        for key in way:
            parent = parent[key]
        if rng.random() < 0.2:
            del parent[last]
        elif isinstance(parent, list) and rng.random() < 0.3:
            parent.append(copy.deepcopy(parent[last]))
        else:
            parent[last] = copy.deepcopy(rng.choice(_VALUES))
    return json.dumps(content).encode()


def damage_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Return a safetensors file with another length, other bytes, or one other value in its header."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    way = rng.random()
    if way < 0.15:
        return data[: rng.randrange(len(data))]
    if way < 0.25:
        return struct.pack("<Q", rng.choice((0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1))) + data[8:]
    if way < 0.35:
        start = rng.randrange(8, 8 + length)
        return data[:start] + bytes([data[start] ^ 1 << rng.randrange(8)]) + data[start + 1 :]
    if way < 0.45:  # a weight that is no number
        start = rng.randrange(0, len(body) - 4, 4)
        body = body[:start] + rng.choice((b"\xff\xff\xff\x7f", b"\x00\x00\x80\xff", b"\xff" * 4)) + body[start + 4 :]
    else:
        _damage_entry(header, rng)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def _damage_entry(header: dict[str, Any], rng: random.Random) -> None:
    """Change, rename, copy or drop one tensor in a header of safetensors."""
    name = rng.choice([name for name in header if name != "__metadata__"])
    other = rng.choice([name for name in header if name != "__metadata__"])
    entry = header[name]
    start, end = entry["data_offsets"]
    offsets = ([start, end - 4], [end, start], [0, 2**63], [start + 4, end + 4], [-4, end])
    shapes = ([], [0], [1], [-1], entry["shape"][::-1], [*entry["shape"], 1], [2**40, 2**40])
    ways: tuple[Any, ...] = (
        lambda: header.pop(name),
        lambda: header.update({rng.choice(("x", "", "a\nb", "\u202e", "x" * 5000, f"{name}.extra")): header.pop(name)}),
        lambda: header.update({name: copy.deepcopy(header[other])}),
        lambda: entry.update(dtype=rng.choice(_DTYPES)),
        lambda: entry.update(shape=rng.choice(shapes)),
        lambda: entry.update(shape=[entry["shape"][0] // 2, *entry["shape"][1:]]),
        lambda: entry.update(data_offsets=rng.choice(offsets)),
        lambda: entry.update(rng.choice(({"shape": "a"}, {"data_offsets": None}, {"data_offsets": [1]}, {"extra": 1}))),
        lambda: header.update({name: copy.deepcopy(rng.choice(_VALUES))}),
        lambda: header.update({"__metadata__": rng.choice(({}, {"format": 1}, {"format": "tf"}, [], None))}),
    )
    rng.choice(ways)()


def damage_gguf(source: Path, out: Path, rng: random.Random) -> None:
    """Write a GGUF file with other bytes in its header, or with one other key or tensor."""
    from gguf import GGUFReader

    reader = GGUFReader(source)
    if rng.random() < 0.25:
        data = bytearray(source.read_bytes())
        start = rng.randrange(reader.data_offset - 8)
        if rng.random() < 0.5:
            data[start] ^= 1 << rng.randrange(8)
        else:
            data[start : start + 8] = struct.pack("<Q", rng.choice((0, 2**64 - 1, 2**31, 10**9)))
        out.write_bytes(data[: rng.choice((len(data), len(data), rng.randrange(len(data))))])
        return
    fields = {name: (field.contents(), field.types) for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    if rng.random() < 0.15:
        name = rng.choice(list(tensors))
        tensors[name] = tensors[name][: len(tensors[name]) // 2]
    else:
        name = rng.choice(list(fields))
        _damage_field(fields, name, rng)
    write_gguf_fields(out, fields, tensors)


def write_gguf_fields(path: Path, fields: dict[str, tuple[Any, list[Any]]], tensors: dict[str, np.ndarray[Any, Any]]) -> None:
    """Write a GGUF file of fields, each a value and its types as `gguf.ReaderField` has them."""
    from gguf import GGUFValueType, GGUFWriter

    writer = GGUFWriter(path, "")
    writer.kv_data = [{}]
    for name, (value, types) in fields.items():
        writer.add_key_value(name, value, types[0], types[-1] if types[0] == GGUFValueType.ARRAY else None)
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_type(value: Any) -> Any:
    """Return the type that a number or text is stored as."""
    from gguf import GGUFValueType

    kinds = {bool: GGUFValueType.BOOL, float: GGUFValueType.FLOAT32, str: GGUFValueType.STRING}
    return kinds.get(type(value), GGUFValueType.UINT32 if isinstance(value, int) and value >= 0 else GGUFValueType.INT32)


def _damage_field(fields: dict[str, tuple[Any, list[Any]]], name: str, rng: random.Random) -> None:
    value, types = fields[name]
    if rng.random() < 0.15:
        del fields[name]
    elif isinstance(value, list) and rng.random() < 0.8:
        place = rng.randrange(len(value))
        other = rng.choice(_ENTRIES[type(value[place])])
        ways = (value[:place] or value[:1], [*value, *value[:5]], [*value[:place], other, *value[place + 1 :]])
        fields[name] = (rng.choice(ways), types)
    else:
        number = rng.choice(_NUMBERS)
        fields[name] = (number, [gguf_type(number)])


def _places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the places in a JSON value; of large tables some at both ends."""
    yield way
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    for key in keys if len(keys) <= _MOST_CHILDREN else keys[: _MOST_CHILDREN // 2] + keys[-_MOST_CHILDREN // 2 :]:
        yield from _places(value[key], (*way, key))
