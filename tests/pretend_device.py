"""A pretended accelerator: its tensors are computed on the CPU, and refuse to meet one of the CPU.

A GPU raises where a tensor of the host meets one of its own. So does this: code that runs on it creates every tensor on the
right device, and moves what it has to move. What a GPU computes is not shown by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

__all__ = ["PRETENDED", "pretended"]

PRETENDED = torch.device("meta")  # the only other device that a build without one knows
_MOVES = ("aten::to", "aten::_to_copy", "aten::copy_", "aten::_foreach_copy_")


class _There(torch.Tensor):
    """A tensor of the pretended device."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> _There:
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=PRETENDED
        )
        made.held = held
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"pretended({self.held!r})"

    def __float__(self) -> float:
        return float(self.held)

    def tolist(self) -> Any:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch.inference_mode(False), torch.no_grad():  # views of wrappers know no inference mode
            return _compute(operation, args, kwargs or {})


class _Pretend(TorchDispatchMode):
    """Lets factory functions make tensors there, too."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch.inference_mode(False), torch.no_grad():
            return _compute(operation, args, kwargs or {})


def _compute(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    leaves, shape = tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    there = [leaf for leaf in tensors if isinstance(leaf, _There)]
    here = [leaf for leaf in tensors if not isinstance(leaf, _There) and leaf.ndim > 0]  # numbers may meet any tensor
    name = operation._schema.name
    target = next((leaf for leaf in leaves if isinstance(leaf, torch.device)), None)
    if there and here and name not in _MOVES:
        raise RuntimeError(f"{name}: expected all tensors on one device, but found {PRETENDED} and cpu")
    is_there = target == PRETENDED if target is not None else bool(there)
    if name in _MOVES[2:]:
        is_there = isinstance(tensors[0], _There)
    held = [
        leaf.held if isinstance(leaf, _There) else torch.device("cpu") if leaf is target is not None else leaf
        for leaf in leaves
    ]
    args, kwargs = tree_unflatten(held, shape)
    found = operation(*args, **kwargs)
    if not operation._schema.returns:
        return None
    own = {id(leaf.held): leaf for leaf in there}

    def wrap(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return own[id(value)] if id(value) in own else _There(value)

    return tree_map(wrap, found) if is_there else found


_make = torch.tensor


def _tensor(data: Any, *, device: Any = None, **options: Any) -> Any:
    """Make a tensor as torch.tensor does, which asks no mode."""
    made = _make(data, **options)
    return made if device is None else made.to(device)


@contextmanager
def pretended() -> Iterator[None]:
    """Let tensors be made on, and moved to, the pretended device inside the block."""
    supported = ["cpu", PRETENDED.type]
    with (
        mock.patch("torch.tensor", _tensor),
        mock.patch("torch.optim.optimizer._get_fused_kernels_supported_devices", lambda: supported),
        _Pretend(),
    ):
        yield
