"""Advice on making this device faster, shown by `edge doctor`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from edge.errors import BUILD_HINT
from edge.names import TITLES
from edge.registry import ENGINES, load_entry
from edge.units import quoted, size_text

if TYPE_CHECKING:
    from edge.device.profile import DeviceProfile
    from edge.plan.receipt import Plan

__all__ = ["advice"]

# Weight types that llama.cpp has no repacked layout for, so that the CPU computes them at about half the speed of Q4_0.
_NOT_REPACKED = ("Q4_1", "Q5_0", "Q5_1")


def advice(device: DeviceProfile, plan: Plan | None = None) -> list[str]:
    """Return advice on making it faster, the most worthwhile first.

    Args:
        device: from `edge.device.probe`.
        plan: of a model; None looks at the device only.

    Returns:
        One or two sentences each; [] where there is nothing to say.
    """
    found = [text for rule in _DEVICE_RULES for text in rule(device)]
    if plan is not None:
        found += [text for plan_rule in _PLAN_RULES for text in plan_rule(device, plan)]
    return list(dict.fromkeys(found))


def _engine(device: DeviceProfile) -> Iterator[str]:
    engine = device.engine("llamacpp")
    if engine is None or not engine.is_installed:
        yield f"llama-cpp-python is not installed, so no GGUF model can run. Build it for this machine with: {BUILD_HINT}"
        return
    for api in ("cuda", "metal"):
        gpus = device.gpus_of(api)
        if gpus and api not in engine.accelerators:
            yield f"{gpus[0].name} is idle: llama.cpp was built without {TITLES[api]}. Build it with: {BUILD_HINT} --force"


def _power(device: DeviceProfile) -> Iterator[str]:
    if device.power.source == "battery":
        left = f" ({device.power.battery_percent} %)" if device.power.battery_percent is not None else ""
        yield f"It runs on battery{left}, where most machines clock lower. Plug it in."
    if device.power.is_saving:
        yield f"A power-saving mode is on ({device.power.mode}). Turn it off while a model runs: sudo pmset -a lowpowermode 0"


def _jetson(device: DeviceProfile) -> Iterator[str]:
    jetson = device.jetson
    if jetson is None:
        return
    best = max(jetson.power_modes, key=lambda mode: _mode_rank(mode[1]), default=None)
    if jetson.power_mode and best is not None and _mode_rank(best[1]) > _mode_rank(jetson.power_mode):
        yield (
            f"The Jetson is in power mode {jetson.power_mode}; {best[1]} is faster, if power supply and cooling allow: "
            f"sudo nvpmodel -m {best[0]}"
        )
    if device.cpu.n_offline:
        yield f"{device.cpu.n_offline} CPUs are switched off, by the power mode {jetson.power_mode or 'that is set'}."


def _mode_rank(name: str) -> tuple[int, int]:
    """Sort key: MAXN_SUPER, then MAXN, then the most watts."""
    watts = re.search(r"(\d+)W", name)
    return (2 if "SUPER" in name else 1 if "MAXN" in name else 0, int(watts[1]) if watts else 0)


def _heat(device: DeviceProfile) -> Iterator[str]:
    if device.thermal.state == "throttled":
        yield f"It is slowed down by heat ({device.thermal.detail}). Let it cool down, or give it air."
    elif device.thermal.state == "warm" and device.thermal.hottest_c is not None:
        yield f"It is at {device.thermal.hottest_c:.0f} °C and close to slowing down ({device.thermal.detail})."


def _limits(device: DeviceProfile) -> Iterator[str]:
    if device.cpu.limits:
        yield f"Not all of the CPU may be used: {'; '.join(device.cpu.limits)}."
    if device.memory.limit:
        yield f"Memory is held to {device.memory.limit}, of {size_text(device.memory.host_total_bytes)} in the machine."


def _old_cpu(device: DeviceProfile) -> Iterator[str]:
    features = set(device.cpu.features)
    if device.cpu.architecture == "x86_64" and "avx2" not in features:
        yield "The CPU has no AVX2, which costs several times the speed. A small model (under 500 MB) is the limit here."
    if device.cpu.architecture == "aarch64" and "dotprod" not in features:
        yield "The CPU has no dot-product instructions, which costs int4 models about half their speed."


def _repacking(device: DeviceProfile, plan: Plan) -> Iterator[str]:
    if "use_extra_buffers" not in ENGINES[plan.backend].options:
        return
    if not plan.use_extra_buffers:
        note = _reason(plan, "weight repacking")
        amx = " This CPU has AMX, with which such a build can crash." if "amx_tile" in device.cpu.features else ""
        yield f"Weight repacking is off, which costs up to half of the speed.{amx} {note or f'Build it with: {BUILD_HINT}'}"
    packed = plan.artifact.quantisation
    if plan.accelerator == "cpu" and packed in _NOT_REPACKED:
        name = plan.artifact.name
        source = quoted(name if plan.artifact.source == name else plan.artifact.path)
        yield (
            f"{name} is packed as {packed}. The same model as Q4_0 prefills about twice as fast on a CPU, since llama.cpp can "
            f"repack it: edge convert {source} --quant Q4_0 --name {_as_name(name)}-q4_0"
        )


def _other_engine(device: DeviceProfile, plan: Plan) -> Iterator[str]:
    """Advise to measure OpenVINO where it may be faster and nobody knows."""
    if (plan.backend, plan.accelerator) != ("llamacpp", "cpu") or "measured" in _reason(plan, "backend"):
        return
    name = plan.artifact.name
    source = quoted(name if plan.artifact.source == name else plan.artifact.path)
    engine, row = device.engine("openvino"), ENGINES["openvino"]
    if engine is not None and engine.is_installed and not (row.why_not and load_entry(row.why_not)(plan.artifact)):
        yield f"OpenVINO is here, too, and nobody measured which is faster. A minute tells: edge tune {source} --quick"
    elif engine is not None and not engine.is_installed and "avx2" in device.cpu.features:
        yield (
            "OpenVINO is not installed; on many processors it prefills several times faster than llama.cpp: "
            f"pip install 'edge-assistant[openvino]'   then: edge tune {source} --quick"
        )


def _as_name(text: str) -> str:
    """Return a text as a name for the catalogue."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-.") or "model"


