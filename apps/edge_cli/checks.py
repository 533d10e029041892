"""What `edge doctor` looks at, one function a thing. None of them leaves anything behind."""

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
from edge_cli.text import size

if TYPE_CHECKING:
    from edge.config import Settings
    from edge.device import DeviceProfile
    from edge.device.sensors import Readings
    from edge.plan import Plan
    from edge.plan.receipt import Safety

__all__ = [
    "Check",
    "check_chat",
    "check_conversations",
    "check_directories",
    "check_engines",
    "check_governor",
    "check_model",
    "check_names",
    "guarded",
]

LITTLE_SPACE_BYTES = 2_000_000_000
"""Less than this on the disk of the models is worth a word: a small model and its download take about as much."""


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        what: the thing.
        state: "broken" makes the exit code 1; "note" is worth knowing.
        text: what was found.
        hint: what to do about it.
    """

    what: str
    state: Literal["ok", "note", "broken"]
    text: str
    hint: str = ""


def guarded(what: str, look: Callable[[], Iterator[Check]]) -> list[Check]:
    """The findings of one look; an error of ours is one, too."""
    found: list[Check] = []
    try:
        found.extend(look())
    except EdgeError as error:
        found.append(Check(what, "broken", error.message, error.hint))
    return found


def check_names(settings: Settings) -> Iterator[Check]:
    """Do the settings name backends, themes and keys that exist? (The model has a check of its own.)"""
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
    """Is there an engine that this version can run a model with?"""
    from edge.names import TITLES
    from edge.plan.placement import install_hint
    from edge.registry import ENGINES

    usable = [engine for engine in profile.engines if engine.is_installed]
    for engine in usable:
        text = f"{engine.package} {engine.version}, for {', '.join(engine.accelerators)}"
        yield Check("engine", "ok", text)
    if not usable:
        yield Check("engine", "broken", "No engine is installed that could run a model.", "Run: make install")
    for engine in profile.engines:
        row = ENGINES[engine.name]
        is_of_use = row.package is not None and (profile.apple is not None or not row.package.is_mac_only)
        if usable and is_of_use and not engine.version:
            formats = " or ".join(TITLES[name] for name in row.formats)
            text = f"{engine.package} is not installed, so no {formats} model can be run"
            yield Check("engine", "note", text, install_hint(engine.name))


def check_safety(safety: Safety | None) -> Iterator[Check]:
    """What became of the child process that tried the engine's fastest kernels."""
    if safety is None:
        return
    if safety.note:
        yield Check("canary", "note", safety.note)
    else:
        yield Check("canary", "ok", "the engine's fastest kernels work on this processor")


def check_directories(settings: Settings) -> Iterator[Check]:
    """Can everything be written that has to be?"""
    paths = settings.paths
    for what, path in (
        ("data", paths.data_dir),
        ("cache", paths.cache_dir),
        ("models", paths.models_dir),
        ("settings", paths.config_file.parent),
    ):
        problem = _why_unwritable(path)
        if problem:
            hint = "Check its owner and permissions, or choose another place (edge config path --json)."
            yield Check(f"{what} directory", "broken", f"{path} cannot be written: {problem}.", hint)
        else:
            yield Check(f"{what} directory", "ok", str(path))
    disk = _existing(paths.models_dir)
    try:
        free = shutil.disk_usage(disk).free
    except OSError as error:
        yield Check("disk space", "broken", f"The disk of {disk} cannot be asked: {error.strerror}.")
        return
    if free < LITTLE_SPACE_BYTES:
        hint = "Remove a model (edge models rm), or set paths.models_dir to another disk."
        yield Check("disk space", "note", f"only {size(free)} are free for models", hint)
    else:
        yield Check("disk space", "ok", f"{size(free)} are free for models")


def check_conversations(settings: Settings) -> Iterator[Check]:
    """Is the file of conversations whole?"""
    from edge.conversation import ConversationStore

    path = settings.paths.conversations_file
    if not path.is_file():
        yield Check("conversations", "ok", "none are kept yet")
        return
    with ConversationStore(path) as store:
        problems = store.check()
        n_conversations = len(store.list())
    for problem in problems:
        yield Check("conversations", "broken", f"{path}: {problem}", "Keep a copy of the file before anything else.")
    if not problems:
        yield Check("conversations", "ok", f"{n_conversations:,} in {path}")


def check_model(settings: Settings, plan: Callable[[], Plan]) -> Iterator[Check]:
    """Is the default model here, and does it fit?"""
    from edge.catalog import load_catalog
    from edge.units import size_text

    try:
        made = plan()
    except ModelNotFoundError as error:
        entry = load_catalog(settings).get(settings.model)
        if entry is None or settings.hub.offline:
            raise
        yield Check("model", "note", f"{settings.model} will be fetched when it is first used.", error.hint)
        return
    artifact, memory = made.artifact, made.memory
    yield Check("model", "ok", f"{settings.model}: {size(artifact.size_bytes)} in {artifact.path}")
    total, available = size_text(memory.total_bytes), size_text(memory.available_bytes)
    yield Check("memory", "ok", f"it takes {total} of {available} that are available")


def check_governor(settings: Settings, plan: Plan | None, readings: Readings) -> Iterator[Check]:
    """What would be held back now because the device is hot, low on battery or short of memory?"""
    from edge.engine.governor import Governor, Workload
    from edge.units import size_text

    if not settings.governor.enabled:
        yield Check("holding back", "note", "off: nothing is held back on a hot device, a low battery or little memory")
        return
    work = (plan.n_threads, plan.n_threads_batch, plan.n_ctx) if plan is not None else (1, 1, 1)
    limits = Governor(Workload(*work, is_on_cpu=plan is None or plan.accelerator == "cpu"), settings.governor).step(readings, 0)
    if limits.note:
        yield Check("holding back", "note", f"{limits.note} ({limits.why})", "It goes on at full speed when that is over.")
        return
    seen = [f"{readings.hottest_c:.0f} °C"] if readings.hottest_c is not None else []
    seen += [f"battery at {readings.battery_percent} %"] if readings.battery_percent is not None else []
    seen += [f"{size_text(readings.available_bytes)} of memory available"] if readings.available_bytes is not None else []
    yield Check("holding back", "ok", f"nothing: {', '.join(seen) or 'no sensor says anything'}")


def check_chat() -> Iterator[Check]:
    """Is the chat app's library here?"""
    if importlib.util.find_spec("textual") is None:
        yield Check("chat app", "note", "textual is not installed.", "Run: pip install 'edge-assistant[chat]'")
    else:
        yield Check("chat app", "ok", "installed")


def _existing(path: Path) -> Path:
    """The nearest folder above that is there."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _why_unwritable(path: Path) -> str:
    """Why nothing can be written below a path; "" where it can."""
    there = _existing(path)
    if not there.is_dir():
        return f"{there} is not a directory"
    if there != path:
        return "" if os.access(there, os.W_OK | os.X_OK) else f"{there} is not ours to write"
    try:
        # Permissions do not tell of a read-only or full disk; a file does.
        handle, name = tempfile.mkstemp(prefix=".doctor-", dir=path)
    except OSError as error:
        return error.strerror or str(error)
    os.close(handle)
    with contextlib.suppress(OSError):
        Path(name).unlink()
    return ""
