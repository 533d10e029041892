"""Writes the tokenizer of a GGUF file as tokenizer.json: the inverse of tokenizer.py."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec
from tokenizers import Tokenizer

from edge.errors import ModelFileError
from edge.units import reason, type_words
from edge_convert.gguf.vocabulary import BYTE, CONTROL, NORMAL, SPACE, SPLITS, UNKNOWN, UNUSED, USER_DEFINED

__all__ = ["build_tokenizer"]

# llama.cpp's synonyms of names in SPLITS.
_SAME_SPLIT = {
    "default": "gpt-2",
    "gpt2": "gpt-2",
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "mistral-bpe": "tekken",
    "deepseek-r1-qwen": "qwen2",
    "starcoder": "smollm",
    "phi-2": "gpt-2",
}
_NORMALISED = ("qwen2",)
_SPECIALS = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
# In the order in which transformers writes them.
_CONTENT: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": None,
    "model": None,
}
_MODEL: dict[str, Any] = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}
_SWALLOWING_NAMES = ("phi-3", "phi3")


class _Facts(msgspec.Struct):
    """The types of the keys below tokenizer.ggml that are read here."""

    model: str | None = None
    pre: str | None = None
    tokens: list[str] = []
    token_type: list[int] = []
    scores: list[float] = []
    merges: list[str] = []


def build_tokenizer(fields: Mapping[str, Any], where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Make tokenizer.json and tokenizer_config.json.

    Args:
        fields: of the file's metadata, by their names.
        where: the file, for messages.

    Raises:
        ModelFileError: the tokenizer is of another kind, or splits text by an unknown rule.
    """
    facts = {
        name.removeprefix("tokenizer.ggml."): value for name, value in fields.items() if name.startswith("tokenizer.ggml.")
    }
    try:
        msgspec.convert(facts, _Facts)
    except msgspec.ValidationError as error:
        raise ModelFileError(f"The tokenizer of {where} is damaged: {reason(error)}.", "Download it again.") from error
    kind, tokens = facts.get("model"), facts.get("tokens")
    if kind not in ("gpt2", "llama") or not tokens:
        raise ModelFileError(
            f"{where} has a tokenizer of the kind {kind!r}, which edge does not convert.", "Known: gpt2, llama."
        )
    types = facts.get("token_type") or [NORMAL] * len(tokens)
    is_sentencepiece = kind == "llama"
    _check_lists(facts, len(tokens), types, where, has_scores=is_sentencepiece)
    if is_sentencepiece:
        # llama.cpp looks for these in the text as it is, tokenizer.json in the text with its spaces replaced.
        tokens = [text.replace(" ", SPACE) if types[at] == USER_DEFINED else text for at, text in enumerate(tokens)]
    # All ids but padding at the end: the tokenizers library numbers those that are not in the vocabulary anew, behind it.
    n_used = max((at + 1 for at, kind in enumerate(types) if kind != UNUSED), default=0)
    vocabulary = {text: index for index, text in enumerate(tokens[:n_used])}
    content = _sentencepiece(facts, tokens, types, vocabulary) if is_sentencepiece else _byte_level(facts, vocabulary, where)
    name = str(fields.get("general.name") or "").lower()
    swallows = any(part in name for part in _SWALLOWING_NAMES)
    content["added_tokens"] = [
        _added(index, text, types[index], swallows)
        for index, text in enumerate(tokens)
        if types[index] in (CONTROL, USER_DEFINED, UNKNOWN)
    ]
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for ours, theirs in _SPECIALS.items():
        index = facts.get(f"{ours}_token_id")
        if isinstance(index, int) and 0 <= index < len(tokens):
            config[f"{theirs}_token"] = tokens[index]
    content["post_processor"] = _around(facts, tokens, content["post_processor"], is_default=is_sentencepiece)
    try:
        Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the library has no type of its own
        raise ModelFileError(f"The tokenizer of {where} is damaged: {type_words(str(error))}.", "Download it again.") from error
    return content, config


def _check_lists(facts: dict[str, Any], n_tokens: int, types: list[int], where: str, *, has_scores: bool) -> None:
    """Refuse a vocabulary whose lists do not belong together."""
    lengths = {"token_type": len(types)}
    if has_scores:
        lengths["scores"] = len(facts.get("scores") or ())
    for name, length in lengths.items():
        if length != n_tokens:
            raise ModelFileError(f"{where} has {n_tokens} tokens and {length} entries of {name}.", "Download it again.")
    if not has_scores and not all(isinstance(merge, str) and " " in merge for merge in facts.get("merges", [])):
        raise ModelFileError(f"{where} has a merge that is not two parts.", "Download it again.")


