"""`edge ladder`: how much faster replies became, step by step from the naive way, measured on this device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.units import duration_text
from edge_cli import output, signals
from edge_cli.app import App, pass_app
from edge_cli.bench import BUSY_PROCESSORS, find_models, load_of_others
from edge_cli.completers import complete_model
from edge_cli.group import examples
from edge_cli.options import backends_option, json_option, plot_option

if TYPE_CHECKING:
    from edge.bench.ladder_steps import Models
    from edge.bench.ladder_values import Kind, Ladder, Rung
    from edge.config import Settings
    from edge.formats.artifact import Artifact

__all__ = ["ladder"]

_ENTRY = "edge_cli.ladder_child:main"
_COLUMNS = ("step", "reply", "first word", "times faster", "document", "per item", "start", "reused", "KL", "top-1", "same", "")
_N_SPEED_COLUMNS = 7
_FOLDER, _ABANDONED_S = "ladder-", 3 * 86_400.0  # no run takes that long
_EXTENTS = ("full", "half", "quarter", "least")


@click.command(
    epilog=examples(
        "edge ladder",
        "edge ladder smollm2-135m --minutes 8 --plot ladder.svg",
        "edge ladder smollm2-135m --student student/gguf/student-Q4_0.gguf",
        "edge ladder --write same",
        "edge ladder --json | jq .rungs[].chat.total_s",
    )
)
@click.argument("model", required=False, shell_complete=complete_model)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0.1, max=600),
    default=5.0,
    show_default=True,
    metavar="N",
    help="Time for all; the workloads are as large as it allows.",
)
@click.option("--work", "extent", type=click.Choice(_EXTENTS), help="Extent of the workloads, however long it takes.")
@click.option(
    "--also",
    metavar="MODEL",
    multiple=True,
    shell_complete=complete_model,
    help="The same model in another format; may be repeated.",
)
@click.option(
    "--student", metavar="MODEL", shell_complete=complete_model, help="The same model with fewer layers, as a last step."
)
@click.option(
    "--draft",
    metavar="MODEL",
    shell_complete=complete_model,
    help="Draft model to try.  [default: the student, or the model itself]",
)
@backends_option
@click.option(
    "--write",
    type=click.Choice(["same", "fastest"]),
    help="Put the result into the settings: what leaves the model as it is, or all steps.",
)
@plot_option
@click.option(
    "--markdown", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write the table as Markdown."
)
@json_option
@pass_app
def ladder(app: App, model: str | None, **options: Any) -> int:
    """Measure step by step how much faster replies became, from the naive way.

    The naive way computes the model's weights in 16 bits with one thread and prefills the whole conversation in every turn.
    Each step adds one thing and stands on those before; it is really run, in processes of its own: a chat whose program is
    restarted in between, questions about a document, and texts to score. A step is taken if the chat gets faster. Lossless
    steps have to leave the model's answers as they are, beyond rounding; for all others the table says what is lost. Ctrl-C
    shows the steps so far.
    """
    import tempfile

    from edge.bench.ladder import run_ladder
    from edge.bench.ladder_work import WORKS
    from edge.files import make_private_dir

    _check_plot(options["plot_file"])
    output.check_target(options["plot_file"])
    output.check_target(options["markdown"])
    _check_backends(options["backends"])
    settings = app.settings()
    work = next((one for one in WORKS if one.name == options["extent"]), None)
    _remove_abandoned(make_private_dir(settings.paths.cache_dir))
    # On the disk of the user's own KV cache, since what is stored is read from there.
    with tempfile.TemporaryDirectory(prefix=_FOLDER, dir=settings.paths.cache_dir) as name, output.Status() as status:
        models = _models(app, settings, model or settings.model, options, Path(name), status)
        result = run_ladder(
            models,
            budget_s=60 * options["minutes"],
            entry=_ENTRY,
            folder=Path(name),
            work=work,
            on_progress=status.show_share,
        )
    if options["as_json"]:
        output.json_object(_json(result))
    else:
        output.wide_table(_COLUMNS, list(_rows(result)), _N_SPEED_COLUMNS)
    for note in _notes(result):
        output.note(output.plain(note))
    if options["write"] and result.is_complete:
        _write(settings, result, with_loss=options["write"] == "fastest")
    elif options["write"]:
        output.note("Nothing was written to the settings, since not every step was measured.")
    from edge.bench.ladder_plot import ladder_markdown, plot_ladder

    # Last, so that the results are shown even if they cannot be written.
    if options["plot_file"] is not None:
        output.write_file(options["plot_file"], plot_ladder(result))
    if options["markdown"] is not None:
        output.write_file(options["markdown"], ladder_markdown(result))
    return signals.exit_code() if result.stopped == "interrupted" else int(result.stopped == "late")


def _check_plot(path: Path | None) -> None:
    from edge.errors import UsageError

    if path is not None and path.suffix.lower() != ".svg":
        raise UsageError(f"{path} is not an SVG file.", "Name a file that ends with .svg; browsers show and print it.")


def _check_backends(names: Sequence[str]) -> None:
    from edge.registry import ENGINES

    for name in names:
        if name not in ENGINES:
            known = [row.name for row in ENGINES.values() if row.is_automatic]
            raise click.UsageError(f"There is no backend {name}. Known here: {', '.join(known)}.", click.get_current_context())


def _remove_abandoned(cache_dir: Path) -> None:
    """Remove what runs left that were killed: weights in 16 bits take gigabytes."""
    import shutil
    import time

    for folder in cache_dir.glob(f"{_FOLDER}*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(folder, ignore_errors=True)


def _models(app: App, settings: Settings, name: str, options: dict[str, Any], folder: Path, status: output.Status) -> Models:
    """Find the models of the ladder, and write the first rung's weights."""
    from edge.bench.ladder import unpacked
    from edge.bench.ladder_steps import Models
    from edge.errors import ModelTooLargeError

    backends = options["backends"]
    # The first rung is computed from the GGUF, whatever else there is.
    packed, *others = sorted(
        find_models(app, settings, (name, *options["also"]), backends), key=lambda one: one.format != "gguf"
    )
    student = _find(settings, options["student"]) if options["student"] else None
    draft = _find(settings, options["draft"]) if options["draft"] else None
    device = app.probe()
    status.show("writing the weights in 16 bits")
    start: Artifact | None = None
    if not backends or "llamacpp" in backends:  # others would take longer to read it
        try:
            start = unpacked(packed, folder, _ENTRY, device.cpu.usable_logical, device.memory.available_bytes)
        except ModelTooLargeError as error:
            output.note(output.plain(f"{error.message} So the first step has the weights as they are packed."))
    source = packed if start is not None else None
    return Models(
        device=device,
        start=start or packed,
        packed=(packed, *others) if source is not None else tuple(others),
        source=source,
        student=student,
        draft=draft or student or source,
        engines=backends,
    )


