"""Saves a reply while it is generated, as a new message or at the end of an answer that is continued."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edge.errors import StorageError, UsageError
from edge.types import Message, ToolCall

if TYPE_CHECKING:
    from edge.conversation.store import ConversationStore
    from edge.conversation.tree import Node, Status

__all__ = ["ReplySaver"]

_SAVE_EVERY_S = 1.0


class ReplySaver:
    """Saves one reply below the message that it answers. A failing disk raises nothing here: see `problem`.

    Args:
        store: the conversations.
        conversation_id: the conversation.
        question_id: the message that is answered.
        model: name of the model that answers.
        fallback: becomes the head again if the reply is empty; None leaves the head at the question.
        head_before: head of the conversation before the question was asked.
        continued: the answer that the reply extends, as it was before it was reopened; None for a new one.

    Attributes:
        conversation_id: as above.
        node: the saved message; None before the first save.
        before: the text that the reply continues; "" for a new one.
        problem: why the latest save failed; "" if it did not.
    """

    def __init__(
        self,
        store: ConversationStore,
        conversation_id: str,
        question_id: int,
        model: str,
        fallback: int | None = None,
        head_before: int | None = None,
        continued: Node | None = None,
    ) -> None:
        self.conversation_id = conversation_id
        self.node = self._continued = continued
        # The end of an incomplete character is left out: the model writes it again.
        self.before = continued.content.rstrip("\ufffd") if continued is not None else ""
        self.problem = ""
        self._store = store
        self._question_id = question_id
        self._model = model
        self._fallback = fallback
        self._head_before = head_before
        self._saved_at = time.monotonic()

    def credit(self, model: str) -> None:
        """Save the reply as one of another model, if it is not saved yet."""
        self._model = model

    @property
    def is_due(self) -> bool:
        """True if the text so far should be saved: about once a second, until that fails."""
        return not self.problem and time.monotonic() - self._saved_at >= _SAVE_EVERY_S

    def save_part(self, text: str, *, reasoning: str = "") -> None:
        """Save the text and the reasoning so far."""
        self._save(text, "partial", None, reasoning, ())
        self._saved_at = time.monotonic()

    def save_end(
        self, text: str, status: Status, record: dict[str, Any], *, reasoning: str = "", tool_calls: Sequence[ToolCall] = ()
    ) -> None:
        """Save the whole reply. Of an empty one only the question stays, to be answered again."""
        if text or reasoning or tool_calls or status == "complete":
            self._save(text, status, record, reasoning, tool_calls)
        elif self._continued is not None:
            old = self._continued
            self._update(old.id, old.content, "stopped" if old.status == "partial" else old.status, old.record)
        elif self._fallback is not None:
            with contextlib.suppress(StorageError, UsageError):  # the disk fails or the conversation is gone
                self._store.set_head(self.conversation_id, self._fallback)

    def follow(self, results: Sequence[Message]) -> ReplySaver | None:
        """Save the results of the tools that this reply called, and return what saves the model's next message below them.

        Returns:
            None if they cannot be saved, or this reply could not be.
        """
        if self.node is None or self.problem:
            return None
        last = self.node.id
        try:
            for result in results:
                last = self._store.append(self.conversation_id, result, parent=last).id
        except (StorageError, UsageError) as error:
            self.problem = str(error)
            return None
        return ReplySaver(self._store, self.conversation_id, last, self._model)

    def save_passages(self, passages: dict[str, Any]) -> None:
        """Save the passages of documents that the question has in the prompt."""
        try:
            question = self._store.node(self._question_id)
            self._store.update(question.id, record={**question.record, **passages})
        except (StorageError, UsageError) as error:
            self.problem = str(error)

    def take_back_question(self) -> None:
        """Go back to the path before the question, which is refused and would be in the way of the next one."""
        if self._continued is not None:
            return
        with contextlib.suppress(StorageError, UsageError):  # likewise
            self._store.set_head(self.conversation_id, self._head_before)

    def _save(
        self, text: str, status: Status, record: dict[str, Any] | None, reasoning: str, tool_calls: Sequence[ToolCall]
    ) -> None:
        if self.node is not None:
            return self._update(self.node.id, self.before + text, status, record, reasoning, tool_calls)
        try:
            self.node = self._store.append(
                self.conversation_id,
                Message("assistant", text, tool_calls=tuple(tool_calls), reasoning=reasoning),
                parent=self._question_id,
                status=status,
                model=self._model,
                record=record,
            )
            self.problem = ""
        except (StorageError, UsageError) as error:  # UsageError: the conversation was deleted meanwhile
            self.problem = str(error)
        return None

    def _update(
        self,
        node_id: int,
        content: str,
        status: Status,
        record: dict[str, Any] | None,
        reasoning: str = "",
        tool_calls: Sequence[ToolCall] = (),
    ) -> None:
        try:
            # An answer that is continued keeps the reasoning it has.
            self.node = self._store.update(
                node_id,
                content=content,
                status=status,
                record=record,
                reasoning=reasoning or None,
                tool_calls=tool_calls or None,
            )
            self.problem = ""
        except (StorageError, UsageError) as error:  # UsageError: the conversation was deleted meanwhile
            self.problem = str(error)
