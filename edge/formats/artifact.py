"""Models on disk, opened and checked before any engine sees them.

GGUF is one file. ONNX is a folder in the layout of onnxruntime-genai (genai_config.json), Core ML an .mlpackage folder. A
folder made by `edge convert` can hold one model in several formats: `open_artifacts`. Everything else is refused by name, with
advice on how to make it usable.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from edge.errors import ModelFileError, ModelNotFoundError, UsageError
from edge.files import exists, expand_user, read_json
from edge.forks import lazy_property
from edge.formats.coreml import CoreMLPackage, read_package
from edge.formats.facts import ModelFacts, facts_of_coreml, facts_of_gguf, facts_of_onnx
from edge.formats.gguf import GGUFHeader, read_header
from edge.formats.gguf_shards import first_shard, gguf_files, is_later_shard, split_parts
from edge.formats.onnx import CONFIG, OnnxFolder, read_onnx_folder
from edge.names import Format
from edge.units import one_line, quoted, reason

__all__ = [
    "Artifact",
    "given_path",
    "is_gguf",
    "is_side_file",
    "licence_beside",
    "open_artifact",
    "open_artifacts",
]

# general.type of a GGUF file that is not a language model -> description.
_NOT_MODELS = {
    "adapter": "a LoRA adapter, which needs the model it was made for",
    "mmproj": "the picture or sound part of a model, which needs its text part",
    "imatrix": "an importance matrix, which only a converter uses",
}
_SIDE_FILE = re.compile(r"^mmproj|[-_.]mmproj|imatrix", re.IGNORECASE)
_MOST_HEADERS = 16  # read to tell the models in a folder from what is beside them
_MOST_FOLDERS = 64  # of a folder that holds a model in several formats
_CHECKPOINT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "config.json")


@dataclass(frozen=True)  # without slots, which leave no room for cached properties
class Artifact:
    """A model on disk.

    Attributes:
        path: the file, or the folder for ONNX and Core ML.
        format: decides which engines can read it.
        name: the catalogue's name, or the one in the file.
        size_bytes: of the file, or of all files of the folder.
        sha256: of the file; None where nobody computed it.
        licence: SPDX identifier or name; None where unknown.
        source: the reference it came from, or its path.
        made_from: SHA-256 of the files that it was converted from, if `edge convert` recorded them.
        header: the GGUF header; None for other formats.
        onnx, coreml: the folder's description; None for other formats.
    """

    path: Path
    format: Format
    name: str
    size_bytes: int
    sha256: str | None = None
    licence: str | None = None
    source: str = ""
    made_from: tuple[str, ...] = ()
    header: GGUFHeader | None = field(default=None, repr=False)
    onnx: OnnxFolder | None = field(default=None, repr=False)
    coreml: CoreMLPackage | None = field(default=None, repr=False)

    @lazy_property
    def facts(self) -> ModelFacts:
        """The model in numbers."""
        if self.header is not None:
            return facts_of_gguf(self.header)
        if self.onnx is not None:
            return facts_of_onnx(self.onnx)
        return facts_of_coreml(self.coreml) if self.coreml is not None else ModelFacts(weights_bytes=self.size_bytes)

    @property
    def quantisation(self) -> str:
        """Type of most of its weights; "" where only its size is known."""
        return self.facts.quantisation

    @property
    def kind(self) -> str:
        """Format and quantisation, for people: "onnx int4"."""
        return f"{self.format} {self.quantisation}".rstrip()

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """The files that decide what the model computes."""
        if self.onnx is not None:
            return self.onnx.files
        if self.coreml is not None:
            return self.coreml.files
        return gguf_files(self.path) if self.header is not None and self.header.split_count > 1 else (self.path,)


def open_artifact(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    source: str | None = None,
    sha256: str | None = None,
    licence: str | None = None,
) -> Artifact:
    """Open a model on disk and check that an engine could load it. Its weights are not read.

    Args:
        path: a .gguf file, an ONNX or Core ML folder, or a folder that holds exactly one of these.
        name: instead of the name in the file.
        source: the reference it came from; the path where it is None.
        sha256: of the file, if the caller verified it.
        licence: instead of the one in the file.

    Raises:
        ModelNotFoundError: there is nothing at that path.
        ModelFileError: it is not a model, is damaged or truncated, is a later part of a split model, or is a checkpoint that
            has to be converted first.
    """
    given = given_path(path)
    models = _find_models(given)
    if len(models) > 1:
        raise _several(given, models)
    return _open(models[0], name, source if source is not None else str(given), sha256, licence)


def open_artifacts(
    path: str | os.PathLike[str], *, name: str | None = None, source: str | None = None, licence: str | None = None
) -> list[Artifact]:
    """Open a folder that may hold one model in several formats, as `edge convert` leaves them; otherwise as `open_artifact`.

    Returns:
        At least one artifact.

    Raises:
        ModelNotFoundError, ModelFileError: as `open_artifact`; or the folder holds different models.
    """
    given = given_path(path)
    origin = source if source is not None else str(given)
    return [_open(model, name, origin, None, licence) for model in _find_models(given)]


def given_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a model as the user wrote it, with "~" expanded.

    Raises:
        ModelNotFoundError: there is no such home directory.
    """
    try:
        return expand_user(path)
    except UsageError as error:
        raise ModelNotFoundError(error.message, error.hint) from None


