"""Bounds on what a client may send, and the time that it may take. Each is answered by name when it is exceeded."""

from __future__ import annotations

__all__ = [
    "BODY_BYTES",
    "BODY_IDLE_S",
    "BODY_S",
    "CHOICES",
    "CONNECTIONS",
    "HEADERS",
    "HEADER_BYTES",
    "HEADER_S",
    "HELD_S",
    "LOADING_S",
    "LOGIT_BIASES",
    "MESSAGES",
    "PING_S",
    "REQUESTS",
    "SEND_S",
    "STOPS",
    "STOP_CHARS",
    "TEXTS",
    "TOOLS",
]

BODY_BYTES = 8 * 2**20
"""Longest body of a request."""

BODY_IDLE_S = 15.0
"""Longest wait for the next part of a body, in seconds."""

BODY_S = 120.0
"""Longest time for a whole body, in seconds, however steadily it comes."""

HEADER_BYTES = 32 * 1024
"""Longest head of a request: request line and headers."""

HEADERS = 100

HEADER_S = 15.0
"""Longest time that a connection may take to send the head of a request, in seconds."""

CONNECTIONS = 256
"""Open connections; one more is closed at once."""

REQUESTS = 128
"""Requests at work at the same time; one more is answered 429."""

SEND_S = 60.0
"""Longest wait for a client that does not read what is sent to it, in seconds; its reply is stopped then."""

HELD_S = 15.0
"""The status line of a streamed reply waits so long for the engine to take the prompt, in seconds: until then whatever is wrong
with a request is a status code."""

PING_S = 15.0
"""Time without an event after which a stream sends a comment, in seconds, so that no proxy takes it for dead."""

LOADING_S = 120.0
"""Longest wait of a request for its model to be loaded, in seconds."""

CHOICES = 8
TOOLS = 128
TEXTS = 2048
MESSAGES = 4096
STOPS = 4
STOP_CHARS = 256
LOGIT_BIASES = 1024
