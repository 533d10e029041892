"""`edge conversations`: list, show, search, export, import and delete saved conversations."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import click

from edge.units import plural
from edge_cli import conversations_listing as listing
from edge_cli import output
from edge_cli.app import App, pass_app
from edge_cli.completers import complete_conversation
from edge_cli.group import SuggestingGroup, examples
from edge_cli.options import json_option, require_exclusive
from edge_cli.streams import read_stdin

if TYPE_CHECKING:
    from edge.conversation import ConversationInfo, ConversationStore
    from edge.conversation.imports import ImportReport

__all__ = ["conversations"]

_MAX_SHOWN = 30
"""Lines on a terminal without --limit; a pipe gets all."""

_UNITS_S = {"h": 3600, "d": 86400, "w": 7 * 86400, "m": 30 * 86400, "y": 365 * 86400}
_AGE = re.compile(r"(\d{1,5})\s*([hdwmy])")


@click.group(cls=SuggestingGroup)
def conversations() -> None:
    """List, show, search, export, import and delete saved conversations.

    edge chat saves its conversations, and edge run those that it continues (--continue, --conversation). The beginning of an id
    is enough wherever an id is expected.
    """


@conversations.command(epilog=examples("edge conversations ls", "edge conversations ls --json | jq -r '.[].title'"))
@click.option("-n", "--limit", type=click.IntRange(min=0), metavar="N", help="Show the N newest; 0 shows all.")
@json_option
@pass_app
def ls(app: App, limit: int | None, as_json: bool) -> None:
    """List the conversations, the one with the newest message first.

    A terminal shows the newest 30 unless --limit says otherwise; a pipe and --json get all.
    """
    if limit is None and not as_json and output.is_terminal(sys.stdout):
        limit = _MAX_SHOWN
    with app.store(app.settings()) as store:
        found = store.list(limit=limit or None)
        n_more = len(store.list()) - len(found) if limit else 0
    if as_json:
        output.json_object([listing.info_json(info) for info in found])
        return
    if not found:
        output.note("No conversation is saved yet. edge chat saves them.")
        return
    output.table([listing.info_row(info, time.time()) for info in found], listing.HEADINGS)
    if n_more:
        output.note(f"{n_more:,} more: edge conversations ls --limit 0")


@conversations.command(epilog=examples("edge conversations show 1m8n3k", "edge conversations show 1m8n3k --json"))
@click.argument("conversation", shell_complete=complete_conversation)
@json_option
@pass_app
def show(app: App, conversation: str, as_json: bool) -> None:
    """Show a conversation: its current path, without the other branches.

    edge conversations export --format json has all branches.
    """
    with app.store(app.settings()) as store:
        info = store.get(conversation)
        nodes = store.path(info.id)
    if as_json:
        output.json_object({**listing.info_json(info), "messages": [listing.node_json(node) for node in nodes]})
        return
    listing.show(info, nodes)


@conversations.command(
    epilog=examples(
        "edge conversations search walrus",
        "edge conversations search '\"pet walrus\" nam'",
        "edge conversations search walrus --json",
    )
)
@click.argument("words", nargs=-1, required=True, metavar="WORD...")
@click.option("-n", "--limit", type=click.IntRange(min=1), default=50, metavar="N", help="Show at most N hits [50].")
@json_option
@pass_app
def search(app: App, words: tuple[str, ...], limit: int, as_json: bool) -> int:
    """Find titles, messages and attachments that contain all words.

    The last word may be a prefix, and "words in double quotes" are a phrase. The exit code is 1 if nothing is found.
    """
    with app.store(app.settings()) as store:
        hits = store.search(" ".join(words), limit)
    if as_json:
        output.json_object([listing.hit_json(hit) for hit in hits])
    elif hits:
        listing.show_hits(hits)
    if not hits:
        output.note(f"Nothing found for: {' '.join(words)}")
    return 0 if hits else 1


@conversations.command(
    "export",
    epilog=examples(
        "edge conversations export 1m8n3k > walrus.md",
        "edge conversations export 1m8n3k -o walrus.json",
        "edge conversations export --all --format json -o backup",
    ),
)
@click.argument("names", nargs=-1, metavar="[CONVERSATION]...", shell_complete=complete_conversation)
@click.option("--all", "everything", is_flag=True, help="Export all conversations.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["md", "json"]),
    help="md: the current path, to read. json: all branches, with times and settings [md, or by the ending of --output].",
)
@click.option(
    "-o", "--output", "target", type=click.Path(path_type=Path), metavar="PATH", help="Write to a file, or into a folder."
)
@click.option("--force", is_flag=True, help="Replace existing files.")
@click.option("--json", "as_json", is_flag=True, help="Print the written files as JSON.")
@pass_app
def export_(
    app: App,
    names: tuple[str, ...],
    everything: bool,
    form: Literal["md", "json"] | None,
    target: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Export conversations as Markdown or JSON. edge conversations import reads both again, exactly.

    One conversation goes to stdout or to a file, several go into a folder, a file each. Only you may read the files.
    """
    if bool(names) == everything:
        raise click.UsageError("Name one or more conversations, or give --all.", click.get_current_context())
    if as_json and target is None:
        raise click.UsageError("--json tells of files: give --output, or --format json.", click.get_current_context())
    form = form or ("json" if target is not None and target.suffix == ".json" else "md")
    with app.store(app.settings()) as store:
        chosen = store.list() if everything else _get_each(store, names)
        into_folder = target is not None and (everything or len(chosen) > 1 or target.is_dir())
        if target is None and (everything or len(chosen) > 1):
            raise click.UsageError("Several conversations need a folder: --output FOLDER", click.get_current_context())
        written: list[dict[str, str]] = []
        for info in chosen:
            text = store.export_markdown(info.id) if form == "md" else store.export_json(info.id)
            if target is None:
                output.piece(text if not output.is_terminal(sys.stdout) else output.plain(text))
                continue
            path = target / listing.file_name(info, form) if into_folder else target
            _write(path, text, force=force)
            written.append({"id": info.id, "title": info.title, "path": str(path.absolute())})
    if as_json:
        output.json_object(written)
    elif target is not None:
        output.note(f"{plural(len(chosen), 'conversation')} exported to {target}")


