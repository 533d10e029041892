"""The file of one block: its exact bytes, what opening proves, and what the names and paths promise."""

from __future__ import annotations

import hashlib
import struct

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import UsageError
from edge.kv.blocks import (
    Block,
    BlockDamaged,
    NewBlock,
    fingerprint,
    open_block,
    pack_tokens,
    parse_header,
    seal_block,
    unpack_tokens,
)
from edge.kv.keys import Keys

SECRET = bytes(range(32))
MODEL = fingerprint({"weights": "abc", "n_ubatch": 512, "rope_base": 10000.0, "flash": True})
token_rows = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40)

GOLDEN_MODEL = "987cb279d294eada060dcc1329b27dcfd40a8839128ed7c1738d6da3f7971ec9"
GOLDEN = {
    False: (
        "656467656b760d0a00010000000001006e6f6e63652d31322d62797400000003000000000000000b000000000004000140290000000000"
        "00424b4fbe645cc3907f2d03f098ce356ead4d41f4b942a39fc8f2e6f313e9d5c87d33e2533b6130721fcc6453956eebc07cb8fed0a8d2"
        "43011aa5af14f3886256e22978e818a26335987cb279d294eada060dcc1329b27dcfd40a8839128ed7c1738d6da3f7971ec90006000e00"
        "000000000000010000000200011170736861726564636f6e766572736174696f6e2d310000000000000000000000000000000000000000"
        "0000000000000000000000000000000000000000000000000000000000000000000000004b4559532b56414c5545536c12746e93071b31"
        "0f197d00db1c4657"
    ),
    True: (
        "656467656b760d0a00010001000001006e6f6e63652d31322d62797400000003000000000000000b000000000006000140290000000000"
        "00424b4fbe645cc390c4b1b5d9daa47a3604c774b28c17bb8bcc19211a832aa082e5316b9d1745912dfec430951eb1b53d811ab4169cb8"
        "71fb1791903cf6c3ba617e044beebd4e0ce5987cb279d294eada060dcc1329b27dcfd40a8839128ed7c1738d6da3f7971ec90006000e00"
        "000000213243830cd0c00a6e483094560d8c9e648e736861726564636f6e766572736174696f6e2d310000000000000000000000000000"
        "00000000000000000000000000000000000000000000000000000000000000000000000019f585fa01f071bac5c4fcc337cb1438a56b81"
        "57b2b2c672f230ae2ce22fa5ab037f68b6a63613"
    ),
}


def sealed(*, encrypted: bool, tokens: list[int] | None = None, payload: bytes = b"KEYS+VALUES", start: int = 0) -> bytes:
    keys = Keys(SECRET)
    block = NewBlock(
        parent=keys.root(MODEL, "shared", encrypted=encrypted) if start == 0 else b"p" * 32,
        tokens=pack_tokens(tokens or [1, 2, 70000]),
        payload=payload,
        model=MODEL,
        namespace="shared",
        owner="conversation-1",
        start=start,
        origin="decode",
        prefill_ms=12.5,
    )
    _, pieces = seal_block(keys, block, encrypted=encrypted, nonce=b"nonce-12-byt")
    return b"".join(pieces)


@pytest.mark.parametrize("encrypted", [False, True])
def test_golden_bytes(encrypted: bool) -> None:
    # A store written by an older edge must be read, or refused by its version; never misread.
    assert MODEL.hex() == GOLDEN_MODEL
    assert sealed(encrypted=encrypted).hex() == GOLDEN[encrypted]


@pytest.mark.parametrize("encrypted", [False, True])
def test_the_bytes_are_where_the_docstring_says(encrypted: bool) -> None:
    data = sealed(encrypted=encrypted)
    assert data[:8] == b"edgekv\r\n"
    assert struct.unpack(">HHI", data[8:16]) == (1, int(encrypted), len(data) - len(b"KEYS+VALUES") - 16 - 12 * encrypted)
    assert data[16:28] == b"nonce-12-byt"
    assert struct.unpack(">IQIHHd", data[28:56]) == (3, 11, 0, 6 if encrypted else 4, 1, 12.5)
    assert data[128:160] == MODEL
    assert struct.unpack(">HHI", data[160:168]) == (6, 14, 0)
    entries = 3 * (6 if encrypted else 4)
    assert data[168 + entries : 188 + entries] == b"shared" + b"conversation-1"
    if not encrypted:
        assert data[168:180] == struct.pack(">3I", 1, 2, 70000)


