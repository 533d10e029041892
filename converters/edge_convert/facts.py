"""The inputs of a plan: the request, and the model that is exported."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from edge.errors import UsageError
from edge.formats.coreml import Variant
from edge.formats.gguf import read_header
from edge.names import FORMATS, Format
from edge.units import short_name
from edge_convert.architectures import Architecture, check_reads_back, find_gguf_architecture
from edge_convert.checkpoint import Checkpoint, open_checkpoint
from edge_convert.gguf.from_header import checkpoint_tensors, header_config
from edge_convert.gguf.quantise import FLOATS, GgufOptions, type_of_weights
from edge_convert.inputs import Input
from edge_convert.manifest import FileEntry, Manifest, digest_file, seal, tool_versions, write_manifest
from edge_convert.model_config import ModelConfig, read_model_config
from edge_convert.pipeline import FolderOf
from edge_convert.smaller.lora import Adapter
from edge_convert.smaller.recipe import MOST_MINUTES, Recipe
from edge_convert.targets import TARGETS

__all__ = ["BY_BITS", "SMALLER_TOOLS", "Facts", "Request", "read_facts"]

BY_BITS = {4: "Q4_K_M", 5: "Q5_K_M", 6: "Q6_K", 8: "Q8_0", 16: "F16"}
"""Bits a weight -> GGUF quantisation that is made where none is named."""

SMALLER_TOOLS = ("torch", "transformers", "peft", "safetensors")
"""Distributions whose versions decide the result of a merge or a distillation."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """The wanted results of a conversion.

    Attributes:
        formats: to make.
        bits: per weight: 4, 5, 6, 8 or 16. ONNX has 4, 8 and 16, Core ML 4; its variant fp16 ignores this.
        gguf: quantisations and calibration; `bits` chooses the quantisation where none is named.
        coreml_variants: see edge_convert.coreml.export.CoreMLOptions.
        coreml_context: cache rows of a Core ML package.
        coreml_palette_bits: see CoreMLOptions.
        card: evaluate the results against the source.
        tasks: that the card asks the source and the results, see edge_convert.evaluate.tasks.suite.
        coreml_stateful: see CoreMLOptions.
        force: replace existing results.
        smaller: make the model smaller first, by this recipe.
        recovery: train the quantised weights, by this recipe's texts and `recovery`.
        adapter: merge this adapter first, before the model is made smaller.
        frontier_minutes: search a frontier of students for so long instead of converting (`edge_convert.frontier`); 0 converts.
        frontier_speed: decode speed in times the source's that its students are to reach; 0 is any.
    """

    formats: tuple[Format, ...] = ("gguf",)
    bits: int = 4
    gguf: GgufOptions = GgufOptions(quantisations=())
    coreml_variants: tuple[Variant, ...] = ("gpu", "ane")
    coreml_context: int = 2048
    coreml_palette_bits: Literal[4, 6] = 6
    card: bool = True
    tasks: tuple[str, ...] = ()
    coreml_stateful: bool = True
    force: bool = False
    smaller: Recipe | None = None
    recovery: Recipe | None = None
    adapter: Adapter | None = None
    frontier_minutes: float = 0.0
    frontier_speed: float = 0.0

    def __post_init__(self) -> None:
        unknown = [name for name in self.formats if name not in FORMATS]
        if unknown or not self.formats:
            raise UsageError(f"There is no format {', '.join(unknown) or 'named'}.", f"Known are: {', '.join(FORMATS)}.")
        if self.bits not in BY_BITS:
            raise UsageError(f"{self.bits} bits a weight is not offered.", f"Known are: {', '.join(map(str, BY_BITS))}.")
        if not 0 <= self.frontier_minutes < MOST_MINUTES:
            raise UsageError(f"A search cannot take {self.frontier_minutes:g} minutes.", "For example: --minutes 60")

    @property
    def changes_model(self) -> bool:
        """Whether something else than the source's own weights is exported."""
        return self.smaller is not None or self.adapter is not None


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """The model that steps work on: the source, the source with an adapter merged, or its student.

    Attributes:
        input: source of the conversion.
        architecture: of the model.
        name: for people and file names.
        config: config.json, of a GGUF that of its checkpoint.
        model: the same as typed values.
        shapes: of the checkpoint's tensors, by name.
        n_params: weights of the model.
        largest: weights of the largest tensor.
        n_layers: of the model.
        layer_params: weights of one layer.
        width: of the hidden state.
        n_vocab: rows of the head.
        columns: inputs of the widest matrix of a layer.
        kv_width: numbers that a token stores in a layer's KV cache.
        quantised: weight mix of the blocks that can be copied or carried over; None where there are none.
        source_quantised: weight mix of the source, if it was quantised already.
        licence: where it is known.
        is_wide: whether the checkpoint's file is in float32.
        made_by: step whose folder is the model's checkpoint; "" for the source itself.
        describe: functions that return lines for the manifest on how the model was made.
    """

    input: Input
    architecture: Architecture
    name: str
    config: Mapping[str, Any]
    model: ModelConfig
    shapes: dict[str, tuple[int, ...]]
    n_params: int
    largest: int
    n_layers: int
    layer_params: int
    width: int
    n_vocab: int
    columns: int
    kv_width: int
    quantised: str | None
    source_quantised: str | None
    licence: str | None
    is_wide: bool
    made_by: str = ""
    describe: tuple[Callable[[FolderOf], dict[str, str]], ...] = ()

    @property
    def f16_bytes(self) -> int:
        """Size of the weights in 16 bits."""
        return 2 * self.n_params

    @property
    def source_gguf(self) -> Path | None:
        """The GGUF that the model is, unless a step made it."""
        return self.input.path if self.input.kind == "gguf" and not self.made_by else None

    @property
    def carried_gguf(self) -> Path | None:
        """The GGUF whose blocks another format may take over unchanged."""
        return self.source_gguf if self.quantised else None

    def needs_checkpoint(self, request: Request) -> bool:
        """Return whether a step reads the weights of the source GGUF from a checkpoint."""
        is_copied = "gguf" not in request.formats or set(request.gguf.quantisations) == {self.quantised}
        is_needed = request.changes_model or request.card or "coreml" in request.formats or not is_copied
        return self.input.kind == "gguf" and is_needed

    def open(self, folder_of: FolderOf) -> Checkpoint:
        """Open the model's checkpoint: the user's, the one read back from a GGUF, or the one that a step made."""
        made_by = self.made_by or ("checkpoint" if self.input.kind == "gguf" else "")
        if made_by:
            return open_checkpoint(folder_of(made_by), source=self.name, licence=self.licence)
        return open_checkpoint(self.input.path, source=self.input.source, licence=self.input.licence)

    def write_manifest(
        self,
        folder: Path,
        folder_of: FolderOf,
        form: Format | Literal["checkpoint"],
        quantisation: str,
        recipe: Mapping[str, str],
    ) -> None:
        """Write manifest.json into the folder of a step.

        Args:
            folder: of the step.
            folder_of: folders of finished steps.
            form: of the artifact.
            quantisation: name of its mix of weight types.
            recipe: options that decided the result.
        """
        sources = msgspec.json.decode((folder_of("source") / "files.json").read_bytes(), type=tuple[FileEntry, ...])
        made = sorted(path for path in folder.rglob("*") if path.is_file())
        changes = {key: value for describe in self.describe for key, value in describe(folder_of).items()}
        tools = (*(TARGETS[form].tools if form != "checkpoint" else ()), *(SMALLER_TOOLS if self.made_by else ()))
        manifest = Manifest(
            format=form,
            name=self.name,
            architecture=self.architecture.name,
            quantisation=quantisation,
            source=self.input.source,
            source_quantised=self.source_quantised,
            source_files=sources,
            licence=self.licence,
            recipe={**recipe, **changes},
            tools=tool_versions(*tools),
            files=tuple(digest_file(path, name=path.relative_to(folder).as_posix()) for path in made),
        )
        write_manifest(folder / "manifest.json", seal(manifest))


