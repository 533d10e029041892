"""onnxruntime as a library: quiet import, errors, providers, sessions, and which provider got which nodes."""

from __future__ import annotations

import importlib
import json
import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.backends.base import is_out_of_memory
from edge.backends.stopping import watching
from edge.errors import (
    BackendError,
    BackendUnavailableError,
    CancelledError,
    EdgeError,
    ModelFileError,
    ModelTooLargeError,
)
from edge.formats.onnx_graph import only_last_logits
from edge.formats.protobuf import ProtobufError
from edge.hashes import file_stamp
from edge.units import reason

if TYPE_CHECKING:
    from edge.formats.onnx import OnnxFolder
    from edge.plan.receipt import Plan

__all__ = ["PROVIDERS", "Session", "load_runtime", "placement_text", "to_edge_error", "wrap_errors"]

_log = logging.getLogger("edge.onnx")
_INSTALL = 'Install it: pip install "edge-assistant[onnx]"'
_CPU = "CPUExecutionProvider"
PROVIDERS: dict[str, tuple[tuple[str, dict[str, str]], ...]] = {
    "cpu": (),
    "cuda": (("CUDAExecutionProvider", {}),),
    "tensorrt": (("TensorrtExecutionProvider", {}), ("CUDAExecutionProvider", {})),
    "ane": (("CoreMLExecutionProvider", {"ModelFormat": "MLProgram", "MLComputeUnits": "CPUAndNeuralEngine"}),),
    # The CPU device: with AUTO, OpenVINO 2025.4 takes nothing of a decoder here.
    "openvino": (("OpenVINOExecutionProvider", {"device_type": "CPU", "num_of_threads": "{n_threads}"}),),
    "qnn": (("QNNExecutionProvider", {"backend_type": "htp"}),),
}
"""Accelerator of a plan -> providers to register before the CPU's, in order, with options that may name {n_threads}."""

_READ_IN_PLACE = frozenset({_CPU, "OpenVINOExecutionProvider"})  # others may copy an input when it is bound
_ON_DEVICE = {"CUDAExecutionProvider": "cuda"}  # providers that keep tensors in memory of their own
_MOST_EDITED_BYTES = 512 << 20  # a model file larger than this, weights inside, is not copied to be edited


def load_runtime() -> Any:
    """Return the module onnxruntime, with its log and its telemetry off.

    Raises:
        BackendUnavailableError: it is not installed, or cannot be loaded here.
    """
    try:
        runtime = importlib.import_module("onnxruntime")
        runtime.InferenceSession  # noqa: B018 (an empty folder of that name imports, too)
    except (ImportError, OSError, AttributeError) as error:
        raise BackendUnavailableError(f"onnxruntime cannot be loaded: {error}.", _INSTALL) from error
    runtime.disable_telemetry_events()
    runtime.set_default_logger_severity(4)  # errors come as exceptions; it would write them over the chat, too
    return runtime


@contextmanager
def wrap_errors(what: str) -> Iterator[None]:
    """Turn onnxruntime's errors, a dozen kinds of plain Exceptions, into edge's.

    Args:
        what: the failed action, to follow "onnxruntime could not".
    """
    try:
        yield
    except EdgeError:
        raise
    except Exception as error:
        raise to_edge_error(what, error) from error


def to_edge_error(what: str, error: Exception) -> EdgeError:
    """Return edge's error for an exception of onnxruntime's; see `wrap_errors`."""
    text = _first_line(error)
    if is_out_of_memory(error):
        return ModelTooLargeError(
            f"There is not enough memory: onnxruntime could not {what} ({text}).",
            "Use a smaller context, or a smaller model.",
        )
    return BackendError(f"onnxruntime could not {what}: {text}", "Load the model again.")