@pytest.mark.parametrize("encrypted", [False, True])
def test_another_implementation_of_the_seal_agrees(encrypted: bool) -> None:
    data = sealed(encrypted=encrypted)
    cipher = AESGCM(hashlib.blake2b(digest_size=32, key=SECRET, person=b"edge-kv seal 1").digest())
    header_bytes = int.from_bytes(data[12:16], "big")
    if encrypted:
        opened = cipher.decrypt(data[16:28], data[header_bytes:], data[:header_bytes])
        assert opened == struct.pack(">3I", 1, 2, 70000) + b"KEYS+VALUES"
    else:
        assert cipher.decrypt(data[16:28], data[-16:], data[:-16]) == b""
        assert data[header_bytes:-16] == b"KEYS+VALUES"


@given(tokens=token_rows, payload=st.binary(max_size=300), encrypted=st.booleans(), start=st.integers(0, 2**31))
def test_what_is_sealed_comes_back(tokens: list[int], payload: bytes, encrypted: bool, start: int) -> None:
    block = open_block(Keys(SECRET), sealed(encrypted=encrypted, tokens=tokens, payload=payload, start=start))
    assert unpack_tokens(block.tokens) == tokens
    assert bytes(block.payload) == payload
    header = block.header
    assert (header.n_tokens, header.start, header.namespace, header.owner) == (len(tokens), start, "shared", "conversation-1")
    assert (header.origin, header.prefill_ms, header.model, header.encrypted) == ("decode", 12.5, MODEL, encrypted)


@pytest.mark.parametrize("encrypted", [False, True])
def test_every_flipped_bit_is_found(encrypted: bool) -> None:
    data, keys = sealed(encrypted=encrypted), Keys(SECRET)
    for at in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[at] ^= 1 << bit
            with pytest.raises(BlockDamaged):
                open_block(keys, bytes(flipped))


@pytest.mark.parametrize("encrypted", [False, True])
def test_every_other_length_is_found(encrypted: bool) -> None:
    data, keys = sealed(encrypted=encrypted), Keys(SECRET)
    for length in range(len(data)):
        with pytest.raises(BlockDamaged):
            open_block(keys, data[:length])
    for more in (b"\0", b"\0" * 64, data):
        with pytest.raises(BlockDamaged):
            open_block(keys, data + more)


def test_another_secret_opens_nothing() -> None:
    for encrypted in (False, True):
        with pytest.raises(BlockDamaged, match="another key"):
            open_block(Keys(b"x" * 32), sealed(encrypted=encrypted))


def test_a_header_with_another_version_or_absurd_sizes_is_refused_before_anything_else() -> None:
    data = bytearray(sealed(encrypted=False))
    for at, value, reason in ((8, b"\0\2", "version 2"), (28, b"\xff" * 4, "header"), (32, b"\x7f" * 8, "should have")):
        changed = data.copy()
        changed[at : at + len(value)] = value
        with pytest.raises(BlockDamaged, match=reason):
            parse_header(bytes(changed), len(changed))


def test_an_encrypted_block_shows_no_token_and_no_payload() -> None:
    tokens = [0x41424344, 0x45464748, 0x494A4B4C]
    data = sealed(encrypted=True, tokens=tokens, payload=b"a secret that must not be seen")
    assert b"secret" not in data
    for token in tokens:
        for order in ("big", "little"):
            assert token.to_bytes(4, order) not in data  # type: ignore[arg-type]


@given(a=token_rows, b=token_rows, shared=st.lists(st.integers(0, 3), max_size=10), encrypted=st.booleans())
def test_paths_share_what_tokens_share(a: list[int], b: list[int], shared: list[int], encrypted: bool) -> None:
    keys, entry = Keys(SECRET), 6 if encrypted else 4
    a, b = shared + a, shared + b
    paths = [keys.path(b"p" * 32, pack_tokens(row), encrypted=encrypted) for row in (a, b)]
    assert [len(path) for path in paths] == [len(a) * entry, len(b) * entry]
    for n_tokens in range(min(len(a), len(b)) + 1):
        assert (paths[0][: n_tokens * entry] == paths[1][: n_tokens * entry]) == (a[:n_tokens] == b[:n_tokens])


