"""Cards between the messages: errors, a waiting message, the empty state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Button, Static

from edge.errors import EdgeError
from edge_chat import format as fmt

__all__ = ["EmptyState", "ErrorCard", "LoadErrorCard", "WaitingCard"]


class ErrorCard(Vertical, can_focus=True):
    """An error in the place where it happened, with its hint and keys for the next step.

    Args:
        title: what failed ("There is no reply").
        error: why.
        actions: (key, command, label), the usual one first.
    """

    FOCUS_ON_CLICK: ClassVar[bool] = False

    @dataclass
    class Chosen(Message):
        """The user chose an action."""

        command: str

    def __init__(self, title: str, error: EdgeError, actions: tuple[tuple[str, str, str], ...] = ()) -> None:
        super().__init__(classes="error-card")
        self.title_text = title
        self.error = error
        self.actions = actions
        for key, command, label in actions:
            self._bindings.bind(key, f"choose({command!r})", label, show=False)

    def compose(self) -> ComposeResult:
        yield Static(Content.assemble(("Error: ", "bold $text-error"), (self.title_text, "bold")), classes="error-title")
        yield Static(Content(fmt.clean(self.error.message)))
        if self.error.hint:
            yield Static(Content(fmt.clean(self.error.hint)), classes="error-hint")
        if self.actions:
            with Horizontal(classes="error-actions"):
                for key, command, label in self.actions:
                    yield Button(f"{label} ({key})", name=command, compact=True)

    def copy(self) -> ErrorCard:
        """Return a new card with the same content, since a removed widget cannot be mounted again."""
        return ErrorCard(self.title_text, self.error, self.actions)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        event.stop()
        self.action_choose(event.button.name or "")

    def action_choose(self, command: str) -> None:
        self.post_message(self.Chosen(command))


class LoadErrorCard(ErrorCard):
    """An error that belongs to the model, not to a conversation."""


class WaitingCard(Vertical):
    """A message waiting to be sent, and why."""

    def __init__(self, text: str, why: str) -> None:
        super().__init__(classes="waiting-card")
        self._text = text
        self._why = why

    def compose(self) -> ComposeResult:
        yield Static(Content.assemble(("You", "bold $primary"), (f"  {self._why}", "$text-warning")), classes="head")
        yield Static(Content(fmt.clean(self._text)), classes="said")


class EmptyState(Vertical):
    """The content of a new conversation: the state of the model, and first steps as (keys, what they do)."""

    def __init__(self, tips: list[tuple[str, str]], model: str) -> None:
        super().__init__(id="empty")
        self._tips = tips
        self._model = model

    def compose(self) -> ComposeResult:
        yield Static(Content.styled("edge", "bold $primary"), classes="empty-title")
        yield Static("A language model on this device. Nothing you type leaves it.", classes="empty-line")
        yield Static(Content(fmt.clean(self._model)), id="empty-model", classes="empty-line")
        width = max(len(keys) for keys, _ in self._tips)
        lines: list[Content | str | tuple[str, str]] = []
        for keys, what in self._tips:
            lines += [(f"{keys:<{width}}", "bold $text-accent"), ("   ", ""), f"{what}\n"]
        yield Static(Content.assemble(*lines), classes="empty-tips")

    def show_model(self, text: str) -> None:
        """Show another state of the model."""
        self._model = text
        for line in self.query("#empty-model").results(Static):
            line.update(Content(fmt.clean(text)))
