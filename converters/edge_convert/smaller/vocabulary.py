"""Makes a vocabulary smaller: tokens that a language rarely uses leave the tokenizer, the embedding and the head.

The small tokenizer spells every text that the large one spells: bytes, added tokens, and both parts of every merge whose result
stays are kept. A text whose tokens all stay is split exactly as before, since each merge that led to them is still there, in
the same order. Any other text is split into more, shorter tokens, which are a valid reading of it for the whole model, too.

The whole model with a small vocabulary is the teacher of its student: its distribution is restricted to the tokens that stay,
and renormalised. No weight changes; rows of the embedding and the head leave.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from edge.errors import ModelFileError, UsageError
from edge_convert.checkpoint import read_json
from edge_convert.smaller.corpus import Document
from edge_convert.strings import varied_strings

__all__ = [
    "check_spelling",
    "choose_tokens",
    "count_tokens",
    "named_tokens",
    "respell_all",
    "trim_checkpoint",
    "trim_tokenizer",
]

_PRIOR = 0.3
"""Weight of Zipf's law over the order in which the tokenizer learned its tokens, beside their frequency in the texts."""

_REPLACED = ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer.model")
"""Files that repeat parts of tokenizer.json; without them it is the only source."""

_N_STRINGS, _SEED = 500, 11


