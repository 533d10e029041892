"""From a source and what is wanted to a plan: which steps each format takes, and what they cost."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import msgspec

from edge.errors import ModelFileError, UsageError
from edge.formats.gguf import read_header
from edge_convert import estimates
from edge_convert.architectures import FORMATS, Architecture, Format
from edge_convert.card_step import card_step
from edge_convert.checkpoint import Checkpoint, open_checkpoint
from edge_convert.evaluate.logits import is_slow
from edge_convert.gguf.imatrix import calibration_chunks, compute_imatrix, read_calibration
from edge_convert.gguf.quantise import GgufOptions, check_tokenizer, needs_imatrix, quantise
from edge_convert.gguf.read_back import checkpoint_from_gguf, find_gguf_architecture
from edge_convert.gguf.tensors import lossless_precision, write_gguf
from edge_convert.inputs import Input
from edge_convert.manifest import FileEntry, digest_file, make_manifest, tool_versions, write_manifest
from edge_convert.pipeline import Plan, Step, digest_of
from edge_convert.smaller.lora import Adapter, check_fit
from edge_convert.smaller.recipe import Recipe, with_texts
from edge_convert.smaller.steps import (
    Sizes,
    adapter_key,
    describe,
    describe_adapter,
    lora_step,
    recipe_key,
    smaller_steps,
    student_step_name,
)

__all__ = ["Request", "make_plan"]

_BY_BITS = {4: "Q4_K_M", 5: "Q5_K_M", 6: "Q6_K", 8: "Q8_0", 16: "F16"}
_CORE_BYTES_S = 40e6  # weights a core quantises in a second, in 16 bits; measured on a slow one
_CORE_CALIBRATION_S = 6e-11  # seconds a weight and token
_TOOLS: dict[Format, tuple[str, ...]] = {
    "gguf": ("gguf", "llama_cpp_python", "numpy"),
    "onnx": ("onnx", "onnxruntime", "onnxruntime-genai", "torch", "transformers"),
    "coreml": ("coremltools", "torch", "transformers", "numpy"),
}
_SMALLER_TOOLS = ("torch", "transformers", "peft", "safetensors")


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What is wanted.

    Attributes:
        formats: to make.
        bits: a weight: 4, 5, 6, 8 or 16. ONNX knows 4, 8 and 16, Core ML 4; the variant fp16 has no bits to choose.
        gguf: quantisations and calibration; its quantisations are chosen by `bits` where none are named.
        coreml_variants: see edge_convert.coreml.export.CoreMLOptions.
        coreml_context: cache rows of a Core ML package.
        coreml_palette_bits: see CoreMLOptions.
        card: measure what came out against the source.
        coreml_stateful: whether it keeps them in a state.
        force: replace artifacts that are there.
        smaller: make the model smaller first, by this recipe.
        adapter: merge this adapter first, before anything is made smaller.
    """

    formats: tuple[Format, ...] = ("gguf",)
    bits: int = 4
    gguf: GgufOptions = GgufOptions(quantisations=())
    coreml_variants: tuple[Literal["gpu", "ane", "fp16"], ...] = ("gpu", "ane")
    coreml_context: int = 2048
    coreml_palette_bits: Literal[4, 6] = 6
    card: bool = True
    coreml_stateful: bool = True
    force: bool = False
    smaller: Recipe | None = None
    adapter: Adapter | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.formats if name not in FORMATS]
        if unknown or not self.formats:
            raise UsageError(f"There is no format {', '.join(unknown) or 'named'}.", f"Known are: {', '.join(FORMATS)}.")
        if self.bits not in _BY_BITS:
            raise UsageError(f"{self.bits} bits a weight is not offered.", f"Known are: {', '.join(map(str, _BY_BITS))}.")


