"""The message box: several lines of text, history, completion, attachments."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from textual import on, work
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList, Static, TextArea

from edge.errors import EdgeError, StorageError, UsageError
from edge_chat import attachments as att
from edge_chat import format as fmt
from edge_chat.commands import Completion, parse_slash
from edge_chat.documents import is_mention
from edge_chat.history import PromptHistory
from edge_chat.keys import display_key
from edge_chat.table import REGISTRY
from edge_chat.widgets.chip import Chip
from edge_chat.widgets.completion import CompletionPopup, propose_commands, propose_files
from edge_chat.widgets.composer_text import ComposerText

if TYPE_CHECKING:
    from edge.conversation import Attachment
    from edge_chat.outbox import Departure

__all__ = ["Composer"]


class Composer(Vertical):
    """Text, attachments, popup, complaints and hints.

    Args:
        history: earlier inputs.
        cwd: base of relative attachment paths.
        paste_chars: longer pastes become attachments.
        attachment_bytes: larger files are refused.
        key_actions: key -> "send" or "newline".
        depart: called with a message at the moment it leaves the composer.
        complete: proposes arguments, given the name of a command and the argument as typed so far.
        go_on: opens the earlier conversation that a text names; returns whether it names one.
        propose_docs: proposes collections of documents for what is typed behind an @; it may block.
    """

    @dataclass
    class Submitted(Message):
        """A message to send or, without a departure, a command to run. The composer is empty again; `put_back` undoes that."""

        text: str
        attachments: tuple[Attachment, ...]
        departure: Departure | None = None

    @dataclass
    class Changed(Message):
        """The text or the attachments changed."""

    def __init__(
        self,
        history: PromptHistory,
        cwd: Path,
        *,
        paste_chars: int,
        attachment_bytes: int,
        key_actions: Mapping[str, str],
        depart: Callable[[str, tuple[Attachment, ...]], Departure],
        complete: Callable[[str, str], Sequence[Completion]],
        go_on: Callable[[str], bool],
        propose_docs: Callable[[str], Sequence[Completion]] = lambda typed: (),
    ) -> None:
        super().__init__(id="composer")
        self._propose_docs = propose_docs
        self._go_on = go_on
        self._key_actions = key_actions
        self._depart = depart
        self._complete = complete
        self.history = history
        self.cwd = cwd
        self._paste_chars = paste_chars
        self._attachment_bytes = attachment_bytes
        self._files = att.FileIndex(cwd)
        self._attachments: list[Attachment] = []
        self._tokens: Mapping[str, int] = {}
        self._complained = ""  # a text of which was said that a file is missing
        self._dismissed = ""
        self._proposed_for = ""
        self._from_history = ""
        self._loaded = ""

    def compose(self) -> ComposeResult:
        yield CompletionPopup()
        yield Static("", id="complaint", markup=False)
        yield Static("", id="size", markup=False)
        yield Static("", id="mode", markup=False)
        yield Horizontal(id="chips")
        yield Static("Your message:", id="composer-label", markup=False)
        yield ComposerText(self, self._key_actions)
        yield Static("", id="hints", markup=False)

    @property
    def input(self) -> ComposerText:
        return self.query_one(ComposerText)

    @property
    def popup(self) -> CompletionPopup:
        return self.query_one(CompletionPopup)

    @property
    def text(self) -> str:
        """Return the typed text."""
        return self.input.text

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        return tuple(self._attachments)

    def load(self, text: str, attachments: Sequence[Attachment] = ()) -> None:
        """Replace text and attachments, with the cursor at the end."""
        self._attachments = list(attachments)
        self._show_chips()
        self._loaded = text
        self.input.text = text
        self.input.move_cursor(self.input.document.end)
        self.complain("")
        self.popup.close()
        self.history.reset()

    def put_back(self, text: str, attachments: Sequence[Attachment] = ()) -> None:
        """Put a message that could not be sent in front of the text typed since."""
        typed = self.text
        names = {attachment.name for attachment in attachments}
        others = [a for a in self._attachments if a.name not in names]
        self.load(f"{text}\n{typed}" if typed.strip() and text else text or typed, [*attachments, *others])

    def complain(self, message: str, hint: str = "") -> None:
        """Show what is wrong with the text until it changes; "" removes that."""
        line = self.query_one("#complaint", Static)
        line.display = bool(message)
        line.update(Content.assemble((fmt.clean(message), "$text-error"), f" {fmt.clean(hint)}" if hint else ""))

    def show_mode(self, text: str) -> None:
        """Show a special use of the composer ("Editing ..."); "" for a new message."""
        line = self.query_one("#mode", Static)
        line.display = bool(text)
        line.update(text)

    def show_size(self, text: str) -> None:
        """Show that the message is too long; "" if it is not."""
        line = self.query_one("#size", Static)
        line.display = bool(text)
        line.update(text)

    def show_tokens(self, tokens: Mapping[str, int]) -> None:
        """Show the tokens of the attachments, by name."""
        self._tokens = tokens
        for chip in self.query(Chip):
            chip.show_tokens(tokens.get(chip.attachment.name))

    def show_hints(self, text: str) -> None:
        """Show key hints below the text."""
        self.query_one("#hints", Static).update(text)

    def attach(self, attachment: Attachment) -> None:
        """Add an attachment, or replace the one with the same name."""
        self._attachments = [a for a in self._attachments if a.name != attachment.name] + [attachment]
        self._show_chips()
        self.post_message(self.Changed())

    async def attach_files(self, typed: str) -> None:
        """Attach the files that a command names.

        Raises:
            UsageError, StorageError: one of them cannot be attached; none is.
        """

        def read() -> list[Attachment]:
            paths = att.typed_paths(typed, self.cwd)
            return [att.read_attachment(path, self.cwd, self._attachment_bytes) for path in paths]

        for attachment in await asyncio.to_thread(read):
            self.attach(attachment)

    @work(group="attach")
    async def attach_file(self, path: str) -> None:
        """Read a file and attach it; show why if that fails."""
        try:
            self.attach(await asyncio.to_thread(att.read_attachment, path, self.cwd, self._attachment_bytes))
        except EdgeError as error:
            self.complain(error.message, error.hint)

    @property
    def _send_key(self) -> str:
        return display_key(next(key for key, action in self._key_actions.items() if action == "send"))

    async def read_mentions(self, text: str, attachments: Sequence[Attachment]) -> tuple[Attachment, ...]:
        """Return these attachments and the files that the text mentions.

        Raises:
            UsageError, StorageError: one of the files is missing or cannot be attached. A missing one is ordinary text for
                whoever sends the same again.
        """
        is_confirmed, self._complained = text == self._complained, ""

        def read() -> tuple[Attachment, ...]:
            names = {attachment.name for attachment in attachments}
            missing = [path for path in att.missing_mentions(text, self.cwd) if path not in names]
            if missing and not is_confirmed:
                self._complained = text
                raise UsageError(f"There is no file {' or '.join(missing)}.", f"{self._send_key} again sends it as text.")
            return att.with_mentions(text, attachments, self.cwd, self._attachment_bytes)

        return await asyncio.to_thread(read)

    def paste(self, text: str) -> None:
        """Insert pasted text; a long one becomes an attachment, and the paths of files, as dropped, mentions of them."""
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        dropped = att.dropped_files(text)
        for path in dropped:
            if not att.can_mention(path):
                self.attach_file(path)
        if dropped:
            text = "".join(f"{att.quote(path)} " for path in dropped if att.can_mention(path))
        elif len(text) > self._paste_chars:
            self.attach(att.make_attachment(att.paste_name(a.name for a in self._attachments), text))
            return
        result = self.input.replace(text, *self.input.selection, maintain_selection_offset=False)
        self.input.move_cursor(result.end_location)

    def _remove_attachment(self, attachment: Attachment) -> None:
        self._attachments.remove(attachment)
        self._show_chips()
        self.post_message(self.Changed())

    def send(self) -> None:
        """Accept the highlighted proposal, or submit the text."""
        chosen = self._proposal()
        if chosen is not None and not self._accept(chosen):
            return
        text = self.text
        if not self._attachments and self._go_on(text):
            self.load("")
        elif parse_slash(text) is not None:
            self.load("", self._attachments)
            self.post_message(self.Submitted(text, ()))
        elif text.strip() or self._attachments:
            self.submit(text)

    def submit(self, text: str) -> None:
        """Submit a message, with the attachments."""
        attachments = self.attachments
        departure = self._depart(text, attachments)
        # Cleared at once: text typed from here on belongs to the next message.
        self.load("")
        self.post_message(self.Submitted(text, attachments, departure))

    def dictate(self, text: str) -> None:
        """Show what is being said as the text; the attachments stay."""
        self.input.text = text
        self.input.move_cursor(self.input.document.end)

    def take_key(self, key: str) -> bool:
        """Handle the keys of the open popup, and Backspace after the attachments. Return whether it was one of these."""
        if key == "backspace" and not self.text and self._attachments:
            self._remove_attachment(self._attachments[-1])
            return True
        popup = self.popup
        if key not in ("tab", "up", "down", "escape"):
            return False
        chosen = self._proposal()
        if not popup.is_open:
            return False
        if key == "tab":
            if chosen is not None:
                self._accept(chosen)
        elif key == "escape":
            self._dismissed = self._before_cursor()
            popup.close()
        else:
            popup.move(-1 if key == "up" else 1)
        return True

    def walk_history(self, *, back: bool) -> bool:
        """Show an older or newer input. Return whether there is one."""
        entry = self.history.previous(self.text) if back else self.history.next()
        if entry is None:
            return False
        self._from_history = self._loaded = entry
        self.input.text = entry
        self.input.move_cursor(self.input.document.end if not back else (0, len(self.input.document[0])))
        return True

    def remember(self, text: str) -> str:
        """Add an input to the history. Return why that failed, or ""."""
        try:
            self.history.add(text)
        except StorageError as error:
            return str(error)
        return ""

    @on(TextArea.Changed)
    def _text_changed(self, event: TextArea.Changed) -> None:
        event.stop()
        if self.text != self._from_history:
            self.history.reset()
        if self.text != self._loaded:
            self.complain("")
        self._propose()
        self.post_message(self.Changed())

    @on(TextArea.SelectionChanged)
    def _cursor_moved(self, event: TextArea.SelectionChanged) -> None:
        event.stop()
        if self.popup.is_open:
            self._propose()

    @on(Chip.Removed)
    def _chip_removed(self, event: Chip.Removed) -> None:
        event.stop()
        self._remove_attachment(event.chip.attachment)
        self.input.focus()

    @on(Chip.Left)
    def _chip_left(self, event: Chip.Left) -> None:
        event.stop()
        self.input.focus()

    @on(OptionList.OptionSelected, "#completions")
    def _proposal_clicked(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        chosen = self._proposal()
        if chosen is not None:
            self._accept(chosen)
        self.input.focus()

    @work(exclusive=True, group="chips")
    async def _show_chips(self) -> None:
        chips = self.query_one("#chips", Horizontal)
        await chips.remove_children()
        await chips.mount_all([Chip(attachment) for attachment in self._attachments])
        self.show_tokens(self._tokens)
        chips.display = bool(self._attachments)

    def _before_cursor(self) -> str:
        return self.input.get_text_range((0, 0), self.input.cursor_location)

    def _proposal(self) -> Completion | None:
        """Return the highlighted proposal for the text before the cursor; None if there is none.

        When keys come in bundles, the next key arrives before the text area has reported the last change: then the popup still
        shows proposals for an older text.
        """
        before = self._before_cursor()
        if self._proposed_for != before:
            self._propose()
        return self.popup.chosen if self.popup.made_for == before else None

    def _propose(self) -> None:
        """Open, change or close the popup for the text before the cursor."""
        before = self._proposed_for = self._before_cursor()
        self.workers.cancel_group(self, "files")
        if not self.input.has_focus or before == self._dismissed:
            return self.popup.close()
        self._dismissed = ""
        if before.startswith("/") and "\n" not in before and not before.startswith("//"):
            return self.popup.open(propose_commands(before, self._complete), before)
        mention = att.mention_before(before)
        if mention is None:
            return self.popup.close()
        self._propose_files(mention[1])
        return None

    @work(exclusive=True, group="files")
    async def _propose_files(self, typed: str) -> None:
        found = await asyncio.to_thread(self._proposed_after_at, typed)
        before = self._before_cursor()
        mention = att.mention_before(before)
        if mention is None or mention[1] != typed:
            return  # the text has changed meanwhile
        self.popup.open(found, before)

    def _proposed_after_at(self, typed: str) -> list[Completion]:
        """Propose collections of documents and files. Blocks."""
        return [*self._propose_docs(typed), *propose_files(self._files, typed, self.cwd, self._attachment_bytes)]

    def _accept(self, chosen: Completion) -> bool:
        """Insert a proposal. Return whether the line is complete and may be sent right away."""
        before = self._before_cursor()
        end = self.input.cursor_location
        self.popup.close()
        if before.startswith("/"):
            self.input.replace(chosen.value, (0, 0), end)
            self.input.move_cursor(self.input.document.end)
            line = parse_slash(chosen.value)
            if line is None:
                return False
            # A proposed argument that ends in a blank needs more after it, as "temperature " does.
            return not chosen.value.endswith(" ") if line.argument else not REGISTRY.find(line.name).needs_argument
        mention = att.mention_before(before)
        if mention is not None:
            row, column = end
            start = (row, column - (len(before) - mention[0]))
            is_directory = chosen.value.rstrip('"').endswith("/")
            result = self.input.replace(chosen.value + ("" if is_directory else " "), start, end)
            self.input.move_cursor(result.end_location)
            if not is_directory and not is_mention(chosen.label):
                self._check_file(chosen.label)
        return False

    @work(group="attach")
    async def _check_file(self, path_text: str) -> None:
        try:
            await asyncio.to_thread(att.read_attachment, path_text, self.cwd, self._attachment_bytes)
        except EdgeError as error:
            self.complain(error.message, error.hint)
