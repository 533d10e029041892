"""Fetches one file over HTTP: resumed, limited to its promised size, hashed on the way, with rules for redirects.

huggingface_hub's own downloader writes whatever arrives and compares sizes afterwards, does not check the SHA-256, and passes
large files to hf-xet, which plain servers do not support. Only its HTTP client is used (edge.sources.network).
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.errors import AccessDeniedError, ChecksumError, DownloadError, EdgeError, ModelNotFoundError
from edge.hashes import CHUNK_BYTES, is_sha256
from edge.sources.network import download_timeout_s, network_fault, open_url, transport_errors
from edge.sources.store import storage_error
from edge.units import size_text

if TYPE_CHECKING:
    from edge.sources.store import Store

__all__ = ["Download", "RetryLaterError", "fetch_file", "refusal", "retry"]

_MAX_TRIES = 4  # without a byte of progress in between
_MAX_WAIT_S = 60.0
_RETRIED = (408, 429, 500, 502, 503, 504)

sleep = time.sleep


class RetryLaterError(Exception):
    """A failure that may be temporary, with the error to raise if it is not.

    Args:
        error: for the user.
        wait_s: the server's request, in seconds; None if it made none.
    """

    def __init__(self, error: EdgeError, wait_s: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait_s = wait_s


@dataclass(frozen=True)
class Download:
    """One file to fetch.

    Attributes:
        url: its address.
        headers: sent to the host of `url` only, not to hosts that it redirects to.
        size_bytes: promised; None if only the server's header can tell.
        sha256: promised; None if unknown.
        label: for messages: "owner/repo: file".
        page: of its publisher, for hints.
    """

    url: str
    headers: Mapping[str, str]
    size_bytes: int | None
    sha256: str | None
    label: str
    page: str


def fetch_file(
    download: Download, partial: Path, store: Store, *, on_bytes: Callable[[int, int | None], None]
) -> tuple[str, str | None]:
    """Fetch a file, resuming an earlier attempt.

    Args:
        download: the file.
        partial: gets the bytes. Stays there, to be resumed, if the network fails or the user stops it; removed if its content
            is wrong.
        store: checks for room.
        on_bytes: called with (done, total) after every piece; its exceptions pass through and leave a partial file.

    Returns:
        The file's SHA-256, and the promised one, if any.

    Raises:
        DownloadError, AccessDeniedError, ModelNotFoundError: as the server answered.
        ChecksumError: size or hash are not the promised ones; the partial file is removed.
        StorageError: no room, or the file cannot be written.
    """
    transfer = _Transfer(download, partial, store, on_bytes)
    retry(transfer.attempt, has_progressed=transfer.take_progress)
    return transfer.finish()


def retry(attempt: Callable[[], None], *, has_progressed: Callable[[], bool] = lambda: False) -> None:
    """Call `attempt` up to a few times until it raises no RetryLaterError, waiting longer each time or as the server asks.

    Raises:
        EdgeError: the one inside the last RetryLaterError.
    """
    tries = 0
    while True:
        try:
            return attempt()
        except RetryLaterError as later:
            tries = 1 if has_progressed() else tries + 1
            wait_s = 0.5 * 2 ** (tries - 1) if later.wait_s is None else later.wait_s
            if tries >= _MAX_TRIES or wait_s > _MAX_WAIT_S:
                raise later.error from later.__cause__
            sleep(wait_s)


class _Transfer:
    def __init__(self, download: Download, partial: Path, store: Store, on_bytes: Callable[[int, int | None], None]) -> None:
        self.download = download
        self.partial = partial
        self.store = store
        self.on_bytes = on_bytes
        self.size_bytes = download.size_bytes
        self.sha256 = download.sha256
        self.digest = hashlib.sha256()
        self.done = 0
        self.is_opened = False
        self.has_new_bytes = False

    def take_progress(self) -> bool:
        had, self.has_new_bytes = self.has_new_bytes, False
        return had

    def attempt(self) -> None:
        try:
            # Without buffering: all counted bytes are in the file even if the process dies.
            file = open(self.partial, "ab", buffering=0, opener=_private)  # noqa: SIM115  (closed below)
        except OSError as error:
            raise storage_error(error, self.partial, "written") from error
        with file:
            if not self.is_opened:
                self._read_earlier(file)
            if self.size_bytes is not None:
                if self.done == self.size_bytes:
                    return
                self.store.check_space(self.size_bytes - self.done)
            try:
                self._receive(file)
            except transport_errors() as error:
                raise network_fault() or RetryLaterError(self._broken(error)) from error

    def finish(self) -> tuple[str, str | None]:
        found = self.digest.hexdigest()
        if self.sha256 is not None and found != self.sha256:
            self._discard()
            raise ChecksumError(
                f"{self.download.label} is damaged: its SHA-256 is {found}, not the promised {self.sha256}.",
                "It was removed. Pull it again; if that fails too, the server or something on the way is at fault.",
            )
        return found, self.sha256

    def _read_earlier(self, file: Any) -> None:
        """Hash the bytes of an earlier attempt; drop them if they are more than this file has."""
        self.is_opened = True
        with self.partial.open("rb") as earlier:
            while chunk := earlier.read(CHUNK_BYTES):
                self.digest.update(chunk)
                self.done += len(chunk)
        if self.size_bytes is not None and self.done > self.size_bytes:
            self._restart(file)
        self.on_bytes(self.done, self.size_bytes)

    def _restart(self, file: Any) -> None:
        file.truncate(0)
        self.digest = hashlib.sha256()
        self.done = 0

    def _receive(self, file: Any) -> None:
        with self._open() as response:
            if response.status_code == 416 and self.done:
                self._restart(file)
                raise RetryLaterError(self._broken("the server does not have the rest"), wait_s=0.0)
            if response.status_code not in (200, 206):
                raise refusal(response.status_code, response.headers, self.download.label, self.download.page)
            if self.done and not _continues(response, self.done):
                self._restart(file)
            self._check_size(_total(response, self.done))
            self.store.check_space((self.size_bytes or 0) - self.done)
            for chunk in response.iter_raw():
                self._take(file, chunk)
        if self.done != self.size_bytes:
            raise RetryLaterError(self._broken("the connection ended early"))

    def _open(self) -> AbstractContextManager[Any]:
        """GET the rest of the file."""
        headers = {"Accept-Encoding": "identity", **self.download.headers}
        if self.done:
            headers["Range"] = f"bytes={self.done}-"
        return open_url(
            self.download.url,
            headers,
            timeout_s=download_timeout_s(),
            label=self.download.label,
            hint=f"Report it at {self.download.page}",
            on_first=self._learn,
        )

    def _learn(self, headers: Mapping[str, str]) -> None:
        """Take the hub's own word on size and hash, if its listing had none."""
        if self.size_bytes is None:
            self.size_bytes = _number(headers.get("X-Linked-Size"))
        if self.sha256 is None:
            self.sha256 = _sha256(headers.get("X-Linked-Etag"))

    def _take(self, file: Any, chunk: bytes) -> None:
        if self.done + len(chunk) > (self.size_bytes or 0):
            self._discard()
            raise ChecksumError(
                f"{self.download.label}: the server sends more than the {self.size_bytes or 0:,} bytes it promised.",
                "The download was stopped and removed.",
            )
        view = memoryview(chunk)
        try:
            while view:
                view = view[file.write(view) :]
        except OSError as error:
            raise storage_error(error, self.partial, "written") from error
        self.digest.update(chunk)
        self.done += len(chunk)
        self.has_new_bytes = True
        self.on_bytes(self.done, self.size_bytes)

    def _check_size(self, total: int | None) -> None:
        if self.size_bytes is None:
            self.size_bytes = total
        if self.size_bytes is None:
            raise DownloadError(
                f"{self.download.label}: the server does not say how large the file is, so it is not fetched.",
                "Download it by other means and give its path.",
            )
        if total is not None and total != self.size_bytes:
            self._discard()
            raise ChecksumError(
                f"{self.download.label}: {self.size_bytes:,} bytes were promised, the server sends {total:,}.",
                "The file there has changed. Pull it again later, or check the publisher's page.",
            )

    def _discard(self) -> None:
        self.partial.unlink(missing_ok=True)

    def _broken(self, why: object) -> DownloadError:
        total = f" of {size_text(self.size_bytes)}" if self.size_bytes is not None else ""
        got = f" after {size_text(self.done)}{total}" if self.done else ""
        text = str(why) or type(why).__name__
        return DownloadError(
            f"{self.download.label}: the download broke off{got} ({text if len(text) <= 160 else text[:157] + '...'}).",
            "Check the network and run the same command again: it resumes where it stopped.",
        )


