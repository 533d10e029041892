"""`edge docs ask`: a question, answered from documents."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_cli import output
from edge_cli.app import App, pass_app
from edge_cli.asking import answer_from, follow, open_assistant, stats_line, with_limits
from edge_cli.completers import complete_collection
from edge_cli.group import examples
from edge_cli.options import model_options, require_exclusive, sampling_options, settings_from

if TYPE_CHECKING:
    from edge.assistant import Assistant
    from edge.citations import Citation
    from edge.reply import Reply

__all__ = ["ask", "listed", "location"]

EXAMPLES = examples(
    'edge docs ask "How do I reset the pump?"',
    'edge docs ask -c manual -c faq "Is the pump safe to clean?"',
    'edge docs ask --json "How long is it?" | jq -r ".citations[].place"',
    "edge docs ask < question.txt",
)


@click.command(epilog=EXAMPLES)
@click.argument("question", nargs=-1)
@click.option(
    "-c",
    "--collection",
    "names",
    metavar="NAME",
    multiple=True,
    shell_complete=complete_collection,
    help="Collection to answer from; may be repeated. Default: docs.",
)
@model_options
@sampling_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
@click.option("--jsonl", "as_lines", is_flag=True, help="Print a JSON object for every piece, and one at the end.")
@click.option("--raw", is_flag=True, help="Print the text as the model writes it, on a terminal too.")
@click.option("--stats", is_flag=True, help="Print time to first token, speed and cache reuse.")
@pass_app
def ask(app: App, question: tuple[str, ...], names: tuple[str, ...], **options: Any) -> int:
    """Answer a question from documents, and list the passages that the answer rests on.

    The answer refers to passages by number; below it is where each of them is: file and line, or page. Numbers in the list that
    the answer does not refer to are in parentheses. If nothing in the documents is about the question, the model answers from
    what it knows, and a note says that.
    """
    from edge.documents import DEFAULT_COLLECTION
    from edge.grounding.sources import open_collection
    from edge_cli.prompt import read_prompt

    require_exclusive(("--json", options["as_json"]), ("--jsonl", options["as_lines"]), ("--raw", options["raw"]))
    settings = with_limits(settings_from(app, options))
    text, attachments = read_prompt(question, (), use_stdin=True, is_chatty=output.is_terminal(sys.stderr))
    with contextlib.ExitStack() as stack:
        folder = settings.paths.documents_dir
        opened = [stack.enter_context(open_collection(name, folder)) for name in dict.fromkeys(names or (DEFAULT_COLLECTION,))]
        status = stack.enter_context(output.Status())
        assistant = stack.enter_context(open_assistant(app, settings, None, status))
        conversation = assistant.conversation(system=settings.system, docs=opened)
        reply = stack.enter_context(conversation.send(text, attachments=attachments))
        follow(reply, status, answer_from({**options, "extract": False, "schema": None, "regex": None, "grammar": None}))
        if not (options["as_json"] or options["as_lines"]):
            _list(reply)
        for notice in (*assistant.notices, *reply.notices):
            output.note(notice)
        if options["as_json"] or options["as_lines"]:
            _show_result(assistant, reply, as_lines=options["as_lines"])
        if options["stats"]:
            output.note(stats_line(reply))
    return 0


def location(citation: Citation) -> str:
    """Return where a passage is, as terminals and editors open it: a path, relative to here if it is below, and the line."""
    from edge.documents.base import shown_path

    path = Path(citation.document)
    with contextlib.suppress(ValueError, OSError):
        path = path.relative_to(Path.cwd())
    where = shown_path(path)
    if citation.page is not None:
        where += f", page {citation.page}"
    elif citation.lines is not None:
        where += f":{citation.lines[0]}"
    return where


def listed(citation: Citation, *, is_cited: bool) -> str:
    """Return a citation on a line: "[2] manual.md:12  Reset"."""
    number = f"[{citation.number}]" if is_cited else f"({citation.number})"
    heading = output.plain(" ".join(citation.heading.split()))
    return f"{number} {location(citation)}" + (f"  {heading}" if heading else "")


def _list(reply: Reply) -> None:
    if not reply.citations:
        return
    cited = reply.cited
    output.line()
    for citation in reply.citations:
        output.line(listed(citation, is_cited=citation in cited))


def _show_result(assistant: Assistant, reply: Reply, *, as_lines: bool) -> None:
    cited, usage, timing = reply.cited, reply.usage, reply.timing
    result: dict[str, Any] = {"type": "done"} if as_lines else {}
    result |= {
        "text": reply.text,
        "is_found": bool(reply.citations),
        "citations": [{**_citation(one), "is_cited": one in cited} for one in reply.citations],
        "finish_reason": reply.finish_reason,
        "model": assistant.model_name,
        "usage": {**dataclasses.asdict(usage), "n_computed": usage.n_computed},
        "timing": {**dataclasses.asdict(timing), "tokens_per_s": timing.tokens_per_s(usage.n_generated)},
        "notices": [*assistant.notices, *reply.notices],
    }
    output.json_object(result, compact=as_lines)


def _citation(one: Citation) -> dict[str, Any]:
    from edge.documents.base import path_text

    return {**dataclasses.asdict(one), "document": path_text(Path(one.document)), "place": one.place}
