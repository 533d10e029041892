"""ONNX models of the stages, opened so that they leave the processor to the language model."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.errors import CancelledError, ModelFileError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["OnnxModel", "release_memory"]


class OnnxModel:
    """One ONNX graph on the CPU. One thread runs it at a time; `cancel` may be called by any.

    Args:
        file: the graph.
        threads: CPU threads of one run.
        releases: return the memory of a run to the system behind it, for a graph that takes much more for a long input than
            for a short one.

    Attributes:
        inputs: name -> shape, as the graph declares them.

    Raises:
        ModelFileError: it cannot be opened.
    """

    def __init__(self, file: Path, *, threads: int = 1, releases: bool = False) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 4  # errors come as exceptions; it would write them over the chat, too
        # Threads that spin while they wait starve the language model.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            hint = "Remove the model and pull it again: edge models rm, edge models pull."
            raise ModelFileError(f"{file.name} cannot be opened as an ONNX model: {error}", hint) from error
        release_memory()  # opening a model takes the size of its file again, which malloc would keep
        self._run_options: Any = None
        self._new_run_options = ort.RunOptions
        self._releases = releases
        self.inputs: dict[str, tuple[Any, ...]] = {one.name: tuple(one.shape) for one in self._session.get_inputs()}
        self.outputs: tuple[str, ...] = tuple(one.name for one in self._session.get_outputs())

    def run(self, feed: Mapping[str, NDArray[Any]], outputs: Sequence[str] | None = None) -> list[NDArray[np.float32]]:
        """Compute the outputs.

        Args:
            feed: input name -> array, of the dtypes that the graph declares.
            outputs: names; None is all, in the graph's order.

        Raises:
            CancelledError: `cancel` was called meanwhile.
        """
        options = self._run_options = self._new_run_options()
        if self._releases:
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        try:
            return list(self._session.run(None if outputs is None else list(outputs), dict(feed), options))
        except Exception as error:
            if options.terminate:
                raise CancelledError("The model was stopped.") from error
            raise
        finally:
            self._run_options = None
            if self._releases:
                release_memory()

    def cancel(self) -> None:
        """End a run of another thread soon. Does nothing if none runs."""
        options = self._run_options
        if options is not None:
            options.terminate = True


def release_memory() -> None:
    """Return memory that was freed to the system, which glibc does by itself only for large pieces. Takes some milliseconds."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):  # musl has no malloc_trim, and needs none
        ctypes.CDLL(None).malloc_trim(0)
