"""GET /v1/models, and one of them: for clients of OpenAI, and of Anthropic, which look for other fields at the same address."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from edge_serve.call import Call
from edge_serve.offer import Offered

__all__ = ["describe", "list_all", "retrieve"]


async def list_all(call: Call) -> None:
    """List the models that can be asked for, the default first."""
    models = await call.service.offer.models()
    data = [describe(call, model) for model in models]
    ends = {"has_more": False, "first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"has_more": False}
    await call.json({"object": "list", "data": data, **ends})


async def retrieve(call: Call) -> None:
    """Show one model; without a name, list all."""
    if not call.path_params["id"]:
        await list_all(call)
        return
    await call.json(describe(call, await call.service.offer.find(call.path_params["id"])))


def describe(call: Call, model: Offered) -> dict[str, Any]:
    """Return a model with its state."""
    runtime = call.service.runtime
    loaded = next((one for one in runtime.loaded if one.name == model.reference), None)
    embedder = next((one for one in runtime.loaded_embedders if one.name == model.reference), None)
    is_loaded = loaded is not None or embedder is not None
    status = "loaded" if is_loaded else "loading" if model.reference in runtime.loading else "not loaded"
    created = model.modified or call.service.started_at
    shown: dict[str, Any] = {
        "id": model.id,
        "object": "model",
        "type": "model",
        "display_name": model.id,
        "lifecycle": "active",
        "created": created,
        "created_at": datetime.fromtimestamp(created, timezone.utc).isoformat().replace("+00:00", "Z"),
        "owned_by": "edge",
        "status": status,
        "format": model.format,
        "task": model.task,
    }
    if loaded is not None:
        shown |= {"context_window": loaded.assistant.n_ctx, "memory_bytes": loaded.memory_bytes}
    elif embedder is not None:
        shown |= {"context_window": embedder.embedder.info.n_ctx, "memory_bytes": embedder.memory_bytes}
    return shown
