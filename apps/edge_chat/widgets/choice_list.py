"""A list of lines to pick from."""

from __future__ import annotations

from textual.geometry import Size
from textual.widgets import OptionList

__all__ = ["ChoiceList"]


class ChoiceList(OptionList):
    """A list that shows its highlight, scrolled no further than its size needs.

    Lines may come before the list has been laid out, when it is one line high: what it scrolled to then does not hold later.
    """

    _scrolled_at: Size | None = None

    def on_resize(self) -> None:
        """Scroll again for another size."""
        if self.size != self._scrolled_at:
            self._scrolled_at = self.size
            self.scroll_to(y=0, animate=False, immediate=True)
            self.scroll_to_highlight()
