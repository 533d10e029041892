"""Workers for tests of `edge.cluster`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from edge.errors import UsageError


def make(options: bytes) -> Callable[[bytes], bytes]:
    """Return a worker that says b"NUMBER done", slowly; b"die" ends its process."""
    if options == b"wrong":
        raise UsageError("It cannot work.", "Ask for something else.")

    def work(data: bytes) -> bytes:
        if data == b"die":
            os._exit(3)
        time.sleep(0.05)
        return data + b" done"

    return work
