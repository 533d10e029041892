"""`edge run`: one prompt, one answer."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.names import CACHE_HINTS
from edge.units import quoted, size_text
from edge_cli import output
from edge_cli.answer import CodeOnly
from edge_cli.app import App, pass_app
from edge_cli.asking import answer_from, follow, open_assistant, stats_line, with_limits
from edge_cli.completers import complete_conversation
from edge_cli.constraint import constraint_from, constraint_options
from edge_cli.escalation import answered_note, ask_for_consent, show_outgoing
from edge_cli.group import examples
from edge_cli.options import escalation_options, model_options, require_exclusive, sampling_options, settings_from

if TYPE_CHECKING:
    from edge.assistant import Assistant, Conversation
    from edge.config import Settings
    from edge.conversation import ConversationStore
    from edge.plan import Plan
    from edge.reply import Reply
    from edge.types import Tool, ToolCall

__all__ = ["run"]

EXAMPLES = examples(
    'edge run "What is the capital of France?"',
    'echo "text" | edge run "Summarise"',
    "edge run < question.txt",
    'edge run -f notes.md "List the open points" --temperature 0',
    'edge run --json --seed 1 --max-tokens 50 "Tell a joke"',
    'edge run -c "And in one sentence?"',
    'git diff | edge run -f - "Write a commit message"',
    'edge run -x "A Python function that reverses a string" > reverse.py',
    'edge run --schema invoice.json -f letter.txt "What is to be paid?"',
    'edge run --lora pirate.gguf:0.5 "Who are you?"',
    'edge run --escalate-to openai:https://gpu.example/v1#qwen3-32b "Prove it"',
    'edge run --escalate-to openai:http://127.0.0.1:8033 --show "What is sent?"',
    "edge run --estimate-only -m smollm2-135m --context 2048",
)


@click.command(epilog=EXAMPLES)
@click.argument("prompt", nargs=-1)
@model_options
@sampling_options
@constraint_options
@escalation_options
@click.option("--escalate", is_flag=True, help="Have the larger model or server answer in any case.")
@click.option("--show", "is_shown", is_flag=True, help="Print what would be sent to the server, and send nothing.")
@click.option("-f", "--file", "files", type=click.Path(path_type=Path), multiple=True, help="Attach a text file; - is stdin.")
@click.option("--no-stdin", is_flag=True, help="Do not read stdin.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
@click.option("--jsonl", "as_lines", is_flag=True, help="Print a JSON object for every piece, and one at the end.")
@click.option("--raw", is_flag=True, help="Print the text as the model writes it, on a terminal too.")
@click.option("-x", "--extract", is_flag=True, help="Print only the first code block of the answer.")
@click.option("--explain", is_flag=True, help="Print the placement receipt: every choice with its reason.")
@click.option("--estimate-only", is_flag=True, help="Print the memory that the model needs, and exit.")
@click.option("-c", "--continue", "is_continued", is_flag=True, help="Continue the newest conversation, and save this turn.")
@click.option(
    "--conversation",
    metavar="ID",
    shell_complete=complete_conversation,
    help="Continue that conversation, and save this turn.",
)
@click.option(
    "--cache", type=click.Choice(CACHE_HINTS), help="Where its KV cache stays: nowhere, in memory, on disk, pinned there."
)
@click.option("--think/--no-think", default=None, help="Think before answering, or answer at once, where the model can.")
@click.option("--max-thinking", type=click.IntRange(min=0), metavar="N", help="Longest thought, in tokens.")
@click.option(
    "--tools", "with_tools", is_flag=True, help="Let the model call the tools of allowed servers (edge mcp), after asking."
)
@click.option("--stats", is_flag=True, help="Print time to first token, speed and cache reuse.")
@click.option("-v", "--verbose", is_flag=True, help="Report waiting for stdin even if stderr is not a terminal.")
@pass_app
def run(app: App, prompt: tuple[str, ...], **options: Any) -> int:
    """Answer one prompt and exit.

    The words are the prompt. Without words, stdin is the prompt; with both, stdin is attached. Only the answer goes to stdout,
    as it is generated; everything else goes to stderr.
    """
    from edge_cli.prompt import read_prompt

    require_exclusive(
        ("--json", options["as_json"]),
        ("--jsonl", options["as_lines"]),
        ("--extract", options["extract"]),
        ("--raw", options["raw"]),
    )
    require_exclusive(("--continue", options["is_continued"]), ("--conversation", options["conversation"]))
    constraint = constraint_from(options)
    settings = with_limits(settings_from(app, options))
    if options["estimate_only"]:
        return _estimate(app, settings, options)
    is_chatty = options["verbose"] or output.is_terminal(sys.stderr)
    text, attachments = read_prompt(prompt, options["files"], use_stdin=not options["no_stdin"], is_chatty=is_chatty)
    _note_model_name(prompt, settings)
    saves = options["is_continued"] or options["conversation"] is not None
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(app.store(settings)) if saves else None
        status = stack.enter_context(output.Status())
        assistant = stack.enter_context(open_assistant(app, settings, store, status))
        if options["explain"] and assistant.plan is not None:
            status.clear()
            _explain(assistant.plan)
        conversation = _conversation(assistant, store, settings, options)
        if options["is_shown"]:
            status.clear()
            as_json = options["as_json"] or options["as_lines"]
            return show_outgoing(conversation, text, as_json=as_json, attachments=attachments, constraint=constraint)
        ask_for_consent(assistant, status)
        tools = _tools(stack, settings, status) if options["with_tools"] else []
        reply = stack.enter_context(
            conversation.send(
                text,
                attachments=attachments,
                cache=options["cache"],
                constraint=constraint,
                think=options["think"],
                max_thinking=options["max_thinking"],
                tools=tools,
                approve=_asking(status),
                escalate=options["escalate"] or None,
            )
        )
        answer = answer_from(options)
        follow(reply, status, answer)
        notices = [*assistant.notices, *reply.notices, *_why_truncated(reply, assistant, settings)]
        for notice in (*notices, answered_note(reply)):
            if notice:
                output.note(notice)
        if assistant.disk_problem is not None:
            output.note(f"The on-disk KV cache is off: {assistant.disk_problem}. See edge doctor.")
        if isinstance(answer, CodeOnly):
            answer.show(reply.text)
        if options["as_json"] or options["as_lines"]:
            saved = conversation.id if saves else None
            _show_result(assistant, reply, saved, notices, as_lines=options["as_lines"])
        if options["stats"]:
            output.note(stats_line(reply))
    is_unsaved = saves and reply.node is None
    return 1 if is_unsaved or reply.is_partial else 0  # a notice has said why


def _estimate(app: App, settings: Settings, options: dict[str, Any]) -> int:
    plan = app.plan(settings=settings, download=False)
    if options["as_json"] or options["as_lines"]:
        output.json_object(plan.to_dict(), compact=options["as_lines"])
        return 0
    memory = plan.memory
    rows = [
        ("weights", memory.weights_bytes),
        (f"KV cache ({plan.n_ctx:,} tokens, {plan.kv_type_k}/{plan.kv_type_v})", memory.kv_bytes),
        ("working buffers", memory.compute_bytes),
        *([(f"draft model {plan.draft.artifact.name}", memory.draft_bytes)] if plan.draft is not None else []),
        *([("adapters", memory.adapter_bytes)] if plan.adapters else []),
        *([(f"{plan.prefill.plan.backend}, which prefills", memory.prefill_bytes)] if plan.prefill is not None else []),
        ("total", memory.total_bytes),
        ("available", memory.available_bytes),
    ]
    output.table([(name, size_text(n_bytes)) for name, n_bytes in rows])
    if options["explain"]:
        _explain(plan)
    return 0


def _note_model_name(words: tuple[str, ...], settings: Settings) -> None:
    """Say so if the question begins with the name of a model, as other programs expect it there."""
    from edge.catalog import find_entry, is_reference

    name = words[0] if words else ""
    if len(name.split()) == 1 and (is_reference(name) or name.endswith(".gguf") or find_entry(name, settings)):
        question = " ".join(words[1:]) or "your question"
        command = f"edge run -m {quoted(name)} {quoted(question)}"
        output.note(f"{name} is a model, and was taken as part of the question. To ask it: {command}")


def _explain(plan: Plan) -> None:
    """Print the placement receipt to stderr."""
    rows = [(choice.what, choice.value, choice.reason) for choice in plan.choices]
    for text in output.table_lines(rows, stream=sys.stderr):
        output.note(text)


def _conversation(
    assistant: Assistant, store: ConversationStore | None, settings: Settings, options: dict[str, Any]
) -> Conversation:
    chosen = options["conversation"]
    if options["is_continued"] and store is not None:
        newest = store.list(limit=1)
        chosen = newest[0].id if newest else None
    # A saved conversation keeps its system prompt unless this command line sets one.
    system = settings.system if chosen is None or options["role"] else options["system"]
    return assistant.conversation(chosen, system=system)


def _tools(stack: contextlib.ExitStack, settings: Settings, status: output.Status) -> list[Tool]:
    """Connect the allowed servers until the stack is closed, and return their tools."""
    from edge.errors import UsageError
    from edge_mcp.toolbox import open_toolbox

    find = stack.enter_context(open_toolbox(settings))
    if find is None:
        raise UsageError("There are no servers of tools.", "Name them in mcp.json beside the settings file (docs/tools.md).")
    status.show("connecting servers of tools")
    tools, notices = find()
    status.clear()
    for notice in notices:
        output.note(notice)
    return tools


def _asking(status: output.Status) -> Callable[[ToolCall], bool] | None:
    """Return what asks about a tool call on the terminal; None where there is nobody to ask."""
    if not (output.is_terminal(sys.stdin) and output.is_terminal(sys.stderr)):
        return None

    def ask(call: ToolCall) -> bool:
        status.close()
        output.note(f"The model wants to call {output.plain(call.name)} with {output.plain(call.json)}")
        return click.confirm("Allow it?", err=True)

    return ask


def _why_truncated(reply: Reply, assistant: Assistant, settings: Settings) -> list[str]:
    """Return why the answer ends early, if it does and this command line does not limit its length."""
    from edge.config import COMMAND_LINE

    allowed = assistant.sampling.max_tokens
    if reply.finish_reason != "length":
        return []
    if allowed is None or reply.usage.n_generated < allowed:
        return [f"The answer stops here because the context window of {assistant.n_ctx:,} tokens is full (--context)."]
    if settings.sources.get("sampling.max_tokens") == COMMAND_LINE:
        return []
    return [f"The answer stops here because it is limited to {allowed:,} tokens (sampling.max_tokens, or --max-tokens)."]


def _value(reply: Reply) -> dict[str, Any]:
    """Return the field for the value of an answer that keeps to a schema: None if it was cut off."""
    if reply.constraint is None or not reply.constraint.is_json:
        return {}
    return {"value": None if reply.is_partial else reply.value()}


def _show_result(
    assistant: Assistant, reply: Reply, conversation_id: str | None, notices: list[str], *, as_lines: bool
) -> None:
    usage, timing = reply.usage, reply.timing
    result: dict[str, Any] = {"type": "done"} if as_lines else {}
    result |= {
        "text": reply.text,
        "reasoning": reply.reasoning,
        "tool_calls": [{"id": call.id, "name": call.name, "arguments": call.arguments} for call in reply.tool_calls],
        **_value(reply),
        "finish_reason": reply.finish_reason,
        "model": assistant.plan.artifact.name if assistant.plan is not None else assistant.info.name,
        "answered_by": reply.answered_by,
        "escalated": reply.escalated,
        "lora": assistant.lora,
        "usage": {**dataclasses.asdict(usage), "n_computed": usage.n_computed},
        "timing": {**dataclasses.asdict(timing), "tokens_per_s": timing.tokens_per_s(usage.n_generated)},
        "plan": assistant.plan.to_dict() if assistant.plan is not None else None,
        "cost": dataclasses.asdict(reply.cost),
        "held_back": reply.held_back,
        "conversation": conversation_id,
        "notices": notices,
    }
    output.json_object(result, compact=as_lines)
