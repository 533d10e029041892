"""`edge profile`: where the time of one turn goes."""

from __future__ import annotations

import contextlib
import secrets
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.units import duration_text, size_text
from edge_cli import output
from edge_cli.app import App, pass_app
from edge_cli.bench import BUSY_PROCESSORS, load_of_others
from edge_cli.group import examples
from edge_cli.options import json_option, model_options, sampling_options, settings_from

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge.assistant import Assistant
    from edge.bench.profile import Limit, Profile
    from edge.bench.trace import Span, Trace
    from edge.config import Settings
    from edge.conversation import Attachment
    from edge.reply import Reply

__all__ = ["profile"]

_PROMPT = "Explain in a few sentences how a computer keeps the time."
_MAX_TOKENS = 64


@click.command(
    epilog=examples(
        "edge profile",
        'edge profile "Summarise this" -f report.txt',
        "edge profile --cold -f report.txt --trace turn.json",
        "edge profile -m smollm2-135m --threads 1 --max-tokens 128",
        "edge profile --json | jq .stages",
    )
)
@click.argument("prompt", nargs=-1)
@model_options
@sampling_options
@click.option("-f", "--file", "files", type=click.Path(path_type=Path), multiple=True, help="Attach a text file; - is stdin.")
@click.option("--cold", "is_cold", is_flag=True, help="Reuse nothing from the KV cache, and store nothing.")
@click.option(
    "--trace",
    "trace_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a trace (JSON) for ui.perfetto.dev or chrome://tracing.",
)
@json_option
@pass_app
def profile(app: App, prompt: tuple[str, ...], **options: Any) -> int:
    """Show where the time of one turn goes.

    Answers PROMPT as edge run does, with 64 tokens at most unless --max-tokens says otherwise, and times each stage from the
    template to saving. The model is loaded and has answered once before. Prefill and decode are compared with the memory
    bandwidth: a phase near that limit is memory-bound, another one compute-bound. The conversation is deleted afterwards.
    """
    from edge.bench.trace import Trace
    from edge_cli.prompt import read_prompt

    output.check_target(options["trace_file"])
    settings = settings_from(app, options, {"sampling.max_tokens": _MAX_TOKENS})
    words = prompt or (_PROMPT,)
    text, attachments = read_prompt(words, options["files"], use_stdin=bool(prompt), is_chatty=False)
    trace = Trace()
    with output.Status() as status:
        found, spans = _measure(app, settings, trace, status, text, attachments, is_cold=options["is_cold"])
    if options["as_json"]:
        import msgspec

        output.json_object(msgspec.to_builtins(found))
    else:
        _show(found)
    if options["trace_file"] is not None:  # last, so that the results are shown even if it cannot be written
        about = {"model": found.model, "engine": found.engine, "advice": found.advice}
        output.write_file(options["trace_file"], trace.to_json(spans, about))
        output.note(f"The trace is in {options['trace_file']}; open it at ui.perfetto.dev.")
    return 0


def _measure(
    app: App,
    settings: Settings,
    trace: Trace,
    status: output.Status,
    text: str,
    attachments: Sequence[Attachment],
    *,
    is_cold: bool,
) -> tuple[Profile, list[Span]]:
    """Run one turn in a conversation that is deleted afterwards, and return its profile and its spans."""
    from edge.conversation import ConversationStore
    from edge.files import make_private_dir

    def report(stage: str, share: float) -> bool:
        status.show_share(f"{stage} {settings.model}", share)
        return True

    make_private_dir(settings.paths.data_dir)
    with contextlib.ExitStack() as stack:
        # On the disk of the user's conversations, since the time to save is that disk's.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="profile-", dir=settings.paths.data_dir))
        store = stack.enter_context(ConversationStore(Path(folder) / "conversations.db"))
        assistant = stack.enter_context(app.load(settings=settings, store=store, on_progress=report, trace=trace))
        status.show("warming up")
        assistant.generate("Hi", max_tokens=1, cache="off").wait()
        trace.spans.clear()
        conversation = assistant.conversation(
            system=settings.system, cache_namespace=f"profile-{secrets.token_hex(8)}" if is_cold else None
        )
        status.show("answering")
        started = trace.clock()
        reply = conversation.send(text, attachments=attachments, cache="off" if is_cold else None)
        reply.wait()
        ended = trace.clock()
        assistant.flush_cache()
        spans, busy = list(trace.spans), load_of_others()
        status.show("measuring the memory bandwidth")
        found = _profile_of(assistant, reply, spans, started, ended, _bandwidth(app, assistant), busy)
    return found, spans


