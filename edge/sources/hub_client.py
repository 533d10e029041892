"""The Hugging Face Hub, or a server that speaks its protocol: references, listings of a revision, and its files.

A listing gives every file's size and, for large files, its SHA-256; both are compared with what arrives.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import msgspec

from edge.errors import DownloadError, EdgeError, ModelNotFoundError, UsageError
from edge.hashes import is_sha256
from edge.sources.network import (
    DEFAULT_ENDPOINT,
    check_endpoint,
    network_fault,
    open_url,
    proxies,
    read_token,
    transport_errors,
)
from edge.sources.store import Record
from edge.sources.suggestion import REFERENCE, suggest_reference
from edge.sources.transfer import Download, RetryLaterError, fetch_file, refusal, retry

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge.sources.base import Context

__all__ = ["COMMIT", "HubClient", "Listed", "Listing", "Reference", "parse_reference"]

COMMIT = re.compile(r"[0-9a-f]{40,64}")

_INFO_TIMEOUT_S = 20.0
_MAX_LISTING_BYTES = 256 << 20
_REFERENCE_HINT = (
    "Write hf:owner/repo, hf:owner/repo:Q4_K_M, hf:owner/repo:file.gguf or hf:owner/repo:folder; @revision may follow."
)
_ENDPOINT_HINT = "Check hub.endpoint (HF_ENDPOINT)."


@dataclass(frozen=True)
class Reference:
    """hf:owner/repo[:selector][@revision]; see `edge.sources.hub_select` for selectors."""

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

    def allows(self, record: Record) -> bool:
        """Return True if the record's revision is one that this reference means."""
        return self.revision is None or record.revision.startswith(self.revision) or str(self) in record.references


class Listed(msgspec.Struct, frozen=True):
    """One file of the hub's listing; None for what the listing leaves out."""

    name: str
    size_bytes: int | None
    sha256: str | None


@dataclass(frozen=True)
class Listing:
    """The files of one commit."""

    commit: str
    files: dict[str, Listed]
    licence: str | None


class HubClient:
    """Asks the hub of the settings, with the user's token. Made for one question, like a source.

    Args:
        context: settings, store and progress.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.endpoint = (context.settings.hub.endpoint or DEFAULT_ENDPOINT).strip().rstrip("/")

    def connect(self, wanted: Reference, otherwise: str) -> Listing:
        """Return the listing of a model that is to be fetched.

        Args:
            wanted: the model.
            otherwise: alternative for a user without the network.

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

    def listing(self, wanted: Reference) -> Listing:
        """Return commit, files, sizes and hashes of one revision.

        Raises:
            DownloadError, AccessDeniedError, ModelNotFoundError: as the server answered.
        """
        source = self.context.settings.sources.get("hub.endpoint", "hub.endpoint")
        check_endpoint(self.endpoint, source if source != "default" else "hub.endpoint")
        page = f"{self.endpoint}/{wanted.repo_id}"
        revision = f"/revision/{quote(wanted.revision, safe='')}" if wanted.revision else ""
        url = f"{self.endpoint}/api/models/{wanted.repo_id}{revision}?blobs=true"
        headers = self._headers()
        found: list[Listing] = []

        def ask() -> None:
            try:
                with open_url(url, headers, timeout_s=_INFO_TIMEOUT_S, label=str(wanted), hint=_ENDPOINT_HINT) as response:
                    if response.status_code != 200:
                        raise refusal(response.status_code, response.headers, str(wanted), page)
                    found.append(_read_listing(_read_all(response)))
            except transport_errors() as error:
                raise network_fault() or RetryLaterError(self._unreachable(error)) from error
            except (ValueError, RecursionError) as error:
                if isinstance(error, EdgeError):
                    raise
                raise DownloadError(
                    f"{self.endpoint} does not answer as a model hub does ({error}).", _ENDPOINT_HINT
                ) from error

        retry(ask)
        if wanted.revision is not None and COMMIT.fullmatch(wanted.revision) and found[0].commit != wanted.revision:
            raise DownloadError(
                f"{wanted}: the server answers with the commit {found[0].commit} instead.", "Check hub.endpoint (HF_ENDPOINT)."
            )
        return found[0]

    def new_record(self, wanted: Reference, listing: Listing, file: str, format: str) -> Record:
        """Return the record of a model that is to be fetched; `file` is its name in the store, `format` as in a Record."""
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

    def partial_of(self, wanted: Reference, commit: str, file: Listed) -> Path:
        """Return the path of a file of the hub while it is being downloaded."""
        identity = file.sha256 or f"{self.endpoint}@{commit}"
        return self.context.store.partial("hf", wanted.repo_id, file.name, identity, str(file.size_bytes))

    def fetch_listed(
        self, wanted: Reference, commit: str, file: Listed, *, on_bytes: Callable[[int, int | None], None]
    ) -> tuple[Path, str, str | None]:
        """Fetch one file of a commit into a partial file.

        Returns:
            Its path, its SHA-256, and the promised one, if any.

        Raises:
            As `edge.sources.transfer.fetch_file`.
        """
        page = f"{self.endpoint}/{wanted.repo_id}"
        partial = self.partial_of(wanted, commit, file)
        download = Download(
            url=f"{page}/resolve/{commit}/{quote(file.name)}",
            headers=self._headers(),
            size_bytes=file.size_bytes,
            sha256=file.sha256,
            label=f"{wanted.repo_id}: {file.name}",
            page=page,
        )
        return partial, *fetch_file(download, partial, self.context.store, on_bytes=on_bytes)

    def _headers(self) -> dict[str, str]:
        token = read_token(self.endpoint)
        return {"Authorization": f"Bearer {token}"} if token else {}

    def _unreachable(self, error: Exception) -> DownloadError:
        if type(error).__name__ == "OfflineModeIsEnabled":
            return DownloadError("HF_HUB_OFFLINE is set.", "Unset it to use the network.")
        through = "".join(f", the proxy in {name}" for name in proxies())
        through += ", SSL_CERT_FILE" if "certificate" in str(error).lower() else ""
        return DownloadError(
            f"{self.endpoint} cannot be reached: {error}.",
            f"Check the network{through}, and hub.endpoint (HF_ENDPOINT) if you set it.",
        )