@conversations.command(
    "import",
    epilog=examples(
        "edge conversations import walrus.json",
        "edge conversations import ~/Downloads/chatgpt-export.zip",
        "edge conversations import ~/.config/io.datasette.llm/logs.db",
        "ssh pi edge conversations export 1m8n3k | edge conversations import -",
    ),
)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@json_option
@pass_app
def import_(app: App, files: tuple[Path, ...], as_json: bool) -> int:
    """Import conversations that edge, ChatGPT or llm exported, and print their ids and titles.

    Reads Markdown and JSON of edge conversations export and of /save, ChatGPT's data export (its ZIP file or its
    conversations.json) and the log of Simon Willison's llm. Nothing is added twice: a file that is imported again adds what is
    new in it. What is damaged is reported, and the rest is imported; the exit code is 1 then. FILE may be - for stdin.
    """
    from edge.conversation.imports import import_file
    from edge.errors import EdgeError

    codes: list[int] = []
    results: list[dict[str, Any]] = []
    with app.store(app.settings()) as store, output.Status() as status, TemporaryDirectory() as folder:
        for name in files:
            file = _saved_stdin(Path(folder)) if str(name) == "-" else name
            shown = Path("stdin") if str(name) == "-" else name
            status.show(f"Reading {shown}")
            try:
                report = import_file(store, file, on_progress=lambda n: status.show(f"{plural(n, 'conversation')} read"))
            except EdgeError as error:
                codes.append(error.exit_code)
                status.clear()
                message = error.message.replace(str(file), str(shown))
                output.error(message, error.hint)
                results.append({"file": str(shown), "error": message, "hint": error.hint})
                continue
            status.clear()
            codes += [1] if report.problems else []
            results.append(listing.report_json(shown, report))
            if not as_json:
                _show_import(shown, report)
    if as_json:
        output.json_object(results)
    return codes[0] if codes else 0


