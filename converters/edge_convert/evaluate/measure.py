"""Jobs: a model and a measure. They run in a process of their own (child.py) or in a Ray task."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge.device.cost import peak_bytes
from edge.errors import EdgeError, ModelFileError
from edge_convert.evaluate.card import Speed
from edge_convert.evaluate.logits import LogitModel, open_logits
from edge_convert.evaluate.metrics import Quality, compare, summarise
from edge_convert.evaluate.passages import TextOptions, Window, make_windows, read_texts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Job", "Problem", "QualityJob", "QualityResult", "ReferenceJob", "Reply", "SpeedJob", "load_reference"]


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


class Problem(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """An error of a job: the name of its class in edge.errors, message and hint."""

    kind: str
    message: str
    hint: str = ""

    @classmethod
    def of(cls, error: EdgeError) -> Problem:
        """Describe an error."""
        return cls(kind=type(error).__name__, message=error.message, hint=error.hint)


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a job: one of the three."""

    quality: QualityResult | None = None
    speed: Speed | None = None
    problem: Problem | None = None


class Job(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A model to be measured.

    Attributes:
        path: of the model.
        n_threads: CPU threads.
        is_safe: see `open_logits`.
    """

    path: str
    n_threads: int
    is_safe: bool = False

    def open(self) -> LogitModel:
        """Load the model."""
        return open_logits(Path(self.path), n_threads=self.n_threads, is_safe=self.is_safe)

    def finite(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits that are numbers, as they are.

        Raises:
            ModelFileError: some are not, so nothing can be compared.
        """
        import numpy as np

        if not np.isfinite(logits).all():
            raise ModelFileError(
                f"{Path(self.path).name} computes logits that are not numbers.",
                "Its weights are damaged, or too large for its types: convert it again, or leave it out.",
            )
        return logits


class ReferenceJob(Job, frozen=True, kw_only=True, tag=True):
    """Tokenises the texts, lets the reference answer, and stores its logits.

    Attributes:
        texts: how much of them.
        folder: for the logits: float32 [n_tokens, n_vocab] of each window, as N.npy.
    """

    texts: TextOptions
    folder: str

    def run(self) -> Reply:
        """Measure the reference against itself."""
        import numpy as np

        model = self.open()
        windows = make_windows(model, Path(self.path), self.texts)
        positions = []
        for index, window in enumerate(windows):
            logits = self.finite(model.logits(window.tokens))
            np.save(Path(self.folder) / f"{index}.npy", logits)
            positions.append(compare(window, logits, logits))
        quality = summarise(windows, positions)
        return Reply(quality=QualityResult(quality=quality, tool=model.tool, windows=tuple(windows), splits_alike=True))


class QualityJob(Job, frozen=True, kw_only=True, tag=True):
    """Compares a model with the reference's logits.

    Attributes:
        windows: the tokens, by the windows' numbers.
        folder: of the reference's logits.
    """

    windows: dict[int, Window]
    folder: str

    def run(self, reference: Sequence[NDArray[np.float32]] | None = None) -> Reply:
        """Measure quality; `reference` replaces the logits in the folder."""
        windows, theirs = list(self.windows.values()), reference or load_reference(Path(self.folder), self.windows)
        model = self.open()
        largest = max(max(window.tokens) for window in windows)
        if largest >= model.n_vocab:
            raise ModelFileError(
                f"{Path(self.path).name} has {model.n_vocab:,} tokens, and the reference's texts have the token {largest:,}.",
                "Only models of one vocabulary can be compared: give another reference, --against.",
            )
        own_logits = (self.finite(model.logits(window.tokens)) for window in windows)
        positions = [compare(*one) for one in zip(windows, theirs, own_logits, strict=True)]
        prose = [token for window in windows if window.kind == "prose" for token in window.tokens]
        own = model.tokenise(read_texts()[0])
        splits_alike = None if own is None else own[: len(prose)] == prose
        quality = summarise(windows, positions)
        return Reply(quality=QualityResult(quality=quality, tool=model.tool, splits_alike=splits_alike))


class SpeedJob(Job, frozen=True, kw_only=True, tag=True):
    """Loads a model, prefills a prompt of `n_prefill` tokens and decodes `n_decode` tokens, once."""

    n_prefill: int
    n_decode: int

    def run(self) -> Reply:
        """Measure speed and memory."""
        started = time.perf_counter()
        model = self.open()
        model.start([1])  # work that engines postpone until first use belongs to loading
        load_s = time.perf_counter() - started
        # Any ids: the time of a prefill does not depend on them.
        prompt = [3 + (7919 * index) % max(1, model.n_vocab - 3) for index in range(self.n_prefill)]
        started = time.perf_counter()
        logits = model.start(prompt)
        prefill_s = time.perf_counter() - started
        started = time.perf_counter()
        for _ in range(self.n_decode):
            logits = model.step(int(logits.argmax()))
        decode_s = time.perf_counter() - started
        speed = Speed(
            load_s=load_s,
            prefill_tokens_per_s=self.n_prefill / prefill_s,
            decode_tokens_per_s=self.n_decode / decode_s,
            peak_bytes=peak_bytes(),
        )
        return Reply(speed=speed)


def load_reference(folder: Path, numbers: Iterable[int]) -> list[NDArray[np.float32]]:
    """Map the logits that a ReferenceJob stored of these windows."""
    import numpy as np

    return [np.load(folder / f"{number}.npy", mmap_mode="r") for number in numbers]
