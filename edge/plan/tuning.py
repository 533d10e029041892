"""Results of `edge tune`, stored for the plan: `look_up`, `remember`, `is_settled`, `forget`.

A record counts for one device, one build of the engine and one shape of model: speed depends on how many numbers of which type
are read, not on their values, so a retrained model of the same shape and layout shares it. The file is private, and checked all
the same when it is read. A record that does not fit is left out, with the reason, and never stops a start. A record without
results says that a person skipped the measurement, or that it did not end in time, so that it does not begin again.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from edge.errors import EdgeError, StorageError
from edge.files import open_file
from edge.names import Accelerator, KVType
from edge.plan.speed import EngineSpeed, is_lossless, turn_seconds
from edge.registry import ENGINES, load_entry

if TYPE_CHECKING:
    from edge.device.profile import DeviceProfile
    from edge.formats.artifact import Artifact

__all__ = [
    "Lookup",
    "Record",
    "Tuning",
    "device_fingerprint",
    "engine_build",
    "forget",
    "is_settled",
    "look_up",
    "records",
    "remember",
    "shape_fingerprint",
]

_FILE = "tuning.json"
_FORMAT = 4
_MAX_BYTES = 1 << 20
_MAX_RECORDS = 500
_HEADER_BYTES = 1 << 20  # larger files of a folder count with their size only

_Count = Annotated[int, msgspec.Meta(ge=1, le=4096)]
_Batch = Annotated[int, msgspec.Meta(ge=1, le=65536)]
_Speed = Annotated[float, msgspec.Meta(gt=0, lt=1e9)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
_Hex = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class Tuning(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fastest settings, and their speed. Everything in it was measured.

    Attributes:
        backend, accelerator: names as in a Plan.
        threads, threads_batch: for decode and for prefill.
        n_ubatch: tokens computed in one pass of prefill.
        flash_attention: it was on.
        kv_type_k, kv_type_v: types of the KV cache; others than f16 only if the user let tune try them.
        decode_tokens_per_s, prefill_tokens_per_s: medians with these settings.
        default_decode_tokens_per_s, default_prefill_tokens_per_s: medians with the plan's own choice, in the same run.
        n_prompt, n_decode: tokens prefilled and decoded in each measurement.
        measured_on: the day, "2026-11-26".
        is_quick: only the engines were compared, each with its usual settings, as when edge is set up.
        load_s, default_load_s: time to load the model, as far as it was measured, in seconds.
        reference: the engine that `divergence` is measured from: "llamacpp on cpu"; "" if it was not.
        divergence: as in EngineSpeed.
        engines: every engine that was measured, the chosen one included.
        pair: two engines that answer faster together than the best one alone, and lose nothing; None if there are none.
    """

    backend: _Name
    accelerator: Accelerator
    threads: _Count
    threads_batch: _Count
    n_ubatch: _Batch
    flash_attention: bool
    kv_type_k: KVType
    kv_type_v: KVType
    decode_tokens_per_s: _Speed
    prefill_tokens_per_s: _Speed
    default_decode_tokens_per_s: _Speed
    default_prefill_tokens_per_s: _Speed
    n_prompt: _Batch
    n_decode: _Batch
    measured_on: Annotated[str, msgspec.Meta(pattern=r"^\d{4}-\d{2}-\d{2}$")]
    is_quick: bool = False
    load_s: Annotated[float, msgspec.Meta(ge=0, lt=1e6)] = 0.0
    default_load_s: Annotated[float, msgspec.Meta(ge=0, lt=1e6)] = 0.0
    reference: Annotated[str, msgspec.Meta(max_length=400)] = ""
    divergence: Annotated[float, msgspec.Meta(ge=0)] | None = None
    engines: tuple[EngineSpeed, ...] = ()
    pair: EngineSpeed | None = None

    @property
    def turn_s(self) -> float:
        """Seconds of an average turn of a chat with these settings."""
        return turn_seconds(self.prefill_tokens_per_s, self.decode_tokens_per_s, self.load_s)

    @property
    def default_turn_s(self) -> float:
        """Seconds of an average turn of a chat with the plan's own choice."""
        return turn_seconds(self.default_prefill_tokens_per_s, self.default_decode_tokens_per_s, self.default_load_s)

    @property
    def is_lossless(self) -> bool:
        """These settings lose no more than by rounding."""
        ours = self.engine(self.backend, self.accelerator)
        if ours is None:
            return is_lossless(self.divergence)
        return is_lossless(self.divergence, ours.exact, ours.exact_limit)

    @property
    def source(self) -> str:
        """Where it comes from, to follow "measured"."""
        return f"at set-up on {self.measured_on}" if self.is_quick else f"by edge tune on {self.measured_on}"

    def engine(self, backend: str, accelerator: str) -> EngineSpeed | None:
        """Return what was measured of an engine; None if nothing was."""
        return next((item for item in self.engines if (item.backend, item.accelerator) == (backend, accelerator)), None)


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tuning, and what it holds for.

    Attributes:
        device: `device_fingerprint`.
        builds: name of an engine that was there -> its `engine_build`.
        shape: `shape_fingerprint` of the model.
        device_name, model_name: for people.
        tuning: the results; None if the measurement was skipped.
        seal: digest of all the rest: a record that was changed by hand is not a measurement.
    """

    device: _Hex
    builds: dict[_Name, _Hex]
    shape: _Hex
    device_name: Annotated[str, msgspec.Meta(max_length=500)]
    model_name: Annotated[str, msgspec.Meta(max_length=500)]
    tuning: Tuning | None
    seal: str = ""


@dataclass(frozen=True, slots=True)
class Lookup:
    """The results stored for a model.

    Attributes:
        tuning: the settings; None where none of them count here.
        ignored: why stored results do not count; "" where there is nothing to say.
    """

    tuning: Tuning | None = None
    ignored: str = ""


def look_up(device: DeviceProfile, artifact: Artifact, *, cache_dir: Path) -> Lookup:
    """Return the results for a model on this device. Never raises: a tuning saves time, nothing else.

    Args:
        device: from `edge.device.probe`.
        artifact: the model.
        cache_dir: `settings.paths.cache_dir`.
    """
    found = _find(device, artifact, cache_dir)
    if isinstance(found, str):
        return Lookup(None, found)
    tuning = found.tuning
    if tuning is not None and found.builds.get(tuning.backend) != engine_build(device, tuning.backend):
        return Lookup(None, f"{tuning.backend} was reinstalled since edge tune on {tuning.measured_on}")
    if tuning is not None and (pair := tuning.pair) is not None:
        names = (pair.backend, pair.prefill_with)
        if any(found.builds.get(name) != engine_build(device, name) for name in names):
            return Lookup(msgspec.structs.replace(tuning, pair=None))
    return Lookup(tuning)


def is_settled(device: DeviceProfile, artifact: Artifact, engines: Sequence[str], *, cache_dir: Path) -> bool:
    """Return whether these engines were compared for a model on this device, or the comparison was skipped, since they were
    installed. Never raises.

    Args:
        device, artifact, cache_dir: as for `look_up`.
        engines: names of all that are here now and read the format.
    """
    found = _find(device, artifact, cache_dir)
    return not isinstance(found, str) and found.builds == {name: engine_build(device, name) for name in engines}


def _find(device: DeviceProfile, artifact: Artifact, cache_dir: Path) -> Record | str:
    """Return the record of a model on this device, or why there is none; "" where there is nothing to say."""
    known, problem = records(cache_dir)
    if not known:
        return problem
    try:
        shape, here = shape_fingerprint(artifact), device_fingerprint(device)
    except OSError as error:
        return f"the model's files cannot be read ({error.strerror})"
    alike = [record for record in known if record.shape == shape]
    mine = next((record for record in alike if record.device == here), None)
    if mine is None:
        return f"edge tune measured on another machine, or in another state ({alike[0].device_name})" if alike else problem
    if mine.seal != _seal(mine):
        return "the results of edge tune were changed since; measure again with edge tune"
    return mine


def records(cache_dir: Path) -> tuple[list[Record], str]:
    """Return all records, and what is wrong with the file; "" if nothing. A damaged record does not spoil the others."""
    path = cache_dir / _FILE
    try:
        with open_file(path) as file:
            status = os.fstat(file.fileno())
            if hasattr(os, "getuid") and (status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o022):
                return [], f"{path} belongs to, or can be changed by, another user"
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return [], ""
    except OSError as error:
        return [], f"{path} cannot be read ({error.strerror})"
    if len(data) > _MAX_BYTES:
        return [], f"{path} is far too long"
    try:
        content: dict[str, Any] = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return [], f"{path} is damaged"
    rows = content.get("records")
    if content.get("format") != _FORMAT or not isinstance(rows, list):
        return [], f"{path} is of another version of edge"
    found: list[Record] = []
    problem = ""
    for row in rows[:_MAX_RECORDS]:
        try:
            found.append(msgspec.convert(row, Record))
        except msgspec.ValidationError as error:
            problem = f"a record of {path} is damaged ({error})"
    return found, problem


def remember(
    device: DeviceProfile, artifact: Artifact, tuning: Tuning | None, *, cache_dir: Path, engines: Sequence[str] = ()
) -> None:
    """Store a tuning in the place of an earlier one of this device and shape of model.

    Args:
        device, artifact, cache_dir: as for `look_up`.
        tuning: the results; None says that there are none, and that none are wanted.
        engines: names of all that were there and read the format.

    Raises:
        StorageError: it cannot be written, or the model's files cannot be read.
    """
    shape = _shape_of(artifact)
    record = Record(
        device=device_fingerprint(device),
        builds={name: engine_build(device, name) for name in (*engines, *([tuning.backend] if tuning is not None else []))},
        shape=shape,
        device_name=device.name[:500],
        model_name=artifact.name[:500],
        tuning=tuning,
    )
    record = msgspec.structs.replace(record, seal=_seal(record))
    known, _ = records(cache_dir)
    kept = [other for other in known if (other.device, other.shape) != (record.device, record.shape)]
    _write(cache_dir, [*kept, record][-_MAX_RECORDS:])


def forget(cache_dir: Path, *, artifact: Artifact | None = None) -> int:
    """Forget a model's tunings, or all.

    Args:
        cache_dir: `settings.paths.cache_dir`.
        artifact: the model; None is every one.

    Returns:
        How many were forgotten.

    Raises:
        StorageError: the file cannot be written, or the model's files cannot be read.
    """
    known, _ = records(cache_dir)
    if artifact is None:
        try:
            (cache_dir / _FILE).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"{cache_dir / _FILE} cannot be removed: {error.strerror}.", "Remove it by hand.") from error
        return len(known)
    shape = _shape_of(artifact)
    kept = [record for record in known if record.shape != shape]
    if len(kept) < len(known):
        _write(cache_dir, kept)
    return len(known) - len(kept)


def device_fingerprint(device: DeviceProfile) -> str:
    """Return a digest of the parts of a machine that decide which settings are fastest, so not of its free memory."""
    cpu, gpus = device.cpu, device.gpus
    return _digest(
        [
            device.kind,
            [cpu.name, cpu.architecture, cpu.n_logical, cpu.n_performance, cpu.n_efficiency, list(cpu.features)],
            [cpu.usable_performance, cpu.usable_efficiency, cpu.usable_logical, cpu.quota],
            [[gpu.name, gpu.api, gpu.total_bytes, gpu.driver] for gpu in gpus],
            device.power.mode,
        ]
    )


def engine_build(device: DeviceProfile, backend: str) -> str:
    """Return a digest of the installed build of an engine; another one may favour other settings."""
    engine = device.engine(backend)
    about: list[object] = [backend, engine.version if engine else "", list(engine.accelerators) if engine else []]
    row = ENGINES.get(backend)
    if row is not None and row.build_id:
        try:
            about.append(load_entry(row.build_id)())
        except (EdgeError, OSError):
            pass  # a profile of another machine, whose engine is not here: its version has to suffice
    return _digest(about)


def shape_fingerprint(artifact: Artifact) -> str:
    """Return a digest of a model's layout: types and shapes of a GGUF's tensors; files, sizes and settings of a folder.

    Raises:
        OSError: the folder cannot be read.
    """
    header = artifact.header
    if header is not None:
        tensors = [[tensor.name, list(tensor.shape), tensor.type] for tensor in header.tensors]
        return _digest(["gguf", header.architecture, header.n_vocab, tensors])
    files: list[object] = []
    for path in sorted(artifact.path.rglob("*")) if artifact.path.is_dir() else []:
        if path.is_file():
            size = path.stat().st_size
            is_small = size <= _HEADER_BYTES and path.suffix == ".json"
            content = hashlib.sha256(path.read_bytes()).hexdigest() if is_small else ""
            files.append([path.relative_to(artifact.path).as_posix(), size, content])
    return _digest([artifact.format, artifact.size_bytes, files])


def _shape_of(artifact: Artifact) -> str:
    try:
        return shape_fingerprint(artifact)
    except OSError as error:
        raise StorageError(f"{artifact.path} cannot be read: {error.strerror}.", "Check its permissions.") from error


def _digest(value: object) -> str:
    return hashlib.sha256(msgspec.json.encode(value)).hexdigest()


def _seal(record: Record) -> str:
    return _digest([_FORMAT, msgspec.to_builtins(msgspec.structs.replace(record, seal=""))])


def _write(cache_dir: Path, known: list[Record]) -> None:
    from edge.files import write_private

    content = {"format": _FORMAT, "records": [msgspec.to_builtins(record) for record in known]}
    write_private(cache_dir / _FILE, msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")