def _open(path: Path, name: str | None, origin: str, sha256: str | None, licence: str | None) -> Artifact:
    """Open a file, or a folder that is a model."""
    folder_format, manifest = _folder_format(path), _read_manifest(path)
    header: GGUFHeader | None = None
    own_licence: object = manifest.licence
    if folder_format is None:
        header = read_header(path)
        _check_is_model(path, header)
        own_name, own_licence, size_bytes = header.name, header.metadata.get("general.license"), header.file_bytes
    else:
        own_name, size_bytes = manifest.name, _folder_bytes(path)
    return Artifact(
        path=path,
        format=folder_format or "gguf",
        name=name or one_line(own_name) or path.stem,
        size_bytes=size_bytes,
        sha256=sha256,
        licence=licence or (one_line(own_licence) if isinstance(own_licence, str) else None),
        source=origin,
        made_from=manifest.sources,
        header=header,
        onnx=read_onnx_folder(path) if folder_format == "onnx" else None,
        coreml=read_package(path) if folder_format == "coreml" else None,
    )


def _folder_bytes(path: Path) -> int:
    try:
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}.", "Check its permissions.") from error


def is_gguf(name: str) -> bool:
    """Return True if a file is called a GGUF file, in small letters or capitals."""
    return name.lower().endswith(".gguf")


def is_side_file(name: str) -> bool:
    """Return True for the name of a GGUF file beside a model: the vision part of a model, an importance matrix."""
    return _SIDE_FILE.search(name.rpartition("/")[2]) is not None


def licence_beside(path: Path) -> str | None:
    """Return the licence in the manifest of a model, None if it has none. Reads one small file, unlike opening the model."""
    return _read_manifest(path).licence


class _SourceFile(msgspec.Struct, frozen=True):
    sha256: str = ""


class _Manifest(msgspec.Struct, frozen=True):
    """The part of manifest.json, which `edge convert` writes beside a model, that counts here."""

    name: str = ""
    licence: str | None = None
    source_files: tuple[_SourceFile, ...] = ()

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(file.sha256 for file in self.source_files)


def _read_manifest(path: Path) -> _Manifest:
    """Return the manifest of a model, empty where it has none."""
    folder = path if _folder_format(path) == "onnx" else path.parent
    manifest = folder / "manifest.json"
    try:
        return read_json(manifest, _Manifest) if manifest.is_file() else _Manifest()
    except ModelFileError:
        return _Manifest()  # other programs have files of that name, too