class _Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan needs to know of its source before a step has run.

    Where the model is changed first, a second one of these stands for what is exported: `made_by` names the step whose folder
    is its checkpoint, `describe` says in a manifest how it was made, and there are no blocks of the source any more to carry
    over. `is_wide` says whether the checkpoint's file is in float32.
    """

    input: Input
    architecture: Architecture
    name: str
    n_params: int
    largest: int
    f16_bytes: int
    quantised: str | None
    source_quantised: str | None
    licence: str | None
    sizes: Sizes
    shapes: dict[str, tuple[int, ...]]
    is_wide: bool
    made_by: str = ""
    describe: tuple[Callable[[Callable[[str], Path]], dict[str, str]], ...] = ()


def make_plan(source: Input, out: Path, request: Request) -> Plan:
    """Work out the steps of a conversion. Nothing is written.

    Args:
        source: checkpoint folder or GGUF file.
        out: folder for the artifacts.
        request: what is wanted.

    Raises:
        UsageError: an option is out of range.
        ModelFileError: the source is damaged, not whole or of an unknown architecture, or cannot become a format.
    """
    facts = _look(source)
    missing = [form for form in request.formats if form not in facts.architecture.formats]
    if missing:
        raise ModelFileError(
            f"{facts.architecture.title} cannot become {' or '.join(missing)}.", "docs/convert.md shows what can become what."
        )
    if "gguf" in request.formats and not request.gguf.quantisations:
        gguf = msgspec.structs.replace(request.gguf, quantisations=(_BY_BITS[request.bits],))
        request = msgspec.structs.replace(request, gguf=gguf)
    steps = [_hash_step(facts)]
    is_changed = request.smaller is not None or request.adapter is not None
    only_copies = request.formats == ("gguf",) and set(request.gguf.quantisations) == {facts.quantised} and not request.card
    if source.kind == "gguf" and (is_changed or not only_copies):
        steps.append(_read_step(facts))
    packages = [package for form in request.formats for package in _TOOLS[form]]
    whole = exported = facts
    if request.adapter:
        steps.append(_merge_step(facts, request.adapter))
        whole = exported = _merged(facts, request.adapter)
    if request.smaller:
        recipe = with_texts(request.smaller, facts.n_params)
        request = msgspec.structs.replace(request, smaller=recipe)
        steps += _smaller_steps(whole, request)
        exported = _made_smaller(whole, recipe)
    if is_changed:
        packages += _SMALLER_TOOLS
    for form in dict.fromkeys(request.formats):
        steps += _STEPS[form](exported, request)
    measured = [step for step in steps if step.artifact]
    if request.card and measured:
        # A student is held to its teacher, so that the card shows what dropping layers costs, too.
        steps.append(
            card_step(
                lambda done: _open(whole, done).folder, measured, whole.name, whole.n_params, _card_bytes(whole, measured)
            )
        )
    digest = digest_of(_identity(source), request_key(request), tool_versions(*packages))
    return Plan(
        title=f"{facts.name} ({facts.architecture.title}, {facts.n_params / 1e6:,.0f} million weights)",
        out=out,
        digest=digest,
        steps=tuple(steps),
        notes=tuple(_notes(facts, request)),
        f16_bytes=facts.f16_bytes,
        force=request.force,
    )


def request_key(request: Request) -> str:
    """What of a request decides the bytes that come out."""
    is_calibrated = request.gguf.use_imatrix or "coreml" in request.formats
    calibration = read_calibration(request.gguf.calibration) if is_calibrated else ""
    plain = msgspec.structs.replace(request, force=False, smaller=None, adapter=None)
    changes = [recipe_key(request.smaller)] if request.smaller else []
    changes += [adapter_key(request.adapter)] if request.adapter else []
    gguf = msgspec.structs.replace(plain.gguf, calibration=None, threads=0, max_buffer_bytes=0)
    return str(msgspec.structs.replace(plain, gguf=gguf)) + digest_of(calibration) + "".join(changes)


def _look(source: Input) -> _Facts:
    if source.kind == "checkpoint":
        opened = open_checkpoint(source.path, source=source.source, licence=source.licence)
        shapes = {name: info.shape for name, info in opened.tensors.items()}
        return _Facts(
            input=source,
            architecture=opened.architecture,
            name=opened.name,
            n_params=opened.n_params,
            largest=max(map(math.prod, shapes.values())),
            f16_bytes=opened.f16_bytes,
            quantised=opened.source_quantised,
            source_quantised=opened.source_quantised,
            licence=opened.licence,
            sizes=_sizes(opened.name, opened.architecture, opened.config, shapes),
            shapes=shapes,
            is_wide=all(info.dtype == "F32" for info in opened.tensors.values()),
        )
    header = read_header(source.path)
    in_file = header.metadata.get("general.license")
    name = source.path.stem.removesuffix(f".{header.file_type}").removesuffix(f"-{header.file_type}")
    quantised = None if header.file_type in ("F32", "F16", "BF16") else header.file_type
    architecture = find_gguf_architecture(header, source.path.name)
    # As a checkpoint names them, rows first; llama.cpp's file writes the sizes the other way round.
    shapes = {tensor.name.replace("blk.", "model.layers."): tuple(reversed(tensor.shape)) for tensor in header.tensors}
    config = {
        "num_hidden_layers": header.n_layer,
        "hidden_size": header.n_embd,
        "vocab_size": header.n_vocab,
        "max_position_embeddings": header.n_ctx_train,
    }
    return _Facts(
        input=source,
        architecture=architecture,
        name=name,
        n_params=header.n_params,
        largest=max(math.prod(tensor.shape) for tensor in header.tensors),
        f16_bytes=2 * header.n_params,
        quantised=quantised,
        source_quantised=quantised,
        licence=source.licence or (in_file if isinstance(in_file, str) else None),
        sizes=_sizes(name, architecture, config, shapes),
        shapes={},
        is_wide=quantised is not None,
    )


def _sizes(name: str, architecture: Architecture, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Sizes:
    n_layers = config["num_hidden_layers"]
    layers = {tensor: shape for tensor, shape in shapes.items() if tensor.startswith("model.layers.")}
    in_layers = sum(map(math.prod, layers.values()))
    keys = [shape[0] for tensor, shape in layers.items() if re.search(r"\.(k_proj|attn_k)\.weight$", tensor)]
    return Sizes(
        title=name,
        architecture=architecture,
        config=config,
        n_layers=n_layers,
        n_params=sum(map(math.prod, shapes.values())),
        layer_params=in_layers // n_layers,
        width=config["hidden_size"],
        n_vocab=config["vocab_size"],
        columns=max((shape[1] for shape in layers.values() if len(shape) == 2), default=config["hidden_size"]),
        kv_width=2 * max(keys, default=config["hidden_size"]),
    )


def _merged(facts: _Facts, adapter: Adapter) -> _Facts:
    """What there is once an adapter is merged: no block of a GGUF is what it was."""
    return msgspec.structs.replace(
        facts,
        name=f"{facts.name}+{adapter.name}",
        quantised=None,
        made_by="merged",
        describe=(lambda done: describe_adapter(adapter),),
    )


def _made_smaller(facts: _Facts, recipe: Recipe) -> _Facts:
    """What there is once layers are dropped."""
    sizes = facts.sizes
    n_params = facts.n_params - (sizes.n_layers - recipe.keep_layers) * sizes.layer_params
    return msgspec.structs.replace(
        facts,
        name=f"{facts.name}-{recipe.keep_layers}-layers",
        n_params=n_params,
        f16_bytes=2 * n_params,
        quantised=None,
        is_wide=False,
        made_by=student_step_name(recipe),
        describe=(*facts.describe, lambda done: describe(recipe, done)),
    )


def _merge_step(facts: _Facts, adapter: Adapter) -> Step:
    if facts.shapes:  # of a GGUF they are known once it has been read
        check_fit(adapter, facts.shapes)
    return lora_step(lambda done: _open(facts, done), adapter, facts.sizes)


def _smaller_steps(facts: _Facts, request: Request) -> list[Step]:
    assert request.smaller is not None
    student = _made_smaller(facts, request.smaller)

    def write(folder: Path, done: Callable[[str], Path]) -> None:
        _write_manifest(folder, student, done, "checkpoint", "BF16", {})

    return smaller_steps(lambda done: _open(facts, done), request.smaller, facts.sizes, request.gguf.n_threads, write)


def _notes(facts: _Facts, request: Request) -> Iterator[str]:
    is_changed = request.smaller is not None or request.adapter is not None
    if facts.quantised:
        kept = "gguf" in request.formats and facts.quantised in request.gguf.quantisations and not is_changed
        yield (
            f"The source is quantised already ({facts.quantised}). "
            + ("What stays in that type is copied as it is. " if kept else "")
            + "Quantising it again costs quality that an original checkpoint would not."
        )
    if request.card and any(is_slow(form) for form in request.formats):
        yield "Core ML runs on a Mac only. Here an evaluator computes its packages, slowly, over the beginning of the texts."


def _identity(source: Input) -> list[tuple[str, int, int]]:
    """Which files the source is made of, as far as that can be told without reading them."""
    files = [source.path] if source.kind == "gguf" else sorted(path for path in source.path.iterdir() if path.is_file())
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def _open(facts: _Facts, done: Callable[[str], Path]) -> Checkpoint:
    """The checkpoint that the exporters read: the user's, the one made of the GGUF, or the one that a step changed."""
    source = facts.input
    if facts.made_by:
        return open_checkpoint(done(facts.made_by), source=facts.name, licence=facts.licence)
    if source.kind == "checkpoint":
        return open_checkpoint(source.path, source=source.source, licence=source.licence)
    return open_checkpoint(done("checkpoint"), source=facts.name, licence=facts.licence)


