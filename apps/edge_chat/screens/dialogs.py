"""Small dialogs: a question, a line or page of text to change, a list to choose from, a page to read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar, cast

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.fuzzy import Matcher
from textual.screen import ModalScreen
from textual.widgets import Button, Input, OptionList, Static, TextArea
from textual.widgets.option_list import Option

from edge_chat import format as fmt

if TYPE_CHECKING:
    from edge_chat.app import ChatApp

__all__ = ["AskText", "Choice", "Confirm", "Dialog", "EditText", "Picker", "ReadPage"]


T = TypeVar("T")


class Dialog(ModalScreen[T]):
    """What all dialogs have in common."""

    def __init__(self) -> None:
        super().__init__(classes="dialog")

    def on_mount(self) -> None:
        """Cursors blink in dialogs as they do in the chat. (Textual calls this besides the on_mount of each dialog.)"""
        blinks = cast("ChatApp", self.app).blinks
        for field in [*self.query(Input), *self.query(TextArea)]:
            field.cursor_blink = blinks


class Confirm(Dialog[bool]):
    """A question that is answered with a verb or not at all.

    Args:
        question: one sentence.
        verb: what happens, on the button.
        detail: what that means.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,n", "dismiss(False)", "No", show=False),
        Binding("y", "dismiss(True)", "Yes", show=False),
        Binding("left,right", "app.focus_next", "Other button", show=False),
    ]

    def __init__(self, question: str, verb: str, detail: str = "") -> None:
        super().__init__()
        self._question = question
        self._verb = verb
        self._detail = detail

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog-box -small"):
            yield Static(self._question, classes="dialog-title", markup=False)
            if self._detail:
                yield Static(self._detail, markup=False)
            with Horizontal(classes="dialog-buttons"):
                yield Button(f"{self._verb} (y)", id="yes", variant="error")
                yield Button("Cancel (Esc)", id="no")

    def on_mount(self) -> None:
        """The harmless button has the focus."""
        self.query_one("#no").focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Answer."""
        self.dismiss(event.button.id == "yes")


class AskText(Dialog["str | None"]):
    """One line of text. None when it was left with Esc.

    Args:
        title: what it is.
        value: what it is now.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Cancel", show=False)]

    def __init__(self, title: str, value: str = "") -> None:
        super().__init__()
        self._title_text = title
        self._value = value

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog-box -small"):
            yield Static(self._title_text, classes="dialog-title", markup=False)
            yield Input(self._value)
            yield Static("Enter accepts, Esc cancels.", classes="dialog-keys")

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        self.dismiss(event.value.strip())


