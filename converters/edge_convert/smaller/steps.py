"""A smaller model as steps of a conversion: each can be resumed, and its cost is known before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from edge.errors import UsageError
from edge.files import parse_json, read_bytes
from edge.hashes import file_stamp
from edge.units import short_name
from edge_convert import estimates
from edge_convert.checkpoint import open_checkpoint
from edge_convert.facts import Facts
from edge_convert.manifest import digest_file
from edge_convert.pipeline import FolderOf, Step, StepProgress, Work, digest_of
from edge_convert.smaller.layers import check_ffn, check_layers
from edge_convert.smaller.lora import Adapter, check_fit, merge
from edge_convert.smaller.prompts import built_in_prompts
from edge_convert.smaller.recipe import CHOICE_TOKENS, DIVERGENCE_TOKENS, METHOD, Recipe, Text, Training
from edge_convert.smaller.records import Choice, Provenance, Report, read_provenance
from edge_convert.smaller.sources import find_file, read_documents
from edge_convert.smaller.vocabulary_steps import vocabulary_step, with_vocabulary
from edge_convert.torch_device import chosen_device, find_device

__all__ = [
    "adapter_key",
    "describe_texts",
    "flops_per_s",
    "hidden_step",
    "made_smaller",
    "merge_step",
    "merged",
    "reading_steps",
    "recipe_key",
    "smaller_steps",
    "text_steps",
    "training_seconds",
    "with_threads",
]

_CORE_FLOPS = 1.2e11  # a core in bfloat16, forward and backward; measured on one that has instructions for it
_GPU_FLOPS = {"cuda": 1e13, "mps": 2e12}  # assumed, of a small one; never measured

_DECODE_SHARE, _PREFILL_SHARE = 0.5, 1.7  # of that speed, where the teacher writes, and where it only reads
_REPORT, _CHOICE = "report.json", "choice.json"
_MAX_CHOICE_BYTES = 1 << 20


def merged(facts: Facts, adapter: Adapter) -> Facts:
    """Return the facts of a model with an adapter merged: it has no blocks of a GGUF any more."""
    return msgspec.structs.replace(
        facts,
        name=short_name(f"{facts.name}+{adapter.name}"),
        quantised=None,
        made_by="merged",
        describe=(lambda folder_of: _describe_adapter(adapter),),
    )


def made_smaller(facts: Facts, recipe: Recipe) -> Facts:
    """Return the facts of the student of a model."""
    facts = with_vocabulary(facts, recipe)
    if not recipe.is_trained:
        return facts
    n_layers = recipe.keep_layers or facts.n_layers
    n_gone = 3 * facts.width * (facts.model.inner - recipe.keep_ffn) if recipe.keep_ffn else 0
    layer_params = facts.layer_params - n_gone
    return msgspec.structs.replace(
        facts,
        name=short_name(f"{facts.name}-{recipe.label}"),
        model=msgspec.structs.replace(facts.model, inner=recipe.keep_ffn or facts.model.inner),
        n_params=facts.n_params - facts.n_layers * facts.layer_params + n_layers * layer_params,
        layer_params=layer_params,
        n_layers=n_layers,
        columns=min(facts.columns, max(recipe.keep_ffn, facts.width)) if recipe.keep_ffn else facts.columns,
        quantised=None,
        is_wide=False,
        made_by=f"checkpoint-{recipe.label}",
        describe=(*facts.describe, lambda folder_of: _describe(recipe, folder_of)),
    )


def recipe_key(recipe: Recipe) -> str:
    """Return a digest of all that decides the result of a recipe, its texts included.

    Raises:
        UsageError: a text is missing.
    """
    files = [find_file(source) for text in recipe.texts for source in (text.source, text.prompts) if source is not None]
    files += sorted(path for path in Path(recipe.begin).iterdir() if path.is_file()) if recipe.begin else []
    training = msgspec.structs.replace(recipe.training, save_s=0.0)
    recovery = msgspec.structs.replace(recipe.recovery, save_s=0.0) if recipe.recovery else None
    plain = msgspec.structs.replace(recipe, title="", training=training, recovery=recovery)
    return digest_of(METHOD, plain, *map(_stamp, files))


def adapter_key(adapter: Adapter) -> str:
    """Return a digest of all that decides the result of merging an adapter."""
    return digest_of(adapter.name, *map(_stamp, adapter.files))


def _stamp(path: Path) -> tuple[str | int, ...]:
    return path.name, *file_stamp(path.stat())


def merge_step(facts: Facts, adapter: Adapter) -> Step:
    """Plan the step that merges an adapter; its folder, "merged", is a checkpoint.

    Raises:
        ModelFileError: the adapter belongs to another model.
    """
    check_fit(adapter, facts.shapes)

    def work(folder: Path, folder_of: FolderOf, on_progress: StepProgress) -> None:
        merge(facts.open(folder_of), adapter, folder, lambda share: on_progress("", share))

    return Step(
        name="merged",
        title=f"Merge the adapter {adapter.name} (LoRA, rank {adapter.rank})",
        work=work,
        seconds=8 + facts.n_params / 50e6,
        disk_bytes=4 * facts.n_params,
        memory_bytes=estimates.merge_adapter(facts, adapter.n_bytes),
        is_heavy=True,
    )


def smaller_steps(facts: Facts, recipe: Recipe, n_threads: int) -> list[Step]:
    """Plan the steps from a teacher to its student, by a recipe with texts.

    Raises:
        UsageError: the model cannot keep these layers, or the point of a frontier is of another one.
        ModelFileError: that point is damaged.
    """
    if recipe.begin:
        _check_point(facts, recipe)
    if recipe.keep_layers:
        named = None if isinstance(recipe.layers, str) else recipe.layers
        check_layers(recipe.keep_layers, named, _layer_kinds(facts), facts.name)
    if recipe.keep_ffn:
        check_ffn(recipe.keep_ffn, facts.model.inner, facts.name)
    first = reading_steps(facts, recipe, n_threads)
    if not recipe.is_trained:
        return first
    teacher = with_vocabulary(facts, recipe)
    return [*first, _cut_step(teacher, recipe, n_threads), _distil_step(teacher, recipe, n_threads)]


def _check_point(facts: Facts, recipe: Recipe) -> None:
    """Refuse the point of a frontier that cannot be a student of this model."""
    folder = Path(recipe.begin)
    point, student = open_checkpoint(folder), made_smaller(facts, recipe)
    parse_json(folder / _CHOICE, read_bytes(folder / _CHOICE, _MAX_CHOICE_BYTES), Choice)
    parts = ("width", "n_heads", "n_kv_heads", "head_dim")
    theirs = [getattr(facts.model, part) for part in parts] + [student.n_layers, student.model.inner]
    ours = [getattr(point.model, part) for part in parts] + [point.model.n_layers, point.model.inner]
    # Fewer tokens than are asked for stay where the last ones come with too many parts.
    has_tokens = point.model.n_vocab <= student.n_vocab if recipe.keep_vocab else point.model.n_vocab == student.n_vocab
    if point.architecture != facts.architecture or ours != theirs or not has_tokens:
        raise UsageError(
            f"The point {folder.name} of the frontier is no student of {facts.name}: its sizes are others.",
            "Name the model that was searched, or search again with another --out.",
        )


def reading_steps(facts: Facts, recipe: Recipe, n_threads: int) -> list[Step]:
    """Plan the steps up to the teacher's hidden states, "hidden", over the texts, "text"; without training the first ones."""
    written = [text for text in recipe.texts if text.is_written]
    steps = [_writing_step(facts, recipe, written, n_threads)] if written and not recipe.begin else []
    if recipe.keep_vocab:
        steps.append(vocabulary_step(facts, recipe))
    if recipe.is_trained:
        teacher = with_vocabulary(facts, recipe)
        steps += [_text_step(facts, teacher, recipe), hidden_step(teacher, recipe, n_threads)]
    return steps


