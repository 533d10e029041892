"""Measures one model. Runs in a process of its own (child.py) or in a Ray task, never in the caller's process."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge.device.cost import peak_bytes
from edge_convert.evaluate.card import Speed
from edge_convert.evaluate.logits import LogitModel, open_logits
from edge_convert.evaluate.metrics import Quality, compare, summarise
from edge_convert.evaluate.passages import TextOptions, Window, make_windows, read_texts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["QualityResult", "load_reference", "measure_quality", "measure_reference", "measure_speed"]


class QualityResult(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one quality job.

    Attributes:
        quality: against the reference.
        tool: engine that computed the model.
        windows: the texts; only the reference's own result has them.
        splits_alike: whether its tokenizer gives the reference's tokens; None if it has none.
    """

    quality: Quality
    tool: str
    windows: tuple[Window, ...] = ()
    splits_alike: bool | None = None


def measure_reference(path: Path, texts: TextOptions, folder: Path, *, n_threads: int, is_safe: bool) -> QualityResult:
    """Tokenise the texts, let the reference answer, and store its logits.

    Args:
        path: the reference.
        texts: how much of them.
        folder: for the logits: float32 [n_tokens, n_vocab] of each window, as N.npy.
        n_threads: CPU threads.
        is_safe: see `open_logits`.
    """
    import numpy as np

    model = open_logits(path, n_threads=n_threads, is_safe=is_safe)
    windows = make_windows(model, path, texts)
    positions = []
    for index, window in enumerate(windows):
        logits = model.logits(window.tokens)
        np.save(folder / f"{index}.npy", logits)
        positions.append(compare(window, logits, logits))
    return QualityResult(quality=summarise(windows, positions), tool=model.tool, windows=tuple(windows), splits_alike=True)


def load_reference(folder: Path, numbers: Iterable[int]) -> list[NDArray[np.float32]]:
    """Map the logits that `measure_reference` stored of these windows."""
    import numpy as np

    return [np.load(folder / f"{number}.npy", mmap_mode="r") for number in numbers]


def measure_quality(
    path: Path, windows: Sequence[Window], reference: Sequence[NDArray[np.float32]], *, n_threads: int, is_safe: bool
) -> QualityResult:
    """Compare a model with the reference's logits, window by window.

    Args:
        path: the model.
        windows: the tokens.
        reference: for each window float32 [n_tokens or more, n_vocab].
        n_threads: CPU threads.
        is_safe: see `open_logits`.
    """
    model = open_logits(path, n_threads=n_threads, is_safe=is_safe)
    positions = [
        compare(window, theirs, model.logits(window.tokens)) for window, theirs in zip(windows, reference, strict=True)
    ]
    quality = summarise(windows, positions)
    return QualityResult(quality=quality, tool=model.tool, splits_alike=_splits_alike(model, windows))


def measure_speed(path: Path, n_prefill: int, n_decode: int, *, n_threads: int, is_safe: bool) -> Speed:
    """Load a model, prefill a prompt and decode an answer, once."""
    started = time.perf_counter()
    model = open_logits(path, n_threads=n_threads, is_safe=is_safe)
    model.start([1])  # what engines postpone until first use belongs to loading
    load_s = time.perf_counter() - started
    prompt = _prompt(model.n_vocab, n_prefill)
    started = time.perf_counter()
    logits = model.start(prompt)
    prefill_s = time.perf_counter() - started
    started = time.perf_counter()
    for _ in range(n_decode):
        logits = model.step(int(logits.argmax()))
    decode_s = time.perf_counter() - started
    return Speed(
        load_s=load_s,
        prefill_tokens_per_s=n_prefill / prefill_s,
        decode_tokens_per_s=n_decode / decode_s,
        peak_bytes=peak_bytes(),
    )


def _prompt(n_vocab: int, n_tokens: int) -> list[int]:
    """Return ids spread over the vocabulary; the time of a prefill does not depend on them."""
    return [3 + (7919 * index) % max(1, n_vocab - 3) for index in range(n_tokens)]


def _splits_alike(model: LogitModel, windows: Sequence[Window]) -> bool | None:
    """Return whether the model's own tokenizer gives the reference's tokens of the novel."""
    prose = [token for window in windows if window.kind == "prose" for token in window.tokens]
    own = model.tokenise(read_texts()[0])
    return None if own is None else own[: len(prose)] == prose
