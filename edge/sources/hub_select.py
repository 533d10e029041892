"""Selects a model of a repository (a GGUF file, an ONNX folder or a Core ML package) by the selector in its reference."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge.errors import ModelFileError, ModelNotFoundError, UsageError
from edge.formats.artifact import is_gguf, is_side_file
from edge.formats.gguf_shards import split_parts
from edge.sources.base import quantisation_of, safe_name
from edge.units import quoted

if TYPE_CHECKING:
    from edge.names import Format

__all__ = ["Selected", "matching", "select"]

_ONNX = re.compile(r"(?:(.*)/)?genai_config\.json")
_PACKAGE = re.compile(r"(.*\.mlpackage)/Manifest\.json")
_ROOT = "."
"""Name of a repository's own folder beside folders with other models."""


@dataclass(frozen=True)
class Selected:
    """A model of a repository.

    Attributes:
        format: of the model.
        name: path of the file, of the ONNX folder ("." is the repository itself) or of the .mlpackage.
    """

    format: Format
    name: str

    @property
    def folder(self) -> str:
        """The folder with its files, or around its package; "" is the repository itself."""
        place = self.name if self.format == "onnx" else self.name.rpartition("/")[0]
        return "" if place == _ROOT else place

    def flat_name(self, repo: str) -> str:
        """Return a name for it in one folder of the store.

        Raises:
            DownloadError: its name in the repository is not safe to write.
        """
        return safe_name(repo if self.name == _ROOT else self.name.removesuffix(".mlpackage"))


def select(names: Sequence[str], selector: str | None, repo_id: str) -> Selected:
    """Return the selected model of a repository. GGUF files come before folders.

    Args:
        names: all files of the repository.
        selector: a file name, a quantisation such as "Q4_K_M", the name of a folder or its last part, or None if there is only
            one model.
        repo_id: for messages.

    Raises:
        UsageError: several fit; they are listed.
        ModelNotFoundError: none fits, or the repository has no model that edge loads.
        ModelFileError: the selected model is split into several files.
    """
    models = [name for name in names if is_gguf(name) and not is_side_file(name)]
    folders = _find_folders(names)
    if not models and not folders:
        raise _without_models(names, repo_id)
    whole = [name for name in models if split_parts(name) == 1]
    matches = matching(models, selector) if selector else whole
    fitting = [] if matches else _matching_folders(folders, selector) if selector else folders
    if len(matches) == 1 and split_parts(matches[0]) == 1:
        return Selected("gguf", matches[0])
    if len(fitting) == 1:
        return fitting[0]
    others = [folder.name for folder in folders]
    parts = [name for name in matches if split_parts(name) > 1]
    if parts or (not whole and not selector and not folders):
        part = (parts or models)[0]
        raise ModelFileError(
            f"hf:{repo_id}: {part} is split into {split_parts(part)} files, which edge does not download.",
            f"{_offer(repo_id, whole, others)} Or download them into one folder, and give the path of the first.",
        )
    if matches:
        raise UsageError(f"hf:{repo_id} holds {len(matches)} files that fit.", _offer(repo_id, matches, others))
    if fitting:
        names_of = [folder.name for folder in fitting]
        raise UsageError(f"hf:{repo_id} holds {len(fitting)} folders that fit.", _offer(repo_id, [], names_of))
    what = "file or folder" if folders else "file"
    raise ModelNotFoundError(f"hf:{repo_id} holds no {what} {selector!r}.", _offer(repo_id, whole, others))


def matching(names: Sequence[str], selector: str) -> list[str]:
    """Return the files that a selector names: exactly, with other case, or by their quantisation."""
    for fits in (
        lambda name: name == selector,
        lambda name: name.lower() == selector.lower(),
        lambda name: quantisation_of(name) == selector.upper(),
        # A split model, or a folder named by the quantisation.
        lambda name: selector.upper() in re.split(r"[-/.]", name.upper()),
    ):
        matches = [name for name in names if fits(name)]
        if matches:
            return sorted(matches)
    return []


def _find_folders(names: Sequence[str]) -> list[Selected]:
    """Return the ONNX folders in onnxruntime-genai's layout, and the Core ML packages."""
    found = []
    for name in sorted(names):
        if config := _ONNX.fullmatch(name):
            found.append(Selected("onnx", config[1] or _ROOT))
        elif package := _PACKAGE.fullmatch(name):
            found.append(Selected("coreml", package[1]))
    return found


def _matching_folders(folders: Sequence[Selected], selector: str) -> list[Selected]:
    """Return the folders that a selector names: whole, by their last part, or by a word of their name."""
    wanted = selector.strip("/").lower()
    namings = [
        [(place, [place.name, place.folder]) for place in folders],
        [(place, [place.name.rpartition("/")[2], place.folder.rpartition("/")[2]]) for place in folders],
        [(place, [place.format, *re.split(r"[-/._]", place.name)]) for place in folders],
    ]
    for naming in namings:
        matches = [place for place, called in naming if wanted in map(str.lower, called)]
        if matches:
            return matches
    return []


def _without_models(names: Sequence[str], repo_id: str) -> ModelNotFoundError:
    """Return the error for a repository without a model that edge loads."""
    if any(name.endswith((".safetensors", ".bin", ".pth")) for name in names):
        return ModelNotFoundError(
            f"hf:{repo_id} holds a checkpoint and no GGUF file.",
            f"Convert it with: edge convert {quoted(f'hf:{repo_id}')}, or look for a repository whose name ends in -GGUF.",
        )
    if any(name.endswith(".onnx") for name in names):
        return ModelNotFoundError(
            f"hf:{repo_id} holds ONNX files without a genai_config.json, which edge cannot run.",
            "Look for a repository made for onnxruntime-genai, or for a GGUF.",
        )
    return ModelNotFoundError(
        f"hf:{repo_id} holds no GGUF file, no ONNX folder and no Core ML package.",
        "Look for a repository whose name ends in -GGUF.",
    )


def _offer(repo_id: str, files: Sequence[str], folders: Sequence[str]) -> str:
    """Return a hint that lists the possible selectors."""
    choices = [quantisation_of(name) or name for name in files]
    if len(set(choices)) < len(choices):
        choices = list(files)
    choices += folders
    if not choices:
        return "Choose another repository."
    listed = ", ".join(choices[:12]) + (", ..." if len(choices) > 12 else "")
    return f"Name one, as in hf:{repo_id}:{choices[0]}. There are: {listed}."