class Session:
    """A model that onnxruntime has loaded.

    Args:
        folder: the model.
        plan: accelerator and threads.
        on_progress: as in `open_backend`.

    Attributes:
        runtime: the module onnxruntime.
        native: the InferenceSession.
        n_threads: that compute; `reopen` changes them.
        providers: those that are active, in order.
        device: where keys and values live: "cpu" or "cuda".
        reads_in_place: a pass reads inputs in place; otherwise they are copied when they are bound.
        is_last_only: a pass returns logits of the last position, otherwise of every position.
        takes_first_logits: a pass returns logits of the last positions if asked (`edge.formats.onnx_graph.FIRST_LOGITS`).

    Raises:
        BackendUnavailableError: onnxruntime, or its provider for the accelerator, is not here.
        ModelFileError: onnxruntime cannot use the model.
        ModelTooLargeError: memory ran out.
        CancelledError: on_progress said False.
    """

    def __init__(self, folder: OnnxFolder, plan: Plan, on_progress: Callable[[float], bool] | None) -> None:
        self.runtime = load_runtime()
        self.n_threads = plan.n_threads
        self._folder, self._wanted = folder, PROVIDERS[plan.accelerator]
        self._check_available(plan.accelerator, [name for name, _ in self._wanted])
        self._can_tell = hasattr(self.runtime.InferenceSession, "get_provider_graph_assignment_info")
        self._files = _state_of(folder.files)
        options = self._options(plan.n_threads)
        if self._can_tell:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        else:
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(tempfile.gettempdir()) / f"edge-onnx-{os.getpid()}")
        model, self.is_last_only = _model_of(folder)
        self.takes_first_logits = self.is_last_only and not folder.has_last_logits

        def report(share: float) -> bool:
            if on_progress is not None and not on_progress(share):
                raise CancelledError("Loading was stopped.")
            return False

        report(0.0)
        try:
            with watching(lambda: report(0.5), lambda: options.set_load_cancellation_flag(True)):
                self.native = self._open(model, options, plan.n_threads)
        except EdgeError:
            raise
        except Exception as error:
            raise _load_failure(folder, error) from error
        self.providers: tuple[str, ...] = tuple(self.native.get_providers())
        self._check_active(plan.accelerator, [name for name, _ in self._wanted])
        self.reads_in_place = _READ_IN_PLACE.issuperset(self.providers)
        self.device = next((_ON_DEVICE[name] for name in self.providers if name in _ON_DEVICE), "cpu")

    def placement(self) -> Counter[str]:
        """Return how many nodes each provider got. To be called once, after the first pass."""
        if self._can_tell:
            found: Counter[str] = Counter()
            for part in self.native.get_provider_graph_assignment_info():
                found[part.ep_name] += len(part.get_nodes())
            return found
        return _profiled(Path(self.native.end_profiling()))

    def reopen(self, n_threads: int) -> int:
        """Replace the native session by one with another number of threads.

        The old one is freed first, since both at once would hold the weights twice. Its bindings must have been dropped, too.

        Args:
            n_threads: wanted.

        Returns:
            The number now: the old one if the model's files have changed meanwhile or memory ran out.

        Raises:
            BackendError: the old one could not be opened again either.
        """
        before = self.n_threads
        if _state_of(self._folder.files) != self._files:
            _log.warning("%s has changed since it was loaded: it keeps its %d threads", self._folder.model, before)
            return before
        began = time.perf_counter()
        self.close()
        for n in dict.fromkeys(n for n in (n_threads, before) if n):
            try:
                model, _ = _model_of(self._folder)
                self.native = self._open(model, self._options(n), n)
            except Exception as error:  # noqa: BLE001 (onnxruntime raises many kinds; reported below)
                failure = error if isinstance(error, EdgeError) else _load_failure(self._folder, error)
                _log.warning("The model could not be opened again with %d threads: %s", n, failure.message)
            else:
                self.n_threads = n
                took_s = time.perf_counter() - began
                _log.info("The model was opened again with %d threads instead of %d, in %.2f s", n, before, took_s)
                return n
        raise BackendError(f"The model could not be opened again: {failure.message}", "Load it again.") from failure

    def close(self) -> None:
        """Free the model."""
        self.native, self.n_threads = None, 0

    def _open(self, model: bytes | str, options: Any, n_threads: int) -> Any:
        wanted = [
            (name, {key: value.format(n_threads=n_threads) for key, value in given.items()}) for name, given in self._wanted
        ]
        return self.runtime.InferenceSession(model, options, providers=[*wanted, (_CPU, {})])

    def _options(self, n_threads: int) -> Any:
        options = self.runtime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = n_threads
        options.inter_op_num_threads = 1
        options.enable_mem_pattern = False  # it would keep a pattern for every length of a sequence
        # A thread that spins while another program has its core makes all others wait (docs/builds.md); one that sleeps
        # between two operators wakes up late. So threads spin until the next operator and no longer.
        options.add_session_config_entry("session.intra_op.spin_duration_us", "50")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        folder = str(self._folder.model.parent)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        return options

    def _check_available(self, accelerator: str, wanted: list[str]) -> None:
        available = self.runtime.get_available_providers()
        for name in wanted:
            if name not in available:
                raise BackendUnavailableError(
                    f"The installed onnxruntime {self.runtime.__version__} has no {name}, which {accelerator} needs.",
                    "Install onnxruntime's build for it; see docs/onnx.md.",
                )

    def _check_active(self, accelerator: str, wanted: list[str]) -> None:
        """Refuse to go on without the provider: if its libraries cannot be loaded, onnxruntime computes on the CPU."""
        if wanted and not any(name in self.providers for name in wanted):
            raise BackendUnavailableError(
                f"{wanted[0]} could not start, although onnxruntime was built with it: a library of {accelerator} is missing, "
                "or of another version.",
                "See docs/onnx.md for what each build needs, or leave out --require.",
            )


