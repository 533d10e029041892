"""The tokenizer of a checkpoint: its files checked, and loaded as transformers does.

transformers and tokenizers answer damaged files with errors of any type and panics of Rust; here they become one sentence.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from edge import files
from edge.errors import EdgeError, ModelFileError
from edge.units import type_words

__all__ = ["check_tokenizer_files", "library_reads", "load_tokenizer"]

_MAX_BYTES = 256 << 20  # tokenizer.json of a large vocabulary has 35 MB
_MAX_WORDS = 300


class _Added(msgspec.Struct, frozen=True, kw_only=True):
    """A token as transformers describes it."""

    content: str


_Token = str | _Added | None


class _Config(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of tokenizer_config.json that transformers takes as they are."""

    tokenizer_class: str | None = None
    bos_token: _Token = None
    eos_token: _Token = None
    unk_token: _Token = None
    pad_token: _Token = None
    sep_token: _Token = None
    cls_token: _Token = None
    mask_token: _Token = None
    model_max_length: int | float | None = None
    added_tokens_decoder: dict[str, _Added] | None = None
    add_bos_token: bool | None = None
    add_eos_token: bool | None = None


class _SpecialTokens(msgspec.Struct, frozen=True, kw_only=True):
    """The tokens that special_tokens_map.json names."""

    bos_token: _Token = None
    eos_token: _Token = None
    unk_token: _Token = None
    pad_token: _Token = None


_KINDS: dict[str, Any] = {
    "tokenizer_config.json": _Config,
    "special_tokens_map.json": _SpecialTokens,
    "added_tokens.json": dict[str, int],
    "generation_config.json": dict[str, Any],
}


def check_tokenizer_files(folder: Path) -> None:
    """Refuse a tokenizer that the tokenizers library cannot load, and files beside it that are damaged.

    Raises:
        ModelFileError: which file, and what is wrong with it.
    """
    from tokenizers import Tokenizer

    for name, kind in _KINDS.items():
        if (folder / name).is_file():
            text = files.read_text(folder / name, _MAX_BYTES)  # msgspec passes over bytes in keys that it does not read
            files.parse_json(folder / name, text.encode(), kind)
    text = files.read_text(folder / "tokenizer.json", _MAX_BYTES)
    with library_reads(f"tokenizer.json of {folder.name}"):
        Tokenizer.from_str(text).encode("a")


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a checkpoint as transformers does, for the class that its files name.

    Raises:
        ModelFileError: transformers cannot load it.
    """
    from transformers import AutoConfig, AutoTokenizer

    with library_reads(f"config.json of {folder.name}"):
        AutoConfig.from_pretrained(str(folder), local_files_only=True)
    with library_reads(f"The tokenizer of {folder.name}"):
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


@contextmanager
def library_reads(what: str) -> Iterator[None]:
    """Turn whatever a library raises about a file that it reads into one sentence.

    Args:
        what: is read, for the message.

    Raises:
        ModelFileError: the library cannot read it.
    """
    try:
        yield
    except (EdgeError, MemoryError):
        raise
    except BaseException as error:
        # A panic of Rust is no Exception, so that nothing swallows it by accident.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        why = type_words(" ".join(str(error).split()))[:_MAX_WORDS].rstrip(". ") or type(error).__name__
        raise ModelFileError(
            f"{what} cannot be read: {why}.", "Download the model again. If you changed it, correct that."
        ) from error
