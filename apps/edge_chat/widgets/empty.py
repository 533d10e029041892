"""The content of a new conversation: the state of the model, the last conversations, and first steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.style import Style
from textual.widgets import Static

from edge_chat import format as fmt
from edge_chat.widgets.rows import fit, make_rows

if TYPE_CHECKING:
    from edge.conversation import ConversationInfo

__all__ = ["STAYS_HERE", "EmptyState"]


STAYS_HERE = "A language model on this device. Nothing you type leaves it."


class EmptyState(Vertical):
    """The content of a new conversation: the state of the model, the last conversations, and first steps.

    Args:
        tips: the first steps as (keys, what they do).
        model: the state of the model.
        how_to_open: returns how to open one of the last conversations, in words, given their number.
        promise: what is true of all that is typed.

    Attributes:
        recent: the last conversations, the newest first.
    """

    @dataclass
    class GoOn(Message):
        """Open one of the last conversations."""

        conversation_id: str

    def __init__(
        self, tips: list[tuple[str, str]], model: str, how_to_open: Callable[[int], str], promise: str = STAYS_HERE
    ) -> None:
        super().__init__(id="empty")
        self._promise = promise
        self._tips = tips
        self._model = model
        self._how_to_open = how_to_open
        self.recent: list[ConversationInfo] = []
        self._now = 0.0
        self._typed = ""

    def compose(self) -> ComposeResult:
        yield Static(Content.styled("edge", "bold $primary"), classes="empty-title")
        yield Static(Content(fmt.clean(self._promise)), classes="empty-line")
        yield Static(Content(fmt.clean(self._model)), id="empty-model", classes="empty-line")
        yield Static("", id="empty-recent")
        width = max(len(keys) for keys, _ in self._tips)
        lines: list[Content | str | tuple[str, str]] = []
        for keys, what in self._tips:
            lines += [(f"{keys:<{width}}", "bold $text-accent"), ("   ", ""), f"{what}\n"]
        yield Static(Content.assemble(*lines).rstrip(), classes="empty-tips")

    def show_model(self, text: str) -> None:
        """Show another state of the model."""
        self._model = text
        for line in self.query("#empty-model").results(Static):
            line.update(Content(fmt.clean(text)))

    def show_recent(self, infos: Sequence[ConversationInfo], now: float) -> None:
        """Offer conversations to go on with. `now` is Unix time in seconds."""
        self.recent, self._now = list(infos), now
        self.set_class(bool(infos), "-recent")
        self._show_recent()

    def named(self, typed: str) -> ConversationInfo | None:
        """Return the conversation that a text in the message box names: the newest for no text, else that of its number."""
        names = {str(number): info for number, info in enumerate(self.recent, 1)}
        return names.get(typed.strip() or "1") if len(typed) < 2 else None

    def mark(self, typed: str) -> None:
        """Mark the conversation that Enter would open."""
        if typed != self._typed:
            self._typed = typed
            self._show_recent()

    def action_go_on(self, number: int) -> None:
        """Open one that was clicked."""
        if number < len(self.recent):
            self.post_message(self.GoOn(self.recent[number].id))

    def on_resize(self) -> None:
        """Cut the titles for another width."""
        self._show_recent()

    def _show_recent(self) -> None:
        for line in self.query("#empty-recent").results(Static):
            line.display = bool(self.recent)
            line.update(self._recent_lines())

    def _recent_lines(self) -> Content:
        is_plain = self.app.has_class("-plain")
        width = max(20, min(60, self.size.width - 2))
        rows = make_rows(self.recent, now=self._now, width=width - 4, is_plain=is_plain)
        chosen = self.named(self._typed)
        lines: list[Content | str | tuple[str, str | Style]] = [("Go on with", "bold $foreground 70%")]
        for number, info in enumerate(self.recent):
            row, is_chosen = rows[info.id], info is chosen
            mark = (">" if is_plain else "▸") if is_chosen else " "
            title = fit(row.fork + row.title, width - 5 - cell_len(row.when))
            gap = " " * (width - 4 - cell_len(title) - cell_len(row.when))
            lines += [
                (f"\n{mark} {number + 1} ", "bold $text-accent"),
                (title, Style.from_meta({"@click": f"go_on({number})"}) + Style(bold=is_chosen)),
                (f"{gap}{row.when}", "$foreground 70%"),
            ]
        return Content.assemble(*lines, (f"\n{self._how_to_open(len(self.recent))}", "$foreground 70%"))
