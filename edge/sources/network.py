"""Requests to the hub, with the proxies, certificates, timeouts and token that the user has set.

Only the HTTP client of huggingface_hub is used, so that a program's own client factory applies. Its requests are not: they tell
the hub which Python, torch and AI agent is here, and ask its makers for a list of agents. Variables that it cannot use are
reported by name, and none is looked at before the hub is asked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from edge.errors import ConfigError, DownloadError, UsageError
from edge.files import expand_user, open_file

__all__ = [
    "DEFAULT_ENDPOINT",
    "USER_AGENT",
    "check_endpoint",
    "download_timeout_s",
    "hub_cache",
    "network_fault",
    "open_url",
    "proxies",
    "read_token",
    "transport_errors",
]

DEFAULT_ENDPOINT = "https://huggingface.co"
USER_AGENT = "edge-assistant"

_MAX_REDIRECTS = 5
_CONNECT_TIMEOUT_S = 10.0
_MAX_TIMEOUT_S = 1_000_000
_TIMEOUTS = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")
_MAX_TOKEN_BYTES = 1 << 16
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_PROXY_HINT = (
    "It may be http://host:port or https://host:port, or socks5://host:port with the package socksio (pip install socksio). "
    "Unset it to use no proxy."
)
_CERTIFICATES_HINT = (
    "It may be a PEM file with the certificates to trust (SSL_CERT_DIR: a folder of them). Unset it for the system's own."
)


def check_endpoint(endpoint: str, source: str) -> None:
    """Check that an address can be that of a hub.

    Args:
        endpoint: the address.
        source: the variable, or the file and line, that gives it.

    Raises:
        ConfigError: it cannot.
    """
    try:
        parts = urlsplit(endpoint)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        (parts.hostname or "").encode("idna")
    except ValueError:
        is_address = False
    if not is_address or not endpoint.isprintable() or " " in endpoint:
        raise ConfigError(
            f"{source}: the hub cannot be at {_without_password(endpoint)!r}.",
            "It may be an address such as https://huggingface.co or http://127.0.0.1:8080. Unset it for huggingface.co.",
        )


def hub_cache() -> Path:
    """Return the folder where huggingface_hub caches files, without importing it."""
    home = os.environ.get("HF_HOME", f"{os.environ.get('XDG_CACHE_HOME', '~/.cache')}/huggingface")
    folder = os.environ.get("HF_HUB_CACHE", os.environ.get("HUGGINGFACE_HUB_CACHE", f"{home}/hub"))
    try:
        return Path(os.path.expandvars(expand_user(folder)))
    except UsageError:  # no such home directory, so no such folder
        return Path(folder)


def download_timeout_s() -> float:
    """Return the seconds without a byte after which a download is given up and resumed. Raises as `open_url`."""
    seconds: float = _load_hub().constants.HF_HUB_DOWNLOAD_TIMEOUT
    return seconds


def read_token(endpoint: str) -> str | None:
    """Return HF_TOKEN, or the token that `hf auth login` saved unless the user told the hub's library not to send it.

    Args:
        endpoint: the hub that gets it. A saved login is refreshed only where that asks no other host.

    Raises:
        ConfigError: it cannot be read, or cannot be a token.
    """
    hub = _load_hub()
    if hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return None
    source = next((name for name in _TOKENS if os.environ.get(name)), "")
    path = hub.constants.HF_TOKEN_PATH
    hint = "Set HF_TOKEN to a token (hf_ and letters and digits), or run: hf auth login"
    try:
        if endpoint == hub.constants.ENDPOINT:
            if not source and Path(path).exists():
                open_file(path).close()  # the library would wait for the other end of a FIFO
            token = hub.get_token()
        elif source:
            token = os.environ[source]
        else:
            with open_file(path) as file:
                token = file.read(_MAX_TOKEN_BYTES).decode("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        why = "it is not text" if isinstance(error, UnicodeDecodeError) else error.strerror or error
        raise ConfigError(f"The token file {path} (HF_TOKEN_PATH) cannot be read: {why}.", hint) from error
    except Exception as error:  # the ways of the library to get a token, such as HF_OIDC_RESOURCE, and their own errors
        raise ConfigError(f"huggingface_hub has no token: {error}", hint) from error
    token = (token or "").replace("\r", "").replace("\n", "").strip()
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(f"{source or f'The token file {path}'} has a character that no token has.", hint)
    return token or None


@contextmanager
def open_url(
    url: str,
    headers: Mapping[str, str],
    *,
    timeout_s: float,
    label: str,
    hint: str,
    on_first: Callable[[Mapping[str, str]], None] = lambda headers: None,
) -> Iterator[Any]:
    """GET a URL. Redirects: http(s) only, never from https to http; `headers` go to the first host only.

    Args:
        url: its address.
        headers: sent to the host of `url`, but not to hosts that it redirects to; Range is sent to all of them.
        timeout_s: longest time without a byte.
        label: of the request, for messages.
        hint: of the errors about addresses and redirects.
        on_first: called with the headers of every response of the first host.

    Yields:
        The response of the HTTP client, with its content still to be read.

    Raises:
        ConfigError: a variable of the network cannot be used.
        DownloadError: an address cannot be asked, or the server redirects in circles.
    """
    client = _client()
    timeout = (_CONNECT_TIMEOUT_S, timeout_s, _CONNECT_TIMEOUT_S, _CONNECT_TIMEOUT_S)
    first = _origin(url)
    for _ in range(_MAX_REDIRECTS + 1):
        is_first = _origin(url) == first
        sent = {name: value for name, value in headers.items() if is_first or name in ("Range", "Accept-Encoding")}
        try:
            # Without a name of its own a request would carry the HTTP library's.
            request = client.build_request("GET", url, headers={"User-Agent": USER_AGENT, **sent}, timeout=timeout)
        except _invalid_url() as error:
            raise DownloadError(f"{label}: {_without_password(url)[:200]!r} is not an address ({error}).", hint) from error
        response = _send(client, request)
        try:
            if is_first:
                on_first(response.headers)
            if response.status_code not in (301, 302, 303, 307, 308):
                yield response
                return
            location = response.headers.get("Location", "")
        finally:
            response.close()
        url = _redirect(url, location, label, hint)
    raise DownloadError(f"{label}: the server redirects in circles.", "Try again later.")


def transport_errors() -> tuple[type[Exception], ...]:
    """Return the network errors of the hub's HTTP client: of httpx for huggingface_hub 1, of httpx2 for 2."""
    return (_http_error(), OSError)


