"""One block of KV cache as one immutable, authenticated file.

A block holds the keys and values of tokens that follow its parent block, or start at position 0. Its key is a keyed hash of
everything that gives its bytes a meaning: the fingerprint of model and engine, the namespace, the parent's key, the tokens.
The payload is opaque here. The engine that reads it checks little, so a payload leaves this module only after AES-256-GCM has
verified every byte of the file, header included.

The file (big-endian; sizes in bytes):

      0   8  magic "edgekv\\r\\n"                  64  32  key
      8   2  format version                      96  32  parent's key, or the root of fingerprint and namespace
     10   2  flags: 1 encrypted                 128  32  fingerprint
     12   4  header size, a multiple of 64      160   2  size of namespace
     16  12  nonce                              162   2  size of owner
     28   4  number of tokens n                 164   4  zero
     32   8  payload size                       168      path: n entries
     40   4  position of the first token                 namespace, owner: UTF-8
     44   2  size of one path entry: 4 or 6              zeros up to the header size
     46   2  origin: 0 prefill, 1 decode        then     body
     48   8  milliseconds of prefill, float     last 16  authentication tag
     56   8  id of the store's secret

In a plain block the path is the tokens, the body is the payload, and the tag is GMAC: everything before it is associated data.
In an encrypted block the body is the ciphertext of tokens and payload, the header is associated data, and entry i of the path
is the first 6 bytes of block i of AES-256-CBC over the tokens, each padded to 16 bytes, with a keyed hash of the parent as
initial value. It depends on the parent and all tokens up to i: children that share a prefix of tokens share a prefix of the
path, which is all a search needs, and nothing else can be read from it. Sizes, positions, times, namespace and owner stay
readable.

Nonces are 96 random bits; one secret is good for 2**32 files (NIST SP 800-38D, 8.3), more than any disk here will see.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge.errors import UsageError
from edge.kv.keys import KEY_BYTES, TOKEN_BYTES, Keys, entry_bytes

if TYPE_CHECKING:
    from edge.adapters import Adapter, Mix

__all__ = [
    "FORMAT_VERSION",
    "MAX_FILE_BYTES",
    "MAX_LABEL_BYTES",
    "MAX_PREFILL_MS",
    "MAX_TOKENS",
    "ORIGINS",
    "Block",
    "BlockDamaged",
    "Header",
    "NewBlock",
    "fingerprint",
    "open_block",
    "pack_tokens",
    "parse_header",
    "seal_block",
    "unpack_tokens",
    "with_adapters",
]

FORMAT_VERSION = 1
MAGIC = b"edgekv\r\n"  # A transfer that rewrites line ends destroys it.
TAG_BYTES = 16
MAX_TOKENS = 1 << 20
MAX_LABEL_BYTES = 255
MAX_PREFILL_MS = 1e9
MAX_FILE_BYTES = (1 << 31) - 1
"""Limit of the cipher for one call."""
ORIGINS = ("prefill", "decode")

_ALIGNMENT = 64
_FLAG_ENCRYPTED = 1
_FIXED = struct.Struct(">8sHHI12sIQIHHd8s32s32s32sHHI")
HEADER_READ_BYTES = 4096
"""Enough for the header of a usual block; `parse_header` raises when it was not."""


class BlockDamaged(Exception):
    """The bytes are not a whole block of this store. Its text says why."""


def with_adapters(model: bytes, mix: Mix, adapters: Sequence[Adapter]) -> bytes:
    """Return the fingerprint of a model whose weights are changed by adapters: by their content, at these scales.

    Args:
        model: fingerprint of the model alone, 32 bytes.
        mix: the adapters in use.
        adapters: of the model.
    """
    if not mix:
        return model
    scales = {f"adapter {adapters[number].sha256}": scale for number, scale in mix}
    return fingerprint({"model": model.hex(), **scales})


def fingerprint(fields: Mapping[str, str | int | float | bool]) -> bytes:
    """Return a digest of everything that changes the meaning of KV cache bytes: weights, tokenizer, rope, KV types, engine, ...

    Args:
        fields: values by name, in any order. 1, 1.0, True and "1" differ.

    Returns:
        32 bytes.

    Raises:
        UsageError: a value has another type, or is NaN.
    """
    digest = hashlib.blake2b(digest_size=KEY_BYTES, person=b"edge-kv model 1")
    for name in sorted(fields):
        value = fields[name]
        if isinstance(value, bool):
            kind, data = b"b", b"\1" if value else b"\0"
        elif isinstance(value, int):
            kind, data = b"i", str(value).encode("ascii")
        elif isinstance(value, float) and not math.isnan(value):
            kind, data = b"f", struct.pack(">d", value + 0.0)  # -0.0 becomes 0.0
        elif isinstance(value, str):
            kind, data = b"s", value.encode("utf-8")
        else:
            raise UsageError(f"The fingerprint field {name!r} is {value!r}.", "Use text, a number, true or false.")
        for part in (name.encode("utf-8"), kind, data):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()


def pack_tokens(tokens: Sequence[int]) -> bytes:
    """Return token ids as unsigned 32-bit big-endian numbers, whose bytes sort as the numbers do.

    Raises:
        UsageError: a token id is negative or does not fit into 32 bits.
    """
    try:
        packed = array("I", tokens)
    except (OverflowError, TypeError) as error:
        raise UsageError(f"A token id cannot be stored ({error}).", "Token ids are whole numbers from 0 up.") from None
    if packed.itemsize != TOKEN_BYTES:  # no platform known to Python today
        return struct.pack(f">{len(tokens)}I", *tokens)
    if sys.byteorder == "little":
        packed.byteswap()
    return packed.tobytes()


def unpack_tokens(packed: bytes) -> list[int]:
    """Return the tokens that `pack_tokens` packed."""
    return list(struct.unpack(f">{len(packed) // TOKEN_BYTES}I", packed))


@dataclass(frozen=True, slots=True)
class Header:
    """Header of a block. Unverified until `open_block` has seen the whole file.

    Attributes:
        key: its own key, 32 bytes.
        parent: its parent's key, or the root.
        model: the fingerprint, 32 bytes.
        namespace: who shares it.
        owner: the first owner, "" for none.
        start: position of its first token.
        n_tokens: tokens it holds.
        path: the packed tokens, or their hidden form.
        payload_bytes: size of the payload.
        encrypted: tokens and payload are encrypted.
        origin: "prefill" or "decode": the pass that computed the keys and values.
        prefill_ms: time that computing them took.
        key_id: identifies the secret that sealed it, 8 bytes.
        nonce: 12 bytes.
        header_bytes: offset of the body.
    """

    key: bytes
    parent: bytes
    model: bytes
    namespace: str
    owner: str
    start: int
    n_tokens: int
    path: bytes
    payload_bytes: int
    encrypted: bool
    origin: str
    prefill_ms: float
    key_id: bytes
    nonce: bytes
    header_bytes: int

    @property
    def body_bytes(self) -> int:
        """Size of the bytes between header and tag."""
        return self.payload_bytes + (self.n_tokens * TOKEN_BYTES if self.encrypted else 0)

    @property
    def file_bytes(self) -> int:
        """Size of the whole file."""
        return self.header_bytes + self.body_bytes + TAG_BYTES


@dataclass(frozen=True, slots=True)
class Block:
    """A block whose every byte was verified.

    Attributes:
        header: its header.
        tokens: packed.
        payload: exported by the engine; a view into the bytes of the file, not copied.
    """

    header: Header
    tokens: bytes
    payload: memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class NewBlock:
    """A block to be sealed.

    Attributes:
        parent: the parent block's key, or the root.
        tokens: packed; at least one.
        payload: exported by the engine.
        model: the fingerprint, 32 bytes.
        namespace: who shares it, at most 255 bytes of UTF-8.
        owner: its first owner, at most 255 bytes of UTF-8.
        start: position of its first token.
        origin: one of ORIGINS.
        prefill_ms: time that computing it took.

    Raises:
        UsageError: the format cannot hold a value.
    """

    parent: bytes
    tokens: bytes
    payload: bytes
    model: bytes
    namespace: str
    owner: str = ""
    start: int
    origin: str = "prefill"
    prefill_ms: float = 0.0

    def __post_init__(self) -> None:
        n_tokens, n_bytes, smaller = len(self.tokens) // TOKEN_BYTES, len(self.payload), "Split it into smaller ones."
        if not 1 <= n_tokens <= MAX_TOKENS or self.start < 0 or self.start + n_tokens >= 1 << 32:
            raise UsageError(f"A block cannot hold {n_tokens} tokens from position {self.start}.", smaller)
        if n_bytes + 16 * n_tokens + 4096 > MAX_FILE_BYTES:
            raise UsageError(f"A block of {n_bytes} bytes is too large.", smaller)
        if len(self.model) != KEY_BYTES or self.origin not in ORIGINS or not 0 <= self.prefill_ms <= MAX_PREFILL_MS:
            raise UsageError("The fingerprint, the origin or the time of a block is invalid.", "See BlockStore.put.")
        if max(len(self.namespace.encode("utf-8")), len(self.owner.encode("utf-8"))) > MAX_LABEL_BYTES:
            raise UsageError(f"Namespace and owner have at most {MAX_LABEL_BYTES} bytes.", "Use an id.")


def seal_block(
    keys: Keys, block: NewBlock, *, encrypted: bool = False, nonce: bytes | None = None
) -> tuple[Header, list[bytes]]:
    """Return the bytes of a block's file.

    Args:
        keys: keys of the store.
        block: the block.
        encrypted: hide tokens and payload.
        nonce: 12 bytes; only tests choose it.

    Returns:
        The header, and the file in pieces to be written in order.
    """
    path = keys.path(block.parent, block.tokens, encrypted=encrypted)
    used = _FIXED.size + len(path) + len(block.namespace.encode("utf-8")) + len(block.owner.encode("utf-8"))
    header = Header(
        keys.block(block.model, block.namespace, block.parent, block.tokens), block.parent, block.model, block.namespace,
        block.owner, block.start, len(block.tokens) // TOKEN_BYTES, path, len(block.payload), encrypted, block.origin,
        block.prefill_ms, keys.id, os.urandom(12) if nonce is None else nonce, -(-used // _ALIGNMENT) * _ALIGNMENT,
    )  # fmt: skip
    head = _header_bytes(header)
    if encrypted:
        return header, [head, keys.cipher.encrypt(header.nonce, block.tokens + block.payload, head)]
    plain = head + block.payload
    return header, [plain, keys.cipher.encrypt(header.nonce, b"", plain)]


def open_block(keys: Keys, data: bytes) -> Block:
    """Verify a block's file and split it.

    Args:
        keys: keys of the store.
        data: the whole file.

    Raises:
        BlockDamaged: a byte was changed, added or removed, or it belongs to another store.
    """
    from cryptography.exceptions import InvalidTag

    header = parse_header(data, len(data))
    if header.key_id != keys.id:
        raise BlockDamaged("it was sealed with another key")
    view = memoryview(data)
    body, tag = view[header.header_bytes : -TAG_BYTES], view[-TAG_BYTES:]
    try:
        if header.encrypted:
            opened = memoryview(keys.cipher.decrypt(header.nonce, view[header.header_bytes :], view[: header.header_bytes]))
            n_bytes = header.n_tokens * TOKEN_BYTES
            tokens, payload = bytes(opened[:n_bytes]), opened[n_bytes:]
        else:
            keys.cipher.decrypt(header.nonce, tag, view[:-TAG_BYTES])
            tokens, payload = header.path, body
    except InvalidTag:
        raise BlockDamaged("its authentication tag does not match its bytes") from None
    if keys.block(header.model, header.namespace, header.parent, tokens) != header.key:
        raise BlockDamaged("its key does not match its tokens")
    return Block(header, tokens, payload)


def parse_header(data: bytes, file_bytes: int) -> Header:
    """Parse a header, without verifying it.

    Args:
        data: the first `HEADER_READ_BYTES` or more of the file, or all of it.
        file_bytes: size of the whole file.

    Raises:
        BlockDamaged: not a block, of another format version, truncated, or with sizes that contradict each other.
    """
    if len(data) < _FIXED.size:
        raise BlockDamaged(f"it has {file_bytes} bytes")
    (
        magic, version, flags, header_bytes, nonce, n_tokens, payload_bytes, start, entry, origin, prefill_ms,
        key_id, key, parent, model, namespace_bytes, owner_bytes, reserved,
    ) = _FIXED.unpack_from(data)  # fmt: skip
    if magic != MAGIC:
        raise BlockDamaged("it is not a KV block")
    if version != FORMAT_VERSION:
        raise BlockDamaged(f"its format is version {version}, this is version {FORMAT_VERSION}")
    encrypted = flags == _FLAG_ENCRYPTED
    path_end = _FIXED.size + n_tokens * entry
    used = path_end + namespace_bytes + owner_bytes
    if (
        flags not in (0, _FLAG_ENCRYPTED)
        or entry != entry_bytes(encrypted=encrypted)
        or origin >= len(ORIGINS)
        or reserved
        or not 1 <= n_tokens <= MAX_TOKENS
        or max(namespace_bytes, owner_bytes) > MAX_LABEL_BYTES
        or header_bytes != -(-used // _ALIGNMENT) * _ALIGNMENT
        or not 0 <= prefill_ms <= MAX_PREFILL_MS
    ):
        raise BlockDamaged("its header is invalid")
    if len(data) < used:
        raise BlockDamaged("its header is truncated" if len(data) >= file_bytes else "its header is longer than the bytes read")
    try:
        namespace = data[path_end : path_end + namespace_bytes].decode("utf-8")
        owner = data[path_end + namespace_bytes : used].decode("utf-8")
    except UnicodeDecodeError:
        raise BlockDamaged("its header holds text that is not UTF-8") from None
    header = Header(
        key, parent, model, namespace, owner, start, n_tokens, bytes(data[_FIXED.size : path_end]), payload_bytes,
        encrypted, ORIGINS[origin], prefill_ms, key_id, nonce, header_bytes,
    )  # fmt: skip
    if header.file_bytes != file_bytes:
        raise BlockDamaged(f"it has {file_bytes} bytes and should have {header.file_bytes}")
    return header


def _header_bytes(header: Header) -> bytes:
    labels = header.namespace.encode("utf-8"), header.owner.encode("utf-8")
    fixed = _FIXED.pack(
        MAGIC, FORMAT_VERSION, _FLAG_ENCRYPTED if header.encrypted else 0, header.header_bytes, header.nonce,
        header.n_tokens, header.payload_bytes, header.start, len(header.path) // header.n_tokens,
        ORIGINS.index(header.origin), header.prefill_ms, header.key_id, header.key, header.parent, header.model,
        len(labels[0]), len(labels[1]), 0,
    )  # fmt: skip
    return b"".join([fixed, header.path, *labels]).ljust(header.header_bytes, b"\0")