# -- steps


def _hash_step(facts: _Facts) -> Step:
    source = facts.input
    files = [source.path] if source.kind == "gguf" else []
    if source.kind == "checkpoint":
        opened = open_checkpoint(source.path)
        files = [*opened.shards, *(source.path / name for name in ("config.json", *opened.tokenizer_files))]
    total = sum(path.stat().st_size for path in files)

    def work(folder: Path, done: Callable[[str], Path], told: Callable[[str, float], None]) -> None:
        before, entries = 0, []

        def told_bytes(n_bytes: int) -> None:
            told(path.name, (before + n_bytes) / total)

        for path in files:
            entries.append(digest_file(path, on_bytes=told_bytes))
            before += path.stat().st_size
        (folder / "files.json").write_bytes(msgspec.json.encode(entries))

    return Step(name="source", title="Read the source and hash its files", work=work, seconds=total / 500e6)


def _read_step(facts: _Facts) -> Step:
    def work(folder: Path, done: Callable[[str], Path], told: Callable[[str, float], None]) -> None:
        source = facts.input
        checkpoint_from_gguf(
            source.path, folder, source=source.source, licence=source.licence, on_progress=lambda share: told("", share)
        )

    is_wide = facts.quantised is not None
    return Step(
        name="checkpoint",
        title="Read the GGUF back into a checkpoint",
        work=work,
        seconds=facts.n_params / 60e6,
        disk_bytes=facts.n_params * (4 if is_wide else 2),
        memory_bytes=estimates.read_gguf(facts.sizes.n_vocab),
        is_heavy=True,
    )


