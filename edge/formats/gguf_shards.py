"""Models that are split into several GGUF files, which lie beside each other: NAME-00001-of-00003.gguf and so on.

The first has the metadata, and some of the tensors or none; the others have only tensors. llama.cpp opens the first and finds
the others by their names.

Source: `llama_split_path` and the keys split.* of llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from edge.errors import ModelFileError, ModelNotFoundError
from edge.formats.gguf_header import GGUFHeader, Value, split_count

__all__ = ["check_whole", "first_shard", "gguf_files", "is_later_shard", "shard_name", "shards_of", "split_parts"]

_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE | re.DOTALL)


def split_parts(name: str) -> int:
    """Return the number of files of a split model by the name of one of them, "model-00001-of-00003.gguf"; else 1."""
    found = _NAME.fullmatch(name)
    return int(found[3]) if found else 1


def is_later_shard(name: str) -> bool:
    """Return True for the name of a file of a split model that is not the first."""
    found = _NAME.fullmatch(name)
    return found is not None and int(found[2]) != 1 and int(found[3]) > 1


def shard_name(stem: str, number: int, n_shards: int) -> str:
    """Return the name of a file of a split model; they are counted from 0."""
    return f"{stem}-{number + 1:05}-of-{n_shards:05}.gguf"


def first_shard(path: Path) -> Path:
    """Return the first file of the split model that a file belongs to; the file itself if its name says nothing of that."""
    found = _NAME.fullmatch(path.name)
    return path.with_name(f"{found[1]}-00001-of-{found[3]}{found[4]}") if found else path


def gguf_files(path: Path) -> tuple[Path, ...]:
    """Return the files of a model by the name of one: all of a split one, whether they are there or not."""
    found = _NAME.fullmatch(path.name)
    n_shards = split_parts(path.name)
    if found is None or n_shards == 1:
        return (path,)
    return tuple(path.with_name(f"{found[1]}-{number:05}-of-{found[3]}{found[4]}") for number in range(1, n_shards + 1))


def shards_of(path: Path, metadata: Mapping[str, Value]) -> tuple[Path, ...]:
    """Return the files of a model by the metadata of the given one, which has to be the first.

    Raises:
        ModelFileError: it is not the first, or its name hides where the others are.
        ModelNotFoundError: one is missing.
    """
    n_shards = split_count(metadata)
    if n_shards == 1:
        return (path,)
    number = metadata.get("split.no", 0)
    if number != 0:
        raise ModelFileError(
            f"{path.name} is part {number + 1 if isinstance(number, int) else '?'} of a model in {n_shards} files.",
            f"Give the first one: {first_shard(path).name}",
        )
    files = gguf_files(path)
    if len(files) != n_shards or files[0] != path:
        raise ModelFileError(
            f"{path.name} is the first of {n_shards} files of a model, and its name does not say so.",
            f"Call it {shard_name('NAME', 0, n_shards)}, as it was called, and the others likewise.",
        )
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ModelNotFoundError(
            f"{path.name} is one of {n_shards} files of a model, and {', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''} {'is' if len(missing) == 1 else 'are'} not beside it.",
            "Download all of them into one folder.",
        )
    return files


def check_whole(path: Path, header: GGUFHeader) -> None:
    """Check that a model is in one file, for those who read its weights themselves.

    Raises:
        ModelFileError: it is split.
    """
    if header.split_count > 1:
        raise ModelFileError(
            f"{path.name} is split into {header.split_count} files, which only llama.cpp reads.",
            "Give a file that is whole.",
        )
