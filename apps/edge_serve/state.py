"""Whether the server is up, and what it has done."""

from __future__ import annotations

import edge
from edge_serve import metrics as counters
from edge_serve.call import Call

__all__ = ["health", "metrics"]


async def health(call: Call) -> None:
    """Say whether requests are answered now: 200, or 503 while the default model is being loaded or the server stops."""
    status = call.service.state
    headers = [] if status == "ok" else [(b"retry-after", b"5")]
    await call.json({"status": status, "version": edge.__version__}, 200 if status == "ok" else 503, headers)


async def metrics(call: Call) -> None:
    """Give the counters to Prometheus."""
    data, kind = counters.page(call.service)
    await call.send(data, kind.encode())