def _gguf_steps(facts: _Facts, request: Request) -> list[Step]:
    options = request.gguf
    copied = [
        name for name in options.quantisations if facts.input.kind == "gguf" and not facts.made_by and name == facts.quantised
    ]
    rest = [name for name in options.quantisations if name not in copied]
    steps = [_copy_step(facts, name) for name in copied]
    if not rest:
        return steps
    wide = 4 if facts.quantised else 2

    def write(folder: Path, done: Callable[[str], Path], told: Callable[[str, float], None]) -> None:
        checkpoint = _open(facts, done)
        path = folder / "base.gguf"
        write_gguf(checkpoint, path, lossless_precision(checkpoint), lambda share: told("weights", share * 0.8))
        check_tokenizer(path, checkpoint, lambda share: told("comparing tokens", 0.8 + share * 0.2))

    steps.append(
        Step(
            name="gguf-base",
            title="Write GGUF without loss, and compare its tokenizer",
            work=write,
            seconds=3 + facts.n_params / 100e6,
            disk_bytes=wide * facts.n_params,
            memory_bytes=estimates.write_gguf(facts.sizes.n_vocab, wide * facts.largest),
            is_heavy=True,
        )
    )
    wanted = msgspec.structs.replace(options, quantisations=tuple(rest))
    if needs_imatrix(wanted):
        steps.append(_imatrix_step(facts, wanted, wide))
    return steps + [_quantise_step(facts, wanted, name, wide) for name in rest]


def _imatrix_step(facts: _Facts, options: GgufOptions, wide: int) -> Step:
    def work(folder: Path, done: Callable[[str], Path], told: Callable[[str, float], None]) -> None:
        base = done("gguf-base") / "base.gguf"
        chunks = calibration_chunks(base, read_calibration(options.calibration), options.calibration_tokens)
        compute_imatrix(base, chunks, folder / "imatrix.npz", options.n_threads, lambda share: told("", share))

    return Step(
        name="imatrix",
        title=f"Find out which weights matter, on {options.calibration_tokens:,} tokens of text",
        work=work,
        seconds=facts.n_params * options.calibration_tokens * _CORE_CALIBRATION_S / options.n_threads,
        memory_bytes=estimates.calibrate(facts.sizes.n_vocab),
    )


