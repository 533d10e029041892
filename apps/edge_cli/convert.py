"""`edge convert`: a checkpoint becomes GGUF, ONNX or Core ML."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from edge.errors import EdgeError
from edge_cli import convert_names, output
from edge_cli.app import App, pass_app
from edge_cli.completers import complete_model
from edge_cli.group import CONTEXT_SETTINGS, examples
from edge_cli.options import json_option
from edge_cli.text import size

if TYPE_CHECKING:
    from edge_convert.facts import Request
    from edge_convert.inputs import Input
    from edge_convert.pipeline import Plan
    from edge_convert.smaller.recipe import Recipe

__all__ = ["convert"]

_ONLY_FOR = {
    "quant": "gguf",
    "variants": "coreml",
    "palette_bits": "coreml",
    "context": "coreml",
    "explicit_kv": "coreml",
    "compute_units": "verify",
}


@click.command(
    context_settings=CONTEXT_SETTINGS,
    epilog=examples(
        "edge convert ~/checkpoints/SmolLM2 --dry-run",
        "edge convert hf:Qwen/Qwen2.5-0.5B-Instruct --out qwen",
        "edge convert smollm2-135m --to gguf --quant Q4_K_M,Q4_0 --out smollm2",
        "edge convert hf:Qwen/Qwen3-0.6B --for this-device",
        "edge convert ~/checkpoints/SmolLM2 --to gguf,onnx --gate top1=0.9,kl=0.1",
        "edge convert smollm2-135m --keep-layers 15 --distill-minutes 30",
        "edge convert smollm2-135m --recipe smollm2-135m-15-layers --out student",
        "edge convert hf:Qwen/Qwen3-0.6B --lora my-adapter",
        "edge convert hf:Qwen/Qwen3-0.6B --lora hf:owner/adapter --name my-qwen",
        "edge convert verify smollm2/coreml-gpu/model.mlpackage",
    ),
)
@click.argument("source", shell_complete=complete_model)
@click.argument("package", required=False, metavar="")
@click.option("--to", "formats", default="gguf", show_default=True, metavar="FORMATS", help="gguf, onnx, coreml; with commas.")
@click.option("--bits", type=int, default=4, show_default=True, metavar="N", help="Bits a weight: 4, 5, 6, 8 or 16.")
@click.option("--quant", default="", metavar="NAMES", help="GGUF quantisations instead, such as Q4_K_M,Q4_0,IQ4_NL.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder for the results [./NAME-converted].")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and stop.")
@click.option("--force", is_flag=True, help="Replace results that are there.")
@click.option("--calibration", type=click.Path(path_type=Path), metavar="FILE", help="Text to find out which weights matter.")
@click.option("--calibration-tokens", type=click.IntRange(64), default=8_192, show_default=True, metavar="N")
@click.option("--no-imatrix", is_flag=True, help="Quantise without looking at which weights matter.")
@click.option("--threads", type=click.IntRange(0), default=0, metavar="N", help="CPU threads [all].")
@click.option("--variants", default="gpu,ane", show_default=True, metavar="NAMES", help="Core ML: gpu, ane, fp16.")
@click.option(
    "--palette-bits", type=click.Choice(["4", "6"]), default="6", show_default=True, help="Core ML, ane: bits a weight."
)
@click.option("--context", type=int, default=2048, show_default=True, metavar="TOKENS", help="Core ML: context window.")
@click.option("--card/--no-card", default=True, help="Evaluate the results against the source.")
@click.option("--gate", default="", metavar="LIMITS", help="Fail with exit code 5 beyond these: top1=0.9,kl=0.1,ppl=+5%.")
@click.option("--explicit-kv", is_flag=True, help="Core ML: keys and values as input and output instead of a state.")
@click.option(
    "--compute-units",
    type=click.Choice(["ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE"]),
    default="ALL",
    show_default=True,
    metavar="UNITS",
    help="verify: ALL, CPU_ONLY, CPU_AND_GPU, CPU_AND_NE.",
)
@click.option(
    "--for", "device", type=click.Choice(["this-device"]), help="Measure candidates here, and keep the fastest good one."
)
@click.option(
    "--keep-layers", type=click.IntRange(1), metavar="N", help="Make it smaller first: keep so many layers, and distil them."
)
@click.option(
    "--distill-minutes",
    type=click.FloatRange(0, min_open=True),
    metavar="N",
    help="How long what is left learns from the whole; the plan shows the steps before that.",
)
@click.option(
    "--distill-text",
    "texts",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="What it learns from [answers that the model writes itself].",
)
@click.option("--recipe", metavar="NAME", help="All of that from a file, or from a recipe that comes with edge.")
@click.option("--lora", metavar="DIR", help="Merge this LoRA adapter first: a folder, or hf:OWNER/REPO.")
@click.option("--name", metavar="NAME", help="Give the results this name in your catalogue.")
@click.option("--accept-licence", is_flag=True, help="Agree to the licence, where the model's makers ask for that.")
@json_option
@pass_app
def convert(app: App, source: str, package: str | None, **options: Any) -> int:
    """Convert a checkpoint to GGUF, ONNX or Core ML.

    SOURCE is the folder of a checkpoint, hf:OWNER/REPO, a GGUF file, or a name of the catalogue. The plan is shown first. A run
    that was interrupted goes on where it stopped when you give the same command again.

    Where SOURCE is a name of the catalogue, a format that it does not have yet is added to it: edge run -m NAME --backend onnx
    runs it, and edge tune NAME measures which is faster. --name gives any result a name.

    `edge convert verify PACKAGE` checks a Core ML package.
    """
    if source == "verify" and package is not None:
        from edge_cli.convert_verify import verify_package

        return verify_package(Path(package), options["compute_units"], as_json=options["as_json"])
    if source == "verify" and not Path(source).exists():
        raise click.UsageError("Which package? edge convert verify PACKAGE", click.get_current_context())
    if package is not None:
        raise click.UsageError(f"There is one source too many: {package}", click.get_current_context())
    _check_options(_names(options["formats"]))
    if (options["gate"] or options["device"]) and not options["card"]:
        raise click.UsageError("That needs the card: leave out --no-card.", click.get_current_context())
    name = convert_names.choose_name(app, source, options)
    request = _request(app, options)
    if options["gate"]:
        from edge_convert.evaluate.gate import parse_gate

        parse_gate(options["gate"])  # a mistake in it is said before the work, not after
    found = _find(app, source, accept_licence=options["accept_licence"])
    from edge_convert.choose import with_candidates
    from edge_convert.pipeline import check_resources
    from edge_convert.plan import make_plan

    if options["device"] and not options["quant"]:
        request = with_candidates(request, found)
    out = options["out"] or Path(f"{_stem(found)}-converted")
    plan = make_plan(found, out, request)
    if options["dry_run"]:
        _show(plan, as_json=options["as_json"])
        check_resources(plan, free_memory_bytes=_free_memory(app))
        return 0
    if not options["as_json"]:
        _show(plan, as_json=False)
    check_resources(plan, free_memory_bytes=_free_memory(app))
    from edge_convert.step_process import isolate

    return _run(isolate(plan, found, request), app, name, options)


def _run(plan: Plan, app: App, name: str, options: dict[str, Any]) -> int:
    from edge_cli.progress import ConvertProgress
    from edge_convert.pipeline import run

    try:
        with _sigterm_interrupts(), ConvertProgress() as progress:
            made = run(plan, progress.report, choose=lambda: _judge(plan, options["gate"], options["device"]))
    except KeyboardInterrupt:
        if plan.work.exists():
            output.note(f"Interrupted. Finished steps are kept in {plan.work}: the same command goes on from there.")
        else:
            output.note("Interrupted before a step was finished. Nothing is left behind.")
        return 130
    except EdgeError:
        if plan.work.exists():
            output.note(f"Finished steps are kept in {plan.work}, for another try.")
        raise
    named = convert_names.enter(app, name, made, is_asked=options["name"] is not None)
    peaks, residents = progress.peak_bytes, progress.resident_bytes
    if options["as_json"]:
        found = {"out": str(plan.out), "artifacts": [str(path) for path in made], "named": named}
        output.json_object({**found, "peak_bytes": peaks, "resident_bytes": residents})
        return 0
    for path in made:
        total = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        output.line(f"{path}  {size(total)}")
    if peaks:
        title = max(peaks, key=lambda title: peaks[title])
        times = f", {peaks[title] / plan.f16_bytes:.1f} times the weights in 16 bits" if plan.f16_bytes else ""
        mapped = f", {size(residents[title])} with mapped files" if residents[title] > peaks[title] else ""
        output.note(f"Most memory at once: {size(peaks[title])}{times}{mapped} ({title}).")
    convert_names.say_names(name, named)
    card = plan.out / "card/card.json"
    if card in [path / "card.json" for path in made]:
        from edge_cli.evaluate import print_card
        from edge_convert.evaluate.card import read_card

        output.line()
        print_card(read_card(card))
    return 0


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM ends a conversion as Ctrl-C does, so that nothing half-written stays."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are none of its business
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _judge(plan: Plan, gate: str, device: str | None) -> list[str]:
    """Which artifacts are kept: all, where they meet the gate, or the best for this device."""
    from edge_convert.choose import DEFAULT_GATE, choose
    from edge_convert.evaluate.gate import enforce
    from edge_convert.evaluate.steps import CARD, apply_gate, measured

    names = [path.name for path in plan.artifacts]
    if device:
        choice = choose(apply_gate(plan, gate or DEFAULT_GATE))
        for reason in choice.reasons:
            output.note(reason)
        return [measured(plan)[choice.index], CARD]
    if gate:
        enforce(apply_gate(plan, gate))
    return names


def _check_options(formats: tuple[str, ...]) -> None:
    """Refuse what was typed and would do nothing.

    Raises:
        click.UsageError: an option belongs to a format that is not asked for.
    """
    context = click.get_current_context()
    for option in context.command.params:
        wanted = _ONLY_FOR.get(str(option.name))
        if wanted is None or wanted in formats:
            continue
        if context.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE:
            use = "edge convert verify PACKAGE" if wanted == "verify" else f"--to {','.join([*formats, wanted])}"
            raise click.UsageError(f"{option.opts[0]} is for {wanted}, which is not asked for: {use}", context)


def _request(app: App, options: dict[str, Any]) -> Request:
    """The options as one value, after a look whether the packages are there."""
    from edge_convert.facts import Request
    from edge_convert.gguf.quantise import GgufOptions
    from edge_convert.targets import check_packages

    formats, quantisations, variants = (_names(options[key]) for key in ("formats", "quant", "variants"))
    request = Request(
        formats=formats,
        bits=options["bits"],
        gguf=GgufOptions(
            quantisations=tuple(name.upper() for name in quantisations),
            use_imatrix=not options["no_imatrix"],
            calibration=options["calibration"],
            calibration_tokens=options["calibration_tokens"],
            threads=options["threads"],
        ),
        coreml_variants=variants,
        coreml_context=options["context"],
        coreml_palette_bits=6 if options["palette_bits"] == "6" else 4,
        card=options["card"],
        coreml_stateful=not options["explicit_kv"],
        force=options["force"],
        smaller=_recipe(options),
        adapter=convert_names.fetch_adapter(app, options["lora"]),
    )
    check_packages(request.formats, *(["peft"] if request.adapter else []))
    return request


def _recipe(options: dict[str, Any]) -> Recipe | None:
    """How the model is made smaller first: a recipe, its values replaced by what else was typed."""
    from msgspec.structs import replace

    from edge_convert.smaller.recipe import Recipe, Source, Text, Training, check_recipe, find_recipe

    keep, minutes, texts = options["keep_layers"], options["distill_minutes"], options["texts"]
    if options["recipe"]:
        recipe = find_recipe(options["recipe"])
    elif keep is None:
        if minutes is not None or texts:
            raise click.UsageError("That needs --keep-layers N or --recipe NAME.", click.get_current_context())
        return None
    else:
        recipe = Recipe(keep_layers=keep, training=Training())
    if keep is not None:
        recipe = replace(recipe, keep_layers=keep)
    if minutes is not None:
        recipe = replace(recipe, training=replace(recipe.training, minutes=minutes, steps=0))
    if texts:
        named = [
            Text(name=f"text-{number}", tokens=_most_tokens(path), held_out_tokens=4096, source=Source(file=str(path)))
            for number, path in enumerate(texts, 1)
        ]
        recipe = replace(recipe, texts=tuple(named))
    return check_recipe(recipe)


def _most_tokens(path: Path) -> int:
    """Of a text; a token is two characters or more. A text that is not there is refused by name later."""
    return min(1_000_000, path.stat().st_size // 2 + 1) if path.is_file() else 1


def _find(app: App, source: str, *, accept_licence: bool) -> Input:
    from edge_cli.progress import PullProgress
    from edge_convert.inputs import find_input

    with PullProgress() as progress:
        return find_input(source, app.settings(), on_progress=progress.report, accept_licence=accept_licence)


def _stem(found: Input) -> str:
    name = found.path.stem if found.kind == "gguf" else found.source.rstrip("/").rsplit("/", 1)[-1].partition("@")[0]
    return output.plain(name) or "model"


def _free_memory(app: App) -> int | None:
    """What this machine or container has left; None where it cannot be told."""
    return app.probe().memory.available_bytes or None


def _show(plan: Plan, *, as_json: bool) -> None:
    """The plan, on stdout where it is the answer, else on stderr."""
    from edge_convert.pipeline import is_done, left_over

    if as_json:
        output.json_object(
            {
                "title": plan.title,
                "out": str(plan.out),
                "artifacts": [str(path) for path in plan.artifacts],
                "steps": [
                    {
                        "name": step.name,
                        "title": step.title,
                        "is_done": is_done(plan, step),
                        "seconds": round(step.seconds),
                        "disk_bytes": step.disk_bytes,
                        "memory_bytes": step.memory_bytes,
                    }
                    for step in plan.steps
                ],
                "disk_bytes": plan.disk_bytes,
                "memory_bytes": plan.memory_bytes,
                "seconds": round(plan.seconds),
                "notes": list(plan.notes),
                "left_over": [str(path) for path in left_over(plan)],
            }
        )
        return
    output.note(f"{plan.title}, into {plan.out}")
    for number, step in enumerate(plan.steps, 1):
        state = "done already" if is_done(plan, step) else _about(step.seconds)
        output.note(f"  {number}. {step.title} ({state})")
    output.note(
        f"Needs about {size(plan.disk_bytes)} of disk and {size(plan.memory_bytes)} of memory; takes {_about(plan.seconds)}."
    )
    for note in plan.notes:
        output.note(note)
    for path in left_over(plan):
        output.note(f"{path} is left from another conversion that was stopped. Not needed? Delete it.")


def _about(seconds: float) -> str:
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def _names(text: str) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
