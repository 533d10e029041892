"""The plan of an embedding model: read it, write ONNX, and compare its vectors with those of transformers."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np

from edge.errors import ModelFileError, UsageError
from edge.hashes import file_stamp
from edge_convert.checkpoint import Checkpoint, read_json
from edge_convert.encoder.config import COPIED, EncoderConfig, open_encoder
from edge_convert.facts import Request
from edge_convert.inputs import Input
from edge_convert.manifest import FileEntry, Manifest, digest_file, seal, tool_versions, write_manifest
from edge_convert.pipeline import FolderOf, Plan, Step, StepProgress, digest_of
from edge_convert.targets import check_packages
from edge_convert.tokenizer_files import check_tokenizer_files, library_reads, remove_rowless

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["encoder_plan"]

_TOOLS = ("numpy", "onnx", "onnxruntime", "transformers", "torch")
_PRECISIONS: dict[int, Literal["int4", "int8", "fp32"]] = {4: "int4", 8: "int8", 16: "fp32"}
_BYTES = {"int4": 1.0, "int8": 1.3, "fp32": 4.2}  # per weight
_LEAST = {"fp32": 0.9999, "int8": 0.99, "int4": 0.8}
"""Precision -> cosine of mean-pooled vectors with those of transformers, below which something is wrong."""
_LENGTHS = (48, 7, 1)
_FIXED_BYTES = 700_000_000  # Python, torch, transformers, onnxruntime


def encoder_plan(source: Input, out: Path, request: Request) -> Plan:
    """Work out the steps of a conversion. Nothing is written.

    Raises:
        UsageError: something else than ONNX is asked for, or an option that is for models that generate.
        ModelFileError: the checkpoint is damaged, or computes something else than the graph would.
    """
    checkpoint, model = open_encoder(source.path, source=source.source, licence=source.licence)
    title = checkpoint.architecture.title
    if request.formats != ("onnx",):
        raise ModelFileError(
            f"{checkpoint.name} makes embeddings ({title}) and becomes ONNX only.",
            "Add --to onnx. As GGUF, edge runs it too: look for a repository of that model whose name ends in -GGUF.",
        )
    if request.changes_model or request.recovery:
        raise UsageError(
            "A model for embeddings is not merged, made smaller or trained.",
            "Leave out --lora, --keep-..., --frontier, --recover-minutes and --recipe.",
        )
    precision = _PRECISIONS.get(request.bits)
    if precision is None:
        raise UsageError(f"ONNX has no {request.bits}-bit weights here.", "Choose 4, 8 or 16 bits.")
    check_packages(["onnx"], "torch")
    files = [*checkpoint.shards, *(source.path / name for name in checkpoint.tokenizer_files)]
    stamps = [(path.name, *file_stamp(path.stat())) for path in files]
    note = (
        "There is no card for embeddings: vectors are compared with those of transformers, and the manifest has their cosine."
    )
    return Plan(
        title=f"{checkpoint.name} ({title}, {checkpoint.n_params / 1e6:,.0f} million weights)",
        out=out,
        digest=digest_of(stamps, precision, tool_versions(*_TOOLS)),
        steps=(_hash_step(checkpoint, model, files), _write_step(checkpoint, model, precision, source)),
        notes=(note,),
        f16_bytes=checkpoint.f16_bytes,
        force=request.force,
    )


def _hash_step(checkpoint: Checkpoint, model: EncoderConfig, files: list[Path]) -> Step:
    total = sum(path.stat().st_size for path in files)

    def work(folder: Path, folder_of: FolderOf, on_progress: StepProgress) -> None:
        check_tokenizer_files(checkpoint.folder, model.n_vocab)
        entries = [digest_file(path, name=path.relative_to(checkpoint.folder).as_posix()) for path in files]
        checkpoint.check_finite(lambda n_bytes: on_progress("weights", min(1.0, n_bytes / total)))
        (folder / "files.json").write_bytes(msgspec.json.encode(entries))

    return Step(name="source", title="Read the source and hash its files", work=work, seconds=total / 300e6)


def _write_step(
    checkpoint: Checkpoint, model: EncoderConfig, precision: Literal["int4", "int8", "fp32"], source: Input
) -> Step:
    def work(folder: Path, folder_of: FolderOf, on_progress: StepProgress) -> None:
        _write(checkpoint, model, precision, folder, on_progress)
        on_progress("comparing vectors", 0.9)
        cosine = _compare(checkpoint, model, folder)
        if math.isnan(cosine):
            raise ModelFileError(
                f"{checkpoint.name} computes no vectors: all numbers are 0, or some leave the range of float32.",
                "Its weights are damaged: download them again.",
            )
        if not cosine >= _LEAST[precision]:
            raise ModelFileError(
                f"onnxruntime computes other vectors than transformers from {checkpoint.name}: their cosine is {cosine:.4f}.",
                "Choose more bits: --bits 8 or --bits 16",
            )
        sources = msgspec.json.decode((folder_of("source") / "files.json").read_bytes(), type=tuple[FileEntry, ...])
        made = sorted(path for path in folder.rglob("*") if path.is_file())
        manifest = Manifest(
            format="onnx",
            name=checkpoint.name,
            architecture=checkpoint.architecture.name,
            quantisation=precision,
            source=source.source,
            source_files=sources,
            licence=checkpoint.licence,
            recipe={"quantisation": precision, "least cosine with transformers": f"{cosine:.4f}"},
            tools=tool_versions(*_TOOLS),
            files=tuple(digest_file(path, name=path.relative_to(folder).as_posix()) for path in made),
        )
        write_manifest(folder / "manifest.json", seal(manifest))

    return Step(
        name=f"onnx-{precision}",
        title=f"Build ONNX, {precision}, and compare vectors",
        work=work,
        artifact=True,
        seconds=10 + checkpoint.n_params / 6e6,
        disk_bytes=int(checkpoint.n_params * _BYTES[precision]),
        memory_bytes=_FIXED_BYTES + 8 * checkpoint.n_params,
        is_heavy=True,
    )


def _write(checkpoint: Checkpoint, model: EncoderConfig, precision: str, folder: Path, on_progress: StepProgress) -> None:
    """Write the graph, its weights, and the files that `edge embed` reads beside it."""
    import onnx

    from edge_convert.encoder.graph import Encoder
    from edge_convert.onnx.external import WeightFile
    from edge_convert.onnx.matrices import Matrices
    from edge_convert.onnx.nodes import Nodes
    from edge_convert.onnx.sources import CheckpointWeights

    weights, done = CheckpointWeights(checkpoint), 0

    def on_weights(n_weights: int) -> None:
        nonlocal done
        done += n_weights
        on_progress("weights", min(0.89, 0.9 * done / checkpoint.n_params))

    with WeightFile(folder / "model.onnx.data") as file:
        nodes = Nodes(file)
        matrices = Matrices(weights, file, nodes, precision=precision, accuracy_level=4, on_weights=on_weights)
        graph = Encoder(model, weights, file, nodes, matrices).build()
    onnx.save(graph, folder / "model.onnx")
    for name in COPIED:
        if (checkpoint.folder / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(checkpoint.folder / name, folder / name)
    remove_rowless(folder, model.n_vocab)
    _write_window(folder / "sentence_bert_config.json", model)


def _write_window(path: Path, model: EncoderConfig) -> None:
    """Say how long a text may be, where the files say more than there are positions: RoBERTa's first are unused."""
    content = read_json(path) if path.is_file() else {}
    usable = model.n_positions - model.first_position
    if (content.get("max_seq_length") or model.n_positions) > usable:
        path.write_text(json.dumps({**content, "max_seq_length": usable}, indent=2) + "\n", encoding="utf-8")