def _quantise_step(facts: _Facts, options: GgufOptions, name: str, wide: int) -> Step:
    uses_matrix = needs_imatrix(msgspec.structs.replace(options, quantisations=(name,)))

    def work(folder: Path, done: Callable[[str], Path], told: Callable[[str, float], None]) -> None:
        matrix = done("imatrix") / "imatrix.npz" if uses_matrix else None
        path = folder / f"{facts.name}-{name}.gguf"
        quantise(done("gguf-base") / "base.gguf", path, name, options, matrix, lambda share: told("", share))
        recipe = {"quantisation": name, "importance matrix": "no"}
        if uses_matrix:
            text = digest_of(read_calibration(options.calibration))
            recipe["importance matrix"] = f"{options.calibration_tokens} tokens of the text {text[:16]}"
        _write_manifest(folder, facts, done, "gguf", name, recipe)

    return Step(
        name=f"gguf-{name}",
        title=f"Quantise to {name}" if name not in ("F16", "BF16", "F32") else f"Write {name}",
        work=work,
        artifact=True,
        seconds=1 + facts.f16_bytes / (_CORE_BYTES_S * options.n_threads),
        disk_bytes=int(facts.n_params * _bits(name) / 8),
        memory_bytes=estimates.quantise(facts.largest, is_wide=wide == 4),
    )


def _copy_step(facts: _Facts, name: str) -> Step:
    def work(folder: Path, done: Callable[[str], Path], told: Callable[[str, float], None]) -> None:
        shutil.copyfile(facts.input.path, folder / f"{facts.name}-{name}.gguf")
        _write_manifest(folder, facts, done, "gguf", name, {"quantisation": name, "made by": "copying the source"})

    size = facts.input.path.stat().st_size
    title = f"Copy the {name} blocks as they are"
    return Step(name=f"gguf-{name}", title=title, work=work, artifact=True, seconds=size / 500e6, disk_bytes=size)


def _onnx_steps(facts: _Facts, request: Request) -> list[Step]:
    precision = {4: "int4", 8: "int8", 16: "fp32"}.get(request.bits)
    if precision is None:
        raise UsageError(f"ONNX has no {request.bits}-bit weights here.", "Choose 4, 8 or 16 bits.")

    def work(folder: Path, done: Callable[[str], Path], told: Callable[[str, float], None]) -> None:
        exporter = import_module("edge_convert.onnx.export")
        options = exporter.OnnxOptions(precision=precision, source_gguf=_carried(facts))
        exporter.export_onnx(_open(facts, done).folder, folder, options, told)
        recipe = {
            "quantisation": exporter.describe_quantisation(options),
            "block size": str(options.block_size),
            "accuracy level": str(options.accuracy_level),
        }
        _write_manifest(folder, facts, done, "onnx", precision, recipe)

    return [
        Step(
            name=f"onnx-{precision}",
            title=f"Build ONNX, {precision}",
            work=work,
            artifact=True,
            seconds=15 + facts.n_params / 4e6,
            disk_bytes=int(facts.n_params * {"int4": 0.9, "int8": 1.3}.get(precision, 4.2)),
            memory_bytes=_onnx_bytes(facts, precision),
            is_heavy=True,
        )
    ]


def _card_bytes(facts: _Facts, steps: list[Step]) -> int:
    n_evaluators = min(2, sum(is_slow(step.name.partition("-")[0]) for step in steps))
    return estimates.evaluate(
        facts.n_params, facts.largest, facts.sizes.n_vocab, is_wide=facts.is_wide, n_evaluators=n_evaluators
    )


def _coreml_steps(facts: _Facts, request: Request) -> list[Step]:
    if not request.coreml_variants:
        raise UsageError("No variant of Core ML is named.", "Leave out --variants, or name one: gpu, ane, fp16.")
    if request.bits != 4 and set(request.coreml_variants) != {"fp16"}:
        raise UsageError(
            f"Core ML has no {request.bits}-bit weights here.", "Choose 4 bits, or 16 bits for Core ML: --variants fp16"
        )
    return [_coreml_step(facts, request, variant) for variant in request.coreml_variants]


