"""`edge kv`: manage the on-disk KV cache."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.units import quoted, size_text
from edge_cli import kv_listing as listing
from edge_cli import output
from edge_cli.app import App, pass_app
from edge_cli.completers import complete_conversation
from edge_cli.group import SuggestingGroup, examples
from edge_cli.kv_slot import import_slot
from edge_cli.kv_warm import warm
from edge_cli.options import days_option, json_option, model_options, require_input, settings_from

if TYPE_CHECKING:
    from edge.config import Settings
    from edge.kv.bundle import Bundle
    from edge.kv.records import BlockInfo
    from edge.kv.verify import CacheCheck

__all__ = ["kv"]

_MAX_SHOWN = 100
_ROWS_AT_ONCE = 1000
_NEWEST = 20_000
"""Blocks that `edge kv ls` counts; reading as many takes some 0.2 s."""
_BUNDLE_WARNING = "A bundle holds the chat unencrypted, even with kv.encrypt: protect it like the chat itself."


@click.group(cls=SuggestingGroup)
def kv() -> None:
    """Manage the on-disk KV cache.

    It stores processed prompts, so that they are not processed again after a restart. Everything deleted here is recomputed
    when it is needed. Settings: edge config get kv. More: docs/kv.md.
    """


kv.add_command(warm)
kv.add_command(import_slot)


@kv.command(epilog=examples("edge kv ls", "edge kv ls --blocks", "edge kv ls --json | jq -r '.[].title'"))
@click.option("--blocks", "by_block", is_flag=True, help="List every block with its key.")
@click.option("--all", "everything", is_flag=True, help=f"Count all blocks, not only the {_NEWEST:,} newest.")
@json_option
@pass_app
def ls(app: App, by_block: bool, everything: bool, as_json: bool) -> None:
    """List the cached tokens of each conversation, and those that several conversations share.

    Of a very large cache only the newest blocks are counted, which is said; --all takes about 10 seconds for a million blocks.

    "saves" is the time that processing them again would take. A prefix that several conversations share is stored once and has
    a line of its own, so the lines add up.
    """
    settings = app.settings()
    with app.blocks(settings) as store:
        if by_block:
            _list_blocks(store.each_block(), as_json)
            return
        used = store.usages(None if everything else _NEWEST)
        n_blocks = 0 if everything else store.n_blocks()
    if n_blocks > _NEWEST:
        output.note(f"These are the newest {_NEWEST:,} of {n_blocks:,} blocks. All of them: edge kv ls --all")
    warmed = listing.warmed(owner for one in used for owner in one.owners)
    groups = listing.grouped(used, {**listing.titles(app, settings), **warmed})
    if as_json:
        output.json_object([dataclasses.asdict(group) for group in groups])
        return
    if not groups:
        output.note("Nothing is stored yet. edge chat stores the prompts that it processes.")
    output.table([group.row(time.time()) for group in groups], listing.GROUP_HEADINGS)


def _list_blocks(blocks: Iterable[BlockInfo], as_json: bool) -> None:
    """Write blocks as they come: a large cache has a million of them."""
    if as_json:
        output.json_list(dataclasses.asdict(block) for block in blocks)
        return
    remaining, now = iter(blocks), time.time()
    headings: tuple[str, ...] = listing.BLOCK_HEADINGS
    while portion := list(islice(remaining, _ROWS_AT_ONCE)):
        output.table(listing.block_rows(portion, now), headings)
        headings = ()


@kv.command(epilog=examples("edge kv stats", "edge kv stats --json | jq .size_bytes"))
@json_option
@pass_app
def stats(app: App, as_json: bool) -> None:
    """Show the size of the cache, its budget and its models."""
    settings = app.settings()
    with app.blocks(settings) as store:
        found = store.stats()
        directory = store.directory
    if as_json:
        output.json_object(listing.stats_json(found, settings, str(directory)))
    else:
        output.table(listing.stats_rows(found, settings, str(directory)))


@kv.command(epilog=examples("edge kv verify", "edge kv verify --logits 3", "edge kv verify --json"))
@click.option(
    "--logits",
    "n_checks",
    type=click.IntRange(min=1),
    metavar="N",
    help="Also load the model, restore the N newest conversations and compare its next token with a run without the cache.",
)
@model_options
@json_option
@pass_app
def verify(app: App, n_checks: int | None, as_json: bool, **options: Any) -> int:
    """Verify every block byte for byte.

    Damaged blocks are deleted, and recomputed when they are needed; the exit code is then 1.

    With --logits the exit code is also 1 if the model would choose another token, or with kv.exact if any logit differs. That
    takes as long as processing the conversations without the cache.
    """
    settings = settings_from(app, options)
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
            output.line(f"{key[:12]}  deleted: {reason}")
        bad = f"{len(report.damaged):,} were damaged and are deleted" if report.damaged else "all are intact"
        output.note(f"{report.n_checked:,} blocks checked, {size_text(report.size_bytes)}: {bad}.")
        for check, is_bad in zip(checks, are_bad, strict=True):
            verdict = "another token" if not check.is_same_choice else "differs" if is_bad else "same token"
            foreign = f", {check.n_foreign:,} of another engine" if check.n_foreign else ""
            output.line(
                f"{check.owner}  {check.n_tokens:,} tokens ({check.n_decoded:,} decoded{foreign})  "
                f"largest difference {check.max_difference:.4g}  KL {check.kl:.2g}  {verdict}"
            )
    return 1 if report.damaged or any(are_bad) else 0


def _compare_logits(settings: Settings, n_checks: int) -> list[CacheCheck]:
    import edge

    with output.Status() as status, edge.load(settings=settings, on_progress=lambda *_: status.show("Loading the model")) as ai:
        return ai.check_cache(
            n_checks, on_progress=lambda done, total: status.show(f"Processing conversation {done + 1} of {total} again")
        )


@kv.command(epilog=examples("edge kv gc", "edge kv gc --gone"))
@click.option("--gone", is_flag=True, help="Also delete blocks that only deleted conversations used.")
@json_option
@pass_app
def gc(app: App, gone: bool, as_json: bool) -> None:
    """Clean up the directory: unknown files, entries without a file, blocks beyond the budget.

    edge does this by itself after a crash and once a week.
    """
    settings = app.settings()
    with app.blocks(settings) as store:
        report = store.gc()
        known, owners = listing.titles(app, settings), store.owners() if gone else []
        deleted = sorted(set(owners) - known.keys() - listing.warmed(owners).keys())
        forgotten = list(store.forget_all(deleted).values()) if deleted else []
    n_blocks, freed = sum(each.n_blocks for each in forgotten), sum(each.size_bytes for each in forgotten)
    if as_json:
        output.json_object({**dataclasses.asdict(report), "n_gone": n_blocks, "gone_bytes": freed})
        return
    parts = [
        (report.n_indexed, "unknown files indexed"),
        (report.n_removed, "useless files removed"),
        (report.n_missing, "entries without a file removed"),
        (report.n_evicted, "blocks deleted to keep the budget"),
        (report.n_expired, "blocks deleted that were too old or too many of a model"),
        (n_blocks, f"blocks of deleted conversations deleted ({size_text(freed)})"),
        (report.n_foreign, "foreign files left alone"),
    ]
    output.note(", ".join(f"{count:,} {what}" for count, what in parts if count) or "Everything is in order.")


@kv.command(epilog=examples("edge kv forget 01jbx3k9", "edge kv forget --imported 01jbx3k9", "edge kv forget --all --json"))
@click.argument("conversations", nargs=-1, metavar="[CONVERSATION]...", shell_complete=complete_conversation)
@click.option("--all", "everybody", is_flag=True, help="Delete the blocks of all conversations.")
@click.option("--imported", is_flag=True, help="Delete all that came with these imported conversations, also what forks use.")
@json_option
@pass_app
def forget(app: App, conversations: tuple[str, ...], everybody: bool, imported: bool, as_json: bool) -> None:
    """Delete the blocks that only these conversations use. The conversations themselves stay.

    Shared and pinned blocks stay. Deleting a conversation does this by itself.

    What comes with a bundle (edge kv import) is used by that conversation and its forks only. With --imported all of it is
    deleted, also where it is pinned or a fork uses it, and what they have stored since.
    """
    if bool(conversations) == everybody or (everybody and imported):
        raise click.UsageError("Name one or more conversations, or give --all.", click.get_current_context())
    settings = app.settings()
    with app.blocks(settings) as store:
        if imported:
            spaces = listing.imported_namespaces(app, settings, store, conversations)
            reports = {id: store.forget_namespace(space) for id, space in spaces.items()}
        else:
            reports = store.forget_all(listing.owners(app, settings, store, conversations))
    if as_json:
        found = ({"id": id, **dataclasses.asdict(report)} for id, report in reports.items())
        output.json_object([{key: value for key, value in each.items() if key != "is_in_log" or value} for each in found])
        return
    _report_deleted(sum(r.n_blocks for r in reports.values()), sum(r.size_bytes for r in reports.values()))
    if any(report.is_in_log for report in reports.values()):
        output.note(
            "Their tokens are still in the log of the cache's index, since another process reads it. Close it and repeat."
        )


@kv.command(epilog=examples("edge kv clear"))
@json_option
@pass_app
def clear(app: App, as_json: bool) -> None:
    """Delete all blocks, pinned or not."""
    with app.blocks(app.settings()) as store:
        freed = store.stats().size_bytes
        n_blocks = store.clear()
    if as_json:
        output.json_object({"n_blocks": n_blocks, "size_bytes": freed})
    else:
        _report_deleted(n_blocks, freed)


def _report_deleted(n_blocks: int, freed_bytes: int) -> None:
    output.note(f"{n_blocks:,} blocks deleted, {size_text(freed_bytes)} freed.")


@kv.command(epilog=examples("edge kv pin 01jbx3k9", "edge kv pin 5f3a09c2 --days 7"))
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...", shell_complete=complete_conversation)
@days_option
@json_option
@pass_app
def pin(app: App, targets: tuple[str, ...], days: float | None, as_json: bool) -> None:
    """Pin blocks, so that they are never evicted.

    A TARGET is a conversation, or the first 8 or more digits of a block's key (see edge kv ls --blocks). The blocks before a
    pinned block stay too.
    """
    _set_pins(app, targets, True, as_json, None if days is None else time.time() + days * 86_400)


@kv.command(epilog=examples("edge kv unpin 01jbx3k9"))
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...", shell_complete=complete_conversation)
@json_option
@pass_app
def unpin(app: App, targets: tuple[str, ...], as_json: bool) -> None:
    """Unpin blocks, so that they may be evicted. TARGET is as for edge kv pin."""
    _set_pins(app, targets, False, as_json)


@kv.command("export", epilog=examples("edge kv export 01jbx3k9 chat.edge.zip"))
@click.argument("conversation", shell_complete=complete_conversation)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--force", is_flag=True, help="Replace an existing file.")
@json_option
@pass_app
def export_bundle(app: App, conversation: str, file: Path, force: bool, as_json: bool) -> None:
    """Export a conversation with its cached blocks into one file, for edge kv import on another machine.

    A bundle holds the chat unencrypted, even with kv.encrypt: protect it like the chat itself.
    """
    from edge.errors import UsageError
    from edge.kv.bundle import write_bundle

    if file.exists() and not force:
        raise UsageError(f"{file} already exists.", "Choose another name, or give --force.")
    settings = app.settings()
    with app.blocks(settings) as store, app.store(settings) as conversations, output.Status() as status:
        info = conversations.get(conversation)
        status.show(f"Writing {file}")
        about = {"title": info.title, "model": info.model}
        report = write_bundle(file, conversations.export_json(info.id), store.export_blocks(info.id), about)
    if as_json:
        output.json_object({"id": info.id, "path": str(file.absolute()), **dataclasses.asdict(report)})
        return
    output.note(f"{file}: {size_text(report.size_bytes)}, with {report.n_tokens:,} cached tokens.")
    output.note(_BUNDLE_WARNING)


@kv.command("import", epilog=examples("edge kv import chat.edge.zip", "edge kv import chat.edge.zip -m smollm2-135m"))
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@model_options
@json_option
@pass_app
def import_bundle(app: App, file: Path, as_json: bool, **options: Any) -> None:
    """Import the conversation of a bundle with its cached blocks, and print its new id.

    Every byte is checked first. If there are blocks, the model is loaded to see whether they fit this device; if not, the
    prompt is processed again when the conversation continues. Without -m it is the model last used in the conversation if that
    is on this device: nothing is downloaded because a bundle names it.

    Only import bundles from people you trust: the engine uses the blocks as they are.
    """
    from edge.errors import UsageError
    from edge.kv.bundle import open_bundle

    require_input(file)
    if listing.is_slot_file(file):
        raise UsageError(f"{file} is a slot file of llama.cpp.", f"Import it with: edge kv import-slot {quoted(file)} -m MODEL")
    with open_bundle(file) as bundle, output.Status() as status:
        bundle.verify(lambda done, total: status.show(f"Checking {size_text(done)} of {size_text(total)}"))
        settings = settings_from(app, options)
        model, why = None, ""
        if bundle.models:
            if not listing.names_model(options):
                settings = settings_from(app, options, {"model": _model_of(bundle, settings), "hub.offline": True})
            status.show("Loading the model")
            model, why = listing.fingerprint_here(app, settings)
        with app.store(settings) as conversations:
            info = conversations.import_json(bundle.conversation())
        n_cached, n_again = 0, sum(bundle.models.values())
        notices: list[str] = []
        if model is not None and model in bundle.models:
            status.show("Storing the blocks")
            n_cached, n_again, notices = _import_blocks(app, settings, bundle, model, info.id)
        elif bundle.models:
            notices = [why or "The bundle was made with another model or engine (the fingerprints differ)."]
    if n_again:
        notices.append(f"{n_again:,} tokens are left out: they are processed again when the conversation continues.")
    if as_json:
        found = {"id": info.id, "title": info.title, "n_tokens": n_cached, "n_left_out": n_again, "notices": notices}
        output.json_object(found)
        return
    output.line(info.id)
    for notice in notices:
        output.note(notice)
    output.note(f"Imported {info.title or 'a conversation without a title'}, with {n_cached:,} cached tokens.")
    output.note(f"Continue it with: edge chat --conversation {quoted(info.id)}")


def _model_of(bundle: Bundle, settings: Settings) -> str:
    """Return the model that a bundle names, which has to be one of this device, or the default one if it names none.

    Raises:
        UsageError: it is not on this device, or is a path, which means nothing here.
    """
    from edge.catalog.installed import list_models
    from edge.errors import UsageError

    named = bundle.about.get("model") or settings.model
    if named == settings.model or any(named in model.used_by for model in list_models(settings)):
        return str(named)
    shown = str(named)[:_MAX_SHOWN]
    raise UsageError(
        f"The bundle was made with the model {shown!r}, which is not on this device. Nothing was imported.",
        "If you trust it, get it with: edge models pull; or name the model to use: edge kv import FILE -m MODEL",
    )


def _import_blocks(app: App, settings: Settings, bundle: Bundle, model: bytes, owner: str) -> tuple[int, int, list[str]]:
    """Store blocks of a bundle; return the number of stored tokens, of tokens left out, and notices."""
    from edge.errors import EdgeError

    total = sum(bundle.models.values())
    try:
        with app.blocks(settings) as store:
            report = store.import_blocks(bundle.blocks(model), owner)
            n_cached = sum(block.n_tokens for block in store.ls(owner=owner))
    except EdgeError as error:
        return 0, total, [str(error)]
    problem = f"The cache cannot store blocks: {report.problem}." if report.problem else ""
    dropped = f"There was no room for {report.n_dropped:,} blocks." if report.n_dropped and not problem else ""
    return n_cached, max(0, total - n_cached), [notice for notice in (problem, dropped) if notice]


def _set_pins(app: App, targets: Sequence[str], is_pinned: bool, as_json: bool, until: float | None = None) -> None:
    settings = app.settings()
    with app.blocks(settings) as store:
        keys = sorted({key for target in targets for key in listing.keys_of(app, settings, store, target)})
        change = partial(store.pin, until=until) if is_pinned else store.unpin
        for key in keys:
            change(bytes.fromhex(key))
        if not store.flush(60.0) or store.problem:
            from edge.errors import StorageError

            raise StorageError(f"The pins could not be saved: {store.problem or 'the store is busy'}.", "Try again.")
    if as_json:
        output.json_object({"keys": keys, "is_pinned": is_pinned, "pinned_until": until})
    else:
        output.note(f"{len(keys):,} blocks are {listing.pin_text(until) if is_pinned else 'no longer pinned'}.")
