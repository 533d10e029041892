"""The completion popup above the composer: commands, arguments and files."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from edge_chat import format as fmt
from edge_chat.commands import Completion

__all__ = ["CompletionPopup"]

_MAX_LABEL = 44


class CompletionPopup(OptionList, can_focus=False):
    """Proposals, one of them highlighted. The composer keeps the focus and moves the highlight.

    Attributes:
        made_for: the text before the cursor that the proposals were made for.
    """

    def __init__(self) -> None:
        super().__init__(id="completions", markup=False)
        self._shown: list[Completion] = []
        self.made_for = ""
        self.display = False

    @property
    def is_open(self) -> bool:
        """Return whether proposals are shown."""
        return bool(self.display)

    @property
    def chosen(self) -> Completion | None:
        """Return the highlighted proposal."""
        return self._shown[self.highlighted] if self.is_open and self.highlighted is not None else None

    def open(self, completions: Sequence[Completion], made_for: str = "") -> None:
        """Show proposals for the text before the cursor; none closes the popup."""
        shown = list(completions)
        self.made_for = made_for
        if shown == self._shown and self.is_open:
            return
        self._shown = shown
        self.display = bool(shown)
        self.clear_options()
        if shown:
            width = min(_MAX_LABEL, max(len(c.label) for c in shown))
            self.add_options(Option(self._line(c, width)) for c in shown)
            self.highlighted = 0

    def close(self) -> None:
        """Close the popup."""
        self.open([])

    def move(self, step: int) -> None:
        """Move the highlight, wrapping around."""
        if self._shown:
            self.highlighted = ((self.highlighted or 0) + step) % len(self._shown)

    def _line(self, completion: Completion, width: int) -> Content:
        label = fmt.one_line(fmt.clean(completion.label), width)
        if not completion.detail:
            return Content(label)
        return Content.assemble(f"{label:<{width}}", "  ", (fmt.clean(completion.detail), "$foreground 70%"))
