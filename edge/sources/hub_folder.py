"""Fetches several files of one commit as one folder: ONNX folders, Core ML packages, checkpoints and adapters.

The wanted files are lists of names, so that code, pickles and anything else beside them is never fetched. Files are collected
in `.partial`; the folder gets its name by one rename when all of them are there and checked. A resumed fetch hashes the
collected files again.
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
from edge.sources.store import FileRecord, size_of, weights_sha256

if TYPE_CHECKING:
    from edge.sources.base import Phase
    from edge.sources.hub_client import HubClient, Listed, Listing, Reference
    from edge.sources.store import Record

__all__ = ["ADAPTER", "CHECKPOINT", "FOLDERS", "FolderKind", "fetch_folder", "fits"]

Names = Sequence[str]
Files = dict[str, str]
"""Name inside the new folder -> name in the repository."""
OnBytes = Callable[..., None]
"""Called with the bytes of a file so far, and the phase."""

_BESIDE = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template.jinja", "chat_template.json", "config.json", "generation_config.json", "manifest.json",
    "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE",
)  # fmt: skip
_CHECKPOINT = (
    "config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template*", "README.md", "model*.safetensors", "model.safetensors.index.json", "modules.json",
    "sentence_bert_config.json", "1_Pooling/config.json",
)  # fmt: skip
_POOLING = "1_Pooling/config.json"
"""The one file below a folder that is wanted: how a model for embeddings pools."""
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "README.md")
_PROGRAM, _WEIGHTS = "Data/*/*.mlmodel", "Data/*/weights/*.bin"


@dataclass(frozen=True)
class FolderKind:
    """The files of one kind of folder.

    Attributes:
        area: folder below the models folder.
        format: as in a Record; "" if no engine reads it.
        about: small files that tell what else is needed, and whether edge can run the model: (names of the repository, folder
            in it) -> files.
        rest: everything else: (names, folder, local folder with the small files) -> files.
    """

    area: str
    format: str
    about: Callable[[Names, str], Files]
    rest: Callable[[Names, str, Path], Files]


def fetch_folder(
    client: HubClient, wanted: Reference, listing: Listing, kind: FolderKind, place: str, into: tuple[str, ...], record: Record
) -> tuple[Path, Record]:
    """Fetch a folder. The caller holds its lock.

    Args:
        client: the hub.
        wanted: the reference.
        listing: of its commit.
        kind: of folder.
        place: folder in the repository, or path of an .mlpackage; "" is the repository itself.
        into: folders below the models folder.
        record: of the folder, without its files.

    Returns:
        Its path, and its record.

    Raises:
        DownloadError, AccessDeniedError, ChecksumError, ModelNotFoundError: as the server answered.
        ModelFileError: the small files say that edge cannot use the rest.
        StorageError: no room, or it cannot be written.
    """
    return _FolderFetch(client, wanted, listing, kind, record).run(place, into)


class _FolderFetch:
    def __init__(self, client: HubClient, wanted: Reference, listing: Listing, kind: FolderKind, record: Record) -> None:
        self.client, self.wanted, self.listing, self.kind, self.record = client, wanted, listing, kind, record
        self.context, self.store = client.context, client.context.store
        self.staging = self.store.staging(kind.area, wanted.repo_id, listing.commit, record.file)
        self.known: dict[str, FileRecord] = {}
        self.is_promised = False
        self.older = self._find_older()

    def run(self, place: str, into: tuple[str, ...]) -> tuple[Path, Record]:
        names = list(self.listing.files)
        self._take(self.kind.about(names, place), is_reported=False)
        self._take(self.kind.rest(names, place, self.staging), is_reported=True)
        files = tuple(self.known[name] for name in sorted(self.known))
        record = replace(self.record, promised="hub" if self.is_promised else "", files=files)
        return self.store.install(self.staging, into, self._describe(record) if self.kind.format else record)

    def _take(self, files: Files, *, is_reported: bool) -> None:
        """Bring these files into the staging folder: left by an earlier run, linked from an older commit, or fetched."""
        wanted = {name: self.listing.files[theirs] for name, theirs in files.items() if name not in self.known}
        for name in wanted:
            _check_name(name)
        sizes = {name: file.size_bytes or 0 for name, file in wanted.items()}
        missing = [name for name, file in wanted.items() if not (self.staging / name).is_file() and not self._has_older(file)]
        partials = {name: self.client.partial_of(self.wanted, self.listing.commit, wanted[name]) for name in missing}
        self.store.check_space(sum(max(0, sizes[name] - size_of(partials[name])) for name in missing))
        before, total = 0, sum(sizes.values())
        for name, file in wanted.items():

            def on_bytes(n_bytes: int, phase: Phase = "download", before: int = before) -> None:
                if is_reported:
                    self.context.report(before + n_bytes, total, phase)

            digest = self._staged(name, file, on_bytes) or self._linked(name, file) or self._fetched(name, file, on_bytes)
            state = (self.staging / name).stat()
            self.known[name] = FileRecord(
                name=name, size_bytes=state.st_size, mtime_ns=state.st_mtime_ns, sha256=digest, ctime_ns=state.st_ctime_ns
            )  # fmt: skip
            self.is_promised |= file.sha256 is not None
            before += sizes[name]

    def _staged(self, name: str, file: Listed, on_bytes: OnBytes) -> str | None:
        """Return the hash of a file that an earlier run collected, if it is still the promised one."""
        path = self.staging / name
        if not path.is_file():
            return None
        digest = file_sha256(path, on_bytes=lambda done: on_bytes(done, "verify"))
        if path.stat().st_size == (file.size_bytes or path.stat().st_size) and digest == (file.sha256 or digest):
            return digest
        path.unlink()
        return None

    def _linked(self, name: str, file: Listed) -> str | None:
        """Link a file that an earlier commit had as well, instead of a second copy, and return its hash."""
        older = self.older.get(file.sha256 or "")
        if older is None:
            return None
        try:
            os.link(older, self.store.place_in(self.staging, name))
        except OSError:
            return None  # on a file system without hard links it is fetched
        return file.sha256

    def _fetched(self, name: str, file: Listed, on_bytes: OnBytes) -> str:
        partial, digest, _ = self.client.fetch_listed(
            self.wanted, self.listing.commit, file, on_bytes=lambda done, total: on_bytes(done)
        )
        self.store.gather(partial, self.staging, name)
        return digest

    def _find_older(self) -> dict[str, Path]:
        """Return files of earlier commits by their hash."""
        found = {}
        for path, record in self.store.records(self.kind.area, self.wanted.owner, self.wanted.repo):
            if record.files and self.store.is_whole(path, record):
                found.update({file.sha256: path / file.name for file in record.files})
        return found

    def _has_older(self, file: Listed) -> bool:
        return file.sha256 is not None and file.sha256 in self.older

    def _describe(self, record: Record) -> Record:
        """Add the folder's quantisation. A folder that cannot be opened is kept: opening it later says why."""
        from edge.formats.artifact import open_artifact

        try:
            artifact = open_artifact(self.staging)
        except ModelFileError:
            return record
        # The catalogue's hash is the one that `edge models show --verify` computes.
        digest = weights_sha256(self.staging, tuple(self.known.values()), artifact.weight_files)
        try:
            self.context.check_promise(str(self.wanted), None, digest)
        except ChecksumError:
            shutil.rmtree(self.staging)
            raise
        return replace(record, quantisation=artifact.quantisation)


