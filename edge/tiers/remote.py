"""A server with OpenAI's protocol as a tier: `edge serve` on another machine, vLLM, llama.cpp's server.

It is a tier and no backend: such a server takes and gives text, and a backend's contract is made of tokens, logits and keys and
values. See "Decisions" in ARCHITECTURE.md.
"""

from __future__ import annotations

import contextlib
import email.utils
import random
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from edge.errors import RemoteError
from edge.events import Reasoning, Text
from edge.tiers.address import Address, Key
from edge.tiers.base import Broke, Ended, Outgoing, broke
from edge.tiers.sse import read_events
from edge.types import FinishReason, Message, Sampling, Timing, Usage
from edge.units import duration_text

if TYPE_CHECKING:
    import httpx

    from edge.request import Request
    from edge.tiers.base import TierEvent

__all__ = ["FIRST_MODEL", "RemoteTier"]

FIRST_MODEL = "(the first model that the server lists)"
CONNECT_S = 5.0
ATTEMPTS = 3
LONGEST_PAUSE_S = 20.0
"""Longest pause between two attempts; a server that wants a longer one is not asked again."""

_FIRST_PAUSE_S = 0.5
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_MOST_CHARS = 4 << 20
_MOST_ERROR_BYTES = 1 << 16
_SENT = ("temperature", "top_p", "frequency_penalty", "presence_penalty", "seed", "max_tokens")
_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


class RemoteTier:
    """A server that answers in place of a model.

    Args:
        address: of the server.
        key: its API key; None sends none.
        silence_s: longest time without a token, in seconds, from the request on.
        attempts: how often it is asked while it has not begun to answer: refused connections, 429 and 5xx pass.
        pause_s: before the second attempt, in seconds; it doubles. A Retry-After of the server wins.
    """

    is_remote = True

    def __init__(
        self,
        address: Address,
        key: Key | None = None,
        *,
        silence_s: float = 60.0,
        attempts: int = ATTEMPTS,
        pause_s: float = _FIRST_PAUSE_S,
    ) -> None:
        self.address = address
        self.silence_s, self.attempts, self.pause_s = silence_s, attempts, pause_s
        self._key = key
        self.name = f"{address.model} at {address.host}" if address.model else address.host

    def why_not(self, request: Request) -> str:
        if request.options.tools:
            return "it has tools, which run on this device"
        if request.constraint is not None:
            return "it has a schema or grammar, which only this device enforces token by token"
        return "it asks for adapters of this model" if request.lora else ""

    def outgoing(self, request: Request, why: str = "") -> Outgoing | None:
        address = self.address
        body = {
            "model": address.model or FIRST_MODEL,
            "messages": [_message(one) for one in request.prompt if isinstance(one, Message) and not _is_nothing(one)],
            "stream": True,
            "stream_options": {"include_usage": True},
            **_sampling(request.sampling),
        }
        url = f"{address.base}/chat/completions"
        return Outgoing(url, address.host, body, address.is_encrypted, self._key is not None, why)

    def start(self, request: Request, put: Callable[[TierEvent], None]) -> Callable[[], None]:
        outgoing = self.outgoing(request)
        assert outgoing is not None
        call = _Call(self, outgoing, self._key, put)
        threading.Thread(target=call.run, name="edge-tier-remote", daemon=True).start()
        return call.cancel

    def close(self) -> None:
        """Do nothing: each answer has a connection of its own."""


