"""Recovery of Core ML's palettes as steps of a conversion: they are fitted, then trained, before the package is built."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from edge_convert import estimates
from edge_convert.facts import Facts
from edge_convert.pipeline import FolderOf, Step, StepProgress
from edge_convert.recover.steps import HIDDEN, REPORT, describe_recovery, fit_seconds, fit_tokens
from edge_convert.smaller.recipe import Recipe
from edge_convert.smaller.records import Report
from edge_convert.smaller.steps import training_seconds, with_threads

__all__ = ["describe_palettes", "fit_palettes_step", "palettes_of", "train_palettes_step"]

_FITTED, _TRAINED, _PALETTES = "fitted-ane", "trained-ane", "palettes"
_PART = "palettes.part"
_TURNS = 3
"""Times that fitting finds the best values for codes."""


def fit_palettes_step(facts: Facts, recipe: Recipe, bits: int, n_threads: int) -> Step:
    """Plan the step that fits palettes layer by layer.

    Args:
        facts: of the unquantised model.
        recipe: with a recovery.
        bits: of a palette.
        n_threads: to compute with.
    """
    assert recipe.recovery is not None
    n_tokens = fit_tokens(facts, recipe.recovery, n_threads)

    def work(folder: Path, folder_of: FolderOf, on_progress: StepProgress) -> None:
        from edge_convert.recover.fit import fit_blocks
        from edge_convert.recover.palettes import PaletteFiles, assign_palettes
        from edge_convert.smaller.choose_layers import sample_windows
        from edge_convert.smaller.corpus import load_corpus

        checkpoint = facts.open(folder_of)
        (folder / _PALETTES).mkdir()
        files = PaletteFiles(folder / _PALETTES, checkpoint, bits)
        tokens = sample_windows(load_corpus(folder_of("text")).tokens, n_tokens)
        fit_blocks(files, checkpoint, tokens, lambda share: on_progress("", share), assign_palettes)

    # Values are fitted with a table of the weights that use them, which takes as many columns as there are values.
    flops = _TURNS * facts.n_layers * facts.layer_params * facts.width * 2 * (1 << bits)
    return Step(
        name=_FITTED,
        title="Fit palettes to the model, layer by layer",
        work=with_threads(work, n_threads),
        seconds=fit_seconds(facts, n_tokens, n_threads, flops),
        disk_bytes=facts.n_params,
        memory_bytes=estimates.fit_blocks(facts, n_tokens),
        is_heavy=True,
    )


def train_palettes_step(facts: Facts, recipe: Recipe, bits: int, n_threads: int) -> Step:
    """Plan the step that trains fitted palettes.

    Args:
        facts: of the unquantised model.
        recipe: with texts.
        bits: of a palette.
        n_threads: to train with.
    """
    training = recipe.recovery
    assert training is not None

    def work(folder: Path, folder_of: FolderOf, on_progress: StepProgress) -> None:
        from edge_convert.recover.palettes import PaletteFiles
        from edge_convert.recover.train import recover
        from edge_convert.smaller.corpus import load_corpus
        from edge_convert.smaller.teacher import open_states

        corpus, checkpoint = load_corpus(folder_of("text")), facts.open(folder_of)
        hidden, held_hidden = open_states(folder_of(HIDDEN), corpus.held_out)
        # Under another name until they are whole: a run that is killed while it writes begins with the fitted ones again.
        part = folder / _PART
        shutil.copytree(folder_of(_FITTED) / _PALETTES, part, dirs_exist_ok=True)
        report = recover(
            PaletteFiles(part, checkpoint, bits), checkpoint, corpus, hidden, held_hidden, training, folder, on_progress
        )
        part.rename(folder / _PALETTES)
        (folder / REPORT).write_bytes(msgspec.json.format(msgspec.json.encode(report)))

    trained = facts.n_layers * facts.layer_params
    length = f"for {training.minutes:g} min" if training.minutes else f"in {training.steps:,} steps"
    return Step(
        name=_TRAINED,
        title=f"Recover palettes {length}",
        work=with_threads(work, n_threads),
        seconds=training_seconds(training, trained, facts.n_vocab * facts.width, n_threads),
        disk_bytes=facts.n_params + 24 * trained,
        memory_bytes=estimates.recover(facts, recipe),
        is_heavy=True,
        resumes=True,
    )


def palettes_of(folder_of: FolderOf) -> Path:
    """Return the folder of the finished palettes."""
    return folder_of(_TRAINED) / _PALETTES


def describe_palettes(facts: Facts, recipe: Recipe, n_threads: int, folder: Path, folder_of: FolderOf) -> dict[str, str]:
    """Copy the report of a recovery into the folder of a result, and return the lines of its manifest."""
    assert recipe.recovery is not None
    content = (folder_of(_TRAINED) / REPORT).read_bytes()
    (folder / REPORT).write_bytes(content)
    n_fitted = fit_tokens(facts, recipe.recovery, n_threads)
    lines = describe_recovery(msgspec.json.decode(content, type=Report), recipe, folder_of, n_fitted)
    return {"palettes fitted": lines.pop("blocks fitted"), **lines}
