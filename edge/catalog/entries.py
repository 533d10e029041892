"""The catalogue: models that edge knows by name. One file ships with edge, a second one is the user's own.

The user's `catalog.toml` is beside the settings file. It adds models, and artifacts to models that edge knows, such as those of
`edge convert`. Both files are refused as a whole if they are malformed.
"""

from __future__ import annotations

import functools
import re
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from edge.config.toml import write_document
from edge.errors import ConfigError, StorageError, UsageError
from edge.files import absolute_path, check_replaceable, open_file, parse_toml, shipped, toml_text
from edge.hashes import file_stamp
from edge.sources import SOURCES
from edge.sources.base import ArtifactEntry
from edge.sources.store import Store
from edge.types import Sampling
from edge.units import reason

if TYPE_CHECKING:
    from edge.config.schema import Settings

__all__ = [
    "VOICE",
    "CatalogEntry",
    "Voice",
    "add_artifact",
    "check_name",
    "drop_artifacts",
    "find_bundle",
    "find_entry",
    "is_reference",
    "load_catalog",
    "read_catalog",
]

_MAX_BYTES = 16 << 20
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")


Voice = Literal["activity", "endpoint", "recognition", "speech"]

VOICE: dict[Voice, str] = {
    "activity": "voice activity",
    "endpoint": "end of turn",
    "recognition": "speech recognition",
    "speech": "speech",
}
"""Stage of a voice conversation -> in words, what its models are for."""


class CatalogEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model of the catalogue.

    Attributes:
        name: as typed by users.
        title: its makers' name for it.
        description: its strengths, in one line.
        licence: SPDX identifier, or the licence's name.
        licence_url: address of its text.
        accept_licence: the user has to agree to it before the download.
        parameters: number of weights; None if not known for certain.
        context: trained context, in tokens.
        base: it continues text and does not chat.
        embeddings: it turns texts into vectors and does not chat.
        voice: the stage of a voice conversation that it serves, see VOICE; it does not chat.
        template: name of its chat format, for files without a template.
        system: best system prompt if the user gives none, "" for an empty one; None leaves it to the template.
        sampling: fields of edge.types.Sampling that its makers advise, if the user did not set them.
        artifacts: its files and folders, in any formats; of one format the best first.
    """

    title: str
    description: str
    licence: str
    licence_url: str
    artifacts: tuple[ArtifactEntry, ...]
    name: str = ""
    accept_licence: bool = False
    parameters: int | None = None
    context: int | None = None
    base: bool = False
    embeddings: bool = False
    voice: Voice | None = None
    template: str | None = None
    system: str | None = None
    sampling: dict[str, int | float] = {}

    def __post_init__(self) -> None:
        Sampling(**self.sampling)  # type: ignore[arg-type]

    @property
    def purpose(self) -> str:
        """What it is for, in words: "chat", "embeddings" or a stage of voice."""
        return VOICE[self.voice] if self.voice else "embeddings" if self.embeddings else "chat"


def load_catalog(settings: Settings | None = None) -> dict[str, CatalogEntry]:
    """Return every model that edge knows by name, in the catalogue's order, followed by the user's own.

    Args:
        settings: with the path of the user's catalogue; None leaves it out.

    Raises:
        ConfigError: the shipped catalogue is missing, or one of the two is damaged.
    """
    entries = _shipped()
    if settings is None:
        return entries
    path = settings.paths.catalog_file
    try:
        state = path.stat()
    except FileNotFoundError:
        return entries
    except OSError as error:
        raise ConfigError(f"Your catalogue {path} cannot be read: {error.strerror}.", "Check its permissions.") from error
    if stat.S_ISFIFO(state.st_mode) or stat.S_ISSOCK(state.st_mode):
        raise ConfigError(f"Your catalogue {path} is not a file.", f"Correct or remove it: {path}")
    return _with_own(path, tuple(file_stamp(state)))


def find_entry(name: str, settings: Settings) -> CatalogEntry | None:
    """Return the model with that name, case ignored. Raises as `load_catalog`."""
    catalog = load_catalog(settings)
    return catalog.get(name) or catalog.get(name.lower())


def find_bundle(name: str, settings: Settings) -> tuple[str, ...]:
    """Return the names of the models of a bundle such as "voice"; () if there is none, or a model of that name.

    Raises:
        ConfigError: as `load_catalog`.
    """
    return () if find_entry(name, settings) else _bundles().get(name.lower(), ())


def add_artifact(name: str, artifact: ArtifactEntry, settings: Settings) -> None:
    """Add an artifact to the model of that name in the user's catalogue, and the model itself if it is new.

    Raises:
        UsageError: the name is malformed.
        ConfigError: the catalogue is damaged.
        StorageError: it cannot be written.
    """
    import tomlkit

    check_name(name)
    load_catalog(settings)  # so that a damaged file is not edited
    fields = {key: value for key, value in msgspec.to_builtins(artifact).items() if value not in (None, (), [])}

    def change(models: Any) -> None:
        if name not in models:
            models[name] = tomlkit.table()
        known = models[name].get("artifacts") or tomlkit.aot()
        row = tomlkit.table()
        row.update(fields)
        places = [place for place, other in enumerate(known) if other.get("reference") == artifact.reference]
        for place in reversed(places):
            del known[place]
        known.append(row)
        models[name]["artifacts"] = known

    _edit(settings, change)


def check_name(name: str) -> None:
    """Check that a name can be used in the user's catalogue.

    Raises:
        UsageError: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name[:80]!r} cannot be the name of a model.", "Use small letters, digits and . _ - such as my-model."
        )