def _tight_memory(device: DeviceProfile, plan: Plan) -> Iterator[str]:
    if plan.accelerator == "cpu" and plan.backend == "llamacpp" and (plan.kv_type_k, plan.kv_type_v) != ("f16", "f16"):
        yield (
            f"The KV cache is stored as {plan.kv_type_k}, which saves memory and costs the CPU speed: with 2,000 tokens, "
            "prefill was 2 to 3 times slower. With more free memory it would be f16."
        )
    memory = plan.memory
    if memory.available_bytes and memory.total_bytes > 0.9 * memory.available_bytes:
        yield (
            f"The model takes {size_text(memory.total_bytes)} of {size_text(memory.available_bytes)} that may be used. Close "
            "other programs before the machine starts to swap, or use a smaller context: edge config set context "
            f"{max(256, plan.n_ctx // 512 * 256)}"
        )
    if plan.accelerator == "cpu" and plan.gpu_layers == 0:
        engine = device.engine(plan.backend)
        idle = [gpu.name for gpu in device.gpus if engine is not None and gpu.api in engine.accelerators]
        if idle:
            yield f"{idle[0]} is not used by this plan ({_reason(plan, 'accelerator')})."
    layers = next((choice for choice in plan.choices if choice.what == "layers offloaded"), None)
    if layers is not None and plan.gpu_layers <= plan.artifact.facts.n_layer:
        yield (
            f"Only {layers.value} layers are on the accelerator. Fewer bits a weight, less use of its memory by other programs "
            f"or a smaller context would put more there: edge config set context {max(256, plan.n_ctx // 512 * 256)}"
        )


def _reason(plan: Plan, what: str) -> str:
    return next((choice.reason for choice in plan.choices if choice.what == what), "")


_DEVICE_RULES: tuple[Callable[[DeviceProfile], Iterator[str]], ...] = (_engine, _heat, _jetson, _power, _limits, _old_cpu)
_PLAN_RULES: tuple[Callable[[DeviceProfile, Plan], Iterator[str]], ...] = (_other_engine, _repacking, _tight_memory)
