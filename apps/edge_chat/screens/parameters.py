"""The editor of sampling parameters: a list, and one field for the highlighted one, checked while typing."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from edge.errors import UsageError
from edge.types import Sampling
from edge_chat.commands import Completion
from edge_chat.parameters import PARAMETERS, describe, with_value
from edge_chat.screens.dialogs import Dialog
from edge_chat.widgets.choice_list import ChoiceList
from edge_chat.widgets.columns import lay_out

__all__ = ["ParameterEditor"]

_WIDTH = 90  # cells of a line before the list is laid out


class ParameterEditor(Dialog["Sampling | None"]):
    """All sampling parameters; the result is the changed sampling, or None if cancelled.

    A field for each of them would cost a second to build, and would not fit into a small terminal.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "accept", "Save", show=False, priority=True),
        Binding("ctrl+r", "restore", "Defaults", show=False, priority=True),
        Binding("down,tab", "move('cursor_down')", "Next", show=False, priority=True),
        Binding("up,shift+tab", "move('cursor_up')", "Previous", show=False, priority=True),
        Binding("pagedown", "move('page_down')", "Page down", show=False, priority=True),
        Binding("pageup", "move('page_up')", "Page up", show=False, priority=True),
    ]

    def __init__(self, sampling: Sampling, default: Sampling) -> None:
        super().__init__("Parameters")
        self._sampling = sampling
        self._values = {name: describe(sampling, name) for name in PARAMETERS}
        self._defaults = {name: describe(default, name) for name in PARAMETERS}
        self._errors: dict[str, str] = {}
        self._names = list(PARAMETERS)
        self._filled_width = 0
        self._shown = self._names[0]  # in the field

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog-box -tall"):
            yield from self._heading()
            with Horizontal(id="parameter"):
                yield Static(id="parameter-name", markup=False)
                yield Input(compact=True)
            yield Static(id="parameter-note", markup=False)
            yield ChoiceList(*(Option(name, id=name) for name in self._names), markup=False)
            yield Static("Enter saves for this session, Esc cancels, Ctrl+R restores defaults.", classes="dialog-keys")

    def on_mount(self) -> None:
        """Type into the field of the first parameter."""
        listed = self.query_one(OptionList)
        listed.can_focus = False
        listed.highlighted = 0
        self.query_one(Input).focus()
        self._show_chosen()
        self._align()

    def on_resize(self) -> None:
        """Align the lines again when the list has another width."""
        self.call_after_refresh(self._align)

    @property
    def chosen(self) -> str:
        """Return the name of the highlighted parameter."""
        return self._names[self.query_one(OptionList).highlighted or 0]

    @property
    def errors(self) -> dict[str, str]:
        """Return the parameters whose values are wrong, and why."""
        return self._errors

    def action_move(self, action: str) -> None:
        """Highlight another parameter while the focus stays in the field."""
        getattr(self.query_one(OptionList), f"action_{action}")()

    @on(OptionList.OptionHighlighted)
    def _moved(self) -> None:
        self._show_chosen()

    @on(OptionList.OptionSelected)
    def _clicked(self, event: OptionList.OptionSelected) -> None:
        event.stop()

    @on(Input.Changed)
    def _changed(self, event: Input.Changed) -> None:
        # The field may have the value of the next parameter already: what is said of the one before is old news.
        if event.value == event.input.value:
            self._take(event.value)

    def _take(self, value: str) -> None:
        """Change the parameter in the field; the highlight may be further on."""
        if self._values[self._shown] != value:
            self._set(self._shown, value)
            self._show_note()
            self._align(is_changed=True)

    @on(Input.Submitted)
    def _submitted(self) -> None:
        self.action_accept()

    def action_accept(self) -> None:
        """Return the parameters, or go to the first with an error."""
        self._take(self.query_one(Input).value)
        if self._errors:
            self.query_one(OptionList).highlighted = self._names.index(min(self._errors, key=self._names.index))
            return
        sampling = self._sampling
        for name, value in self._values.items():
            sampling = with_value(sampling, name, value)
        self.dismiss(sampling)

    def action_restore(self) -> None:
        """Restore the defaults."""
        for name, value in self._defaults.items():
            self._set(name, value)
        self._show_chosen()
        self._align(is_changed=True)

    def _set(self, name: str, value: str) -> None:
        self._values[name] = value
        self._errors.pop(name, None)
        try:
            with_value(self._sampling, name, value)
        except UsageError as refused:
            self._errors[name] = str(refused)

    def _show_chosen(self) -> None:
        """Put the highlighted parameter into the field."""
        name, field = self.chosen, self.query_one(Input)
        self._shown = name
        self.query_one("#parameter-name", Static).update(name)
        field.value = self._values[name]
        field.cursor_position = len(field.value)
        self._show_note()

    def _show_note(self) -> None:
        """Show the explanation and the default of the parameter in the field, or what is wrong with its value."""
        name, note = self._shown, self.query_one("#parameter-note", Static)
        error = self._errors.get(name)
        about = PARAMETERS[name].help
        note.update(error or f"{about[:1].upper()}{about[1:]}. The default is {self._defaults[name] or 'empty'}.")
        note.set_class(error is not None, "-wrong")

    def _align(self, *, is_changed: bool = False) -> None:
        """Write the lines for the width of the list."""
        listed = self.query_one(OptionList)
        width = listed.scrollable_content_region.width or _WIDTH
        if width == self._filled_width and not is_changed:
            return
        self._filled_width = width
        lines = lay_out([self._line(name) for name in self._names], width)
        for number, (name, line) in enumerate(zip(self._names, lines, strict=True)):
            shown = line.stylize("$text-error") if name in self._errors else line
            listed.replace_option_prompt_at_index(number, shown)

    def _line(self, name: str) -> Completion:
        value = self._values[name]
        mark = "wrong" if name in self._errors else "changed" if value != self._defaults[name] else ""
        return Completion(name, name, PARAMETERS[name].help, (value or "-",), aside=mark)
