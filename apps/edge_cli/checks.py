"""The checks of `edge doctor`, one function each. None of them leaves anything behind."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edge.errors import EdgeError, ModelNotFoundError
from edge.units import quoted, size_text

if TYPE_CHECKING:
    from edge.config import Settings
    from edge.device import DeviceProfile
    from edge.device.sensors import Readings
    from edge.kv.store import BlockStore
    from edge.plan import Plan
    from edge.plan.receipt import Safety

__all__ = [
    "Check",
    "check_chat",
    "check_conversations",
    "check_directories",
    "check_disk_cache",
    "check_engines",
    "check_governor",
    "check_model",
    "check_names",
    "guarded",
]

LITTLE_SPACE_BYTES = 2_000_000_000
"""Less free space than this is reported: a small model and its download take about as much."""


@dataclass(frozen=True)
class Check:
    """One finding about `what`, with a hint. "broken" makes the exit code 1; "note" is worth knowing."""

    what: str
    state: Literal["ok", "note", "broken"]
    text: str
    hint: str = ""


def guarded(what: str, look: Callable[[], Iterator[Check]]) -> list[Check]:
    """Return the findings of one check; an EdgeError is a finding too."""
    found: list[Check] = []
    try:
        found.extend(look())
    except EdgeError as error:
        found.append(Check(what, "broken", error.message, error.hint))
    return found


def check_names(settings: Settings) -> Iterator[Check]:
    """Check that the settings name existing backends, themes and keys. (The model has its own check.)"""
    from edge.config import DEFAULT
    from edge_cli.settings_check import CHECKED, check_setting

    for name in CHECKED:
        source = settings.sources.get(name, DEFAULT)
        if name == "model" or source == DEFAULT:
            continue
        try:
            why = check_setting(name, settings)
        except EdgeError as error:
            yield Check("settings", "broken", f"{source}: {name}: {error.message}", error.hint)
        else:
            if why:
                yield Check("settings", "note", f"{name} could not be checked: {why}")


def check_engines(profile: DeviceProfile) -> Iterator[Check]:
    """Check that an engine is installed."""
    from edge.names import TITLES
    from edge.plan.placement import install_hint
    from edge.registry import ENGINES

    usable = [engine for engine in profile.engines if engine.is_installed]
    for engine in usable:
        text = f"{engine.package} {engine.version}, for {', '.join(profile.accelerators_of(engine))}"
        yield Check("engine", "ok", text)
    if not usable:
        yield Check("engine", "broken", "No engine that could run a model is installed.", "Run: make install")
    for engine in profile.engines:
        row = ENGINES[engine.name]
        is_of_use = row.package is not None and (profile.apple is not None or not row.package.is_mac_only)
        if usable and is_of_use and not engine.version:
            formats = " or ".join(TITLES[name] for name in row.formats)
            text = f"{engine.package} is not installed, so no {formats} model can be run"
            yield Check("engine", "note", text, install_hint(engine.name))


def check_safety(safety: Safety | None) -> Iterator[Check]:
    """Report how the child process that tested the engine's fastest kernels ended."""
    if safety is None:
        return
    if safety.note:
        yield Check("canary", "note", safety.note)
    else:
        yield Check("canary", "ok", "the engine's fastest kernels work on this processor")


def check_directories(settings: Settings) -> Iterator[Check]:
    """Check that the directories are writable and that models have room."""
    paths = settings.paths
    for what, path, key in (
        ("data", paths.data_dir, "paths.data_dir"),
        ("cache", paths.cache_dir, "paths.cache_dir"),
        ("models", paths.models_dir, "paths.models_dir"),
        ("settings", paths.config_file.parent, ""),
    ):
        problem = _why_unwritable(path)
        if problem:
            other = f"edge config set {key} DIRECTORY" if key else "EDGE_CONFIG=FILE edge ..."
            hint = f"Check its owner and permissions: ls -ld {quoted(_existing(path))}   or use another: {other}"
            yield Check(f"{what} directory", "broken", f"{path} cannot be written: {problem}.", hint)
        else:
            yield Check(f"{what} directory", "ok", str(path))
    disk = _existing(paths.models_dir)
    try:
        free = shutil.disk_usage(disk).free
    except OSError as error:
        yield Check("disk space", "broken", f"The free space on the disk of {disk} is unknown: {error.strerror}.")
        return
    if free < LITTLE_SPACE_BYTES:
        hint = "Remove a model: edge models rm NAME   or use another disk: edge config set paths.models_dir DIRECTORY"
        yield Check("disk space", "note", f"only {size_text(free)} free for models", hint)
    else:
        yield Check("disk space", "ok", f"{size_text(free)} free for models")