def proxies() -> dict[str, str]:
    """Return the variables that name a proxy, with their values. Small letters win over capitals, as in every program."""
    found: dict[str, tuple[str, str]] = {}
    for name, value in sorted(os.environ.items()):  # capitals first
        if re.fullmatch(r"(?:https?|all)_proxy", name, re.IGNORECASE):
            found[name.lower()] = (name, value)
    return {name: value for name, value in found.values() if value}


def network_fault() -> ConfigError | None:
    """Return the error for a proxy or a file of TLS (SSL_CERT_FILE ...) that cannot be used; None if there is none."""
    for name, value in proxies().items():
        if fault := _proxy_fault(name, value):
            return fault
    import ssl

    if path := os.environ.get("SSLKEYLOGFILE"):
        try:
            Path(path).open("ab").close()
        except OSError as error:
            what = f"SSLKEYLOGFILE is {path!r}, which cannot be written: {error.strerror}."
            return ConfigError(what, "It may be a file that you can write. Unset it if you do not debug the network.")
    if path := os.environ.get("SSL_CERT_FILE"):
        try:
            ssl.create_default_context(cafile=path)
        except OSError as error:
            why = "it holds no certificates" if isinstance(error, ssl.SSLError) else error.strerror
            return ConfigError(f"SSL_CERT_FILE is {path!r}, which cannot be used: {why}.", _CERTIFICATES_HINT)
    elif (path := os.environ.get("SSL_CERT_DIR")) and not any(Path(part).is_dir() for part in path.split(os.pathsep)):
        return ConfigError(f"SSL_CERT_DIR is {path!r}, which is not a folder.", _CERTIFICATES_HINT)
    return None


