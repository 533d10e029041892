"""What is measured of one model. Runs in a process of its own (child.py) or in a Ray task, never in the caller's process."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge_convert.evaluate.logits import open_logits
from edge_convert.evaluate.metrics import Quality, compare, summarise
from edge_convert.evaluate.passages import TextOptions, Window, make_windows, read_texts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["QualityResult", "SpeedSample", "load_reference", "measure_quality", "measure_reference", "measure_speed"]


class QualityResult(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one quality job.

    Attributes:
        quality: against the reference.
        tool: what computed the model.
        windows: what was read; only the reference's own result has it.
        splits_alike: whether the model's tokenizer splits the texts as the reference's does; None where it brings none.
    """

    quality: Quality
    tool: str
    windows: tuple[Window, ...] = ()
    splits_alike: bool | None = None


class SpeedSample(msgspec.Struct, frozen=True, kw_only=True):
    """One round of one model, in a fresh process.

    Attributes:
        load_s: from opening the file to the end of a first step over one token.
        prefill_tokens_per_s: reading a prompt from an empty KV.
        decode_tokens_per_s: one token at a time after that prompt.
        peak_bytes: most memory that was resident in the process, libraries included.
    """

    load_s: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    peak_bytes: int


def measure_reference(path: Path, texts: TextOptions, folder: Path, *, n_threads: int, is_safe: bool) -> QualityResult:
    """Tokenise the texts, let the reference answer, and keep its logits.

    Args:
        path: the reference.
        texts: how much is read.
        folder: where the logits go: float32 [n_tokens, n_vocab] for each window, as N.npy.
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
    """The logits that `measure_reference` kept of these windows, without reading them into memory yet."""
    import numpy as np

    return [np.load(folder / f"{number}.npy", mmap_mode="r") for number in numbers]


def measure_quality(
    path: Path, windows: Sequence[Window], reference: Sequence[NDArray[np.float32]], *, n_threads: int, is_safe: bool
) -> QualityResult:
    """Hold a model to the reference's logits, window by window.

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


def measure_speed(path: Path, n_prefill: int, n_decode: int, *, n_threads: int, is_safe: bool) -> SpeedSample:
    """Load a model, read a prompt, write an answer, once."""
    started = time.perf_counter()
    model = open_logits(path, n_threads=n_threads, is_safe=is_safe)
    model.start([1])  # what engines put off until they are used belongs to loading
    load_s = time.perf_counter() - started
    prompt = _prompt(model.n_vocab, n_prefill)
    started = time.perf_counter()
    logits = model.start(prompt)
    prefill_s = time.perf_counter() - started
    started = time.perf_counter()
    for _ in range(n_decode):
        logits = model.step(int(logits.argmax()))
    decode_s = time.perf_counter() - started
    return SpeedSample(
        load_s=load_s,
        prefill_tokens_per_s=n_prefill / prefill_s,
        decode_tokens_per_s=n_decode / decode_s,
        peak_bytes=_peak_bytes(),
    )


def _prompt(n_vocab: int, n_tokens: int) -> list[int]:
    """Ids spread over the vocabulary: what is in the prompt makes no difference to how long reading it takes."""
    return [3 + (7919 * index) % max(1, n_vocab - 3) for index in range(n_tokens)]


def _splits_alike(model: Any, windows: Sequence[Window]) -> bool | None:
    """Whether the model's own tokenizer gives the beginning of the novel as the reference's did."""
    prose = [token for window in windows if window.kind == "prose" for token in window.tokens]
    own = model.tokenise(read_texts()[0])
    return None if own is None else own[: len(prose)] == prose


def _peak_bytes() -> int:
    import resource

    if sys.platform == "linux":
        # Linux hands the peak of the process that started this one down in ru_maxrss; this line is of this program alone.
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
