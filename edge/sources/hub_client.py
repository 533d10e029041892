"""The Hugging Face Hub, or a server that speaks its protocol: references, listings of a revision, and its files.

A listing gives every file's size and, for large files, its SHA-256; both are compared with what arrives.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec

from edge.errors import DownloadError, ModelNotFoundError, UsageError
from edge.hashes import is_sha256
from edge.sources.store import Record
from edge.sources.transfer import Download, RetryLaterError, fetch_file, refusal, retry, transport_errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from huggingface_hub.hf_api import ModelInfo

    from edge.sources.base import Context

__all__ = ["COMMIT", "HubClient", "Listed", "Listing", "Reference", "parse_reference"]

DEFAULT_ENDPOINT = "https://huggingface.co"
USER_AGENT = "edge-assistant"
COMMIT = re.compile(r"[0-9a-f]{40,64}")

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?"
_REFERENCE = re.compile(rf"hf:({_NAME})/({_NAME})(?::([^:@]+))?(?:@([A-Za-z0-9._/-]+))?")
_INFO_TIMEOUT_S = 20.0


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
        self.endpoint = (context.settings.hub.endpoint or DEFAULT_ENDPOINT).rstrip("/")

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
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        page = f"{self.endpoint}/{wanted.repo_id}"
        api = HfApi(endpoint=self.endpoint, token=_token() or False, library_name=USER_AGENT)
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
        page, token = f"{self.endpoint}/{wanted.repo_id}", _token()
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


def parse_reference(reference: str) -> Reference:
    """Parse hf:owner/repo[:selector][@revision].

    Raises:
        UsageError: it is malformed.
    """
    found = _REFERENCE.fullmatch(reference)
    if not found or ".." in reference or not reference.isprintable():
        raise UsageError(
            f"{reference!r} is not a valid Hub reference.",
            "Write hf:owner/repo, hf:owner/repo:Q4_K_M, hf:owner/repo:file.gguf or hf:owner/repo:folder; @revision may follow.",
        )
    owner, repo, selector, revision = found.groups()
    return Reference(owner, repo, selector, revision)


def _token() -> str | None:
    """Return HF_TOKEN, or the token that `hf auth login` saved unless the user told the hub's library not to send it."""
    from huggingface_hub import constants, get_token

    return None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()


def _read_listing(info: ModelInfo) -> Listing:
    """Check the hub's answer: huggingface_hub passes on any JSON.

    Raises:
        ValueError, TypeError, AttributeError: this is not the listing of a model hub.
    """
    commit = info.sha
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        raise ValueError("no commit")
    files = {}
    for sibling in info.siblings or []:
        name: Any = sibling.rfilename  # the annotated types are not checked by the library
        size: Any = sibling.lfs.size if sibling.lfs else sibling.size
        sha256 = sibling.lfs.sha256 if sibling.lfs else None
        is_whole = isinstance(name, str) and (size is None or (type(size) is int and size >= 0))
        if not is_whole or (sha256 is not None and not is_sha256(sha256)):
            raise ValueError("a file without a proper name, size or hash")
        files[name] = Listed(name, size, sha256)
    # From the repository's card, or from its tag "license:..." if there is no card.
    card = info.card_data
    licence = (card.get("license_name") or card.get("license")) if card else None
    if not isinstance(licence, str):
        licence = next((tag[8:] for tag in info.tags or [] if str(tag).startswith("license:")), None)
    is_showable = licence is not None and licence.isprintable() and len(licence) <= 100
    return Listing(commit, files, licence if is_showable else None)
