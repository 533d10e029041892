"""Generates a reply of a model that thinks first: a thought may have a longest length, and a constraint begins behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from edge.types import Usage

if TYPE_CHECKING:
    from edge.engine.constraint import Matcher
    from edge.engine.generation import Finished
    from edge.prompt.prompting import Prompting
    from edge.reply_reader import ReplyReader
    from edge.request import Request
    from edge.types import Sampling

__all__ = ["Generate", "think_and_answer"]

Generate = Callable[["list[int]", "Sampling", "Sequence[int]", "Matcher | None"], "Finished"]
"""Has the engine go on behind a prompt: (tokens, sampling, boundaries, constraint) -> how it ended."""


def think_and_answer(
    generate: Generate,
    tokens: list[int],
    request: Request,
    prompting: Prompting,
    reader: ReplyReader,
    boundaries: Sequence[int],
    matcher: Matcher | None,
) -> Finished:
    """Generate a reply.

    A thought that grows too long is closed, and the model goes on with the answer. That is a second generation, whose prompt
    is the first one and what was generated, so it computes next to nothing again.

    Args:
        generate: of the turn.
        tokens: the prompt.
        request: what was asked.
        prompting: knows the words around thoughts.
        reader: reads what is generated.
        boundaries: as in `Generation`.
        matcher: of the constraint of the answer.
    """
    sampling = request.sampling
    limit = 0 if request.options.think is False else request.max_thinking
    is_thinking = reader.is_thinking
    if (not is_thinking and not limit) or (not is_thinking and matcher is not None) or (limit is None and matcher is None):
        return generate(tokens, sampling, boundaries, matcher)
    thought: Finished | None = None
    begun: list[int] = []
    if limit != 0:
        thought = generate(tokens, _of_thought(sampling, limit, prompting if matcher is not None else None), boundaries, None)
        is_closed = matcher is not None and thought.stopped_by is not None and thought.stopped_by not in sampling.stop
        is_too_long = thought.reason == "length" and limit is not None and len(thought.tokens) >= limit
        if not is_closed and not is_too_long:
            return replace(thought, is_partial=matcher is not None)
        begun = prompting.encode_reply(reader.raw) if is_closed else list(thought.tokens)
        if not reader.is_thinking and matcher is None and thought.reason == "length":
            return _joined(thought, begun, generate([*tokens, *begun], _rest(sampling, thought), (), None))
    text, closing = prompting.closing_of_thought()
    reader.feed(text)
    begun += closing
    rest = generate([*tokens, *begun], _rest(sampling, thought), () if thought else boundaries, matcher)
    return _joined(thought, begun, rest)


def _of_thought(sampling: Sampling, limit: int | None, prompting: Prompting | None) -> Sampling:
    """Return the sampling of a thought: at most so many tokens, up to the closing word if `prompting` tells it."""
    limits = [n for n in (limit, sampling.max_tokens) if n is not None]
    stop = sampling.stop
    if prompting is not None and prompting.template.thinking is not None:
        stop = (*stop, prompting.template.thinking.closing)
    return replace(sampling, max_tokens=min(limits, default=None), stop=stop)


def _rest(sampling: Sampling, thought: Finished | None) -> Sampling:
    """Return the sampling of what follows a thought."""
    if thought is None or sampling.max_tokens is None:
        return sampling
    return replace(sampling, max_tokens=max(1, sampling.max_tokens - thought.usage.n_generated))


def _joined(thought: Finished | None, begun: Sequence[int], rest: Finished) -> Finished:
    """Return the end of a reply that was generated in two parts."""
    tokens = (*begun, *rest.tokens) if rest.tokens else ()
    if thought is None:
        return replace(rest, tokens=tokens)
    usage = Usage.total((thought.usage, rest.usage))
    first, last = thought.timing, rest.timing
    timing = replace(
        last,
        queue_ms=first.queue_ms,
        prefill_ms=first.prefill_ms,
        first_token_ms=first.first_token_ms or last.first_token_ms,
        decode_ms=first.decode_ms + last.decode_ms,
    )
    return replace(rest, usage=usage, timing=timing, tokens=tokens)
