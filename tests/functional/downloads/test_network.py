"""Only the hub is asked, it learns nothing about this device, and network settings that cannot be used are named."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from edge.catalog import list_models, pull, pull_checkpoint, resolve
from edge.config import Settings, load_settings
from edge.errors import ConfigError, DownloadError, ModelNotFoundError
from tests.servers.hub import Hub, Repo
from tests.servers.index import Index
from tests.servers.models import REFERENCE

EDGE = Path(sys.executable).with_name("edge")


class Proxy:
    """A proxy that lets nothing through and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.getsockname()[1]}"

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection:
                self.asked.append(connection.recv(1000))
                connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    def close(self) -> None:
        self._server.close()


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    made = Proxy()
    yield made
    made.close()


def run_edge(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return subprocess.run([EDGE, *arguments], env=environ | variables, capture_output=True, text=True, timeout=240)


# -- nothing is told, and nobody else is asked


@pytest.mark.parametrize("agent", [{}, {"AI_AGENT": "my-agent", "CLAUDECODE": "1", "HF_HUB_USER_AGENT_ORIGIN": "me"}])
def test_a_pull_asks_the_hub_and_nobody_else(hub: Hub, proxy: Proxy, tmp_path: Path, agent: dict[str, str]) -> None:
    """Everything that is not at 127.0.0.1 would go through the proxy, and nothing does."""
    through = {"HTTPS_PROXY": proxy.url, "ALL_PROXY": proxy.url, "NO_PROXY": "127.0.0.1"}
    home = tmp_path / "hf-home"
    for address in ({"HF_ENDPOINT": hub.url}, {"HF_ENDPOINT": "https://huggingface.co", "EDGE_HUB_ENDPOINT": hub.url}):
        hub.requests.clear()
        done = run_edge("models", "pull", REFERENCE, HF_HOME=str(home), **through, **address, **agent)
        assert done.returncode == 0, done.stderr
        assert hub.of("listing")
        assert {request.headers["user-agent"] for request in hub.requests} == {"edge-assistant"}
        assert run_edge("models", "rm", REFERENCE, **address).returncode == 0
    assert proxy.asked == []
    assert not home.exists(), "the library writes nothing there"


def test_a_program_that_has_imported_the_hub_library_before_tells_nothing_either(
    hub: Hub, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AI_AGENT", "my-agent")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
    hub.repos["acme/checkpoint"] = Repo({"config.json": b"{}", "model.safetensors": b"x"})
    pull(REFERENCE, settings=settings)
    pull_checkpoint("hf:acme/checkpoint", settings=settings)
    with pytest.raises(ModelNotFoundError):
        pull("hf:acme/none", settings=settings)
    assert {request.headers["user-agent"] for request in hub.requests} == {"edge-assistant"}


def test_telemetry_is_off_before_the_library_is_imported(hub: Hub) -> None:
    script = (
        "import sys\n"
        "from edge.catalog import pull\n"
        "from edge.config import load_settings\n"
        f"pull({REFERENCE!r}, settings=load_settings())\n"
        "from huggingface_hub import constants\n"
        "assert constants.HF_HUB_DISABLE_TELEMETRY\n"
        "assert 'huggingface_hub.hf_api' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=240)


def test_a_saved_login_is_not_refreshed_at_another_host(hub: Hub, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: pytest.fail("may ask huggingface.co"))
    Path(constants.HF_TOKEN_PATH).write_text(f"{hub.token}\n")
    hub.repos["acme/mine"] = Repo(dict(hub.repos["acme/tiny-GGUF"].files), private=True)
    pull("hf:acme/mine", settings=settings)
    assert hub.of("listing")[-1].headers["authorization"] == f"Bearer {hub.token}"


# -- settings that cannot be used; the HTTP client reads proxies and certificates when it is made

ODD: list[tuple[str, str, str]] = [
    ("ALL_PROXY", "socks://127.0.0.1:1080", "http://host:port"),
    ("ALL_PROXY", "socks4://127.0.0.1:1080", "http://host:port"),
    ("ALL_PROXY", "socks5h://127.0.0.1:port", "http://host:port"),
    ("https_proxy", "http://127.0.0.1:port", "http://host:port"),
    ("HTTP_PROXY", "http://127.0.0.1:99999", "http://host:port"),
    ("HTTP_PROXY", "http://[::1", "http://host:port"),
    ("HTTP_PROXY", "ftp://127.0.0.1:1", "http://host:port"),
    ("HF_HUB_DOWNLOAD_TIMEOUT", "", "whole number of seconds"),
    ("HF_HUB_DOWNLOAD_TIMEOUT", "1.5", "whole number of seconds"),
    ("HF_HUB_DOWNLOAD_TIMEOUT", "-1", "whole number of seconds"),
    ("HF_HUB_DOWNLOAD_TIMEOUT", "1" * 30, "whole number of seconds"),
    ("HF_HUB_ETAG_TIMEOUT", "30s", "whole number of seconds"),
    ("HF_ENDPOINT", "http://[::1", "https://huggingface.co"),
    ("HF_ENDPOINT", "http://127.0.0.1:99999", "https://huggingface.co"),
    ("HF_ENDPOINT", "http://127.0.0.1:port", "https://huggingface.co"),
    ("HF_ENDPOINT", "127.0.0.1:9", "https://huggingface.co"),
    ("HF_ENDPOINT", "ftp://127.0.0.1", "https://huggingface.co"),
    ("HF_ENDPOINT", "http://a b", "https://huggingface.co"),
    ("HF_ENDPOINT", "https://hub..example", "https://huggingface.co"),
    ("HF_ENDPOINT", "http://127.0.0.1:9 ", "https://huggingface.co"),
    ("EDGE_HUB_ENDPOINT", "http://", "https://huggingface.co"),
    ("HF_TOKEN", "hf_\u00e9", "hf auth login"),
    ("HF_TOKEN", "hf_a b", "hf auth login"),
    ("HUGGING_FACE_HUB_TOKEN", "hf_a\x01", "hf auth login"),
]


@pytest.mark.parametrize(("variable", "value", "allowed"), ODD)
def test_a_variable_that_cannot_be_used_is_named(
    hub: Hub, waits: list[float], monkeypatch: pytest.MonkeyPatch, variable: str, value: str, allowed: str
) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv(variable, value)
    huggingface_hub.close_session()
    settings = load_settings()
    # Nothing of it matters before the hub is asked.
    list_models(settings)
    with pytest.raises(ModelNotFoundError):
        resolve("no-such-model", settings=settings)
    with pytest.raises(ModelNotFoundError, match="not on this device"):
        resolve(REFERENCE, settings=settings, download=False)
    with pytest.raises(ConfigError, match=variable) as caught:
        pull(REFERENCE, settings=settings)
    assert allowed in caught.value.hint
    assert not waits
    if "TOKEN" in variable:
        assert value not in str(caught.value)


@pytest.mark.parametrize(
    "variables", [row[:2] for row in ODD if row[0].startswith("HF_HUB_")] + [("HF_ENDPOINT", "http://[::1")]
)
def test_a_variable_that_the_library_cannot_be_imported_with(variables: tuple[str, str]) -> None:
    """In a process of its own: the library reads these when it is imported."""
    name, value = variables
    listed = run_edge("models", "ls", **{name: value})
    assert listed.returncode == 0, listed.stderr
    done = run_edge("models", "pull", REFERENCE, **{"EDGE_HUB_ENDPOINT": "http://127.0.0.1:9", name: value})
    assert done.returncode == 2, done.stderr
    assert name in done.stderr
    assert "bug in edge" not in done.stderr


@pytest.mark.parametrize("address", ["socks5h://127.0.0.1:1080", "socks5://127.0.0.1:1080"])
def test_a_socks_proxy_without_its_package(hub: Hub, settings: Settings, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setenv("ALL_PROXY", address.replace("//", "//me:secret@"))
    huggingface_hub.close_session()
    with pytest.raises(ConfigError, match=f"ALL_PROXY is '{address}'.*SOCKS") as caught:
        pull(REFERENCE, settings=settings)
    assert "pip install socksio" in caught.value.hint
    assert "secret" not in str(caught.value)


def test_a_proxy_that_does_not_answer_is_named(hub: Hub, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    huggingface_hub.close_session()
    with pytest.raises(DownloadError, match="cannot be reached") as caught:
        pull(REFERENCE, settings=settings)
    assert "the proxy in http_proxy" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "why"), [(None, "No such file"), (b"no certificate", "holds no certificates"), ("folder", "Is a directory")]
)
def test_certificates_that_cannot_be_read(
    hub: Hub, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | str | None, why: str
) -> None:
    path = tmp_path / "certificates.pem"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        path.mkdir()
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    monkeypatch.setenv("HF_ENDPOINT", hub.url.replace("http:", "https:"))
    huggingface_hub.close_session()
    with pytest.raises(ConfigError, match=f"SSL_CERT_FILE is .*certificates.pem.*{why}"):
        pull(REFERENCE, settings=load_settings())


def test_a_file_for_tls_keys_that_cannot_be_written(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    certificates = tmp_path / "certificates.pem"
    certificates.write_bytes(b"no certificate")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates))
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "missing" / "keys.log"))
    monkeypatch.setenv("HF_ENDPOINT", hub.url.replace("http:", "https:"))
    huggingface_hub.close_session()
    with pytest.raises(ConfigError, match=r"SSLKEYLOGFILE is .*keys.log.*cannot be written: No such file"):
        pull(REFERENCE, settings=load_settings())


