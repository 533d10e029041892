"""Saves a reply while it is generated."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from edge.errors import StorageError, UsageError
from edge.types import Message

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

    Attributes:
        conversation_id: as above.
        node: the saved message; None before the first save.
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
    ) -> None:
        self.conversation_id = conversation_id
        self.node: Node | None = None
        self.problem = ""
        self._store = store
        self._question_id = question_id
        self._model = model
        self._fallback = fallback
        self._head_before = head_before
        self._saved_at = time.monotonic()

    @property
    def is_due(self) -> bool:
        """True if the text so far should be saved: about once a second, until that fails."""
        return not self.problem and time.monotonic() - self._saved_at >= _SAVE_EVERY_S

    def save_part(self, text: str) -> None:
        """Save the text so far."""
        self._save(text, "partial", None)
        self._saved_at = time.monotonic()

    def save_end(self, text: str, status: Status, record: dict[str, Any]) -> None:
        """Save the whole reply. Of an empty one only the question stays, to be answered again."""
        if text or status == "complete":
            self._save(text, status, record)
        elif self._fallback is not None:
            with contextlib.suppress(StorageError, UsageError):  # the disk fails or the conversation is gone
                self._store.set_head(self.conversation_id, self._fallback)

    def take_back_question(self) -> None:
        """Go back to the path before the question, which is refused and would be in the way of the next one."""
        with contextlib.suppress(StorageError, UsageError):  # likewise
            self._store.set_head(self.conversation_id, self._head_before)

    def _save(self, text: str, status: Status, record: dict[str, Any] | None) -> None:
        try:
            if self.node is None:
                self.node = self._store.append(
                    self.conversation_id,
                    Message("assistant", text),
                    parent=self._question_id,
                    status=status,
                    model=self._model,
                    record=record,
                )
            else:
                self.node = self._store.update(self.node.id, content=text, status=status, record=record)
            self.problem = ""
        except (StorageError, UsageError) as error:  # UsageError: the conversation was deleted meanwhile
            self.problem = str(error)