def _find(settings: Settings, name: str) -> Artifact:
    from edge.catalog import resolve
    from edge_cli.progress import PullProgress

    with PullProgress() as progress:
        return resolve(name, settings=settings, on_progress=progress.report)


def _json(result: Ladder) -> dict[str, Any]:
    """Return the result as JSON has it: paths as text."""
    import msgspec

    found: dict[str, Any] = msgspec.to_builtins(result, builtin_types=(bytes,))
    for rung in found["rungs"]:
        for name in ("path", "draft"):
            if rung["setup"] is not None and rung["setup"][name] is not None:
                rung["setup"][name] = rung["setup"][name].decode("utf-8", "replace")
    return found


def _rows(result: Ladder) -> Iterable[tuple[str, ...]]:
    """Yield a row of cells for each rung that was measured."""
    naive_s = result.rungs[0].chat.total_s if result.rungs and result.rungs[0].chat is not None else 0.0
    for rung in result.rungs:
        chat, about = rung.chat, rung.document
        if chat is None:
            continue
        yield (
            rung.title,
            duration_text(chat.total_s),
            duration_text(chat.first_s),
            f"{naive_s / chat.total_s:.1f}",
            duration_text(about.total_s) if about is not None else "",
            duration_text(rung.score_s) if rung.score_s is not None else "",
            duration_text(rung.ready_s) if rung.ready_s is not None else "",
            f"{chat.reused:.0%}",
            _kl_text(rung.kl),
            f"{rung.top1:.1%}" if rung.top1 is not None else "",
            f"{chat.n_same} of {chat.n_turns}",
            "" if rung.is_taken else "not taken",
        )


