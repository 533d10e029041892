"""llama.cpp as a library: imported once, its log kept away from the terminal, its results turned into our errors."""

from __future__ import annotations

import atexit
import ctypes
import importlib
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from edge.backends.base import is_out_of_memory
from edge.backends.stopping import watching
from edge.errors import BUILD_HINT, BackendError, BackendUnavailableError, EdgeError, ModelFileError, ModelTooLargeError
from edge.forks import ProcessLock

__all__ = [
    "AbortFlag",
    "Batch",
    "clear_log",
    "limit_spinning",
    "load_failure",
    "load_library",
    "recent_log",
]

_WARN, _ERROR, _CONTINUED = 3, 4, 5  # enum ggml_log_level
_SPINS = "20000"  # about half a millisecond on x86: longer than threads usually miss each other by
_log: deque[tuple[int, str]] = deque(maxlen=40)
_lock = ProcessLock()
_library: Any = None
_callback: Any = None  # kept alive here: llama.cpp calls it until the process ends


def limit_spinning(environ: MutableMapping[str, str]) -> None:
    """Limit how long OpenMP's threads spin while they wait for each other, hundreds of times a pass, before they sleep.

    OpenMP reads this once, when it is loaded. By default they spin for many milliseconds; if another program takes the core
    of the one that is waited for, decoding becomes ten times slower and more. If they sleep at once, all of them wake up
    late each time, which costs up to half of the speed (docs/builds.md).

    GNU's library counts the workers of all threads that computed. Once they are more than the cores, as with two models, it
    ignores the number of spins: with PASSIVE all sleep at once, with ACTIVE they spin 1,000 times.

    Args:
        environ: changed, unless the user has decided.
    """
    if "OMP_WAIT_POLICY" not in environ and "GOMP_SPINCOUNT" not in environ:
        # On Linux that is GNU's, whose spins are limited below. Others, as on a Mac, know the policy only.
        environ["OMP_WAIT_POLICY"] = "ACTIVE" if sys.platform == "linux" else "PASSIVE"
        environ["GOMP_SPINCOUNT"] = _SPINS


def load_library() -> Any:
    """Return the module with llama.cpp's C functions, ready to use. The first call takes about 0.3 s.

    Raises:
        BackendUnavailableError: the package is not installed, or its shared library cannot be loaded here.
        ModelTooLargeError: there is no memory for it.
    """
    global _library
    with _lock:
        if _library is None:
            limit_spinning(os.environ)
            try:
                library = importlib.import_module("llama_cpp.llama_cpp")
            except (ImportError, OSError, RuntimeError) as error:
                if is_out_of_memory(error):
                    raise ModelTooLargeError(
                        f"There is not enough memory to load llama.cpp ({error}).", "Close other programs."
                    ) from error
                raise BackendUnavailableError(f"llama.cpp cannot be loaded: {error}.", f"Install it: {BUILD_HINT}") from error
            _silence(library)
            library.llama_backend_init()
            _library = library
            atexit.register(_close_null_files)
        else:  # something else in this process may have redirected the log meanwhile
            _library.llama_log_set(_callback, None)
    return _library


def _close_null_files() -> None:
    """Close the files that llama_cpp leaves open: the interpreter warns about them at its end (PYTHONWARNINGS=error)."""
    utils = sys.modules.get("llama_cpp._utils")
    for name in ("outnull_file", "errnull_file"):
        file = getattr(utils, name, None)
        if file is not None:
            file.close()


def library_version() -> str:
    """Return the version of llama.cpp. Its state format may change from one to the next."""
    # The child that tries a file imports no package around the binding, and stores no block.
    return str(getattr(importlib.import_module("llama_cpp"), "__version__", ""))


def _silence(library: Any) -> None:
    """Keep warnings and errors of llama.cpp for our messages; it would write them over the chat otherwise."""
    global _callback
    last_level = 0

    def keep(level: int, text: bytes, _user_data: object) -> None:
        nonlocal last_level
        if level != _CONTINUED:
            last_level = level
        if last_level in (_WARN, _ERROR) and text:
            _log.append((last_level, text.decode("utf-8", "replace")))

    _callback = library.llama_log_callback(keep)
    library.llama_log_set(_callback, None)