def _bandwidth(app: App, assistant: Assistant) -> float | None:
    """Measure the memory bandwidth, where it is that of the memory that the engine reads."""
    from edge.bench import process
    from edge.bench.bandwidth import sweep_bytes

    plan = assistant.plan
    if plan is None or plan.accelerator != "cpu":
        return None
    return process.bandwidth_here(plan.n_threads, sweep_bytes(app.probe().memory.available_bytes))


def _profile_of(
    assistant: Assistant, reply: Reply, spans: list[Span], started: float, ended: float, bandwidth: float | None, busy: float
) -> Profile:
    from msgspec.structs import replace

    from edge.bench.profile import Profile, advise, limits_of, stage_times

    plan, usage = assistant.plan, reply.usage
    found = Profile(
        model=assistant.model_name,
        engine=assistant.backend_name,
        accelerator=plan.accelerator if plan is not None else "cpu",
        n_prompt=usage.n_prompt,
        n_reused=usage.n_reused,
        n_restored=usage.n_restored,
        n_generated=usage.n_generated,
        n_drafted=usage.n_drafted,
        n_accepted=usage.n_accepted,
        first_token_ms=reply.timing.first_token_ms,
        total_ms=1000 * (ended - started),
        stages=stage_times(spans, started, ended),
        bandwidth_bytes_per_s=bandwidth,
        limits=limits_of(spans, plan, usage, bandwidth) if plan is not None and bandwidth else (),
        held_back=reply.held_back,
        busy_processors=busy if busy > BUSY_PROCESSORS else 0.0,
    )
    is_tuned = plan is not None and any("edge tune" in choice.reason for choice in plan.choices)
    return replace(found, advice=advise(found, is_tuned=is_tuned))


def _show(found: Profile) -> None:
    from edge.bench.trace import STAGES

    rows: list[tuple[str, ...]] = [
        (one.stage, _ms(one.ms), f"{one.share:.1%}", _ms(one.hidden_ms) if one.hidden_ms >= 0.05 else "", STAGES[one.stage])
        for one in found.stages
        if one.ms or one.n_calls
    ]
    rows.append(("total", _ms(found.total_ms), "100.0%", "", f"first text after {duration_text(found.first_token_ms / 1000)}"))
    output.table(rows, ("stage", "time", "share", "hidden", ""))
    output.line()
    output.line(
        output.plain(
            f"{found.model} on {found.engine}: {found.n_prompt:,} prompt tokens ({found.n_reused:,} reused), "
            f"{found.n_generated:,} generated."
        )
    )
    for limit in found.limits:
        output.line(_limit_text(limit, found.bandwidth_bytes_per_s or 0.0))
    if not found.limits:
        output.line(f"The bandwidth of the memory of {found.accelerator} is not measured, so there is no roofline.")
    output.line(output.plain(f"What to change: {found.advice}"))
    if any(one.hidden_ms >= 0.05 for one in found.stages):
        output.note('"hidden": done besides, while the engine computed or after the reply; nobody waited for it.')


def _limit_text(limit: Limit, bandwidth: float) -> str:
    passes = "1 pass reads" if limit.n_passes == 1 else f"{limit.n_passes:,} passes read"
    each = size_text(limit.bytes_per_pass)
    return (
        f"{limit.phase}: {limit.bound}-bound. {limit.tokens_per_s:,.1f} tokens/s; {passes} {each} each, "
        f"{limit.share:.0%} of the memory bandwidth of {bandwidth / 1e9:.1f} GB/s."
    )


def _ms(ms: float) -> str:
    return f"{ms:,.1f} ms"