def text_steps(facts: Facts, recipe: Recipe, n_threads: int) -> list[Step]:
    """Plan the steps that make the texts of a recipe: what the teacher has to write, and all as tokens, "text"."""
    written = [text for text in recipe.texts if text.is_written]
    return [*([_writing_step(facts, recipe, written, n_threads)] if written else []), _text_step(facts, facts, recipe)]


def training_seconds(training: Training, trained: int, head: int, n_threads: int) -> float:
    """Estimate a training of so many weights below a head of so many."""
    flops = training.steps * training.batch * training.window * 6 * (trained + head)
    return 20 + (flops / flops_per_s(n_threads) if training.steps else 60 * training.minutes)


def describe_texts(folder_of: FolderOf) -> str:
    """Return the texts of a training, for a manifest."""
    texts = read_provenance(folder_of("text") / "corpus.json")
    return "; ".join(
        f"{text.name}: {text.n_tokens} tokens of {text.origin}" + (f" ({text.licence})" if text.licence else "")
        for text in texts
        if text.n_tokens
    )


def _describe_adapter(adapter: Adapter) -> dict[str, str]:
    return {"LoRA adapter": f"{adapter.name}, rank {adapter.rank}, SHA-256 {digest_file(adapter.files[1]).sha256[:16]}"}


