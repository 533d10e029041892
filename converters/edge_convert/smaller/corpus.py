"""The texts of a recipe as windows of tokens: some to train on, some held out.

    tokens.npy    int32 [n_windows, window]
    counted.npy   bool, same shape: whether the token after this one is learned; a prompt is read, its answer is learned
    held-NAME.npy, held-NAME-counted.npy
    corpus.json   the origin of all of it

A document is either trained on or held out, never split between the two.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from tokenizers import Tokenizer

from edge.errors import ModelFileError, UsageError
from edge.units import reason
from edge_convert.smaller.recipe import Text
from edge_convert.smaller.records import Provenance, read_provenance

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "Corpus",
    "Document",
    "check_tokens",
    "copy_corpus",
    "load_corpus",
    "pack",
    "read_written",
    "save_corpus",
    "tokenise",
]

Windows = tuple["NDArray[np.int32]", "NDArray[np.bool_]"]


class Document(msgspec.Struct, frozen=True):
    """One text as tokens.

    Attributes:
        tokens: of the text.
        first: index of the first token that is learned, after the prompt.
        is_whole: it begins a window of its own (a conversation), instead of following the document before.
    """

    tokens: tuple[int, ...]
    first: int = 0
    is_whole: bool = False


class Corpus(msgspec.Struct, frozen=True):
    """A corpus on disk.

    Attributes:
        tokens: int32 [n_windows, window].
        counted: bool, same shape.
        held_out: name -> the same two.
        provenance: of each text.
    """

    tokens: Any
    counted: Any
    held_out: dict[str, tuple[Any, Any]]
    provenance: tuple[Provenance, ...]

    @property
    def held_out_tokens(self) -> Any:
        """All held-out windows; those to train on where none are held out."""
        held = [windows for windows, _ in self.held_out.values()]
        return np.concatenate(held) if held else self.tokens


def pack(documents: Sequence[Document], text: Text, window: int, seed: int, filler: int) -> tuple[Windows, Windows]:
    """Pack documents into windows: those to train on, and those that are held out.

    Args:
        documents: of one text.
        text: for the numbers of tokens; documents are not repeated to reach them.
        window: tokens of a window.
        seed: of the order.
        filler: token that fills the last window; never learned.

    Raises:
        UsageError: the documents do not fill one window.
    """
    # Of a conversation whose prompt fills the window, nothing would be learned, and a mean over nothing is no number.
    shuffled = [document for document in documents if not document.is_whole or document.first <= window]
    random.Random(seed).shuffle(shuffled)  # noqa: S311  # an order, no secret
    stream = iter(shuffled)
    parts = []
    for wanted in (text.held_out_tokens, text.tokens):
        tokens, counted = _fill(stream, -(-wanted // window), window, filler)
        if wanted and not len(tokens):
            raise UsageError(f"The text {text.name} is too short to train on and to hold out a part.", "Give a longer one.")
        parts.append((np.asarray(tokens, np.int32).reshape(-1, window), np.asarray(counted, np.bool_).reshape(-1, window)))
    return parts[1], parts[0]


def _fill(stream: Iterable[Document], n_windows: int, window: int, filler: int) -> tuple[list[list[int]], list[list[bool]]]:
    """Fill up to `n_windows`. A conversation begins a window of its own, and the beginning of the next one fills it up."""
    tokens: list[list[int]] = []
    counted: list[list[bool]] = []
    line: list[int] = []
    learned: list[bool] = []
    waiting: tuple[list[int], list[bool]] | None = None

    def close() -> None:
        n_missing = window - len(line)
        tokens.append(line[:window] + [filler] * n_missing)
        counted.append(learned[:window] + [False] * n_missing)

    for document in stream if n_windows else ():
        ids = list(document.tokens)
        # Token i predicts token i + 1, so an answer that begins at `first` is learned from first - 1 on.
        marks = [index >= document.first - 1 for index in range(len(ids))]
        if document.is_whole:
            if waiting is not None:
                line, learned = waiting[0] + ids, waiting[1] + marks
                close()
            waiting = ids, marks
            if len(tokens) >= n_windows:
                return tokens, counted
            continue
        line, learned = line + ids, learned + marks
        while len(line) >= window:
            rest = line[window:], learned[window:]
            line, learned = line[:window], learned[:window]
            close()
            line, learned = rest
            if len(tokens) >= n_windows:
                return tokens, counted
    if waiting is not None:
        line, learned = waiting
        close()
    elif len(line) > window // 2 or (line and not tokens):
        close()
    return tokens, counted


def save_corpus(folder: Path, train: Sequence[Windows], held_out: dict[str, Windows], provenance: Sequence[Provenance]) -> None:
    """Write windows into a folder."""
    np.save(folder / "tokens.npy", np.concatenate([tokens for tokens, _ in train]))
    np.save(folder / "counted.npy", np.concatenate([counted for _, counted in train]))
    for name, (tokens, counted) in held_out.items():
        np.save(folder / f"held-{name}.npy", tokens)
        np.save(folder / f"held-{name}-counted.npy", counted)
    (folder / "corpus.json").write_bytes(msgspec.json.format(msgspec.json.encode(list(provenance))))


def copy_corpus(source: Path, folder: Path) -> None:
    """Copy a corpus that `save_corpus` wrote into another folder."""
    for path in [*source.glob("*.npy"), source / "corpus.json"]:
        shutil.copyfile(path, folder / path.name)


def load_corpus(folder: Path) -> Corpus:
    """Read a corpus that `save_corpus` wrote.

    Raises:
        ModelFileError: a file is missing or damaged.
    """
    provenance = tuple(read_provenance(folder / "corpus.json"))
    held_out = {
        entry.name: _load_windows(folder, f"held-{entry.name}", f"held-{entry.name}-counted")
        for entry in provenance
        if entry.n_held_out
    }
    return Corpus(*_load_windows(folder, "tokens", "counted"), held_out, provenance)


def _load_windows(folder: Path, tokens: str, counted: str) -> Windows:
    try:
        found, marks = (np.load(folder / f"{name}.npy") for name in (tokens, counted))
        if found.ndim != 2 or not found.size or found.shape != marks.shape or (found.dtype, marks.dtype) != (np.int32, bool):
            raise ValueError("its windows are of another shape")
    except (OSError, ValueError, EOFError) as error:
        raise ModelFileError(
            f"{folder / tokens}.npy cannot be used: {reason(error)}.", "Delete that folder, and run the command again."
        ) from error
    return found, marks


def check_tokens(corpus: Corpus, n_vocab: int) -> None:
    """Refuse a corpus with tokens that a model does not have.

    Raises:
        ModelFileError: it has some.
    """
    for windows in (corpus.tokens, *(windows for windows, _ in corpus.held_out.values())):
        if windows.min() < 0 or windows.max() >= n_vocab:
            raise ModelFileError(
                f"The texts of the frontier have tokens beyond the {n_vocab:,} of the model.",
                "Search again: --minutes 60 --force",
            )


def tokenise(folder: Path, texts: Sequence[str]) -> list[Document]:
    """Tokenise texts with the tokenizer of a checkpoint folder, each with an empty line behind it."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    encoded = tokenizer.encode_batch([f"{text}\n\n" for text in texts])
    return [Document(tuple(entry.ids)) for entry in encoded]


def read_written(folder: Path, text: Text) -> list[Document]:
    """Read the answers that were written for a text."""
    files = sorted(folder.glob(f"{text.name}-?????.json"))
    return [document for file in files for document in msgspec.json.decode(file.read_bytes(), type=list[Document])]