class EditText(Dialog["str | None"]):
    """Several lines of text. None when it was left with Esc.

    Args:
        title: what it is.
        value: what it is now.
        note: what to know about it.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Cancel", show=False),
        Binding("ctrl+s", "accept", "Save", show=False, priority=True),
    ]

    def __init__(self, title: str, value: str, note: str = "") -> None:
        super().__init__()
        self._title_text = title
        self._value = value
        self._note = note

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog-box"):
            yield Static(self._title_text, classes="dialog-title", markup=False)
            if self._note:
                yield Static(self._note, markup=False)
            yield TextArea(self._value, soft_wrap=True, highlight_cursor_line=False)
            yield Static("Ctrl+S saves, Esc cancels.", classes="dialog-keys")

    def on_mount(self) -> None:
        """Go on where the text ends."""
        area = self.query_one(TextArea)
        area.move_cursor(area.document.end)

    def action_accept(self) -> None:
        """Give the text back."""
        self.dismiss(self.query_one(TextArea).text.strip())


@dataclass(frozen=True, slots=True)
class Choice:
    """A line of a Picker: what is given back, what is shown, and a quieter explanation."""

    value: str
    label: str
    detail: str = ""


class Picker(Dialog["str | None"]):
    """A list to choose from, narrowed down by typing. None when it was left with Esc.

    Args:
        title: what is chosen.
        choices: the lines.
        current: value of the line that is marked at first.
        note: what to know about it.
        on_highlight: called with a value as the mark moves, to show what it would be like.
        free_text: Enter on a text that matches no line gives that text back.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Cancel", show=False),
        Binding("down", "move(1)", "Down", show=False, priority=True),
        Binding("up", "move(-1)", "Up", show=False, priority=True),
    ]

    def __init__(
        self,
        title: str,
        choices: Sequence[Choice],
        current: str = "",
        *,
        note: str = "",
        on_highlight: Callable[[str], None] | None = None,
        free_text: bool = False,
    ) -> None:
        super().__init__()
        self._title_text = title
        self._choices = list(choices)
        self._current = current
        self._note = note
        self._on_highlight = on_highlight
        self._free_text = free_text
        self.mounted = asyncio.Event()

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog-box"):
            yield Static(self._title_text, classes="dialog-title", markup=False)
            yield Input(placeholder="Type to narrow down" + (", or any reference" if self._free_text else ""))
            yield OptionList(markup=False)
            yield Static(self._note, classes="dialog-note", markup=False)
            yield Static("Enter chooses, Esc cancels.", classes="dialog-keys")

    def on_mount(self) -> None:
        """Show everything."""
        self.query_one(".dialog-note").display = bool(self._note)
        self._fill("")
        self.mounted.set()

    def set_note(self, note: str) -> None:
        """Change what is said below the list."""
        self._note = note
        line = self.query_one(".dialog-note", Static)
        line.update(note)
        line.display = bool(note)

    def set_choices(self, choices: Sequence[Choice]) -> None:
        """Show other lines, for example when the rest of them has been found out."""
        self._choices = list(choices)
        self._fill(self.query_one(Input).value)

    def action_move(self, step: int) -> None:
        """Move the mark while the focus stays in the field."""
        listed = self.query_one(OptionList)
        if step > 0:
            listed.action_cursor_down()
        else:
            listed.action_cursor_up()

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        self._fill(event.value.strip())

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        listed = self.query_one(OptionList)
        if listed.highlighted is not None:
            self.dismiss(listed.get_option_at_index(listed.highlighted).id)
        elif self._free_text and event.value.strip():
            self.dismiss(event.value.strip())

    @on(OptionList.OptionSelected)
    def _selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option.id)

    @on(OptionList.OptionHighlighted)
    def _highlighted(self, event: OptionList.OptionHighlighted) -> None:
        if self._on_highlight is not None and event.option.id is not None:
            self._on_highlight(event.option.id)

    def _fill(self, typed: str) -> None:
        listed = self.query_one(OptionList)
        shown = self._choices
        if typed:
            matcher = Matcher(typed)
            scored = [(matcher.match(f"{c.label} {c.detail}"), c) for c in self._choices]
            shown = [c for score, c in sorted(scored, key=lambda pair: -pair[0]) if score > 0]
        width = min(40, max((len(c.label) for c in shown), default=0))
        listed.clear_options()
        listed.add_options(
            Option(Content.assemble(f"{c.label:<{width}}  ", (fmt.clean(c.detail), "$foreground 70%")), id=c.value)
            for c in shown
        )
        if shown:
            values = [c.value for c in shown]
            listed.highlighted = values.index(self._current) if not typed and self._current in values else 0


class ReadPage(Dialog[None]):
    """A page of Markdown to read.

    Args:
        title: above it.
        text: the page.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter", "dismiss", "Close", show=False),
        Binding("down,j", "scroll(1)", "Down", show=False),
        Binding("up,k", "scroll(-1)", "Up", show=False),
    ]

    def __init__(self, title: str, text: str) -> None:
        super().__init__()
        self._title_text = title
        self._text = text

    def compose(self) -> ComposeResult:
        from edge_chat.widgets.markdown import ReplyMarkdown

        with Vertical(classes="dialog-box -large"):
            yield Static(self._title_text, classes="dialog-title", markup=False)
            with VerticalScroll():
                yield ReplyMarkdown(self._text, bullets=not self.app.has_class("-plain"))
            yield Static("Up, Down and Page keys scroll, Esc closes.", classes="dialog-keys")

    def on_mount(self) -> None:
        """Keys scroll right away."""
        self.query_one(VerticalScroll).focus()

    def action_scroll(self, step: int) -> None:
        """Scroll by a line."""
        self.query_one(VerticalScroll).scroll_relative(y=step, animate=False)

    def on_key(self, event: events.Key) -> None:
        """Blank and b page as in less."""
        page = self.query_one(VerticalScroll)
        if event.key == "space":
            page.scroll_page_down(animate=False)
        elif event.key == "b":
            page.scroll_page_up(animate=False)
