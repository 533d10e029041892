"""The tokenizer of a checkpoint: its files checked, and loaded as transformers does.

transformers and tokenizers answer damaged files with errors of any type and panics of Rust; here they become one sentence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from edge import files
from edge.errors import EdgeError, ModelFileError
from edge.units import type_words

__all__ = ["check_tokenizer_files", "library_reads", "load_tokenizer", "named_ends", "remove_rowless", "without_rowless"]

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


class _Generation(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of generation_config.json that results have, but for the ends of a reply: see `named_ends`."""

    bos_token_id: int | None = None
    pad_token_id: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None


_KINDS: dict[str, Any] = {
    "tokenizer_config.json": _Config,
    "special_tokens_map.json": _SpecialTokens,
    "added_tokens.json": dict[str, int],
    "generation_config.json": _Generation,
}


def check_tokenizer_files(folder: Path, n_vocab: int) -> None:
    """Refuse a tokenizer that the tokenizers library cannot load, or that does not fit the model, and damaged files beside it.

    Args:
        folder: of the checkpoint.
        n_vocab: rows of the embedding.

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
        tokenizer = Tokenizer.from_str(text)
        tokenizer.encode("a")
        vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    beyond = [token for token, index in vocabulary.items() if index >= n_vocab]
    if beyond:
        raise ModelFileError(
            f"tokenizer.json of {folder.name} has the token {beyond[0][:40]!r} as {vocabulary[beyond[0]]:,}, and the model has "
            f"{n_vocab:,} tokens.",
            "They belong to different models, or one was changed: download the model again.",
        )


def named_ends(folder: Path, n_vocab: int) -> list[int]:
    """Return the ids that end a reply by generation_config.json and config.json of a checkpoint, in this order.

    Raises:
        ModelFileError: one is not in the vocabulary.
    """
    found: list[int] = []
    for name in ("generation_config.json", "config.json"):
        given = files.read_json(folder / name, dict[str, Any]).get("eos_token_id") if (folder / name).is_file() else None
        ids = given if isinstance(given, list) else [] if given is None else [given]
        for token in ids:
            if type(token) is not int or not 0 <= token < n_vocab:
                raise ModelFileError(
                    f"{folder.name}/{name}: eos_token_id is {json.dumps(token)[:40]}, and the vocabulary has {n_vocab} tokens.",
                    f"Correct {name}, or download it again.",
                )
        found += ids
    return list(dict.fromkeys(found))


def remove_rowless(folder: Path, n_vocab: int) -> None:
    """Remove the added tokens that a model's embedding has no row for from the tokenizer in a folder of results.

    Gemma 3 has one, in models that read no images too: `<image_soft_token>` stands for rows that come from elsewhere.

    Args:
        folder: with tokenizer.json and what lies beside it.
        n_vocab: rows of the embedding.
    """
    path = folder / "tokenizer.json"
    content = files.read_json(path, dict[str, Any], _MAX_BYTES)
    kept = without_rowless(content, n_vocab)
    if kept is content:
        return
    path.write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8")
    path = folder / "tokenizer_config.json"
    if path.is_file():
        config = files.read_json(path, dict[str, Any], _MAX_BYTES)
        if isinstance(decoder := config.get("added_tokens_decoder"), dict):
            config["added_tokens_decoder"] = {
                key: entry for key, entry in decoder.items() if not key.isdecimal() or int(key) < n_vocab
            }
            path.write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    path = folder / "added_tokens.json"
    if path.is_file():
        ids = files.read_json(path, dict[str, int], _MAX_BYTES)
        path.write_text(json.dumps({text: index for text, index in ids.items() if index < n_vocab}), encoding="utf-8")


def without_rowless(content: dict[str, Any], n_vocab: int) -> dict[str, Any]:
    """Return the content of a tokenizer.json without the added tokens that the embedding has no row for."""
    added = content.get("added_tokens") or []
    kept = [entry for entry in added if entry["id"] < n_vocab]
    return content if len(kept) == len(added) else {**content, "added_tokens": kept}


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
