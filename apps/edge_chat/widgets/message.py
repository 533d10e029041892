"""The view of one message."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rich.cells import cell_len
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.style import Style
from textual.widgets import Static

from edge.citations import read_answer
from edge.units import size_text
from edge_chat import format as fmt
from edge_chat.documents import said_about
from edge_chat.keys import bindings
from edge_chat.table import REGISTRY
from edge_chat.widgets.fold import Fold
from edge_chat.widgets.passages import Passages

if TYPE_CHECKING:
    from textual.widget import Widget

    from edge.citations import Citation
    from edge.conversation import Attachment, Node
    from edge.types import ToolCall
    from edge_chat.markup.tables import Table
    from edge_chat.widgets.markdown import ReplyMarkdown

__all__ = ["MessageView"]

_STATUS_TEXT = {"stopped": "stopped", "failed": "failed", "partial": "unfinished"}


class MessageView(Vertical, can_focus=True):
    """A message with its author, state, branches and attachments. Select it with Ctrl+Up; single keys then act on it.

    Attributes:
        node_id: the saved message; None while it is not saved yet.
    """

    FOCUS_ON_CLICK: ClassVar[bool] = False  # a click selects text; typing still goes to the composer
    BINDINGS: ClassVar[list[BindingType]] = list(bindings(REGISTRY, "message"))

    state: reactive[str] = reactive("", init=False)
    """The state in words: "processing prompt, 1,024 of 3,000 tokens", "stopped"."""

    branch: reactive[tuple[int, int] | None] = reactive(None, init=False)
    """(number of this branch, counted from 1, number of branches); None without branches."""

    model_before: reactive[str] = reactive("", init=False)
    """Name of the model that gave the reply before, if another one gave this one."""

    is_open: reactive[bool] = reactive(False, init=False)
    """An answer that was stopped or cut off, with nothing below it: it can be continued."""

    is_edited: reactive[bool] = reactive(False, init=False)
    """The composer has another version of this message."""

    notices: reactive[tuple[str, ...]] = reactive((), init=False)
    """Return what the user should know about this reply."""

    @dataclass
    class BranchClicked(Message):
        """An arrow beside the branch number was clicked."""

        view: MessageView
        step: int

    def __init__(self, role: str, text: str, author: str, attachments: tuple[Attachment, ...] = ()) -> None:
        super().__init__(classes=f"-{role}")
        self.role = role
        self.author = author
        self.text = text
        self.attachments = attachments
        self.reasoning = ""
        self.calls: Sequence[tuple[ToolCall, str | None]] = ()
        self.citations: Sequence[Citation] = ()
        self.searched = ""
        self.node_id: int | None = None
        self._next_code = self._next_table = 0

    @classmethod
    def of_node(cls, node: Node) -> MessageView:
        """Return the view of a saved message."""
        authors = {"user": "You", "tool": f"Tool {node.name or ''}".rstrip()}
        view = cls(node.role, node.content, authors.get(node.role, node.model or "Assistant"), node.attachments)
        view.adopt(node)
        return view

    def adopt(self, node: Node) -> None:
        """Become the view of a saved message; the text is already shown."""
        self.node_id = node.id
        self.attachments = node.attachments
        self.show_details(node.reasoning, [(call, None) for call in node.tool_calls])
        self.searched = said_about(node.record)
        self.show_passages(read_answer(node.record), node.content)
        is_cut = node.status == "complete" and node.record.get("finish_reason") == "length"
        is_interrupted = node.status == "stopped" and "interrupted" in node.record
        state = "cut off" if is_cut else "interrupted" if is_interrupted else _STATUS_TEXT.get(node.status, "")
        self.set_reactive(MessageView.state, state)
        if self.is_mounted:
            self._show_head()

    def compose(self) -> ComposeResult:
        if self.role == "assistant":
            yield Static("", classes="model-change", markup=False)
        yield Static(self._head(), classes="head")
        yield Static("", classes="notice", markup=False)
        if self.role == "tool":
            yield Fold("Result", self.text, self.text)
        elif self.role == "assistant":
            yield from self._folds()
            # Imported here, since the first frame needs neither Markdown nor the highlighter.
            from edge_chat.widgets.markdown import ReplyMarkdown

            yield ReplyMarkdown(self.text, is_plain=self.app.has_class("-plain"))
        else:
            yield Static(Content(fmt.clean(self.text)), classes="said")
        if self.role == "assistant":
            yield Passages()
        if self.attachments or self.searched:
            yield Static(self._attached(), classes="attached")

    def show_details(self, reasoning: str, calls: Sequence[tuple[ToolCall, str | None]]) -> None:
        """Show thoughts and tool calls, folded: (call, text of its result) each."""
        if (reasoning, calls) == (self.reasoning, self.calls):
            return
        self.reasoning, self.calls = reasoning, calls
        known, wanted = [child for child in self.children if isinstance(child, Fold)], self._folds()
        for fold, now in zip(known, wanted, strict=False):
            fold.set(now.title_text, now.text, now.note)
        if self.is_mounted and self.role == "assistant" and len(wanted) > len(known):
            self.mount_all(wanted[len(known) :])

    def show_passages(self, citations: Sequence[Citation], text: str) -> None:
        """Show the passages that the answer rests on, folded."""
        self.citations = citations
        for passages in self.query(Passages):
            passages.show(citations, text)

    def on_mount(self) -> None:
        self.show_passages(self.citations, self.text)

    def _folds(self) -> list[Fold]:
        n_words = len(self.reasoning.split())
        last = self.reasoning.rstrip().rpartition("\n")[2]
        thought = Fold(f"Thoughts, {fmt.plural(n_words, 'word')}" if n_words else "", self.reasoning, last)
        return [thought, *(_call_fold(call, result) for call, result in self.calls)]

    @property
    def markdown(self) -> ReplyMarkdown:
        """Return the body of a reply."""
        return self._bodies()[0]

    async def extend(self, text: str) -> None:
        """Show more of a reply being generated."""
        self.text = text
        for body in self._bodies():
            await body.extend(text)

    async def finish(self, text: str) -> None:
        """Show the whole reply."""
        self.text = text
        for body in self._bodies():
            await body.finish(text)

    def _bodies(self) -> list[ReplyMarkdown]:
        """Return the body of a reply in a list: empty before the message is composed and while it is being removed."""
        from edge_chat.widgets.markdown import ReplyMarkdown

        return [child for child in self.children if isinstance(child, ReplyMarkdown)]

    def mark(self, searched: str) -> tuple[Widget, int] | None:
        """Mark the words of a search. Return the widget with the first one and how many lines are above it there."""
        from edge.conversation.search import find_matches

        first: tuple[Widget, int] | None = None
        for body in self._bodies():
            line = body.mark(lambda text: find_matches(text, searched))
            first = (body, line) if line is not None else None
        for fold in self.query(Fold):
            if find_matches(fold.text, searched):
                fold.open(True)
        for part in self.query(Static).exclude(".head, .notice"):
            content = part.content
            if not isinstance(content, Content):
                continue
            matches = find_matches(content.plain, searched)
            for start, end in matches:
                content = content.stylize("$background on $text-warning", start, end)
            if matches:
                part.update(content)
                width = max(1, part.content_size.width)
                above = content.plain[: matches[0][0]].split("\n")
                first = first or (part, sum(-(-cell_len(line) // width) or 1 for line in above) - 1)
        return first

    def next_code(self) -> tuple[int, int, str] | None:
        """Return the next code block to copy, the last one first: (its number from 1, number of blocks, code)."""
        codes = self.markdown.codes if self.role == "assistant" else []
        if not codes:
            return None
        self._next_code = (self._next_code - 1) % len(codes)
        return self._next_code + 1, len(codes), codes[self._next_code]

    def next_table(self) -> Table | None:
        """Return the next table to see wide, the last one first."""
        tables = self.markdown.tables if self.role == "assistant" else []
        if not tables:
            return None
        self._next_table = (self._next_table - 1) % len(tables)
        return tables[self._next_table]

    def watch_state(self) -> None:
        self._show_head()

    def watch_model_before(self) -> None:
        for line in self.query(".model-change").results(Static):
            line.display = bool(self.model_before)
            before, now = fmt.clean(self.model_before), fmt.clean(self.author)
            is_plain = self.app.has_class("-plain")
            line.update(f"From here on {now}, before {before}." if is_plain else f"── {before} → {now} ──")

    def watch_notices(self) -> None:
        for line in self.query(".notice").results(Static):
            line.display = bool(self.notices)
            line.update("\n".join(f"Note: {fmt.clean(notice)}" for notice in self.notices))

    def watch_branch(self) -> None:
        self._show_head()

    def watch_is_open(self) -> None:
        self._show_head()

    def watch_is_edited(self) -> None:
        self.set_class(self.is_edited, "-edited")
        self._show_head()

    def watch_has_focus(self, focused: bool) -> None:
        """Mark the selected message, not by colour alone."""
        super().watch_has_focus(focused)
        self._show_head()

    def action_branch(self, step: int) -> None:
        self.post_message(self.BranchClicked(self, step))

    def _show_head(self) -> None:
        for head in self.query(".head").results(Static):
            head.update(self._head(), layout=False)  # always one line

    def _head(self) -> Content:
        is_plain = self.app.has_class("-plain")
        author = fmt.clean(self.author)
        parts: list[Content | str | tuple[str, str | Style]] = []
        if self.has_focus:
            parts.append(("> " if is_plain else "▸ ", "bold"))
        parts.append((f"{author}:" if is_plain else author, "bold $primary" if self.role == "user" else "bold $secondary"))
        if self.branch is not None:
            number, total = self.branch
            if is_plain:
                parts.append(f"  branch {number} of {total}")
            else:
                click = "@click"
                parts += [
                    "  ",
                    ("‹", Style.from_meta({click: "branch(-1)"}) + Style(bold=True)),
                    (f" {number}/{total} ", "$foreground 70%"),
                    ("›", Style.from_meta({click: "branch(1)"}) + Style(bold=True)),
                ]
        state = f"{self.state} · /continue goes on" if self.is_open and self.state else self.state
        if self.is_edited:
            state = "being edited below"
        if state:
            parts.append((f"  ({state.replace(' · ', ', ')})" if is_plain else f"  {state}", "$text-warning"))
        return Content.assemble(*parts)

    def _attached(self) -> Content:
        lines = [f"Attached: {fmt.clean(a.name)}, {size_text(len(a.text.encode()))}" for a in self.attachments]
        return Content("\n".join([*lines, self.searched] if self.searched else lines))


def _call_fold(call: ToolCall, result: str | None) -> Fold:
    arguments = ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in call.arguments.items())
    text = json.dumps(call.arguments, ensure_ascii=False, indent=2)
    return Fold(f"Called {call.name}", text if result is None else f"{text}\n\n{result}", f"({arguments})")
