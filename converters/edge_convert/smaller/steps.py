"""A smaller model as steps of a conversion: each can be resumed, and what it costs is known before it starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edge_convert.architectures import Architecture
from edge_convert.checkpoint import Checkpoint, open_checkpoint
from edge_convert.estimates import HERE, PYTHON, TORCH, VOCABULARY_BYTES
from edge_convert.pipeline import Step, Told, digest_of
from edge_convert.smaller.corpus import Corpus
from edge_convert.smaller.distill import METHOD
from edge_convert.smaller.layers import check_layers
from edge_convert.smaller.lora import Adapter, merge
from edge_convert.smaller.loss import ROWS_AT_ONCE
from edge_convert.smaller.recipe import Recipe, Source, Text
from edge_convert.smaller.sources import find_file, read_documents
from edge_convert.smaller.writing import ANSWERS_AT_ONCE

__all__ = [
    "Sizes",
    "adapter_key",
    "describe",
    "describe_adapter",
    "lora_step",
    "recipe_key",
    "smaller_steps",
    "student_step_name",
]

Done = Callable[[str], Path]
Work = Callable[[Path, Done, Told], None]

_BASE_MEMORY = HERE + TORCH
_PROMPT_TOKENS = 64
_CORE_FLOPS = 1.2e11  # a core in bfloat16, forward and backward; measured on one that has instructions for it
_WRITTEN_SHARE, _READ_SHARE = 0.5, 1.7  # of that speed, where the teacher writes, and where it only reads
_READ_BYTES = 2_500  # held for each number of the hidden states of one window, where 8 are read at a time
_TRAINED_BYTES = 210  # held for each number of the hidden states that a step reads, in each layer
_CHOICE_TOKENS = 8192
_DIVERGENCE_TOKENS = 1024
_PATTERNS = {"gemma2": 2, "gemma3": 6}
"""Every n-th layer sees the whole text, where a config does not name the kinds."""
_REPORT, _CHOICE = "report.json", "choice.json"


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """What the estimates and checks need to know of the teacher.

    Attributes:
        title: of the model.
        architecture: of the model.
        config: config.json where there is one already.
        n_layers: of the teacher.
        n_params: of the teacher.
        layer_params: of one layer.
        width: of the hidden state.
        n_vocab: rows of the head.
        columns: inputs of the widest matrix of a layer.
        kv_width: numbers that a token keeps in a layer's KV cache.
    """

    title: str
    architecture: Architecture
    config: Mapping[str, Any]
    n_layers: int
    n_params: int
    layer_params: int
    width: int
    n_vocab: int
    columns: int
    kv_width: int


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Which layers stay. Written beside the student that is cut.

    Attributes:
        kept: their numbers in the teacher.
        reason: how they were chosen.
        influence: of each of the teacher's layers, where it was measured.
        repaired: how many matrices were fitted.
    """

    kept: tuple[int, ...]
    reason: str
    influence: tuple[float, ...] = ()
    repaired: int = 0


def student_step_name(recipe: Recipe) -> str:
    """Name of the step whose folder is the student."""
    return f"checkpoint-{recipe.keep_layers}-layers"