def _compare(checkpoint: Checkpoint, model: EncoderConfig, folder: Path) -> float:
    """Return the least cosine of mean-pooled vectors with those that transformers computes, over texts of several lengths."""
    import onnxruntime
    import torch

    n_positions = model.n_positions - model.first_position
    lengths = [min(length, n_positions) for length in _LENGTHS]
    rng = np.random.default_rng(1)
    ids, mask = (
        np.full((len(lengths), max(lengths)), model.first_position, np.int64),
        np.zeros((len(lengths), max(lengths)), np.int64),
    )
    for row, length in enumerate(lengths):
        ids[row, :length], mask[row, :length] = rng.integers(min(5, model.n_vocab - 1), model.n_vocab, length), 1
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    theirs = _load_reference(checkpoint)
    with torch.no_grad():
        # RoBERTa counts positions by ids that are not its padding, which random ids may be.
        places = torch.arange(ids.shape[1])[None].expand(len(ids), -1) + model.first_position
        inputs = {name: torch.from_numpy(values) for name, values in given.items()}
        expected = theirs(**inputs, position_ids=places).last_hidden_state.numpy()
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, given)
    return float(
        np.min([_cosine(one, other) for one, other in zip(_pooled(found, mask), _pooled(expected, mask), strict=True)])
    )


def _load_reference(checkpoint: Checkpoint) -> Any:
    """Load the encoder with transformers, which would report the pooler's weights, used or not."""
    import torch
    from transformers import AutoModel, logging

    logging.disable_progress_bar()
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with library_reads(f"The model {checkpoint.name}"):
            return AutoModel.from_pretrained(checkpoint.folder, local_files_only=True, dtype=torch.float32).eval()
    finally:
        logging.set_verbosity(before)


def _pooled(states: NDArray[np.float32], mask: NDArray[np.int64]) -> NDArray[np.float32]:
    counts = mask[:, :, None].astype(np.float32)
    pooled: NDArray[np.float32] = (states * counts).sum(1) / counts.sum(1)
    return pooled


def _cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    with np.errstate(all="ignore"):  # of vectors that are 0, or no numbers, it is no number
        return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))