def _coreml_step(facts: _Facts, request: Request, variant: Literal["gpu", "ane", "fp16"]) -> Step:
    exporter = import_module("edge_convert.coreml.export")
    options = exporter.CoreMLOptions(
        variant=variant,
        context=request.coreml_context,
        stateful=request.coreml_stateful,
        source_gguf=_carried(facts),
        calibration=request.gguf.calibration,
        palette_bits=request.coreml_palette_bits,
    )
    longest = facts.sizes.config.get("max_position_embeddings")
    exporter.check_options(options, longest if isinstance(longest, int) and longest > 0 else None)

    def work(folder: Path, done: Callable[[str], Path], told: Callable[[str, float], None]) -> None:
        exporter.export_coreml(_open(facts, done).folder, folder, options, told)
        recipe = {"variant": variant, "context": str(request.coreml_context), "stateful": str(request.coreml_stateful)}
        if variant == "ane":
            recipe["palette bits"] = str(request.coreml_palette_bits)
        if variant == "gpu" and options.source_gguf:
            recipe["blocks"] = "of the source GGUF, where its types fit"
        if variant != "fp16":
            recipe["calibration"] = f"the text {digest_of(read_calibration(options.calibration))[:16]}"
        _write_manifest(folder, facts, done, "coreml", variant, recipe)

    return Step(
        name=f"coreml-{variant}",
        title=f"Build Core ML, variant {variant}",
        work=work,
        artifact=True,
        seconds=60 + facts.n_params / 1e6,
        disk_bytes=int(facts.n_params * (2.2 if variant == "fp16" else 1.0)),
        memory_bytes=estimates.build_coreml(
            facts.n_params,
            facts.largest,
            facts.sizes.layer_params,
            facts.sizes.columns,
            is_walked=variant != "fp16" and not (variant == "gpu" and _carried(facts)),
            is_loaded=not facts.is_wide and facts.architecture.gguf.startswith("gemma"),
        ),
        is_heavy=True,
    )


def _onnx_bytes(facts: _Facts, precision: str) -> int:
    if precision == "int4" and _carried(facts) and set(str(facts.quantised).split("_")[:1]) <= {"Q4", "Q8"}:
        return estimates.carry_onnx(facts.n_params, facts.largest)
    return estimates.build_onnx(facts.n_params, facts.largest, is_quantised=precision != "fp32")


_STEPS: Mapping[Format, Callable[[_Facts, Request], list[Step]]] = {
    "gguf": _gguf_steps,
    "onnx": _onnx_steps,
    "coreml": _coreml_steps,
}


def _carried(facts: _Facts) -> Path | None:
    """The GGUF whose blocks a format may take as they are."""
    return facts.input.path if facts.input.kind == "gguf" and facts.quantised else None


def _bits(name: str) -> float:
    """Bits a weight, on the safe side: small models keep more in 8 bits than large ones."""
    known: dict[str, Any] = {"F32": 32, "F16": 16, "BF16": 16, "Q8_0": 8.6, "Q6_K": 7.5}
    if name in known:
        return float(known[name])
    digits = [int(char) for char in name if char.isdecimal()]
    return digits[0] + 2.8


def _write_manifest(
    folder: Path,
    facts: _Facts,
    done: Callable[[str], Path],
    form: Format | Literal["checkpoint"],
    quantisation: str,
    recipe: Mapping[str, str],
) -> None:
    """Put manifest.json beside what a step made."""
    sources = msgspec.json.decode((done("source") / "files.json").read_bytes(), type=list[FileEntry])
    made = sorted(path for path in folder.rglob("*") if path.is_file())
    changes = {key: value for entry in facts.describe for key, value in entry(done).items()}
    tools = (*(_TOOLS[form] if form != "checkpoint" else ()), *(_SMALLER_TOOLS if facts.made_by else ()))
    manifest = make_manifest(
        format=form,
        name=facts.name,
        architecture=facts.architecture.name,
        quantisation=quantisation,
        source=facts.input.source,
        source_quantised=facts.source_quantised,
        source_files=tuple(sources),
        licence=facts.licence,
        recipe={**recipe, **changes},
        tools=tool_versions(*tools),
        files=tuple(digest_file(path, name=path.relative_to(folder).as_posix()) for path in made),
    )
    write_manifest(folder / "manifest.json", manifest)
