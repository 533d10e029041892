"""Cards between the messages: errors and a waiting message."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Button, Static

from edge.errors import EdgeError
from edge.types import ToolCall
from edge_chat import format as fmt

if TYPE_CHECKING:
    from edge.tiers import Outgoing

__all__ = ["ApprovalCard", "ErrorCard", "LoadErrorCard", "WaitingCard"]

_DISMISS = "dismiss"


class ErrorCard(Vertical, can_focus=True):
    """An error in the place where it happened, with its hint and keys for the next step.

    Args:
        title: what failed ("There is no reply").
        error: why.
        actions: (key, command, label), the usual one first.
        hint: instead of the error's own.
    """

    FOCUS_ON_CLICK: ClassVar[bool] = False
    BINDINGS: ClassVar[list[BindingType]] = [Binding("x,delete", "dismiss", "Dismiss", show=False)]

    @dataclass
    class Chosen(Message):
        """The user chose an action."""

        command: str

    def __init__(self, title: str, error: EdgeError, actions: tuple[tuple[str, str, str], ...] = (), *, hint: str = "") -> None:
        super().__init__(classes="error-card")
        self.title_text = title
        self.hint = hint or error.hint
        self.error = error
        self.actions = actions
        for key, command, label in actions:
            self._bindings.bind(key, f"choose({command!r})", label, show=False)

    @dataclass
    class Dismissed(Message):
        """The user has read it."""

        card: ErrorCard

    def compose(self) -> ComposeResult:
        yield Static(Content.assemble(("Error: ", "bold $text-error"), (self.title_text, "bold")), classes="error-title")
        yield Static(Content(fmt.clean(self.error.message)))
        if self.hint:
            yield Static(Content(fmt.clean(self.hint)), classes="error-hint")
        with Horizontal(classes="error-actions"):
            for key, command, label in (*self.actions, ("x", _DISMISS, "Dismiss")):
                yield Button(f"{label} ({key})", name=command, compact=True)

    def action_dismiss(self) -> None:
        self.post_message(self.Dismissed(self))

    def copy(self) -> ErrorCard:
        """Return a new card with the same content, since a removed widget cannot be mounted again."""
        return ErrorCard(self.title_text, self.error, self.actions, hint=self.hint)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        event.stop()
        if event.button.name == _DISMISS:
            self.action_dismiss()
        else:
            self.action_choose(event.button.name or "")

    def action_choose(self, command: str) -> None:
        self.post_message(self.Chosen(command))


class LoadErrorCard(ErrorCard):
    """An error that belongs to the model, not to a conversation."""


class ApprovalCard(Vertical, can_focus=True):
    """A tool that the model wants to call, or what would be sent to a server, whole, and keys to allow or refuse it."""

    FOCUS_ON_CLICK: ClassVar[bool] = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer('yes')", "Allow", show=False),
        Binding("a", "answer('always')", "Always allow", show=False),
        Binding("n,delete,escape", "answer('no')", "Refuse", show=False),
    ]

    @dataclass
    class Answered(Message):
        """The user has decided: "yes", "always" or "no"."""

        card: ApprovalCard
        chosen: str

    def __init__(self, about: ToolCall | Outgoing) -> None:
        super().__init__(classes="error-card approval-card")
        self.about = about

    def compose(self) -> ComposeResult:
        if isinstance(self.about, ToolCall):
            title = Content.assemble("The model wants to call ", (fmt.clean(self.about.name), "bold"))
            text, allow = json.dumps(self.about.arguments, ensure_ascii=False, indent=2), "Allow"
        else:
            title = Content.assemble("Send this ", (fmt.clean(self.about.summary()), "bold"), f"? Why: {self.about.why}")
            text, allow = self.about.text(), "Send"
        yield Static(title, classes="error-title")
        yield Static(Content(fmt.clean(text)))
        with Horizontal(classes="error-actions"):
            for label, chosen in ((f"{allow} (y)", "yes"), ("Always in this session (a)", "always"), ("Refuse (n)", "no")):
                yield Button(label, name=chosen, compact=True)

    def copy(self) -> ApprovalCard:
        """Return a new card with the same question, since a removed widget cannot be mounted again."""
        return ApprovalCard(self.about)

    def action_answer(self, chosen: str) -> None:
        self.post_message(self.Answered(self, chosen))

    def on_button_pressed(self, event: Button.Pressed) -> None:
        event.stop()
        self.action_answer(event.button.name or "no")


class WaitingCard(Vertical):
    """A message waiting to be sent, and why."""

    def __init__(self, text: str, why: str) -> None:
        super().__init__(classes="waiting-card")
        self._text = text
        self._why = why

    def compose(self) -> ComposeResult:
        yield Static(Content.assemble(("You", "bold $primary"), (f"  {self._why}", "$text-warning")), classes="head")
        yield Static(Content(fmt.clean(self._text)), classes="said")