def _kl_text(kl: float | None) -> str:
    return "" if kl is None else "0" if kl < 1e-7 else f"{kl:.4f}" if kl >= 1e-3 else f"{kl:.0e}"


def _notes(result: Ladder) -> list[str]:
    """Return the results in sentences, what was not taken and why, and reasons to doubt the figures."""
    from edge.bench.ladder_values import best_of

    work, notes = result.work, []
    groups: tuple[tuple[str, tuple[Kind, ...]], ...] = (
        ("Nothing lost", ("start", "lossless")),
        ("With all steps", ("start", "lossless", "lossy")),
    )
    for title, kinds in groups:
        best = best_of(result, kinds)
        if best is not None and best.chat is not None and best.kind == kinds[-1]:
            notes.append(f"{title}: {_times(result.rungs[0], best)}")
    all_cores = next((rung for rung in result.rungs if rung.name == "threads" and rung.is_taken and rung.chat), None)
    top = best_of(result)
    if all_cores is not None and all_cores.chat is not None and top is not None and top.chat is not None:
        times = all_cores.chat.total_s / top.chat.total_s
        notes.append(f"Against the naive way with all cores, all steps make a reply {times:.1f} times faster.")
    missing = [rung for rung in result.rungs if rung.chat is None]
    notes += [f"{rung.title}: not tried, {rung.why}." for rung in missing if rung.setup is None]
    notes += [f"{rung.title}: failed. {rung.why}" for rung in missing if rung.setup is not None]
    notes += [f"{rung.title}: not taken, {rung.why}." for rung in result.rungs if rung.chat is not None and rung.why]
    if result.rungs:
        notes.append(
            f"Chat: {work.n_turns} turns of {work.n_reply} tokens behind a system prompt of {work.n_words} words, "
            f'{work.n_sessions} starts of the program. "reply" and "first word" are means over the turns, without loading, '
            'which is "start"; KL, top-1 and same replies are against the first row.'
        )
    if work.name != "full":
        notes.append(
            f"The workload is smaller than the full one ({work.name}), which gives other figures: --minutes, --work full."
        )
    if not result.is_complete:
        late = ", since it took twice as long as it should: --minutes" if result.stopped == "late" else ""
        notes.append(f"Stopped before {'every step' if result.rungs else 'anything'} was measured{late}.")
    if (busy := load_of_others()) > BUSY_PROCESSORS:
        notes.append(f"Other programs kept {busy:.1f} processors busy at the end, so these results mean little.")
    return notes


def _times(start: Rung, best: Rung) -> str:
    naive = start.chat
    assert naive is not None
    assert best.chat is not None
    first = naive.first_s / max(1e-9, best.chat.first_s)
    return (
        f"a reply takes {duration_text(best.chat.total_s)} instead of {duration_text(naive.total_s)}, "
        f"{naive.total_s / best.chat.total_s:.1f} times faster; its first word comes {first:.1f} times sooner."
    )


def _write(settings: Settings, result: Ladder, *, with_loss: bool) -> None:
    """Put the settings of the chosen rung into the settings file."""
    from edge.bench.ladder_profile import settings_of
    from edge.config import split_key
    from edge.config.toml import set_in_file, unset_in_file

    found, file = settings_of(result, with_loss=with_loss), settings.paths.config_file
    written: list[str] = []
    for name, value in found.items():
        if value is not None:
            set_in_file(file, split_key(name), value)
            written.append(f"{name} = {value}")
        elif unset_in_file(file, split_key(name)):
            written.append(f"{name} removed")
    output.note(output.plain(f"Written to {file}: {', '.join(written)}."))
    output.note("Undo one with: edge config unset NAME. Batch and attention: edge tune")
