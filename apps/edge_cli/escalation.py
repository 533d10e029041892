"""What `edge run` says and asks about the next tier: what would be sent, and who answered."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from edge_cli import output

if TYPE_CHECKING:
    from edge.assistant import Assistant
    from edge.dialogue import Conversation
    from edge.reply import Reply
    from edge.tiers import Outgoing

__all__ = ["answered_note", "ask_for_consent", "show_outgoing"]


def ask_for_consent(assistant: Assistant, status: output.Status) -> None:
    """Have the user asked on the terminal before text leaves the device. Where there is nobody to ask, nothing is sent."""
    escalation = assistant.escalation
    if escalation is None or escalation.consent is not None or not _has_terminal():
        return
    escalation.consent = _asking(status)


def _has_terminal() -> bool:
    return output.is_terminal(sys.stdin) and output.is_terminal(sys.stderr)


def _asking(status: output.Status) -> Callable[[Outgoing], bool]:
    def ask(outgoing: Outgoing) -> bool:
        status.close()
        output.note(f"This would be sent {outgoing.summary()}. Why: {outgoing.why}.")
        while True:
            chosen = click.prompt("Send it? (y)es, (n)o, (s)how", default="n", show_default=False, err=True).strip().lower()
            if chosen[:1] == "s":
                output.note(output.plain(outgoing.text()))
            else:
                return bool(chosen[:1] == "y")

    return ask


def show_outgoing(conversation: Conversation, text: str, *, as_json: bool, **options: Any) -> int:
    """Print what would be sent on, and return the exit code. Sends nothing.

    Raises:
        UsageError: there is no next tier, or it cannot take this.
    """
    outgoing = conversation.outgoing(text, **options)
    if outgoing is None:
        output.note("Nothing would leave this device: the next tier is a model on it.")
        if as_json:
            output.json_object(None)
        return 0
    if as_json:
        names = ("url", "host", "is_encrypted", "has_key", "n_messages", "n_chars", "body")
        output.json_object({name: getattr(outgoing, name) for name in names})
        return 0
    output.note(f"This would be sent {outgoing.summary()}. Nothing was sent.")
    output.line(output.plain(outgoing.text()))
    return 0


def answered_note(reply: Reply) -> str:
    """Return who answered, if it was not the model itself; "" otherwise."""
    return f"Answered by {output.plain(reply.answered_by)} ({reply.escalated})." if reply.escalated else ""
