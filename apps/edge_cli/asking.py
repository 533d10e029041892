"""What the commands that answer share: a loaded model, an answer as it comes, and what it took."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from edge.units import duration_text, size_text
from edge_cli import markdown, output
from edge_cli.answer import Answer, CodeOnly, JsonLines, Silent, Text
from edge_cli.streams import OutputClosedError

if TYPE_CHECKING:
    from edge.assistant import Assistant
    from edge.config import Settings
    from edge.conversation import ConversationStore
    from edge.reply import Reply
    from edge.types import Usage
    from edge_cli.app import App

__all__ = ["MAX_TOKENS", "answer_from", "follow", "open_assistant", "stats_line", "with_limits"]

_STOP_WITHIN_S = 10.0

MAX_TOKENS = 2048
"""The longest answer unless something else is set. A small model may repeat itself until the context window is full."""


def with_limits(settings: Settings) -> Settings:
    """Limit the length and the repeats of the answer, unless settings say how many there may be."""
    from msgspec.structs import replace

    from edge.prompt.repetition import USUAL_MAX_REPEATS
    from edge.types import Sampling

    limits = Sampling(max_tokens=MAX_TOKENS, max_repeats=USUAL_MAX_REPEATS)
    return replace(settings, sampling=settings.sampling.over(limits))


def open_assistant(app: App, settings: Settings, store: ConversationStore | None, status: output.Status) -> Assistant:
    """Load the model, with its progress in the status line; the caller closes it."""

    def report(stage: str, share: float) -> bool:
        status.show(f"{stage} {settings.model} {share:4.0%}" if share > 0 else f"{stage} {settings.model}")
        return True

    return app.load(settings=settings, store=store, on_progress=report)


def answer_from(options: dict[str, Any]) -> Answer:
    """Return the way to write the answer."""
    if options["as_json"]:
        return Silent()
    if options["as_lines"]:
        return JsonLines()
    if options["extract"]:
        return CodeOnly()
    has_form = any(options[name] is not None for name in ("schema", "regex", "grammar"))
    if options["raw"] or has_form or not markdown.is_possible():
        return Text()
    return markdown.Markdown()


def follow(reply: Reply, status: output.Status, answer: Answer) -> None:
    """Write the answer as it is generated."""
    from edge.errors import EdgeError
    from edge.events import Reasoning, Text

    def describe() -> str:
        if reply.reasoning:
            return "thinking"
        done, total = reply.progress
        return f"processing prompt: {done:,} of {total:,} tokens" if total else ""

    status.watch(describe)
    try:
        for event in reply.events():
            if isinstance(event, Text) and event.text:
                status.close()
                answer.write(event.text)
            elif isinstance(event, Reasoning):
                answer.think(event.text)
    except EdgeError:
        answer.end()
        raise
    except BaseException:
        # Ctrl-C, or nobody reads stdout: let the engine reach its next stop, so that the text so far is saved.
        reply.cancel()
        with contextlib.suppress(EdgeError, TimeoutError):
            reply.wait(timeout_s=_STOP_WITHIN_S)
        with contextlib.suppress(EdgeError, OutputClosedError):
            answer.end()
        raise
    finally:
        status.close()
    answer.end()


def stats_line(reply: Reply) -> str:
    """Return the speed, tokens and cost of a reply on one line."""
    usage, timing, cost = reply.usage, reply.timing, reply.cost
    parts = [
        f"first token after {duration_text(timing.first_token_ms / 1000)}",
        f"{timing.tokens_per_s(usage.n_generated):.1f} tokens/s",
        f"{usage.n_generated:,} tokens generated",
        f"{usage.n_prompt:,} prompt tokens ({_reuse(usage)})",
        f"{duration_text(timing.total_ms / 1000)} in all",
    ]
    if drafts := _drafts(usage):
        parts.append(drafts)
    if cost.memory_bytes:
        parts.append(f"{size_text(cost.memory_bytes)} of memory")
    if cost.energy_j is not None:
        parts.append(f"{cost.energy_j:.1f} J")
    if reply.held_back:
        parts.append(f"throttled: {reply.held_back}")
    return ", ".join(parts)


def _reuse(usage: Usage) -> str:
    """Return where the tokens of a prompt came from."""
    if usage.is_answer_cached:
        return "from the answer cache"
    n_memory = usage.n_reused - usage.n_restored
    parts = [f"{n:,} from {where}" for n, where in ((n_memory, "memory"), (usage.n_restored, "disk")) if n]
    if usage.n_foreign:
        parts[-1] += f" ({usage.n_foreign:,} of another engine)"
    saved = f", {duration_text(usage.saved_ms / 1000)} saved" if usage.saved_ms >= 10 else ""
    return " and ".join(parts) + saved if parts else "none reused"


def _drafts(usage: Usage) -> str:
    """Return what speculative decoding did, in a few words; "" if nothing was drafted."""
    if not usage.n_drafted:
        return ""
    saved = f", {duration_text(usage.draft_saved_ms / 1000)} saved" if usage.draft_saved_ms >= 10 else ""
    return f"{usage.n_accepted:,} of {usage.n_drafted:,} guessed tokens right{saved}"