def test_another_implementation_of_hidden_paths_agrees() -> None:
    start_key, path_key = (
        hashlib.blake2b(digest_size=32, key=SECRET, person=person).digest()
        for person in (b"edge-kv start 1", b"edge-kv path 1")
    )
    state = hashlib.blake2b(b"p" * 32, digest_size=16, key=start_key).digest()
    expected = b""
    for token in (5, 70000, 2**32 - 1):
        block = struct.pack(">I12x", token)
        mixed = bytes(a ^ b for a, b in zip(state, block, strict=True))
        state = Cipher(algorithms.AES(path_key), modes.ECB()).encryptor().update(mixed)
        expected += state[:6]
    assert Keys(SECRET).path(b"p" * 32, pack_tokens([5, 70000, 2**32 - 1]), encrypted=True) == expected


def test_hidden_paths_say_nothing_across_parents() -> None:
    keys, tokens = Keys(SECRET), pack_tokens([1, 2, 3])
    first, second = (keys.path(parent * 32, tokens, encrypted=True) for parent in (b"a", b"b"))
    assert not {first[at : at + 6] for at in (0, 6, 12)} & {second[at : at + 6] for at in (0, 6, 12)}


def test_keys_depend_on_everything_that_gives_a_block_its_meaning() -> None:
    keys, tokens = Keys(SECRET), pack_tokens([1, 2])
    root = keys.root(MODEL, "ns", encrypted=False)
    names = {
        root,
        keys.root(MODEL, "ns", encrypted=True),
        keys.root(MODEL, "other", encrypted=False),
        keys.root(b"m" * 32, "ns", encrypted=False),
        Keys(b"x" * 32).root(MODEL, "ns", encrypted=False),
        keys.block(MODEL, "ns", root, tokens),
        keys.block(MODEL, "ns", b"p" * 32, tokens),
        keys.block(MODEL, "n", root, tokens),
        keys.block(MODEL, "ns", root, pack_tokens([1])),
        keys.block(b"m" * 32, "ns", root, tokens),
        Keys(b"x" * 32).block(MODEL, "ns", root, tokens),
    }
    assert len(names) == 11


def test_fingerprints_differ_by_name_value_and_type() -> None:
    fields: list[dict[str, str | int | float | bool]] = [
        {}, {"a": 1}, {"a": 1.0}, {"a": True}, {"a": "1"}, {"a": 2}, {"b": 1}, {"a": 1, "b": 1}, {"a": "x", "b": "y"},
        {"a": "x\0b", "b": ""}, {"ax": "", "b": "y"}, {"a": float("inf")}, {"a": -1}, {"a": False}, {"a": 0},
    ]  # fmt: skip
    assert len({fingerprint(each) for each in fields}) == len(fields)
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 0.0}) == fingerprint({"a": -0.0})


@pytest.mark.parametrize("value", [float("nan"), None, b"x", [1]])
def test_a_fingerprint_of_anything_else_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match="fingerprint field 'a'"):
        fingerprint({"a": value})  # type: ignore[dict-item]


@given(rows=st.lists(token_rows, min_size=2, max_size=2))
def test_packed_tokens_sort_as_tokens_do(rows: list[list[int]]) -> None:
    first, second = rows
    assert (pack_tokens(first) < pack_tokens(second)) == (first < second)


@pytest.mark.parametrize("tokens", [[-1], [2**32], ["1"], [1.5]])
def test_what_is_no_token_is_refused(tokens: list[int]) -> None:
    with pytest.raises(UsageError, match="token id"):
        pack_tokens(tokens)


def test_values_that_do_not_fit_are_refused() -> None:
    keys = Keys(SECRET)

    def attempt(tokens: bytes, namespace: str, start: int) -> Block:
        block = NewBlock(parent=b"p" * 32, tokens=tokens, payload=b"", model=MODEL, namespace=namespace, start=start)
        _, pieces = seal_block(keys, block)
        return open_block(keys, b"".join(pieces))

    assert attempt(pack_tokens([1]), "n" * 255, 2**32 - 2).header.namespace == "n" * 255
    for tokens, namespace, start in ((b"", "n", 0), (pack_tokens([1]), "ä" * 128, 0), (pack_tokens([1]), "n", 2**32 - 1)):
        with pytest.raises(UsageError, match=r"cannot hold|at most 255 bytes"):
            attempt(tokens, namespace, start)
    with pytest.raises(UsageError, match="32 random bytes"):
        Keys(b"short")
