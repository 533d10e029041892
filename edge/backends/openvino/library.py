"""OpenVINO as a library: imported once, its errors turned into ours."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from edge.backends.base import is_out_of_memory
from edge.backends.stopping import watching
from edge.errors import BackendError, BackendUnavailableError, EdgeError, ModelTooLargeError
from edge.names import TITLES

__all__ = ["DEVICES", "find_device", "infer", "load_library", "wrap_errors"]

DEVICES = {"cpu": "CPU", "intel-gpu": "GPU"}
"""Accelerator -> OpenVINO's name."""
_WATCHED_FROM = 16  # a shorter chunk is over before a thread that watches it would help
_INSTALL = 'Install it: pip install "edge-assistant[openvino]"'


def load_library() -> Any:
    """Return the module openvino. The first call takes about 0.2 s.

    Only its converter, which edge never calls, sends telemetry.

    Raises:
        BackendUnavailableError: it is not installed, or cannot be loaded here, or this version is too old.
    """
    try:
        library = importlib.import_module("openvino")
        library.Core, importlib.import_module("openvino.opset15").scaled_dot_product_attention
    except (ImportError, OSError, AttributeError) as error:
        raise BackendUnavailableError(f"OpenVINO cannot be loaded: {error}.", _INSTALL) from error
    return library


def find_device(library: Any, accelerator: str) -> str:
    """Return OpenVINO's name of an accelerator's device. It looks for the hardware and loads the plug-in.

    Raises:
        BackendUnavailableError: there is none, or its driver is missing.
    """
    name = DEVICES[accelerator]
    with wrap_errors("look for devices"):
        found = library.Core().available_devices
    if name not in found and f"{name}.0" not in found:
        raise BackendUnavailableError(
            f"OpenVINO finds no {TITLES[accelerator]} here, only: {', '.join(found)}.",
            "Install the driver (on Linux the package intel-opencl-icd), or use --require cpu.",
        )
    return name


def infer(request: Any, n_tokens: int, should_stop: Callable[[], bool] | None) -> bool:
    """Run a pass over so many tokens. Returns False if it was stopped; what it computed counts for nothing then.

    Raises:
        RuntimeError: OpenVINO's own; see `wrap_errors`.
    """
    if should_stop is None or n_tokens < _WATCHED_FROM:
        request.infer()
        return True
    was_stopped = threading.Event()

    def stop() -> None:
        was_stopped.set()
        request.cancel()

    with watching(should_stop, stop):
        try:
            request.infer()
        except RuntimeError:
            if not was_stopped.is_set():
                raise
            return False
    return True


@contextmanager
def wrap_errors(what: str) -> Iterator[None]:
    """Turn OpenVINO's errors, all of them RuntimeErrors, into edge's.

    Args:
        what: the failed action, to follow "OpenVINO could not".
    """
    try:
        yield
    except EdgeError:
        raise
    except (RuntimeError, ValueError, MemoryError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = lines[-1][:300] if lines else type(error).__name__
        if is_out_of_memory(error):
            raise ModelTooLargeError(
                f"There is not enough memory: OpenVINO could not {what} ({text}).", "Use a smaller context, or a smaller model."
            ) from error
        raise BackendError(f"OpenVINO could not {what}: {text}", "Use --backend llamacpp, and report this.") from error
