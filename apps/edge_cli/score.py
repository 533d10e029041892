"""`edge score`: how likely given answers are, for a file of prompts."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from edge.units import duration_text, plural
from edge_cli import output, signals
from edge_cli.app import App, pass_app
from edge_cli.group import examples
from edge_cli.jsonl import Journal, Lines
from edge_cli.options import json_option, model_options, settings_from

if TYPE_CHECKING:
    from edge.assistant import Assistant
    from edge.errors import EdgeError
    from edge.scoring import Order, Scored

__all__ = ["score"]

EXAMPLES = examples(
    "edge score prompts.jsonl > scores.jsonl",
    "edge score r.jsonl --choice good --choice bad --task 'Is it good or bad?'",
    "edge score h.jsonl --task 'Say which book the reader takes next.'",
    """echo '{"prompt": "Spam? ...", "choices": ["yes", "no"]}' | edge score -""",
    """echo '{"prompt": "I say", "choices": [" yes", " no"]}' | edge score - --text""",
)
_EXAMPLE = 'For example: {"prompt": "Spam? ...", "choices": ["yes", "no"]}'


class _Item(msgspec.Struct):
    """A line of the file."""

    prompt: str | None = None
    text: str | None = None
    history: list[str] | None = None
    items: list[str] | None = None
    messages: list[dict[str, Any]] | None = None
    choices: list[str] | None = None
    id: Any = None


@click.command(epilog=EXAMPLES)
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@model_options
@click.option("--system", metavar="TEXT", help="System prompt.")
@click.option("-c", "--choice", "choices", metavar="TEXT", multiple=True, help="Answer for lines without choices; repeat it.")
@click.option("--task", metavar="TEXT", default="", help="What is asked of lines with a text or a history.")
@click.option("--by", type=click.Choice(("sum", "mean")), help="Compare whole answers (sum), or the mean of tokens.")
@click.option("--text", "is_text", is_flag=True, help="Prompts are texts that go on, without the chat template.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the scores to this file, and go on where it ends.")
@json_option
@pass_app
def score(app: App, file: Path, **options: Any) -> int:
    """Say how likely given answers are, for each line of a file.

    A line of FILE (- is stdin) is a JSON object with "prompt" (a text) or "messages", "choices", and an "id" if you like.
    Or it has a "text" to classify, with its "choices"; or the "history" of a user, and "items" to rank, by mean.
    Nothing is generated, and what prompts have in common is computed once.

    Each line gets one in return, in the same order: "best", "ranked" from the likeliest, "probabilities", and for each of the
    "choices" the logprob of its tokens ("logprob"), their "mean", and that it ends there ("end_logprob"). A line that cannot be
    scored has an "error", and the exit code is 1. Ctrl-C keeps what is done; with --out the same command goes on from there.
    """
    settings = settings_from(app, options, {"kv.enabled": False})
    lines = Lines(file)
    began, results = time.monotonic(), list[dict[str, Any]]()
    with contextlib.ExitStack() as stack:
        journal = stack.enter_context(Journal(options["out"])) if options["out"] is not None else None
        n_before = n_done = _check_done(journal, lines) if journal is not None else 0
        n_failed = sum("error" in result for result in journal) if journal is not None else 0
        try:
            for result in _results(app, settings, lines, n_before, options):
                n_done, n_failed = n_done + 1, n_failed + ("error" in result)
                if journal is not None:
                    journal.append(msgspec.json.encode(result) + b"\n")
                elif options["as_json"]:
                    results.append(result)
                else:
                    output.json_object(result, compact=True)
        except KeyboardInterrupt:
            rest = " The same command goes on from there." if journal is not None else ""
            output.note(f"Interrupted: {n_done:,} of {len(lines):,} are scored.{rest}")
            if not options["as_json"]:
                return signals.exit_code()
        seconds = time.monotonic() - began
        if options["as_json"]:
            counts = {"n": len(lines), "n_done": n_done, "n_before": n_before, "n_failed": n_failed, "seconds": seconds}
            output.json_object(counts | ({"out": str(options["out"])} if journal is not None else {"results": results}))
        elif n_done > n_before:
            rate = (n_done - n_before) / seconds
            output.note(
                f"{plural(n_done - n_before, 'prompt')} in {duration_text(seconds)} ({rate:.1f} a second), {n_failed:,} failed."
            )
        else:
            output.note("There is nothing left to score.")
    if n_done < len(lines):
        return signals.exit_code()
    return 1 if n_failed else 0


def _check_done(journal: Journal, lines: Lines) -> int:
    """Return how many lines have their result.

    Raises:
        UsageError: the last result is not that of its line, so the file belongs to something else.
    """
    from edge.errors import UsageError

    n_done = len(journal)
    if not n_done:
        return 0
    last = journal[-1]
    found = next(islice(lines, n_done - 1, None), None)
    if found is None or not isinstance(last, dict) or last.get("line") != found[0] or last.get("id") != _id_of(found[1]):
        raise UsageError(f"{journal.path} is not the beginning of the scores of this file.", "Name another --out.")
    return n_done


def _id_of(data: bytes) -> object:
    try:
        return msgspec.json.decode(data, type=_Item).id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _results(app: App, settings: Any, lines: Lines, n_before: int, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the results of the lines that are left, in their order."""
    from edge_cli.progress import CountProgress

    if n_before == len(lines):
        return
    with contextlib.ExitStack() as stack:
        status = stack.enter_context(output.Status())

        def report(stage: str, share: float) -> bool:
            status.show(f"{stage} {settings.model} {share:4.0%}")
            return True

        assistant = stack.enter_context(app.load(settings=settings, store=None, on_progress=report))
        status.close()
        progress = stack.enter_context(CountProgress("scored", len(lines), n_before))
        for result in _scores(assistant, islice(lines, n_before, None), options):
            yield result
            progress.step()


