"""The models of the picker: size, parameters, whether each fits into memory, its measured speed, and what it is good for."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from edge.errors import EdgeError
from edge.units import count_text, size_text
from edge_chat import format as fmt
from edge_chat.commands import Completion

if TYPE_CHECKING:
    from edge.catalog import CatalogEntry, Installed
    from edge.config import Settings
    from edge.device import DeviceProfile

__all__ = ["list_choices", "suggest_models"]

_VERDICTS = {"fits": "fits", "tight": "fits barely", "too large": "does not fit"}


def suggest_models(settings: Settings) -> str:
    """Return a hint at larger models, once on this device, if the embedded one is all there is; "" otherwise. Blocks.

    Raises:
        EdgeError: the catalogue or the models' directory cannot be read, or the data directory cannot be written.
    """
    from edge.bench.recommend import candidates
    from edge.catalog import list_models, load_catalog
    from edge.config.schema import Settings as Defaults
    from edge.device import probe
    from edge.files import make_private_dir, write_private

    marker = settings.paths.data_dir / "models-suggested"
    embedded = Defaults().model
    if settings.model != embedded or marker.exists():  # at nearly every start: nothing else is read then
        return ""
    catalog = load_catalog(settings)
    chats = {model.name for model in list_models(settings) if not _is_silent(catalog.get(model.name))}
    if chats != {embedded}:
        return ""
    larger = [one for one in candidates(settings, probe()) if one.verdict == "fits" and one.name != embedded]
    make_private_dir(marker.parent)
    write_private(marker, b"")
    if not larger:
        return ""
    n = "1 larger model" if len(larger) == 1 else f"{len(larger)} larger models"
    return f"{embedded} is tiny. {n} of the catalogue would fit this device: edge models recommend"


def _is_silent(entry: CatalogEntry | None) -> bool:
    """Tell if a model of the catalogue does not chat."""
    return entry is not None and (entry.base or entry.embeddings or bool(entry.voice))


def list_choices(
    settings: Settings, device: DeviceProfile | None = None, *, in_use: str = "", in_use_bytes: int = 0
) -> list[Completion]:
    """Return the models by name, those on this device first. Blocks: it reads directories, headers and the device.

    Args:
        settings: directories.
        device: instead of a probe of this machine.
        in_use: the loaded model's reference; one that has no name is listed first.
        in_use_bytes: memory that the loaded model takes, which another one would get.

    Raises:
        EdgeError: the catalogue or the models' directory cannot be read.
    """
    from edge.catalog import list_models, load_catalog
    from edge.device import probe
    from edge.plan.verdict import free_memory

    device = device or probe()
    free_bytes = free_memory(device) + in_use_bytes
    catalog = load_catalog(settings)
    silent = {name for name, entry in catalog.items() if entry.embeddings or entry.voice}  # they do not chat
    # A model in several formats is one choice; the plan decides which one runs.
    installed: dict[str, list[Installed]] = {}
    for model in list_models(settings):
        if model.name in silent:
            continue
        installed.setdefault(model.name, []).append(model)
    here = {name for models in installed.values() for model in models for name in model.used_by}
    choices = []
    for name, models in sorted(installed.items()):
        speed = _speed(models, settings, device)
        entry = catalog.get(name)
        licence = models[0].licence or ""
        where = f"on this device, from {models[0].origin}"
        choices.append(_choice(name, entry, models[0].size_bytes, "", licence, where, free_bytes, speed))
    for name, entry in catalog.items():
        if name not in here and name not in silent:
            first = entry.artifacts[0]
            size, about = (first.size_bytes, "") if first.size_bytes else (first.about_bytes, "~")
            licence = entry.licence + (", whose terms you have to accept" if entry.accept_licence else "")
            choices.append(_choice(name, entry, size, about, licence, "will be downloaded", free_bytes, 0.0))
    if in_use and in_use not in {choice.value for choice in choices}:
        choices.insert(0, Completion(in_use, in_use.rpartition("/")[2] or in_use, "in use", about=f"In use: {in_use}"))
    return choices


def _choice(
    name: str,
    entry: CatalogEntry | None,
    size_bytes: int | None,
    about_mark: str,
    licence: str,
    where: str,
    free_bytes: int,
    tokens_per_s: float,
) -> Completion:
    from edge.plan.verdict import memory_need, memory_verdict

    good_for = entry.description if entry is not None else ""
    count = count_text(entry.parameters) if entry is not None and entry.parameters else ""
    size = f"{about_mark}{size_text(size_bytes)}" if size_bytes else ""
    verdict, need = "", ""
    if size_bytes:
        verdict = _VERDICTS[memory_verdict(size_bytes, free_bytes)]
        need = f"Takes about {size_text(memory_need(size_bytes))} of {size_text(free_bytes)} of free memory."
    speed = f"{fmt.rate(tokens_per_s)}, measured by edge tune." if tokens_per_s else ""
    facts = ", ".join(part for part in (licence, where) if part)
    return Completion(
        name,
        name,
        good_for,
        (size, count, verdict, fmt.rate(tokens_per_s) if tokens_per_s else ""),
        aside="here" if where.startswith("on this") else "",
        about=" ".join(part for part in (good_for, f"{facts[:1].upper()}{facts[1:]}.", need, speed) if part),
    )


def _speed(models: Iterable[Installed], settings: Settings, device: DeviceProfile) -> float:
    """Return the best decode speed that `edge tune` measured on this device, in tokens a second; 0 if none."""
    from edge.catalog import resolve
    from edge.plan.tuning import look_up, records

    if not records(settings.paths.cache_dir)[0]:
        return 0.0
    speeds = [0.0]
    for model in models:
        with suppress(EdgeError, OSError):
            artifact = resolve(str(model.path), settings=settings, download=False)
            tuning = look_up(device, artifact, cache_dir=settings.paths.cache_dir).tuning
            speeds.append(tuning.decode_tokens_per_s if tuning is not None else 0.0)
    return max(speeds)
