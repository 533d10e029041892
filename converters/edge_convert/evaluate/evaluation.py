"""From models to a card: the reference first, then quality side by side, then speed in rounds."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from edge.errors import StorageError, UsageError
from edge.units import reason
from edge_convert.evaluate.card import Card, Row, Speed
from edge_convert.evaluate.gate import check, check_tasks, parse_gate
from edge_convert.evaluate.jobs import LocalJobs, RayJobs
from edge_convert.evaluate.logits import find_format, is_slow, size_on_disk
from edge_convert.evaluate.measure import QualityResult
from edge_convert.evaluate.passages import TextOptions, beginnings
from edge_convert.evaluate.tasks.suite import Suite, TaskOptions, Usefulness
from edge_convert.evaluate.tasks.verdict import good_for

__all__ = ["EvaluateOptions", "evaluate"]

Progress = Callable[[str, float], None]

_TASKS_FROM = 0.4
"""Share of the progress that the rest takes where the tasks are asked, too."""


class EvaluateOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to evaluate models.

    Attributes:
        texts: how much is read.
        n_rounds: of the speed measurement; 0 measures no speed. Models that edge's evaluator computes are not timed.
        n_prefill: tokens of prefill in a round.
        n_decode: tokens of decode in a round.
        n_threads: CPU threads of one model; 0 is half of the machine's, at least 1.
        n_jobs: models at a time, for quality; 0 is as many as the threads allow.
        gate: conditions such as "top1=0.9,kl=0.1,ppl=+5%"; "" is none.
        ray: address of a Ray cluster that runs the jobs; "" runs them on this machine. Tasks always run here.
        tasks: what to ask the models beside that; None asks nothing.
    """

    texts: TextOptions = TextOptions()
    n_rounds: int = 3
    n_prefill: int = 128
    n_decode: int = 32
    n_threads: int = 0
    n_jobs: int = 0
    gate: str = ""
    ray: str = ""
    tasks: TaskOptions | None = None

    def __post_init__(self) -> None:
        if self.n_rounds < 0 or self.n_prefill < 1 or self.n_decode < 1 or self.n_threads < 0 or self.n_jobs < 0:
            raise UsageError("Rounds, tokens, threads and jobs are counted from 0 or 1.", "Use positive numbers.")


