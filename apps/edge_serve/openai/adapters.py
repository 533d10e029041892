"""GET /lora-adapters, as llama.cpp's server has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_serve.answers import hold_model

if TYPE_CHECKING:
    from edge_serve.call import Call

__all__ = ["list_all"]


async def list_all(call: Call) -> None:
    """List the adapters of the default model, which is loaded if it is not yet."""
    async with hold_model(call, None) as (assistant, _):
        now = assistant.lora
        await call.json(
            [
                {"id": number, "path": adapter.path.name, "name": adapter.name, "scale": now.get(adapter.name, 0.0)}
                for number, adapter in enumerate(assistant.adapters)
            ]
        )
