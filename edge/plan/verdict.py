"""Whether a model would fit into memory, told from the size of its files alone: for lists of models that are not here yet.

The plan knows better once it can read the file: it takes a shorter context where the usual one does not fit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from edge.plan.fitting import memory_margin

if TYPE_CHECKING:
    from edge.device.profile import DeviceProfile

__all__ = ["Verdict", "free_memory", "memory_need", "memory_verdict"]

Verdict = Literal["fits", "tight", "too large"]
"""With a useful context; with a shorter one than usual, or slowly; not at all."""

_SHARE, _FIXED_BYTES = 1.25, 400_000_000  # weights, keys and values of some 4,000 tokens, and working buffers
_LEAST_FIXED_BYTES = 150_000_000


def free_memory(device: DeviceProfile) -> int:
    """Return the bytes that a model may take here: main memory, and that of GPUs with memory of their own, less a margin."""
    available = device.memory.available_bytes
    own = sum(gpu.free_bytes - memory_margin(gpu.free_bytes) for gpu in device.gpus if not gpu.is_unified)
    return max(0, available - memory_margin(available)) + max(0, own)


def memory_need(size_bytes: int) -> int:
    """Return about how many bytes a model takes with a useful context, given the size of its files."""
    return int(size_bytes * _SHARE) + _FIXED_BYTES


def memory_verdict(size_bytes: int, free_bytes: int) -> Verdict:
    """Say whether a model fits, given the size of its files and `free_memory`."""
    if memory_need(size_bytes) <= free_bytes:
        return "fits"
    return "tight" if size_bytes + _LEAST_FIXED_BYTES <= free_bytes else "too large"
