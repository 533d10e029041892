"""From what a user writes behind --lora to adapters that fit the model: GGUF files, and folders that peft saved."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from edge.adapters import Adapter, split_scale
from edge.errors import BackendUnavailableError, ModelNotFoundError, UnsupportedError, UsageError
from edge.files import exists
from edge.formats.gguf_adapter import read_adapter
from edge.hashes import file_sha256
from edge.registry import ADAPTER_CONVERTER, load_entry
from edge.units import short_name

if TYPE_CHECKING:
    from edge.config.schema import Settings
    from edge.formats.artifact import Artifact
    from edge.formats.gguf_header import GGUFHeader
    from edge.sources.base import OnProgress

__all__ = ["find_adapters"]

_MOST = 64


def find_adapters(
    written: Iterable[str],
    model: Artifact,
    *,
    settings: Settings,
    download: bool = True,
    on_progress: OnProgress | None = None,
) -> tuple[Adapter, ...]:
    """Find adapters, fetch those of the hub, convert folders once, and check that all fit the model.

    Args:
        written: each FILE[:SCALE]: a GGUF file, a folder that peft saved, or hf:OWNER/REPO with one.
        model: a GGUF file.
        settings: directories, hub, offline mode.
        download: fetch what is not here; if False, that is a ModelNotFoundError.
        on_progress: called with the progress of a download.

    Raises:
        UsageError: a scale is out of range, or an adapter is given twice.
        ModelNotFoundError: there is no such file or folder.
        ModelFileError: it is not an adapter, is damaged, or of another model.
        UnsupportedError: the model is not a GGUF file.
        BackendUnavailableError: it is a folder, and the converter is not installed.
        DownloadError, AccessDeniedError, ChecksumError, StorageError: it could not be fetched, or written as GGUF.
    """
    if model.header is None:
        raise UnsupportedError(f"{model.name} is {model.kind}, to which no adapter can be applied.", "Get the model as GGUF.")
    cache_dir, adapters = settings.paths.cache_dir, list[Adapter]()
    for text in written:
        path, scale = split_scale(text)
        if text.startswith("hf:"):
            path = _fetch(path.as_posix(), settings, on_progress, download=download)
        name = _name(path, [adapter.name for adapter in adapters])
        file = _as_gguf(path, model.header, cache_dir)
        digest = file_sha256(file, cache_dir=cache_dir)
        same = next((one for one in adapters if one.sha256 == digest), None)
        if same is not None:
            raise UsageError(f"The adapter {path} is given twice (as {same.name} before).", "Give it once, at one scale.")
        adapters.append(read_adapter(file, model.header, name=name, scale=scale, sha256=digest))
    if len(adapters) > _MOST:
        raise UsageError(f"{len(adapters)} adapters are too many.", f"Load {_MOST} at most.")
    return tuple(adapters)


def _name(path: Path, taken: list[str]) -> str:
    """Return the name of an adapter: that of its file or folder, with a number where another has it."""
    stem = path.stem if path.suffix.lower() == ".gguf" else path.resolve().name
    name = short_name(stem.replace(":", "-")) or "adapter"
    numbered = (f"{name}-{number}" for number in range(2, _MOST + 2))
    return name if name not in taken else next(one for one in numbered if one not in taken)


def _fetch(reference: str, settings: Settings, on_progress: OnProgress | None, *, download: bool) -> Path:
    import msgspec

    from edge.catalog.api import pull_adapter

    if not download:
        settings = msgspec.structs.replace(settings, hub=msgspec.structs.replace(settings.hub, offline=True))
    return pull_adapter(reference, settings=settings, on_progress=on_progress).path


def _as_gguf(path: Path, model: GGUFHeader, cache_dir: Path) -> Path:
    if not exists(path):
        hint = "Give a GGUF file, a folder that peft saved, or hf:OWNER/REPO."
        raise ModelNotFoundError(f"There is no adapter {path}.", hint)
    if not path.is_dir():
        return path
    files = [file for file in sorted(path.glob("*.gguf")) if file.is_file()]
    if len(files) == 1 and not (path / "adapter_config.json").exists():
        return files[0]
    try:
        convert = load_entry(ADAPTER_CONVERTER)
    except ImportError as error:
        raise BackendUnavailableError(
            f"{path} is a folder that has to be converted, and the converter's packages are not installed ({error}).",
            "Install them: pip install 'edge-assistant[convert]'. Or give the adapter as a GGUF file.",
        ) from error
    converted: Path = convert(path, model, cache_dir)
    return converted
