"""LoRA adapters of an open model, and those that its context computes with."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edge.backends.base import is_out_of_memory
from edge.backends.llamacpp.library import clear_log, recent_log
from edge.errors import BackendError, EdgeError, ModelFileError, ModelTooLargeError

if TYPE_CHECKING:
    from edge.adapters import Adapter, Mix

__all__ = ["Adapters"]


class Adapters:
    """See the module. llama.cpp frees them with the model.

    Args:
        library: from `load_library`.
        model: the model pointer. Its context is opened later: it counts the adapters when it makes room for a pass.
        adapters: checked against the model.

    Raises:
        ModelFileError, ModelTooLargeError: llama.cpp refused one.
    """

    def __init__(self, library: Any, model: Any, adapters: Sequence[Adapter]) -> None:
        self._library = library
        self._pointers = []
        self._mix: Mix = ()
        for adapter in adapters:
            clear_log()
            pointer = library.llama_adapter_lora_init(model, os.fsencode(adapter.path))
            if not pointer:
                raise _refused(adapter)
            self._pointers.append(pointer)

    def apply(self, context: Any, mix: Mix, *, is_new: bool = False) -> None:
        """Compute with these adapters from the next pass on.

        Args:
            context: the context pointer.
            mix: numbers of adapters and their scales.
            is_new: the context was just opened and has none.

        Raises:
            BackendError: llama.cpp refused; the adapters are as before.
        """
        if mix == self._mix and not is_new:
            return
        pointers = (self._library.llama_adapter_lora_p_ctypes * len(mix))(*(self._pointers[number] for number, _ in mix))
        scales = (ctypes.c_float * len(mix))(*(scale for _, scale in mix))
        clear_log()
        if self._library.llama_set_adapters_lora(context, pointers, len(mix), scales) != 0:
            raise BackendError(f"llama.cpp could not apply adapters: {recent_log() or 'it gave no reason'}.")
        self._mix = mix

    def reapply(self, context: Any) -> None:
        """Compute with the same adapters in a new context."""
        self.apply(context, self._mix, is_new=True)


def _refused(adapter: Adapter) -> EdgeError:
    text = recent_log() or "it gave no reason"
    if is_out_of_memory(text):
        return ModelTooLargeError(
            f"There is not enough memory to load the adapter {adapter.path} ({text}).", "Close other programs, or leave it out."
        )
    return ModelFileError(f"llama.cpp cannot use the adapter {adapter.path}: {text}.", "Convert or download it again.")
