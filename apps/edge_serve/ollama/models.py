"""Ollama's lists of models, what is loaded, and what this server does not do."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timezone
from typing import Any

import edge
from edge.units import count_text
from edge_serve.answers import hold_model
from edge_serve.call import Call
from edge_serve.errors import ApiError
from edge_serve.offer import Offered
from edge_serve.ollama.wire import CommonRequest, ModelRequest, head_of

__all__ = ["load_or_unload", "not_offered", "ps", "show", "tags", "version"]

_NEVER = "0001-01-01T00:00:00Z"


async def version(call: Call) -> None:
    """Give the version of this server."""
    await call.json({"version": edge.__version__})


async def tags(call: Call) -> None:
    """List the models that can be asked for."""
    await call.json({"models": [_listed(model) for model in await call.service.offer.models()]})


async def ps(call: Call) -> None:
    """List the models that are loaded."""
    by_reference = {model.reference: model for model in await call.service.offer.models()}
    idle_s = call.service.settings.server.idle_s
    listed = []

    def ends(used_at: float) -> str:
        return _NEVER if idle_s is None else _time(time.time() + idle_s - (time.monotonic() - used_at))

    for loaded in call.service.runtime.loaded:
        model = by_reference.get(loaded.name) or Offered(loaded.name, loaded.name)
        is_on_device = loaded.assistant.plan is not None and loaded.assistant.plan.accelerator != "cpu"
        size = loaded.memory_bytes
        more = {"size": size, "size_vram": size if is_on_device else 0, "expires_at": ends(loaded.used_at)}
        listed.append({**_listed(model), **more, "context_length": loaded.assistant.n_ctx})
    for one in call.service.runtime.loaded_embedders:
        model = by_reference.get(one.name) or Offered(one.name, one.name)
        more = {"size": one.memory_bytes, "size_vram": 0, "expires_at": ends(one.used_at)}
        listed.append({**_listed(model), **more, "context_length": one.embedder.info.n_ctx})
    await call.json({"models": listed})


async def show(call: Call) -> None:
    """Describe a model, which is loaded for it, unless it makes embeddings."""
    body = await call.body(ModelRequest)
    found = await call.service.offer.find(body.model or body.name)
    if found.task == "embeddings":
        about: dict[str, Any] = {
            "modelfile": f"FROM {found.id}\n",
            "parameters": "",
            "template": "",
            "details": _details(found),
        }
        await call.json({**about, "model_info": {}, "capabilities": ["embedding"], "modified_at": _time(found.modified)})
        return
    async with hold_model(call, body.model or body.name) as (assistant, model):
        info = assistant.info
        family = info.architecture
        details = {**_details(model), "family": family, "families": [family]}
        if info.n_params:
            details["parameter_size"] = count_text(info.n_params)
        about = {
            "general.architecture": family,
            "general.parameter_count": info.n_params,
            f"{family}.context_length": info.n_ctx_train or assistant.n_ctx,
        }
        template = assistant.chat_template
        capabilities = ["completion", "tools", *(["thinking"] if template.thinking is not None else [])]
        await call.json(
            {
                "modelfile": f"FROM {model.id}\n",
                "parameters": "",
                "template": template.source,
                "details": details,
                "model_info": about,
                "capabilities": capabilities,
                "modified_at": _time(model.modified),
            }
        )


async def load_or_unload(call: Call, body: CommonRequest, empty: dict[str, Any]) -> None:
    """Answer a request without a prompt: load the model, or unload it if nobody uses it and `keep_alive` is 0."""
    if body.keep_alive in (0, "0", "0s"):
        model = await call.service.offer.find(body.model)
        await asyncio.to_thread(call.service.runtime.unload, model.reference, only_idle=True)
        await call.json({**head_of(model.id), **empty, "done": True, "done_reason": "unload"})
        return
    async with hold_model(call, body.model) as (_, model):
        await call.json({**head_of(model.id), **empty, "done": True, "done_reason": "load"})


async def not_offered(call: Call) -> None:
    """Refuse what changes the models of this device."""
    raise ApiError(501, "Models are managed on the device: edge models pull, add and rm.", code="not_implemented")


def _listed(model: Offered) -> dict[str, Any]:
    return {
        "name": model.id,
        "model": model.id,
        "modified_at": _time(model.modified),
        "size": model.size_bytes,
        "digest": model.sha256,
        "details": _details(model),
    }


def _details(model: Offered) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": model.format,
        "family": "",
        "families": [],
        "parameter_size": "",
        "quantization_level": model.quantisation,
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat().replace("+00:00", "Z")
