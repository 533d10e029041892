"""Fetches one file over HTTP: resumed, bounded by its promised size, hashed on the way, redirects followed by rules.

huggingface_hub's own downloader is not used for the bytes: it writes whatever arrives and compares sizes afterwards, does not
check the SHA-256, and hands large files to hf-xet, which plain servers do not speak. Its client is used, so that proxies,
certificates and a client factory that the user set hold here too.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from edge.errors import AccessDeniedError, ChecksumError, DownloadError, EdgeError, ModelNotFoundError
from edge.hashes import CHUNK_BYTES
from edge.sources.store import storage_error
from edge.units import size_text

if TYPE_CHECKING:
    from edge.sources.store import Store

__all__ = ["Download", "RetryLaterError", "fetch_file", "refusal", "retry", "transport_errors"]

_MAX_REDIRECTS = 5
_MAX_TRIES = 4  # without a byte of progress in between
_MAX_WAIT_S = 60.0
_CONNECT_TIMEOUT_S = 10.0
_RETRIED = (408, 429, 500, 502, 503, 504)

sleep = time.sleep


class RetryLaterError(Exception):
    """The other side may answer later; carries the error to raise when it does not.

    Args:
        error: for the user.
        wait_s: what the server asked for, in seconds; None where it did not say.
    """

    def __init__(self, error: EdgeError, wait_s: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait_s = wait_s


@dataclass(frozen=True)
class Download:
    """One file to fetch.

    Attributes:
        url: where it is.
        headers: sent to the host of `url` only; other hosts that it redirects to see none of them.
        size_bytes: promised; None if only the server's own header can tell.
        sha256: promised; None if nobody did.
        label: for messages: "owner/repo: file".
        page: where its publisher can be reached, for hints.
    """

    url: str
    headers: Mapping[str, str]
    size_bytes: int | None
    sha256: str | None
    label: str
    page: str


@dataclass
class _Hop:
    """What a response said of the file, redirects included."""

    response: Any
    linked_size: int | None
    linked_sha256: str | None


def fetch_file(
    download: Download, partial: Path, store: Store, *, on_bytes: Callable[[int, int | None], None]
) -> tuple[str, str | None]:
    """Fetch a file, going on where an earlier attempt stopped.

    Args:
        download: what to fetch.
        partial: where the bytes go. Stays there, to be resumed, when the network fails or the user stops it; removed
            when it turns out to be wrong.
        store: checks for room.
        on_bytes: told (done, total) after every piece; what it raises goes through and leaves a partial file.

    Returns:
        The file's SHA-256, and the one that was promised, where somebody did.

    Raises:
        DownloadError, AccessDeniedError, ModelNotFoundError: as the server answered.
        ChecksumError: size or hash are not those promised; the partial file is gone.
        StorageError: no room, or the file cannot be written.
    """
    transfer = _Transfer(download, partial, store, on_bytes)
    retry(transfer.attempt, has_progressed=transfer.take_progress)
    return transfer.finish()


def retry(attempt: Callable[[], None], *, has_progressed: Callable[[], bool] = lambda: False) -> None:
    """Call `attempt` until it does not raise RetryLaterError, a few times, waiting longer each time or as the server asks.

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
            # Without buffering: what was counted is in the file, also when the process dies.
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
                raise RetryLaterError(self._broken(error)) from error

    def finish(self) -> tuple[str, str | None]:
        found = self.digest.hexdigest()
        if self.sha256 is not None and found != self.sha256:
            self._discard()
            raise ChecksumError(
                f"{self.download.label} is damaged: its SHA-256 is {found}, promised was {self.sha256}.",
                "It was removed. Pull it again; if that fails too, the server or something on the way is at fault.",
            )
        return found, self.sha256

    def _read_earlier(self, file: Any) -> None:
        """Hash what an earlier attempt left, and see whether it can be part of this file."""
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
        with _open(self.download, self.done) as hop:
            response = hop.response
            self._learn(hop)
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

    def _learn(self, hop: _Hop) -> None:
        """Take the hub's own word on size and hash where its listing did not give them."""
        if self.size_bytes is None:
            self.size_bytes = hop.linked_size
        if self.sha256 is None:
            self.sha256 = hop.linked_sha256

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
                f"{self.download.label}: promised were {self.size_bytes:,} bytes, the server sends {total:,}.",
                "The file there is not the one it was. Pull it again later, or check the publisher's page.",
            )

    def _discard(self) -> None:
        self.partial.unlink(missing_ok=True)

    def _broken(self, why: object) -> DownloadError:
        total = f" of {size_text(self.size_bytes)}" if self.size_bytes is not None else ""
        got = f" after {size_text(self.done)}{total}" if self.done else ""
        return DownloadError(
            f"{self.download.label}: the download broke off{got} ({_describe(why)}).",
            "Check the network and run the same command again: it resumes where it stopped.",
        )


