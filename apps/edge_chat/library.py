"""The conversation store for the event loop: calls run in one worker thread, in order."""

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
    """One conversation as shown: its active path, and the branches of each message.

    Attributes:
        info: the conversation.
        nodes: the active path, first message first.
        siblings: node id -> ids of the message and its other branches, oldest first.
    """

    info: ConversationInfo
    nodes: tuple[Node, ...]
    siblings: dict[int, tuple[int, ...]]


class Library:
    """Asynchronous access to the store, which is opened on first use so that the first frame does not wait for the disk.

    Args:
        open_store: opens the store; called again after it failed. Its errors are raised by the call that needed the store.
        owns: close the store with the library.
    """

    def __init__(self, open_store: Callable[[], ConversationStore], *, owns: bool = True) -> None:
        self._open_store = open_store
        self._owns = owns
        self._store: ConversationStore | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="edge-store")

    async def run(self, function: Callable[[ConversationStore], T]) -> T:
        """Call a function with the store, in the store's thread.

        Raises:
            StorageError, UsageError: from the function, or from opening the store.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: function(self._opened()))

    def post(self, function: Callable[[ConversationStore], object]) -> None:
        """Like `run`, without waiting; `close` waits. `function` handles its errors itself."""
        self._thread.submit(lambda: function(self._opened()))

    async def store(self) -> ConversationStore:
        """Return the store itself, for `edge.load`."""
        return await self.run(lambda store: store)

    async def page(self, conversation_id: str) -> Page:
        """Return all that is needed to show a conversation.

        Raises:
            UsageError: there is no such conversation.
            StorageError: the store cannot be read.
        """

        def read(store: ConversationStore) -> Page:
            info = store.get(conversation_id)
            return Page(info, tuple(store.path(info.id)), store.branches(info.id))

        return await self.run(read)

    def close(self) -> None:
        """Finish posted work and close the store, if owned. Blocks."""

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