def _describe(recipe: Recipe, folder_of: FolderOf) -> dict[str, str]:
    """Return the lines of a manifest that say how a student was made."""
    folder = folder_of(f"checkpoint-{recipe.label}")
    choice = msgspec.json.decode((folder / _CHOICE).read_bytes(), type=Choice)
    report = msgspec.json.decode((folder / _REPORT).read_bytes(), type=Report)
    narrowed = {"feed-forward": f"{recipe.keep_ffn} neurons in each layer, those that matter most"} if recipe.keep_ffn else {}
    return {
        "layers": f"{', '.join(map(str, choice.kept))} of the source's ({choice.reason})",
        **narrowed,
        "fitted by least squares": f"{choice.repaired} matrices on {recipe.repair_tokens} tokens" if choice.repaired else "no",
        "distilled": f"{report.steps} steps, {report.tokens} tokens, {report.seconds:.0f} s on {report.device}; "
        + _terms(recipe),
        "texts": describe_texts(folder_of),
        "held-out divergence": report.describe_held_out() or "not measured",
    }


def _terms(recipe: Recipe) -> str:
    training = recipe.training
    length = (
        f"{training.steps} steps" if training.steps else f"{training.minutes:g} minutes, so the steps depend on the machine"
    )
    return (
        f"recipe: {length}, {training.batch} windows of {training.window}, learning rate {training.lr:g}, warm-up "
        f"{training.warmup:g}, weight decay {training.weight_decay:g}, seed {training.seed}; {METHOD}"
    )


def _layer_kinds(facts: Facts) -> tuple[str, ...]:
    """Return the kind of attention of each layer."""
    return facts.model.layer_kinds


def _n_tokens(texts: Sequence[Text]) -> int:
    return sum(text.tokens + text.held_out_tokens for text in texts)


def with_threads(work: Work, n_threads: int) -> Work:
    """Return a step's work that computes with so many threads."""

    def computing(folder: Path, folder_of: FolderOf, on_progress: StepProgress) -> None:
        import torch

        torch.set_num_threads(n_threads)
        work(folder, folder_of, on_progress)

    return computing


def flops_per_s(n_threads: int) -> float:
    """Return the operations a second of the device that trains."""
    return _GPU_FLOPS.get(find_device(chosen_device())) or _CORE_FLOPS * n_threads


# -- steps


def _writing_step(facts: Facts, recipe: Recipe, texts: Sequence[Text], n_threads: int) -> Step:
    wanted, training = _n_tokens(texts), (*recipe.trainings, recipe.training)[0]  # tokens that leave need no training

    def work(folder: Path, folder_of: FolderOf, on_progress: StepProgress) -> None:
        from edge_convert.smaller.writing import write_answers

        before = 0.0
        for text in texts:
            prompts = read_documents(text.prompts) if text.prompts else built_in_prompts()
            share = _n_tokens([text]) / wanted

            def on_part(detail: str, part: float, before: float = before, share: float = share) -> None:
                on_progress(detail, before + part * share)

            teacher = facts.open(folder_of).folder
            write_answers(folder, teacher, text, prompts, training.window, training.seed, on_part)
            before += share

    return Step(
        name="written",
        title=f"The teacher writes about {wanted:,} tokens to learn from",
        work=with_threads(work, n_threads),
        seconds=5 + wanted * 2 * facts.n_params / (flops_per_s(n_threads) * _DECODE_SHARE),
        disk_bytes=8 * wanted,
        memory_bytes=estimates.write_answers(facts, max(text.answer_tokens for text in texts)),
        is_heavy=True,
        resumes=True,
    )


