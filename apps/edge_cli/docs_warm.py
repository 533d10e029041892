"""`edge docs warm`: prefill the passages of a collection ahead, and pin them on the disk."""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from edge.units import duration_text, size_text
from edge_cli import output, signals
from edge_cli.app import App, pass_app
from edge_cli.completers import complete_collection
from edge_cli.group import examples
from edge_cli.kv_warm import check_disk, check_enabled, follow_prefill
from edge_cli.options import days_option, json_option, model_options, require_exclusive, settings_from

if TYPE_CHECKING:
    from edge.assistant import Assistant
    from edge.config import Settings
    from edge.documents import Collection

__all__ = ["warm"]

EXAMPLES = examples("edge docs warm", "edge docs warm -c manual --most 100", "edge docs warm -c manual --days 7 --json")


@dataclass
class _Done:
    """What was prefilled so far.

    Attributes:
        n_starts, n_wanted: beginnings of prompts, and how many there are to prefill.
        n_computed, n_reused: their tokens.
        prefill_ms: time that it took.
        is_complete: Ctrl-C did not end it.
    """

    n_wanted: int
    n_starts: int = 0
    n_computed: int = 0
    n_reused: int = 0
    prefill_ms: float = 0.0
    is_complete: bool = True


@click.command("warm", epilog=EXAMPLES)
@click.option(
    "-c", "--collection", "name", metavar="NAME", default="docs", shell_complete=complete_collection, help="Collection [docs]."
)
@click.option("--most", type=click.IntRange(min=1, max=10_000), default=32, metavar="N", help="Beginnings at most [32].")
@model_options
@click.option("--system", metavar="TEXT", help="System prompt of the questions to come.")
@days_option
@click.option("--no-pin", is_flag=True, help="Store it, but let it be evicted like everything else.")
@json_option
@pass_app
def warm(app: App, name: str, most: int, **options: Any) -> int:
    """Process passages ahead, so that questions to a collection are answered sooner, also after a restart.

    A prompt shares its beginning with an earlier one only as far as both are the same. So beginnings are processed: those of
    earlier prompts that came more than once, then each passage as the first of a prompt, those that were asked for most often
    first. Later questions put a passage that is ready in front. Everything counts: model, system prompt and text, so warm again
    after the documents changed. What an earlier run pinned for the collection is unpinned.

    It makes way for replies. Ctrl-C keeps what is done by then, and the same command goes on from there.
    """
    from edge.grounding.sources import open_collection
    from edge.grounding.warming import release

    require_exclusive(("--days", options["days"]), ("--no-pin", options["no_pin"]))
    settings = settings_from(app, options)
    check_enabled(settings)
    with contextlib.ExitStack() as stack:
        collection = stack.enter_context(open_collection(name, settings.paths.documents_dir))
        with app.blocks(settings) as blocks:
            release(blocks, name)
        status = stack.enter_context(output.Status())
        ai = stack.enter_context(
            app.load(settings=settings, store=None, on_progress=lambda stage, share: status.show(f"{stage} {settings.model}"))
        )
        check_disk(ai)
        status.close()
        done = _prefill(ai, settings, collection, most, pins=not options["no_pin"])
    n_stored, size_bytes = _stored(app, settings, name, options["days"])
    if options["as_json"]:
        about = {"collection": name, "n_stored": n_stored, "size_bytes": size_bytes, "is_pinned": not options["no_pin"]}
        output.json_object({**about, **asdict(done), "days": options["days"]})
    else:
        _report(done, n_stored, size_bytes, options)
    return 0 if done.is_complete else signals.exit_code()


def _prefill(ai: Assistant, settings: Settings, collection: Collection, most: int, *, pins: bool) -> _Done:
    """Prefill the beginnings of prompts, one after the other, until all are done or Ctrl-C comes."""
    from edge.grounding.warming import note_start, starts_of, warm_start
    from edge_cli.progress import CountProgress

    starts = starts_of(collection, most)
    done = _Done(len(starts))
    with CountProgress("prefilled", len(starts)) as progress:
        for start in starts:
            reply = warm_start(ai, collection, start, system=settings.system or None, pins=pins)
            is_interrupted = follow_prefill(reply, lambda *_: None)
            done.n_computed += reply.usage.n_computed
            done.n_reused += reply.usage.n_reused
            done.prefill_ms += reply.timing.prefill_ms
            if is_interrupted:
                done.is_complete = False
                break
            note_start(collection, start)
            done.n_starts += 1
            progress.step()
    ai.flush_cache()
    return done


def _stored(app: App, settings: Settings, name: str, days: float | None) -> tuple[int, int]:
    """Return how many tokens of the collection are stored, and their bytes. Their pins get their end."""
    from edge.grounding.warming import owner_of

    with app.blocks(settings) as store:
        blocks = store.ls(owner=owner_of(name))
        if days is not None:
            for block in blocks:
                store.pin(bytes.fromhex(block.key), time.time() + days * 86_400)
            store.flush(60.0)
    return sum(block.n_tokens for block in blocks), sum(block.size_bytes for block in blocks)


def _report(done: _Done, n_stored: int, size_bytes: int, options: dict[str, Any]) -> None:
    days = "" if options["days"] is None else f" for {options['days']:g} days"
    state = "stored" if options["no_pin"] else f"stored and pinned{days}"
    took = duration_text(done.prefill_ms / 1000)
    output.note(f"{done.n_starts:,} of {done.n_wanted:,} beginnings: {done.n_computed:,} tokens in {took}.")
    output.note(f"{n_stored:,} tokens are {state} ({size_text(size_bytes)}).")
    if not done.is_complete:
        output.note("Interrupted. The same command goes on from there.")
