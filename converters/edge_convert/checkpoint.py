"""A checkpoint: a folder in the layout of Hugging Face, opened and checked without reading its weights into memory.

Weights are safetensors, in one file or in shards. Pickle is refused: opening one runs code that is in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge import files
from edge.errors import ModelFileError, ModelNotFoundError
from edge.forks import lazy_property
from edge.units import short_name, type_words
from edge_convert.architectures import Architecture, find_architecture
from edge_convert.model_config import ModelConfig, read_model_config
from edge_convert.shapes import EMBEDDING, HEAD, check_tensors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "PICKLES",
    "Checkpoint",
    "TensorInfo",
    "check_path",
    "find_tensors",
    "licence_in_card",
    "named_templates",
    "open_checkpoint",
    "read_json",
    "read_template",
]

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SOURCE_NOTE = "edge_source.json"
"""Written beside a checkpoint that edge made: its source, licence and former weight mix."""

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_EXPONENTS = {"F64": ("u8", 0x7FF << 52), "F32": ("u4", 0xFF << 23), "F16": ("u2", 0x1F << 10), "BF16": ("u2", 0xFF << 7)}
"""Type -> an integer of its width, and the bits of the exponent, which are all set in what is not a number."""
_LARGEST_F16 = 65_504.0
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_MAX_HEADER_BYTES = 100 << 20
_MAX_TEMPLATE_BYTES = 4 << 20
_MAX_JSON_BYTES = 256 << 20  # tokenizer.json of a large vocabulary has 35 MB


class _Note(msgspec.Struct, frozen=True, kw_only=True):
    """The content of SOURCE_NOTE that is read again."""

    source: str | None = None
    licence: str | None = None
    source_quantised: str | None = None


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Location of one tensor.

    Attributes:
        shard: the file.
        offset: of its first byte in the file.
        dtype: "F64", "F32", "F16" or "BF16".
        shape: rows first, as in torch.
        size_bytes: in the file.
    """

    shard: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder.

    Attributes:
        folder: its path.
        source: the reference the user gave, or the folder.
        architecture: named in config.json.
        config: the content of config.json.
        tensors: name -> location.
        tokenizer_files: names of the tokenizer's and template's files.
        chat_template: Jinja source; None where the checkpoint has none.
        licence: where it is known.
        source_quantised: the weight mix of the GGUF this was made from ("Q4_1"), None for an original.
    """

    folder: Path
    source: str
    architecture: Architecture
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo] = field(repr=False)
    tokenizer_files: tuple[str, ...]
    chat_template: str | None = field(repr=False)
    licence: str | None
    source_quantised: str | None

    @property
    def name(self) -> str:
        """The last part of the folder or reference."""
        last = self.source.rstrip("/").rsplit("/", 1)[-1].partition("@")[0]
        return short_name(last) or short_name(self.folder.name) or "model"

    @property
    def shards(self) -> tuple[Path, ...]:
        """The weight files, by name."""
        return tuple(sorted({info.shard for info in self.tensors.values()}))

    @lazy_property
    def model(self) -> ModelConfig:
        """The content of config.json as typed values."""
        return read_model_config(self.config, self.architecture, self.folder.name)

    @lazy_property
    def is_tied(self) -> bool:
        """Whether the head shares the embedding's weights: there is no other, or the one stored beside it is the same.

        Older versions of transformers left heads behind that differ from the embedding in checkpoints that say "tied".
        """
        return HEAD not in self.tensors or (self.model.says_tied and self._are_equal(HEAD, EMBEDDING))

    @property
    def n_params(self) -> int:
        """Number of weights; a shared head counts once."""
        return sum(info.size_bytes // _ITEM_BYTES[info.dtype] for info in self.tensors.values())

    @property
    def f16_bytes(self) -> int:
        """Size of the weights in 16 bits."""
        return 2 * self.n_params

    def load(self, name: str) -> NDArray[np.generic]:
        """Read one tensor.

        Args:
            name: a key of `tensors`.

        Returns:
            The tensor as stored: float64, float32, float16 or ml_dtypes.bfloat16, of the shape in `tensors`.

        Raises:
            ModelFileError: the file ended early.
        """
        parts = self.parts(name, self.tensors[name].size_bytes)
        return next(parts).reshape(self.tensors[name].shape)

    def load_rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.generic]:
        """Read rows [start, stop) of a tensor; see `load`."""
        if stop is None:
            return self.load(name)
        info = self.tensors[name]
        row_bytes = info.size_bytes // info.shape[0]
        first, last = start * row_bytes, stop * row_bytes
        return next(self.parts(name, last - first, start=first, end=last)).reshape(stop - start, *info.shape[1:])

    def parts(
        self, name: str, n_bytes: int = 16 << 20, *, start: int = 0, end: int | None = None
    ) -> Iterator[NDArray[np.generic]]:
        """Read bytes [start, end) of a tensor in flat pieces of at most `n_bytes`; see `load` for types and errors."""
        import ml_dtypes
        import numpy as np

        dtypes: dict[str, Any] = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
        info = self.tensors[name]
        with info.shard.open("rb") as file:
            file.seek(info.offset + start)
            stop = info.size_bytes if end is None else end
            for first in range(start, stop, n_bytes):
                wanted = min(n_bytes, stop - first)
                values = np.fromfile(file, dtype=np.uint8, count=wanted)
                if values.size != wanted:
                    raise ModelFileError(f"{info.shard.name} ends inside of {name}.", "Download that file again.")
                yield values.view(dtypes[info.dtype])

    def load_f32(self, name: str) -> NDArray[np.float32]:
        """Read one tensor as float32."""
        import numpy as np

        return self.load(name).astype(np.float32, copy=False)

    def check_finite(self, on_bytes: Callable[[int], None] | None = None) -> None:
        """Read all weights and refuse those that are not numbers.

        Args:
            on_bytes: called with the number of bytes read so far; may raise to stop.

        Raises:
            ModelFileError: a tensor holds a NaN or an infinity; its name is in the message.
        """
        import numpy as np

        done = 0
        for name, info in self.tensors.items():
            integer, exponent = _EXPONENTS[info.dtype]
            for part in self.parts(name):
                if ((part.view(integer) & np.array(exponent, integer)) == np.array(exponent, integer)).any():
                    raise ModelFileError(f"The tensor {name} holds values that are not numbers.", "Download it again.")
                done += part.nbytes
                if on_bytes:
                    on_bytes(done)

    def check_fits_f16(self) -> None:
        """Refuse weights that are infinite in 16 bits.

        Raises:
            ModelFileError: a tensor has one; its name is in the message.
        """
        import numpy as np

        for name, info in self.tensors.items():
            if info.dtype != "F16":
                largest = max(float(np.abs(part.astype(np.float32)).max()) for part in self.parts(name))
                if largest > _LARGEST_F16:
                    raise ModelFileError(
                        f"The tensor {name} has weights too large for float16 ({largest:,.0f}).",
                        "Choose a format with other types: --quant BF16 or Q8_0, or --to onnx",
                    )

    def _are_equal(self, one: str, other: str) -> bool:
        """Compare two tensors, a piece at a time."""
        import numpy as np

        if self.tensors[one].dtype != self.tensors[other].dtype:
            return np.array_equal(self.load_f32(one), self.load_f32(other))
        return all(np.array_equal(*pair) for pair in zip(self.parts(one), self.parts(other), strict=True))


def open_checkpoint(folder: Path, *, source: str | None = None, licence: str | None = None) -> Checkpoint:
    """Open a checkpoint folder and check that it is complete, without reading the weights.

    Args:
        folder: with config.json, safetensors and tokenizer files.
        source: the reference it came from; None is the folder.
        licence: overrides the folder's.

    Raises:
        ModelNotFoundError: there is no such folder.
        ModelFileError: a file is missing, damaged or a pickle, or the architecture is unknown.
    """
    if not folder.is_dir():
        raise ModelNotFoundError(f"There is no folder {folder}.", "Give the folder of a checkpoint, with its config.json.")
    if not (folder / "config.json").is_file():
        raise ModelFileError(f"{folder} has no config.json, so it is not a checkpoint.", "Download the checkpoint again.")
    config = read_json(folder / "config.json")
    architecture = find_architecture(config, folder.name)
    _check_generates(folder)
    model = read_model_config(config, architecture, folder.name)
    found = find_tensors(folder)
    tensors = {name: info for name, info in found.items() if not name.endswith("rotary_emb.inv_freq")}
    check_tensors({name: info.shape for name, info in tensors.items()}, architecture, model)
    names = tuple(name for name in _TOKENIZER_FILES if (folder / name).is_file())
    if "tokenizer.json" not in names:
        raise ModelFileError(
            f"{folder} has no tokenizer.json.",
            "Make it with transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
        )
    has_note = (folder / SOURCE_NOTE).is_file()
    note = files.read_json(folder / SOURCE_NOTE, _Note, _MAX_JSON_BYTES) if has_note else _Note()
    return Checkpoint(
        folder=folder,
        source=source or note.source or str(folder),
        architecture=architecture,
        config=config,
        tensors=tensors,
        tokenizer_files=names,
        chat_template=read_template(folder),
        licence=licence or note.licence or licence_in_card(folder / "README.md"),
        source_quantised=note.source_quantised,
    )


def _check_generates(folder: Path) -> None:
    """Refuse a decoder that was trained to make embeddings: what a format would keep of it generates text."""
    if (folder / "modules.json").is_file():
        raise ModelFileError(
            f"{folder.name} makes embeddings with a decoder (modules.json), which edge does not convert.",
            "edge runs such models as GGUF: look for a repository of that model whose name ends in -GGUF, and see edge embed.",
        )


def check_path(path: Path) -> None:
    """Refuse the path of a source that the libraries of a conversion cannot open.

    Raises:
        ModelFileError: it is not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        shown = short_name(str(path), 300)
        raise ModelFileError(
            f"{shown} cannot be converted: its path is not UTF-8, and libraries cannot open it.", "Give it another name."
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a file with a JSON object.

    Raises:
        ModelFileError: it cannot be read, or does not hold a JSON object.
    """
    return files.read_json(path, dict[str, Any], _MAX_JSON_BYTES)


def find_tensors(folder: Path, unused: Collection[str] = ()) -> dict[str, TensorInfo]:
    """Locate the tensors of a checkpoint folder, but for those of the names in `unused`, which may have any type.

    Raises:
        ModelFileError: files are missing, damaged or pickle, or a tensor is no float.
    """
    if (folder / INDEX).is_file():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise ModelFileError(f"{folder / INDEX} has no weight_map.", "Download it again.")
        return _read_shards(folder, {name: file for name, file in weight_map.items() if name not in unused}, unused)
    if (folder / SINGLE).is_file():
        return _read_shard(folder / SINGLE, unused)
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise ModelFileError(
            f"{folder} holds its weights as pickle ({pickles[0]}), which can run any code when it is opened.",
            "Use a safetensors version of this checkpoint.",
        )
    raise ModelFileError(f"{folder} holds no weights: neither {SINGLE} nor {INDEX} is there.", "Download it again.")


def _read_shards(folder: Path, weight_map: dict[str, str], unused: Collection[str]) -> dict[str, TensorInfo]:
    names = sorted(set(weight_map.values()))
    strange = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
    if strange:
        raise ModelFileError(f"{INDEX} names {strange[0]!r}, which is not a safetensors file beside it.", "Download it again.")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelFileError(
            f"{folder} is incomplete: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing.",
            "Download the missing files into that folder.",
        )
    shards = {name: _read_shard(folder / name, unused) for name in names}
    for tensor, name in weight_map.items():
        if tensor not in shards[name]:
            raise ModelFileError(f"{name} does not hold {tensor}, which {INDEX} says it does.", f"Download {name} again.")
    return {tensor: shards[name][tensor] for tensor, name in weight_map.items()}


def _read_shard(path: Path, unused: Collection[str]) -> dict[str, TensorInfo]:
    """Locate the tensors of a safetensors file. The library checks its header; only the offsets are read here."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="np"):
            pass
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(header_bytes, _MAX_HEADER_BYTES)))
    except (OSError, ValueError, SafetensorError) as error:
        why = type_words(str(error).replace("Error while deserializing header: ", ""))
        raise ModelFileError(f"{path.name} is damaged or truncated: {why}.", f"Download {path.name} again.") from error
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__" or name in unused:
            continue
        if entry["dtype"] not in _ITEM_BYTES:
            raise ModelFileError(
                f"{path.name}: {name} is stored as {entry['dtype']}, which is not a 16 or 32-bit float.",
                "Convert the checkpoint that it was made from.",
            )
        start, end = entry["data_offsets"]
        tensors[name] = TensorInfo(path, 8 + header_bytes + start, entry["dtype"], tuple(entry["shape"]), end - start)
    return tensors