def recipe_key(recipe: Recipe) -> str:
    """What of a recipe decides what comes out, the texts that it reads included.

    Raises:
        UsageError: a text is not there.
    """
    files = [find_file(source) for text in recipe.texts for source in (text.source, text.prompts) if source is not None]
    training = msgspec.structs.replace(recipe.training, save_s=0.0)
    return digest_of(
        METHOD,
        msgspec.structs.replace(recipe, title="", training=training),
        *((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files),
    )


def adapter_key(adapter: Adapter) -> str:
    """What of an adapter decides what comes out."""
    return digest_of(adapter.name, *((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in adapter.files))


def lora_step(source: Callable[[Done], Checkpoint], adapter: Adapter, sizes: Sizes) -> Step:
    """The step that merges an adapter; its folder, "merged", is a checkpoint."""

    def work(folder: Path, done: Done, told: Told) -> None:
        merge(source(done), adapter, folder, lambda share: told("", share))

    return Step(
        name="merged",
        title=f"Merge the adapter {adapter.name} (LoRA, rank {adapter.rank})",
        work=work,
        seconds=8 + sizes.n_params / 50e6,
        disk_bytes=4 * sizes.n_params,
        memory_bytes=_BASE_MEMORY + 8 * sizes.n_params + 4 * adapter.n_bytes,
        is_heavy=True,
    )


def describe_adapter(adapter: Adapter) -> dict[str, str]:
    """Lines for a manifest."""
    from edge_convert.manifest import digest_file

    return {"LoRA adapter": f"{adapter.name}, rank {adapter.rank}, SHA-256 {digest_file(adapter.files[1]).sha256[:16]}"}


def smaller_steps(
    teacher: Callable[[Done], Checkpoint],
    recipe: Recipe,
    sizes: Sizes,
    n_threads: int,
    write_manifest: Callable[[Path, Done], None],
) -> list[Step]:
    """The steps from a teacher to its student.

    Args:
        teacher: gives the checkpoint, from the folders of finished steps.
        recipe: what is wanted.
        sizes: of the teacher.
        n_threads: CPU threads.
        write_manifest: puts manifest.json beside the student.

    Raises:
        UsageError: the layers or the texts cannot be what is meant.
    """
    named = None if isinstance(recipe.layers, str) else recipe.layers
    check_layers(recipe.keep_layers, named, _kinds(sizes), sizes.title)
    for text in recipe.texts:
        for source in (text.source, text.prompts):
            if source is not None:
                find_file(source)  # said now, not after the steps before
    speed = _CORE_FLOPS * n_threads
    steps = [_text_step(teacher, recipe, sizes), _hidden_step(teacher, recipe, sizes, n_threads, speed)]
    if any(text.is_written for text in recipe.texts):
        steps.insert(0, _writing_step(teacher, recipe, sizes, n_threads, speed))
    return [
        *steps,
        _cut_step(teacher, recipe, sizes, n_threads, speed),
        _distil_step(teacher, recipe, sizes, n_threads, write_manifest),
    ]


def describe(recipe: Recipe, done: Done) -> dict[str, str]:
    """What a student was made by, as lines for a manifest, from the folders of finished steps."""
    from edge_convert.smaller.corpus import load_corpus
    from edge_convert.smaller.distill import Report

    folder = done(student_step_name(recipe))
    choice = msgspec.json.decode((folder / _CHOICE).read_bytes(), type=Choice)
    report = msgspec.json.decode((folder / _REPORT).read_bytes(), type=Report)
    texts = load_corpus(done("text")).provenance
    held_out = [
        f"{name} {report.before[name].divergence:.3f} to {report.after[name].divergence:.3f}" for name in sorted(report.after)
    ]
    return {
        "layers": f"{', '.join(map(str, choice.kept))} of the source's ({choice.reason})",
        "fitted by least squares": f"{choice.repaired} matrices on {recipe.repair_tokens} tokens" if choice.repaired else "no",
        "distilled": f"{report.steps} steps, {report.tokens} tokens, {report.seconds:.0f} s; {_terms(recipe)}",
        "texts": "; ".join(
            f"{text.name}: {text.n_tokens} tokens of {text.origin}" + (f" ({text.licence})" if text.licence else "")
            for text in texts
            if text.n_tokens
        ),
        "held-out divergence": "; ".join(held_out) or "not measured",
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


def _kinds(sizes: Sizes) -> tuple[str, ...]:
    """Kinds of attention by place, as far as they are known before the model is loaded."""
    named = sizes.config.get("layer_types")
    if isinstance(named, list) and len(named) == sizes.n_layers:
        return tuple(map(str, named))
    pattern = _PATTERNS.get(sizes.architecture.gguf, 1)
    return tuple("full_attention" if (place + 1) % pattern == 0 else "sliding_attention" for place in range(sizes.n_layers))


def _n_tokens(texts: Sequence[Text]) -> int:
    return sum(text.tokens + text.held_out_tokens for text in texts)


def _with_threads(work: Work, n_threads: int) -> Work:
    def computing(folder: Path, done: Done, told: Told) -> None:
        import torch

        torch.set_num_threads(n_threads)
        work(folder, done, told)

    return computing


# -- steps


def _writing_step(teacher: Callable[[Done], Checkpoint], recipe: Recipe, sizes: Sizes, n_threads: int, speed: float) -> Step:
    texts = [text for text in recipe.texts if text.is_written]
    wanted = _n_tokens(texts)

    def work(folder: Path, done: Done, told: Told) -> None:
        from edge_convert.smaller.prompts import built_in_prompts
        from edge_convert.smaller.writing import write_answers

        before = 0
        for text in texts:
            prompts = read_documents(text.prompts) if text.prompts else built_in_prompts()
            here, share = before, _n_tokens([text]) / wanted

            def tell(detail: str, part: float, here: float = here / wanted, share: float = share) -> None:
                told(detail, here + part * share)

            write_answers(folder, teacher(done).folder, text, prompts, recipe.training.window, recipe.training.seed, tell)
            before += _n_tokens([text])

    longest = _PROMPT_TOKENS + max((text.answer_tokens for text in texts), default=0)
    kv_bytes = 2 * ANSWERS_AT_ONCE * longest * sizes.n_layers * sizes.kv_width
    return Step(
        name="written",
        title=f"The teacher writes about {wanted:,} tokens to learn from",
        work=_with_threads(work, n_threads),
        seconds=5 + wanted * 2 * sizes.n_params / (speed * _WRITTEN_SHARE),
        disk_bytes=8 * wanted,
        memory_bytes=_BASE_MEMORY + 2 * sizes.n_params + kv_bytes + 24 * ANSWERS_AT_ONCE * sizes.n_vocab,
        is_heavy=True,
        resumes=True,
    )


def _text_step(teacher: Callable[[Done], Checkpoint], recipe: Recipe, sizes: Sizes) -> Step:
    wanted = _n_tokens(recipe.texts)

    def work(folder: Path, done: Done, told: Told) -> None:
        from edge_convert.smaller.corpus import Provenance, pack, save_corpus
        from edge_convert.smaller.writing import read_written

        source = teacher(done)
        filler = source.config.get("eos_token_id")
        filler = filler[0] if isinstance(filler, list) else filler or 0
        train, held_out, provenance = [], {}, []
        for number, text in enumerate(recipe.texts):
            told(text.name, number / len(recipe.texts))
            if text.source:
                documents = _tokenise(source.folder, read_documents(text.source))
                origin, licence = _origin(text.source), text.source.licence
            else:
                documents = read_written(done("written"), text)
                origin, licence = f"{source.name}'s own writing", ""
            parts, held = pack(documents, text, recipe.training.window, recipe.training.seed, filler)
            if len(parts[0]):
                train.append(parts)
            if len(held[0]):
                held_out[text.name] = held
            provenance.append(
                Provenance(name=text.name, origin=origin, licence=licence, n_tokens=parts[0].size, n_held_out=held[0].size)
            )
        save_corpus(folder, train, held_out, provenance)

    title = f"Tokenise {len(recipe.texts)} text{'s' if len(recipe.texts) > 1 else ''}: about {wanted:,} tokens"
    return Step(
        name="text",
        title=title,
        work=work,
        seconds=2 + wanted / 200e3,
        disk_bytes=5 * wanted,
        memory_bytes=HERE + PYTHON + VOCABULARY_BYTES * sizes.n_vocab + 60 * wanted,
        is_heavy=True,
    )


def _hidden_step(teacher: Callable[[Done], Checkpoint], recipe: Recipe, sizes: Sizes, n_threads: int, speed: float) -> Step:
    wanted = _n_tokens(recipe.texts)

    def work(folder: Path, done: Done, told: Told) -> None:
        from edge_convert.smaller.corpus import load_corpus
        from edge_convert.smaller.teacher import write_hidden

        corpus = load_corpus(done("text"))
        path = teacher(done).folder
        jobs = {".": corpus.tokens, **{name: windows for name, (windows, _) in corpus.held_out.items()}}
        total, before = sum(windows.size for windows in jobs.values()), 0
        for name, windows in jobs.items():
            (folder / name).mkdir(exist_ok=True)
            here = before
            write_hidden(
                folder / name,
                path,
                windows,
                lambda share, here=here, size=windows.size: told("", (here + share * size) / total),  # type: ignore[misc]
            )
            before += windows.size

    return Step(
        name="hidden",
        title="The teacher reads the texts",
        work=_with_threads(work, n_threads),
        seconds=3 + wanted * 2 * (sizes.n_layers * sizes.layer_params) / (speed * _READ_SHARE),
        disk_bytes=2 * sizes.width * wanted,
        memory_bytes=_BASE_MEMORY + 2 * sizes.n_params + _READ_BYTES * recipe.training.window * sizes.width,
        is_heavy=True,
        resumes=True,
    )


def _cut_step(teacher: Callable[[Done], Checkpoint], recipe: Recipe, sizes: Sizes, n_threads: int, speed: float) -> Step:
    def work(folder: Path, done: Done, told: Told) -> None:
        import torch

        from edge_convert.smaller.corpus import load_corpus
        from edge_convert.smaller.models import keep_layers, layers_of, open_model, save_model
        from edge_convert.smaller.repair import can_repair, repair

        source = teacher(done)
        model = open_model(source.folder)
        corpus = load_corpus(done("text"))
        told("choosing layers", 0.0)
        choice = _choose(model, _held_out(corpus), recipe, sizes, lambda share: told("choosing layers", share * 0.5))
        if recipe.repair_tokens and can_repair(model):
            windows = _sample(corpus.tokens, recipe.repair_tokens)
            fitted = repair(model, choice.kept, windows, lambda share: told("fitting what is left", 0.5 + share * 0.4))
            for layer, weight in fitted.items():
                layers_of(model)[layer].mlp.down_proj.weight.copy_(weight.to(torch.bfloat16))
            choice = msgspec.structs.replace(choice, repaired=len(fitted))
        save_model(keep_layers(model, choice.kept), folder, source, source.name)
        (folder / _CHOICE).write_bytes(msgspec.json.encode(choice))

    body = 2 * sizes.n_layers * sizes.layer_params
    flops = 2.5 * (_CHOICE_TOKENS + 3 * recipe.repair_tokens) * body
    if recipe.layers == "divergence":
        n_passes = sum(range(recipe.keep_layers + 1, sizes.n_layers + 1))
        share = (sizes.n_layers + recipe.keep_layers) / (2 * sizes.n_layers)
        # The head gives the logits of both models each time.
        flops += _DIVERGENCE_TOKENS * n_passes * (share * body + 4 * sizes.n_vocab * sizes.width)
    return Step(
        name="cut",
        title=f"Keep {recipe.keep_layers} of {sizes.n_layers} layers" + (", and fit them" if recipe.repair_tokens else ""),
        work=_with_threads(work, n_threads),
        seconds=8 + flops / speed,
        disk_bytes=2 * (sizes.n_params - (sizes.n_layers - recipe.keep_layers) * sizes.layer_params),
        memory_bytes=_BASE_MEMORY
        + 2 * sizes.n_params
        + _READ_BYTES * recipe.training.window * sizes.width
        + (16 * ROWS_AT_ONCE * sizes.n_vocab if recipe.layers == "divergence" else 0)
        + (4 * recipe.repair_tokens * sizes.width + 16 * sizes.columns**2 if recipe.repair_tokens else 0),
        is_heavy=True,
    )


def _distil_step(
    teacher: Callable[[Done], Checkpoint],
    recipe: Recipe,
    sizes: Sizes,
    n_threads: int,
    write_manifest: Callable[[Path, Done], None],
) -> Step:
    name, training = student_step_name(recipe), recipe.training

    def work(folder: Path, done: Done, told: Told) -> None:
        from edge_convert.smaller.corpus import load_corpus
        from edge_convert.smaller.distill import distil
        from edge_convert.smaller.models import open_model, save_model
        from edge_convert.smaller.teacher import open_hidden

        source = teacher(done)
        cut = open_checkpoint(done("cut"))
        student = open_model(cut.folder)
        corpus, hidden = load_corpus(done("text")), done("hidden")
        held_hidden = {held: open_hidden(hidden / held / "hidden.npy") for held in corpus.held_out}
        report = distil(student, corpus, open_hidden(hidden / "hidden.npy"), held_hidden, training, folder, told)
        save_model(student, folder, cut, f"{source.name}-{recipe.keep_layers}-layers")
        (folder / _REPORT).write_bytes(msgspec.json.format(msgspec.json.encode(report)))
        (folder / _CHOICE).write_bytes((cut.folder / _CHOICE).read_bytes())
        write_manifest(folder, lambda step: folder if step == name else done(step))

    trained = recipe.keep_layers * sizes.layer_params
    n_params = sizes.n_params - (sizes.n_layers - recipe.keep_layers) * sizes.layer_params
    tokens = training.batch * training.window
    flops = training.steps * tokens * (6 * trained + 6 * sizes.n_vocab * sizes.width)
    return Step(
        name=name,
        title=f"Distil: {training.steps:,} steps" if training.steps else f"Distil for {training.minutes:g} min",
        work=_with_threads(work, n_threads),
        artifact=True,
        seconds=20 + (flops / (_CORE_FLOPS * n_threads) if training.steps else 60 * training.minutes),
        disk_bytes=2 * n_params
        + 24 * trained,  # a saved state is 12 bytes a weight; the old one stays until the new one is there
        # Weights in float32 and both moments are 12 bytes each; gradients (10) are gone while held-out texts are looked at.
        memory_bytes=_BASE_MEMORY
        + 2 * n_params
        + 12 * trained
        + max(10 * trained + _TRAINED_BYTES * tokens * recipe.keep_layers * sizes.width, 16 * ROWS_AT_ONCE * sizes.n_vocab)
        + 4 * ROWS_AT_ONCE * sizes.n_vocab,
        is_heavy=True,
        resumes=True,
    )


def _choose(model: Any, tokens: Any, recipe: Recipe, sizes: Sizes, told: Callable[[float], None]) -> Choice:
    from edge_convert.smaller.layers import best_layers, layer_influence, least_divergent
    from edge_convert.smaller.models import layer_kinds

    kinds = layer_kinds(model.config)
    if not isinstance(recipe.layers, str):
        check_layers(recipe.keep_layers, recipe.layers, kinds, sizes.title)
        return Choice(kept=recipe.layers, reason="named in the recipe")
    check_layers(recipe.keep_layers, None, kinds, sizes.title)
    if recipe.layers == "divergence":
        kept = least_divergent(model, _sample(tokens, _DIVERGENCE_TOKENS), recipe.keep_layers, told)
        return Choice(kept=kept, reason="each time the layer without which the divergence was least was left out")
    influence = layer_influence(model, _sample(tokens, _CHOICE_TOKENS), told)
    best = best_layers(influence, recipe.keep_layers, kinds)
    assert best is not None  # check_layers saw to that
    return Choice(kept=best, reason="those that turn the hidden state most", influence=tuple(influence))


def _held_out(corpus: Corpus) -> Any:
    """The windows that nothing is trained on, or where a recipe holds out none, the others."""
    import numpy as np

    held = [windows for windows, _ in corpus.held_out.values()]
    return np.concatenate(held) if held else corpus.tokens


def _sample(tokens: Any, n_tokens: int) -> Any:
    """Windows from all over a corpus."""
    import numpy as np
    import torch

    n_windows = min(len(tokens), max(1, n_tokens // tokens.shape[1]))
    rows = np.linspace(0, len(tokens) - 1, n_windows).astype(int)
    return torch.from_numpy(tokens[np.unique(rows)].astype(np.int64))


def _tokenise(folder: Path, texts: Sequence[str]) -> list[Any]:
    from tokenizers import Tokenizer

    from edge_convert.smaller.corpus import Document

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    encoded = tokenizer.encode_batch([f"{text}\n\n" for text in texts])
    return [Document(tuple(entry.ids)) for entry in encoded]


def _origin(source: Source) -> str:
    """Where a text came from, without a path of this machine."""
    return f"{source.package}/{source.file}" if source.package else Path(source.file).name
