"""The command table, put together from one module for each group of commands."""

from __future__ import annotations

from edge_chat.actions import conversations, messages, model, view, writing
from edge_chat.commands import Registry

__all__ = ["REGISTRY"]

REGISTRY = Registry(
    (*writing.COMMANDS, *conversations.COMMANDS, *messages.COMMANDS, *model.COMMANDS, *view.COMMANDS),
)
