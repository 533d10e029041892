"""Writes the tokenizer of a GGUF file as tokenizer.json: the inverse of tokenizer.py."""

from __future__ import annotations

from typing import Any

from gguf import GGUFReader

from edge.errors import ModelFileError
from edge_convert.gguf.tokenizer import BYTE, CONTROL, SPACE, SPLITS, UNKNOWN, UNUSED, USER_DEFINED

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


def build_tokenizer(reader: GGUFReader, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Make tokenizer.json and tokenizer_config.json.

    Raises:
        ModelFileError: the tokenizer is of another kind, or splits text by an unknown rule.
    """
    facts = {
        name.removeprefix("tokenizer.ggml."): field.contents()
        for name, field in reader.fields.items()
        if name.startswith("tokenizer.ggml.")
    }
    kind, tokens = facts.get("model"), facts.get("tokens")
    if kind not in ("gpt2", "llama") or not tokens:
        raise ModelFileError(
            f"{where} has a tokenizer of the kind {kind!r}, which edge does not convert.", "Known: gpt2, llama."
        )
    types = facts.get("token_type") or [1] * len(tokens)
    vocabulary = {text: index for index, text in enumerate(tokens) if types[index] not in (UNUSED, USER_DEFINED)}
    is_sentencepiece = kind == "llama"
    content = _sentencepiece(facts, tokens, types, vocabulary) if is_sentencepiece else _byte_level(facts, vocabulary, where)
    general = reader.fields.get("general.name")
    name = str(general.contents()).lower() if general else ""
    swallows = any(part in name for part in _SWALLOWING_NAMES)
    content["added_tokens"] = [
        _added(index, text, types[index], swallows)
        for index, text in enumerate(tokens)
        if types[index] in (CONTROL, USER_DEFINED, UNKNOWN)
    ]
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for ours, theirs in _SPECIALS.items():
        index = facts.get(f"{ours}_token_id")
        if isinstance(index, int) and index < len(tokens):
            config[f"{theirs}_token"] = tokens[index]
    content["post_processor"] = _around(facts, tokens, content["post_processor"], is_default=is_sentencepiece)
    return content, config


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
    merges: list[tuple[str, str]] = []
    for index in sorted(plain, key=lambda index: -scores[index]):
        piece = tokens[index]
        cuts = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        ways = [(left, right) for left, right in cuts if left in vocabulary and right in vocabulary]
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
        "normalized": False,
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
        if adds and isinstance(index, int):
            text = tokens[index]
            parts.insert(place if place == 0 else len(parts), {"SpecialToken": {"id": text, "type_id": 0}})
            used[text] = {"id": text, "ids": [index], "tokens": [text]}
    if not used:
        return default
    pair = [*parts, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": parts, "pair": pair, "special_tokens": used}
