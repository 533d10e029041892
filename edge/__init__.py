"""edge, an on-device assistant runtime.

with edge.load("smollm2-135m") as ai:
    for piece in ai.conversation(system="Be brief").send("hi"):
        print(piece, end="")

Names are imported when they are first used, so that `import edge` stays quick.

assistant.py  a loaded model to talk to; loading.py, from a name to one; dialogue.py, a stored conversation with it
turns.py      starts the turns of both and stops them; arguments.py, checks of what a program gives to both
turn.py       from messages to the end of a reply, in a thread of its own; reply.py, the reply while it runs
types.py      values that all rooms use; errors.py, every error; names.py, formats, accelerators and KV types
registry.py   the engines, a row each
files.py      bounded reads, private files, locks, folder sync; hashes.py, SHA-256 of model files, remembered
child.py      child processes; units.py, sizes and durations as text; lazy.py, package faces
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from edge.lazy import lazy_names

if TYPE_CHECKING:
    from edge import errors
    from edge.assistant import Assistant
    from edge.backends.base import ModelInfo
    from edge.config.load import load_settings
    from edge.config.schema import Settings
    from edge.conversation.store import ConversationStore
    from edge.conversation.tree import Attachment, ConversationInfo, Node
    from edge.dialogue import Conversation
    from edge.loading import aload, load, plan_model
    from edge.plan.receipt import Plan
    from edge.reply import Reply
    from edge.types import Message, Sampling, Timing, Usage

logging.getLogger(__name__).addHandler(logging.NullHandler())  # the program decides what is shown of the log

__version__ = "0.1.0"

__all__ = [
    "Assistant",
    "Attachment",
    "Conversation",
    "ConversationInfo",
    "ConversationStore",
    "Message",
    "ModelInfo",
    "Node",
    "Plan",
    "Reply",
    "Sampling",
    "Settings",
    "Timing",
    "Usage",
    "__version__",
    "aload",
    "errors",
    "load",
    "load_settings",
    "plan_model",
]


__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "edge.assistant": ("Assistant",),
        "edge.backends.base": ("ModelInfo",),
        "edge.config.load": ("load_settings",),
        "edge.config.schema": ("Settings",),
        "edge.conversation.store": ("ConversationStore",),
        "edge.conversation.tree": ("Attachment", "ConversationInfo", "Node"),
        "edge.dialogue": ("Conversation",),
        "edge.errors": ("errors",),
        "edge.loading": ("aload", "load", "plan_model"),
        "edge.plan.receipt": ("Plan",),
        "edge.reply": ("Reply",),
        "edge.types": ("Message", "Sampling", "Timing", "Usage"),
    },
)
