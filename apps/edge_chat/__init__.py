"""The terminal chat app.

app.py          the app on top of base.py: settings, keys, conversations, the model
screens/        the chat screen and the dialogs; widgets/, the parts of the chat screen
controller.py   opening, branching, deleting on the desk (desk.py); sending.py, replies; replies.py, one of them
approvals.py    asks about tool calls
outbox.py       messages that are not saved yet, and drafts; library.py, the store for the event loop
model_host.py   the loaded model; offers.py, the models to choose from
table.py        the command table (commands.py); actions/, their functions; palette.py, keys.py
signals.py      the window's title, and notices
pages.py        help, statistics, context, plan; wording.py and format.py, texts
voice.py        speech: what is said fills the message box, replies are spoken; voice_opening.py fetches and measures first
meter.py        tokens of the message being written; read_ahead.py, its prefill
markup/         Markdown, formulas and tables as lines of text; knows no screen
terminal.py     bytes, pastes, signals and the end of the terminal; editor.py, the user's editor
attachments.py  files of a message; documents.py, passages of documents; history.py, earlier inputs; parameters.py, sampling
theme.py        edge's own themes; own_themes.py, the user's; few_colours.py, 256 and 16 colours
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge.config import Settings

__all__ = ["run"]

_OBEYED = {"TEXTUAL_ANIMATIONS", "TEXTUAL_DISABLE_KITTY_KEY", "TEXTUAL_FPS", "TEXTUAL_SMOOTH_SCROLL"}
_COLOURS = {("TEXTUAL_COLOR_SYSTEM", name) for name in ("auto", "standard", "256", "truecolor")}


def run(
    settings: Settings, *, conversation: str | None = None, voice: bool = False, say: Callable[[str], None] = lambda line: None
) -> int:
    """Run the chat until the user quits, and return the exit code.

    Args:
        settings: merged settings.
        conversation: id of the conversation to open, or the beginning of one; None starts a new one.
        voice: turn voice on at the start.
        say: prints a line once the terminal is the shell's again: how to open the conversation again.

    Raises:
        ConfigError: `chat.theme` or `chat.keys` cannot be used.
        EdgeError: the app crashed; all messages are saved.
    """
    for name in set(os.environ) - _OBEYED:
        # Those for developers load drivers, write logs, press keys or end the app.
        if name.partition("_")[0] == "TEXTUAL" and (name, os.environ[name]) not in _COLOURS:
            del os.environ[name]
    from edge_chat.app import ChatApp
    from edge_chat.terminal import keep_signals
    from edge_mcp.toolbox import open_toolbox

    with keep_signals(), open_toolbox(settings) as toolbox:
        app = ChatApp(settings, conversation=conversation, toolbox=toolbox, voice=voice)
        code = app.run()
    for line in app.farewell:
        say(line)
    if app.breakdown is not None:
        raise app.breakdown
    return code if code is not None else (app.return_code or 0)