def _onnx_about(names: Names, folder: str) -> Files:
    from edge.formats.onnx import CONFIG

    return {CONFIG: _join(folder, CONFIG)}


def _onnx_rest(names: Names, folder: str, staging: Path) -> Files:
    """Return the model file that genai_config.json names, its weights (model.onnx.data, model.onnx_data_1), the tokenizer."""
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
    return _package_files(names, package, ("Manifest.json", _PROGRAM))


def _coreml_rest(names: Names, package: str, staging: Path) -> Files:
    """Return weights and tokenizer, once the program says that edge can run it."""
    from edge.formats.coreml import read_package

    folder, _, base = package.rpartition("/")
    read_package(staging / base)
    return {**_package_files(names, package, (_WEIGHTS,)), **_beside(names, folder)}


def _package_files(names: Names, package: str, patterns: Sequence[str]) -> Files:
    """Return the files of an .mlpackage whose paths inside it match one of the patterns."""
    base = package.rpartition("/")[2]
    inside = [name.removeprefix(package + "/") for name in names if name.startswith(package + "/")]
    return {f"{base}/{name}": f"{package}/{name}" for name in inside if fits(name, patterns)}


def _top_level(patterns: Sequence[str]) -> Callable[[Names, str, Path], Files]:
    def find(names: Names, folder: str, staging: Path) -> Files:
        wanted = [name for name in names if fits(name, patterns)]
        # Records lie beside the folders that they describe: no file from outside may look like one.
        return {
            name: name for name in sorted(wanted) if ("/" not in name or name == _POOLING) and not name.endswith(".edge.json")
        }

    return find


def fits(name: str, patterns: Sequence[str]) -> bool:
    """Return True if a file name matches one of the patterns, case included."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _beside(names: Names, folder: str) -> Files:
    return _inside(folder, [name for base in _BESIDE if (name := _join(folder, base)) in names])


def _inside(folder: str, names: Sequence[str]) -> Files:
    return {name.removeprefix(folder + "/") if folder else name: name for name in names}


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _check_name(name: str) -> None:
    """Check that a name neither leads out of the folder nor hides in it.

    Raises:
        DownloadError: it does.
    """
    safe_name(name)
    if any(part.startswith(".") for part in name.split("/")) or name.endswith(".edge.json"):
        raise DownloadError(f"The server names a file {name[:80]!r}, which is not safe to write here.", "Report it there.")


FOLDERS: Mapping[str, FolderKind] = {
    "onnx": FolderKind("hf", "onnx", _onnx_about, _onnx_rest),
    "coreml": FolderKind("hf", "coreml", _coreml_about, _coreml_rest),
}
"""Models that are folders."""

CHECKPOINT = FolderKind("checkpoints", "", lambda names, folder: {}, _top_level(_CHECKPOINT))
ADAPTER = FolderKind("adapters", "", lambda names, folder: {}, _top_level(_ADAPTER))
