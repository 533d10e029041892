"""What a turn does about documents: passages for its question, in the prompt and where it is saved, or an earlier answer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from edge.citations import frame, to_record, unknown_numbers
from edge.events import Passages
from edge.grounding.choose import Chosen
from edge.messages import Message

if TYPE_CHECKING:
    from edge.conversation.reply_saver import ReplySaver
    from edge.engine.generation import Finished
    from edge.grounding.answers import Similar
    from edge.reply_reader import ReplyReader
    from edge.reply_state import ReplyState
    from edge.request import Request

__all__ = ["Grounded"]

_SHARE_OF_PASSAGES = 3  # of the window: a third for passages at most, and the rest for the conversation and the reply


@dataclass(eq=False)
class Grounded:
    """The documents of one turn.

    Args:
        request: what is asked.
        reply: what the caller gets.
        saver: saves the passages with the question; None saves nothing.
        model: the model and all that its answers depend on, for earlier answers.

    Attributes:
        known: an earlier answer to a question that means the same, to be given again; None if one has to be generated.
    """

    request: Request
    reply: ReplyState
    saver: ReplySaver | None
    model: str
    known: Similar | None = field(init=False, default=None)

    def ground(
        self,
        prompt: str | Sequence[Message],
        n_ctx: int,
        count: Callable[[str], int],
        count_one: Callable[[Message], int],
    ) -> str | Sequence[Message]:
        """Choose passages for the last message, and return the prompt with them.

        Args:
            prompt: of the turn.
            n_ctx: tokens of the context window.
            count, count_one: return the tokens of a text, and those that a message adds.
        """
        grounding, reply = self.request.grounding, self.reply
        if grounding is None or isinstance(prompt, str) or self.request.is_prefill_only:
            return prompt
        answers = grounding.answers if self._is_plain else None
        self.known = answers.find(self._key, grounding.question) if answers is not None else None
        if self.known is not None:
            chosen = Chosen(self.known.citations, (), tuple(source.name for source in grounding.sources))
            said = " ".join(self.known.question.split())[:200]
            reply.note(f"This is the answer to an earlier question: {said} (similarity {self.known.similarity:.2f})")
        else:
            room = n_ctx // _SHARE_OF_PASSAGES
            n_tokens = sum(count_one(message) for message in prompt)
            repeats = n_tokens + room > n_ctx - n_ctx // 4  # earlier messages may be dropped
            chosen = grounding.choose(room, count, repeats=repeats)
        reply.emit(Passages(chosen.citations, chosen.searched))
        if not chosen.citations:
            names = " and ".join(chosen.searched) or "the documents"
            reply.note(f"Nothing about this was found in {names}. The answer rests on no document.")
        if grounding.is_in_prompt:
            return prompt
        again = tuple(one.number for one in chosen.again)
        if self.saver is not None:
            self.saver.save_passages(to_record(chosen.new, again))
        passages = frame(chosen.new, again)
        last = prompt[-1]
        return [*prompt[:-1], replace(last, content=f"{passages}\n\n{last.content}")] if passages else prompt

    def end(self, finished: Finished, said: ReplyReader) -> None:
        """Note what the answer refers to and does not have, and store it for questions that mean the same."""
        grounding, reply = self.request.grounding, self.reply
        if not reply.citations or grounding is None:
            return
        if unknown := unknown_numbers(said.text, reply.citations):
            numbers = ", ".join(f"[{number}]" for number in unknown)
            reply.note(f"The answer refers to {numbers}, and no passage has that number.")
        is_whole = finished.reason == "stop" and not finished.is_partial and not said.calls and not reply.escalated
        if grounding.answers is None or self.known is not None or not (is_whole and said.text and self._is_plain):
            return
        if self.request.cache not in ("off", "memory"):
            from edge.grounding.answers import Similar

            took_ms = finished.timing.total_ms
            answer = Similar(grounding.question, said.text, tuple(reply.citations), finished.reason, took_ms)
            grounding.answers.add(self._key, answer)

    def record(self) -> dict[str, object]:
        """Return what the record of the answer holds of its passages."""
        return {"citations": [asdict(one) for one in self.reply.citations]} if self.reply.citations else {}

    @property
    def _is_plain(self) -> bool:
        """True if nothing but the question decides what the answer may be: no form, tools, logprobs or several answers."""
        request = self.request
        is_free = request.constraint is None and request.n_logprobs is None and request.shared is None
        return is_free and not request.options.tools and not (self.saver is not None and self.saver.before)

    @property
    def _key(self) -> str:
        """All but the question that an answer over documents depends on."""
        request = self.request
        system = [one.content for one in request.prompt if isinstance(one, Message) and one.role == "system"]
        parts = (self.model, system, asdict(request.sampling), request.mix, request.options.think, request.namespace)
        return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()
