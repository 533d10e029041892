"""The access log: a line for each request, without anything that was asked or answered."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from edge_serve.call import Record

__all__ = ["fields", "log", "set_up"]

_log = logging.getLogger("edge.serve.access")


class _Text(logging.Formatter):
    """A line for people."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = record.__dict__["line"]
        text = f"{self.formatTime(record, '%Y-%m-%d %H:%M:%S')} {line['method']} {ascii(line['path'])[1:-1]} {line['status']}"
        text += f" {line['ms']:.0f} ms"
        if "model" in line:
            cached = f" ({line['cached_tokens']} cached)" if line["cached_tokens"] else ""
            text += f" {line['model']} {line['prompt_tokens']}{cached} + {line['completion_tokens']} tokens"
        return f"{text} {line['client']}".rstrip()


class _Json(logging.Formatter):
    """A JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        return msgspec.json.encode({"time": round(record.created, 3), **record.__dict__["line"]}).decode()


def set_up(form: str) -> None:
    """Write the lines to stderr, as "text" or "json", or not at all ("off")."""
    _log.handlers.clear()
    _log.propagate = False
    _log.setLevel(logging.CRITICAL + 1 if form == "off" else logging.INFO)
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if form == "json" else _Text())
    _log.addHandler(handler)


def fields(record: Record, seconds: float) -> dict[str, Any]:
    """Return what a line says."""
    usages = [reply.usage for reply in record.replies]
    line: dict[str, Any] = {
        "id": record.id,
        "client": record.caller,
        "method": record.method,
        "path": record.path[:200],
        "status": record.status,
        "ms": round(seconds * 1000, 1),
    }
    if usages:
        line |= {
            "model": record.model,
            "prompt_tokens": sum(usage.n_prompt for usage in usages),
            "cached_tokens": sum(usage.n_reused for usage in usages),
            "completion_tokens": sum(usage.n_generated for usage in usages),
            "queue_ms": round(record.replies[0].timing.queue_ms, 1),
            "first_token_ms": round(record.replies[0].timing.first_token_ms, 1),
        }
    if record.ignored:
        line["ignored"] = record.ignored
    return line


def log(record: Record, seconds: float) -> None:
    """Write the line of a request that is over."""
    if _log.isEnabledFor(logging.INFO):
        _log.info("request", extra={"line": fields(record, seconds)})
