"""The address of a server with OpenAI's protocol, openai:URL, and the key for it."""

from __future__ import annotations

import ipaddress
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from edge.errors import ConfigError, UsageError
from edge.files import open_file
from edge.units import quoted

__all__ = ["KEY_VARIABLE", "PREFIX", "Address", "is_own_address", "read_address", "read_key"]

PREFIX = "openai:"
KEY_VARIABLE = "EDGE_REMOTE_KEY"
_HINT = "For example: openai:https://gpu.example.org/v1#qwen3-32b or openai:http://127.0.0.1:8033"
_MOST_KEY_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is.

    Attributes:
        base: the address that "/chat/completions" is added to.
        host: with the port, if one is named.
        model: to ask for; "" is the first that the server lists.
        is_encrypted: by TLS.
        is_loopback: on this machine itself, as far as the name says.
    """

    base: str
    host: str
    model: str
    is_encrypted: bool
    is_loopback: bool


@dataclass(frozen=True, slots=True)
class Key:
    """An API key, which no repr shows."""

    value: str = field(repr=False)


def read_address(text: str) -> Address:
    """Read openai:URL, with #MODEL at its end or not. An address without a path gets /v1.

    Raises:
        UsageError: it is not such an address, or has a password in it.
    """
    try:
        parts = urlsplit(text.removeprefix(PREFIX))
        is_usable = text.startswith(PREFIX) and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        host = (parts.hostname or "").encode("idna").decode("ascii") if is_usable else ""
    except ValueError:
        is_usable = False
    if not is_usable or parts.query or not text.isprintable() or " " in text:
        shown = text if "@" not in text else f"{text.partition(':')[0]}:…@{text.rpartition('@')[2]}"
        raise UsageError(f"{shown[:200]!r} is not the address of a server.", _HINT)
    if parts.username is not None or parts.password is not None:
        hint = f"Set {KEY_VARIABLE}, or name a file with the key: escalation.key_file"
        raise UsageError("A server's address has no user or password in it.", hint)
    shown_host = f"[{host}]" if ":" in host else host
    shown_host += f":{parts.port}" if parts.port is not None else ""
    base = f"{parts.scheme}://{shown_host}{parts.path.rstrip('/') or '/v1'}"
    return Address(base, shown_host, parts.fragment, parts.scheme == "https", is_own_address(host))


def read_key(address: Address, path: Path | None, environ: Mapping[str, str] | None = None) -> Key | None:
    """Return the key for a server: from EDGE_REMOTE_KEY, else from a file that only its owner may read; None without one.

    Raises:
        ConfigError: it cannot be read, is no key, others may read the file, or it would be sent unencrypted over a network.
    """
    text = (os.environ if environ is None else environ).get(KEY_VARIABLE, "")
    source = KEY_VARIABLE
    if not text and path is not None:
        text, source = _read_file(path), str(path)
    key = text.strip()
    if not key:
        return None
    if not key.isascii() or not key.isprintable() or " " in key or len(key) > _MOST_KEY_BYTES:
        raise ConfigError(f"{source} has a character that no key has.", "A key is one line of ASCII without blanks.")
    if not address.is_encrypted and not address.is_loopback:
        raise ConfigError(
            f"The key for {address.host} would be sent unencrypted.", "Use an address with https://, or none with a key."
        )
    return Key(key)


def _read_file(path: Path) -> str:
    try:
        with open_file(path) as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(_MOST_KEY_BYTES + 1).decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        why = "it is not text" if isinstance(error, UnicodeDecodeError) else error.strerror or error
        raise ConfigError(f"The key file {path} cannot be read: {why}.", "Check escalation.key_file.") from None
    if os.name == "posix" and stat.S_IMODE(mode) & 0o077:
        raise ConfigError(f"Others may read the key file {path}.", f"Run: chmod 600 {quoted(path)}")
    if not text.strip():
        raise ConfigError(f"The key file {path} is empty.", f"Write the key into it, or set {KEY_VARIABLE}.")
    return text


def is_own_address(host: str) -> bool:
    """Return whether only programs of this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
