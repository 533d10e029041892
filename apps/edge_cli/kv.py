"""`edge kv`: what is kept on the disk of what models have read, so that they need not read it again."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_cli import kv_listing as listing
from edge_cli import output
from edge_cli.app import App, pass_app
from edge_cli.completers import complete_conversation
from edge_cli.group import CONTEXT_SETTINGS, SuggestingGroup, examples
from edge_cli.options import flag_names, flags_from, json_option, model_options
from edge_cli.text import size

if TYPE_CHECKING:
    from edge.config import Settings
    from edge.kv.bundle import Bundle
    from edge.kv.verify import CacheCheck

__all__ = ["kv"]

BUNDLE_WARNING = "A bundle holds the chat in readable form, whatever kv.encrypt says: keep it like the chat itself."


@click.group(cls=SuggestingGroup, context_settings=CONTEXT_SETTINGS)
def kv() -> None:
    """What models have read, kept on the disk so that they need not read it again.

    It is a cache: whatever is deleted here is computed again when it is needed. Settings: edge config ls kv. More: docs/kv.md.
    """


@kv.command(
    context_settings=CONTEXT_SETTINGS,
    epilog=examples("edge kv ls", "edge kv ls --blocks", "edge kv ls --json | jq -r '.[].title'"),
)
@click.option("--blocks", "by_block", is_flag=True, help="Every block, with its key.")
@json_option
@pass_app
def ls(app: App, by_block: bool, as_json: bool) -> None:
    """What is kept: for each conversation, and what several of them share.

    "saves" is how long a model would take to read it again. What several conversations begin with is stored once and stands on
    a line of its own, so the lines add up.
    """
    settings = app.settings()
    with app.blocks(settings) as store:
        blocks = store.ls()
    if by_block:
        if as_json:
            output.json_object([dataclasses.asdict(block) for block in blocks])
        else:
            output.table(listing.block_rows(blocks, time.time()), listing.BLOCK_HEADINGS)
        return
    groups = listing.grouped(blocks, listing.titles(app, settings))
    if as_json:
        output.json_object([dataclasses.asdict(group) for group in groups])
        return
    if not groups:
        output.note("Nothing is kept yet. What a model reads in edge chat is.")
    output.table([group.row(time.time()) for group in groups], listing.GROUP_HEADINGS)


@kv.command(context_settings=CONTEXT_SETTINGS, epilog=examples("edge kv stats", "edge kv stats --json | jq .size_bytes"))
@json_option
@pass_app
def stats(app: App, as_json: bool) -> None:
    """How much is kept, how much may be, and for which models."""
    settings = app.settings()
    with app.blocks(settings) as store:
        found = store.stats()
        directory = store.directory
    if as_json:
        names = ("n_blocks", "n_tokens", "size_bytes", "budget_bytes", "index_bytes", "free_bytes", "prefill_ms")
        spaces = [
            {"fingerprint": model, "namespace": namespace, "n_blocks": n_blocks, "size_bytes": n_bytes}
            for model, namespace, n_blocks, n_bytes in found.spaces
        ]
        values = {name: getattr(found, name) for name in names}
        output.json_object({"directory": str(directory), "is_encrypted": settings.kv.encrypt, **values, "models": spaces})
        return
    share = found.size_bytes / found.budget_bytes if found.budget_bytes else 0.0
    rows = [
        ("directory", str(directory)),
        ("kept", f"{found.n_tokens:,} tokens in {found.n_blocks:,} blocks"),
        ("size", f"{size(found.size_bytes)}, {share:.0%} of the {size(found.budget_bytes)} it may take (kv.budget_gb)"),
        ("index", size(found.index_bytes)),
        ("saves", listing.seconds(found.prefill_ms)),
        ("free on that disk", f"{size(found.free_bytes)}, of which it leaves {size(settings.kv.min_free_gb * 1e9)}"),
        ("encrypted", "yes" if settings.kv.encrypt else "no (kv.encrypt)"),
    ]
    rows += [
        (f"model {model[:8]}" + (f", {namespace}" if namespace else ""), f"{size(n_bytes)} in {n_blocks:,} blocks")
        for model, namespace, n_blocks, n_bytes in found.spaces
    ]
    output.table(rows)


@kv.command(
    context_settings=CONTEXT_SETTINGS,
    epilog=examples("edge kv verify", "edge kv verify --logits 3", "edge kv verify --json"),
)
@click.option(
    "--logits",
    "n_checks",
    type=click.IntRange(min=1),
    metavar="N",
    help="Also load the model, restore the N newest conversations and compare what it says next with reading them again.",
)
@model_options
@json_option
@pass_app
def verify(app: App, n_checks: int | None, as_json: bool, **options: Any) -> int:
    """Read every block and check that it is, byte for byte, what was written.

    What is damaged is dropped, and computed again when it is needed; then the exit code is 1.

    With --logits the exit code is 1, too, if the model would have chosen another word, or with kv.exact if any number differs.
    Reading conversations again takes as long as it takes without the cache.
    """
    settings = app.settings(flags_from(options), flag_names(options))
    with app.blocks(settings) as store, output.Status() as status:
        report = store.verify(lambda done, total: status.show(f"Checking block {done:,} of {total:,}"))
    checks = _compare_logits(settings, n_checks) if n_checks else []
    are_bad = [not check.is_same_choice or (settings.kv.exact and check.max_difference > 0) for check in checks]
    if as_json:
        output.json_object(
            {
                "n_checked": report.n_checked,
                "size_bytes": report.size_bytes,
                "damaged": [{"key": key, "reason": reason} for key, reason in report.damaged],
                "logits": [dataclasses.asdict(check) for check in checks],
            }
        )
    else:
        for key, reason in report.damaged:
            output.line(f"{key[:12]}  dropped: {reason}")
        bad = f"{len(report.damaged):,} were damaged and are dropped" if report.damaged else "all of them are whole"
        output.note(f"{report.n_checked:,} blocks checked, {size(report.size_bytes)}: {bad}.")
        for check, is_bad in zip(checks, are_bad, strict=True):
            verdict = "another word" if not check.is_same_choice else "differs" if is_bad else "the same word"
            output.line(
                f"{check.owner}  {check.n_tokens:,} tokens ({check.n_decoded:,} decoded)  "
                f"largest difference {check.max_difference:.4g}  KL {check.kl:.2g}  {verdict}"
            )
    return 1 if report.damaged or any(are_bad) else 0


def _compare_logits(settings: Settings, n_checks: int) -> list[CacheCheck]:
    import edge

    with output.Status() as status, edge.load(settings=settings, on_progress=lambda *_: status.show("Loading the model")) as ai:
        return ai.check_cache(
            n_checks, on_progress=lambda done, total: status.show(f"Reading conversation {done + 1} of {total} again")
        )


@kv.command(context_settings=CONTEXT_SETTINGS, epilog=examples("edge kv gc", "edge kv gc --gone"))
@click.option("--gone", is_flag=True, help="Also delete what only conversations used that are not kept any more.")
@json_option
@pass_app
def gc(app: App, gone: bool, as_json: bool) -> None:
    """Put the directory in order: files that nobody knows, entries without a file, more than the budget.

    edge does this by itself after a crash and once a week.
    """
    settings = app.settings()
    with app.blocks(settings) as store:
        report = store.gc()
        known = listing.titles(app, settings)
        strangers = sorted({owner for block in store.ls() for owner in block.owners} - known.keys()) if gone else []
        forgotten = [store.forget(owner) for owner in strangers]
    n_blocks, freed = sum(each.n_blocks for each in forgotten), sum(each.size_bytes for each in forgotten)
    if as_json:
        output.json_object({**dataclasses.asdict(report), "n_gone": n_blocks, "gone_bytes": freed})
        return
    parts = [
        (report.n_indexed, "unknown files taken in"),
        (report.n_removed, "files of no use removed"),
        (report.n_missing, "entries without a file dropped"),
        (report.n_evicted, "blocks deleted to keep the budget"),
        (n_blocks, f"blocks of conversations that are gone deleted ({size(freed)})"),
        (report.n_foreign, "files that are not edge's left alone"),
    ]
    output.note(", ".join(f"{count:,} {what}" for count, what in parts if count) or "Everything is in order.")


@kv.command(context_settings=CONTEXT_SETTINGS, epilog=examples("edge kv forget 01jbx3k9", "edge kv forget --all --json"))
@click.argument("conversations", nargs=-1, metavar="[CONVERSATION]...", shell_complete=complete_conversation)
@click.option("--all", "everybody", is_flag=True, help="What every conversation used.")
@json_option
@pass_app
def forget(app: App, conversations: tuple[str, ...], everybody: bool, as_json: bool) -> None:
    """Delete what only these conversations used. The conversations themselves stay.

    What others use too stays, and so does what is pinned. Deleting a conversation does this by itself.
    """
    if bool(conversations) == everybody:
        raise click.UsageError("Name one or more conversations, or give --all.", click.get_current_context())
    settings = app.settings()
    with app.blocks(settings) as store:
        ids = listing.owners(app, settings, store, conversations)
        reports = {id: store.forget(id) for id in ids}
    if as_json:
        output.json_object([{"id": id, **dataclasses.asdict(report)} for id, report in reports.items()])
        return
    n_blocks = sum(report.n_blocks for report in reports.values())
    output.note(f"{n_blocks:,} blocks deleted, {size(sum(report.size_bytes for report in reports.values()))} are free again.")


@kv.command(context_settings=CONTEXT_SETTINGS, epilog=examples("edge kv clear"))
@json_option
@pass_app
def clear(app: App, as_json: bool) -> None:
    """Delete everything that is kept, pinned or not."""
    with app.blocks(app.settings()) as store:
        freed = store.stats().size_bytes
        n_blocks = store.clear()
    if as_json:
        output.json_object({"n_blocks": n_blocks, "size_bytes": freed})
    else:
        output.note(f"{n_blocks:,} blocks deleted, {size(freed)} are free again.")


@kv.command(context_settings=CONTEXT_SETTINGS, epilog=examples("edge kv pin 01jbx3k9", "edge kv pin 5f3a09c2"))
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...", shell_complete=complete_conversation)
@json_option
@pass_app
def pin(app: App, targets: tuple[str, ...], as_json: bool) -> None:
    """Never delete this to make room.

    A TARGET is a conversation, or the beginning (8 digits or more) of a block's key: see edge kv ls --blocks. What a pinned
    block follows stays with it.
    """
    _set_pins(app, targets, True, as_json)


@kv.command(context_settings=CONTEXT_SETTINGS, epilog=examples("edge kv unpin 01jbx3k9"))
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...", shell_complete=complete_conversation)
@json_option
@pass_app
def unpin(app: App, targets: tuple[str, ...], as_json: bool) -> None:
    """Let this be deleted again when room is needed. TARGET is as for edge kv pin."""
    _set_pins(app, targets, False, as_json)


@kv.command("export", context_settings=CONTEXT_SETTINGS, epilog=examples("edge kv export 01jbx3k9 chat.edge.zip"))
@click.argument("conversation", shell_complete=complete_conversation)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@json_option
@pass_app
def export_bundle(app: App, conversation: str, file: Path, force: bool, as_json: bool) -> None:
    """Write a conversation, with what models have read of it, into one file that another machine can open.

    A bundle holds the chat in readable form, whatever kv.encrypt says: keep it like the chat itself.
    """
    from edge.errors import UsageError
    from edge.kv.bundle import write_bundle

    if file.exists() and not force:
        raise UsageError(f"There is a file {file} already.", "Choose another name, or give --force.")
    settings = app.settings()
    with app.blocks(settings) as store, app.store(settings) as conversations, output.Status() as status:
        info = conversations.get(conversation)
        status.show(f"Writing {file}")
        about = {"title": info.title, "model": info.model}
        report = write_bundle(file, conversations.export_json(info.id), store.export_blocks(info.id), about)
    if as_json:
        output.json_object({"id": info.id, "path": str(file.absolute()), **dataclasses.asdict(report)})
        return
    output.note(f"{file}: {size(report.size_bytes)}, with {report.n_tokens:,} tokens that need not be read again.")
    output.note(BUNDLE_WARNING)


@kv.command(
    "import",
    context_settings=CONTEXT_SETTINGS,
    epilog=examples("edge kv import chat.edge.zip", "edge kv import chat.edge.zip -m smollm2-135m"),
)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@model_options
@json_option
@pass_app
def import_bundle(app: App, file: Path, as_json: bool, **options: Any) -> None:
    """Add the conversation of a bundle, and what models have read of it. Prints its new id.

    Every byte is checked before anything is added. The model is loaded, to see whether what was read with it there is of use
    here; if not, the conversation is read again when it goes on. Without -m it is the model the conversation was last used
    with.

    Only import bundles of people you trust: an engine believes what is in them.
    """
    from edge.kv.bundle import open_bundle

    with open_bundle(file) as bundle, output.Status() as status:
        bundle.verify(lambda done, total: status.show(f"Checking {size(done)} of {size(total)}"))
        flags = flags_from(options)
        if "model" not in flags and bundle.about.get("model"):
            flags["model"] = str(bundle.about["model"])
        settings = app.settings(flags, flag_names(options))
        status.show("Loading the model")
        model, why = listing.fingerprint_here(app, settings)
        with app.store(settings) as conversations:
            info = conversations.import_json(bundle.conversation())
        n_read, n_again = 0, sum(bundle.models.values())
        notices: list[str] = []
        if model is not None and model in bundle.models:
            status.show("Storing what was read")
            n_read, n_again, notices = _import_blocks(app, settings, bundle, model, info.id)
        elif bundle.models:
            notices = [why or "This model or engine is not the one the bundle was made with (the fingerprints differ)."]
    if n_again:
        notices.append(
            f"{n_again:,} tokens are left out of the cache: the model reads them again when the conversation goes on."
        )
    if as_json:
        output.json_object({"id": info.id, "title": info.title, "n_tokens": n_read, "n_left_out": n_again, "notices": notices})
        return
    output.line(info.id)
    for notice in notices:
        output.note(notice)
    output.note(f"Imported {info.title or 'a conversation without a title'}: {n_read:,} tokens need not be read again.")
    output.note(f"Go on with: edge chat --conversation {info.id}")


def _import_blocks(app: App, settings: Settings, bundle: Bundle, model: bytes, owner: str) -> tuple[int, int, list[str]]:
    """Tokens that are stored now, tokens that are not, and what the user should know."""
    from edge.errors import StorageError

    total = sum(bundle.models.values())
    try:
        with app.blocks(settings) as store:
            report = store.import_blocks(bundle.blocks(model), owner)
            n_read = sum(block.n_tokens for block in store.ls(owner=owner))
    except StorageError as error:
        return 0, total, [str(error)]
    problem = f"The cache takes nothing just now: {report.problem}." if report.problem else ""
    dropped = f"{report.n_dropped:,} blocks found no room." if report.n_dropped and not problem else ""
    return n_read, max(0, total - n_read), [notice for notice in (problem, dropped) if notice]


def _set_pins(app: App, targets: Sequence[str], is_pinned: bool, as_json: bool) -> None:
    settings = app.settings()
    with app.blocks(settings) as store:
        keys = sorted({key for target in targets for key in listing.keys_of(app, settings, store, target)})
        change: Callable[[bytes], None] = store.pin if is_pinned else store.unpin
        for key in keys:
            change(bytes.fromhex(key))
        if not store.flush(60.0) or store.problem:
            from edge.errors import StorageError

            raise StorageError(
                f"That could not be written down: {store.problem or 'others keep the store busy'}.", "Try again."
            )
    if as_json:
        output.json_object({"keys": keys, "is_pinned": is_pinned})
    else:
        output.note(f"{len(keys):,} blocks are {'pinned' if is_pinned else 'not pinned any more'}.")
