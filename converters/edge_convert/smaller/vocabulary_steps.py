"""A smaller vocabulary as a step of a conversion: the whole model with fewer tokens, which is the teacher from then on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge.errors import ModelFileError, UsageError
from edge.files import read_json
from edge.units import short_name
from edge_convert import checkpoint, estimates
from edge_convert.facts import Facts
from edge_convert.pipeline import FolderOf, Step, StepProgress
from edge_convert.shapes import EMBEDDING, HEAD
from edge_convert.smaller.recipe import Recipe

if TYPE_CHECKING:
    from edge_convert.smaller.corpus import Document

__all__ = ["TOKENS", "VOCABULARY", "vocabulary_step", "with_vocabulary"]

VOCABULARY = "vocabulary"
TOKENS = "tokens.json"
_MAX_BYTES = 16 << 20


def with_vocabulary(facts: Facts, recipe: Recipe) -> Facts:
    """Return the facts of a model with a smaller vocabulary, by a recipe; without one, the model's own."""
    if not recipe.keep_vocab or facts.made_by == VOCABULARY:
        return facts
    if recipe.keep_vocab >= facts.n_vocab:
        raise UsageError(
            f"{facts.name} has {facts.n_vocab:,} tokens and cannot keep {recipe.keep_vocab:,}.", "Keep fewer: --keep-vocab"
        )
    shapes = {
        name: (recipe.keep_vocab, *shape[1:]) if name in (EMBEDDING, HEAD) else shape for name, shape in facts.shapes.items()
    }
    n_gone = sum((facts.n_vocab - recipe.keep_vocab) * facts.width for name in shapes if name in (EMBEDDING, HEAD))
    made_by = VOCABULARY if recipe.is_trained else f"checkpoint-{recipe.label}"
    return msgspec.structs.replace(
        facts,
        name=facts.name if recipe.is_trained else short_name(f"{facts.name}-{recipe.label}"),
        model=msgspec.structs.replace(facts.model, n_vocab=recipe.keep_vocab),
        shapes=shapes,
        n_params=facts.n_params - n_gone,
        largest=max(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in shapes.values()),
        n_vocab=recipe.keep_vocab,
        quantised=None,
        made_by=made_by,
        describe=(*facts.describe, lambda folder_of: _describe(made_by, folder_of)),
    )


def vocabulary_step(facts: Facts, recipe: Recipe) -> Step:
    """Plan the step that makes a model's vocabulary smaller.

    Args:
        facts: of the whole model.
        recipe: how many tokens stay; they are counted in its texts.
    """
    small = with_vocabulary(facts, recipe)

    def work(folder: Path, folder_of: FolderOf, on_progress: StepProgress) -> None:
        from tokenizers import Tokenizer

        from edge_convert.smaller.models import keep_tokens, open_model, save_model
        from edge_convert.smaller.vocabulary import check_spelling, choose_tokens, count_tokens, named_tokens
        from edge_convert.tokenizer_files import without_rowless

        source = facts.open(folder_of)
        if recipe.begin:
            point = Path(recipe.begin)
            kept = _read_tokens(point.parent / TOKENS, facts.n_vocab, checkpoint.open_checkpoint(point).model.n_vocab)
        else:
            counts = count_tokens(_documents(source.folder, recipe, folder_of), facts.n_vocab)
            on_progress("choosing tokens", 0.3)
            content = without_rowless(checkpoint.read_json(source.folder / "tokenizer.json"), facts.n_vocab)
            named = named_tokens(source.folder, content, facts.name)
            kept = choose_tokens(content, counts, recipe.keep_vocab, facts.name, named)
        model = keep_tokens(open_model(source.folder, "float32" if facts.is_wide else "bfloat16"), kept)
        name = source.name if recipe.is_trained else small.name
        save_model(model, folder, source, name, kept)
        on_progress("comparing tokenizers", 0.8)
        whole, trimmed = (Tokenizer.from_file(str(one / "tokenizer.json")) for one in (source.folder, folder))
        check_spelling(whole, trimmed, facts.name)
        (folder / TOKENS).write_text(json.dumps(kept), encoding="ascii")
        if not recipe.is_trained:
            kind = "F32" if facts.is_wide else "BF16"
            own = lambda step: folder if step == small.made_by else folder_of(step)  # noqa: E731
            small.write_manifest(folder, own, "checkpoint", kind, {})

    return Step(
        name=small.made_by,
        title=f"Keep {recipe.keep_vocab:,} of {facts.n_vocab:,} tokens",
        work=work,
        artifact=not recipe.is_trained,
        seconds=10 + facts.n_params / 60e6,
        disk_bytes=(4 if facts.is_wide else 2) * small.n_params,
        memory_bytes=estimates.trim_vocabulary(facts),
        is_heavy=True,
    )


def _read_tokens(path: Path, n_vocab: int, size: int) -> list[int]:
    """Read the tokens that stay from the folder of a frontier."""
    kept = read_json(path, list[int], _MAX_BYTES)
    if len(kept) != size or kept != sorted(set(kept)) or not 0 <= kept[0] <= kept[-1] < n_vocab:
        raise ModelFileError(f"{path} does not name {size:,} of {n_vocab:,} tokens.", "Search again: --minutes 60 --force")
    return kept


def _documents(teacher: Path, recipe: Recipe, folder_of: FolderOf) -> Iterable[Document]:
    """Yield the texts of a recipe in the tokens of the whole model."""
    from edge_convert.smaller.corpus import read_written, tokenise
    from edge_convert.smaller.sources import read_documents

    for text in recipe.texts:
        if text.source:
            yield from tokenise(teacher, read_documents(text.source))
        else:
            yield from read_written(folder_of("written"), text)


def _describe(made_by: str, folder_of: FolderOf) -> dict[str, str]:
    kept = json.loads((folder_of(made_by) / TOKENS).read_bytes())
    return {"vocabulary": f"{len(kept)} tokens of the source's stay; the teacher's distribution is renormalised over them"}