def read_facts(source: Input) -> Facts:
    """Read the facts of a source, without its weights.

    Raises:
        ModelFileError: the source is damaged, incomplete or of an unknown architecture.
    """
    config: Mapping[str, Any]
    if source.kind == "checkpoint":
        opened = open_checkpoint(source.path, source=source.source, licence=source.licence)
        name, architecture, config, model = opened.name, opened.architecture, opened.config, opened.model
        quantised, licence = opened.source_quantised, opened.licence
        is_wide = all(info.dtype == "F32" for info in opened.tensors.values())
        shapes = {tensor: info.shape for tensor, info in opened.tensors.items()}
    else:
        header = read_header(source.path)
        stem = short_name(source.path.stem)
        name = stem.removesuffix(f".{header.file_type}").removesuffix(f"-{header.file_type}") or "model"
        architecture = find_gguf_architecture(header.architecture, source.path.name)
        check_reads_back(architecture, source.path.name)
        config = header_config(source.path, header, architecture)
        model = read_model_config(config, architecture, source.path.name)
        weights = checkpoint_tensors(header, architecture, model)
        kind = type_of_weights(header)
        quantised = None if kind in FLOATS else kind
        in_file = header.metadata.get("general.license")
        licence = source.licence or (in_file if isinstance(in_file, str) else None)
        is_wide = quantised is not None
        shapes = {tensor: tuple(reversed(info.shape)) for tensor, info in weights.items()}
    layers = {tensor: shape for tensor, shape in shapes.items() if tensor.startswith("model.layers.")}
    return Facts(
        input=source,
        architecture=architecture,
        name=name,
        config=config,
        model=model,
        shapes=shapes,
        n_params=sum(map(math.prod, shapes.values())),
        largest=max(map(math.prod, shapes.values())),
        n_layers=model.n_layers,
        layer_params=sum(map(math.prod, layers.values())) // model.n_layers,
        width=model.width,
        n_vocab=model.n_vocab,
        columns=max(shape[1] for shape in layers.values() if len(shape) == 2),
        kv_width=2 * model.n_kv_heads * model.head_dim,
        quantised=quantised,
        source_quantised=quantised,
        licence=licence,
        is_wide=is_wide,
    )
