"""`edge kv warm`: prefill documents and prompts ahead, and pin them on the disk."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.units import duration_text, size_text
from edge_cli import output, signals
from edge_cli.app import App, pass_app
from edge_cli.completers import complete_conversation
from edge_cli.group import examples
from edge_cli.options import days_option, json_option, model_options, require_exclusive, settings_from

if TYPE_CHECKING:
    from edge.assistant import Assistant
    from edge.config import Settings
    from edge.conversation import Attachment
    from edge.reply import Reply

__all__ = ["check_disk", "check_enabled", "follow_prefill", "warm"]

_STOP_WITHIN_S = 10.0
_POLL_S = 0.1
_EXAMPLES = examples(
    "edge kv warm manual.md faq.md",
    'edge kv warm --system "Answer from the manual." manual.md -m smollm2-135m',
    "edge kv warm --name prompt < prompt.txt",
    "edge kv warm --conversation 01jbx3k9",
)


@click.command(epilog=_EXAMPLES)
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, allow_dash=True), metavar="[FILE]...")
@model_options
@click.option("--system", metavar="TEXT", help="System prompt.")
@click.option("--conversation", metavar="ID", shell_complete=complete_conversation, help="Prefill that conversation, too.")
@click.option("--name", metavar="NAME", help="Name in edge kv ls, unpin and forget. Default: the names of the files.")
@days_option
@click.option("--no-stdin", is_flag=True, help="Do not read stdin.")
@click.option("--no-pin", is_flag=True, help="Store it, but let it be evicted like everything else.")
@json_option
@pass_app
def warm(app: App, files: tuple[Path, ...], **options: Any) -> int:
    """Process a prompt ahead and pin it in the cache, so that messages that begin with it are answered sooner.

    A FILE is a document, as in edge run -f; stdin is the beginning of the message. Everything counts: the same model, system
    prompt, files and order are found again, in edge run, edge chat and Python, also after a restart.

    Ctrl-C keeps what is done by then.
    """
    require_exclusive(("--days", options["days"]), ("--no-pin", options["no_pin"]))
    require_exclusive(("--conversation", options["conversation"]), ("--system", options["system"]))
    settings = settings_from(app, options)
    text, documents = _read(files, options)
    name = options["name"] or " ".join(document.name for document in documents) or ("stdin" if text else "system")
    reply, is_interrupted = _prefill(app, settings, text, documents, name, options)
    usage = reply.usage
    n_stored, size_bytes = _stored(app, settings, options, name)
    if options["as_json"]:
        output.json_object(
            {
                "name": name,
                "n_tokens": usage.n_prompt,
                "n_reused": usage.n_reused,
                "n_restored": usage.n_restored,
                "n_computed": usage.n_computed,
                "prefill_ms": reply.timing.prefill_ms,
                "n_stored": n_stored,
                "size_bytes": size_bytes,
                "is_pinned": not options["no_pin"],
                "days": options["days"],
                "is_complete": not is_interrupted,
            }
        )
    else:
        for notice in reply.notices:
            output.note(notice)
        days = "" if options["days"] is None else f" for {options['days']:g} days"
        state = "stored" if options["no_pin"] else f"stored and pinned{days}"
        if is_interrupted:
            output.note(f"Interrupted: {n_stored:,} tokens are {state}. The same command goes on from there.")
        else:
            took = duration_text(reply.timing.prefill_ms / 1000)
            reused = f", {usage.n_reused:,} of them were cached" if usage.n_reused else ""
            output.note(f"{usage.n_prompt:,} tokens in {took}{reused}. {n_stored:,} are {state} ({size_text(size_bytes)}).")
            if not n_stored:
                output.note(
                    "A prompt of fewer than 32 tokens, or with kv.exact of fewer than 128, is not worth a file. If it has more,"
                )
                output.note("a limit or budget is used up: see edge kv stats.")
    return signals.exit_code() if is_interrupted else 0


def _read(files: Sequence[Path], options: dict[str, Any]) -> tuple[str, list[Attachment]]:
    """Return the beginning of the message, from stdin, and the documents.

    Raises:
        UsageError: there is nothing to prefill, or a file is not text.
    """
    from edge.errors import UsageError
    from edge_cli.prompt import read_prompt

    is_chatty = output.is_terminal(sys.stderr)
    text, documents = read_prompt((), files, use_stdin=not options["no_stdin"], is_chatty=is_chatty, needs_text=False)
    if not text.strip() and not documents and options["system"] is None and options["conversation"] is None:
        raise UsageError("There is nothing to process ahead.", "Name a file, or give --system or --conversation.")
    return text, documents


def _prefill(
    app: App, settings: Settings, text: str, documents: Sequence[Attachment], name: str, options: dict[str, Any]
) -> tuple[Reply, bool]:
    """Load the model and prefill. Returns the reply, and whether Ctrl-C ended it early."""
    from edge_cli.progress import TokenProgress

    check_enabled(settings)
    cache: Any = "disk" if options["no_pin"] else "keep"
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(app.store(settings)) if options["conversation"] else None
        status = stack.enter_context(output.Status())
        ai = stack.enter_context(
            app.load(settings=settings, store=store, on_progress=lambda stage, share: status.show(f"{stage} {settings.model}"))
        )
        status.close()
        check_disk(ai)
        if options["conversation"]:
            conversation = ai.conversation(options["conversation"], system=options["system"])
            reply = conversation.prewarm(text, attachments=documents, cache=cache)
        else:
            reply = ai.prewarm(text, system=settings.system or None, attachments=documents, name=name, cache=cache)
        with TokenProgress() as progress:
            is_interrupted = follow_prefill(reply, progress.report)
        ai.flush_cache()
        return reply, is_interrupted


def check_enabled(settings: Settings) -> None:
    """Check that the settings allow a KV cache on the disk.

    Raises:
        UsageError: they do not.
    """
    from edge.errors import UsageError

    if not settings.kv.enabled:
        raise UsageError("The on-disk KV cache is turned off.", "Turn it on: edge config set kv.enabled true")


def check_disk(ai: Assistant) -> None:
    """Check that the KV cache of a model is stored on the disk.

    Raises:
        UsageError, StorageError: it is not.
    """
    from edge.errors import StorageError, UsageError

    if ai.kv_fingerprint is None:
        hint = "Its budget is 0 (kv.model_budgets_gb), or its engine cannot."
        raise UsageError("Nothing is stored on the disk for this model.", hint)
    if ai.disk_problem is not None:
        raise StorageError(f"The on-disk KV cache is off: {ai.disk_problem}.", "See edge doctor.")


def follow_prefill(reply: Reply, report: Callable[[int, int], object]) -> bool:
    """Report the progress of a prefill until it is done, and return whether Ctrl-C ended it early; what is done stays."""
    is_interrupted = False
    try:
        while not reply.is_done:
            report(*reply.progress)
            with contextlib.suppress(TimeoutError):
                reply.wait(_POLL_S)
    except KeyboardInterrupt:
        is_interrupted = True
        reply.cancel()
    with contextlib.suppress(TimeoutError):
        reply.wait(_STOP_WITHIN_S if is_interrupted else None)
    return is_interrupted and reply.finish_reason != "stop"


def _stored(app: App, settings: Settings, options: dict[str, Any], name: str) -> tuple[int, int]:
    """Return how many tokens are stored of it, and their bytes. Their pins get their end."""
    from edge.kv.records import WARM_OWNER

    with app.blocks(settings) as store:
        if options["conversation"]:
            with app.store(settings) as conversations:
                owner = conversations.get(options["conversation"]).id
        else:
            owner = WARM_OWNER + name
        blocks = store.ls(owner=owner)
        if options["days"] is not None:
            for block in blocks:
                store.pin(bytes.fromhex(block.key), time.time() + options["days"] * 86_400)
            store.flush(60.0)
    return sum(block.n_tokens for block in blocks), sum(block.size_bytes for block in blocks)
