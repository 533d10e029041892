"""The page at `/`, and what it shows: models, replies that run, tokens and memory."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edge
from edge_serve.call import Call
from edge_serve.openai.models import describe

if TYPE_CHECKING:
    from edge.reply import Reply

__all__ = ["page", "status"]

_KINDS = ("prompt", "cached", "restored", "generated")


@functools.cache
def _page() -> tuple[bytes, bytes]:
    """Return the page, and the policy that lets a browser run its own script and style and nothing else."""
    data = Path(__file__).with_name("page.html").read_bytes()

    def hash_of(tag: bytes) -> str:
        found = re.search(b"<" + tag + b">(.*?)</" + tag + b">", data, re.DOTALL)
        assert found is not None
        return f"'sha256-{base64.b64encode(hashlib.sha256(found[1]).digest()).decode()}'"

    policy = (
        f"default-src 'none'; script-src {hash_of(b'script')}; style-src {hash_of(b'style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return data, policy.encode()


async def page(call: Call) -> None:
    """Give the page."""
    data, policy = _page()
    headers = [
        (b"content-security-policy", policy),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cache-control", b"no-cache"),
    ]
    await call.send(data, b"text/html; charset=utf-8", headers=headers)


async def status(call: Call) -> None:
    """Give the state of the server."""
    service = call.service
    counters = service.counters
    tokens = {kind: sum(n for (_, one), n in counters.tokens.items() if one == kind) for kind in _KINDS}
    await call.json(
        {
            "status": service.state,
            "version": edge.__version__,
            "started_at": service.started_at,
            "memory_bytes": _memory_reader()(),
            "tokens": tokens,
            "tokens_per_s": counters.tokens_per_s,
            "decoded_tokens": sum(model.assistant.n_decoded for model in service.runtime.loaded),
            "replies": [_reply(reply, *about) for reply, about in list(service.replies.items())],
            "models": [describe(call, model) for model in await service.offer.models()],
        }
    )


@functools.cache
def _memory_reader() -> Callable[[], int]:
    """Return a function for the memory of this process, in bytes."""
    import psutil

    process = psutil.Process()
    return lambda: int(process.memory_info().rss)


def _reply(reply: Reply, model: str, began: float) -> dict[str, Any]:
    done, total = reply.progress
    state = "waiting" if not total else "processing prompt" if done < total else "generating"
    return {
        "model": model,
        "state": state,
        "prompt_done": done,
        "prompt_total": total,
        "characters": len(reply.text),
        "seconds": round(time.perf_counter() - began, 2),
    }