class _Call:
    """One answer, in a thread of its own, since a thread inside a system call cannot be interrupted."""

    def __init__(self, tier: RemoteTier, outgoing: Outgoing, key: Key | None, put: Callable[[TierEvent], None]) -> None:
        self._tier, self._outgoing, self._key = tier, outgoing, key
        self._put_event = put
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._is_over = False
        self._socket: socket.socket | None = None
        self._n_chars = 0
        self._began = time.perf_counter()
        self._first_ms = 0.0
        self._model = tier.address.model

    def cancel(self) -> None:
        """End the answer at once, and the connection, so that the server stops, too."""
        self._stopped.set()
        self._put(Ended("cancelled", self._name, timing=self._timing()))
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def run(self) -> None:
        try:
            with self._client() as client:
                for attempt in range(self._tier.attempts):
                    try:
                        return self._put(self._ask(client))
                    except _PassingError as error:
                        pause_s = error.retry_after_s if error.retry_after_s is not None else self._tier.pause_s * 2**attempt
                        is_last = attempt + 1 == self._tier.attempts or pause_s > LONGEST_PAUSE_S or self._n_chars > 0
                        if is_last or self._stopped.wait(pause_s * random.uniform(1.0, 1.25)):  # noqa: S311 (no secret)
                            raise
        except Exception as error:  # noqa: BLE001 (whoever waits must hear of it)
            unexpected = RemoteError(f"Asking {self._tier.address.host} broke down: {error!r}.", "Please report this.")
            self._put(broke(error, unexpected))

    def _client(self) -> httpx.Client:
        import httpx

        headers = {"User-Agent": "edge-assistant", "Accept-Encoding": "identity"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key.value}"
        timeout = httpx.Timeout(self._tier.silence_s, connect=min(CONNECT_S, self._tier.silence_s))
        # Proxies and certificates as the variables say; what stays on this machine passes no proxy. A redirect could lead to
        # a host that nobody agreed to.
        is_local = self._tier.address.is_loopback
        return httpx.Client(headers=headers, timeout=timeout, trust_env=not is_local, follow_redirects=False)

    def _ask(self, client: httpx.Client) -> Ended:
        """Ask once, and give what comes.

        Raises:
            RemoteError: it failed; a `_PassingError` if it may succeed soon.
        """
        import httpx

        host = self._tier.address.host
        try:
            body = {**self._outgoing.body, "model": self._model or self._first_model(client)}
            with client.stream("POST", self._outgoing.url, json=body) as response:
                self._note_socket(response)
                self._check(response)
                return self._read(response)
        except httpx.TimeoutException:
            what = "did not connect" if self._socket is None else "said nothing"
            silence = duration_text(min(CONNECT_S, self._tier.silence_s) if self._socket is None else self._tier.silence_s)
            raise _PassingError(f"{host} {what} within {silence}.", _NETWORK_HINT) from None
        except httpx.HTTPError as error:
            if self._n_chars:
                raise RemoteError(f"The connection to {host} broke off in the middle of the answer.", _NETWORK_HINT) from None
            raise _PassingError(f"{host} cannot be reached ({_reason(error)}).", _NETWORK_HINT) from None
        except (httpx.InvalidURL, UnicodeError) as error:
            raise RemoteError(f"{host} cannot be asked ({_reason(error)}).", "Check the address.") from None

    def _note_socket(self, response: httpx.Response) -> None:
        stream = response.extensions.get("network_stream")
        self._socket = stream.get_extra_info("socket") if stream is not None else None
        if self._stopped.is_set():
            raise _cancelled()

    def _first_model(self, client: httpx.Client) -> str:
        """Return the first model that the server lists."""
        response = client.get(f"{self._tier.address.base}/models")
        self._check(response)
        try:
            self._model = msgspec.json.decode(response.content[:_MOST_CHARS], type=_Models).data[0].id
        except (msgspec.DecodeError, UnicodeDecodeError, IndexError):
            hint = f"Name one: openai:{self._tier.address.base}#MODEL"
            raise RemoteError(f"{self._tier.address.host} does not say which models it has.", hint) from None
        return self._model

    def _check(self, response: httpx.Response) -> None:
        """Raise the error of a response that is none."""
        status = response.status_code
        if status == 200:
            return
        host, said = self._tier.address.host, _error_text(response)
        message = f"{host} answered with the status {status}{f': {said}' if said else ''}."
        if status in _PASSING:
            raise _PassingError(message, "It is busy or broken; try again later.", _retry_after_s(response))
        hints = {401: "Check the key.", 403: "Check the key.", 404: "Check the address and the model's name."}
        redirect = "It leads elsewhere; name that address itself." if 300 <= status < 400 else "Check the address."
        raise RemoteError(message, hints.get(status, redirect))

    def _read(self, response: httpx.Response) -> Ended:
        """Give the pieces of an answer as they come, and return its end."""
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "text/event-stream":
            what = f"{self._tier.address.host} sent {kind[:60] or 'something unnamed'} where a stream of events was asked for."
            raise RemoteError(what, "Is it a server with OpenAI's protocol?")
        reason: FinishReason | None = None
        usage, heard_at = Usage(), time.monotonic()
        for data in read_events(response.iter_raw()):
            if self._stopped.is_set():
                raise _cancelled()
            if data == b"[DONE]":
                break
            if data:
                chunk = self._decode(data)
                self._model = chunk.model or self._model
                usage = Usage(chunk.usage.prompt_tokens, 0, chunk.usage.completion_tokens) if chunk.usage is not None else usage
                for choice in chunk.choices[:1]:
                    if self._give(choice.delta):
                        heard_at = time.monotonic()
                    reason = _REASONS.get(choice.finish_reason or "", "stop") if choice.finish_reason else reason
            if reason is None and time.monotonic() - heard_at > self._tier.silence_s:  # comments that keep it alive are none
                raise RemoteError(f"{self._tier.address.host} said nothing for too long.", _NETWORK_HINT)
        if reason is None:
            raise RemoteError(f"The answer of {self._tier.address.host} broke off.", _NETWORK_HINT)
        return Ended(reason, self._name, usage, self._timing())

    def _decode(self, data: bytes) -> _Chunk:
        try:
            chunk = msgspec.json.decode(data, type=_Chunk)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            what = f"{self._tier.address.host} sent an event that is no part of an answer."
            raise RemoteError(what, "Is it a server with OpenAI's protocol?") from None
        if chunk.error is not None:
            raise RemoteError(f"{self._tier.address.host} stopped with an error: {_plain(chunk.error)}.", "Try again later.")
        return chunk

    def _give(self, delta: _Delta) -> bool:
        """Pass on a piece; return whether there was one."""
        thought = delta.reasoning_content or delta.reasoning or ""
        piece = delta.content or ""
        self._n_chars += len(thought) + len(piece)
        if self._n_chars > _MOST_CHARS:
            raise RemoteError(f"{self._tier.address.host} does not stop answering.", "Set a limit: sampling.max_tokens")
        if (thought or piece) and not self._first_ms:
            self._first_ms = (time.perf_counter() - self._began) * 1000
        if thought:
            self._put(Reasoning(thought))
        if piece:
            self._put(Text(piece))
        return bool(thought or piece)

    @property
    def _name(self) -> str:
        host = self._tier.address.host
        return f"{_plain(self._model)} at {host}" if self._model else host

    def _timing(self) -> Timing:
        total_ms = (time.perf_counter() - self._began) * 1000
        return Timing(
            first_token_ms=self._first_ms, decode_ms=total_ms - self._first_ms if self._first_ms else 0.0, total_ms=total_ms
        )

    def _put(self, event: TierEvent) -> None:
        """Pass an event on, unless it is over: a cancelled answer ends at once, whatever still arrives."""
        with self._lock:
            if self._is_over:
                return
            self._is_over = isinstance(event, Ended | Broke)
            self._put_event(event)


