"""OpenVINO as a library: imported once, its errors turned into ours."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from edge.backends.base import is_out_of_memory
from edge.errors import BackendError, BackendUnavailableError, EdgeError, ModelTooLargeError

__all__ = ["load_library", "wrap_errors"]

_INSTALL = 'Install it: pip install "edge-assistant[openvino]"'


def load_library() -> Any:
    """Return the module openvino. The first call takes about 0.2 s.

    Only its converter, which edge never calls, sends telemetry.

    Raises:
        BackendUnavailableError: it is not installed, or cannot be loaded here, or this version has no paged attention.
    """
    try:
        library = importlib.import_module("openvino")
        transformations = importlib.import_module("openvino._offline_transformations")
        library.Core, transformations.paged_attention_transformation  # noqa: B018 (are they there?)
    except (ImportError, OSError, AttributeError) as error:
        raise BackendUnavailableError(f"OpenVINO cannot be loaded: {error}.", _INSTALL) from error
    return library


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
