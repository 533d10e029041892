"""The list of conversations, with a search as you type."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rich.cells import cell_len
from textual import events, on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.timer import Timer
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from edge_chat import format as fmt
from edge_chat.keys import bindings
from edge_chat.table import REGISTRY
from edge_chat.widgets.choice_list import ChoiceList
from edge_chat.widgets.rows import Row, fit, make_rows

if TYPE_CHECKING:
    from edge.conversation import ConversationInfo, SearchHit

__all__ = ["Sidebar"]

_SEARCH_DELAY_S = 0.12
_MARK = 2  # cells before each row, for the mark of the conversation on the screen
_WIDTH = 27  # cells of a row before the list is laid out


class ConversationList(ChoiceList):
    """The list. An option's id is "conversation", or "conversation/node" for a found message."""

    BINDINGS: ClassVar[list[BindingType]] = list(bindings(REGISTRY, "sidebar"))

    @property
    def chosen_id(self) -> str | None:
        """Return the id of the highlighted conversation."""
        if self.highlighted is None:
            return None
        option_id = self.get_option_at_index(self.highlighted).id
        return option_id.partition("/")[0] if option_id else None


class Sidebar(Vertical):
    """The search field and the list."""

    @dataclass
    class Chosen(Message):
        """Show a conversation, and optionally a message in it."""

        conversation_id: str
        node_id: int | None

    @dataclass
    class SearchWanted(Message):
        """Typing in the search field has paused, or ended with Enter, which opens the first hit; "" asks for the plain list."""

        text: str
        opens: bool = False

    @dataclass
    class Left(Message):
        """The user left the sidebar."""

    def __init__(self) -> None:
        super().__init__(id="sidebar")
        self._timer: Timer | None = None
        self._fill_again: Callable[[], None] = lambda: None
        self._searched = ""
        self._filled_width = 0

    def compose(self) -> ComposeResult:
        yield Static("Conversations", id="sidebar-title", markup=False)
        yield Input(placeholder="Search", id="search", compact=True)
        yield ConversationList(id="conversations", markup=False, compact=True)
        yield Static("", id="sidebar-note", markup=False)
        yield Static("", id="sidebar-keys", markup=False)

    @property
    def listing(self) -> ConversationList:
        return self.query_one(ConversationList)

    def show_keys(self, text: str) -> None:
        """Show key hints where the sidebar covers those below the composer; "" hides them."""
        line = self.query_one("#sidebar-keys", Static)
        line.update(text)
        line.display = bool(text)

    @property
    def search(self) -> Input:
        return self.query_one("#search", Input)

    def show_conversations(
        self, infos: Sequence[ConversationInfo], *, active: str | None, busy: frozenset[str], now: float
    ) -> None:
        """List conversations, newest first, under the days of their last use.

        Args:
            infos: the conversations.
            active: the one on the screen.
            busy: those in which a reply is being generated.
            now: Unix time in seconds.
        """
        self._fill_again = lambda: self.show_conversations(infos, active=active, busy=busy, now=now)
        self._searched = ""
        rows = make_rows(infos, now=now, width=self._room, is_plain=self._is_plain)
        options: list[Option | None] = []
        group = ""
        for info in infos:
            this_group = fmt.day_group(info.updated, now)
            if this_group != group:
                options += [None] if group and not self._is_plain else []
                options.append(Option(Content.styled(this_group, "$foreground 70% bold"), disabled=True))
                group = this_group
            options.append(Option(self._line(rows[info.id], is_active=info.id == active, is_busy=info.id in busy), id=info.id))
        self._fill(options, active)
        self.query_one("#sidebar-note", Static).update("" if options else "No conversations yet.")

    def show_hits(self, hits: Sequence[SearchHit], text: str, *, now: float) -> None:
        """List search hits: the title, and the words around each match."""
        from edge.conversation.search import find_matches

        self._fill_again = lambda: self.show_hits(hits, text, now=now)
        self._searched = text
        rows = make_rows((hit.conversation for hit in hits), now=now, width=self._room, is_plain=self._is_plain)
        options: dict[str, Option | None] = {}  # by id, since a conversation may match by its title and by its messages
        for hit in hits:
            option_id = hit.conversation.id if hit.node_id is None else f"{hit.conversation.id}/{hit.node_id}"
            prompt = self._line(rows[hit.conversation.id])
            in_title = find_matches(prompt.plain, text) if hit.node_id is None else []
            for start, end in in_title:
                prompt = prompt.stylize("bold underline", start, end)
            if not in_title:  # in a message, or in the part of the title that is cut off
                text_around, matches = crop(fmt.clean(hit.snippet), hit.matches, self._room - 2)
                snippet = Content(text_around).stylize("auto 80%")
                for start, end in matches:
                    snippet = snippet.stylize("bold underline", start, end)
                prompt = Content("\n").join([prompt, Content("    ") + snippet])
            options.setdefault(option_id, Option(prompt, id=option_id))
        self._fill(list(options.values()), None)
        note = f"{fmt.plural(len(hits), 'hit')}." if hits else f"Nothing found for “{fmt.one_line(text, 20)}”."
        self.query_one("#sidebar-note", Static).update(note)

    @property
    def _is_plain(self) -> bool:
        return self.app.has_class("-plain")

    @property
    def _room(self) -> int:
        """Return the cells of a row after its mark."""
        return (self.listing.scrollable_content_region.width or _WIDTH + _MARK) - _MARK

    def _line(self, row: Row, *, is_active: bool = False, is_busy: bool = False) -> Content:
        marks = ("* " if self._is_plain else "● ") if is_active else "  "
        ending = "generating" if is_busy else row.when
        room = self._room - cell_len(row.fork) - cell_len(ending) - 1
        title = fit(row.title, room)
        return Content.assemble(
            (marks, "bold"),
            (row.fork, "bold"),
            (title, "bold" if is_active else ""),
            " " * (1 + max(0, room - cell_len(title))),
            (ending, "bold" if is_busy else "auto 80%"),
        )

    def on_resize(self) -> None:
        if self._room != self._filled_width:
            self._fill_again()

    def _fill(self, options: list[Option | None], active: str | None) -> None:
        listed = self.listing
        self._filled_width = self._room
        # With the focus in the list its highlight stays; otherwise it moves to the conversation on the screen.
        before = (listed.chosen_id if listed.has_focus else None) or active
        listed.clear_options()
        listed.add_options(options)
        for index in range(listed.option_count):
            if before is not None and (listed.get_option_at_index(index).id or "").partition("/")[0] == before:
                listed.highlighted = index
                break
        else:
            listed.action_first()

    @on(Input.Changed, "#search")
    def _typed(self, event: Input.Changed) -> None:
        event.stop()
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_timer(_SEARCH_DELAY_S, lambda: self._want(event.value.strip()))

    @property
    def is_waiting_to_search(self) -> bool:
        """Return whether a search starts once typing pauses."""
        return self._timer is not None

    def _want(self, text: str) -> None:
        self._timer = None
        self.post_message(self.SearchWanted(text))

    @on(Input.Submitted, "#search")
    def _submitted(self, event: Input.Submitted) -> None:
        event.stop()
        text = event.value.strip()
        if self._timer is not None:
            self._timer.stop()
            self._timer = None
        if not text:
            self._want("")
            self.listing.focus()
        elif text == self._searched:
            self.listing.action_select()
        else:  # search now, since the list has the hits of an older text
            self.post_message(self.SearchWanted(text, opens=True))

    @on(OptionList.OptionSelected)
    def _selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        conversation_id, _, node_id = (event.option.id or "").partition("/")
        if conversation_id:
            self.post_message(self.Chosen(conversation_id, int(node_id) if node_id else None))

    def on_key(self, event: events.Key) -> None:
        """Move from the search field into the list with Down; clear the search, then leave, with Esc."""
        if event.key == "down" and self.search.has_focus:
            event.stop()
            self.listing.focus()
        elif event.key == "escape":
            event.stop()
            if self.search.value:
                self.search.value = ""
            else:
                self.post_message(self.Left())


def crop(text: str, matches: Sequence[tuple[int, int]], width: int) -> tuple[str, list[tuple[int, int]]]:
    """Return `width` characters of a snippet on one line around its first match, and the matches in them as (start, end)."""
    kept = [n for n, c in enumerate(text) if not c.isspace() or (n and not text[n - 1].isspace())]  # runs of blanks are one
    flat = "".join(" " if text[n].isspace() else text[n] for n in kept)
    inside = [(bisect_left(kept, a), bisect_left(kept, b)) for a, b in matches]
    first = inside[0][0] if inside else 0
    start = 0 if first < width * 2 // 3 else first - width // 3
    part = ("…" if start else "") + flat[start:]
    end = len(part)
    if end > width:
        end = len(part[: width - 1].rstrip())
        part = part[:end] + "…"
    shift = start - (1 if start else 0)
    moved = [(a - shift, min(b - shift, end)) for a, b in inside]
    return part, [(a, b) for a, b in moved if 0 <= a < b]
