"""The conversation store as the event loop may use it: calls go to one worker thread and keep their order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from edge.conversation import ConversationInfo, ConversationStore, Node

__all__ = ["Library", "Page"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page:
    """One conversation as it is shown: its active path, and for each message its alternatives.

    Attributes:
        info: the conversation.
        nodes: the active path, first message first.
        siblings: node id -> ids of the message and its alternatives, oldest first.
    """

    info: ConversationInfo
    nodes: tuple[Node, ...]
    siblings: dict[int, tuple[int, ...]]


class Library:
    """Async face of the store. Opened on first use, so that the first frame does not wait for the disk.

    Args:
        open_store: opens the store; its errors come out of the first call, and again out of every further one.
        owns: the store is closed with the library.
    """

    def __init__(self, open_store: Callable[[], ConversationStore], *, owns: bool = True) -> None:
        self._open_store = open_store
        self._owns = owns
        self._store: ConversationStore | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="edge-store")

    async def run(self, function: Callable[[ConversationStore], T]) -> T:
        """Call a function with the store, in the store's thread.

        Raises:
            StorageError, UsageError: as the function does, or as opening the store did.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: function(self._opened()))

    def post(self, function: Callable[[ConversationStore], object]) -> None:
        """Like `run`, for what nobody waits for; `close` does. Errors are the caller's business inside `function`."""
        self._thread.submit(lambda: function(self._opened()))

    async def store(self) -> ConversationStore:
        """The store itself, for `edge.load`."""
        return await self.run(lambda store: store)

    async def page(self, conversation_id: str) -> Page:
        """Everything needed to show a conversation.

        Raises:
            UsageError: there is no such conversation.
            StorageError: the store cannot be read.
        """
        return await self.run(lambda store: read_page(store, conversation_id))

    def close(self) -> None:
        """Finish what was posted and close the store, if it is ours. Blocks."""

        def close_store() -> None:
            if self._store is not None and self._owns:
                self._store.close()
            self._store = None

        self._thread.submit(close_store)
        self._thread.shutdown(wait=True)

    def _opened(self) -> ConversationStore:
        if self._store is None:
            self._store = self._open_store()
        return self._store


def read_page(store: ConversationStore, conversation_id: str) -> Page:
    """See `Library.page`."""
    info = store.get(conversation_id)
    nodes = tuple(store.path(info.id))
    return Page(info, nodes, store.branches(info.id))
