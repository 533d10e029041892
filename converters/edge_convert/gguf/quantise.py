"""Quantises GGUF files with llama.cpp, and proves that their tokenizer is the checkpoint's."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edge.errors import ModelFileError, UsageError
from edge.formats.gguf import GGUFHeader, read_header
from edge.formats.gguf_tables import FILE_TYPES
from edge_convert.full_disk import name_full_disk
from edge_convert.gguf.engine import run_task
from edge_convert.gguf.shards import MIN_SHARD_BYTES
from edge_convert.strings import varied_strings
from edge_convert.tokenizer_files import library_reads, load_tokenizer

__all__ = [
    "FLOATS",
    "NEED_IMATRIX",
    "QUANTISATIONS",
    "GgufOptions",
    "check_tokenizer",
    "describe_types",
    "ill_fitting_share",
    "needs_imatrix",
    "quantise",
    "type_of_weights",
]

FLOATS = ("F32", "F16", "BF16")
_FILE_TYPE = {name: number for number, name in FILE_TYPES.items()}
_NOT_OFFERED = ("MXFP4_MOE", "NVFP4", "Q1_0")  # for special models
QUANTISATIONS = tuple(name for name in FILE_TYPES.values() if name not in _NOT_OFFERED)
"""llama.cpp's names of the quantisations on offer."""

NEED_IMATRIX = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "Q2_K_S", "IQ3_XXS")
"""Of them, those with too few bits to be made without an importance matrix."""

_CHECKED_STRINGS = 2_000
_MOST_ADDED = 400
_SMALL_BLOCKS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL")
_SMALL_BLOCK, _LARGE_BLOCK = 32, 256
_SEED = 20_240_607


class GgufOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of GGUF files.

    Attributes:
        quantisations: names out of QUANTISATIONS, a file each.
        use_imatrix: weight the quantisation by an importance matrix.
        calibration: text file for it; None is the one that ships with edge.
        calibration_tokens: at most, of that text.
        imatrix: file with an importance matrix, instead of computing one.
        save_imatrix: file to store the importance matrix in; None stores it nowhere.
        shard_bytes: of the weights in a file, beyond which a result is split into several; 0 never splits.
        threads: CPU threads; 0 is all.
    """

    quantisations: tuple[str, ...] = ("Q4_K_M",)
    use_imatrix: bool = True
    calibration: Path | None = None
    calibration_tokens: int = 8_192
    imatrix: Path | None = None
    save_imatrix: Path | None = None
    shard_bytes: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        for name in self.quantisations:
            if name not in QUANTISATIONS:
                raise UsageError(f"There is no quantisation {name}.", f"Known are: {', '.join(QUANTISATIONS)}.")
            if name in NEED_IMATRIX and not self.use_imatrix:
                raise UsageError(f"{name} has too few bits to be made without an importance matrix.", "Leave out --no-imatrix.")

        if self.shard_bytes and self.shard_bytes < MIN_SHARD_BYTES:
            raise UsageError(f"A file of {self.shard_bytes:,} bytes is too small for weights.", "For example: --shard 2GB")
        if self.imatrix and self.save_imatrix:
            raise UsageError(f"{self.imatrix} is a file already.", "Leave out --save-imatrix.")
        if (self.imatrix or self.save_imatrix) and not self.use_imatrix:
            raise UsageError("An importance matrix is named, and none is to be used.", "Leave out --no-imatrix.")

    @property
    def n_threads(self) -> int:
        """CPU threads."""
        return self.threads or os.cpu_count() or 1


def needs_imatrix(options: GgufOptions) -> bool:
    """Return whether one of the quantisations uses an importance matrix."""
    return options.use_imatrix and any(name not in (*FLOATS, "Q8_0") for name in options.quantisations)


def quantise(
    base: Path,
    out: Path,
    name: str,
    options: GgufOptions,
    imatrix: Path | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> Path:
    """Quantise a GGUF file with llama.cpp.

    Args:
        base: GGUF in 16 or 32 bits.
        out: the new file.
        name: out of QUANTISATIONS.
        options: for the threads.
        imatrix: file of `compute_imatrix`, or of the user's.
        on_progress: called with the share that is done.

    Raises:
        BackendError: llama.cpp failed.
    """
    partial = out.with_name(f".{out.name}.part")
    arguments = {
        "source": str(base),
        "out": str(partial),
        "file_type": _FILE_TYPE[name],
        "threads": options.n_threads,
        "imatrix": str(imatrix) if imatrix and name not in FLOATS else None,
    }
    try:
        with name_full_disk(out.parent):
            run_task("quantise", arguments, on_progress)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return out


def _count_types(header: GGUFHeader) -> dict[str, int]:
    """Return the number of weights of each type in the matrices of a GGUF file."""
    counts: dict[str, int] = {}
    for tensor in header.tensors:
        if len(tensor.shape) > 1:
            counts[tensor.type] = counts.get(tensor.type, 0) + math.prod(tensor.shape)
    return counts


def type_of_weights(header: GGUFHeader) -> str:
    """Return the name of a GGUF file's mix of types; where its matrices contradict that name, the type that most of them have.

    A mix such as Q4_K_M is contradicted by matrices that are all floats, a plain type by matrices without it.
    """
    counts = _count_types(header)
    named = header.file_type
    is_plain = named in (*FLOATS, *_SMALL_BLOCKS)
    is_true = named in counts if is_plain else not set(counts) <= {*FLOATS}
    return named if is_true or not counts else max(counts, key=lambda name: counts[name])


def describe_types(path: Path) -> str:
    """Return the share of each weight type in a GGUF file: "Q4_K 71 %, Q6_K 29 %"."""
    counts = _count_types(read_header(path))
    total = sum(counts.values())
    return ", ".join(f"{kind} {count / total:.0%}" for kind, count in sorted(counts.items(), key=lambda item: -item[1]))


def ill_fitting_share(name: str, shapes: Iterable[Sequence[int]]) -> float:
    """Return the share of a model's weights in matrices whose width is no multiple of a quantisation's block.

    llama.cpp takes a type with smaller blocks for them, or 16 bits.

    Args:
        name: of the quantisation.
        shapes: of all tensors, rows first.
    """
    if name in FLOATS:
        return 0.0
    block = _SMALL_BLOCK if name in _SMALL_BLOCKS else _LARGE_BLOCK
    matrices = [shape for shape in shapes if len(shape) == 2]
    total = sum(map(math.prod, matrices))
    return sum(math.prod(shape) for shape in matrices if shape[1] % block) / total if total else 0.0


def check_tokenizer(
    gguf: Path,
    folder: Path,
    n_vocab: int,
    on_progress: Callable[[float], None] | None = None,
    count: int = _CHECKED_STRINGS,
    *,
    name: str = "",
    is_own: bool = False,
    hint: str = "This tokenizer cannot be carried over to GGUF. Convert to another format: --to onnx or --to coreml",
) -> int:
    """Compare llama.cpp's token ids with those of the checkpoint's tokenizer on varied strings, and on each added token.

    Args:
        gguf: the file.
        folder: of the checkpoint that it was made from, or the other way round; its weights are not read.
        n_vocab: rows of the embedding.
        on_progress: called with the share that is done.
        count: number of varied strings.
        name: of the model, for messages; "" is the folder's.
        is_own: edge wrote tokenizer.json; others go through transformers, which corrects some.
        hint: what to do where they differ.

    Returns:
        The number of varied strings.

    Raises:
        ModelFileError: some are tokenised differently; the first is shown.
    """
    from tokenizers import Tokenizer

    from edge_convert.gguf.vocabulary import SPACE, read_vocabulary

    if is_own:
        with library_reads(f"tokenizer.json of {folder.name}"):
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    else:
        tokenizer = load_tokenizer(folder).backend_tokenizer
    tokens = {index: token for index, token in tokenizer.get_added_tokens_decoder().items() if index < n_vocab}
    vocabulary = read_vocabulary(folder, n_vocab)
    added = _added_tokens(tokens, SPACE if vocabulary.model == "llama" else "")
    texts = varied_strings(
        count,
        _SEED,
        specials=added,
        is_normalised=tokenizer.normalizer is not None,
        has_ascii_spaces=any(token.rstrip for token in tokens.values()),
        has_marks=vocabulary.pre not in ("tekken", "gpt-4o"),
    )
    texts += [f"a{token}b {token} c" for token in added]
    theirs = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    ours = run_task("tokenise", {"model": str(gguf), "texts": texts}, on_progress)
    different = [index for index, (ids, others) in enumerate(zip(ours, theirs, strict=True)) if ids != others]
    if different:
        first = different[0]
        raise ModelFileError(
            f"llama.cpp tokenises {len(different)} of {len(texts)} test strings differently from {name or folder.name}'s "
            f"tokenizer.json, for example {texts[first][:60]!r}: {_around_difference(ours[first], theirs[first])}.",
            hint,
        )
    return count


def _added_tokens(tokens: Mapping[int, Any], space: str) -> list[str]:
    """Return the added tokens as people write them, `space` as a space; of many some that are spread over all."""
    texts = [tokens[index].content for index in sorted(tokens)]
    texts = [text.replace(space, " ") for text in texts] if space else texts
    return texts[:: -(-len(texts) // _MOST_ADDED)] if texts else []


def _around_difference(ours: Sequence[int], theirs: Sequence[int]) -> str:
    """Return the ids of both from just before the first that differs."""
    place = next(
        (at for at, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other), min(len(ours), len(theirs))
    )
    start = max(0, place - 2)
    return f"from token {start} on {list(ours[start : start + 8])} and {list(theirs[start : start + 8])}"