def read_template(folder: Path) -> str | None:
    """Return the chat template of a model folder, as Jinja source, or None."""
    if (folder / "chat_template.jinja").is_file():
        return files.read_text(folder / "chat_template.jinja", _MAX_TEMPLATE_BYTES)
    if not (folder / "tokenizer_config.json").is_file():
        return None
    template = read_json(folder / "tokenizer_config.json").get("chat_template")
    named = named_templates(folder)
    if named:  # take the default, or the only one
        template = named.get("default", next(iter(named.values())) if len(named) == 1 else None)
    return template if isinstance(template, str) else None


def named_templates(folder: Path) -> dict[str, Any]:
    """Return the chat templates by name of a model folder that has several."""
    if (folder / "chat_template.jinja").is_file() or not (folder / "tokenizer_config.json").is_file():
        return {}
    found = read_json(folder / "tokenizer_config.json").get("chat_template")
    entries = found if isinstance(found, list) else []
    return {str(entry.get("name")): entry.get("template") for entry in entries if isinstance(entry, dict)}


def licence_in_card(card: Path) -> str | None:
    """Return the licence in the front matter of a model card, or None."""
    if not card.is_file():
        return None
    lines = card.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0].strip() != "---":
        return None
    found: dict[str, str] = {}
    for line in lines[1:]:
        if line.strip() == "---":
            break
        key, colon, value = line.partition(":")
        if colon:
            found[key.strip()] = value.strip().strip("'\"")
    return found.get("license_name") or found.get("license")
