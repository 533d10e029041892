"""edge, an on-device assistant runtime.

with edge.load("smollm2-135m") as ai:
    for piece in ai.conversation(system="Be brief").send("hi"):
        print(piece, end="")

Names are imported when they are first used, so that `import edge` stays quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.lazy import lazy_names

if TYPE_CHECKING:
    from edge import errors
    from edge.assistant import Assistant, Conversation
    from edge.conversation.store import ConversationStore
    from edge.conversation.tree import Attachment
    from edge.loading import aload, load, plan_model
    from edge.reply import Reply
    from edge.types import Message, Sampling, Timing, Usage

__version__ = "0.1.0"

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


__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "edge.assistant": ("Assistant", "Conversation"),
        "edge.conversation.store": ("ConversationStore",),
        "edge.conversation.tree": ("Attachment",),
        "edge.errors": ("errors",),
        "edge.loading": ("aload", "load", "plan_model"),
        "edge.reply": ("Reply",),
        "edge.types": ("Message", "Sampling", "Timing", "Usage"),
    },
)