def clear_log() -> None:
    """Drop older lines of llama.cpp's log, so that `recent_log` covers the next call only."""
    _log.clear()


def recent_log(n_lines: int = 3) -> str:
    """Return llama.cpp's last errors, or warnings where there are none, as one line without its function names."""
    worst = max((level for level, _ in _log), default=0)
    lines = [" ".join(text.split(": ", 1)[-1].split()) for level, text in _log if level == worst]
    return "; ".join([line for line in lines if line.strip(".") and line != "failed to load model"][-n_lines:])


def load_failure(action: str, path: object, architecture: str) -> EdgeError:
    """Return the error of a failed load, told from llama.cpp's log.

    Args:
        action: what failed ("load the model", "make room for the context").
        path: the file.
        architecture: what the file says it is.
    """
    text = recent_log()
    lowered = text.lower()
    if "unknown model architecture" in lowered:
        return ModelFileError(
            f"{path} is a model of the architecture {architecture!r}, which this build of llama.cpp does not know.",
            "A newer edge may know it; otherwise choose another model.",
        )
    if is_out_of_memory(text):
        return ModelTooLargeError(
            f"There is not enough memory to {action} of {path} ({text}).",
            "Use a smaller context or a smaller model, or close other programs.",
        )
    if "error loading model" in lowered:
        return ModelFileError(
            f"llama.cpp cannot use {path} (architecture {architecture!r}): {text}.", "Download or convert it again."
        )
    return BackendError(f"llama.cpp could not {action} of {path}: {text or 'it gave no reason'}.")


class AbortFlag:
    """Lets another thread stop a pass of llama.cpp half-way, without the engine ever taking Python's lock.

    llama.cpp calls an abort callback before every operation, about a thousand times a pass. A callback in Python would take
    the interpreter's lock as often and stall behind a busy user interface. C's `strlen` over a buffer of ours answers
    natively: 0 for an empty string, 1 after `set`.
    """

    def __init__(self, library: Any) -> None:
        self._buffer = ctypes.create_string_buffer(2)
        runtime = ctypes.CDLL("msvcrt" if sys.platform == "win32" else None)
        self.callback = ctypes.cast(runtime.strlen, library.ggml_abort_callback)
        self.user_data = ctypes.cast(self._buffer, ctypes.c_void_p)

    def set(self) -> None:
        """Ask the pass that is running to stop."""
        self._buffer[0] = b"x"

    @contextmanager
    def watching(self, should_stop: Callable[[], bool] | None, poll_s: float = 0.02) -> Iterator[None]:
        """Set the flag when `should_stop` says True while the body runs; clear it afterwards."""
        try:
            with watching(should_stop, self.set, poll_s):
                yield
        finally:
            self._buffer[0] = b"\0"


class Batch:
    """A llama_batch over arrays of ours, filled again for every pass so that no pass allocates.

    Args:
        library: from `load_library`.
        n_max: most tokens of a pass.
    """

    def __init__(self, library: Any, n_max: int) -> None:
        import numpy as np

        self.tokens = np.zeros(n_max, np.int32)
        self.positions = np.zeros(n_max, np.int32)
        self.seq_ids = np.zeros(n_max, np.int32)
        self.wants_logits = np.zeros(n_max, np.int8)
        ones = np.ones(n_max, np.int32)
        pointers = (self.seq_ids.ctypes.data + 4 * np.arange(n_max, dtype=np.uintp)).astype(np.uintp)
        self._kept_alive = (ones, pointers)
        self.native = library.llama_batch()
        int_pointer = ctypes.POINTER(ctypes.c_int32)
        self.native.token = self.tokens.ctypes.data_as(int_pointer)
        self.native.pos = self.positions.ctypes.data_as(int_pointer)
        self.native.n_seq_id = ones.ctypes.data_as(int_pointer)
        self.native.seq_id = pointers.ctypes.data_as(ctypes.POINTER(int_pointer))
        self.native.logits = self.wants_logits.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))
