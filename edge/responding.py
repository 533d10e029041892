"""Answers of a loaded model as values: the part of `Assistant` that asks for a type."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

from edge.arguments import check_sampling, check_shape, check_text
from edge.asking import Asking
from edge.errors import UsageError
from edge.request import RequestOptions
from edge.types import Message, Sampling

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from edge.constraint import Constraint
    from edge.conversation.tree import Node
    from edge.reply import Reply

    Prompt = Iterable[Message | Node | Mapping[str, object]]

__all__ = ["Responding"]

T = TypeVar("T")

EXTRACT = "Read the user's text and write down what it says, as JSON. Use its own words and numbers, and make nothing up."
"""The system prompt of `extract`, which the schema follows."""


class Responding(Asking):
    """See the module."""

    def respond(
        self,
        prompt: str | Prompt,
        as_: type[T],
        sampling: Sampling | None = None,
        *,
        cache_namespace: str | None = None,
        **options: Unpack[RequestOptions],
    ) -> T:
        """Answer once, and return the answer as a value: `ai.respond("Who wrote Faust, and when?", Book) -> Book`.

        Args:
            prompt, sampling, cache_namespace, options: as in `generate`.
            as_: the type of the answer, see `RequestOptions`; `str` is plain text.

        Raises:
            InvalidReplyError: the answer was cut off before it was complete, or the type refuses it.
            ConstraintError: the type has something that cannot be enforced.
            EdgeError: as `generate`, and what the reply raises.
        """
        reply = self._respond(prompt, as_, sampling, cache_namespace, options)
        value: T = reply.wait() if as_ is str else reply.value()  # type: ignore[assignment]
        return value

    async def arespond(
        self,
        prompt: str | Prompt,
        as_: type[T],
        sampling: Sampling | None = None,
        *,
        cache_namespace: str | None = None,
        **options: Unpack[RequestOptions],
    ) -> T:
        """Respond as `respond` does, without blocking the event loop."""
        reply = self._respond(prompt, as_, sampling, cache_namespace, options)
        value: T = await reply if as_ is str else await reply.avalue()  # type: ignore[assignment]
        return value

    def extract(
        self,
        text: str,
        as_: type[T],
        sampling: Sampling | None = None,
        *,
        instruction: str = EXTRACT,
        cache_namespace: str | None = None,
        **options: Unpack[RequestOptions],
    ) -> T:
        """Read a text, and return what it says as a value: `ai.extract(letter, Invoice) -> Invoice`.

        Args:
            text: the text.
            as_, sampling, cache_namespace, options, and what is raised: as in `respond`. At temperature 0 unless they say so.
            instruction: the system prompt.
        """
        return self.respond(*_extraction(text, as_, sampling, instruction), cache_namespace=cache_namespace, **options)

    async def aextract(
        self,
        text: str,
        as_: type[T],
        sampling: Sampling | None = None,
        *,
        instruction: str = EXTRACT,
        cache_namespace: str | None = None,
        **options: Unpack[RequestOptions],
    ) -> T:
        """Extract as `extract` does, without blocking the event loop."""
        question = _extraction(text, as_, sampling, instruction)
        return await self.arespond(*question, cache_namespace=cache_namespace, **options)

    def prepare_schema(self, schema: object = None, *, constraint: Constraint | None = None) -> tuple[str, ...]:
        """Compile a schema now, so that no reply waits for that; the first one of a model takes longest.

        Args:
            schema, constraint: as in `RequestOptions`.

        Returns:
            Keywords that will not be enforced; none for a strict schema.

        Raises:
            ConstraintError: it cannot be honoured.
            UsageError: neither is given, or it is of a wrong type.
            BackendError: the assistant is closed, or was loaded in another process.
        """
        shape = check_shape(schema, constraint)
        if shape is None:
            raise UsageError("There is no schema to prepare.", "Give schema or constraint.")
        return self._turns.compile(shape.constraint).ignored

    def _respond(
        self,
        prompt: str | Prompt,
        as_: object,
        sampling: Sampling | None,
        cache_namespace: str | None,
        options: RequestOptions,
    ) -> Reply:
        if options.get("schema") is not None or options.get("constraint") is not None:
            raise UsageError("The type of the answer says what it has to be.", "Leave schema and constraint out.")
        if as_ is not str:
            options = {**options, "schema": as_}
        return self.generate(prompt, sampling, cache_namespace=cache_namespace, **options)


def _extraction(
    text: str, as_: type[T], sampling: Sampling | None, instruction: str
) -> tuple[list[Message], type[T], Sampling]:
    """Return prompt, type and sampling of an extraction."""
    check_text("instruction", instruction)
    if not check_text("text", text):
        raise UsageError("There is no text to read.", "Give at least one character.")
    chosen = (check_sampling(sampling) or Sampling()).over(Sampling(temperature=0))
    return [Message("system", instruction), Message("user", text)], as_, chosen
