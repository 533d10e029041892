"""edge, an on-device assistant runtime.

with edge.load("smollm2-135m") as ai:
    for piece in ai.conversation(system="Be brief").send("hi"):
        print(piece, end="")

Names are imported when they are first used, so that `import edge` stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge import errors
    from edge.assistant import Assistant, Conversation
    from edge.conversation import Attachment, ConversationStore
    from edge.loading import aload, load, plan_model
    from edge.reply import Reply
    from edge.types import Message, Sampling, Timing, Usage

__version__ = "0.1.0"

_HOMES = {
    "Assistant": "edge.assistant",
    "Attachment": "edge.conversation",
    "Conversation": "edge.assistant",
    "ConversationStore": "edge.conversation",
    "Message": "edge.types",
    "Reply": "edge.reply",
    "Sampling": "edge.types",
    "Timing": "edge.types",
    "Usage": "edge.types",
    "aload": "edge.loading",
    "load": "edge.loading",
    "plan_model": "edge.loading",
}

__all__ = [
    "Assistant",
    "Attachment",
    "Conversation",
    "ConversationStore",
    "Message",
    "Reply",
    "Sampling",
    "Timing",
    "Usage",
    "__version__",
    "aload",
    "errors",
    "load",
    "plan_model",
]


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("edge.errors")
    if name not in _HOMES:
        raise AttributeError(f"module 'edge' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