def _scores(assistant: Assistant, lines: Iterator[tuple[int, bytes]], options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Score lines side by side, and yield the results in their order."""
    from edge.errors import EdgeError

    heads: list[dict[str, Any]] = []
    orders: list[Order] = []
    ready: dict[int, dict[str, Any]] = {}
    n_yielded = 0

    def items() -> Iterator[tuple[Any, Any]]:
        for number, data in lines:
            head: dict[str, Any] = {"line": number}
            heads.append(head)
            try:
                item = msgspec.json.decode(data, type=_Item)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                head["error"] = {"message": f"It is not a prompt with choices: {error}.", "hint": _EXAMPLE}
                orders.append("sum")
                yield "", ()
                continue
            if item.id is not None:
                head["id"] = item.id
            choices = next((one for one in (item.items, item.choices) if one is not None), options["choices"])
            if not (item.prompt or item.text or item.history or item.messages):
                head["error"] = {"message": "It has no prompt, messages, text or history.", "hint": _EXAMPLE}
            elif not choices:
                head["error"] = {"message": "It has no choices.", "hint": _EXAMPLE + ", or --choice for all lines"}
            orders.append(options["by"] or ("sum" if item.history is None else "mean"))
            yield _prompt(item, choices, options["task"]), choices

    with contextlib.closing(assistant.score_batch(items(), chat=not options["is_text"])) as found:  # type: ignore[type-var]
        for number, scores in found:
            ordered = scores if isinstance(scores, EdgeError) else replace(scores, by=orders[number])
            ready[number] = heads[number] | _result(ordered, heads[number])
            while n_yielded in ready:
                yield ready.pop(n_yielded)
                heads[n_yielded] = {}
                n_yielded += 1


def _prompt(item: _Item, choices: Sequence[str], task: str) -> str | list[dict[str, Any]]:
    """Return the prompt of a line; "" if it has none, which is an error of that line."""
    from edge.scoring import classification_prompt, ranking_prompt

    if item.history is not None:
        return ranking_prompt(item.history, task)
    if item.text is not None:
        return classification_prompt(item.text, choices, task)
    return (item.prompt or "") if item.messages is None else item.messages


def _result(found: Scored | EdgeError, head: dict[str, Any]) -> dict[str, Any]:
    from edge.errors import EdgeError

    if "error" in head:
        return {}
    if isinstance(found, EdgeError):
        return {"error": {"message": found.message, "hint": found.hint}}
    return {
        "best": found.best.text,
        "ranked": [choice.text for choice in found.ranked],
        "probabilities": found.probabilities,
        "choices": [
            {
                "text": choice.text,
                "logprob": choice.logprob,
                "mean": choice.mean,
                "end_logprob": choice.end_logprob,
                "n_tokens": choice.n_tokens,
                "tokens": [{"text": token.text, "logprob": token.logprob} for token in choice.tokens],
            }
            for choice in found.choices
        ],
        "n_prompt": found.n_prompt,
        "n_computed": found.n_computed,
    }
