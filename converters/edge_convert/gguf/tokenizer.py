"""Writes the tokenizer of a checkpoint as the keys of a GGUF file.

Source: `llama_vocab` in llama.cpp (the keys).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, SpecialVocab
from tokenizers import Tokenizer

from edge.errors import ModelFileError
from edge_convert.gguf.vocabulary import CONTROL, UNKNOWN, UNUSED, Vocabulary
from edge_convert.tokenizer_files import named_ends

__all__ = ["write_tokenizer"]

_END_KINDS = ("eos", "eot", "eom")


class _SpecialTokens(SpecialVocab):  # type: ignore[misc]
    """The special tokens that gguf finds in a folder, without ids outside of the vocabulary: Llama 1 has a padding of -1."""

    def _set_special_token(self, typ: str, tid: Any) -> None:
        if isinstance(tid, int) and 0 <= tid < (self.n_vocab or 0):
            super()._set_special_token(typ, tid)


def write_tokenizer(writer: GGUFWriter, folder: Path, vocabulary: Vocabulary, chat_template: str | None) -> None:
    """Add all keys of the tokenizer, and the chat template.

    Raises:
        ModelFileError: a byte-level vocabulary names no end of a reply and has no token to stand for one.
    """
    # The library logs its findings; the result is checked afterwards by comparing ids.
    logging.getLogger("gguf.vocab").setLevel(logging.ERROR)
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    special = _SpecialTokens(folder, load_merges=vocabulary.model == "gpt2", n_vocab=len(vocabulary.tokens))
    special.chat_template = chat_template
    special.add_special_token.update(_added_around(folder))
    special.special_token_ids.update(_ends(special.special_token_ids, folder, vocabulary))
    special.add_to_gguf(writer, quiet=True)
    if vocabulary.adds_space is not None:
        writer.add_add_space_prefix(vocabulary.adds_space)


def _ends(named: Mapping[str, int], folder: Path, vocabulary: Vocabulary) -> dict[str, int]:
    """Return the ids that end a reply by the keys of GGUF, which has room for three, the tokenizer's own first.

    A file that names none gets one that is never generated: llama.cpp would end every reply at a token that it takes by its
    number, in a byte-level vocabulary a comma.
    """
    found = list(dict.fromkeys([*([named["eos"]] if "eos" in named else []), *named_ends(folder, len(vocabulary.tokens))]))
    others = [named[kind] for kind in _END_KINDS[1:] if kind in named]
    found = [*found, *(token for token in others if token not in found)]
    if not found:
        unused = [at for at, kind in enumerate(vocabulary.types) if kind == UNUSED]
        control = [at for at, kind in enumerate(vocabulary.types) if kind in (CONTROL, UNKNOWN)]
        found = [*unused[:1], *([named["pad"]] if "pad" in named else []), *control[:1]][:1]
    if not found and vocabulary.model == "gpt2":
        raise ModelFileError(
            f"{folder.name} names no token that ends a reply, and llama.cpp needs one.",
            "Add eos_token_id to config.json: the id of the token that ended each text of the training.",
        )
    return dict(zip(_END_KINDS, found, strict=False))


def _added_around(folder: Path) -> dict[str, bool]:
    """Return whether beginning and end tokens are put around a text, found by trying."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a", add_special_tokens=True).ids
    return {"bos": whole[: len(plain)] != plain, "eos": whole[-len(plain) :] != plain}
