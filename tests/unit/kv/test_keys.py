"""The secret in the keyring of the operating system, and forks. The keyring is a fake: nobody's real one is touched."""

from __future__ import annotations

import os
import signal
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from edge.errors import StorageError
from edge.kv.blocks import fingerprint
from edge.kv.keys import Keys, secret_of_keyring
from edge.kv.store import BlockStore, StoreOptions

MODEL = fingerprint({"weights": "a"})


class KeyringError(Exception):
    pass


class FakeKeyring(types.ModuleType):
    """As much of the package `keyring` as is used."""

    def __init__(self, priority: float) -> None:
        super().__init__("keyring")
        self.errors = types.ModuleType("keyring.errors")
        self.errors.KeyringError = KeyringError  # type: ignore[attr-defined]
        self.kept: dict[tuple[str, str], str] = {}
        self.priority = priority
        self.is_locked = False

    def get_keyring(self) -> Any:
        return self

    def get_password(self, service: str, account: str) -> str | None:
        if self.is_locked:
            raise KeyringError("it is locked")
        return self.kept.get((service, account))

    def set_password(self, service: str, account: str, password: str) -> None:
        if self.is_locked:
            raise KeyringError("it is locked")
        self.kept[service, account] = password


def install(monkeypatch: pytest.MonkeyPatch, keyring: FakeKeyring | None) -> None:
    monkeypatch.setitem(sys.modules, "keyring", keyring)
    monkeypatch.setitem(sys.modules, "keyring.errors", keyring.errors if keyring else None)


@pytest.fixture
def keyring(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKeyring]:
    fake = FakeKeyring(5)
    install(monkeypatch, fake)
    yield fake


def open_store(directory: Path, *, encrypt: bool) -> BlockStore:
    return BlockStore(
        directory,
        StoreOptions(budget_bytes=1 << 24, min_free_bytes=0, encrypt=encrypt, secret="keyring", sync=False, retry_s=3600.0),
    )


def use(directory: Path, *, encrypt: bool) -> tuple[int, str | None]:
    """Open a store, see whether what was put once is there, put it again."""
    with open_store(directory, encrypt=encrypt) as store:
        store.flush(60.0)
        found = store.match(MODEL, "ns", [1, 2, 3])
        if found.blocks:
            assert store.read(found.blocks[0]) == b"payload"
        store.put(None, [1, 2, 3], b"payload", fingerprint=MODEL, namespace="ns", start=0)
        store.flush(60.0)
        return found.n_tokens, store.problem


def test_a_new_store_that_encrypts_keeps_its_secret_in_the_keyring(tmp_path: Path, keyring: FakeKeyring) -> None:
    assert use(tmp_path / "kv", encrypt=True) == (0, None)
    (text,) = keyring.kept.values()
    secret = bytes.fromhex(text)
    assert len(secret) == 32
    for path in (tmp_path / "kv").rglob("*"):
        assert path.is_dir() or secret not in path.read_bytes()
    assert use(tmp_path / "kv", encrypt=True) == (3, None)
    assert use(tmp_path / "other", encrypt=True) == (0, None) and len(keyring.kept) == 1  # one secret a user
    assert use(tmp_path / "kv", encrypt=False)[1] is None  # encryption is turned off: the secret is still found


def test_a_store_that_does_not_encrypt_asks_no_keyring(tmp_path: Path, keyring: FakeKeyring) -> None:
    keyring.is_locked = True
    assert use(tmp_path / "kv", encrypt=False) == (0, None)
    assert use(tmp_path / "kv", encrypt=False) == (3, None)
    assert use(tmp_path / "kv", encrypt=True)[1] is None  # it has a file for its secret already, and goes on with that
    assert not keyring.kept


@pytest.mark.parametrize("keyring", [None, FakeKeyring(0), FakeKeyring(0.5)])
def test_without_a_keyring_that_hides_it_there_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keyring: FakeKeyring | None
) -> None:
    install(monkeypatch, keyring)
    assert use(tmp_path / "kv", encrypt=True) == (0, None)
    assert use(tmp_path / "kv", encrypt=True) == (3, None)
    assert (tmp_path / "kv" / "key").stat().st_mode & 0o777 == 0o600
    assert keyring is None or not keyring.kept


def test_a_keyring_that_is_locked_or_gone_turns_the_store_off(
    tmp_path: Path, keyring: FakeKeyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(tmp_path / "kv", encrypt=True)
    keyring.is_locked = True
    assert "keyring does not give" in str(use(tmp_path / "kv", encrypt=True)[1])
    assert "keyring does not give" in str(use(tmp_path / "new", encrypt=True)[1])
    with open_store(tmp_path / "kv", encrypt=True) as store, pytest.raises(StorageError, match="Unlock it"):
        store.stats()
    keyring.is_locked = False
    with monkeypatch.context() as patch:
        install(patch, None)
        assert "another key" in str(use(tmp_path / "kv", encrypt=True)[1])
    assert use(tmp_path / "kv", encrypt=True) == (3, None)  # nothing was destroyed


def test_an_entry_of_another_program_is_refused(keyring: FakeKeyring) -> None:
    assert secret_of_keyring(make=False) is None
    for text in ("secret", "00" * 31):
        keyring.kept["edge-assistant", "kv-cache"] = text
        with pytest.raises(StorageError, match="not a key of edge"):
            secret_of_keyring(make=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_never_waits_for_a_thread_of_its_parent_that_makes_a_cipher(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store of the child's own hung in its first write: until Python 3.12 a cached_property has one lock for all objects."""
    parent, began, may_end = os.getpid(), threading.Event(), threading.Event()

    def slow(key: bytes) -> AESGCM:
        if os.getpid() == parent:
            began.set()
            may_end.wait(60.0)
        return AESGCM(key)

    monkeypatch.setattr("cryptography.hazmat.primitives.ciphers.aead.AESGCM", slow)
    thread = threading.Thread(target=lambda: Keys(b"p" * 32).cipher)
    thread.start()
    assert began.wait(60.0)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)  # ends it where it waits
        os._exit(0 if Keys(b"c" * 32).cipher.encrypt(bytes(12), b"x", None) else 1)
    _, status = os.waitpid(child, 0)
    may_end.set()
    thread.join()
    assert status == 0
