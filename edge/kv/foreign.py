"""Blocks that another engine has computed: the first one of each engine is compared with what this engine computes.

Engines round differently, so such blocks are near to this engine's own and not equal; a block that is far from them is the work
of a broken engine, or means something else. That is decided once for each other engine, over a few tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge.backends.base import Backend
    from edge.backends.neutral import NeutralLayout
    from edge.kv.slots import Slot

__all__ = ["ForeignBlocks"]

_log = logging.getLogger("edge.kv")
_N_COMPARED = 32


class ForeignBlocks:
    """See the module. The engine thread owns it.

    Args:
        backend: the engine.

    Attributes:
        has_far: blocks of an engine were found to be of no use.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.has_far = False
        self._is_near: dict[str, bool] = {}

    def maker(self, block: memoryview) -> str:
        """Return which other engine computed a block; "" if it was this one."""
        return self._backend.maker(block)

    def are_usable(self, maker: str, slot: Slot, tokens: Sequence[int]) -> bool:
        """Return whether blocks of an engine may be used.

        Args:
            maker: the engine.
            slot: at the end of whose sequence one of its blocks was imported; it is left as it was.
            tokens: of that block, as far as it was imported.

        Raises:
            BackendError: the engine failed.
        """
        if maker not in self._is_near:
            layout = self._backend.neutral
            assert layout is not None  # only blocks of this layout have another maker
            self._backend.set_adapters(slot.mix)
            error = self._error(layout, slot.seq_id, list(tokens)[-_N_COMPARED:])
            self._is_near[maker] = is_near = error <= layout.MAX_DIFFERENCE  # NaN is more
            if is_near:
                _log.info("KV blocks of %s differ from this engine's by %.1f %%", maker, 100 * error)
            else:
                self.has_far = True
                _log.warning("KV blocks of %s are not used: they differ from this engine's by %.0f %%", maker, 100 * error)
        return self._is_near[maker]

    def _error(self, layout: NeutralLayout, seq_id: int, tokens: list[int]) -> float:
        """Return how far the newest tokens of a sequence are from computed ones, see `NeutralLayout.difference`."""
        backend = self._backend
        end = backend.length(seq_id)
        start = end - len(tokens)
        block = backend.export_kv(seq_id, start, end)
        backend.rewind(seq_id, start)
        backend.prefill(seq_id, tokens)
        computed = backend.export_kv(seq_id, start, end)
        backend.rewind(seq_id, start)
        backend.import_kv(seq_id, block)
        return layout.difference(block, computed, len(tokens))
