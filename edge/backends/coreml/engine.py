"""coremltools as the Core ML backend uses it: stored compiled models, loaded functions, and the compute plan.

Source: coremltools 9, models/_compiled_model.py, models/compute_plan.py and coremlpython/CoreMLPython.mm.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import io
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.errors import BackendError, BackendUnavailableError, CancelledError, ModelFileError, StorageError
from edge.files import make_private_dir
from edge.units import reason

if TYPE_CHECKING:
    from edge.formats.coreml import CoreMLPackage
    from edge.names import Accelerator

__all__ = [
    "UNITS",
    "CoreMLFunctions",
    "Share",
    "load_coremltools",
    "open_functions",
    "os_identity",
    "placement_text",
    "read_placement",
]

UNITS: dict[Accelerator, str] = {"ane": "CPU_AND_NE", "metal": "CPU_AND_GPU", "cpu": "CPU_ONLY"}
"""Accelerator of a plan -> the compute units that Core ML may use for it. The CPU is always one of them."""
UNIT_NAMES = {"CPU_AND_NE": "the Neural Engine", "CPU_AND_GPU": "the GPU", "CPU_ONLY": "the CPU"}
_DEVICES = {"MLNeuralEngineComputeDevice": "Neural Engine", "MLGPUComputeDevice": "GPU", "MLCPUComputeDevice": "CPU"}
_OLDEST_MACOS = 15
_MAX_COMPILED = 4  # each holds a copy of the weights


@dataclass(frozen=True, slots=True)
class CoreMLFunctions:
    """A package, compiled and loaded.

    Attributes:
        decode: a CompiledMLModel of coremltools that computes one token and its logits.
        prefill: one that computes the keys and values of a chunk of tokens.
        compiled: the .mlmodelc folder.
    """

    decode: Any
    prefill: Any
    compiled: Path


@dataclass(frozen=True, slots=True)
class Share:
    """The part of a function that one device runs.

    Attributes:
        device: "Neural Engine", "GPU" or "CPU".
        n_operations: operations that Core ML prefers to run there.
        cost: their share of the estimated cost, 0 to 1.
    """

    device: str
    n_operations: int
    cost: float


def load_coremltools() -> Any:
    """Import coremltools, on a system where it can predict.

    Raises:
        BackendUnavailableError: this is not a Mac, its macOS is too old, or coremltools is not installed.
    """
    if platform.system() != "Darwin":
        raise BackendUnavailableError(
            f"Core ML models run on a Mac only, and this is {platform.system() or 'another system'}.",
            "Use a GGUF of the model here. A package is checked away from a Mac with: edge convert verify PACKAGE",
        )
    version = platform.mac_ver()[0]
    if int(version.split(".")[0] or 0) < _OLDEST_MACOS:
        raise BackendUnavailableError(
            f"These packages need macOS {_OLDEST_MACOS} or later, for models with several functions; this is macOS {version}.",
            "Update macOS, or use a GGUF of the model.",
        )
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns about versions of packages that are not used here
    try:
        with redirect_stderr(io.StringIO()):
            loaded = importlib.import_module("coremltools")
            for name in ("models.utils", "models.compute_plan"):
                importlib.import_module(f"coremltools.{name}")
    except ImportError as error:
        raise BackendUnavailableError(
            f"Core ML models need coremltools, which cannot be loaded here: {error}.",
            'Install it: pip install "edge-assistant[coreml]"',
        ) from error
    finally:
        logger.setLevel(level)
    return loaded


def os_identity() -> str:
    """Return the system and chip, which decide how Core ML compiles and computes."""
    return " ".join((platform.system(), platform.mac_ver()[0] or platform.release(), platform.machine(), _chip()))


@functools.cache
def _chip() -> str:
    """Return "Apple M3 Pro": Python only knows "arm", and a cache directory may move to another Mac."""
    command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=5, check=False, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return platform.processor()
    return done.stdout.decode("utf-8", "replace").strip() or platform.processor()


def open_functions(
    coremltools: Any,
    package: CoreMLPackage,
    units: str,
    cache_dir: Path,
    digest: str,
    on_progress: Callable[[float], bool] | None = None,
) -> CoreMLFunctions:
    """Compile a package, unless it is in the cache, and load its functions.

    Args:
        coremltools: from `load_coremltools`.
        package: what to load.
        units: name of a coremltools.ComputeUnit.
        cache_dir: compiled models are stored in `coreml` below it.
        digest: of the package's content.
        on_progress: called with the share that is done (0 to 1); False stops.

    Raises:
        ModelFileError: Core ML cannot compile the package.
        BackendError: Core ML does not load it on these units.
        StorageError: the compiled model cannot be stored.
        CancelledError: on_progress said False.
    """

    def report(share: float) -> None:
        if on_progress is not None and not on_progress(share):
            raise CancelledError("Loading was stopped.")

    report(0.0)
    compiled, is_new = _compiled(coremltools, package, cache_dir, digest)
    report(0.4)
    loaded: list[Any] = []
    for share, name in ((0.7, "decode"), (0.95, "prefill")):
        try:
            loaded.append(_load(coremltools, compiled, units, name))
        except Exception as error:
            if is_new:
                raise BackendError(
                    f"Core ML does not load {package.path.name} on {UNIT_NAMES[units]}: {error}",
                    "Try another accelerator (--require metal, --require cpu), or convert with --explicit-kv.",
                ) from error
            shutil.rmtree(compiled, ignore_errors=True)  # the cached one may be damaged, or of another system
            return open_functions(coremltools, package, units, cache_dir, digest, on_progress)
        report(share)
    decode, prefill = loaded
    return CoreMLFunctions(decode, prefill, compiled)


def _load(coremltools: Any, compiled: Path, units: str, function: str) -> Any:
    return coremltools.models.CompiledMLModel(
        str(compiled), compute_units=coremltools.ComputeUnit[units], function_name=function
    )


def _compiled(coremltools: Any, package: CoreMLPackage, cache_dir: Path, digest: str) -> tuple[Path, bool]:
    """Return the compiled model for this system, and whether it was compiled just now."""
    key = hashlib.sha256(f"{digest}\n{os_identity()}".encode()).hexdigest()
    folder = make_private_dir(cache_dir / "coreml")
    target = folder / f"{key[:32]}.mlmodelc"
    if target.is_dir():
        with suppress(OSError):  # the time only tells which were used last
            os.utime(target)
        return target, False
    with tempfile.TemporaryDirectory(prefix=".compiling-", dir=folder) as work:
        made = Path(work) / "model.mlmodelc"
        try:
            coremltools.models.utils.compile_model(str(package.path), str(made))
        except Exception as error:
            raise ModelFileError(
                f"Core ML cannot compile {package.path.name}: {error}", "Convert the model again, or use a GGUF of it."
            ) from error
        try:
            made.rename(target)
        except OSError as error:
            if not target.is_dir():  # otherwise another process was faster
                raise StorageError(
                    f"The compiled model cannot be stored: {reason(error)}.", "Check the space on that disk."
                ) from error
    _prune(folder, target)
    return target, True


def _prune(folder: Path, newest: Path) -> None:
    """Delete all models but those used last. A process that runs an older one has it open."""
    ages: list[tuple[float, Path]] = []
    for path in folder.glob("*.mlmodelc"):
        with suppress(OSError):  # another process may prune, too
            ages.append((path.stat().st_mtime, path))
    for _, path in sorted(ages, reverse=True)[_MAX_COMPILED:]:
        if path != newest:
            shutil.rmtree(path, ignore_errors=True)


def read_placement(coremltools: Any, functions: CoreMLFunctions, units: str) -> tuple[Share, ...]:
    """Return where Core ML plans to run the operations of `decode` on this device; what it then does cannot be checked.

    Returns:
        One entry a device, the largest share of the cost first; empty where Core ML has no plan.
    """
    plan = coremltools.models.compute_plan.MLComputePlan.load_from_path(
        path=str(functions.compiled), compute_units=coremltools.ComputeUnit[units]
    )
    program = plan.model_structure.program
    if program is None or "decode" not in program.functions:
        return ()
    counts: dict[str, int] = {}
    costs: dict[str, float] = {}
    for operation in program.functions["decode"].block.operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        if usage is None:  # constants
            continue
        kind = type(usage.preferred_compute_device).__name__
        device = _DEVICES.get(kind, kind)
        cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
        counts[device] = counts.get(device, 0) + 1
        costs[device] = costs.get(device, 0.0) + (cost.weight if cost is not None else 0.0)
    total = sum(costs.values()) or 1.0
    found = [Share(device, counts[device], costs[device] / total) for device in counts]
    return tuple(sorted(found, key=lambda share: (-share.cost, -share.n_operations)))


def placement_text(placement: tuple[Share, ...]) -> str:
    """Return a placement as text: "Neural Engine 97 % of the work (1,204 operations), CPU 3 % of the work (26 operations)"."""
    shares = [f"{share.device} {100 * share.cost:.0f} % of the work ({share.n_operations:,} operations)" for share in placement]
    return ", ".join(shares)
