"""Recovery as steps of a conversion: what is read once, and the fitting and training of each target."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from edge.errors import UsageError
from edge_convert import estimates
from edge_convert.facts import Facts, Request
from edge_convert.pipeline import FolderOf, Step, StepProgress
from edge_convert.recover.targets import REPORT, Target
from edge_convert.smaller.recipe import Recipe, Training
from edge_convert.smaller.records import Report
from edge_convert.smaller.steps import describe_texts, flops_per_s, hidden_step, text_steps, training_seconds, with_threads

__all__ = [
    "RECOVERED",
    "check_recoverable",
    "describe_recovery",
    "fit_tokens",
    "reading_steps",
    "recovery_steps",
]

RECOVERED = ("Q4_0", "Q4_1", "IQ4_NL")
"""GGUF quantisations whose blocks can be trained."""

_LEAST_FIT_TOKENS, _MOST_FIT_TOKENS = 16_384, 65_536
_FIT_FLOPS = 18  # for each weight and token
_HIDDEN = "recover-hidden"
"""The step with the teacher's states."""
_PART = "trained.part"
"""File or folder that is trained, until it is whole."""


def check_recoverable(facts: Facts, request: Request) -> None:
    """Refuse results that cannot be recovered.

    Raises:
        UsageError: other formats are asked for, a type whose scales are quantised themselves, or layers of other parts.
    """
    if any(len(shape) > 2 or ".experts." in name or "shared_mlp" in name for name, shape in facts.shapes.items()):
        raise UsageError(
            f"{facts.architecture.title} cannot be recovered: its layers have experts, convolutions or joined matrices.",
            "Leave out --recover-minutes, and name a type with more bits: --quant Q5_K_M",
        )
    if set(request.formats) == {"coreml"}:
        _check_variants(request)
        return
    if set(request.formats) != {"gguf"}:
        raise UsageError(
            "Only GGUF files and Core ML's variant ane are recovered, one format at a time.",
            "Recover one first: --to gguf --quant Q4_0. Converted to ONNX or Core ML (--variants gpu) it keeps its blocks, and "
            "OpenVINO runs it as it is.",
        )
    others = [name for name in request.gguf.quantisations if name not in RECOVERED]
    if others:
        raise UsageError(
            f"{', '.join(others)} cannot be recovered: training needs plain blocks of one scale.",
            f"Choose among {', '.join(RECOVERED)}: --quant Q4_0",
        )


def _check_variants(request: Request) -> None:
    if set(request.coreml_variants) != {"ane"}:
        raise UsageError(
            "Of Core ML's variants, only the palettes of ane are recovered.",
            "Name it alone: --variants ane. For gpu, recover a GGUF (--to gguf --quant Q4_0) and convert that.",
        )
    if request.gguf.calibration:
        raise UsageError(
            "A calibration text has no effect on recovered palettes: they are fitted on the texts of the recovery.",
            "Leave out --calibration, or name the text to fit and train on: --distill-text FILE",
        )


def reading_steps(facts: Facts, recipe: Recipe, n_threads: int) -> list[Step]:
    """Plan the steps before a recovery: texts, unless the model was made smaller with them, and the teacher's states."""
    texts = [] if recipe.is_trained else text_steps(facts, recipe, n_threads)
    return [*texts, hidden_step(facts, recipe, n_threads, _HIDDEN)]