def evaluate(models: Sequence[Path], reference: Path | None, options: EvaluateOptions, on_progress: Progress) -> Card:
    """Evaluate models side by side.

    Args:
        models: checkpoint folders, .gguf files, ONNX folders or .mlpackages.
        reference: model that the others are compared with; None is the first checkpoint folder among them, else the first.
        options: see `EvaluateOptions`.
        on_progress: called with what is done, and its share of the whole (0 to 1); may raise to stop.

    Raises:
        UsageError: no model is given, or an option is out of range.
        ModelNotFoundError, ModelFileError: a path is not a model, or damaged.
        BackendUnavailableError: a package is missing, or there is no Ray cluster at that address.
        BackendError: an engine refused a model or crashed.
        StorageError: there is not enough disk space for the reference's logits.
    """
    if not models:
        raise UsageError("There is no model to evaluate.", "Name one: edge eval MODEL")
    gate = parse_gate(options.gate) if options.gate else ()
    check_tasks(gate, options.tasks.tasks if options.tasks else ())
    suite = Suite(options.tasks) if options.tasks else None
    chosen = _choose_reference(models, reference)
    paths = _names([chosen, *(path for path in models if path.resolve() != chosen.resolve())])
    n_cpus = os.cpu_count() or 2
    n_threads = options.n_threads or max(1, n_cpus // 2)
    local = LocalJobs(n_threads, options.n_jobs or max(1, n_cpus // n_threads))
    remote = RayJobs(options.ray, n_threads) if options.ray else None
    first_part = _TASKS_FROM if suite else 1.0
    try:
        results, samples = _measure(
            paths, local, remote or local, options, lambda text, share: on_progress(text, first_part * share)
        )
    finally:
        if remote is not None:
            remote.close()
    first = next(iter(paths))
    useful = _ask(suite, paths, lambda text, share: on_progress(text, first_part + (1 - first_part) * share)) if suite else {}
    quality = results[first].quality
    rows = [
        Row(
            name=name,
            format=find_format(path),
            size_bytes=size_on_disk(path),
            tool=results[name].tool,
            is_reference=name == first,
            quality=results[name].quality,
            speed=_median(samples[name]) if name in samples else None,
            splits_alike=results[name].splits_alike,
            is_part=results[name].quality.all.n_tokens < quality.all.n_tokens,
            usefulness=useful.get(name),
            good_for=good_for(useful[name]) if name in useful else "",
            failures=check(results[name].quality, gate, useful.get(name)) if name != first else (),
        )
        for name, path in paths.items()
    ]
    return Card(
        reference=first,
        n_prose=quality.prose.n_tokens,
        n_prompts=len(quality.divergence),
        n_answer=quality.n_answer,
        n_rounds=options.n_rounds,
        n_prefill=options.n_prefill,
        n_decode=options.n_decode,
        machine=(remote or local).machine,
        gate=options.gate,
        rows=tuple(rows),
    )


def _measure(
    paths: dict[str, Path], local: LocalJobs, jobs: LocalJobs | RayJobs, options: EvaluateOptions, on_progress: Progress
) -> tuple[dict[str, QualityResult], dict[str, list[Speed]]]:
    first, *others = paths
    timed = {name: path for name, path in paths.items() if not is_slow(find_format(path))}
    n_steps = 2 + len(others) + options.n_rounds * len(timed)  # the reference also answers the prompts
    done = 0

    def advance(text: str, n: int = 1) -> None:
        nonlocal done
        done += n
        on_progress(text, done / n_steps)

    on_progress(f"reference: {first}", 0.0)
    with tempfile.TemporaryDirectory(prefix="edge-eval-") as folder:
        try:
            result = local.reference(paths[first], options.texts, Path(folder))
        except OSError as error:
            raise StorageError(
                f"The reference's logits cannot be stored: {reason(error)}.",
                "Free some disk space, or read less text: --tokens",
            ) from error
        advance(f"quality of {len(others)} models" if others else "speed", 2)
        results = {first: result}
        if others:
            rest = {name: paths[name] for name in others}
            whole = dict(enumerate(result.windows))
            part = beginnings(result.windows, options.texts.n_slow)
            texts = {name: whole if name in timed else part for name in others}
            results |= jobs.qualities(rest, texts, Path(folder), lambda name: advance(f"quality: {name}"))
    if not options.n_rounds or not timed:
        return results, {}
    speed = jobs.speeds(timed, options.n_rounds, options.n_prefill, options.n_decode, lambda name: advance(f"speed: {name}"))
    return results, speed


def _ask(suite: Suite, paths: dict[str, Path], on_progress: Progress) -> dict[str, Usefulness]:
    """Ask the models that edge runs here; the first is the teacher of the others."""
    first = next(iter(paths))
    names = [name for name, path in paths.items() if not is_slow(find_format(path))]
    replies = dict(zip(names, suite.ask([paths[name] for name in names], on_progress), strict=True))
    return {name: suite.judge(own, replies.get(first) if name != first else None) for name, own in replies.items()}


def _choose_reference(models: Sequence[Path], reference: Path | None) -> Path:
    formats = {path: find_format(path) for path in models}
    if reference is not None:
        find_format(reference)
        return reference
    return next((path for path, form in formats.items() if form == "checkpoint"), models[0])


def _names(paths: Sequence[Path]) -> dict[str, Path]:
    """Name models by the last part of their paths, with the folders before it where that is ambiguous."""
    full = [path.absolute() for path in paths]
    # Packages of `edge convert` are all called model.mlpackage, in a folder named after the variant.
    stems = [path.parent.name if path.name == "model.mlpackage" else path.name.removesuffix(".gguf") for path in full]
    named: dict[str, Path] = {}
    for path, whole, stem in zip(paths, full, stems, strict=True):
        tails = [stem, *("/".join(whole.parts[-n:]) for n in range(2, len(whole.parts)))]
        others = [other for other in full if other != whole]
        named[next((tail for at, tail in enumerate(tails) if _is_unique(tail, at, stems, others)), str(whole))] = path
    if len(named) < len(paths):
        raise UsageError("A model is named twice.", "Name each model once.")
    return named


def _is_unique(tail: str, n_folders: int, stems: Sequence[str], others: Sequence[Path]) -> bool:
    """Return whether no other path ends like this; without folders, whether no other has this stem."""
    if n_folders == 0:
        return stems.count(tail) == 1
    return all("/".join(other.parts[-n_folders - 1 :]) != tail for other in others)


def _median(samples: Sequence[Speed]) -> Speed:
    load_s, prefill, decode, peak = (
        statistics.median(values) for values in zip(*map(msgspec.structs.astuple, samples), strict=True)
    )
    return Speed(load_s=load_s, prefill_tokens_per_s=prefill, decode_tokens_per_s=decode, peak_bytes=int(peak))
