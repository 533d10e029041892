"""A list to pick from, filtered by typing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.fuzzy import Matcher
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from edge_chat import format as fmt
from edge_chat.commands import Completion
from edge_chat.screens.dialogs import Dialog
from edge_chat.widgets.choice_list import ChoiceList
from edge_chat.widgets.columns import lay_out

__all__ = ["Picker"]

_WIDTH = 68  # cells of a line before the list is laid out


class Picker(Dialog["str | None"]):
    """A list to pick from, filtered by typing; None if cancelled.

    Args:
        title: above the list.
        choices: the lines.
        current: value of the line to highlight first.
        note: below the list, where the highlighted line says nothing about itself.
        in_use: value of the line to mark as being in use; None if there is no such thing.
        on_highlight: called with a value as the highlight moves, for a preview.
        free_text: Enter on a text that matches no line returns that text.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down", "move('cursor_down')", "Down", show=False, priority=True),
        Binding("up", "move('cursor_up')", "Up", show=False, priority=True),
        Binding("pagedown", "move('page_down')", "Page down", show=False, priority=True),
        Binding("pageup", "move('page_up')", "Page up", show=False, priority=True),
    ]

    def __init__(
        self,
        title: str,
        choices: Sequence[Completion],
        current: str = "",
        *,
        note: str = "",
        in_use: str | None = None,
        on_highlight: Callable[[str], None] | None = None,
        free_text: bool = False,
    ) -> None:
        super().__init__(title, note)
        self._choices = list(choices)
        self._shown: list[Completion] = []
        self._current = current
        self._in_use = in_use
        self._on_highlight = on_highlight
        self._free_text = free_text
        self._filled_width = 0
        self.mounted = asyncio.Event()

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog-box -list"):
            yield Static(self._title_text, classes="dialog-title", markup=False)
            yield Input(placeholder="Type to filter" + (", or any reference" if self._free_text else ""))
            yield ChoiceList(markup=False)
            yield Static(classes="dialog-note", markup=False)
            yield Static("Enter selects, Esc cancels.", classes="dialog-keys")

    def on_mount(self) -> None:
        """Show all lines."""
        self._fill("")
        self.mounted.set()

    def on_resize(self) -> None:
        """Align the lines again when the list has another width."""
        self.call_after_refresh(self._align)

    def set_note(self, note: str) -> None:
        """Change the note."""
        self._note = note
        self._show_note()

    def set_choices(self, choices: Sequence[Completion]) -> None:
        """Show other lines."""
        self._choices = list(choices)
        self._fill(self.query_one(Input).value)

    def action_move(self, action: str) -> None:
        """Move the highlight while the focus stays in the field."""
        getattr(self.query_one(OptionList), f"action_{action}")()

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        self._fill(event.value.strip())

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        chosen = self._highlighted
        if chosen is not None:
            self.dismiss(chosen.value)
        elif self._free_text and event.value.strip():
            self.dismiss(event.value.strip())

    @on(OptionList.OptionSelected)
    def _selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option.id)

    @on(OptionList.OptionHighlighted)
    def _moved(self, event: OptionList.OptionHighlighted) -> None:
        self._show_note()
        if self._on_highlight is not None and event.option.id is not None:
            self._on_highlight(event.option.id)

    @property
    def _highlighted(self) -> Completion | None:
        number = self.query_one(OptionList).highlighted
        return self._shown[number] if number is not None and number < len(self._shown) else None

    def _show_note(self) -> None:
        chosen = self._highlighted
        note = fmt.clean(chosen.about) if chosen is not None and chosen.about else self._note
        line = self.query_one(".dialog-note", Static)
        line.update(note)
        line.display = bool(note)

    def _fill(self, typed: str) -> None:
        """Show the lines that match, the best first."""
        listed = self.query_one(OptionList)
        self._shown = self._choices
        if typed:
            matcher = Matcher(typed)
            scored = [(matcher.match(f"{c.label} {c.detail} {c.about}"), c) for c in self._choices]
            self._shown = [c for score, c in sorted(scored, key=lambda pair: -pair[0]) if score > 0]
        listed.clear_options()
        listed.add_options(Option("", id=choice.value) for choice in self._shown)
        self._align(is_new=True)
        if self._shown:
            values = [choice.value for choice in self._shown]
            listed.highlighted = values.index(self._current) if not typed and self._current in values else 0
        self._show_note()

    def _align(self, *, is_new: bool = False) -> None:
        """Write the lines for the width of the list."""
        listed = self.query_one(OptionList)
        width = listed.scrollable_content_region.width or _WIDTH
        if width == self._filled_width and not is_new:
            return
        self._filled_width = width
        lines = lay_out(self._shown, width, in_use=self._in_use, is_plain=self.app.has_class("-plain"))
        for number, line in enumerate(lines):
            listed.replace_option_prompt_at_index(number, line)
