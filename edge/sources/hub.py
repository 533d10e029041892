"""hf:owner/repo[:file, quantisation or folder][@revision]: models on the Hugging Face Hub, or on a server that speaks its
protocol.

The hub's listing of a revision gives every file's size and, for large files, its SHA-256; both are held against what arrives.
A reference without a revision means what was newest when it was pulled; `pull` again looks for something newer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

import msgspec
from msgspec.structs import replace

from edge.errors import ChecksumError, DownloadError, ModelFileError, ModelNotFoundError, UsageError
from edge.sources.base import Found, Source
from edge.sources.hub_folder import FOLDERS, fetch_folder
from edge.sources.hub_select import matching, quantisation_of, select
from edge.sources.store import Record
from edge.sources.transfer import Download, RetryLaterError, fetch_file, refusal, retry, transport_errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from huggingface_hub.hf_api import ModelInfo

    from edge.sources.base import Format
    from edge.sources.hub_select import Selected

__all__ = ["USER_AGENT", "HubSource", "Listed", "Listing", "Reference", "parse_reference"]

DEFAULT_ENDPOINT = "https://huggingface.co"
USER_AGENT = "edge-assistant"

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?"
_REFERENCE = re.compile(rf"hf:({_NAME})/({_NAME})(?::([^:@]+))?(?:@([A-Za-z0-9._/-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40,64}")
_INFO_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Reference:
    owner: str
    repo: str
    selector: str | None
    revision: str | None

    @property
    def repo_id(self) -> str:
        return f"{self.owner}/{self.repo}"

    def __str__(self) -> str:
        selector = f":{self.selector}" if self.selector else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf:{self.repo_id}{selector}{revision}"


class Listed(msgspec.Struct, frozen=True):
    """One file by the hub's listing; what the listing leaves out is None."""

    name: str
    size_bytes: int | None
    sha256: str | None


@dataclass(frozen=True)
class Listing:
    commit: str
    files: dict[str, Listed]
    licence: str | None


