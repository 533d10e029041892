"""The replies of a model of any format, greedy: edge's own engine, and transformers for checkpoint folders."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_convert.evaluate.logits import find_format
from edge_convert.evaluate.tasks.asks import AnswerOptions, Ask

if TYPE_CHECKING:
    from edge.assistant import Assistant
    from edge.reply import Reply as EngineReply

__all__ = ["answer"]

_GREEDY: dict[str, Any] = {"temperature": 0, "repeat_penalty": 1.0, "max_repeats": 0}
"""Whatever the catalogue advises for the model: penalties would hide repetition."""
_CONTEXT = 2048
"""Tokens, of all replies that run side by side: a prompt and its reply take a quarter of it at most."""


def answer(model: Path, asks: Sequence[Ask], options: AnswerOptions) -> Generator[tuple[int, str], None, None]:
    """Have a model answer prompts at temperature 0, and yield (number of the prompt, text of the reply) as they end.

    Closing the generator stops the replies that run, and releases the model.

    Raises:
        ModelNotFoundError, ModelFileError: the path is not a model, or it is damaged.
        BackendUnavailableError: nothing on this device runs its format.
        EdgeError: a reply failed.
    """
    if find_format(model) == "checkpoint":
        from edge_convert.evaluate.tasks.answering_torch import answer as by_transformers

        yield from by_transformers(model, asks, options)
        return
    import edge
    from edge.batch import Batch

    def start(one: Ask) -> EngineReply:
        return ai.generate(_prompt(one), max_tokens=one.max_tokens, priority="background", **_GREEDY)

    with _load(edge, model, options) as ai:
        for number, reply in Batch(enumerate(asks), start, options.n_parallel + 1):
            yield number, reply.wait()


def _prompt(one: Ask) -> list[dict[str, object]]:
    return [{"role": role, "content": text} for role, text in one.messages]


def _load(edge: Any, model: Path, options: AnswerOptions) -> Assistant:
    loaded: Assistant = edge.load(
        str(model),
        settings=edge.Settings(),  # a measurement does not depend on the user's settings
        backend=options.backend or None,
        context=_CONTEXT,
        parallel=options.n_parallel,
        threads=options.n_threads,
        cache="memory",
    )
    return loaded