def _text_step(whole: Facts, facts: Facts, recipe: Recipe) -> Step:
    """Plan the step that makes windows of tokens, those of the teacher: its vocabulary may be smaller than the whole one."""
    wanted, training = _n_tokens(recipe.texts), recipe.trainings[0]

    def work(folder: Path, folder_of: FolderOf, on_progress: StepProgress) -> None:
        from edge_convert.smaller.corpus import (
            check_tokens,
            copy_corpus,
            load_corpus,
            pack,
            read_written,
            save_corpus,
            tokenise,
        )
        from edge_convert.smaller.vocabulary import respell_all

        if recipe.begin:
            copy_corpus(Path(recipe.begin).parent / "text", folder)
            check_tokens(load_corpus(folder), facts.n_vocab)
            return
        source = facts.open(folder_of)
        filler = next(iter(source.model.eos), 0)
        train, held_out, provenance = [], {}, []
        for number, text in enumerate(recipe.texts):
            on_progress(text.name, number / len(recipe.texts))
            if text.source:
                documents = tokenise(source.folder, read_documents(text.source))
                origin, licence = text.source.origin, text.source.licence
            else:
                documents = read_written(folder_of("written"), text)
                if recipe.keep_vocab:
                    documents = respell_all(documents, whole.open(folder_of).folder, source.folder)
                origin, licence = f"{source.name}'s own writing", ""
            parts, held = pack(documents, text, training.window, training.seed, filler)
            if len(parts[0]):
                train.append(parts)
            if len(held[0]):
                held_out[text.name] = held
            provenance.append(
                Provenance(name=text.name, origin=origin, licence=licence, n_tokens=parts[0].size, n_held_out=held[0].size)
            )
        save_corpus(folder, train, held_out, provenance)

    return Step(
        name="text",
        title=f"Tokenise {len(recipe.texts)} text{'s' if len(recipe.texts) > 1 else ''}: about {wanted:,} tokens",
        work=work,
        seconds=2 + wanted / 200e3,
        disk_bytes=5 * wanted,
        memory_bytes=estimates.tokenise_texts(facts, wanted),
        is_heavy=True,
    )


def hidden_step(facts: Facts, recipe: Recipe, n_threads: int, name: str = "hidden") -> Step:
    """Plan the step in which a teacher reads the texts; its folder has the hidden states, a folder for each held-out text."""
    wanted = _n_tokens(recipe.texts)

    def work(folder: Path, folder_of: FolderOf, on_progress: StepProgress) -> None:
        from edge_convert.smaller.corpus import load_corpus
        from edge_convert.smaller.teacher import write_hidden

        corpus = load_corpus(folder_of("text"))
        teacher = facts.open(folder_of).folder
        parts = {".": corpus.tokens, **{name: windows for name, (windows, _) in corpus.held_out.items()}}
        total, before = sum(windows.size for windows in parts.values()), 0
        for part, windows in parts.items():
            (folder / part).mkdir(exist_ok=True)

            def on_part(share: float, before: int = before, size: int = windows.size) -> None:
                on_progress("", (before + share * size) / total)

            write_hidden(folder / part, teacher, windows, on_part)
            before += windows.size

    body = facts.n_layers * facts.layer_params
    return Step(
        name=name,
        title="The teacher reads the texts",
        work=with_threads(work, n_threads),
        seconds=3 + wanted * 2 * body / (flops_per_s(n_threads) * _PREFILL_SHARE),
        disk_bytes=2 * facts.width * wanted,
        memory_bytes=estimates.read_texts(facts, recipe),
        is_heavy=True,
        resumes=True,
    )


