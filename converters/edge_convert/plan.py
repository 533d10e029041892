"""From a source and a request to a plan: the steps of each format, and their costs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from edge.errors import ModelFileError, UsageError
from edge.files import check_replaceable
from edge.formats.gguf import read_header
from edge.hashes import file_sha256, file_stamp
from edge.units import one_line, reason, short_name
from edge_convert.checkpoint import named_templates, open_checkpoint, read_json
from edge_convert.encoder.config import is_encoder
from edge_convert.encoder.steps import encoder_plan
from edge_convert.evaluate.logits import is_slow
from edge_convert.evaluate.passages import find_template
from edge_convert.evaluate.steps import card_step
from edge_convert.facts import BY_BITS, SMALLER_TOOLS, Facts, Request, read_facts
from edge_convert.frontier.steps import frontier_steps
from edge_convert.gguf.imatrix import read_calibration
from edge_convert.gguf.imatrix_file import read_imatrix
from edge_convert.gguf.limits import context_length
from edge_convert.gguf.quantise import ill_fitting_share, type_of_weights
from edge_convert.gguf.steps import read_step, tokenizer_step
from edge_convert.inputs import Input
from edge_convert.manifest import digest_file, tool_versions
from edge_convert.pipeline import FolderOf, Plan, Step, StepProgress, digest_of
from edge_convert.recover.steps import RECOVERED, check_recoverable
from edge_convert.smaller.recipe import with_texts
from edge_convert.smaller.steps import adapter_key, made_smaller, merge_step, merged, recipe_key, smaller_steps
from edge_convert.smaller.vocabulary_steps import with_vocabulary
from edge_convert.targets import TARGETS
from edge_convert.tokenizer_files import check_tokenizer_files, named_ends
from edge_convert.torch_device import chosen_device, find_device

__all__ = ["make_plan"]

_WORTH_A_NOTE = 0.05


def make_plan(source: Input, out: Path, request: Request) -> Plan:
    """Work out the steps of a conversion. Nothing is written.

    Args:
        source: checkpoint folder or GGUF file.
        out: folder for the artifacts.
        request: what to convert to.

    Raises:
        UsageError: an option is out of range, or `out` cannot be a folder here.
        ModelFileError: the source is damaged, incomplete or of an unknown architecture, or cannot become a format.
    """
    _check_out(out)
    if (
        source.kind == "checkpoint"
        and (source.path / "config.json").is_file()
        and is_encoder(read_json(source.path / "config.json"))
    ):
        return encoder_plan(source, out, request)
    facts = read_facts(source)
    missing = [form for form in request.formats if form not in facts.architecture.formats]
    if missing:
        raise ModelFileError(
            f"{facts.architecture.title} cannot become {' or '.join(missing)}.",
            f"It can become: {', '.join(sorted(facts.architecture.formats))}. docs/convert.md shows all formats.",
        )
    _check_smaller(request, facts)
    if request.gguf.save_imatrix:
        _check_imatrix_place(request.gguf.save_imatrix, out)
    request = _completed(request, facts)
    tools = [tool for form in request.formats for tool in TARGETS[form].tools]
    tools += SMALLER_TOOLS if request.changes_model or request.recovery else ()
    return Plan(
        title=f"{facts.name} ({facts.architecture.title}, {facts.n_params / 1e6:,.0f} million weights)",
        out=out,
        digest=digest_of(_identity(source), _request_key(request), tool_versions(*tools)),
        steps=tuple(_steps(facts, request)),
        notes=tuple(_notes(facts, request)),
        f16_bytes=facts.f16_bytes,
        force=request.force,
    )


def _check_out(out: Path) -> None:
    try:
        str(out).encode()  # manifests and messages are UTF-8
        out.exists()
    except (OSError, ValueError) as error:  # ValueError: a NUL
        why = "its name is not UTF-8" if isinstance(error, UnicodeEncodeError) else reason(error)
        raise UsageError(
            f"{short_name(str(out), 200)} cannot be the folder for the results: {why}.", "Give another one with --out."
        ) from error


def _check_imatrix_place(file: Path, out: Path) -> None:
    """Refuse a place for an importance matrix that is no place for a file, or that holds something else, such as a model."""
    folder = file.absolute().parent
    if not folder.is_dir() and folder != out.absolute():
        raise UsageError(f"There is no folder {folder}.", "Make it, or choose another with --save-imatrix.")
    check_replaceable(file)
    if file.exists():
        try:
            read_imatrix(file)
        except ModelFileError as error:
            raise UsageError(f"{file} exists, and is not an importance matrix.", "Give --save-imatrix another name.") from error


def _check_smaller(request: Request, facts: Facts) -> None:
    """Refuse to make a model smaller where its parts cannot be told apart from then on."""
    if request.smaller and (facts.model.conv_width or facts.model.n_experts):
        raise UsageError(f"{facts.architecture.title} cannot be made smaller.", "Choose fewer bits instead: --quant Q4_0")
    is_searched = request.frontier_minutes > 0
    if request.smaller and (request.smaller.keep_layers or is_searched) and not all(facts.model.rotates):
        raise UsageError(
            f"{facts.architecture.title} cannot lose layers: those without rotary embedding are told by their place.",
            "Leave out --frontier." if is_searched else "Leave out --keep-layers.",
        )
    if request.smaller and (request.smaller.keep_ffn or is_searched) and not facts.architecture.down.startswith("mlp."):
        raise UsageError(
            f"The feed-forward layers of {facts.architecture.title} cannot be narrowed.",
            "Name what stays instead of --frontier: --keep-layers" if is_searched else "Leave out --keep-ffn.",
        )


def _completed(request: Request, facts: Facts) -> Request:
    """Fill in the open parts of a request."""
    # A search measures speed as GGUF, whatever its point becomes.
    if ("gguf" in request.formats or request.frontier_minutes) and not request.gguf.quantisations:
        name = RECOVERED[0] if request.recovery and request.bits == 4 else BY_BITS[request.bits]
        gguf = msgspec.structs.replace(request.gguf, quantisations=(name,))
        request = msgspec.structs.replace(request, gguf=gguf)
    if request.smaller:
        request = msgspec.structs.replace(request, smaller=with_texts(request.smaller, facts.n_params))
    if request.recovery:
        check_recoverable(facts, request)
        if request.gguf.shard_bytes:
            raise UsageError(
                "A recovered GGUF is written into one file.",
                "Leave out --shard, and split the result then: edge convert FILE --quant Q4_0 --shard 2GB",
            )
        request = msgspec.structs.replace(request, recovery=with_texts(request.recovery, facts.n_params))
    return request


def _steps(facts: Facts, request: Request) -> list[Step]:
    steps = [_hash_step(facts)]
    if facts.needs_checkpoint(request):
        steps.append(read_step(facts))
    elif facts.source_gguf and "onnx" in request.formats:
        steps.append(tokenizer_step(facts))
    reference = facts
    if request.adapter:
        steps.append(merge_step(facts, request.adapter))
        reference = merged(facts, request.adapter)
    if request.frontier_minutes:
        return steps + frontier_steps(reference, request)
    exported = reference
    if request.smaller:
        steps += smaller_steps(reference, request.smaller, request.gguf.n_threads)
        exported = made_smaller(reference, request.smaller)
        reference = with_vocabulary(reference, request.smaller)
    for form in dict.fromkeys(request.formats):
        steps += TARGETS[form].make_steps(exported, request)
    results = [step for step in steps if step.artifact]
    if request.card and results:
        # A student is held to its teacher, so that the card shows the cost of what left, too.
        # With a smaller vocabulary that is the teacher over the tokens that stay.
        steps.append(card_step(reference, results, request.tasks))
    return steps


def _hash_step(facts: Facts) -> Step:
    source = facts.input
    files = [source.path]
    if source.kind == "checkpoint":
        opened = open_checkpoint(source.path)
        files = [*opened.shards, *(source.path / name for name in ("config.json", *opened.tokenizer_files))]
    total = sum(path.stat().st_size for path in files)
    is_read = source.kind == "checkpoint"

    def work(folder: Path, folder_of: FolderOf, on_progress: StepProgress) -> None:
        before, entries = 0, []

        def on_bytes(n_bytes: int) -> None:
            on_progress(path.name, (before + n_bytes) / total * (0.6 if is_read else 1.0))

        for path in files:
            entries.append(digest_file(path, on_bytes=on_bytes))
            before += path.stat().st_size
        if is_read:
            opened = open_checkpoint(source.path)
            check_tokenizer_files(source.path, opened.model.n_vocab)
            named_ends(source.path, opened.model.n_vocab)  # refuses those that the model does not have
            opened.check_finite(lambda n_bytes: on_progress("weights", 0.6 + 0.4 * min(1.0, n_bytes / total)))
        (folder / "files.json").write_bytes(msgspec.json.encode(entries))

    return Step(name="source", title="Read the source and hash its files", work=work, seconds=total / 300e6)


def _notes(facts: Facts, request: Request) -> Iterator[str]:
    if facts.quantised:
        is_copied = "gguf" in request.formats and facts.quantised in request.gguf.quantisations and not request.changes_model
        yield (
            f"The source is quantised already ({facts.quantised}). "
            + ("Its blocks are copied unchanged where the type stays. " if is_copied else "")
            + "Quantising it again costs quality that an original checkpoint would not."
        )
    if facts.input.kind == "gguf":
        header = read_header(facts.input.path)
        named, kind = header.file_type, type_of_weights(header)
        if named != kind:
            yield f"The GGUF says that its weights are {named}, but they are {kind}: it is read as such."
    is_gguf = facts.input.kind == "gguf"  # the texts of its tokens are behind megabytes of others
    template = find_template(facts.input.path, ("<s>", "</s>") if is_gguf else None)
    if template is None and not is_gguf and (names := named_templates(facts.input.path)):
        listed = one_line(", ".join(sorted(names)))[:200]
        yield (
            f"The model has chat templates by the names {listed}, and none is the default: the results get none. "
            "To choose one, save it as chat_template.jinja beside config.json."
        )
    if template and template.notice:
        yield f"{template.notice} The results get the model's own template as it is."
    length = context_length(facts.model, facts.architecture)
    if "gguf" in request.formats and length < facts.model.n_positions:
        yield (
            f"llama.cpp has no sliding window for a {facts.architecture.title}: the context of the GGUF ends at it, "
            f"after {length:,} tokens. ONNX and Core ML keep the window."
        )
    for name in request.gguf.quantisations if "gguf" in request.formats else ():
        share = ill_fitting_share(name, facts.shapes.values()) if name != facts.quantised else 0.0
        if share > _WORTH_A_NOTE:
            yield (
                f"{name} fits {1 - share:.0%} of the weights: the widths of the others are no multiple of its blocks, and "
                "llama.cpp takes larger types for them. The manifest lists the types."
            )
    if request.smaller and (device := find_device(chosen_device())) != "cpu":
        yield f"torch computes on {device}, and the times are guessed for one. To compute on the processor: --device cpu"
    if request.card and any(is_slow(form) for form in request.formats):
        yield "Core ML runs on a Mac only. Here an evaluator computes its packages, slowly, on the beginning of the texts."


def _identity(source: Input) -> list[tuple[str | int, ...]]:
    """Return names, sizes and times of the source's files, which identify them without reading."""
    files = [source.path] if source.kind == "gguf" else sorted(path for path in source.path.iterdir() if path.is_file())
    return [(path.name, *file_stamp(path.stat())) for path in files]


def _request_key(request: Request) -> str:
    """Return the parts of a request that decide the bytes of the results."""
    is_calibrated = request.gguf.use_imatrix or "coreml" in request.formats
    calibration = read_calibration(request.gguf.calibration) if is_calibrated else ""
    gguf = msgspec.structs.replace(request.gguf, calibration=None, threads=0, imatrix=None)
    plain = msgspec.structs.replace(request, force=False, smaller=None, recovery=None, adapter=None, gguf=gguf)
    changes = [recipe_key(request.smaller)] if request.smaller else []
    changes += ["recovery", recipe_key(request.recovery)] if request.recovery else []
    changes += [adapter_key(request.adapter)] if request.adapter else []
    changes += [file_sha256(request.gguf.imatrix)] if request.gguf.imatrix else []
    return str(plain) + digest_of(calibration) + "".join(changes)
