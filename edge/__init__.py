"""edge, an on-device assistant runtime.

with edge.load("smollm2-135m") as ai:
    for piece in ai.conversation(system="Be brief").send("hi"):
        print(piece, end="")

Names are imported when they are first used, so that `import edge` stays quick.

assistant.py  a loaded model to talk to; dialogue.py, a stored conversation with it
loading.py    from a name to a loaded model; planning.py, from a name to a plan
embedding/    texts as vectors; documents/, files that are searched by them and by their words
asking.py     what it answers without one; judging.py, how likely it finds answers; responding.py, answers as values;
              batch.py, many prompts; scoring.py, how likely given answers are
runtime.py    several models under one memory budget; testing.py, a fake model for the tests of programs
turns.py      starts the turns of both and stops them; arguments.py, checks of what a program gives to both
request.py    what is asked of a turn; constraint.py, what its reply has to be
turn.py       from messages to the end of a reply, in a thread of its own
reply.py      the reply while it runs; events.py, what it consists of; reply_state.py, what the turn writes and the reply reads
tiers/        the next tier: a larger model or a server, for what the router sends on; escalating.py, from the settings to one;
              tiered_turn.py, a turn that it may answer
reply_reader.py  text, thoughts and tool calls of a reply; thinking.py, replies of models that think first
messages.py   messages, and the tools that a model may call
types.py      values that all rooms use; errors.py, every error; names.py, formats, accelerators and KV types
functions.py  functions as tools; tool_runner.py, runs what a model calls
registry.py   the engines, a row each; adapters.py, LoRA adapters and the scales at which they are applied
files.py      bounded reads, private files, locks, folder sync; hashes.py, SHA-256 of model files, remembered
database.py   SQLite files: safe opening, migrations, transactions
cluster.py    work on the machines of a Ray cluster
child.py      child processes; forks.py, what a forked one never waits for
grounding/    passages of documents that an answer rests on; grounded.py, those of a turn; citations.py, how a model sees them
units.py      sizes and durations as text; lazy.py, package faces
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from edge.lazy import lazy_names

if TYPE_CHECKING:
    from edge import errors, events, testing
    from edge.assistant import Assistant
    from edge.backends.base import ModelInfo
    from edge.batch import Batch
    from edge.citations import Citation
    from edge.config.load import load_settings
    from edge.config.schema import Settings
    from edge.constraint import Constraint
    from edge.conversation.store import ConversationStore
    from edge.conversation.tree import Attachment, ConversationInfo, Node
    from edge.dialogue import Conversation
    from edge.embedding.base import Embeddings
    from edge.embedding.loading import embed
    from edge.functions import tool
    from edge.loading import aload, load, plan_model
    from edge.plan.receipt import Plan
    from edge.reply import Reply
    from edge.request import RequestOptions
    from edge.runtime import Runtime
    from edge.scoring import ChoiceScore, Scored
    from edge.types import Chosen, Message, PromptSize, Sampling, Timing, TokenLogprob, Tool, ToolCall, Usage

logging.getLogger(__name__).addHandler(logging.NullHandler())  # the program decides what is shown of the log

__version__ = "0.1.0"

__all__ = [
    "Assistant",
    "Attachment",
    "Batch",
    "ChoiceScore",
    "Chosen",
    "Citation",
    "Constraint",
    "Conversation",
    "ConversationInfo",
    "ConversationStore",
    "Embeddings",
    "Message",
    "ModelInfo",
    "Node",
    "Plan",
    "PromptSize",
    "Reply",
    "RequestOptions",
    "Runtime",
    "Sampling",
    "Scored",
    "Settings",
    "Timing",
    "TokenLogprob",
    "Tool",
    "ToolCall",
    "Usage",
    "__version__",
    "aload",
    "embed",
    "errors",
    "events",
    "load",
    "load_settings",
    "plan_model",
    "testing",
    "tool",
]


__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "edge.assistant": ("Assistant",),
        "edge.batch": ("Batch",),
        "edge.citations": ("Citation",),
        "edge.backends.base": ("ModelInfo",),
        "edge.config.load": ("load_settings",),
        "edge.config.schema": ("Settings",),
        "edge.constraint": ("Constraint",),
        "edge.conversation.store": ("ConversationStore",),
        "edge.conversation.tree": ("Attachment", "ConversationInfo", "Node"),
        "edge.dialogue": ("Conversation",),
        "edge.embedding.base": ("Embeddings",),
        "edge.embedding.loading": ("embed",),
        "edge.errors": ("errors",),
        "edge.events": ("events",),
        "edge.functions": ("tool",),
        "edge.loading": ("aload", "load", "plan_model"),
        "edge.plan.receipt": ("Plan",),
        "edge.reply": ("Reply",),
        "edge.request": ("RequestOptions",),
        "edge.runtime": ("Runtime",),
        "edge.scoring": ("ChoiceScore", "Scored"),
        "edge.testing": ("testing",),
        "edge.types": ("Chosen", "Message", "PromptSize", "Sampling", "Timing", "TokenLogprob", "Tool", "ToolCall", "Usage"),
    },
)
