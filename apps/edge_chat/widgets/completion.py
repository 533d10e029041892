"""The completion popup above the composer: commands, arguments and files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from edge.errors import EdgeError
from edge_chat import attachments as att
from edge_chat import format as fmt
from edge_chat.commands import Completion, parse_slash
from edge_chat.table import REGISTRY

__all__ = ["CompletionPopup", "propose_commands", "propose_files"]

_MAX_PROPOSALS = 20
_MAX_PATHS = 60  # looked at for proposals: some of them are no text

_MAX_LABEL = 44


def propose_commands(before: str, complete: Callable[[str, str], Sequence[Completion]]) -> Sequence[Completion]:
    """Propose commands, or the arguments of one.

    Args:
        before: the text before the cursor, which begins with a slash.
        complete: proposes arguments, given the name of a command and the argument as typed so far.
    """
    name, blank, argument = before[1:].partition(" ")
    if not blank:
        return [Completion(f"/{c.name}{' ' if c.argument else ''}", c.usage, c.help) for c in REGISTRY.search(name)]
    line = parse_slash(before)
    try:
        command = REGISTRY.find(line.name) if line is not None else None
    except EdgeError:
        return []  # sending it shows the error
    found = complete(command.name, argument.lstrip()) if command is not None else ()
    return [Completion(f"/{name} {c.value}", c.label, c.detail) for c in found if c.value != argument.strip()]


def propose_files(files: att.FileIndex, typed: str, cwd: Path, max_bytes: int) -> list[Completion]:
    """Propose files that can be attached, with their sizes. Blocks: it reads directories and the beginnings of files."""
    paths = (path for path in files.search(typed, _MAX_PATHS) if path != typed)
    sizes = ((path, att.describe(path, cwd, max_bytes)) for path in paths)
    return [Completion(att.quote(path), path, size) for path, size in sizes if size is not None][:_MAX_PROPOSALS]


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
        return Content.assemble(f"{label:<{width}}", "  ", (fmt.clean(completion.detail), "auto 80%"))
