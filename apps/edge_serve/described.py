"""What the endpoints that are this server's own answer, for the description at /openapi.json."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from edge_serve.openai.described import Model

__all__ = ["Health", "Status"]

State = Literal["ok", "loading", "failed", "stopping"]


class Health(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Whether requests are answered at once, and the version of this server."""

    status: State
    version: str


class Status(msgspec.Struct, kw_only=True):
    """What the page at the address itself shows."""

    status: State
    version: str
    started_at: int
    memory_bytes: int
    tokens: dict[str, int]
    tokens_per_s: float
    replies: list[dict[str, Any]]
    models: list[Model]