_NETWORK_HINT = "Check the network and the address."


class _PassingError(RemoteError):
    """It may succeed soon."""

    def __init__(self, message: str, hint: str, retry_after_s: float | None = None) -> None:
        super().__init__(message, hint)
        self.retry_after_s = retry_after_s


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    finish_reason: str | None = None


class _Tokens(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Chunk(msgspec.Struct):
    """An event of a streamed chat completion, as far as it is used."""

    choices: list[_Choice] = []
    model: str | None = None
    usage: _Tokens | None = None
    error: Any = None


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


def _cancelled() -> RemoteError:
    return RemoteError("The answer was stopped.")


def _is_nothing(message: Message) -> bool:
    """Tell if a message is an empty system prompt, which keeps a local model from its template's own."""
    return message.role == "system" and not message.content


def _message(message: Message) -> dict[str, Any]:
    """Return a message in OpenAI's form, without thoughts: those are for nobody else."""
    found: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        found["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.json}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        found["tool_call_id"] = message.tool_call_id
    return found


def _sampling(sampling: Sampling) -> dict[str, Any]:
    """Return the settings that were given and that every such server knows."""
    found = {name: getattr(sampling, name) for name in _SENT if name in sampling.given}
    if sampling.stop:
        found["stop"] = list(sampling.stop)[:4]
    return {name: value for name, value in found.items() if value is not None}


def _error_text(response: httpx.Response) -> str:
    """Return what a server says of an error, shortened, without control characters."""
    import httpx

    data = b""
    with contextlib.suppress(httpx.HTTPError):
        for part in response.iter_bytes() if not response.is_stream_consumed else iter([response.content]):
            data += part
            if len(data) > _MOST_ERROR_BYTES:
                break
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    error = value.get("error", value) if isinstance(value, dict) else value
    return _plain(error.get("message", "") if isinstance(error, dict) else error)


def _plain(value: object) -> str:
    text = value if isinstance(value, str) else "" if value is None else str(value)
    return "".join(char if char.isprintable() else " " for char in text).strip().rstrip(".")[:200]


def _retry_after_s(response: httpx.Response) -> float | None:
    """Return the pause that a server asks for, in seconds; None if it does not say."""
    text = response.headers.get("retry-after", "").strip()
    if text.isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _reason(error: Exception) -> str:
    return _plain(str(error)) or type(error).__name__
