"""Models in several GGUF files, as llama.cpp's llama-gguf-split writes them: split, and joined again.

The files are written by the writer of the package gguf, a tensor at a time.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import shutil
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge.errors import ModelFileError, StorageError, UsageError
from edge.files import lock_file
from edge.formats.gguf import read_header
from edge.formats.gguf_shards import gguf_files, split_parts
from edge.hashes import file_stamp
from edge.units import reason, size_text
from edge_convert.full_disk import name_full_disk, storage_error

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
    return sorted(path.parent.glob(f"{glob.escape(path.stem)}-*-of-*.gguf"))


def join_shards(first: Path, out: Path) -> Path:
    """Write a split model into one file, as it was before.

    Args:
        first: its first file.
        out: the new file.

    Raises:
        ModelNotFoundError, ModelFileError: a part is missing or damaged, or they do not belong together.
    """
    read_header(first)  # checks all of them
    partial = out.with_name(f".{out.name}.part")
    try:
        with name_full_disk(out.parent):
            _write(gguf_files(first), partial, 0)
        partial.replace(out)
    except (ValueError, LookupError, TypeError, OverflowError, struct.error) as error:
        raise ModelFileError(
            f"{first.name} and the files beside it cannot be joined: {reason(error)}.", "Download all of them again."
        ) from error
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

    Raises:
        UsageError: the folder beside `out` does not exist, or another process converts this model into it.
        StorageError: there is not enough room for the joined file, or it cannot be written.
        ModelNotFoundError, ModelFileError: a part is missing or damaged.
    """
    if source.kind != "gguf" or split_parts(source.path.name) == 1 or read_header(source.path).split_count == 1:
        yield source
        return
    place = out.resolve()  # "." has no name
    if not place.parent.is_dir():
        raise UsageError(f"There is no folder {place.parent}.", "Make it, or choose another with --out.")
    stats = [file.stat() for file in gguf_files(source.path)]
    digest = hashlib.sha256(msgspec.json.encode([file_stamp(stat) for stat in stats])).hexdigest()[:8]
    folder = place.parent / f".{place.name}-joined-{digest}"
    whole = folder / f"{source.path.stem.partition('-00001-of-')[0]}.gguf"
    try:
        folder.mkdir(exist_ok=True)
        held = contextlib.ExitStack()
        held.enter_context(lock_file(folder / "lock", on_wait=lambda: _refuse(out)))
    except OSError as error:
        raise storage_error(error, folder) from error
    with held:
        try:
            if not whole.exists():
                _check_room(folder, sum(stat.st_size for stat in stats))
                try:
                    join_shards(source.path, whole)
                except OSError as error:
                    raise storage_error(error, folder) from error
            yield msgspec.structs.replace(source, path=whole)
        finally:
            if not any(out.glob(".work-*")):
                shutil.rmtree(folder, ignore_errors=True)


def _refuse(out: Path) -> None:
    raise UsageError(f"Another process converts this model into {out}.", "Wait for it, or choose another folder: --out DIR")


def _check_room(folder: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise StorageError(
            f"The model's files are joined first, which takes {size_text(n_bytes)}, and the disk of {folder.parent} has "
            f"{size_text(free)} free.",
            "Free some space, or choose another disk: --out DIR",
        )


def _write(sources: Sequence[Path], out: Path, max_bytes: int) -> None:
    """Copy metadata and tensors of files into one, or into files of at most so many bytes.

    Tensors get the usual alignment: of a split model, only the first file could name another. Empty lists of the metadata,
    which the package gguf does not write, are left out.
    """
    import gguf

    readers = [gguf.GGUFReader(source) for source in sources]
    first = readers[0]
    architecture = first.get_field(gguf.Keys.General.ARCHITECTURE)
    writer = gguf.GGUFWriter(out, architecture.contents() if architecture else "", split_max_size=max_bytes)
    written = (gguf.Keys.General.ARCHITECTURE, gguf.Keys.General.ALIGNMENT)
    for field in first.fields.values():
        if field.name.startswith(("GGUF.", _SPLIT_KEYS)) or field.name in written:
            continue
        kind, value = field.types[0], field.contents()
        if kind != gguf.GGUFValueType.ARRAY or value:
            writer.add_key_value(
                field.name, value, kind, sub_type=field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
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
