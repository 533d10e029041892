"""Joins packages of one function each into one package whose functions share their weights.

coremltools' save_multifunction reads both programs back and rewrites them, which takes several times as long as everything else
together; here the protobufs are joined as they are, and equal records of the weight files become one.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from edge.formats.coreml import find_files

from .blobs import RECORD_BYTES, Record, read_record, write_record, write_record_count
from .program import read_spec

__all__ = ["join_functions"]


def join_functions(parts: Mapping[str, Path], joined: Path) -> None:
    """Write a package with one function for each part.

    Args:
        parts: function name -> package with the single function `main`. The first becomes the default.
        joined: the new package. The first part is moved there.

    Raises:
        ModelFileError: a part is damaged.
    """
    names = list(parts)
    shutil.move(parts[names[0]], joined)
    spec_path, weight_path = find_files(joined)
    spec = read_spec(spec_path)
    description, program = spec.description, spec.mlProgram
    with weight_path.open("r+b") as weights:
        known: dict[bytes, int] = {}  # equal weights are one for all functions
        for value in _stored(program.functions["main"]):
            _, key = _identify(weights, value)
            value.blobFileValue.offset = known.setdefault(key, value.blobFileValue.offset)
        _describe(description, names[0], description)
        program.functions[names[0]].CopyFrom(program.functions["main"])
        for name in names[1:]:
            other_path, other_weights = find_files(parts[name])
            other = read_spec(other_path)
            _describe(description, name, other.description)
            program.functions[name].CopyFrom(other.mlProgram.functions["main"])
            with other_weights.open("rb") as source:
                for value in _stored(program.functions[name]):
                    record, key = _identify(source, value)
                    if key not in known:
                        known[key] = _append(weights, source, record)
                    value.blobFileValue.offset = known[key]
        write_record_count(weights, len(known))
    del program.functions["main"]
    for field in ("input", "output", "state"):
        description.ClearField(field)
    description.defaultFunctionName = names[0]
    spec_path.write_bytes(spec.SerializeToString(deterministic=True))


def _describe(description: Any, name: str, source: Any) -> None:
    function = description.functions.add()
    function.name = name
    function.input.extend(source.input)
    function.output.extend(source.output)
    function.state.extend(source.state)


def _stored(function: Any) -> Iterator[Any]:
    """Yield every value of a function that is in the weight file."""
    for block in function.block_specializations.values():
        for operation in block.operations:
            values = list(operation.attributes.values())
            values += [binding.value for argument in operation.inputs.values() for binding in argument.arguments]
            yield from (value for value in values if value.WhichOneof("value") == "blobFileValue")


def _identify(file: BinaryIO, value: Any) -> tuple[Record, bytes]:
    """Return the record of a stored value, and a digest of its type, shape and content."""
    record = read_record(file, value.blobFileValue.offset)
    file.seek(record.start)
    digest = hashlib.sha256(value.type.SerializeToString(deterministic=True))
    digest.update(f"{record.kind}:{record.padding_bits}:".encode())
    digest.update(file.read(record.size))
    return record, digest.digest()


def _append(file: BinaryIO, source: BinaryIO, record: Record) -> int:
    """Copy a record from another weight file to the end of this one, and return its offset."""
    source.seek(record.start)
    content = source.read(record.size)
    end = file.seek(0, 2)
    offset = -(-end // RECORD_BYTES) * RECORD_BYTES
    file.write(bytes(offset - end))
    write_record(file, record, offset)
    file.write(content)
    return offset
