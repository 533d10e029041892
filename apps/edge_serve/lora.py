"""The LoRA adapters of a request, as llama.cpp's server has them; Anthropic's and Ollama's protocols have the same field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from edge.errors import UsageError
from edge_serve.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge.assistant import Assistant

__all__ = ["AdapterScale", "lora_options"]

_MOST = 64


class AdapterScale(msgspec.Struct):
    """An adapter of a request.

    Attributes:
        id: its number in GET /lora-adapters, or its name.
        scale: at which it is applied; None is the one it was loaded with.
    """

    id: int | str
    scale: float | None = None


def lora_options(lora: Sequence[AdapterScale] | None, assistant: Assistant) -> dict[str, Any]:
    """Return the options of a reply with these adapters, and no others, as llama.cpp does it; None leaves them to the server.

    Raises:
        ApiError: the model has no such adapter, or a scale is out of range.
    """
    from edge.adapters import read_mix

    if lora is None:
        return {}
    if len(lora) > _MOST:
        raise ApiError(400, f"lora has {_MOST} adapters at most.", code="invalid_value", param="lora")
    adapters, scales = assistant.adapters, dict[str, float]()
    for one in lora:
        is_number = isinstance(one.id, int) and 0 <= one.id < len(adapters)
        name = adapters[int(one.id)].name if is_number else str(one.id)
        known = next((adapter.scale for adapter in adapters if adapter.name == name), 0.0)
        scales[name] = one.scale if one.scale is not None else known or 1.0
    try:
        read_mix(scales, adapters)
    except UsageError as error:
        raise ApiError(400, f"lora: {error.message}", code="invalid_value", param="lora") from None
    return {"lora": scales}