def parse_reference(reference: str) -> Reference:
    """Parse hf:owner/repo[:selector][@revision].

    Raises:
        UsageError: it is malformed.
    """
    found = REFERENCE.fullmatch(reference)
    if not found or ".." in reference or not reference.isprintable():
        raise UsageError(
            f"{reference[:100]!r} is not a valid Hub reference.",
            f"Write it as {meant}" if (meant := suggest_reference(reference)) else _REFERENCE_HINT,
        )
    owner, repo, selector, revision = found.groups()
    return Reference(owner, repo, selector, revision)


class _LFS(msgspec.Struct, frozen=True):
    size: Annotated[int, msgspec.Meta(ge=0)]
    sha256: str


class _Sibling(msgspec.Struct, frozen=True):
    rfilename: str
    size: Annotated[int, msgspec.Meta(ge=0)] | None = None
    lfs: _LFS | None = None


class _Answer(msgspec.Struct, frozen=True, rename={"card": "cardData"}):
    """The part of the hub's answer that counts here."""

    sha: str
    siblings: list[_Sibling] | None = None
    card: Any = None
    tags: Any = None


def _read_all(response: Any) -> bytes:
    data = bytearray()
    for chunk in response.iter_bytes():
        data += chunk
        if len(data) > _MAX_LISTING_BYTES:
            raise ValueError("a listing without end")
    return bytes(data)


def _read_listing(data: bytes) -> Listing:
    """Check the hub's answer.

    Raises:
        ValueError: this is not the listing of a model hub.
    """
    answer = msgspec.json.decode(data, type=_Answer)
    if not COMMIT.fullmatch(answer.sha):
        raise ValueError("no commit")
    files = {}
    for sibling in answer.siblings or []:
        sha256 = sibling.lfs.sha256 if sibling.lfs else None
        if sha256 is not None and not is_sha256(sha256):
            raise ValueError("a file without a proper hash")
        files[sibling.rfilename] = Listed(sibling.rfilename, sibling.lfs.size if sibling.lfs else sibling.size, sha256)
    # From the repository's card, or from its tag "license:..." if there is no card.
    card = answer.card if isinstance(answer.card, dict) else {}
    licence = card.get("license_name") or card.get("license")
    if not isinstance(licence, str):
        tags = answer.tags if isinstance(answer.tags, list) else []
        licence = next((tag[8:] for tag in tags if isinstance(tag, str) and tag.startswith("license:")), None)
    is_showable = licence is not None and licence.isprintable() and len(licence) <= 100
    return Listing(answer.sha, files, licence if is_showable else None)