@conversations.command(
    epilog=examples(
        "edge conversations rm 1m8n3k", "edge conversations rm --older-than 90d", "edge conversations rm --older-than 1y --yes"
    )
)
@click.argument("names", nargs=-1, metavar="[CONVERSATION]...", shell_complete=complete_conversation)
@click.option("--older-than", metavar="AGE", help="Delete those without a message for so long: 12h, 30d, 8w, 6m, 1y.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before deleting by age.")
@json_option
@pass_app
def rm(app: App, names: tuple[str, ...], older_than: str | None, yes: bool, as_json: bool) -> int:
    """Delete conversations for good, with their part of the KV cache and of the chat's input history.

    Those named are deleted at once; --older-than asks first.
    """
    require_exclusive(("CONVERSATION", names), ("--older-than", older_than))
    if not names and older_than is None:
        raise click.UsageError("Name one or more conversations, or give --older-than AGE.", click.get_current_context())
    settings = app.settings()
    with app.store(settings) as store:
        if older_than is not None:
            before = time.time() - _seconds(older_than)
            chosen = [info for info in store.list() if info.updated < before]
            if chosen and not yes and not _is_agreed(chosen, older_than):
                output.note("Nothing was deleted.")
                return 1
        else:
            chosen = _get_each(store, names)
        typed = _typed_texts(store, chosen)
        if chosen:
            store.delete(*(info.id for info in chosen))
    if typed:
        from edge_chat.history import HISTORY_FILE, PromptHistory

        PromptHistory(settings.paths.data_dir / HISTORY_FILE).forget(typed)
    if as_json:
        output.json_object([{"id": info.id, "title": info.title} for info in chosen])
        return 0
    for info in chosen if older_than is None else ():
        output.note(f"Deleted {info.id}: {info.title or listing.UNTITLED}")
    if older_than is not None:
        output.note(f"{plural(len(chosen), 'conversation')} deleted." if chosen else f"None is older than {older_than}.")
    return 0


def _typed_texts(store: ConversationStore, chosen: list[ConversationInfo]) -> list[str]:
    """Return what the user typed in conversations, drafts included."""
    from edge.conversation.files import from_json
    from edge_chat.attachments import unpack_draft

    nodes = (node for info in chosen for node in from_json(store.export_json(info.id)).nodes)
    return [node.content for node in nodes if node.role == "user"] + [unpack_draft(i.draft)[0] for i in chosen if i.draft]


def _get_each(store: ConversationStore, names: tuple[str, ...]) -> list[ConversationInfo]:
    """Return the conversations with these ids or prefixes, each once."""
    return list({info.id: info for info in map(store.get, names)}.values())


def _seconds(age: str) -> float:
    from edge.errors import UsageError

    match = _AGE.fullmatch(age.strip().lower())
    if match is None:
        raise UsageError(f"--older-than cannot be {age!r}.", "Give a number and a unit: 12h, 30d, 8w, 6m (months), 1y")
    return int(match[1]) * _UNITS_S[match[2]]


def _is_agreed(chosen: list[ConversationInfo], age: str) -> bool:
    """Ask whether to delete.

    Raises:
        UsageError: there is no terminal to ask on.
    """
    from edge.errors import UsageError

    if not (output.is_terminal(sys.stdin) and output.is_terminal(sys.stderr)):
        raise UsageError(
            f"{plural(len(chosen), 'conversation')} would be deleted, and there is no terminal to ask on.",
            f"Look at them with edge conversations ls; then: edge conversations rm --older-than {age} --yes",
        )
    for info in chosen[:10]:
        output.note("  ".join(listing.info_row(info, time.time())))
    if len(chosen) > 10:
        output.note(f"and {len(chosen) - 10:,} more")
    return click.confirm(f"Delete {plural(len(chosen), 'conversation')} for good?", default=False, err=True)


def _saved_stdin(folder: Path) -> Path:
    """Write stdin to a file, by whose content it is recognised, and return its path.

    Raises:
        UsageError: it is closed, or cannot be read.
    """
    from edge.conversation.chatgpt import MAX_BYTES

    path = folder / "stdin"
    path.write_bytes(read_stdin(MAX_BYTES + 1))
    return path


def _show_import(file: Path, report: ImportReport) -> None:
    """Print what came in: ids and titles to stdout, the rest to stderr."""
    rows = [(one.conversation.id, one.conversation.title or listing.UNTITLED) for one in (*report.added, *report.grown)]
    if len(rows) <= _MAX_SHOWN or not output.is_terminal(sys.stdout):
        output.table(rows)
    for problem in report.problems:
        output.note(output.plain(problem))
    output.note(f"{output.plain(str(file))}: {report.summary()}")


def _write(path: Path, text: str, *, force: bool) -> None:
    """Write a file that only its owner may read.

    Raises:
        UsageError: it exists already.
        StorageError: it cannot be written.
    """
    from edge.errors import UsageError
    from edge.files import exists, write_private

    if not force and exists(path):
        raise UsageError(f"{path} already exists.", "Choose another name, or give --force.")
    write_private(path, text.encode("utf-8", "replace"))
