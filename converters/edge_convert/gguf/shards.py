"""Models in several GGUF files, as llama.cpp's llama-gguf-split writes them: split, and joined again.

The files are written by the writer of the package gguf, a tensor at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge.errors import UsageError
from edge.formats.gguf import read_header
from edge.formats.gguf_shards import gguf_files, split_parts
from edge.hashes import file_stamp
from edge_convert.full_disk import name_full_disk

if TYPE_CHECKING:
    from edge_convert.inputs import Input

__all__ = ["MIN_SHARD_BYTES", "join_shards", "split_into_shards", "whole_source"]

MIN_SHARD_BYTES = 1 << 20
_SPLIT_KEYS = "split."


def split_into_shards(path: Path, max_bytes: int) -> list[Path]:
    """Replace a GGUF file by files of at most so many bytes of weights, NAME-00001-of-00003.gguf and so on, if it is larger.

    A tensor is never split, so a file with one large tensor may be larger.

    Args:
        path: the file.
        max_bytes: of the weights in a file.

    Returns:
        The files; only `path` if it is small enough.
    """
    if read_header(path).tensors_bytes <= max_bytes:
        return [path]
    _write([path], path, max_bytes)
    path.unlink()
    return sorted(path.parent.glob(f"{path.stem}-*-of-*.gguf"))


def join_shards(first: Path, out: Path) -> Path:
    """Write a split model into one file, as it was before.

    Args:
        first: its first file.
        out: the new file.

    Raises:
        ModelNotFoundError, ModelFileError: a part is missing or damaged.
    """
    read_header(first)  # checks all of them
    partial = out.with_name(f".{out.name}.part")
    try:
        with name_full_disk(out.parent):
            _write(gguf_files(first), partial, 0)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return out


@contextlib.contextmanager
def whole_source(source: Input, out: Path) -> Iterator[Input]:
    """Give a conversion its source in one file: a split one is joined beside the results, for as long as the block runs.

    The joined file stays while OUT has unfinished work, so that the same command goes on with it.

    Args:
        source: of the conversion.
        out: folder of the results.
    """
    if source.kind != "gguf" or split_parts(source.path.name) == 1:
        yield source
        return
    if not out.absolute().parent.is_dir():
        raise UsageError(f"There is no folder {out.absolute().parent}.", "Make it, or choose another with --out.")
    stamps = [file_stamp(file.stat()) for file in gguf_files(source.path) if file.is_file()]
    digest = hashlib.sha256(msgspec.json.encode(stamps)).hexdigest()[:8]
    folder = out.with_name(f".{out.name}-joined-{digest}")
    folder.mkdir(exist_ok=True)
    whole = folder / f"{source.path.stem.partition('-00001-of-')[0]}.gguf"
    try:
        if not whole.exists():
            join_shards(source.path, whole)
        yield msgspec.structs.replace(source, path=whole)
    finally:
        if not any(out.glob(".work-*")):
            shutil.rmtree(folder, ignore_errors=True)


def _write(sources: Sequence[Path], out: Path, max_bytes: int) -> None:
    """Copy metadata and tensors of files into one, or into files of at most so many bytes."""
    import gguf

    readers = [gguf.GGUFReader(source) for source in sources]
    first = readers[0]
    architecture = first.get_field(gguf.Keys.General.ARCHITECTURE)
    writer = gguf.GGUFWriter(out, architecture.contents() if architecture else "", split_max_size=max_bytes)
    for field in first.fields.values():
        if field.name.startswith(("GGUF.", _SPLIT_KEYS)) or field.name == gguf.Keys.General.ARCHITECTURE:
            continue
        kind = field.types[0]
        writer.add_key_value(
            field.name, field.contents(), kind, sub_type=field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        )
    tensors: list[Any] = [tensor for reader in readers for tensor in reader.tensors]
    for tensor in tensors:
        writer.add_tensor_info(tensor.name, tensor.data.shape, tensor.data.dtype, tensor.data.nbytes, tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(tensor.data)
    writer.close()