@pytest.mark.parametrize("is_endpoint", [True, False])
@pytest.mark.parametrize(("content", "why"), [(b"\xff\xfe\x00hf", "not text"), (None, "it is a directory")])
def test_a_token_file_that_cannot_be_read(
    hub: Hub, settings: Settings, monkeypatch: pytest.MonkeyPatch, content: bytes | None, why: str, is_endpoint: bool
) -> None:
    path = Path(constants.HF_TOKEN_PATH)
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    if is_endpoint:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    with pytest.raises(ConfigError, match=f"token file {path}.*{why}") as caught:
        pull(REFERENCE, settings=settings)
    assert "hf auth login" in caught.value.hint


@pytest.mark.parametrize("location", ["http://[::1", "http://127.0.0.1:port/x", "file:///etc/passwd", "//["])
def test_a_redirect_to_what_is_no_address(hub: Hub, settings: Settings, waits: list[float], location: str) -> None:
    hub.fail("listing", status=302, headers={"Location": location})
    with pytest.raises(DownloadError, match=r"not an address|not followed"):
        pull(REFERENCE, settings=settings)


def test_a_proxy_that_pip_cannot_use_is_named(index: Index, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://127.0.0.1:9/simple")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:port")
    with pytest.raises(DownloadError, match=r"pip could not fetch nothing: .*127\.0\.0\.1:port") as caught:
        pull("pypi:nothing", settings=settings)
    assert "HTTPS_PROXY" in caught.value.hint
