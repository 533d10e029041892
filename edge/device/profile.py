"""The profile of a machine, as values: made by `edge.device.probe`, read by the plan, `edge devices` and `edge doctor`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Apple", "Cpu", "DeviceProfile", "Engine", "Gpu", "Host", "Jetson", "Memory", "Power", "Thermal"]


@dataclass(frozen=True, slots=True)
class Host:
    """The operating system, and what is between it and the hardware.

    Attributes:
        os: "Linux 6.8.0-49-generic", "macOS 15.5".
        python: version of the interpreter.
        container: "docker", "podman", "kubernetes", ...; "" outside of one.
        virtual_machine: its maker ("QEMU", "WSL 2", "Amazon EC2"); "" on bare metal.
    """

    os: str
    python: str
    container: str
    virtual_machine: str


@dataclass(frozen=True, slots=True)
class Cpu:
    """Processors of the machine, and the part that this process may use.

    Attributes:
        name: "Cortex-A78AE", "Apple M3 Pro", ...
        architecture: "x86_64" or "aarch64" (also on a Mac).
        n_logical: CPUs that are switched on, hardware threads counted.
        n_offline: CPUs that are switched off.
        n_performance, n_efficiency: physical cores of the fast and of the slow kind; all are fast where there is one kind.
        efficiency_speed: speed of a slow core as a share of a fast one; 0 where unknown, 1 where there are none.
        usable_performance, usable_efficiency: physical cores this process may run on.
        usable_logical: CPUs this process may run on, and pay for: the most threads that can work at once.
        quota: CPU time per second of wall clock that the cgroup allows, or None.
        limits: why less is usable than there is.
        features: instruction sets that matter here, by the names Linux uses ("avx2", "amx_int8", "neon", "i8mm", ...).
    """

    name: str
    architecture: str
    n_logical: int
    n_offline: int
    n_performance: int
    n_efficiency: int
    efficiency_speed: float
    usable_performance: int
    usable_efficiency: int
    usable_logical: int
    quota: float | None
    limits: tuple[str, ...]
    features: tuple[str, ...]

    @property
    def n_physical(self) -> int:
        """Physical cores that are switched on."""
        return self.n_performance + self.n_efficiency


@dataclass(frozen=True, slots=True)
class Memory:
    """Main memory. All in bytes.

    Attributes:
        total_bytes: the most that this process may use: the machine's memory, or the cgroup's limit.
        available_bytes: the part that is free, or could be freed by dropping caches.
        host_total_bytes: the machine's memory.
        limit: the limit that makes total smaller than host_total, in words; "" where there is none.
        swap_total_bytes, swap_free_bytes: swap space.
    """

    total_bytes: int
    available_bytes: int
    host_total_bytes: int
    limit: str
    swap_total_bytes: int
    swap_free_bytes: int


@dataclass(frozen=True, slots=True)
class Gpu:
    """A graphics processor that an engine could use.

    Attributes:
        name: "NVIDIA GeForce RTX 4060 Laptop GPU".
        api: "cuda", "metal" or "intel-gpu".
        total_bytes: its memory; on a unified one, the part of main memory that it may take.
        free_bytes: the free part of it.
        is_unified: it shares main memory with the CPU.
        compute_capability: CUDA's, "8.9"; "" otherwise.
        driver: version of the driver, or of CUDA on a Jetson; "" where unknown.
    """

    name: str
    api: str
    total_bytes: int
    free_bytes: int
    is_unified: bool
    compute_capability: str
    driver: str


@dataclass(frozen=True, slots=True)
class Jetson:
    """The parts of a profile that only a Jetson has.

    Attributes:
        model: as the device tree names it.
        soc: "tegra234", ...
        l4t: release of Jetson Linux, "36.4.3"; "" where it is not installed (some containers).
        jetpack: the JetPack it belongs to, "6.2"; "" where unknown.
        power_mode: nvpmodel's name of the mode, "15W", "MAXN"; "" where unknown.
        power_modes: number and name of every mode.
    """

    model: str
    soc: str
    l4t: str
    jetpack: str
    power_mode: str
    power_modes: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Apple:
    """The parts of a profile that only a Mac has.

    Attributes:
        chip: "Apple M3 Pro".
        model: "Mac15,6".
        macos: version, "15.5".
        has_neural_engine: every Apple chip has one; a virtual machine and an Intel Mac do not.
    """

    chip: str
    model: str
    macos: str
    has_neural_engine: bool


@dataclass(frozen=True, slots=True)
class Power:
    """The power supply.

    Attributes:
        source: "mains", "battery", or "unknown".
        battery_percent: 0 to 100, or None without a battery.
        is_saving: a low-power mode is on.
        mode: the platform's name of the mode; "" where there is none.
    """

    source: str
    battery_percent: int | None
    is_saving: bool
    mode: str


@dataclass(frozen=True, slots=True)
class Thermal:
    """Heat.

    Attributes:
        state: "nominal", "warm" (within 10 degrees of throttling), "throttled", or "unknown".
        hottest_c: highest temperature in degrees Celsius, or None.
        detail: the sensor, or its report.
    """

    state: str
    hottest_c: float | None
    detail: str


@dataclass(frozen=True, slots=True)
class Engine:
    """A package that can run models, found without importing it.

    Attributes:
        name: as in `edge.registry.ENGINES`.
        package: its name in the package index.
        version: as installed; "" where it is not installed.
        accelerators: that this build can use: "cpu", "cuda", "metal", "ane", ...; none where it only converts models.
    """

    name: str
    package: str
    version: str
    accelerators: tuple[str, ...]

    @property
    def is_installed(self) -> bool:
        """The package is there and can run models on this system."""
        return bool(self.accelerators)


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """A machine. `to_dict` and `from_dict` go to JSON and back.

    Attributes:
        name: for people: "NVIDIA Jetson Orin Nano ...", "Apple M3 Pro (Mac15,6)".
        kind: "jetson", "raspberry-pi", "mac" or "computer".
        host, cpu, memory, power, thermal: see there.
        gpus: graphics processors.
        jetson, apple: only on such a machine.
        engines: packages that run models, installed or not.
        npu: name of a neural processor of Intel's; "" where there is none.
    """

    name: str
    kind: str
    host: Host
    cpu: Cpu
    memory: Memory
    gpus: tuple[Gpu, ...]
    jetson: Jetson | None
    apple: Apple | None
    power: Power
    thermal: Thermal
    engines: tuple[Engine, ...]
    npu: str = ""

    def gpus_of(self, api: str) -> tuple[Gpu, ...]:
        """Return the graphics processors with this API ("cuda", "metal" or "intel-gpu")."""
        return tuple(gpu for gpu in self.gpus if gpu.api == api)

    def accelerators_of(self, engine: Engine) -> tuple[str, ...]:
        """Return what an engine can compute on; without Intel's GPU, which each OpenVINO can use, where there is none."""
        return tuple(name for name in engine.accelerators if name != "intel-gpu" or self.gpus_of(name))

    def engine(self, name: str) -> Engine | None:
        """Return the engine of this name, installed or not; None where there is none."""
        return next((engine for engine in self.engines if engine.name == name), None)

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as values that JSON knows."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DeviceProfile:
        """Return the profile of a `to_dict`, also after a round trip through JSON.

        Raises:
            UsageError: something is missing or has the wrong type.
        """
        import msgspec

        from edge.errors import UsageError

        try:
            return msgspec.convert(dict(values), cls)
        except msgspec.ValidationError as error:
            raise UsageError(f"This is not a device profile: {error}.", "Make one with: edge devices --json") from error