@contextmanager
def _open(download: Download, offset: int) -> Iterator[_Hop]:
    """GET with redirects followed by our rules: http(s) only, never from https to http, credentials to the first host."""
    from huggingface_hub import constants, get_session

    client: Any = get_session()
    url, hop = download.url, _Hop(None, None, None)
    for _ in range(_MAX_REDIRECTS + 1):
        is_first_host = _origin(url) == _origin(download.url)
        headers = {"Accept-Encoding": "identity", **(download.headers if is_first_host else {})}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        timeout = (_CONNECT_TIMEOUT_S, constants.HF_HUB_DOWNLOAD_TIMEOUT, _CONNECT_TIMEOUT_S, _CONNECT_TIMEOUT_S)
        with client.stream("GET", url, headers=headers, follow_redirects=False, timeout=timeout) as response:
            if is_first_host:
                hop.linked_size = hop.linked_size or _number(response.headers.get("X-Linked-Size"))
                hop.linked_sha256 = hop.linked_sha256 or _sha256(response.headers.get("X-Linked-Etag"))
            if response.status_code not in (301, 302, 303, 307, 308):
                hop.response = response
                yield hop
                return
            target = urljoin(url, response.headers.get("Location", ""))
        if urlsplit(target).scheme not in ("https", "http" if urlsplit(url).scheme == "http" else "https"):
            raise DownloadError(
                f"{download.label}: the server redirects to {target[:100]!r}, which is not followed.",
                f"Only http and https are, and never from https to http. Report it at {download.page}",
            )
        url = target
    raise DownloadError(f"{download.label}: the server redirects in circles.", "Try again later.")


def refusal(status: int, headers: Mapping[str, str], label: str, page: str) -> EdgeError | RetryLaterError:
    """What an HTTP status means for the user. The hub says more in X-Error-Code, which is read where it is there.

    Args:
        status: of the response.
        headers: of the response.
        label: what was asked for.
        page: where its publisher can be reached.
    """
    code = headers.get("X-Error-Code", "")
    if code == "RepoNotFound":  # with 401 where no token was sent, so that nobody can tell what is private
        return ModelNotFoundError(
            f"{label}: the hub has no such repository, or it is private (HTTP {status}).",
            "Check its name. For a private one set HF_TOKEN, or run: hf auth login",
        )
    if code == "GatedRepo" or status in (401, 403):
        if code == "GatedRepo":
            return AccessDeniedError(
                f"{label} is gated: its owner wants its licence accepted first (HTTP {status}).",
                f"Accept it at {page}, then set HF_TOKEN, or run: hf auth login",
            )
        return AccessDeniedError(
            f"{label}: the server refuses access (HTTP {status}).",
            "Set HF_TOKEN to a token that may read it, or run: hf auth login",
        )
    if status == 404:
        what = {"RevisionNotFound": "revision", "EntryNotFound": "file"}.get(code, "model")
        return ModelNotFoundError(f"{label}: the server has no such {what} (HTTP 404).", f"See {page}")
    if status in _RETRIED:
        wait_s = _seconds(headers.get("Retry-After"))
        when = f"in {wait_s:.0f} s" if wait_s else "later"
        if status == 429:
            error = DownloadError(
                f"{label}: the server takes no more requests from here for now (HTTP 429).",
                f"Try again {when}; with HF_TOKEN set the hub allows more.",
            )
        else:
            error = DownloadError(f"{label}: the server has a fault (HTTP {status}).", f"Try again {when}: it resumes.")
        return RetryLaterError(error, wait_s)
    return DownloadError(f"{label}: the server answered with HTTP {status}.", f"See {page}")


def transport_errors() -> tuple[type[Exception], ...]:
    """What the hub's HTTP client raises when the network fails: httpx for huggingface_hub 1, httpx2 for 2."""
    from huggingface_hub.errors import HfHubHTTPError

    return (HfHubHTTPError.__bases__[0], OSError)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _continues(response: Any, offset: int) -> bool:
    """Whether a response is the rest of the file, from `offset` on. A server may ignore Range and send all of it."""
    content_range: str = response.headers.get("Content-Range", "")
    return response.status_code == 206 and content_range.startswith(f"bytes {offset}-")


def _total(response: Any, done: int) -> int | None:
    """The whole file's size by the response's headers. A compressed body has no size that would mean anything."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise DownloadError("The server compresses the file although it was asked not to.", "Try again later.")
    if response.status_code == 206:
        return _number(response.headers.get("Content-Range", "").rpartition("/")[2])
    return _number(response.headers.get("Content-Length"))


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 19 else None


def _sha256(etag: str | None) -> str | None:
    bare = (etag or "").removeprefix("W/").strip('"')
    return bare if len(bare) == 64 and all(letter in "0123456789abcdef" for letter in bare) else None


def _seconds(text: str | None) -> float | None:
    """Retry-After in seconds. Its other form, a date, is rare, and the usual waits serve as well."""
    number = _number(text)
    return float(number) if number is not None else None


def _describe(why: object) -> str:
    text = str(why) or type(why).__name__
    return text if len(text) <= 160 else text[:157] + "..."