def _load_hub() -> Any:
    """Return huggingface_hub, with its telemetry off; it reads its variables when it is imported, and only then.

    Raises:
        ConfigError: a variable has a value that it cannot be imported with.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    for name in _TIMEOUTS:
        text = os.environ.get(name)
        if text is not None and not (re.fullmatch(r"\s*\d{1,7}\s*", text, re.ASCII) and int(text) <= _MAX_TIMEOUT_S):
            raise ConfigError(
                f"{name} cannot be {text!r}.", "It may be a whole number of seconds, such as 30. Unset it for 10."
            )
    if endpoint := os.environ.get("HF_ENDPOINT"):
        try:
            urlsplit(endpoint).port  # noqa: B018  (as the library does, with whose error nobody could do anything)
        except ValueError:
            check_endpoint(endpoint, "HF_ENDPOINT")
    try:
        hub = import_module("huggingface_hub")
        import_module("huggingface_hub.constants")
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"huggingface_hub, which edge asks the hub with, cannot be loaded: {error}.",
            "Check the variables that begin with HF_ and HUGGINGFACE_, or install edge again.",
        ) from error
    return hub


def _client() -> Any:
    """Return the HTTP client of huggingface_hub, shared by everything in this process.

    Raises:
        ConfigError: the proxies or certificates that the variables name cannot be used.
    """
    hub = _load_hub()
    try:
        return hub.get_session()
    except Exception as error:  # the client's own errors, and those of a factory that the program set
        raise _setup_fault(error) from error


def _send(client: Any, request: Any) -> Any:
    """Return the response to a request, with its content still to be read.

    Raises:
        ConfigError: a variable of the network cannot be used. Errors of the network come as `transport_errors`.
    """
    try:
        return client.send(request, stream=True, follow_redirects=False)
    except transport_errors():
        raise
    except Exception as error:  # such as a proxy's port that is too large, which the client notices only here
        raise _setup_fault(error) from error


def _redirect(url: str, location: str, label: str, hint: str) -> str:
    """Return the address that a response redirects to.

    Raises:
        DownloadError: it is not followed.
    """
    try:
        target = urljoin(url, location)
        scheme = urlsplit(target).scheme
    except ValueError:
        target, scheme = location, ""
    if scheme not in ("https", "http" if urlsplit(url).scheme == "http" else "https"):
        raise DownloadError(
            f"{label}: the server redirects to {target[:100]!r}, which is not followed.",
            f"Only http and https are, and never from https to http. {hint}",
        )
    return target


def _setup_fault(error: Exception) -> ConfigError:
    """Return the error for a client that cannot work with the proxies or certificates of the environment."""
    return network_fault() or ConfigError(
        f"The network cannot be used as it is set up: {error}.",
        f"Check the proxy settings of this system{''.join(f', and {name}' for name in proxies())}.",
    )


def _proxy_fault(name: str, value: str) -> ConfigError | None:
    """Return the error for a proxy that the HTTP client cannot use."""
    address = value if "://" in value else f"http://{value}"
    shown = _without_password(value)
    try:
        parts = urlsplit(address)
        is_address = bool(parts.hostname) and parts.port != 0 and address.isprintable() and " " not in address
    except ValueError:
        is_address, parts = False, urlsplit("")
    if is_address and parts.scheme in ("socks5", "socks5h"):
        if find_spec("socksio") is None:
            what = f"{name} is {shown!r}, and this Python has no package for SOCKS proxies."
            return ConfigError(what, "Install it with: pip install socksio. Or set it to an HTTP proxy, http://host:port.")
        return None
    if is_address and parts.scheme in ("http", "https"):
        return None
    return ConfigError(f"{name} cannot be {shown!r}.", _PROXY_HINT)


def _http_error() -> type[Exception]:
    _load_hub()
    base: type[Exception] = import_module("huggingface_hub.errors").HfHubHTTPError.__bases__[0]
    return base


def _invalid_url() -> tuple[type[Exception], ...]:
    """Return the errors of the HTTP client about addresses, which are not network errors of its own."""
    client = import_module(_http_error().__module__.partition(".")[0])
    return (client.InvalidURL, ValueError)


def _without_password(address: str) -> str:
    return re.sub(r"(^|://)[^/@]*@", r"\1", address)


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc
