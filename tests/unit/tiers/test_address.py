"""Addresses of servers, and keys for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.errors import ConfigError, UsageError
from edge.tiers.address import read_address, read_key


@pytest.mark.parametrize(
    ("text", "base", "host", "model"),
    [
        ("openai:http://127.0.0.1:8033", "http://127.0.0.1:8033/v1", "127.0.0.1:8033", ""),
        ("openai:https://gpu.example.org/v1/", "https://gpu.example.org/v1", "gpu.example.org", ""),
        ("openai:https://gpu.example.org/llm/v1#qwen3", "https://gpu.example.org/llm/v1", "gpu.example.org", "qwen3"),
        ("openai:http://[::1]:80/#org/model", "http://[::1]:80/v1", "[::1]:80", "org/model"),
        ("openai:https://bücher.example", "https://xn--bcher-kva.example/v1", "xn--bcher-kva.example", ""),
    ],
)
def test_addresses(text: str, base: str, host: str, model: str) -> None:
    address = read_address(text)
    assert (address.base, address.host, address.model) == (base, host, model)


@pytest.mark.parametrize(
    "text",
    [
        "openai:",
        "openai:gpu.example.org",
        "openai:ftp://gpu.example.org",
        "openai:https://",
        "openai:https://gpu.example.org:99999",
        "openai:https://gpu.example.org?key=secret",
        "openai:https://gpu example.org",
        "openai:https://gpu.example.org/\n",
        "https://gpu.example.org",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="not the address of a server"):
        read_address(text)


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    for text in ("openai:https://me:hunter2@gpu.example.org", "openai:https://me:hunter2@"):
        with pytest.raises(UsageError) as caught:
            read_address(text)
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "is_loopback"),
    [("localhost", True), ("127.1.2.3", True), ("[::1]", True), ("10.0.0.1", False), ("localhost.example.org", False)],
)
def test_loopback(text: str, is_loopback: bool) -> None:
    assert read_address(f"openai:http://{text}").is_loopback is is_loopback


def test_no_key_is_none() -> None:
    assert read_key(read_address("openai:https://gpu.example.org"), None, {}) is None


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "key"
    file.write_text("0123456789")
    file.chmod(mode)
    with pytest.raises(ConfigError, match="Others may read") as caught:
        read_key(read_address("openai:https://gpu.example.org"), file, {})
    assert f"chmod 600 {file}" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"\xff\xfe", b"key\x00"])
def test_a_file_that_has_no_key(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(ConfigError):
        read_key(read_address("openai:https://gpu.example.org"), file, {})
    with pytest.raises(ConfigError, match="cannot be read"):
        read_key(read_address("openai:https://gpu.example.org"), tmp_path / "missing", {})


def test_a_key_never_goes_unencrypted_over_a_network() -> None:
    environ = {"EDGE_REMOTE_KEY": "0123456789"}
    with pytest.raises(ConfigError, match="unencrypted"):
        read_key(read_address("openai:http://10.0.0.1:8000"), None, environ)
    assert read_key(read_address("openai:http://127.0.0.1:8000"), None, environ) is not None
