"""The secret of a store: the keys derived from it, and the operating system's keyring as a place for it.

Without a keyring the secret is a file in the store's directory that only its owner can read: see files.py.
"""

from __future__ import annotations

import hashlib
import importlib
import secrets
from typing import TYPE_CHECKING, Any, Literal

from edge.errors import StorageError, UsageError
from edge.forks import lazy_property

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["KEYRING", "Keys", "Secret", "entry_bytes", "secret_of_keyring"]

KEYRING: Literal["keyring"] = "keyring"
Secret = bytes | Literal["keyring"] | None
KEY_BYTES = 32
TOKEN_BYTES = 4
HIDDEN_ENTRY_BYTES = 6
"""48 bits tell siblings apart; should two ever collide, the tokens inside the block are compared after it is opened."""
_SERVICE, _ACCOUNT = "edge-assistant", "kv-cache"


class Keys:
    """Keys derived from one secret: they name blocks, hide their tokens and seal them.

    Args:
        secret: 32 random bytes.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) != KEY_BYTES:
            raise UsageError(f"The key of a KV store has {len(secret)} bytes.", f"Use {KEY_BYTES} random bytes.")
        self._name_key = _derived(secret, b"edge-kv name 1")
        self._path_key = _derived(secret, b"edge-kv path 1")
        self._start_key = _derived(secret, b"edge-kv start 1")
        self._seal_key = _derived(secret, b"edge-kv seal 1")
        self.id = _derived(secret, b"edge-kv id 1")[:8]

    @lazy_property
    def cipher(self) -> AESGCM:
        """AES-256-GCM with the sealing key."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        return AESGCM(self._seal_key)

    def root(self, model: bytes, namespace: str, *, encrypted: bool) -> bytes:
        """Return what blocks at position 0 have in place of a parent's key (32 bytes).

        Args:
            model: the fingerprint.
            namespace: blocks of one namespace are never found from another.
            encrypted: plain and encrypted blocks never follow each other.
        """
        return self._name(b"root", b"encrypted" if encrypted else b"plain", model, namespace.encode("utf-8"))

    def block(self, model: bytes, namespace: str, parent: bytes, tokens: bytes) -> bytes:
        """Return the key of a block (32 bytes).

        Args:
            model: the fingerprint.
            namespace: as for `root`.
            parent: the parent block's key, or `root(...)`.
            tokens: packed.
        """
        n_tokens = (len(tokens) // TOKEN_BYTES).to_bytes(4, "big")
        return self._name(b"block", model, namespace.encode("utf-8"), parent, n_tokens, tokens)

    def path(self, parent: bytes, tokens: bytes, *, encrypted: bool) -> bytes:
        """Return the sort key of the index: the packed tokens, or a prefix-preserving encryption of them (6 bytes each).

        Args:
            parent: the parent block's key, or `root(...)`.
            tokens: packed.
            encrypted: hide the tokens.
        """
        if not encrypted:
            return tokens
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        # AES-CBC with an initial value derived from the parent: each output block depends on all tokens so far.
        start = hashlib.blake2b(parent, digest_size=16, key=self._start_key).digest()
        n_tokens = len(tokens) // TOKEN_BYTES
        padded = bytearray(16 * n_tokens)
        for at in range(TOKEN_BYTES):
            padded[at::16] = tokens[at::TOKEN_BYTES]
        hidden = Cipher(algorithms.AES(self._path_key), modes.CBC(start)).encryptor().update(padded)
        entries = bytearray(HIDDEN_ENTRY_BYTES * n_tokens)
        for at in range(HIDDEN_ENTRY_BYTES):
            entries[at::HIDDEN_ENTRY_BYTES] = hidden[at::16]
        return bytes(entries)

    def checksum(self, line: bytes) -> bytes:
        """Return what only who has the secret can compute of a line: 16 hexadecimal digits."""
        return self._name(b"line", line)[:8].hex().encode("ascii")

    def _name(self, *parts: bytes) -> bytes:
        framed = b"".join([len(part).to_bytes(8, "big") + part for part in parts])
        return hashlib.blake2b(framed, digest_size=KEY_BYTES, key=self._name_key).digest()


def _derived(secret: bytes, purpose: bytes) -> bytes:
    return hashlib.blake2b(digest_size=KEY_BYTES, key=secret, person=purpose).digest()


def entry_bytes(*, encrypted: bool) -> int:
    """Return the size of one entry of a path."""
    return HIDDEN_ENTRY_BYTES if encrypted else TOKEN_BYTES


def secret_of_keyring(*, make: bool) -> bytes | None:
    """Return the secret of this user's stores from the operating system's keyring.

    Args:
        make: store a new one there if there is none.

    Returns:
        32 bytes; None if there is none, or no keyring: the package `keyring` is not installed or finds nothing to use here.

    Raises:
        StorageError: the keyring refuses access, or holds something else.
    """
    keyring = _keyring()
    if keyring is None:
        return None
    hint = "Unlock it and try again, or delete that entry; the cache then starts empty."
    try:
        text = keyring.get_password(_SERVICE, _ACCOUNT)
        if text is None and make:
            keyring.set_password(_SERVICE, _ACCOUNT, secrets.token_hex(KEY_BYTES))
            text = keyring.get_password(_SERVICE, _ACCOUNT)  # another process may have stored one at the same time
    except keyring.errors.KeyringError as error:
        raise StorageError(f"The keyring does not give the key of the KV cache ({error}).", hint) from error
    if text is None:
        return None
    try:
        secret = bytes.fromhex(text)
    except ValueError:
        secret = b""
    if len(secret) != KEY_BYTES:
        raise StorageError(f"The keyring's entry {_SERVICE}, {_ACCOUNT} is not a key of edge.", hint)
    return secret


def _keyring() -> Any:
    """Return the package if it is installed and finds a keyring that protects its content."""
    try:
        keyring, _ = (importlib.import_module(name) for name in ("keyring", "keyring.errors"))
    except ImportError:
        return None
    # Priorities below 1 are for files in plain text and the like: no better than a file of ours.
    return keyring if keyring.get_keyring().priority >= 1 else None
