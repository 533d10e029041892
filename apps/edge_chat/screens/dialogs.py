"""Small dialogs: a question, a line or page of text to edit, a page to read."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, TypeVar, cast

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Static, TextArea

from edge_chat.widgets.text import ExactTextArea

if TYPE_CHECKING:
    from edge_chat.base import BaseApp

__all__ = ["AskText", "Confirm", "Dialog", "EditText", "ReadPage"]

T = TypeVar("T")


class Dialog(ModalScreen[T]):
    """A modal screen with a title and optionally a note. Esc cancels it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Cancel", show=False)]

    def __init__(self, title: str, note: str = "") -> None:
        super().__init__(classes="dialog")
        self._title_text = title
        self._note = note

    async def action_dismiss(self, result: T | None = None) -> None:
        """Close the dialog, once all of it is there: Esc may come together with the key that opened it."""
        if self.is_mounted:
            await super().action_dismiss(result)
        else:
            self.call_later(self.action_dismiss, result)

    def _heading(self) -> ComposeResult:
        yield Static(self._title_text, classes="dialog-title", markup=False)
        if self._note:
            yield Static(self._note, markup=False)

    def on_mount(self) -> None:
        """Let cursors blink as they do in the chat. (Textual calls this besides the on_mount of each dialog.)"""
        blinks = cast("BaseApp", self.app).blinks
        for field in [*self.query(Input), *self.query(TextArea)]:
            field.cursor_blink = blinks


class Confirm(Dialog[bool]):
    """A question with a button for the action, with `verb` on it, and one to cancel."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,n", "dismiss(False)", "No", show=False),
        Binding("y", "dismiss(True)", "Yes", show=False),
        Binding("left,right", "app.focus_next", "Other button", show=False),
    ]

    def __init__(self, question: str, verb: str, detail: str = "") -> None:
        super().__init__(question, detail)
        self._verb = verb

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog-box -small"):
            yield from self._heading()
            with Horizontal(classes="dialog-buttons"):
                yield Button(f"{self._verb} (y)", id="yes", variant="error")
                yield Button("Cancel (Esc)", id="no")

    def on_mount(self) -> None:
        """Focus the harmless button."""
        self.query_one("#no").focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")


class AskText(Dialog["str | None"]):
    """One line of text to edit; None if cancelled."""

    def __init__(self, title: str, value: str, note: str = "") -> None:
        super().__init__(title, note)
        self._value = value

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog-box -small"):
            yield from self._heading()
            yield Input(self._value)
            yield Static("Enter accepts, Esc cancels.", classes="dialog-keys")

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        self.dismiss(event.value.strip())


class EditText(AskText):
    """Several lines of text to edit; None if cancelled."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("ctrl+s", "accept", "Save", show=False, priority=True)]

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog-box"):
            yield from self._heading()
            yield ExactTextArea(self._value, soft_wrap=True, highlight_cursor_line=False)
            yield Static("Ctrl+S saves, Esc cancels.", classes="dialog-keys")

    def on_mount(self) -> None:
        """Put the cursor at the end."""
        area = self.query_one(TextArea)
        area.move_cursor(area.document.end)

    def action_accept(self) -> None:
        self.dismiss(self.query_one(TextArea).text.strip())


class ReadPage(Dialog[None]):
    """A page of Markdown to read; a function makes its text for the cells of a line."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter", "dismiss", "Close", show=False),
        Binding("down,j", "scroll(1)", "Down", show=False),
        Binding("up,k", "scroll(-1)", "Up", show=False),
    ]

    def __init__(self, title: str, text: str | Callable[[int], str]) -> None:
        super().__init__(title)
        self._text = text

    def compose(self) -> ComposeResult:
        from edge_chat.widgets.markdown import MarkdownPage

        with Vertical(classes="dialog-box -large"):
            yield from self._heading()
            with VerticalScroll():
                yield MarkdownPage(self._text, is_plain=self.app.has_class("-plain"))
            yield Static("Esc closes; arrow keys scroll.", classes="dialog-keys")

    def on_mount(self) -> None:
        """Focus the text, so that keys scroll it."""
        self.query_one(VerticalScroll).focus()

    def action_scroll(self, step: int) -> None:
        """Scroll by `step` lines."""
        self.query_one(VerticalScroll).scroll_relative(y=step, animate=False)

    def on_key(self, event: events.Key) -> None:
        """Page with Space and b, as in less."""
        page = self.query_one(VerticalScroll)
        if event.key == "space":
            page.scroll_page_down(animate=False)
        elif event.key == "b":
            page.scroll_page_up(animate=False)
