"""Makes a Core ML package of a checkpoint: an ML program with the functions `decode` and `prefill`, which share weights."""

from __future__ import annotations

import contextlib
import gc
import io
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from edge.device.cost import trim_heap
from edge.errors import UsageError
from edge.formats.coreml import METADATA_KEY, Golden, PackageInfo, Variant
from edge_convert.checkpoint import Checkpoint, open_checkpoint
from edge_convert.tokenizer_files import remove_rowless

from .calibrate import load_reference
from .decoder import Decoder, read_decoder, rotary_tables
from .golden import evaluate_golden, source_golden
from .join import join_functions
from .model import DecoderProgram
from .normalise import normalise_package
from .quantise import Encoder
from .tools import quiet_coremltools

__all__ = ["CoreMLOptions", "check_options", "export_coreml"]

Progress = Callable[[str, float], None]


class CoreMLOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to make a package.

    Attributes:
        variant: "gpu": int4 in blocks; "ane": palettes, as the Neural Engine takes them; "fp16": not quantised.
        context: cache rows, a multiple of 32.
        chunk: tokens of one call of `prefill`.
        stateful: keys and values in a Core ML state; otherwise they are an input and an output (explicit KV).
        source_gguf: the GGUF that the checkpoint was made from; the gpu variant takes over its Q4_0, Q4_1 and Q8_0 blocks.
        calibration: a text to weight the quantisation by; None is the one that ships with edge.
        palette_bits: of the ane variant: 6 (64 values for 16 rows), or 4 (16 values a row), which is smaller and loses more.
        fitted: folder with the palettes of the ane variant, found before (`edge_convert.recover`); None finds them here.
    """

    variant: Variant = "gpu"
    context: int = 2048
    chunk: int = 64
    stateful: bool = True
    source_gguf: Path | None = None
    calibration: Path | None = None
    palette_bits: Literal[4, 6] = 6
    fitted: Path | None = None


def export_coreml(checkpoint: Path, out: Path, options: CoreMLOptions, on_progress: Progress) -> list[Path]:
    """Make a Core ML package.

    Args:
        checkpoint: folder with config.json, safetensors and tokenizer.
        out: folder to write into; made if needed.
        options: see `CoreMLOptions`.
        on_progress: called with what is done, and its share of the whole (0 to 1).

    Returns:
        The package (a folder, model.mlpackage) and the tokenizer files beside it.

    Raises:
        UsageError: an option does not fit the model.
        ModelFileError: the checkpoint is damaged, or not built by this exporter.
        BackendUnavailableError: coremltools is not installed.
    """
    opened = open_checkpoint(checkpoint)
    opened.check_fits_f16()
    kinds, window = opened.model.layer_kinds, opened.model.window
    decoder = msgspec.structs.replace(
        read_decoder(checkpoint),
        tied=opened.is_tied,
        layer_types=kinds,
        attention_scale=opened.model.attention_scalar**-0.5,
        embed_scale=opened.model.embedding_scale,
        branch_scale=opened.model.branch_scale,
        logit_divisor=opened.model.logit_divisor,
        rotates=opened.model.rotates,
        intermediate=opened.model.inner,
        windows=tuple(window if kind == "sliding_attention" else None for kind in kinds),
    )
    check_options(options)
    ct = quiet_coremltools()
    on_progress("reading", 0.0)
    out.mkdir(parents=True, exist_ok=True)
    package = out / "model.mlpackage"
    with tempfile.TemporaryDirectory(dir=out, prefix=".coreml-") as folder:
        work = Path(folder)
        model = load_reference(checkpoint)
        golden = source_golden(checkpoint, model, options.context)
        encoder = Encoder(
            opened,
            decoder,
            options.variant,
            options.source_gguf,
            options.calibration,
            options.palette_bits,
            work,
            options.fitted,
        )
        encoder.prepare(model, lambda share: on_progress("quantising", 0.05 + 0.45 * share))
        del model
        _release()
        tables = rotary_tables(checkpoint, decoder, options.context)
        program = DecoderProgram(decoder, tables, encoder.weight, encoder.vector, options.context, options.stateful)
        parts = _build_functions(ct, program, options.chunk, work, on_progress)
        on_progress("joining functions", 0.8)
        joined = work / "joined.mlpackage"
        join_functions(parts, joined)
        on_progress("checking", 0.9)
        info = _describe(options, opened, decoder, golden, encoder.summary())
        del encoder, program
        _release()
        info = evaluate_golden(joined, info)
        normalise_package(joined, {METADATA_KEY: msgspec.json.encode(info).decode()})
        if package.exists():
            shutil.rmtree(package)
        joined.rename(package)
    tokenizer = [out / name for name in opened.tokenizer_files]
    for path in tokenizer:
        shutil.copyfile(checkpoint / path.name, path)
    remove_rowless(out, opened.model.n_vocab)
    on_progress("done", 1.0)
    return [package, *tokenizer]


def check_options(options: CoreMLOptions, longest: int | None = None) -> None:
    """Refuse options that cannot be built, by a model that has positions for `longest` tokens, if known.

    Raises:
        UsageError: an option is out of range.
    """
    if options.variant not in get_args(Variant):
        raise UsageError(f"There is no variant {options.variant} of Core ML.", f"Known are: {', '.join(get_args(Variant))}.")
    if options.palette_bits not in (4, 6):
        raise UsageError(f"Palettes of {options.palette_bits} bits are not offered.", "Choose 4 or 6.")
    if options.context < 32 or options.context % 32:
        raise UsageError(
            f"A context of {options.context} tokens cannot be laid out.", "Choose a multiple of 32: --context 2048"
        )
    if longest is not None and options.context > longest:
        raise UsageError(
            f"A context of {options.context} tokens was asked for, but this model knows positions up to {longest}.",
            f"Choose a multiple of 32 up to that: --context {longest - longest % 32}",
        )
    if not 1 < options.chunk <= options.context:
        raise UsageError(
            f"A prefill chunk of {options.chunk} tokens does not fit a context of {options.context}.",
            "Choose a chunk of 2 tokens or more, up to the context.",
        )


def _describe(
    options: CoreMLOptions, opened: Checkpoint, decoder: Decoder, golden: Golden, encodings: dict[str, int]
) -> PackageInfo:
    windows = (decoder.window(layer, options.context) for layer in range(decoder.n_layers))
    return PackageInfo(
        variant=options.variant,
        context=options.context,
        chunk=options.chunk,
        stateful=options.stateful,
        n_layers=decoder.n_layers,
        n_kv_heads=decoder.n_kv_heads,
        head_dim=decoder.head_dim,
        vocab=decoder.vocab,
        window=next(filter(None, windows), None),
        n_params=opened.n_params,
        n_ctx_train=opened.model.n_positions,
        encodings=encodings,
        golden=golden,
    )


def _build_functions(ct: Any, program: DecoderProgram, chunk: int, work: Path, on_progress: Progress) -> dict[str, Path]:
    """Build `decode` and `prefill`, each as a package of its own in `work`."""
    parts = {}
    for share, (name, n_tokens) in enumerate({"decode": 1, "prefill": chunk}.items()):
        on_progress(f"building {name}", 0.5 + 0.15 * share)
        parts[name] = work / f"{name}.mlpackage"
        _convert(ct, program.build(n_tokens, with_logits=name == "decode"), parts[name])
        _release()
    return parts


def _release() -> None:
    """Release the memory of a program, which refers to itself."""
    gc.collect()
    trim_heap()


def _convert(ct: Any, program: Any, path: Path) -> None:
    # Without progress bars and warnings about missing libraries of a Mac.
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS18,
            skip_model_load=True,
            # the program is lean: coremltools' hundred passes find little in it, and check all of it after each
            pass_pipeline=ct.PassPipeline.EMPTY,
        )
        model.save(str(path))