def _cut_step(facts: Facts, recipe: Recipe, n_threads: int) -> Step:
    def work(folder: Path, folder_of: FolderOf, on_progress: StepProgress) -> None:
        import torch

        from edge_convert.smaller.choose_layers import choose_layers, sample_windows
        from edge_convert.smaller.corpus import load_corpus
        from edge_convert.smaller.ffn import narrow_ffn
        from edge_convert.smaller.models import copy_student, keep_layers, open_model, save_model
        from edge_convert.smaller.repair import can_repair, repair
        from edge_convert.torch_models import layers_of

        source = facts.open(folder_of)
        if recipe.begin:
            copy_student(Path(recipe.begin), folder)
            return
        model = open_model(source.folder)
        corpus = load_corpus(folder_of("text"))
        on_progress("choosing layers", 0.0)
        choice = choose_layers(
            model, corpus.held_out_tokens, recipe, facts.name, lambda share: on_progress("choosing layers", share * 0.5)
        )
        if recipe.repair_tokens and can_repair(model):
            windows = sample_windows(corpus.tokens, recipe.repair_tokens)
            fitted = repair(model, choice.kept, windows, lambda share: on_progress("fitting what is left", 0.5 + share * 0.4))
            for layer, weight in fitted.items():
                layers_of(model)[layer].mlp.down_proj.weight.copy_(weight.to(torch.bfloat16))
            choice = msgspec.structs.replace(choice, repaired=len(fitted))
        keep_layers(model, choice.kept)
        if recipe.keep_ffn:
            on_progress("narrowing the feed-forward layers", 0.6)
            windows = sample_windows(corpus.tokens, CHOICE_TOKENS)
            narrow_ffn(model, recipe.keep_ffn, windows, lambda share: on_progress("narrowing", 0.6 + share * 0.4))
        save_model(model, folder, source, source.name)
        (folder / _CHOICE).write_bytes(msgspec.json.encode(choice))

    n_layers = recipe.keep_layers or facts.n_layers
    body = 2 * facts.n_layers * facts.layer_params
    flops = 2.5 * (CHOICE_TOKENS + 3 * recipe.repair_tokens) * body
    if recipe.keep_ffn:
        flops += 2 * CHOICE_TOKENS * n_layers * facts.model.inner**2 + n_layers * facts.model.inner**3
    if recipe.keep_layers and recipe.layers == "divergence":
        n_passes = sum(range(recipe.keep_layers + 1, facts.n_layers + 1))
        share = (facts.n_layers + recipe.keep_layers) / (2 * facts.n_layers)
        # The head gives the logits of both models each time.
        flops += DIVERGENCE_TOKENS * n_passes * (share * body + 4 * facts.n_vocab * facts.width)
    return Step(
        name="cut",
        title=f"Take the point {Path(recipe.begin).name} of the frontier" if recipe.begin else _cut_title(facts, recipe),
        work=with_threads(work, n_threads),
        seconds=8 + flops / flops_per_s(n_threads),
        disk_bytes=2 * made_smaller(facts, recipe).n_params,
        memory_bytes=estimates.cut_layers(facts, recipe),
        is_heavy=True,
    )


def _cut_title(facts: Facts, recipe: Recipe) -> str:
    parts = [f"{recipe.keep_layers} of {facts.n_layers} layers"] if recipe.keep_layers else []
    parts += [f"{recipe.keep_ffn:,} of {facts.model.inner:,} feed-forward neurons"] if recipe.keep_ffn else []
    return f"Keep {' and '.join(parts) or 'all layers'}" + (", and fit them" if recipe.repair_tokens else "")


def _distil_step(facts: Facts, recipe: Recipe, n_threads: int) -> Step:
    training, student_facts = recipe.training, made_smaller(facts, recipe)
    name = student_facts.made_by

    def work(folder: Path, folder_of: FolderOf, on_progress: StepProgress) -> None:
        from edge_convert.smaller.corpus import load_corpus
        from edge_convert.smaller.distill import distil
        from edge_convert.smaller.models import open_model, save_model
        from edge_convert.smaller.teacher import open_states

        cut = open_checkpoint(folder_of("cut"))
        student = open_model(cut.folder)
        corpus = load_corpus(folder_of("text"))
        hidden, held_hidden = open_states(folder_of("hidden"), corpus.held_out)
        report = distil(student, corpus, hidden, held_hidden, training, folder, on_progress)
        save_model(student, folder, cut, f"{facts.open(folder_of).name}-{recipe.label}")
        (folder / _REPORT).write_bytes(msgspec.json.format(msgspec.json.encode(report)))
        (folder / _CHOICE).write_bytes((cut.folder / _CHOICE).read_bytes())
        student_facts.write_manifest(folder, lambda step: folder if step == name else folder_of(step), "checkpoint", "BF16", {})

    trained = student_facts.n_layers * student_facts.layer_params
    return Step(
        name=name,
        title=f"Distil: {training.steps:,} steps" if training.steps else f"Distil for {training.minutes:g} min",
        work=with_threads(work, n_threads),
        artifact=True,
        seconds=training_seconds(training, trained, facts.n_vocab * facts.width, n_threads),
        # A saved state takes 12 bytes a weight; the old one stays until the new one is complete.
        disk_bytes=2 * student_facts.n_params + 24 * trained,
        memory_bytes=estimates.distil(student_facts, recipe),
        is_heavy=True,
        resumes=True,
    )
