"""Several files of one commit become one folder of ours: ONNX folders, Core ML packages, checkpoints and adapters.

Which files are wanted is a list of names, so that code, pickles and whatever else lies there is never fetched. Files are
gathered in `.partial`; the folder gets its name by one rename when all of them are there and checked. Whoever goes on later
reads what was gathered once more.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from edge.errors import ChecksumError, DownloadError, ModelFileError
from edge.hashes import file_sha256
from edge.sources.base import safe_name
from edge.sources.store import FileRecord, weights_sha256

if TYPE_CHECKING:
    from edge.sources.base import Phase
    from edge.sources.hub import HubSource, Listed, Listing, Reference
    from edge.sources.store import Record

__all__ = ["ADAPTER", "CHECKPOINT", "FOLDERS", "FolderKind", "fetch_folder"]

Names = Sequence[str]
Files = dict[str, str]
"""Name inside the folder that is made -> name in the repository."""
Tell = Callable[..., None]
"""Called with the bytes of a file so far, and the phase."""

_BESIDE = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template.jinja", "chat_template.json", "config.json", "generation_config.json", "manifest.json",
    "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE",
)  # fmt: skip
_CHECKPOINT = (
    "config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template*", "README.md", "model*.safetensors", "model.safetensors.index.json",
)  # fmt: skip
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "README.md")
_PROGRAM, _WEIGHTS = "Data/*/*.mlmodel", "Data/*/weights/*.bin"


@dataclass(frozen=True)
class FolderKind:
    """Which files a folder of one kind consists of.

    Attributes:
        area: folder below the models folder.
        format: as in a Record; "" where no engine reads it.
        about: small files that say what else is needed, and whether the model is one that can be run: (names of the repository,
            folder in it) -> files.
        rest: everything else: (names, folder, folder of ours with the small files) -> files.
    """

    area: str
    format: str
    about: Callable[[Names, str], Files]
    rest: Callable[[Names, str, Path], Files]


def fetch_folder(
    source: HubSource,
    wanted: Reference,
    listing: Listing,
    kind: FolderKind,
    place: str,
    into: tuple[str, ...],
    record: Record,
) -> tuple[Path, Record]:
    """Fetch a folder. The caller holds its lock.

    Args:
        source: whose server, token and store are used.
        wanted: the reference.
        listing: of its commit.
        kind: of folder.
        place: folder in the repository, or path of an .mlpackage; "" is the repository itself.
        into: folders below the models folder.
        record: of what is fetched, without its files.

    Returns:
        Where it is, and its record.

    Raises:
        DownloadError, AccessDeniedError, ChecksumError, ModelNotFoundError: as the server answered.
        ModelFileError: the small files say that edge cannot use the rest.
        StorageError: no room, or it cannot be written.
    """
    return _Gathering(source, wanted, listing, kind, record).run(place, into)


class _Gathering:
    def __init__(self, source: HubSource, wanted: Reference, listing: Listing, kind: FolderKind, record: Record) -> None:
        self.source, self.wanted, self.listing, self.kind, self.record = source, wanted, listing, kind, record
        self.store = source.context.store
        self.staging = self.store.staging(kind.area, wanted.repo_id, listing.commit, record.file)
        self.known: dict[str, FileRecord] = {}
        self.is_promised = False
        self.older = self._find_older()

    def run(self, place: str, into: tuple[str, ...]) -> tuple[Path, Record]:
        names = list(self.listing.files)
        self._take(self.kind.about(names, place), is_told=False)
        self._take(self.kind.rest(names, place, self.staging), is_told=True)
        files = tuple(self.known[name] for name in sorted(self.known))
        record = replace(self.record, promised="hub" if self.is_promised else "", files=files)
        path = self.store.install(self.staging, into, self._describe(record) if self.kind.format else record)
        return next(pair for pair in self.store.records(*into) if pair[0] == path)

    def _take(self, files: Files, *, is_told: bool) -> None:
        """Have these files in the staging folder, whichever way they come."""
        wanted = {name: self.listing.files[theirs] for name, theirs in files.items() if name not in self.known}
        for name in wanted:
            _check_name(name)
        sizes = {name: file.size_bytes or 0 for name, file in wanted.items()}
        missing = [name for name, file in wanted.items() if not (self.staging / name).is_file() and not self._has_older(file)]
        partials = {name: self.source.partial_of(self.wanted, self.listing.commit, wanted[name]) for name in missing}
        self.store.check_space(sum(max(0, sizes[name] - _size(partials[name])) for name in missing))
        before, total = 0, sum(sizes.values())
        for name, file in wanted.items():

            def tell(n_bytes: int, phase: Phase = "download", before: int = before) -> None:
                if is_told:
                    self.source.context.report(before + n_bytes, total, phase)

            digest = self._staged(name, file, tell) or self._linked(name, file) or self._fetched(name, file, tell)
            state = (self.staging / name).stat()
            self.known[name] = FileRecord(name=name, size_bytes=state.st_size, mtime_ns=state.st_mtime_ns, sha256=digest)
            self.is_promised |= file.sha256 is not None
            before += sizes[name]

    def _staged(self, name: str, file: Listed, tell: Tell) -> str | None:
        """The hash of a file that an earlier run gathered, if it still is what it should be."""
        path = self.staging / name
        if not path.is_file():
            return None
        digest = file_sha256(path, on_bytes=lambda done: tell(done, "verify"))
        if path.stat().st_size == (file.size_bytes or path.stat().st_size) and digest == (file.sha256 or digest):
            return digest
        path.unlink()
        return None

    def _linked(self, name: str, file: Listed) -> str | None:
        """The hash of a file that an earlier commit had as well: one file under two names, no second copy."""
        older = self.older.get(file.sha256 or "")
        if older is None:
            return None
        try:
            os.link(older, self.store.place_in(self.staging, name))
        except OSError:
            return None  # a file system without hard links: it is fetched
        return file.sha256

    def _fetched(self, name: str, file: Listed, tell: Tell) -> str:
        partial, digest, _ = self.source.fetch_listed(
            self.wanted, self.listing.commit, file, on_bytes=lambda done, total: tell(done)
        )
        self.store.gather(partial, self.staging, name)
        return digest

    def _find_older(self) -> dict[str, Path]:
        """Files of earlier commits by their hash."""
        found = {}
        for path, record in self.store.records(self.kind.area, self.wanted.owner, self.wanted.repo):
            if record.files and self.store.is_unchanged(path, record):
                found.update({file.sha256: path / file.name for file in record.files})
        return found

    def _has_older(self, file: Listed) -> bool:
        return file.sha256 is not None and file.sha256 in self.older

    def _describe(self, record: Record) -> Record:
        """The record with what the folder says of itself; one that cannot be opened is kept, and opening it says why."""
        from edge.formats.artifact import open_artifact

        try:
            artifact = open_artifact(self.staging)
        except ModelFileError:
            return record
        self._check_pinned(artifact.weight_files)
        return replace(record, quantisation=artifact.quantisation)

    def _check_pinned(self, weights: Sequence[Path]) -> None:
        """Hold the weights against the hash that the catalogue names, as `edge models show --verify` computes it."""
        entry = self.source.context.entry
        if entry is None or entry.sha256 is None:
            return
        digest = weights_sha256(self.staging, tuple(self.known.values()), weights)
        if digest != entry.sha256:
            shutil.rmtree(self.staging)
            raise ChecksumError(
                f"{self.wanted} is not what the catalogue names: its SHA-256 is {digest}, not {entry.sha256}.",
                "It was replaced there. Check the publisher's page before you use it by its own reference.",
            )


def _onnx_about(names: Names, folder: str) -> Files:
    from edge.formats.onnx import CONFIG

    return {CONFIG: _join(folder, CONFIG)}


def _onnx_rest(names: Names, folder: str, staging: Path) -> Files:
    """The model file that genai_config.json names, weights beside it (model.onnx.data, model.onnx_data_1), the tokenizer."""
    from edge.formats.onnx import find_decoder

    model = find_decoder(staging)
    prefix = _join(folder, model)
    weights = [name for name in names if name == prefix or name.startswith((f"{prefix}.data", f"{prefix}_data"))]
    if prefix not in names:
        raise DownloadError(
            f"The repository has no {prefix}, which its genai_config.json names.", "Report it to its publisher."
        )
    return {**_inside(folder, weights), **_beside(names, folder)}


def _coreml_about(names: Names, package: str) -> Files:
    folder, base = package.rpartition("/")[0], package.rpartition("/")[2]
    inside = [name.removeprefix(package + "/") for name in names if name.startswith(package + "/")]
    small = [name for name in inside if name == "Manifest.json" or fnmatch.fnmatchcase(name, _PROGRAM)]
    return {f"{base}/{name}": f"{_join(folder, base)}/{name}" for name in small}


def _coreml_rest(names: Names, package: str, staging: Path) -> Files:
    """Weights and tokenizer, once the program says that edge knows how to run it."""
    from edge.formats.coreml import read_package

    folder, base = package.rpartition("/")[0], package.rpartition("/")[2]
    read_package(staging / base)
    inside = [name.removeprefix(package + "/") for name in names if name.startswith(package + "/")]
    weights = [name for name in inside if fnmatch.fnmatchcase(name, _WEIGHTS)]
    return {**{f"{base}/{name}": f"{package}/{name}" for name in weights}, **_beside(names, folder)}


def _top_level(patterns: Sequence[str]) -> Callable[[Names, str, Path], Files]:
    def find(names: Names, folder: str, staging: Path) -> Files:
        wanted = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
        # A record of ours lies beside what it describes: nothing from outside may look like one.
        return {name: name for name in sorted(wanted) if "/" not in name and not name.endswith(".edge.json")}

    return find


def _nothing(names: Names, folder: str) -> Files:
    return {}


def _beside(names: Names, folder: str) -> Files:
    return _inside(folder, [name for base in _BESIDE if (name := _join(folder, base)) in names])


def _inside(folder: str, names: Sequence[str]) -> Files:
    return {name.removeprefix(folder + "/") if folder else name: name for name in names}


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _check_name(name: str) -> None:
    """Refuse a name that would lead out of the folder, or hide in it.

    Raises:
        DownloadError: it would.
    """
    safe_name(name)
    if any(part.startswith(".") for part in name.split("/")) or name.endswith(".edge.json"):
        raise DownloadError(f"The other side names a file {name[:80]!r}, which is not safe to write here.", "Report it there.")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


FOLDERS: Mapping[str, FolderKind] = {
    "onnx": FolderKind("hf", "onnx", _onnx_about, _onnx_rest),
    "coreml": FolderKind("hf", "coreml", _coreml_about, _coreml_rest),
}
"""Models that are folders."""

CHECKPOINT = FolderKind("checkpoints", "", _nothing, _top_level(_CHECKPOINT))
ADAPTER = FolderKind("adapters", "", _nothing, _top_level(_ADAPTER))
