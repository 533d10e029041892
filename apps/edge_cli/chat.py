"""`edge chat`: open the terminal chat."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import click

from edge.units import quoted
from edge_cli import output
from edge_cli.app import App, pass_app
from edge_cli.completers import complete_conversation
from edge_cli.group import examples
from edge_cli.options import escalation_options, model_options, require_exclusive, sampling_options, settings_from

__all__ = ["chat"]

EXAMPLES = examples(
    "edge chat",
    "edge chat -m ~/models/other.gguf --context 4096",
    "edge chat --lora pirate.gguf --lora formal.gguf:0",
    'edge chat --system "Answer in French" --temperature 0.3',
    "edge chat -c",
    "edge chat --conversation 01JC",
    "edge chat --escalate-to qwen3-1.7b",
    "edge chat --plain",
    "edge chat --voice",
)


@click.command(epilog=EXAMPLES)
@click.option("-c", "--continue", "is_continued", is_flag=True, help="Open the conversation that was used last.")
@click.option(
    "--conversation",
    metavar="ID",
    shell_complete=complete_conversation,
    help="Open this conversation; the beginning of its ID is enough.",
)
@click.option("--plain", is_flag=True, help="No drawing and no colour: for screen readers and bare terminals.")
@click.option("--voice", is_flag=True, help="Turn voice on: a key to speak, and spoken replies.")
@click.option("--hands-free", is_flag=True, help="As --voice, and listen all the time.")
@click.option(
    "--keep-audio",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Keep what you say as WAV files; otherwise no sound is written to the disk.",
)
@click.argument("words", nargs=-1, metavar="")
@model_options
@sampling_options
@escalation_options
@pass_app
def chat(
    app: App,
    words: tuple[str, ...],
    is_continued: bool,
    conversation: str | None,
    plain: bool,
    voice: bool,
    hands_free: bool,
    keep_audio: Path | None,
    **options: Any,
) -> int:
    """Chat with a model in the terminal.

    Conversations are saved; the last line, when you leave, is the command that opens this one again. F1 or /help shows the
    commands and keys. With --voice, F5 listens and the replies are spoken. If several engines can run the model, the first
    start compares them, for at most a minute; Ctrl-C skips it, and the setting engine.measure turns it off. The first --voice
    fetches its models (about 160 MB), which Esc cancels.
    """
    from edge.errors import EdgeError, UsageError

    if words:
        named = " ".join(words)
        raise UsageError(
            f"edge chat takes no question and no model in front of it: {named!r}.",
            f"For a model: edge chat -m {quoted(words[0])}   for one answer: edge run {quoted(named)}",
        )
    require_exclusive(("--continue", is_continued), ("--conversation", conversation))
    flags = {"chat.plain": plain or None, "voice.hands_free": hands_free or None, "voice.keep_audio": keep_audio}
    settings = settings_from(app, options, flags)
    if importlib.util.find_spec("textual") is None:
        raise EdgeError(
            "The chat app is not installed: it needs the package textual.",
            "Run: pip install 'edge-assistant[chat]'   or use: edge run \"your question\"",
        )
    if not (output.is_terminal(sys.stdin) and output.is_terminal(sys.stdout)):
        raise UsageError("The chat app needs a terminal.", 'For pipes and scripts use: edge run "your question"')
    if os.environ.get("TERM") == "dumb":
        raise UsageError(
            "The chat app cannot draw on this terminal (TERM=dumb).", 'Use another one, or: edge run "your question"'
        )
    from edge_chat import run as run_chat
    from edge_cli.first_use import measure_at_first

    if conversation is not None or is_continued:
        with app.store(settings) as store:
            newest = store.list(limit=1) if is_continued else [store.get(conversation or "")]
            # As edge run: a saved conversation keeps its system prompt unless this command line sets one.
            if newest and (options["role"] is not None or options["system"] is not None):
                store.set_system(newest[0].id, settings.system)
        conversation = newest[0].id if newest else None
        if conversation is None:
            output.note("There is no conversation yet; this is a new one.")
    measure_at_first(app, settings)
    return run_chat(settings, conversation=conversation, voice=voice or hands_free, say=output.line)
