"""The command on passages of documents."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge.errors import UsageError
from edge_chat import format as fmt
from edge_chat.actions.writing import suspended
from edge_chat.commands import Completion
from edge_chat.editor import editor_at, editor_command
from edge_chat.widgets.passages import Passages

if TYPE_CHECKING:
    from edge.citations import Citation
    from edge_chat.screens.chat import ChatScreen

__all__ = ["COMPLETERS", "RUNNERS"]


async def open_passage(screen: ChatScreen, argument: str) -> None:
    citation = _find(_citations(screen), argument)
    path = Path(citation.document)
    if not await asyncio.to_thread(path.is_file):
        raise UsageError(f"There is no file {fmt.one_line(citation.document, 200)} any more.", "/details shows the passage.")
    if citation.lines is None:  # a page, or a format of its own: for the program that the desktop has for it
        screen.app.open_url(path.as_uri())
        screen.tell(f"Opening {citation.place}.")
        return
    from textual.app import SuspendNotSupported

    command = editor_at(editor_command(os.environ), citation.document, citation.lines[0])
    try:
        with suspended(screen.app):
            await asyncio.to_thread(subprocess.run, command, check=False)
    except SuspendNotSupported:
        raise UsageError("This terminal cannot run an editor.", f"The passage is in {citation.document}.") from None
    except OSError as error:
        hint = "Set $VISUAL or $EDITOR to an editor that is installed."
        raise UsageError(f"The editor {command[0]!r} cannot be started ({error.strerror}).", hint) from None
    screen.app.refresh(layout=True)


def complete_passage(screen: ChatScreen, typed: str) -> Sequence[Completion]:
    """Propose the numbers of passages."""
    return [
        Completion(str(one.number), f"{one.number}", one.place)
        for one in _citations(screen)
        if str(one.number).startswith(typed)
    ]


def _citations(screen: ChatScreen) -> tuple[Citation, ...]:
    """Return the passages of the selected answer, else of the last one that has some."""
    chosen = screen.chosen_view
    views = [chosen] if chosen is not None else list(reversed(screen.transcript.views))
    return next((one.citations for view in views for one in view.query(Passages) if one.citations), ())


def _find(citations: Sequence[Citation], argument: str) -> Citation:
    if not citations:
        raise UsageError("No answer here rests on documents.", "@docs in a message answers from yours.")
    if not argument and len(citations) == 1:
        return citations[0]
    listed = ", ".join(str(one.number) for one in citations)
    found = next((one for one in citations if str(one.number) == argument.strip("[]()")), None)
    if found is None:
        raise UsageError(f"There is no passage {argument!r}." if argument else "Which passage?", f"This answer has {listed}.")
    return found


RUNNERS = {"open": open_passage}
COMPLETERS = {"open": complete_passage}