def drop_artifacts(name: str, references: Sequence[str], settings: Settings) -> None:
    """Remove artifacts from the user's catalogue; with the last one also a model that edge's own catalogue does not have.

    Args:
        name: of the model.
        references: of the artifacts, as in `load_catalog`.
        settings: with the path of the catalogue.

    Raises:
        ConfigError: the catalogue is damaged.
        StorageError: it cannot be written.
    """
    load_catalog(settings)
    path = settings.paths.catalog_file

    def change(models: Any) -> None:
        known = models.get(name, {}).get("artifacts", [])
        for place in reversed(range(len(known))):
            if _absolute(known[place].get("reference", ""), path.parent) in references:
                del known[place]
        if name in models and not known:
            models[name].pop("artifacts", None)
            if not models[name] or name not in _shipped():
                del models[name]

    _edit(settings, change)


def is_reference(text: str) -> bool:
    """Return True if a text is a reference to a source, not a name or a path."""
    return text.partition(":")[0] in SOURCES and ":" in text


@functools.cache
def _shipped() -> dict[str, CatalogEntry]:
    path = shipped("catalog.toml")
    if path is None:
        raise ConfigError("The model catalogue that belongs to edge is missing.", "Install edge again.")
    return read_catalog(path)


@functools.cache
def _bundles() -> dict[str, tuple[str, ...]]:
    path = shipped("catalog.toml")
    return {} if path is None else _read(path, tuple[str, ...], "Install edge again.", "bundles")


@functools.lru_cache(maxsize=4)
def _with_own(path: Path, stamp: tuple[int, ...]) -> dict[str, CatalogEntry]:
    """Merge both catalogues. The arguments change with the user's file, so that it is read again then."""
    entries = dict(_shipped())
    hint = f"Correct or remove it: {path}"
    for name, own in _read(path, dict[str, Any], hint).items():
        if not _NAME.fullmatch(name):
            raise ConfigError(f"Your catalogue {path} names a model {name[:80]!r}.", "Use small letters, digits, and . _ -")
        known = entries.get(name)
        fields = msgspec.to_builtins(known) if known else {"title": name, "description": "", "licence": "", "licence_url": ""}
        before = known.artifacts if known else ()
        try:
            if "name" in own:
                raise ValueError("Object contains unknown field `name`")
            # Fields that the user leaves out are those of edge's own entry; artifacts are added to its artifacts.
            entry = msgspec.convert({**fields, "artifacts": [], **own}, CatalogEntry)
        except (ValueError, UsageError) as error:  # a UsageError is about the values of sampling
            raise ConfigError(f"Your catalogue {path} is wrong about {name}: {error}", hint) from error
        added = (msgspec.structs.replace(one, reference=_absolute(one.reference, path.parent)) for one in entry.artifacts)
        entries[name] = msgspec.structs.replace(entry, name=name, artifacts=(*before, *added))
        if not entries[name].artifacts:
            raise ConfigError(f"Your catalogue {path} names no artifact of {name}.", hint)
    return entries


def _absolute(reference: str, folder: Path) -> str:
    """Return a reference unchanged, and a path relative to the catalogue's folder as an absolute one."""
    if is_reference(reference):
        return reference
    try:
        return str(absolute_path(reference, folder))
    except UsageError:  # "~nobody/x": there is nothing at that path, which must not hide the other models
        return str(folder / reference)


def read_catalog(path: Path) -> dict[str, CatalogEntry]:
    """Read the catalogue that ships with edge.

    Raises:
        ConfigError: it is damaged.
    """
    entries = _read(path, CatalogEntry, "Install edge again.")
    return {name: msgspec.structs.replace(entry, name=name) for name, entry in entries.items()}


def _read(path: Path, kind: Any, hint: str, table: str = "models") -> dict[str, Any]:
    try:
        with open_file(path) as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ValueError("it is longer than a catalogue can be (16 MiB)")
        document = parse_toml(path, toml_text(path, data))
        found: dict[str, Any] = msgspec.convert(document.get(table, {}), dict[str, kind])
    except ConfigError as error:
        raise ConfigError(error.message, hint) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"The model catalogue {path} is damaged: {reason(error)}.", hint) from error
    return found


def _edit(settings: Settings, change: Callable[[Any], None]) -> None:
    """Change the user's catalogue, one process at a time. The rest of the file, comments included, stays as it is."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    path = settings.paths.catalog_file
    try:
        check_replaceable(settings.paths.config_file)
    except StorageError as error:
        hint = "Set EDGE_CONFIG to the path of a settings file, which need not exist."
        raise StorageError(f"Your catalogue {path} is not written beside the settings file: {error.message}", hint) from error
    check_replaceable(path)
    with Store(settings.paths.models_dir).lock("catalogue"):
        try:
            text = path.read_text(encoding="utf-8-sig") if path.is_file() else _BEGINNING
            document = tomlkit.parse(text)
            if "models" not in document:
                document["models"] = tomlkit.table(is_super_table=True)
            change(document["models"])
        except (OSError, ValueError, TOMLKitError, AttributeError, TypeError) as error:
            raise ConfigError(f"Your catalogue {path} is damaged: {reason(error)}.", f"Correct or remove it: {path}") from error
        write_document(path, document)


_BEGINNING = "# Models of your own, and more artifacts of models that edge knows. See docs/models.md.\n\n"
