"""Recovery as steps of a conversion: what is read once, and the fitting and training of each quantised GGUF."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from edge.errors import UsageError
from edge_convert import estimates
from edge_convert.facts import Facts, Request
from edge_convert.manifest import Manifest
from edge_convert.pipeline import FolderOf, Step, StepProgress
from edge_convert.smaller.recipe import Recipe, Training
from edge_convert.smaller.records import Report
from edge_convert.smaller.steps import describe_texts, flops_per_s, hidden_step, text_steps, training_seconds, with_threads

__all__ = [
    "HIDDEN",
    "RECOVERED",
    "REPORT",
    "check_recoverable",
    "describe_recovery",
    "fit_seconds",
    "fit_step",
    "fit_tokens",
    "reading_steps",
    "recovery_step",
]

RECOVERED = ("Q4_0", "Q4_1", "IQ4_NL")
"""GGUF quantisations whose blocks can be trained."""

_LEAST_FIT_TOKENS, _MOST_FIT_TOKENS = 16_384, 65_536
_FIT_FLOPS = 18  # for each weight and token
HIDDEN, REPORT = "recover-hidden", "recovery.json"
"""The step with the teacher's states, and the file that says how a recovery went."""

_FILE = "trained.gguf"


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
    return [*texts, hidden_step(facts, recipe, n_threads, HIDDEN)]


def fit_seconds(facts: Facts, n_tokens: int, n_threads: int, more_flops: float = 0.0) -> float:
    """Estimate fitting; `more_flops` are those beside moments, gradients and error feedback."""
    return 10 + (_FIT_FLOPS * n_tokens * facts.n_params + more_flops) / flops_per_s(n_threads)


def fit_tokens(facts: Facts, training: Training, n_threads: int) -> int:
    """Return how many tokens blocks are fitted on: as many as take about as long as the training, within limits.

    Where the training has steps instead of minutes, so that it is the same on every machine, this is too.
    """
    if not training.minutes:
        return _LEAST_FIT_TOKENS
    affordable = 60 * training.minutes * flops_per_s(n_threads) / (_FIT_FLOPS * facts.n_params)
    return max(_LEAST_FIT_TOKENS, min(int(affordable) // 4096 * 4096, _MOST_FIT_TOKENS))


def fit_step(facts: Facts, recipe: Recipe, name: str, plain: str, n_threads: int) -> Step:
    """Plan the step that fits the blocks of a quantised GGUF once more, before they are trained.

    Args:
        facts: of the unquantised model.
        recipe: with a recovery.
        name: of the quantisation.
        plain: step whose folder has the quantised file.
        n_threads: to compute with.
    """
    assert recipe.recovery is not None
    n_tokens = fit_tokens(facts, recipe.recovery, n_threads)
    file_name = f"{facts.name}-{name}.gguf"

    def work(folder: Path, folder_of: FolderOf, on_progress: StepProgress) -> None:
        from edge_convert.recover.fit import fit_blocks
        from edge_convert.recover.gguf_blocks import GgufBlocks
        from edge_convert.smaller.choose_layers import sample_windows
        from edge_convert.smaller.corpus import load_corpus

        file, checkpoint = folder / file_name, facts.open(folder_of)
        shutil.copyfile(folder_of(plain) / file_name, file)
        tokens = sample_windows(load_corpus(folder_of("text")).tokens, n_tokens)
        fit_blocks(GgufBlocks(file, checkpoint), checkpoint, tokens, lambda share: on_progress("", share))

    return Step(
        name=f"fitted-{name}",
        title=f"Fit the blocks of {name} to the model, layer by layer",
        work=with_threads(work, n_threads),
        seconds=fit_seconds(facts, n_tokens, n_threads),
        disk_bytes=facts.n_params,
        memory_bytes=estimates.fit_blocks(facts, n_tokens),
        is_heavy=True,
    )


def recovery_step(facts: Facts, recipe: Recipe, name: str, plain: str, fitted: str, n_threads: int) -> Step:
    """Plan the step that recovers a quantised GGUF.

    Args:
        facts: of the unquantised model.
        recipe: with texts.
        name: of the quantisation.
        plain: step whose folder has the file as llama.cpp quantised it.
        fitted: step whose folder has the file to begin with.
        n_threads: to train with.
    """
    training = recipe.recovery
    assert training is not None
    file_name = f"{facts.name}-{name}.gguf"

    def work(folder: Path, folder_of: FolderOf, on_progress: StepProgress) -> None:
        from edge_convert.recover.gguf_blocks import GgufBlocks
        from edge_convert.recover.train import recover
        from edge_convert.smaller.corpus import load_corpus
        from edge_convert.smaller.teacher import open_states

        corpus = load_corpus(folder_of("text"))
        hidden, held_hidden = open_states(folder_of(HIDDEN), corpus.held_out)
        # Under another name until it is whole: a run that is killed while it writes begins with the fitted file again.
        trained = folder / _FILE
        shutil.copyfile(folder_of(fitted) / file_name, trained)
        checkpoint = facts.open(folder_of)
        report = recover(
            GgufBlocks(trained, checkpoint),
            checkpoint,
            corpus,
            hidden,
            held_hidden,
            training,
            folder,
            on_progress,
        )
        trained.rename(folder / file_name)
        (folder / REPORT).write_bytes(msgspec.json.format(msgspec.json.encode(report)))
        quantised = msgspec.json.decode((folder_of(plain) / "manifest.json").read_bytes(), type=Manifest)
        n_fitted = fit_tokens(facts, training, n_threads)
        lines = {**quantised.recipe, **describe_recovery(report, recipe, folder_of, n_fitted)}
        facts.write_manifest(folder, folder_of, "gguf", name, lines)

    trained = facts.n_layers * facts.layer_params
    length = f"for {training.minutes:g} min" if training.minutes else f"in {training.steps:,} steps"
    return Step(
        name=f"gguf-{name}",
        title=f"Recover {name} {length}",
        work=with_threads(work, n_threads),
        artifact=True,
        seconds=training_seconds(training, trained, facts.n_vocab * facts.width, n_threads),
        disk_bytes=2 * facts.n_params + 24 * trained,
        memory_bytes=estimates.recover(facts, recipe),
        is_heavy=True,
        resumes=True,
    )


def describe_recovery(report: Report, recipe: Recipe, folder_of: FolderOf, n_fitted: int) -> dict[str, str]:
    """Return the lines of a manifest that say how a recovery went."""
    training = recipe.recovery
    assert training is not None
    kept = "" if report.is_nearer else "; so the fitted blocks were kept as they were before the training"
    return {
        "blocks fitted": f"with error feedback, on at most {n_fitted:,} tokens",
        "recovered": f"{report.steps} steps, {report.tokens} tokens, {report.seconds:.0f} s; {training.batch} windows of "
        f"{training.window}, learning rate {training.lr:g} steps of the grid, seed {training.seed}",
        "recovered on": describe_texts(folder_of),
        "held-out divergence of the recovery": (report.describe_held_out() or "not measured") + kept,
    }
