"""The last points of a search as GGUF in one layout: speed beside the teacher's, and questions answered as it does."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np
from tokenizers import Tokenizer

from edge_convert.checkpoint import Checkpoint
from edge_convert.evaluate.jobs import LocalJobs
from edge_convert.evaluate.tasks import measure_facts
from edge_convert.evaluate.tasks.asks import AnswerOptions
from edge_convert.frontier.points import Point
from edge_convert.gguf.quantise import GgufOptions, quantise
from edge_convert.gguf.tensors import lossless_precision, write_gguf
from edge_convert.smaller.corpus import Corpus

__all__ = ["Measured", "growth_of", "measure"]

TEACHER = "teacher"
_N_ROUNDS, _N_PREFILL, _N_DECODE = 3, 128, 64


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Points with their measures.

    Attributes:
        points: as given, with speed and answers.
        machine: that speed was measured on.
        decode, prefill: tokens per second of the teacher.
    """

    points: list[Point]
    machine: str
    decode: float
    prefill: float


def growth_of(corpus: Corpus, whole: Path, small: Path) -> float:
    """Return how many tokens the held-out texts take with a smaller tokenizer, over those with the whole one.

    Args:
        corpus: in tokens of the small one.
        whole, small: checkpoint folders.
    """
    tokenizers = [Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (whole, small)]
    texts = [tokenizers[1].decode(row, skip_special_tokens=True) for row in np.asarray(corpus.held_out_tokens).tolist()]
    n_whole, n_small = (sum(len(tokenizer.encode(text).ids) for text in texts) for tokenizer in tokenizers)
    return n_small / max(1, n_whole)


def measure(
    folder: Path,
    teacher: Checkpoint,
    students: Mapping[str, Checkpoint],
    points: list[Point],
    options: GgufOptions,
    growth: float,
    on_progress: Callable[[str, float], None],
) -> Measured:
    """Measure points.

    Args:
        folder: for GGUF files, which do not stay.
        teacher: with all of its tokens.
        students: name -> checkpoint.
        points: those of other names are returned as they are.
        options: the first quantisation is the layout.
        growth: see `Frontier.growth`.
        on_progress: called with what is done, and its share of the whole.
    """
    models = {TEACHER: teacher, **students}
    files: dict[str, Path] = {}
    for number, (name, checkpoint) in enumerate(models.items()):
        on_progress(f"{name} as {options.quantisations[0]}", 0.3 * number / len(models))
        files[name] = _as_gguf(folder, name, checkpoint, options)
    jobs = LocalJobs(options.n_threads, 1)
    n_done = 0

    def on_speed(name: str) -> None:
        nonlocal n_done
        n_done += 1
        on_progress(f"speed: {name}", 0.3 + 0.3 * n_done / (len(files) * _N_ROUNDS))

    samples = jobs.speeds(files, _N_ROUNDS, _N_PREFILL, _N_DECODE, on_speed)
    decode = {name: statistics.median(speed.decode_tokens_per_s for speed in found) for name, found in samples.items()}
    prefill = {name: statistics.median(speed.prefill_tokens_per_s for speed in found) for name, found in samples.items()}
    on_progress("questions: teacher", 0.6)
    quiet = AnswerOptions(n_threads=options.n_threads)
    _, answers = measure_facts(files[TEACHER], options=quiet)
    found = []
    for number, point in enumerate(points):
        if point.name in students:
            on_progress(f"questions: {point.name}", 0.7 + 0.3 * number / len(points))
            result, _ = measure_facts(files[point.name], answers, options=quiet)
            point = msgspec.structs.replace(
                point,
                decode=decode[point.name] / decode[TEACHER] / growth,
                prefill=prefill[point.name] / prefill[TEACHER] / growth,
                decode_tokens_per_s=decode[point.name],
                prefill_tokens_per_s=prefill[point.name],
                answers_kept=result.kept.value if result.kept else None,
                n_answers=result.kept.n if result.kept else 0,
            )
        found.append(point)
    for path in files.values():
        path.unlink()
    return Measured(points=found, machine=jobs.machine, decode=decode[TEACHER], prefill=prefill[TEACHER])


def _as_gguf(folder: Path, name: str, checkpoint: Checkpoint, options: GgufOptions) -> Path:
    """Write a checkpoint in the layout, without an importance matrix: speed does not depend on one."""
    base, path = folder / f"{name}-base.gguf", folder / f"{name}.gguf"
    write_gguf(checkpoint, base, lossless_precision(checkpoint), lambda share: None)
    plain = msgspec.structs.replace(options, use_imatrix=False, quantisations=options.quantisations[:1])
    quantise(base, path, options.quantisations[0], plain, None, lambda share: None)
    base.unlink()
    return path
