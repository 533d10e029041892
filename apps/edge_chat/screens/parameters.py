"""The editor of sampling parameters: one line each, checked while typing."""

from __future__ import annotations

from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import Input, Static

from edge.errors import UsageError
from edge.types import Sampling
from edge_chat.parameters import PARAMETERS, describe, with_value
from edge_chat.screens.dialogs import Dialog

__all__ = ["ParameterEditor"]


class ParameterLine(Vertical):
    """Name, value and explanation of one parameter, with an error below them."""

    def __init__(self, name: str, value: str) -> None:
        super().__init__(classes="parameter")
        self.parameter = name
        self._value = value

    def compose(self) -> ComposeResult:
        with Horizontal():
            yield Static(self.parameter, classes="parameter-name", markup=False)
            yield Input(self._value, compact=True, name=self.parameter)
            yield Static(PARAMETERS[self.parameter].help, classes="parameter-help", markup=False)
        yield Static("", classes="parameter-error", markup=False)

    def show_error(self, text: str) -> None:
        """Show what is wrong with the value; "" for nothing."""
        line = self.query_one(".parameter-error", Static)
        line.update(text)
        line.display = bool(text)


class ParameterEditor(Dialog["Sampling | None"]):
    """All sampling parameters; the result is the changed sampling, or None if cancelled."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "accept", "Save", show=False, priority=True),
        Binding("enter", "accept", "Save", show=False),
        Binding("ctrl+r", "restore", "Defaults", show=False, priority=True),
        Binding("down", "app.focus_next", "Next", show=False, priority=True),
        Binding("up", "app.focus_previous", "Previous", show=False, priority=True),
    ]

    def __init__(self, sampling: Sampling, default: Sampling) -> None:
        super().__init__("Parameters")
        self._sampling = sampling
        self._default = default

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog-box -tall"):
            yield from self._heading()
            with VerticalScroll(can_focus=False):
                for name in PARAMETERS:
                    yield ParameterLine(name, describe(self._sampling, name))
            yield Static("", id="parameter-note", markup=False)
            yield Static("Enter saves for this session, Ctrl+R restores defaults, Esc cancels.", classes="dialog-keys")

    def on_mount(self) -> None:
        self.query(Input).first().focus()

    @on(Input.Changed)
    def _changed(self, event: Input.Changed) -> None:
        self._check()

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        """Show the default of the focused parameter."""
        if isinstance(event.widget, Input) and event.widget.name is not None:
            default = describe(self._default, event.widget.name) or "empty"
            self.query_one("#parameter-note", Static).update(f"{event.widget.name}: the default is {default}.")

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        self.action_accept()

    def action_accept(self) -> None:
        """Return the parameters, or focus the first with an error."""
        sampling = self._check()
        if sampling is not None:
            self.dismiss(sampling)
            return
        for line in self.query(ParameterLine):
            if line.has_class("-wrong"):
                line.query_one(Input).focus()
                return

    def action_restore(self) -> None:
        """Put the defaults into the fields."""
        for line in self.query(ParameterLine):
            line.query_one(Input).value = describe(self._default, line.parameter)

    def _check(self) -> Sampling | None:
        """Read all fields and show their errors; return None if there are any."""
        sampling: Sampling = self._sampling
        n_wrong = 0
        for line in self.query(ParameterLine):
            error = ""
            try:
                sampling = with_value(sampling, line.parameter, line.query_one(Input).value)
            except UsageError as refused:
                error = str(refused)
                n_wrong += 1
            line.set_class(bool(error), "-wrong")
            line.show_error(error)
        return sampling if not n_wrong else None
