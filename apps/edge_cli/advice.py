"""What would make a model run faster on this machine, for `edge doctor`: what the profile and the plan show, no guesses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from edge_cli.text import size

if TYPE_CHECKING:
    from edge.device import DeviceProfile
    from edge.plan import Plan

__all__ = ["advise"]

_REBUILD = "python tools/build_llama.py"


def advise(profile: DeviceProfile, plan: Plan | None) -> list[str]:
    """Advice, the most rewarding first.

    Args:
        profile: the machine.
        plan: how the default model is run; None where there is no plan.
    """
    return [*_unused_accelerator(profile, plan), *_power(profile), *_processor(profile), *_memory(profile, plan)]


def _unused_accelerator(profile: DeviceProfile, plan: Plan | None) -> Iterator[str]:
    engine = profile.engine("llamacpp")
    for api, name in (("cuda", "CUDA"), ("metal", "Metal")):
        gpus = profile.gpus_of(api)
        if not gpus or engine is None or not engine.is_installed:
            continue
        if api not in engine.accelerators:
            yield f"{gpus[0].name} is not used: this build of {engine.package} has no {name}. Build one: {_REBUILD}"
        elif plan is not None and plan.gpu_layers == 0:
            yield f"{gpus[0].name} is not used by this plan; edge run --explain says why."


def _power(profile: DeviceProfile) -> Iterator[str]:
    jetson, power, thermal = profile.jetson, profile.power, profile.thermal
    if jetson is not None and jetson.power_mode and not jetson.power_mode.upper().startswith("MAXN"):
        others = f" (it has {', '.join(name for _, name in jetson.power_modes)})" if jetson.power_modes else ""
        yield f"The power mode is {jetson.power_mode}{others}; a higher one is faster: sudo nvpmodel -q, sudo nvpmodel -m ID"
    if power.is_saving:
        yield "A power-saving mode is on; without it the processor runs faster."
    elif power.source == "battery":
        yield "It runs on battery; many machines are faster on mains."
    if thermal.state == "throttled":
        yield f"It is throttled by heat ({thermal.detail}); cooling makes it faster."
    elif thermal.state == "warm":
        yield f"It is close to being throttled by heat ({thermal.detail}); cooling keeps it fast."


def _processor(profile: DeviceProfile) -> Iterator[str]:
    for limit in profile.cpu.limits:
        yield f"Not all of the processor may be used: {limit}."
    if profile.cpu.n_offline:
        yield f"{profile.cpu.n_offline} of the processor's threads are switched off."


def _memory(profile: DeviceProfile, plan: Plan | None) -> Iterator[str]:
    if plan is None:
        return
    n_layer = plan.artifact.header.n_layer if plan.artifact.header is not None else 0
    if 0 < plan.gpu_layers < n_layer:
        yield (
            f"{plan.gpu_layers} of {n_layer} layers fit on the accelerator; a smaller model, a stronger quantisation or a "
            "shorter context (--context) gets more of them there."
        )
    memory = plan.memory
    if memory.available_bytes and memory.total_bytes > 0.9 * memory.available_bytes:
        yield (
            f"The model takes {size(memory.total_bytes)} of {size(memory.available_bytes)} that are available; closing other "
            "programs keeps the machine from swapping."
        )