def fit_tokens(facts: Facts, training: Training, n_threads: int) -> int:
    """Return how many tokens blocks are fitted on: as many as take about as long as the training, within limits.

    Where the training has steps instead of minutes, so that it is the same on every machine, this is too.
    """
    if not training.minutes:
        return _LEAST_FIT_TOKENS
    affordable = 60 * training.minutes * flops_per_s(n_threads) / (_FIT_FLOPS * facts.n_params)
    return max(_LEAST_FIT_TOKENS, min(int(affordable) // 4096 * 4096, _MOST_FIT_TOKENS))


def recovery_steps(facts: Facts, recipe: Recipe, target: Target, n_threads: int) -> list[Step]:
    """Plan the two steps of a recovery.

    Args:
        facts: of the unquantised model.
        recipe: with a recovery.
        target: to recover.
        n_threads: to compute with.
    """
    return [_fit_step(facts, recipe, target, n_threads), _train_step(facts, recipe, target, n_threads)]


def _fit_step(facts: Facts, recipe: Recipe, target: Target, n_threads: int) -> Step:
    """Plan the step that fits what is quantised to the model, before it is trained."""
    assert recipe.recovery is not None
    n_tokens = fit_tokens(facts, recipe.recovery, n_threads)

    def work(folder: Path, folder_of: FolderOf, on_progress: StepProgress) -> None:
        from edge_convert.recover.fit import fit_blocks
        from edge_convert.smaller.choose_layers import sample_windows
        from edge_convert.smaller.corpus import load_corpus

        path, checkpoint = folder / target.path, facts.open(folder_of)
        target.begin(path, folder_of)
        tokens = sample_windows(load_corpus(folder_of("text")).tokens, n_tokens)
        choose = target.assign() if target.assign else None
        fit_blocks(target.open(path, checkpoint), checkpoint, tokens, lambda share: on_progress("", share), choose)

    return Step(
        name=target.fitted,
        title=f"Fit {target.name} to the model, layer by layer",
        work=with_threads(work, n_threads),
        seconds=10 + (_FIT_FLOPS * n_tokens * facts.n_params + target.extra_flops) / flops_per_s(n_threads),
        disk_bytes=facts.n_params,
        memory_bytes=estimates.fit_blocks(facts, n_tokens),
        is_heavy=True,
    )


def _train_step(facts: Facts, recipe: Recipe, target: Target, n_threads: int) -> Step:
    """Plan the step that trains what was fitted."""
    training = recipe.recovery
    assert training is not None

    def work(folder: Path, folder_of: FolderOf, on_progress: StepProgress) -> None:
        from edge_convert.recover.train import recover
        from edge_convert.smaller.corpus import load_corpus
        from edge_convert.smaller.teacher import open_states

        corpus, checkpoint = load_corpus(folder_of("text")), facts.open(folder_of)
        hidden, held_hidden = open_states(folder_of(_HIDDEN), corpus.held_out)
        # Under another name until it is whole: a run that is killed while it writes begins with what was fitted again.
        part = folder / _PART
        fitted = folder_of(target.fitted) / target.path
        if fitted.is_dir():
            shutil.copytree(fitted, part, dirs_exist_ok=True)
        else:
            shutil.copyfile(fitted, part)
        report = recover(target.open(part, checkpoint), checkpoint, corpus, hidden, held_hidden, training, folder, on_progress)
        path = folder / target.path
        if path.is_dir():  # this step was killed behind the next line
            shutil.rmtree(path)
        part.replace(path)
        (folder / REPORT).write_bytes(msgspec.json.format(msgspec.json.encode(report)))
        if target.finish:
            target.finish(folder, folder_of, describe_recovery(facts, recipe, folder, folder_of, n_threads))

    n_trained = facts.n_layers * facts.layer_params
    length = f"for {training.minutes:g} min" if training.minutes else f"in {training.steps:,} steps"
    return Step(
        name=target.trained,
        title=f"Recover {target.name} {length}",
        work=with_threads(work, n_threads),
        artifact=target.finish is not None,
        seconds=training_seconds(training, n_trained, facts.n_vocab * facts.width, n_threads),
        disk_bytes=2 * facts.n_params + 24 * n_trained,
        memory_bytes=estimates.recover(facts, recipe),
        is_heavy=True,
        resumes=True,
    )


def describe_recovery(facts: Facts, recipe: Recipe, trained: Path, folder_of: FolderOf, n_threads: int) -> dict[str, str]:
    """Return the lines of a manifest that say how a recovery went; `trained` is the folder of what was trained."""
    training = recipe.recovery
    assert training is not None
    report = msgspec.json.decode((trained / REPORT).read_bytes(), type=Report)
    kept = "" if report.is_nearer else "; so the fitted weights were kept as they were before the training"
    return {
        "fitted": f"with error feedback, on at most {fit_tokens(facts, training, n_threads):,} tokens",
        "recovered": f"{report.steps} steps, {report.tokens} tokens, {report.seconds:.0f} s; {training.batch} windows of "
        f"{training.window}, learning rate {training.lr:g} steps of the grid, seed {training.seed}",
        "recovered on": describe_texts(folder_of),
        "held-out divergence of the recovery": (report.describe_held_out() or "not measured") + kept,
    }