def check_disk_cache(settings: Settings, open_store: Callable[[Settings], BlockStore]) -> Iterator[Check]:
    """Check that the on-disk KV cache works, if there is one."""
    path = settings.paths.kv_dir
    if not settings.kv.enabled:
        yield Check("disk cache", "ok", "off (kv.enabled)")
        return
    if not path.exists():
        yield Check("disk cache", "ok", "nothing is stored yet")
        return
    with open_store(settings) as store:
        problem, most = store.problem, store.options.max_written_bytes
        written = 0 if most is None or problem is not None else store.stats().written_bytes
    if problem is None and most is not None and written >= most:
        hint = "Prompts of today are processed again after a restart. Raise kv.max_writes_gb_per_day, or wait."
        yield Check("disk cache", "note", f"{size_text(written)} were written today, as much as is allowed", hint)
    elif problem is None:
        yield Check("disk cache", "ok", str(path))
    else:
        hint = "Replies work without it, but prompts are processed again after a restart. Look at it: edge kv verify"
        yield Check("disk cache", "note", f"off: {problem}", hint)


def check_conversations(settings: Settings) -> Iterator[Check]:
    """Check that the file of conversations is intact."""
    from edge.conversation import ConversationStore

    path = settings.paths.conversations_file
    if not path.is_file():
        yield Check("conversations", "ok", "none are saved yet")
        return
    with ConversationStore(path) as store:
        problems = store.check()
        n_conversations = len(store.list())
    for problem in problems:
        hint = f"Make a copy of the file before anything else: cp {quoted(path)} {quoted(f'{path}.copy')}"
        yield Check("conversations", "broken", f"{path}: {problem}", hint)
    if not problems:
        yield Check("conversations", "ok", f"{n_conversations:,} in {path}")


def _is_here(settings: Settings) -> bool:
    """Return whether the default model itself is on this device."""
    from edge.catalog import resolve

    try:
        resolve(settings.model, settings=settings, download=False)
    except EdgeError:
        return False
    return True


def check_model(settings: Settings, plan: Callable[[], Plan]) -> Iterator[Check]:
    """Check that the default model is here and fits."""
    from edge.catalog import load_catalog

    try:
        made = plan()
    except ModelNotFoundError as error:
        entry = load_catalog(settings).get(settings.model)
        if entry is None or settings.hub.offline:
            raise
        if _is_here(settings):  # so it is its draft model or an adapter that is missing
            can_fetch = settings.engine.draft or any(one.startswith("hf:") for one in settings.engine.lora)
            yield Check("model", "note" if can_fetch else "broken", error.message, error.hint)
            return
        yield Check("model", "note", f"{settings.model} will be downloaded on first use.", error.hint)
        return
    artifact, memory = made.artifact, made.memory
    yield Check("model", "ok", f"{settings.model}: {size_text(artifact.size_bytes)} in {artifact.path}")
    yield Check("memory", "ok", f"needs {size_text(memory.total_bytes)} of {size_text(memory.available_bytes)} available")


def check_governor(settings: Settings, plan: Plan | None, readings: Readings) -> Iterator[Check]:
    """Report how the engine would be throttled now: the device may be hot, low on battery or short of memory."""
    from edge.engine.governor import Governor, Workload

    if not settings.governor.enabled:
        yield Check("throttling", "note", "off: a hot device, a low battery or little memory does not throttle the engine")
        return
    work = (plan.n_threads, plan.n_threads_batch, plan.n_ctx) if plan is not None else (1, 1, 1)
    limits = Governor(Workload(*work, is_on_cpu=plan is None or plan.accelerator == "cpu"), settings.governor).step(readings, 0)
    if limits.note:
        yield Check("throttling", "note", f"{limits.note} ({limits.why})", "It returns to full speed when that is over.")
        return
    seen = [f"{readings.hottest_c:.0f} °C"] if readings.hottest_c is not None else []
    seen += [f"battery at {readings.battery_percent} %"] if readings.battery_percent is not None else []
    seen += [f"{size_text(readings.available_bytes)} of memory available"] if readings.available_bytes is not None else []
    yield Check("throttling", "ok", f"none: {', '.join(seen) or 'no sensor readings'}")


def check_chat() -> Iterator[Check]:
    """Check that the chat app's library is installed."""
    if importlib.util.find_spec("textual") is None:
        yield Check("chat app", "note", "textual is not installed.", "Run: pip install 'edge-assistant[chat]'")
    else:
        yield Check("chat app", "ok", "installed")


def _existing(path: Path) -> Path:
    """Return the closest existing folder above a path."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _why_unwritable(path: Path) -> str:
    """Return why a directory cannot be written; "" if it can."""
    there = _existing(path)
    if not there.is_dir():
        return f"{there} is not a directory"
    if there != path:
        return "" if os.access(there, os.W_OK | os.X_OK) else f"{there} is not writable"
    try:
        # Permissions do not reveal a read-only or full disk; writing a file does.
        handle, name = tempfile.mkstemp(prefix=".doctor-", dir=path)
    except OSError as error:
        return error.strerror or str(error)
    os.close(handle)
    with contextlib.suppress(OSError):
        Path(name).unlink()
    return ""
