"""The terminal chat app."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge.config import Settings

__all__ = ["run"]


def run(settings: Settings, *, conversation: str | None = None) -> int:
    """Run the chat until the user leaves.

    Args:
        settings: merged settings.
        conversation: id of the conversation to open, or the beginning of one; None begins a new one.

    Returns:
        The exit code.

    Raises:
        ConfigError: `chat.theme` or `chat.keys` cannot be used.
        EdgeError: the app broke down; everything that was said is saved.
    """
    from edge_chat.app import ChatApp

    app = ChatApp(settings, conversation=conversation)
    code = app.run()
    if app.breakdown is not None:
        raise app.breakdown
    return code if code is not None else (app.return_code or 0)
