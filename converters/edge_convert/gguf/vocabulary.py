"""Reads the vocabulary of a checkpoint as llama.cpp has it. Plans ask for its kind, so no library of a conversion is imported.

llama.cpp has two kinds: byte-level BPE, where the file only names the rule that splits text into words, and sentencepiece,
where every piece has a score. Both are read from tokenizer.json, as transformers does.

Source: `llama_vocab` in llama.cpp; its `conversion/base.py` (the types of tokens).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from edge.errors import ModelFileError
from edge.units import reason
from edge_convert.checkpoint import read_json

__all__ = [
    "BYTE",
    "CONTROL",
    "LOOKS_SPECIAL",
    "NORMAL",
    "SPACE",
    "SPLITS",
    "UNKNOWN",
    "UNUSED",
    "USER_DEFINED",
    "Vocabulary",
    "check_kind",
    "read_vocabulary",
    "split_name",
]

# gguf.TokenType
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS_3_DIGITS = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _REST
_WORDS_1_DIGIT = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _REST
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
_CASED_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = "|".join([*_CASED, r"\p{N}", _CASED_REST])
_GPT_4O = "|".join([*(part + _CONTRACTIONS + "?" for part in _CASED), r"\p{N}{1,3}", _CASED_REST])

# Steps of tokenizer.json's pre_tokenizer -> llama.cpp's names (where merges are always made, where a word in the vocabulary is
# taken as it is). None: llama.cpp has no such combination.
SPLITS: dict[tuple[str, ...], tuple[str | None, str | None]] = {
    ("bytes+words",): ("gpt-2", None),
    ("digits", "bytes+words"): ("smollm", None),
    (_WORDS_3_DIGITS, "bytes"): ("dbrx", "llama-bpe"),
    (_WORDS_1_DIGIT, "bytes"): ("qwen2", None),
    (_TEKKEN, "bytes"): (None, "tekken"),
    (_GPT_4O, "bytes"): ("gpt-4o", None),
}

LOOKS_SPECIAL = re.compile(r"<\|.*\|>|<｜.*｜>|<(?:pad|mask|2mass|\[@BOS@\])>", re.DOTALL)
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
SPACE = "▁"
_Id = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
_ADDED_SCORE, _PADDING_SCORE = -1000.0, -10000.0


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer in a GGUF file.

    Attributes:
        model: llama.cpp's kind: "gpt2" (byte-level BPE) or "llama" (sentencepiece).
        pre: llama.cpp's name of the rule that splits text into words.
        tokens: text of each id.
        types: kind of each id, as gguf.TokenType.
        scores: of each id; None for byte-level BPE.
        adds_space: whether a space is put before the text; None for byte-level BPE.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None
    adds_space: bool | None


class _Steps(msgspec.Struct):
    """A normalizer or pre_tokenizer of tokenizer.json."""

    type: str | None = None
    normalizers: list[dict[str, Any]] = []
    pretokenizers: list[dict[str, Any]] = []


class _Added(msgspec.Struct):
    """An added token of tokenizer.json."""

    id: _Id
    content: str
    special: bool = False


class _Model(msgspec.Struct):
    """The model of tokenizer.json. The vocabulary is a list where it is not BPE."""

    type: str | None = None
    vocab: dict[str, _Id] | list[Any] = []
    merges: list[str | list[str]] = []
    unk_token: str | None = None
    byte_fallback: bool = False
    ignore_merges: bool | None = False


class _Described(msgspec.Struct):
    """The types of tokenizer.json that are read here."""

    model: _Model | None = None
    added_tokens: list[_Added] = []
    normalizer: _Steps | None = None
    pre_tokenizer: _Steps | None = None
    post_processor: dict[str, Any] | None = None
    decoder: dict[str, Any] | None = None


def read_vocabulary(folder: Path, n_vocab: int) -> Vocabulary:
    """Read tokenizer.json.

    Args:
        folder: of the checkpoint.
        n_vocab: rows of the embedding; ids that the tokenizer does not use are padded, and added tokens without a row left out.

    Raises:
        ModelFileError: llama.cpp does not have this kind of tokenizer, or it has more tokens than the model.
    """
    content = read_json(folder / "tokenizer.json")
    pre = check_kind(content, folder.name)
    model = content["model"]
    added = {entry["id"]: entry for entry in content.get("added_tokens", []) if entry["id"] < n_vocab}
    texts = {index: text for text, index in model["vocab"].items()}
    texts.update({index: entry["content"] for index, entry in added.items()})
    n_tokens = max(texts) + 1
    if n_tokens > n_vocab:
        raise ModelFileError(
            f"{folder.name}: its tokenizer has {n_tokens} tokens, its embedding {n_vocab} rows.", "Download it again."
        )
    is_sentencepiece = bool(model.get("byte_fallback"))
    tokens, types = [], []
    ids: dict[str, int] = {}
    for index in range(n_vocab):
        text, kind = _token(index, texts, added, model, is_sentencepiece)
        if ids.setdefault(text, index) != index:
            raise ModelFileError(
                f"{folder.name}: tokenizer.json has the token {text[:40]!r} twice, as {ids[text]} and {index}.",
                "Download it again, or give each added token the id that it has in the vocabulary.",
            )
        tokens.append(text)
        types.append(kind)
    if not is_sentencepiece:
        return Vocabulary("gpt2", pre, tokens, types, None, None)
    return Vocabulary("llama", pre, tokens, types, _scores(tokens, types, model), _adds_space(content))


def check_kind(content: Mapping[str, Any], where: str) -> str:
    """Refuse a tokenizer.json that is damaged, or of a kind that llama.cpp does not have.

    Args:
        content: of the file.
        where: for messages.

    Returns:
        llama.cpp's name of the rule that splits text into words.

    Raises:
        ModelFileError: as said above.
    """
    try:
        msgspec.convert(content, _Described)
    except msgspec.ValidationError as error:
        raise ModelFileError(f"{where}/tokenizer.json is damaged: {reason(error)}.", "Download it again.") from error
    model = content.get("model") or {}
    kind = model.get("type")
    if kind == "Unigram":
        why = "llama.cpp's own Unigram kind does not spell unknown characters in bytes and treats spaces otherwise"
        raise _cannot(f"{where}: its tokenizer is a Unigram, and {why}, so that it would read other tokens")
    if kind != "BPE" or not isinstance(model.get("vocab"), dict):
        raise _cannot(f"{where}: its tokenizer is a {str(kind)[:40]}, and only BPE can be carried over to GGUF")
    if model.get("byte_fallback"):
        return "default"
    return split_name(content.get("pre_tokenizer"), bool(model.get("ignore_merges")), where)


def _cannot(what: str) -> ModelFileError:
    return ModelFileError(f"{what}.", "Convert to another format: --to onnx or --to coreml")


def split_name(pre_tokenizer: Mapping[str, Any] | None, ignores_merges: bool, where: str) -> str:
    """Return llama.cpp's name for a rule that splits text into words.

    Args:
        pre_tokenizer: the part of tokenizer.json.
        ignores_merges: whether a word that is a token is taken whole.
        where: for messages.

    Raises:
        ModelFileError: llama.cpp has no such rule.
    """
    parts = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer or {}])
    signature = tuple(_signature(part) for part in parts)
    names = SPLITS.get(signature, (None, None))
    name = names[ignores_merges] or names[not ignores_merges]
    if name is None:
        raise _cannot(f"{where}: its tokenizer splits text in a way that llama.cpp does not know ({' then '.join(signature)})")
    return name


def _token(
    index: int, texts: Mapping[int, str], added: Mapping[int, Any], model: Mapping[str, Any], is_sentencepiece: bool
) -> tuple[str, int]:
    """Return the text and kind of an id."""
    text = texts.get(index)
    if text is None:
        return f"[PAD{index}]", UNUSED
    if is_sentencepiece and text == model.get("unk_token"):
        return text, UNKNOWN
    if index in added:
        if added[index].get("special") or LOOKS_SPECIAL.fullmatch(text):
            return text, CONTROL
        # llama.cpp looks for these in the text as the user wrote it, where spaces are spaces.
        return text.replace(SPACE, " "), USER_DEFINED
    if is_sentencepiece and _BYTE_PIECE.fullmatch(text):
        return text, BYTE
    return text, NORMAL


def _scores(tokens: list[str], types: list[int], model: Mapping[str, Any]) -> list[float]:
    """Return scores that make llama.cpp merge in the order of tokenizer.json: the earlier the merge, the higher the score.

    sentencepiece's own scores of a BPE model are the same numbers: minus the place of the piece.
    """
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model.get("merges", [])):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    scores = []
    for text, kind in zip(tokens, types, strict=True):
        if kind == UNUSED:
            scores.append(_PADDING_SCORE)
        elif kind in (CONTROL, USER_DEFINED):
            scores.append(_ADDED_SCORE)
        else:
            scores.append(-float(ranks.get(text, 0)))
    return scores


def _signature(part: Mapping[str, Any]) -> str:
    """Return a step of a pre_tokenizer as a word, or its regular expression."""
    kind = part.get("type")
    if kind == "ByteLevel" and not part.get("add_prefix_space"):
        return "bytes+words" if part.get("use_regex", True) else "bytes"
    if kind == "Digits" and part.get("individual_digits"):
        return "digits"
    if kind == "Split" and part.get("behavior") == "Isolated" and not part.get("invert"):
        return str(part.get("pattern", {}).get("Regex"))
    return str(kind)


def _adds_space(content: Mapping[str, Any]) -> bool:
    """Return whether a sentencepiece tokenizer puts a space before the text."""
    normalizer, pre = content.get("normalizer") or {}, content.get("pre_tokenizer") or {}
    steps = [*normalizer.get("normalizers", [normalizer]), *pre.get("pretokenizers", [pre])]
    prepends = any(step.get("type") == "Prepend" and step.get("prepend") == SPACE for step in steps)
    metaspace = any(step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never" for step in steps)
    return prepends or metaspace
