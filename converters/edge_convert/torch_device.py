"""The device that torch computes on, chosen in one place: distillation, and the reference of an evaluation.

The choice is made once per command, in an environment variable, so that child processes make the same. Models are moved there
when they are opened, and all other tensors follow the model that they meet.
"""

from __future__ import annotations

import os
from typing import Any, Literal, get_args

from edge.errors import BackendUnavailableError, UsageError

__all__ = ["DEVICES", "VARIABLE", "DeviceName", "chosen_device", "compute_device", "find_device", "use_device"]

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
DEVICES: tuple[DeviceName, ...] = get_args(DeviceName)
"""Names that `use_device` takes."""

VARIABLE = "EDGE_TORCH_DEVICE"
"""Environment variable with one of them; unset is "auto"."""


def use_device(name: DeviceName) -> None:
    """Choose the device of this process and its children; "auto" is the first of cuda, mps, cpu that torch finds with bfloat16.

    Raises:
        BackendUnavailableError: the device is not there.
    """
    find_device(name)
    os.environ[VARIABLE] = name


def chosen_device() -> DeviceName:
    """Return the name that was chosen.

    Raises:
        UsageError: the environment names an unknown one.
    """
    name = os.environ.get(VARIABLE) or "auto"
    if name not in DEVICES:
        raise UsageError(f"{VARIABLE} is {name!r}.", f"Known are: {', '.join(DEVICES)}.")
    return name


def compute_device() -> Any:
    """Return the torch.device of this process.

    Raises:
        UsageError, BackendUnavailableError: the device that was asked for is unknown, or not there.
    """
    import torch

    return torch.device(find_device(chosen_device()))


def find_device(name: DeviceName) -> str:
    """Return the device that a name stands for on this machine. Imports torch unless it is "cpu".

    Raises:
        BackendUnavailableError: it is not there.
    """
    if name == "cpu":
        return name
    found = [
        device for device, is_usable in (("cuda", _has_cuda), ("mps", _has_mps)) if name in ("auto", device) and is_usable()
    ]
    if found:
        return found[0]
    if name == "auto":
        return "cpu"
    raise BackendUnavailableError(
        f"torch finds no device {name} that computes in bfloat16.",
        "Compute on the processor: --device cpu. For an NVIDIA card, install a build of torch with CUDA.",
    )


def _has_cuda() -> bool:
    """Return whether there is an NVIDIA card that has bfloat16 in hardware (Ampere or later)."""
    import torch

    return bool(torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False))


def _has_mps() -> bool:
    """Return whether there is an Apple GPU, and a macOS (14) whose driver knows bfloat16."""
    import torch

    return bool(torch.backends.mps.is_available() and torch.backends.mps.is_macos_or_newer(14, 0))