def choose_tokens(
    tokenizer: Mapping[str, Any], counts: Mapping[int, int], size: int, title: str, named: Collection[int] = ()
) -> list[int]:
    """Choose the tokens that stay: the most frequent ones, and all that they are merged from.

    Args:
        tokenizer: the content of tokenizer.json.
        counts: id -> how often it occurs in texts; may be empty.
        size: number of tokens that stay.
        title: of the model.
        named: ids that stay in any case, from `named_tokens`.

    Returns:
        Their ids, ascending; fewer than `size` by a few where the last ones come with too many parts.

    Raises:
        ModelFileError: the tokenizer is no byte-level BPE.
        UsageError: it has too few tokens, or bytes and added tokens alone are more than `size`.
    """
    _check_kind(tokenizer, title)
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    added = {entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens", [])}
    ids = {**vocabulary, **added}
    parts: dict[str, list[str]] = {}
    for left, right in map(_pair, tokenizer["model"]["merges"]):
        parts.setdefault(left + right, []).extend((left, right))
    kept = {text for text in vocabulary if len(text) == 1} | set(added)
    for text, index in ids.items():
        if index in named:
            kept |= _with_parts(text, parts, kept)
    if not len(kept) < size < len(ids):
        raise UsageError(
            f"{title} has {len(ids):,} tokens and cannot keep {size:,}.", f"Keep {len(kept) + 1:,} to {len(ids) - 1:,}."
        )
    for text in sorted(ids, key=_rank(ids, counts)):
        needed = _with_parts(text, parts, kept)
        if len(kept) + len(needed) <= size:
            kept |= needed
        if len(kept) == size:
            break
    return sorted(ids[text] for text in kept)


def named_tokens(folder: Path, tokenizer: Mapping[str, Any], title: str) -> set[int]:
    """Return the ids of the tokens that a checkpoint's files name, such as the one that ends a reply: these have to stay.

    Args:
        folder: of the checkpoint.
        tokenizer: the content of its tokenizer.json.
        title: of the model.

    Raises:
        ModelFileError: tokenizer.json puts a token before or behind a text that it does not have.
    """
    vocabulary = {**tokenizer["model"]["vocab"], **{one["content"]: one["id"] for one in tokenizer.get("added_tokens") or []}}
    placed = set(_placed_ids(tokenizer.get("post_processor")))
    if strange := placed - set(vocabulary.values()):
        raise ModelFileError(
            f"tokenizer.json of {title} puts the token {min(strange)} around texts, and has no such token.",
            "Download it again.",
        )
    found = placed
    for name in ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"):
        content = read_json(folder / name) if (folder / name).is_file() else {}
        for key, value in content.items():
            if key.endswith("_token_id"):
                found |= {index for index in (value if isinstance(value, list) else [value]) if type(index) is int}
            elif key.endswith("_token"):
                text = value.get("content") if isinstance(value, dict) else value
                found |= {vocabulary[text]} if isinstance(text, str) and text in vocabulary else set()
    return found & set(vocabulary.values())


def _placed_ids(part: Any) -> Iterator[int]:
    """Yield the ids that a post-processor puts around texts; see `_renumbered`."""
    if isinstance(part, list | dict):
        for one in part.values() if isinstance(part, dict) else part:
            yield from _placed_ids(one)
    if isinstance(part, dict):
        yield from part["ids"] if isinstance(part.get("ids"), list) else []
        yield from (part[key][1] for key in ("sep", "cls") if isinstance(part.get(key), list))


def _check_kind(tokenizer: Mapping[str, Any], title: str) -> None:
    model = tokenizer.get("model") or {}
    if model.get("type") != "BPE" or model.get("byte_fallback") or not isinstance(model.get("vocab"), dict):
        kind = "with byte fallback" if model.get("byte_fallback") else str(model.get("type"))[:40]
        raise ModelFileError(
            f"The vocabulary of {title} cannot be made smaller: its tokenizer ({kind}) is no byte-level BPE, and with fewer "
            "tokens it would spell other texts otherwise.",
            "Leave out --keep-vocab.",
        )


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right


def _rank(ids: Mapping[str, int], counts: Mapping[int, int]) -> Any:
    """Return the sort key of tokens: the most frequent ones first."""
    total = max(1, sum(counts.values()))
    harmonic = sum(1 / place for place in range(1, len(ids) + 1))

    def key(text: str) -> float:
        return -(counts.get(ids[text], 0) / total + _PRIOR / (harmonic * (ids[text] + 1)))

    return key


def _with_parts(text: str, parts: Mapping[str, Sequence[str]], kept: set[str]) -> set[str]:
    """Return a token and all that it is merged from, without those that are kept already."""
    found: set[str] = set()
    waiting = [text]
    while waiting:
        one = waiting.pop()
        if one not in kept and one not in found:
            found.add(one)
            waiting.extend(parts.get(one, ()))
    return found


def count_tokens(documents: Iterable[Document], n_vocab: int) -> dict[int, int]:
    """Count the tokens of documents. Returns id -> number, without those that do not occur."""
    counts = np.zeros(n_vocab, np.int64)
    for document in documents:
        np.add.at(counts, np.asarray(document.tokens, np.int64), 1)
    return {int(token): int(counts[token]) for token in counts.nonzero()[0]}


def trim_tokenizer(tokenizer: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """Return the content of tokenizer.json with only these tokens, numbered by their place in `kept`."""
    numbers = {old: new for new, old in enumerate(kept)}
    model = dict(tokenizer["model"])
    model["vocab"] = {text: numbers[old] for text, old in model["vocab"].items() if old in numbers}
    vocabulary = model["vocab"]
    model["merges"] = [
        merge for merge in model["merges"] if all(text in vocabulary for text in (*_pair(merge), "".join(_pair(merge))))
    ]
    found = {**tokenizer, "model": model}
    added = tokenizer.get("added_tokens") or []
    found["added_tokens"] = [{**entry, "id": numbers[entry["id"]]} for entry in added if entry["id"] in numbers]
    found["post_processor"] = _renumbered(tokenizer.get("post_processor"), numbers)
    return found


def _renumbered(part: Any, numbers: Mapping[int, int]) -> Any:
    """Return a post-processor with the new ids: those in lists called "ids", and those of [text, id] pairs."""
    if isinstance(part, list):
        return [_renumbered(one, numbers) for one in part]
    if not isinstance(part, dict):
        return part
    found = {key: _renumbered(value, numbers) for key, value in part.items()}
    if isinstance(part.get("ids"), list):
        found["ids"] = [numbers[old] for old in part["ids"]]
    for key in ("sep", "cls"):
        if isinstance(part.get(key), list):
            found[key] = [part[key][0], numbers[part[key][1]]]
    return found


def trim_checkpoint(
    source: Path, folder: Path, names: Iterable[str], config: Mapping[str, Any], kept: Sequence[int]
) -> dict[str, Any]:
    """Write a checkpoint's tokenizer files into another folder, with only these tokens.

    Args:
        source: checkpoint folder.
        folder: gets the files.
        names: of the files in `source`.
        config: the content of config.json.
        kept: ids that stay, ascending.

    Returns:
        The content of config.json with the new ids.
    """
    numbers = {old: new for new, old in enumerate(kept)}
    files: dict[str, Any] = {}
    for name in {*names, "generation_config.json"} - set(_REPLACED):
        path = source / name if (source / name).is_file() else folder / name  # that of the folder is transformers' own
        if not path.is_file():
            continue
        if name == "tokenizer.json":
            files[name] = trim_tokenizer(read_json(path), kept)
        elif name == "generation_config.json":
            files[name] = _renumber_config(read_json(path), numbers)
        elif name == "tokenizer_config.json":
            files[name] = _renumber_decoder(read_json(path), numbers)
        else:
            (folder / name).write_bytes(path.read_bytes())
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return _renumber_config(config, numbers) | {"vocab_size": len(kept)}


def _renumber_decoder(content: Mapping[str, Any], numbers: Mapping[int, int]) -> dict[str, Any]:
    """Return tokenizer_config.json with the new ids of added tokens, which are the keys of a table there."""
    decoder = content.get("added_tokens_decoder")
    if not isinstance(decoder, dict):
        return dict(content)
    kept = {old: entry for old, entry in decoder.items() if old.isdecimal() and int(old) in numbers}
    return {**content, "added_tokens_decoder": {str(numbers[int(old)]): entry for old, entry in kept.items()}}


def _renumber_config(config: Mapping[str, Any], numbers: Mapping[int, int]) -> dict[str, Any]:
    """Return config.json or generation_config.json with the new ids of tokens; one that has gone is left out."""

    def renumbered(value: Any) -> Any:
        if isinstance(value, list):
            return [numbers[old] for old in value if old in numbers]
        return numbers.get(value) if isinstance(value, int) else value

    found = {key: renumbered(value) if key.endswith("_token_id") else value for key, value in config.items()}
    return {key: value for key, value in found.items() if value is not None or config[key] is None}


def check_spelling(whole: Tokenizer, small: Tokenizer, title: str) -> None:
    """Compare two tokenizers on varied strings: both must give back the same text.

    Raises:
        ModelFileError: the small one spells a string otherwise.
    """
    specials = [token.content for token in whole.get_added_tokens_decoder().values()]
    for text in varied_strings(_N_STRINGS, _SEED, specials=specials):
        theirs, ours = (
            one.decode(one.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) for one in (whole, small)
        )
        if theirs != ours:
            raise ModelFileError(
                f"With fewer tokens, the tokenizer of {title} spells {text[:40]!r} otherwise.", "Leave out --keep-vocab."
            )


def _respell(document: Document, whole: Tokenizer, small: Tokenizer) -> Document | None:
    """Tokenise a conversation again with a smaller vocabulary, prompt and answer each by itself.

    Returns:
        None where its tokens end inside of a character, so that they cannot be read as text.
    """
    prompt, answer = document.tokens[: document.first], document.tokens[document.first :]
    pieces = []
    for part in (prompt, answer):
        text = whole.decode(part, skip_special_tokens=False)
        if "\ufffd" in text:
            return None
        pieces.append(small.encode(text, add_special_tokens=False).ids)
    return Document((*pieces[0], *pieces[1]), len(pieces[0]), document.is_whole)


def respell_all(documents: Iterable[Document], whole: Path, small: Path) -> list[Document]:
    """Tokenise conversations again with a smaller vocabulary; those that end inside of a character are left out.

    Args:
        documents: in tokens of the whole model.
        whole, small: checkpoint folders with the two tokenizers.
    """
    tokenizers = [Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (whole, small)]
    return [found for document in documents if (found := _respell(document, *tokenizers)) is not None]
