"""`edge convert`: convert a checkpoint to GGUF, ONNX or Core ML."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from edge.errors import EdgeError
from edge.units import duration_text, short_name, size_text
from edge_cli import convert_frontier, convert_names, output, signals
from edge_cli.app import App, pass_app
from edge_cli.completers import complete_model, complete_task
from edge_cli.group import examples
from edge_cli.options import json_option, read_size

if TYPE_CHECKING:
    from edge_cli.progress import ConvertProgress
    from edge_convert.facts import Request
    from edge_convert.inputs import Input
    from edge_convert.pipeline import Plan
    from edge_convert.smaller.recipe import Recipe

__all__ = ["convert"]

_ONLY_FOR = {
    "quant": "gguf",
    "imatrix": "gguf",
    "save_imatrix": "gguf",
    "no_imatrix": "gguf",
    "shard": "gguf",
    "variants": "coreml",
    "palette_bits": "coreml",
    "context": "coreml",
    "explicit_kv": "coreml",
    "compute_units": "verify",
}

_KEPT = ("keep_layers", "keep_ffn", "keep_vocab")
"""Options that say what stays of a model."""


@click.command(
    epilog=examples(
        "edge convert ~/checkpoints/SmolLM2 --dry-run",
        "edge convert hf:Qwen/Qwen2.5-0.5B-Instruct --out qwen",
        "edge convert smollm2-135m --to gguf --quant Q4_K_M,Q4_0 --out smollm2",
        "edge convert hf:Qwen/Qwen3-0.6B --for this-device",
        "edge convert ~/checkpoints/SmolLM2 --to gguf,onnx --gate top1=0.9,kl=0.1",
        "edge convert smollm2-135m --keep-layers 15 --distill-minutes 30",
        "edge convert smollm2-135m --keep-vocab 16384 --quant Q4_1 --out english",
        "edge convert smollm2-135m --frontier --minutes 60 --out students",
        "edge convert smollm2-135m --frontier --at-least speed=1.3 --out students",
        "edge convert smollm2-135m --recipe smollm2-135m-28-layers --out student",
        "edge convert smollm2-135m --quant Q4_0 --recover-minutes 20",
        "edge convert smollm2-135m --to coreml --variants ane --recover-minutes 20",
        "edge convert hf:Qwen/Qwen3-0.6B --lora my-adapter",
        "edge convert hf:Qwen/Qwen3-0.6B --lora hf:owner/adapter --name my-qwen",
        "edge convert verify smollm2/gguf-Q4_0",
        "edge convert model-F16.gguf --quant Q4_0,IQ4_NL --imatrix imatrix.gguf",
        "edge convert verify smollm2/coreml-gpu/model.mlpackage",
    )
)
@click.argument("source", shell_complete=complete_model)
@click.argument("package", required=False, metavar="")
@click.option("--to", "formats", default="gguf", show_default=True, metavar="FORMATS", help="gguf, onnx, coreml; with commas.")
@click.option("--bits", type=int, default=4, show_default=True, metavar="N", help="Bits a weight: 4, 5, 6, 8 or 16.")
@click.option("--quant", default="", metavar="NAMES", help="GGUF quantisations instead, such as Q4_K_M,Q4_0,IQ4_NL.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder for the results [./NAME-converted].")
@click.option("--dry-run", is_flag=True, help="Show the plan, and stop.")
@click.option("--force", is_flag=True, help="Replace existing results.")
@click.option("--shard", type=read_size, default=0, metavar="SIZE", help="Split a GGUF beyond this size into files: 2GB.")
@click.option("--calibration", type=click.Path(path_type=Path), metavar="FILE", help="Text for the importance matrix.")
@click.option("--calibration-tokens", type=click.IntRange(64), default=8_192, show_default=True, metavar="N")
@click.option("--imatrix", type=click.Path(path_type=Path), metavar="FILE", help="Take this importance matrix: GGUF or .dat.")
@click.option("--save-imatrix", type=click.Path(path_type=Path), metavar="FILE", help="Store the importance matrix as GGUF.")
@click.option("--no-imatrix", is_flag=True, help="Quantise without an importance matrix.")
@click.option("--threads", type=click.IntRange(0), default=0, metavar="N", help="CPU threads [all].")
@click.option("--variants", default="gpu,ane", show_default=True, metavar="NAMES", help="Core ML: gpu, ane, fp16.")
@click.option(
    "--palette-bits", type=click.Choice(["4", "6"]), default="6", show_default=True, help="Core ML, ane: bits a weight."
)
@click.option("--context", type=int, default=2048, show_default=True, metavar="TOKENS", help="Core ML: context window.")
@click.option("--card/--no-card", default=True, help="Evaluate the results against the source.")
@click.option("--gate", default="", metavar="LIMITS", help="Fail with exit code 5 beyond these: top1=0.9,kl=0.1,ppl=+5%.")
@click.option(
    "--tasks",
    is_flag=False,
    flag_value="all",
    default="",
    metavar="[TASKS]",
    shell_complete=complete_task,
    help="The card also asks the models: facts, instructions, repetition, or all.",
)
@click.option("--explicit-kv", is_flag=True, help="Core ML: the KV cache as inputs and outputs instead of a state.")
@click.option(
    "--compute-units",
    type=click.Choice(["ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE"]),
    default="ALL",
    show_default=True,
    metavar="UNITS",
    help="verify: ALL, CPU_ONLY, CPU_AND_GPU, CPU_AND_NE.",
)
@click.option(
    "--for", "device", type=click.Choice(["this-device"]), help="Measure candidates here and keep the fastest good one."
)
@click.option(
    "--keep-layers", type=click.IntRange(1), metavar="N", help="Make the model smaller first: keep N layers and distil them."
)
@click.option(
    "--keep-ffn",
    type=click.IntRange(32),
    metavar="N",
    help="The same with N feed-forward neurons in each layer, a multiple of 32.",
)
@click.option(
    "--keep-vocab",
    type=click.IntRange(1),
    metavar="N",
    help="The same with the N most frequent tokens; alone, it needs no distillation.",
)
@click.option(
    "--distill-minutes",
    type=click.FloatRange(0, min_open=True),
    metavar="N",
    help="Time of the distillation; the plan shows the steps before it.",
)
@click.option(
    "--recover-minutes",
    type=click.FloatRange(0, min_open=True),
    metavar="N",
    help="Train the quantised weights for so long, so that they lose less: GGUF, or Core ML with --variants ane.",
)
@click.option(
    "--distill-text",
    "texts",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Text for both trainings [answers generated by the model itself].",
)
@click.option("--frontier", is_flag=True, help="Search which students are fastest for their quality, and go on with one.")
@click.option(
    "--minutes", type=click.FloatRange(0, min_open=True), metavar="N", help="Time of the search's trainings, without --point."
)
@click.option("--point", metavar="NAME", help="Go on with this point of the frontier in --out.")
@click.option("--at-least", metavar="LIMITS", help="Go on with the best point within these: top1=0.85, kl=0.25, speed=1.3.")
@click.option("--recipe", metavar="NAME", help="Take these options from a file, or from a recipe of edge.")
@click.option(
    "--device",
    "compute_on",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    help="Distil and evaluate the reference there.  [default: the GPU that torch finds, else cpu]",
)
@click.option("--lora", metavar="DIR", help="Merge this LoRA adapter first: a folder, or hf:OWNER/REPO.")
@click.option("--name", metavar="NAME", help="Add the results to your catalogue under this name.")
@click.option("--accept-licence", is_flag=True, help="Agree to the licence, where the model requires it.")
@json_option
@pass_app
def convert(app: App, source: str, package: str | None, **options: Any) -> int:
    """Convert a checkpoint to GGUF, ONNX or Core ML.

    SOURCE is the folder of a checkpoint, hf:OWNER/REPO, a GGUF file, or a name of the catalogue. The plan is shown first. To
    resume an interrupted run, give the same command again.

    If SOURCE is a name of the catalogue, formats that it does not have yet are added to it: edge run -m NAME --backend onnx
    runs one, and edge tune NAME measures which is fastest. --name gives any result a name.

    `edge convert verify PATH` compares the files of a result with its manifest, and computes a Core ML package.
    """
    if source == "verify" and package is not None:
        from edge_cli.convert_verify import verify_result

        context = click.get_current_context()
        is_default = context.get_parameter_source("compute_units") is ParameterSource.DEFAULT
        units = None if is_default else options["compute_units"]
        return verify_result(Path(package), units, as_json=options["as_json"])
    if source == "verify" and not Path(source).exists():
        raise click.UsageError("Which result? edge convert verify PATH", click.get_current_context())
    if package is not None:
        raise click.UsageError(f"There is one source too many: {package}", click.get_current_context())
    _check_options(_names(options["formats"]))
    if (options["gate"] or options["device"] or options["tasks"]) and not options["card"]:
        raise click.UsageError("That needs the card: leave out --no-card.", click.get_current_context())
    convert_frontier.check_options(options)
    if options["compute_on"]:
        from edge_convert.torch_device import use_device

        use_device(options["compute_on"])
    name = convert_names.choose_name(app, source, options)
    request = _request(app, options)
    if options["gate"]:
        from edge_convert.evaluate.gate import check_tasks, parse_gate

        check_tasks(parse_gate(options["gate"]), request.tasks)  # a mistake is reported before the work, not after
    found = _find(app, source, accept_licence=options["accept_licence"])
    out = options["out"] or Path(f"{_stem(found)}-converted")
    from edge_convert.gguf.shards import whole_source

    with whole_source(found, out) as whole:
        return _convert(app, whole, out, request, name, options)


def _convert(app: App, found: Input, out: Path, request: Request, name: str, options: dict[str, Any]) -> int:
    """Convert a source that is in one file or folder."""
    from edge_convert.choose import with_candidates

    if options["device"] and not options["quant"]:
        request = with_candidates(request, found)

    def carry_out(request: Request) -> int:
        return _carry_out(app, found, out, request, name, options)

    if options["frontier"]:
        return convert_frontier.convert_frontier(found, out, request, options, carry_out)
    return carry_out(request)


def _carry_out(app: App, found: Input, out: Path, request: Request, name: str, options: dict[str, Any]) -> int:
    """Make a plan, show it, and run it unless it is only to be shown."""
    from edge_convert.pipeline import check_resources
    from edge_convert.plan import make_plan
    from edge_convert.step_process import isolate

    plan = make_plan(found, out, request)
    _check_card(plan, request, options)
    if options["dry_run"]:
        _show(plan, as_json=options["as_json"])
        check_resources(plan, free_memory_bytes=_free_memory(app))
        return 0
    if not options["as_json"]:
        _show(plan, as_json=False)
    check_resources(plan, free_memory_bytes=_free_memory(app))
    return _run(isolate(plan, found, request), app, name, options)


def _check_card(plan: Plan, request: Request, options: dict[str, Any]) -> None:
    """Refuse options that the card answers where a plan has none, such as that of a model for embeddings.

    Raises:
        click.UsageError: one is given.
    """
    from edge_convert.evaluate.steps import CARD

    asked = [option for option, key in (("--gate", "gate"), ("--for", "device"), ("--tasks", "tasks")) if options[key]]
    if asked and not request.frontier_minutes and not any(step.name == CARD for step in plan.steps):
        raise click.UsageError(f"This conversion has no card: leave out {', '.join(asked)}.", click.get_current_context())


def _run(plan: Plan, app: App, name: str, options: dict[str, Any]) -> int:
    """Run a plan and show its results. A card that fails does not hold them back, unless a choice depends on it."""
    from edge_cli.progress import ConvertProgress
    from edge_convert.pipeline import run

    failures: list[EdgeError] = []
    needs_card = options["gate"] or options["device"]
    try:
        with ConvertProgress() as progress:
            made = run(
                plan,
                progress.report,
                choose=lambda: _judge(plan, options["gate"], options["device"]),
                on_failure=None if needs_card else lambda step, error: failures.append(error),
            )
    except KeyboardInterrupt:
        if plan.work.exists():
            output.note(f"Interrupted. Finished steps are kept in {plan.work}: the same command resumes from there.")
        else:
            output.note("Interrupted before a step was finished. Nothing is left behind.")
        return signals.exit_code()
    except EdgeError:
        if plan.work.exists():
            output.note(f"Finished steps are kept in {plan.work} for the next try.")
        raise
    named = convert_names.enter(app, name, made, is_asked=options["name"] is not None)
    _report(plan, made, progress, name, named, as_json=options["as_json"])
    if failures:
        output.note(f"The results in {plan.out} are complete; only their card is missing. To measure them: edge eval")
        raise failures[0]
    return 0


def _report(
    plan: Plan, made: list[Path], progress: ConvertProgress, name: str, named: dict[str, str], *, as_json: bool
) -> None:
    """Print the results of a conversion: as JSON, or as a line each, the peak memory and the card."""
    peaks, residents = progress.peak_bytes, progress.resident_bytes
    if as_json:
        found = {"out": str(plan.out), "artifacts": [str(path) for path in made], "named": named}
        searched = {"frontier": frontier} if (frontier := _frontier_in(made)) else {}
        memory = {"peak_bytes": peaks, "resident_bytes": residents, "weights_16_bit_bytes": plan.f16_bytes}
        output.json_object({**found, **searched, **memory})
        return
    for path in made:
        total = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        output.line(f"{path}  {size_text(total)}")
    if peaks:
        title = max(peaks, key=lambda title: peaks[title])
        times = f", {peaks[title] / plan.f16_bytes:.1f} times the weights in 16 bits" if plan.f16_bytes else ""
        mapped = f", {size_text(residents[title])} with mapped files" if residents[title] > peaks[title] else ""
        output.note(f"Peak memory: {size_text(peaks[title])}{times}{mapped} ({title}).")
    convert_names.say_names(name, named)
    card = plan.out / "card/card.json"
    if card in [path / "card.json" for path in made]:
        from edge_cli.evaluate import print_card
        from edge_convert.evaluate.card import read_card

        output.line()
        print_card(read_card(card))


def _frontier_in(made: list[Path]) -> Any:
    """Return the report of a search among the results as JSON; None if there is none."""
    import json

    from edge_convert.frontier.report import REPORT
    from edge_convert.frontier.steps import FRONTIER

    return next((json.loads((path / REPORT).read_bytes()) for path in made if path.name == FRONTIER), None)


def _judge(plan: Plan, gate: str, device: str | None) -> list[str]:
    """Return the artifacts to keep: all if they pass the gate, or the best one for this device."""
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
    """Refuse options that would have no effect.

    Raises:
        click.UsageError: an option belongs to a format that is not asked for.
    """
    context = click.get_current_context()
    for option in context.command.params:
        wanted = _ONLY_FOR.get(str(option.name))
        if wanted is None or wanted in formats:
            continue
        if context.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE:
            use = "edge convert verify PATH" if wanted == "verify" else f"--to {','.join([*formats, wanted])}"
            raise click.UsageError(f"{option.opts[0]} is only for {wanted}: {use}", context)


def _request(app: App, options: dict[str, Any]) -> Request:
    """Return the options as one value, after checking that the packages are installed."""
    from edge_convert.evaluate.tasks.suite import parse_tasks
    from edge_convert.facts import Request
    from edge_convert.gguf.quantise import GgufOptions
    from edge_convert.targets import check_packages

    formats, quantisations, variants = (_names(options[key]) for key in ("formats", "quant", "variants"))
    recipe = _recipe(options)
    request = Request(
        formats=formats,
        bits=options["bits"],
        gguf=GgufOptions(
            quantisations=tuple(name.upper() for name in quantisations),
            use_imatrix=not options["no_imatrix"],
            calibration=options["calibration"],
            calibration_tokens=options["calibration_tokens"],
            threads=options["threads"],
            imatrix=options["imatrix"],
            save_imatrix=options["save_imatrix"],
            shard_bytes=options["shard"],
        ),
        coreml_variants=variants,
        coreml_context=options["context"],
        coreml_palette_bits=6 if options["palette_bits"] == "6" else 4,
        card=options["card"],
        tasks=parse_tasks(options["tasks"]) if options["tasks"] else (),
        coreml_stateful=not options["explicit_kv"],
        force=options["force"],
        smaller=recipe if recipe and (recipe.is_smaller or options["frontier"]) else None,
        recovery=recipe if recipe and recipe.recovery else None,
        adapter=convert_names.fetch_adapter(app, options["lora"]),
    )
    with_torch = ["torch"] if request.card or recipe is not None or request.adapter else []
    check_packages(request.formats, *with_torch, *(["peft"] if request.adapter else []))
    return request


def _recipe(options: dict[str, Any]) -> Recipe | None:
    """Return the recipe of the trainings, with the values given on the command line."""
    from msgspec.structs import replace

    from edge_convert.smaller.recipe import Recipe, Recovery, Source, Text, Training, check_recipe, find_recipe

    minutes, texts, recover = options["distill_minutes"], options["texts"], options["recover_minutes"]
    kept = {name: options[name] for name in _KEPT if options[name] is not None}
    if options["frontier"]:
        minutes = minutes or convert_frontier.TEXT_MINUTES
    if options["recipe"] is not None:
        recipe = find_recipe(options["recipe"])
    elif not kept and not options["frontier"] and (recover is None or minutes is not None):
        if minutes is not None or texts:
            raise click.UsageError("That needs --keep-layers N or --recipe NAME.", click.get_current_context())
        return None
    else:
        recipe = Recipe(training=Training())
    recipe = replace(recipe, **kept)
    if minutes is not None:
        recipe = replace(recipe, training=replace(recipe.training, minutes=minutes, steps=0))
    if recover is not None:
        recipe = replace(recipe, recovery=replace(recipe.recovery or Recovery(), minutes=recover, steps=0))
    if texts:
        named = [
            Text(name=f"text-{number}", tokens=_most_tokens(path), held_out_tokens=4096, source=Source(file=str(path)))
            for number, path in enumerate(texts, 1)
        ]
        recipe = replace(recipe, texts=tuple(named))
    return check_recipe(recipe, is_search=options["frontier"])


def _most_tokens(path: Path) -> int:
    """Return the most tokens a text may have, at two bytes each. A missing text is refused by name later."""
    return min(1_000_000, path.stat().st_size // 2 + 1) if path.is_file() else 1


def _find(app: App, source: str, *, accept_licence: bool) -> Input:
    from edge_cli.progress import PullProgress
    from edge_convert.inputs import find_input

    with PullProgress() as progress:
        return find_input(source, app.settings(), on_progress=progress.report, accept_licence=accept_licence)


def _stem(found: Input) -> str:
    if found.kind == "gguf":
        name = found.path.stem.partition("-00001-of-")[0]
    else:
        name = found.source.rstrip("/").rsplit("/", 1)[-1].partition("@")[0]
    return short_name(name) or "model"


def _free_memory(app: App) -> int | None:
    """Return the free memory of this machine or container; None if unknown."""
    return app.probe().memory.available_bytes or None


def _show(plan: Plan, *, as_json: bool) -> None:
    """Show the plan: as JSON on stdout, or as text on stderr."""
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
        state = "already done" if is_done(plan, step) else f"about {duration_text(max(1, round(step.seconds)))}"
        output.note(f"  {number}. {step.title} ({state})")
    disk, memory, time = size_text(plan.disk_bytes), size_text(plan.memory_bytes), duration_text(plan.seconds)
    output.note(f"Needs about {disk} of disk and {memory} of memory; takes about {time}.")
    for note in plan.notes:
        output.note(note)
    for path in left_over(plan):
        output.note(f"{path} is left over from an interrupted conversion. Delete it if you do not need it.")


def _names(text: str) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