class HubSource(Source):
    """Models on the hub. Files that other programs already fetched into the hub's own cache are used in place."""

    def canonical(self, reference: str) -> str:
        return str(parse_reference(reference))

    def find(self, reference: str) -> Found | None:
        wanted = parse_reference(reference)
        records = [
            (path, record)
            for path, record in self.context.store.records("hf", wanted.owner, wanted.repo)
            if wanted.revision is None or record.revision.startswith(wanted.revision) or str(wanted) in record.references
        ]
        for path, record in records:
            if str(wanted) in record.references:
                return self._owned(path, record, reference)
        if wanted.selector:
            # Pulled under another name of the same file, such as its file name instead of its quantisation.
            names = {record.file: (path, record) for path, record in reversed(records)}
            matches = matching(list(names), wanted.selector.strip("/").removesuffix(".mlpackage").replace("/", "--"))
            if len(matches) == 1:
                path, record = names[matches[0]]
                return self._owned(path, record, reference)
        return self._cached_by_hub(wanted, reference)

    def fetch(self, reference: str) -> Found:
        wanted = parse_reference(reference)
        listing = self.connect(wanted, "give the path of a file or folder")
        selected = select(list(listing.files), wanted.selector, wanted.repo_id)
        record = self.new_record(wanted, listing, selected.flat_name(wanted.repo), selected.format)
        lock = f"hf/{wanted.repo_id}/{selected.name}"
        with self.context.store.lock(lock, on_wait=lambda: self.context.report(0, None, "wait")):
            if selected.format != "gguf":
                return self._fetch_folder(wanted, listing, selected, record, reference)
            file = listing.files[selected.name]
            self.context.check_promise(f"{wanted.repo_id}: {file.name}", file.size_bytes, file.sha256)
            record = replace(record, sha256=file.sha256 or "")
            return self._installed_already(record, reference) or self._download(wanted, file, record)

    def installed(self) -> list[Found]:
        return [self._owned(path, record, record.references[0]) for path, record in self.context.store.records("hf")]

    # -- one file

    def _installed_already(self, record: Record, reference: str) -> Found | None:
        """The same file of the same commit, pulled by another reference or by a process that this one waited for."""
        store = self.context.store
        owner, repo = parse_reference(record.references[0]).repo_id.split("/")
        for path, known in store.records("hf", owner, repo):
            is_same = known.file == record.file and (known.revision == record.revision or known.sha256 == record.sha256)
            if is_same and store.is_unchanged(path, known):
                return self._owned(path, store.add_reference(path, known, record.references[0]), reference)
        return None

    def _download(self, wanted: Reference, file: Listed, record: Record) -> Found:
        entry = self.context.entry
        by_catalogue = entry.sha256 if entry is not None and file.sha256 is None else None
        partial, computed, promised = self.fetch_listed(
            wanted,
            record.revision,
            replace(file, sha256=file.sha256 or by_catalogue),
            on_bytes=lambda done, total: self.context.report(done, total, "download"),
        )
        who = "catalogue" if by_catalogue else "hub"
        record = replace(record, sha256=computed, promised=who if promised else "")
        path = self.context.store.install(partial, ("hf", wanted.owner, wanted.repo, record.revision[:12]), record)
        self._supersede(wanted, path)
        return self._owned(path, record, str(wanted), is_new=True)

    def _fetch_folder(self, wanted: Reference, listing: Listing, selected: Selected, record: Record, reference: str) -> Found:
        """An ONNX folder or a Core ML package, unless this commit's is here already and whole."""
        store = self.context.store
        for path, known in store.records("hf", wanted.owner, wanted.repo):
            if (known.file, known.revision) == (record.file, record.revision) and store.is_unchanged(path, known):
                return self._owned(path, store.add_reference(path, known, str(wanted)), reference)
        kind = FOLDERS[selected.format]
        place = selected.name if selected.format == "coreml" else selected.folder
        into = ("hf", wanted.owner, wanted.repo, listing.commit[:12])
        path, known = fetch_folder(self, wanted, listing, kind, place, into, record)
        self._supersede(wanted, path)
        return self._owned(path, known, reference)

    def partial_of(self, wanted: Reference, commit: str, file: Listed) -> Path:
        """Where a file of the hub is kept while it is under way."""
        identity = file.sha256 or f"{self.endpoint}@{commit}"
        return self.context.store.partial("hf", wanted.repo_id, file.name, identity, str(file.size_bytes))

    def fetch_listed(
        self, wanted: Reference, commit: str, file: Listed, *, on_bytes: Callable[[int, int | None], None]
    ) -> tuple[Path, str, str | None]:
        """Fetch one file of a commit into a partial file.

        Returns:
            Where it is, its SHA-256, and the one that was promised, where somebody did.

        Raises:
            As `edge.sources.transfer.fetch_file`.
        """
        page, token = f"{self.endpoint}/{wanted.repo_id}", self._token()
        partial = self.partial_of(wanted, commit, file)
        download = Download(
            url=f"{page}/resolve/{commit}/{quote(file.name)}",
            headers={"User-Agent": USER_AGENT, **({"Authorization": f"Bearer {token}"} if token else {})},
            size_bytes=file.size_bytes,
            sha256=file.sha256,
            label=f"{wanted.repo_id}: {file.name}",
            page=page,
        )
        return partial, *fetch_file(download, partial, self.context.store, on_bytes=on_bytes)

    def _supersede(self, wanted: Reference, newest: Path) -> None:
        """Let go of what this reference led to before; a file that nothing else refers to is removed."""
        store = self.context.store
        for path, record in store.records("hf", wanted.owner, wanted.repo):
            if path != newest and str(wanted) in record.references:
                if len(record.references) == 1:
                    store.remove(path)
                else:
                    store.drop_reference(path, record, str(wanted))

    def _owned(self, path: Path, record: Record, reference: str, *, is_new: bool = False) -> Found:
        return Found(
            path=path,
            reference=reference,
            size_bytes=record.size_bytes if record.files else path.stat().st_size,
            origin=f"{record.origin} ({record.revision[:7]})",
            owner="edge",
            sha256=record.sha256 or None,
            verified=is_new or self.context.store.is_unchanged(path, record),
            licence=record.licence,
            names=record.references,
            format=cast("Format", record.format if record.format in FOLDERS else "gguf"),
            quantisation=record.quantisation or quantisation_of(record.file) or "",
            files=record.files,
        )

    # -- the hub

    @property
    def endpoint(self) -> str:
        """Address of the hub."""
        return (self.context.settings.hub.endpoint or DEFAULT_ENDPOINT).rstrip("/")

    def _token(self) -> str | None:
        """HF_TOKEN, or what `hf auth login` saved, unless the user told the hub's library not to send it unasked."""
        from huggingface_hub import constants, get_token

        return None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()

    def connect(self, wanted: Reference, otherwise: str) -> Listing:
        """The listing of a model that is to be fetched.

        Args:
            wanted: the model.
            otherwise: what the user can do without the network.

        Raises:
            ModelNotFoundError: edge is offline; others as `listing`.
        """
        if self.context.settings.hub.offline:
            raise ModelNotFoundError(
                f"{wanted} is not on this device, and edge is set not to use the network.",
                f"Unset hub.offline (EDGE_HUB_OFFLINE, HF_HUB_OFFLINE), or {otherwise}.",
            )
        self.context.report(0, None, "connect")
        return self.listing(wanted)

    def new_record(self, wanted: Reference, listing: Listing, file: str, format: str) -> Record:
        """The record of something that is to be fetched; `file` is its name here, and `format` as in a Record."""
        return Record(
            references=(str(wanted),),
            file=file,
            size_bytes=0,
            mtime_ns=0,
            sha256="",
            licence=listing.licence,
            origin=f"{self.endpoint}/{wanted.repo_id}",
            revision=listing.commit,
            format=format,
        )

    def listing(self, wanted: Reference) -> Listing:
        """Commit, files, sizes and hashes of one revision.

        Raises:
            DownloadError, AccessDeniedError, ModelNotFoundError: as the server answered.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        page = f"{self.endpoint}/{wanted.repo_id}"
        api = HfApi(endpoint=self.endpoint, token=self._token() or False, library_name=USER_AGENT)
        found: list[Listing] = []

        def ask() -> None:
            try:
                info = api.model_info(wanted.repo_id, revision=wanted.revision, files_metadata=True, timeout=_INFO_TIMEOUT_S)
                found.append(_read_listing(info))
            except HfHubHTTPError as error:
                raise refusal(error.response.status_code, error.response.headers, str(wanted), page) from error
            except OfflineModeIsEnabled as error:
                raise DownloadError(f"{wanted}: HF_HUB_OFFLINE is set.", "Unset it to use the network.") from error
            except transport_errors() as error:
                unreachable = DownloadError(
                    f"{self.endpoint} cannot be reached: {error}.",
                    "Check the network, and hub.endpoint (HF_ENDPOINT) if you set it.",
                )
                raise RetryLaterError(unreachable) from error
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DownloadError(
                    f"{self.endpoint} does not answer as a model hub does ({type(error).__name__}).",
                    "Check hub.endpoint (HF_ENDPOINT).",
                ) from error

        retry(ask)
        if wanted.revision is not None and _COMMIT.fullmatch(wanted.revision) and found[0].commit != wanted.revision:
            raise DownloadError(
                f"{wanted}: the server answers with the commit {found[0].commit} instead.", "Check hub.endpoint (HF_ENDPOINT)."
            )
        return found[0]

    def _cached_by_hub(self, wanted: Reference, reference: str) -> Found | None:
        """A file that another program fetched into the hub library's own cache. Its blob is named by its SHA-256."""
        from huggingface_hub import constants

        folder = Path(constants.HF_HUB_CACHE) / f"models--{wanted.owner}--{wanted.repo}"
        try:
            commit = wanted.revision or "main"
            pointer = folder / "refs" / commit
            if not commit.startswith("/") and pointer.is_file():
                commit = pointer.read_text(encoding="ascii").strip()
            snapshot = folder / "snapshots" / commit
            if not _COMMIT.fullmatch(commit) or not snapshot.is_dir():
                return None
            names = [str(path.relative_to(snapshot)) for path in snapshot.rglob("*.gguf")]
            path = snapshot / select(names, wanted.selector, wanted.repo_id).name
            blob = path.resolve(strict=True)
            size_bytes = blob.stat().st_size
        except (OSError, ValueError, ModelNotFoundError, ModelFileError):
            # Nothing here that fits: not an error, since the hub is asked next.
            return None
        sha256 = blob.name if re.fullmatch(r"[0-9a-f]{64}", blob.name) else None
        try:
            self.context.check_promise(str(path), size_bytes, sha256)
        except ChecksumError:
            return None  # another version than the catalogue's
        return Found(path, reference, size_bytes, f"the hub's cache ({commit[:7]})", "hub cache", sha256)


