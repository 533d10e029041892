"""The keys by which clients are known. Only hashes of them are held, and all are compared at every request."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edge.errors import ConfigError, StorageError
from edge_serve.call import Caller

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Keys", "read_keys"]

_SHORTEST = 16
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Keys:
    """The clients of a server, by the SHA-256 of their keys; none means that no key is asked for."""

    by_hash: dict[bytes, Caller] = field(default_factory=dict, repr=False)

    def find(self, key: str) -> Caller | None:
        """Return the client with this key; None if there is none. Its time does not depend on how much of a key is right."""
        digest = hashlib.sha256(key.encode("utf-8", "replace")).digest()
        found = None
        for known, caller in self.by_hash.items():
            if hmac.compare_digest(known, digest):
                found = caller
        return found

    def __bool__(self) -> bool:
        return bool(self.by_hash)


def read_keys(path: Path) -> Keys:
    """Read a file of keys: one a line, a name and a blank before it or not; empty lines and lines with # are left out.

    Raises:
        StorageError: it cannot be read.
        ConfigError: it has no key, a key that is too short, or one twice.
    """
    try:
        text = path.read_bytes()[:_MOST_BYTES].decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"The keys in {path} cannot be read ({error}).", "Check server.keys_file.") from None
    found: dict[bytes, Caller] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        key = words[-1]
        if len(key) < _SHORTEST or len(words) > 2:
            raise ConfigError(
                f"Line {number} of {path} is not a key of {_SHORTEST} characters or more, perhaps with a name before it.",
                "Make one with: openssl rand -hex 32",
            )
        digest = hashlib.sha256(key.encode()).digest()
        if digest in found:
            raise ConfigError(f"Line {number} of {path} has a key that is there already.", "Give each client its own.")
        short = digest.hex()[:24]
        found[digest] = Caller(words[0] if len(words) == 2 else f"key-{short[:6]}", f"client-{short}")
    if not found:
        raise ConfigError(f"There is no key in {path}.", f"Add one: openssl rand -hex 32 >> {path}")
    return Keys(found)