def refusal(status: int, headers: Mapping[str, str], label: str, page: str) -> EdgeError | RetryLaterError:
    """Return the error for an HTTP status, and for the hub's X-Error-Code if there is one.

    Args:
        status, headers: of the response.
        label: of the request.
        page: of the publisher.
    """
    code = headers.get("X-Error-Code", "")
    if code == "RepoNotFound":  # with 401 if no token was sent, to hide which repositories are private
        return ModelNotFoundError(
            f"{label}: the hub has no such repository, or it is private (HTTP {status}).",
            "Check its name. For a private one set HF_TOKEN, or run: hf auth login",
        )
    if code == "GatedRepo":
        return AccessDeniedError(
            f"{label} is gated: its owner wants its licence accepted first (HTTP {status}).",
            f"Accept it at {page}, then set HF_TOKEN, or run: hf auth login",
        )
    if status in (401, 403):
        return AccessDeniedError(
            f"{label}: the server refuses access (HTTP {status}).",
            "Set HF_TOKEN to a token that may read it, or run: hf auth login",
        )
    if status == 404:
        what = {"RevisionNotFound": "revision", "EntryNotFound": "file"}.get(code, "model")
        return ModelNotFoundError(f"{label}: the server has no such {what} (HTTP 404).", f"See {page}")
    if status in _RETRIED:
        wait_s = _number(headers.get("Retry-After"))  # its other form, a date, is rare
        when = f"in {wait_s} s" if wait_s else "later"
        if status == 429:
            error = DownloadError(
                f"{label}: the server accepts no more requests from here for now (HTTP 429).",
                f"Try again {when}; with HF_TOKEN set the hub allows more.",
            )
        else:
            error = DownloadError(f"{label}: the server has a fault (HTTP {status}).", f"Try again {when}: it resumes.")
        return RetryLaterError(error, wait_s)
    return DownloadError(f"{label}: the server answered with HTTP {status}.", f"See {page}")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _continues(response: Any, offset: int) -> bool:
    """Return True if a response is the rest of the file from `offset`. A server may ignore Range and send all of it."""
    content_range: str = response.headers.get("Content-Range", "")
    return response.status_code == 206 and content_range.startswith(f"bytes {offset}-")


def _total(response: Any, done: int) -> int | None:
    """Return the whole file's size by the response's headers, which a compressed body would make meaningless."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise DownloadError("The server compresses the file although it was asked not to.", "Try again later.")
    if response.status_code == 206:
        return _number(response.headers.get("Content-Range", "").rpartition("/")[2])
    return _number(response.headers.get("Content-Length"))


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 19 else None


def _sha256(etag: str | None) -> str | None:
    bare = (etag or "").removeprefix("W/").strip('"')
    return bare if is_sha256(bare) else None