def placement_text(placement: Counter[str]) -> str:
    """Return which provider got which share of the nodes: "CUDA 98 % (311 nodes), CPU 2 % (6)"."""
    total = sum(placement.values())
    shares = [
        f"{name.removesuffix('ExecutionProvider')} {100 * count / total:.0f} % ({count:,})"
        for name, count in placement.most_common()
    ]
    if shares:
        shares[0] = shares[0][:-1] + " nodes)"
    return ", ".join(shares)


def _model_of(folder: OnnxFolder) -> tuple[bytes | str, bool]:
    """Return what onnxruntime opens, and whether it then computes logits of the last position only."""
    path = folder.model
    if folder.has_last_logits:
        return str(path), True
    try:
        if path.stat().st_size <= _MOST_EDITED_BYTES:
            edited = only_last_logits(path.read_bytes(), folder.logits)
            if edited is not None:
                return edited, True
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}.", "Check its permissions and the disk.") from error
    except ProtobufError as error:
        raise ModelFileError(f"{path} is damaged: {error}.", "Download or convert the model again.") from error
    return str(path), False


def _state_of(files: tuple[Path, ...]) -> list[list[int]]:
    """Return sizes and times, which differ once a file has changed."""
    try:
        return [file_stamp(path.stat()) for path in files]
    except OSError:
        return []


def _profiled(path: Path) -> Counter[str]:
    """Count the nodes of each provider in a profile of one pass."""
    try:
        events = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackendError(f"onnxruntime's profile {path} cannot be read: {reason(error)}.", "Check the disk.") from error
    finally:
        path.unlink(missing_ok=True)
    nodes = {(event["name"], event["args"]["provider"]) for event in events if event.get("args", {}).get("provider")}
    return Counter(provider for _, provider in nodes)


def _load_failure(folder: OnnxFolder, error: Exception) -> EdgeError:
    text = _first_line(error)
    if is_out_of_memory(error):
        return ModelTooLargeError(
            f"There is not enough memory to load {folder.model} ({text}).", "Use a smaller model, or close other programs."
        )
    return ModelFileError(f"onnxruntime cannot use {folder.model}: {text}", "Convert it again: edge convert MODEL --to onnx")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:500] if lines else type(error).__name__
