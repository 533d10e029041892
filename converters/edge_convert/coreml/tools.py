"""coremltools, imported without its remarks."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import logging
import sys
from typing import Any

from edge.errors import BackendUnavailableError

__all__ = ["quiet_coremltools", "release_memory"]


def quiet_coremltools() -> Any:
    """Import coremltools. On Linux it remarks on every Mac library that it does not find; none of them is needed.

    Raises:
        BackendUnavailableError: it is not installed.
    """
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            import coremltools
            import coremltools.proto.MIL_pb2
            import coremltools.proto.Model_pb2
    except ImportError as error:
        raise BackendUnavailableError(
            f"Core ML packages need coremltools, which cannot be imported here ({error}).",
            "pip install 'edge-assistant[convert]'",
        ) from error
    finally:
        logger.setLevel(level)
    return coremltools


def release_memory() -> None:
    """Give back what is not used any more: programs refer to themselves, and glibc keeps what Python has freed."""
    gc.collect()
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)
