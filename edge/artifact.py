"""What a model on disk is: an artifact, opened and checked before any engine sees it.

GGUF is one file. ONNX is a folder in the layout of onnxruntime-genai (genai_config.json), Core ML an .mlpackage or .mlmodelc
folder. Everything else is refused by name, with what would make it usable.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edge.errors import ModelFileError, ModelNotFoundError
from edge.gguf import GGUFHeader, read_header

__all__ = ["Artifact", "Format", "open_artifact"]

Format = Literal["gguf", "onnx", "coreml"]

# general.type of a GGUF file -> what it is, where it is no language model.
_NOT_MODELS = {
    "adapter": "a LoRA adapter, which needs the model it was made for",
    "mmproj": "the picture or sound part of a model, which needs its text part",
    "imatrix": "an importance matrix, which only a converter uses",
}
_CHECKPOINT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "config.json")


@dataclass(frozen=True, slots=True)
class Artifact:
    """A model on disk.

    Attributes:
        path: the file, or the folder for ONNX and Core ML.
        format: which engines can read it.
        name: for people: the catalogue's name, or what the file calls itself.
        size_bytes: of the file, or of all files of the folder.
        sha256: of the file, where it is known; None where nobody computed it.
        licence: SPDX identifier or name, where it is known.
        source: the reference it came from, or its path.
        header: the GGUF header; None for other formats.
    """

    path: Path
    format: Format
    name: str
    size_bytes: int
    sha256: str | None = None
    licence: str | None = None
    source: str = ""
    header: GGUFHeader | None = field(default=None, repr=False)


def open_artifact(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    source: str | None = None,
    sha256: str | None = None,
    licence: str | None = None,
) -> Artifact:
    """Look at a model on disk and check that an engine could load it. Its weights are not read.

    Args:
        path: a .gguf file, an ONNX or Core ML folder, or a folder that holds exactly one .gguf file.
        name: instead of the name in the file.
        source: the reference it came from; the path where it is None.
        sha256: of the file, if the caller verified it.
        licence: instead of the one in the file.

    Raises:
        ModelNotFoundError: there is nothing at that path.
        ModelFileError: it is no model, is damaged or cut off, is one part of a split model, or is a checkpoint that has to
            be converted first.
    """
    given = Path(path).expanduser()
    path = _choose(given)
    origin = source if source is not None else str(given)
    folder_format = _folder_format(path)
    if folder_format is not None:
        size_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        return Artifact(path, folder_format, name or path.stem, size_bytes, sha256, licence, origin)
    header = read_header(path)
    _check_is_model(path, header)
    licence_in_file = header.metadata.get("general.license")
    return Artifact(
        path=path,
        format="gguf",
        name=name or header.name or path.stem,
        size_bytes=header.file_bytes,
        sha256=sha256,
        licence=licence or (licence_in_file if isinstance(licence_in_file, str) else None),
        source=origin,
        header=header,
    )


def _choose(path: Path) -> Path:
    """The model that a path means: itself, or the only .gguf file of a folder."""
    try:
        if not path.exists():
            raise ModelNotFoundError(f"There is no file or folder {path}.", "Check the path. See names: edge models ls")
        if not path.is_dir() or _folder_format(path):
            return path
        names = sorted(entry.name for entry in path.iterdir())
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path} cannot be read: {error}.", "Check its permissions.") from error
    models = [name for name in names if name.endswith(".gguf") and not name.startswith(".")]
    if len(models) == 1:
        return path / models[0]
    if models:
        listed = ", ".join(models[:8]) + (", ..." if len(models) > 8 else "")
        raise ModelFileError(f"{path} holds {len(models)} models: {listed}.", "Give the path of one of them.")
    if any(name in _CHECKPOINT_FILES or name.endswith(".safetensors") for name in names):
        raise ModelFileError(
            f"{path} is a checkpoint, which no engine here reads as it is.",
            f"Convert it with: edge convert {path}",
        )
    raise ModelFileError(f"{path} is a folder without a model.", "Give a .gguf file.")


def _folder_format(path: Path) -> Format | None:
    if not path.is_dir():
        return None
    if path.suffix in (".mlpackage", ".mlmodelc"):
        return "coreml"
    return "onnx" if (path / "genai_config.json").is_file() else None


def _check_is_model(path: Path, header: GGUFHeader) -> None:
    if header.kind in _NOT_MODELS:
        raise ModelFileError(f"{path.name} is {_NOT_MODELS[header.kind]}.", "Give the file of the model itself.")
    if header.architecture == "clip":
        raise ModelFileError(f"{path.name} is {_NOT_MODELS['mmproj']}.", "Give the file of the model itself.")
    if header.split_count > 1:
        raise ModelFileError(
            f"{path.name} is one of {header.split_count} parts of a split model, which edge does not load.",
            "Join them with llama.cpp's `llama-gguf-split --merge FIRST_PART OUT.gguf`, and give that file.",
        )
    if not header.tensors:
        raise ModelFileError(f"{path.name} holds a vocabulary and no weights.", "Give the file of the model itself.")
    if not header.n_layer or not header.n_embd:
        raise ModelFileError(
            f"{path.name} does not say how many layers it has or how wide they are.", "Download it again, or convert it anew."
        )