def _find_models(path: Path) -> list[Path]:
    """Return the models that a path means: itself, the only one in a folder, or one model in several formats in its folders."""
    try:
        if not exists(path):
            raise _not_there(path)
        if not path.is_dir() or _folder_format(path):
            return [path]
        own = _models_in(path)
        found = own or [model for folder in _folders_in(path) for model in _models_in(folder)]
        names = sorted(entry.name for entry in path.iterdir())
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path} cannot be read: {reason(error)}.", "Check its permissions.") from error
    models = [model for model in found if not is_later_shard(model.name)]
    if found and not models:
        raise ModelNotFoundError(
            f"{found[0]} is part of a split model, and its first file, {first_shard(found[0]).name}, is not there.",
            "Download all of its files into one folder.",
        )
    if len(models) > 1:
        origins = {(manifest.name, manifest.sources) for manifest in map(_read_manifest, models)}
        if own or len(origins) > 1 or ("", ()) in origins:
            raise _several(path, models)
    if models:
        return models
    if any(name in _CHECKPOINT_FILES or name.endswith(".safetensors") for name in names):
        raise ModelFileError(
            f"{path} is a checkpoint, which no engine here reads as it is.",
            f"Convert it with: edge convert {quoted(path)}",
        )
    raise ModelFileError(f"{path} is a folder without a model.", "Give a .gguf file, or an ONNX or Core ML folder.")


def _not_there(path: Path) -> ModelNotFoundError:
    text = str(path)
    shown = text if len(text) <= 200 else text[:197] + "..."
    return ModelNotFoundError(f"There is no file or folder {shown}.", "Check the path. See names: edge models ls")


def _several(path: Path, models: list[Path]) -> ModelFileError:
    names = [str(model.relative_to(path)) for model in models]
    listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return ModelFileError(f"{path} holds {len(models)} models: {listed}.", "Give the path of one of them.")


def _folders_in(path: Path) -> list[Path]:
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return folders[:_MOST_FOLDERS]


def _models_in(path: Path) -> list[Path]:
    """Return the models in a folder: the folder itself, or files and folders in it.

    Other programs put vision parts and importance matrices beside a model. They are left out, also by what their headers say;
    so are the parts of a split model beside a whole one.
    """
    if _folder_format(path):
        return [path]
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    packages = [entry for entry in entries if _folder_format(entry) == "coreml"]
    files = [entry for entry in entries if is_gguf(entry.name) and not entry.is_dir()]
    files = [file for file in files if split_parts(file.name) == 1] or files
    files = [file for file in files if not is_side_file(file.name)] or files
    if 1 < len(files) <= _MOST_HEADERS and split_parts(files[0].name) == 1:
        files = [file for file in files if not _is_side_model(file)] or files
    return sorted([*files, *packages])


def _is_side_model(file: Path) -> bool:
    try:
        header = read_header(file)
    except ModelFileError:
        return False  # opening it says why
    return _side_kind(header) is not None


def _side_kind(header: GGUFHeader) -> str | None:
    """Return the description of a GGUF file that is not a language model; None if it may be one."""
    return _NOT_MODELS["mmproj"] if header.architecture == "clip" else _NOT_MODELS.get(header.kind)


def _folder_format(path: Path) -> Format | None:
    if not path.is_dir():
        return None
    if path.suffix.lower() in (".mlpackage", ".mlmodelc"):
        return "coreml"
    return "onnx" if (path / CONFIG).is_file() else None


def _check_is_model(path: Path, header: GGUFHeader) -> None:
    if side := _side_kind(header):
        raise ModelFileError(f"{path.name} is {side}.", "Give the file of the model itself.")
    if not header.tensors:
        raise ModelFileError(f"{path.name} holds a vocabulary and no weights.", "Give the file of the model itself.")
    if not header.n_layer or not header.n_embd:
        raise ModelFileError(
            f"{path.name} does not say how many layers it has or how wide they are, as a model of the architecture "
            f"{header.architecture[:40]!r} should.",
            "If llama.cpp does not know this architecture, nor does edge; otherwise download or convert the model again.",
        )