def _byte_level(facts: dict[str, Any], vocabulary: dict[str, int], where: str) -> dict[str, Any]:
    pre = str(facts.get("pre", "default"))
    pre = _SAME_SPLIT.get(pre, pre)
    found = next(((steps, names) for steps, names in SPLITS.items() if pre in names), None)
    if found is None:
        raise ModelFileError(
            f"{where}: its tokenizer splits text by the rule {pre!r}, which edge does not know.",
            "Convert the checkpoint that it was made from.",
        )
    steps, names = found
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    known: dict[str, dict[str, Any]] = {
        "bytes": {**byte_level, "use_regex": False},
        "bytes+words": {**byte_level, "use_regex": True},
        "digits": {"type": "Digits", "individual_digits": True},
    }
    parts = [
        known.get(step, {"type": "Split", "pattern": {"Regex": step}, "behavior": "Isolated", "invert": False})
        for step in steps
    ]
    return {
        **_CONTENT,
        "normalizer": {"type": "NFC"} if pre in _NORMALISED else None,
        "pre_tokenizer": parts[0] if len(parts) == 1 else {"type": "Sequence", "pretokenizers": parts},
        "post_processor": {**byte_level, "use_regex": False, "trim_offsets": False},
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            **_MODEL,
            "ignore_merges": names[1] == pre,
            "vocab": vocabulary,
            "merges": [merge.split(" ", 1) for merge in facts.get("merges", [])],
        },
    }


def _sentencepiece(facts: dict[str, Any], tokens: list[str], types: list[int], vocabulary: dict[str, int]) -> dict[str, Any]:
    """Return what transformers makes of a sentencepiece model: every way to compose a piece is a merge, best piece first.

    Source: `generate_merges` in transformers' convert_slow_tokenizer.py.
    """
    scores = facts["scores"]
    plain = [index for index, kind in enumerate(types) if kind not in (UNUSED, USER_DEFINED, CONTROL, UNKNOWN, BYTE)]
    parts = {tokens[index] for index, kind in enumerate(types) if kind not in (UNUSED, USER_DEFINED)}
    lengths = sorted({len(part) for part in parts})
    merges: list[tuple[str, str]] = []
    for index in sorted(plain, key=lambda index: -scores[index]):
        piece = tokens[index]
        # Only where a token is as long as the left part: a piece of 200,000 letters has as many ways to be cut.
        cuts = ((piece[:cut], piece[cut:]) for cut in lengths if 0 < cut < len(piece))
        ways = [(left, right) for left, right in cuts if left in parts and right in parts]
        merges += sorted(ways, key=lambda way: (vocabulary[way[0]], vocabulary[way[1]]))
    adds_space = bool(facts.get("add_space_prefix", True))
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    first = {"type": "Prepend", "prepend": SPACE}
    decoders = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    unknown = next((tokens[index] for index, kind in enumerate(types) if kind == UNKNOWN), None)
    return {
        **_CONTENT,
        "normalizer": {"type": "Sequence", "normalizers": [first, spaces]} if adds_space else spaces,
        "decoder": {"type": "Sequence", "decoders": [*decoders, strip] if adds_space else decoders},
        "model": {
            **_MODEL,
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def _added(index: int, text: str, kind: int, swallows: bool) -> dict[str, Any]:
    # As llama.cpp does for models with such a name.
    rstrip = swallows and kind == CONTROL and text not in ("<s>", "<|endoftext|>")
    return {
        "id": index,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": rstrip,
        "normalized": kind == USER_DEFINED and SPACE in text,
        "special": kind != USER_DEFINED,
    }


def _around(facts: dict[str, Any], tokens: list[str], default: Any, *, is_default: bool) -> Any:
    """Return the post-processor that puts beginning and end tokens around a text."""
    parts: list[dict[str, Any]] = [{"Sequence": {"id": "A", "type_id": 0}}]
    used = {}
    for kind, adds, place in (
        ("bos", facts.get("add_bos_token", is_default), 0),
        ("eos", facts.get("add_eos_token", False), 1),
    ):
        index = facts.get(f"{kind}_token_id")
        if adds and isinstance(index, int) and 0 <= index < len(tokens):
            text = tokens[index]
            parts.insert(place if place == 0 else len(parts), {"SpecialToken": {"id": text, "type_id": 0}})
            used[text] = {"id": text, "ids": [index], "tokens": [text]}
    if not used:
        return default
    pair = [*parts, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": parts, "pair": pair, "special_tokens": used}