def _read_listing(info: ModelInfo) -> Listing:
    """What the hub answered, held against what it can be: huggingface_hub passes on whatever JSON there was.

    Raises:
        ValueError, TypeError, AttributeError: this is no listing of a model hub.
    """
    commit = info.sha
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise ValueError("no commit")
    files = {}
    for sibling in info.siblings or []:
        name: Any = sibling.rfilename  # the annotations promise types that nobody checked
        size: Any = sibling.lfs.size if sibling.lfs else sibling.size
        sha256 = sibling.lfs.sha256 if sibling.lfs else None
        is_whole = isinstance(name, str) and (size is None or (type(size) is int and size >= 0))
        if not is_whole or (sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", sha256)):
            raise ValueError("a file without a proper name, size or hash")
        files[name] = Listed(name, size, sha256)
    # By the repository's card; "license:..." among its tags says the same where there is no card.
    card = info.card_data
    licence = (card.get("license_name") or card.get("license")) if card else None
    if not isinstance(licence, str):
        licence = next((tag[8:] for tag in info.tags or [] if str(tag).startswith("license:")), None)
    is_showable = licence is not None and licence.isprintable() and len(licence) <= 100
    return Listing(commit, files, licence if is_showable else None)


def parse_reference(reference: str) -> Reference:
    found = _REFERENCE.fullmatch(reference)
    if not found or ".." in reference:
        raise UsageError(
            f"{reference!r} is no reference to the hub.",
            "Write hf:owner/repo, hf:owner/repo:Q4_K_M, hf:owner/repo:file.gguf or hf:owner/repo:folder, and @revision behind "
            "it if you like.",
        )
    owner, repo, selector, revision = found.groups()
    return Reference(owner, repo, selector, revision)
