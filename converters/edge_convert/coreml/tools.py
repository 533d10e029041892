"""Imports coremltools quietly."""

from __future__ import annotations

import contextlib
import io
import logging
from typing import Any

from edge.errors import BackendUnavailableError

__all__ = ["quiet_coremltools"]


def quiet_coremltools() -> Any:
    """Import coremltools without its warnings about libraries of a Mac, which are not needed.

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
