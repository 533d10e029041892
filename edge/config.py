"""Settings: flag > environment (EDGE_*) > file (TOML) > default, merged once; where each value came from is kept.

What a setting is called, what it may be and what it is when nobody says anything stands in one place: the structs below.
Everything else (the names of the environment variables, the text of the errors, `edge config ls`) follows from them. A key
or an EDGE_ variable that is not among them is an error, so that a typing mistake never goes unnoticed.
"""

from __future__ import annotations

import difflib
import functools
import json
import os
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from edge.config_file import read_toml
from edge.errors import ConfigError, UsageError
from edge.types import Sampling

__all__ = [
    "RESERVED_VARIABLES",
    "ChatSettings",
    "HubSettings",
    "Key",
    "Paths",
    "Settings",
    "default_paths",
    "find_key",
    "get_value",
    "load_settings",
    "parse_text",
    "setting_keys",
    "split_key",
]

APP_NAME = "edge-assistant"
"""Folder below the user's configuration, data and cache directories."""

COMMAND_LINE = "command line"
"""Origin of a value that came as a flag, in `Settings.sources`."""

DEFAULT = "default"
"""Origin of a value that nobody set."""

RESERVED_VARIABLES = {
    "EDGE_DEBUG": "1 shows the traceback of an unexpected error",
    "EDGE_TEST_MODEL": "the model file that the tests use",
}
"""EDGE_ variables that are no settings. Others that begin with EDGE_TEST_ belong to tests and are left alone, too."""

_PATH_VARIABLES = {
    "paths.data_dir": "EDGE_DATA_DIR",
    "paths.cache_dir": "EDGE_CACHE_DIR",
    "paths.models_dir": "EDGE_MODELS_DIR",
    "paths.config_file": "EDGE_CONFIG",
}
# Variables of the hub's own library that mean the same; EDGE_HUB_* wins over them.
_BORROWED_VARIABLES = {"HF_ENDPOINT": "hub.endpoint", "HF_HUB_OFFLINE": "hub.offline"}

KVType = Literal["f16", "q8_0", "q4_0"]


class Paths(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where edge keeps its files. All absolute; none is made before something is written there.

    Attributes:
        data_dir: conversations and crash reports.
        cache_dir: what can be made again: KV blocks, the canary's verdict.
        models_dir: models; `models` below data_dir unless set.
        config_file: the settings file. Not a setting of the file itself: EDGE_CONFIG names it.
    """

    data_dir: Path
    cache_dir: Path
    models_dir: Path
    config_file: Path

    @property
    def conversations_file(self) -> Path:
        """Where conversations are kept; the chat app and `edge run --continue` share it."""
        return self.data_dir / "conversations.db"


def default_paths(environ: Mapping[str, str] | None = None) -> Paths:
    """The directories before any settings file is read: EDGE_*_DIR and EDGE_CONFIG, else the platform's (XDG) ones.

    Args:
        environ: instead of the process's own, for the EDGE_ variables; XDG_* are always the process's own.
    """
    import platformdirs

    environ = os.environ if environ is None else environ

    def pick(key: str, fallback: Path) -> Path:
        text = environ.get(_PATH_VARIABLES[key], "")
        return Path(text).expanduser().absolute() if text else fallback

    data_dir = pick("paths.data_dir", platformdirs.user_data_path(APP_NAME))
    return Paths(
        data_dir=data_dir,
        cache_dir=pick("paths.cache_dir", platformdirs.user_cache_path(APP_NAME)),
        models_dir=pick("paths.models_dir", data_dir / "models"),
        config_file=pick("paths.config_file", platformdirs.user_config_path(APP_NAME) / "config.toml"),
    )


class ChatSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The terminal chat.

    Attributes:
        theme: name of a theme; None lets the app choose.
        keys: action -> key, replacing the app's own binding: {"quit": "ctrl+q"}.
        plain: no box drawing, spinners or colour-only signals, for screen readers and bare terminals.
        paste_chars: a pasted text of more characters than this becomes an attachment.
        attachment_bytes: larger files are refused as attachments.
    """

    theme: str | None = None
    keys: dict[str, str] = {}
    plain: bool = False
    paste_chars: Annotated[int, msgspec.Meta(ge=1)] = 2000
    attachment_bytes: Annotated[int, msgspec.Meta(ge=1)] = 262_144


class HubSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where models are fetched from. The token is not a setting: HF_TOKEN or `hf auth login`.

    Attributes:
        endpoint: address of the hub; None is the hub's own. HF_ENDPOINT is read too.
        offline: never use the network. HF_HUB_OFFLINE is read too.
    """

    endpoint: str | None = None
    offline: bool = False


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be set. None means: edge decides, and the placement receipt says how.

    Attributes:
        model: catalogue name, path, or hf:, ollama: or pypi: reference.
        backend: name of the engine.
        require: fail rather than run on anything else.
        context: context window, in tokens.
        threads: CPU threads of one step.
        gpu_layers: layers computed by the accelerator; -1 is all of them.
        kv_type_k, kv_type_v: how keys and values are stored.
        system: system prompt; "" leaves it to the model's template.
        window: what happens to old messages when the context window is full.
        sampling: how tokens are chosen.
        chat: the terminal chat.
        paths: where files are.
        hub: where models come from.
        sources: dotted key -> origin: "command line", the variable's name, "file:line" or "default". Not a setting.
    """

    model: str = "smollm2-135m"
    backend: str | None = None
    require: Literal["cuda", "ane", "metal", "cpu"] | None = None
    context: Annotated[int, msgspec.Meta(ge=1)] | None = None
    threads: Annotated[int, msgspec.Meta(ge=1)] | None = None
    gpu_layers: Annotated[int, msgspec.Meta(ge=-1)] | None = None
    kv_type_k: KVType | None = None
    kv_type_v: KVType | None = None
    system: str = ""
    window: Literal["drop", "summarise", "refuse"] = "drop"
    sampling: Sampling = msgspec.field(default_factory=Sampling)
    chat: ChatSettings = msgspec.field(default_factory=ChatSettings)
    paths: Paths = msgspec.field(default_factory=default_paths)
    hub: HubSettings = msgspec.field(default_factory=HubSettings)
    sources: dict[str, str] = {}


_TABLES: dict[str, type] = {"sampling": Sampling, "chat": ChatSettings, "paths": Paths, "hub": HubSettings}


class Key(msgspec.Struct, frozen=True):
    """One setting.

    Attributes:
        name: dotted, such as "sampling.top_k".
        type: its Python type.
        variable: the environment variable that sets it; for a free table, what entries' variables start with.
        is_free: a table whose own keys the user chooses, such as chat.keys.
        is_optional: None is a value, written "auto".
    """

    name: str
    type: Any
    variable: str
    is_free: bool
    is_optional: bool

    @property
    def allowed(self) -> str:
        """What the value may be, for people."""
        return _describe(msgspec.inspect.type_info(self.type)) if self.type is not Path else "a path"


@functools.cache
def setting_keys() -> dict[str, Key]:
    """Every setting by its dotted name, in the order of the structs."""
    keys: dict[str, Key] = {}

    def add(name: str, annotation: Any) -> None:
        variable = _PATH_VARIABLES.get(name, "EDGE_" + name.replace(".", "_").upper())
        origin = typing.get_origin(annotation)
        is_free = origin in (dict, Mapping)
        is_optional = type(None) in typing.get_args(annotation)
        keys[name] = Key(name, annotation, variable, is_free, is_optional)

    for name, annotation in typing.get_type_hints(Settings, include_extras=True).items():
        if name == "sources":
            continue
        if name not in _TABLES:
            add(name, annotation)
            continue
        for field, below in typing.get_type_hints(_TABLES[name], include_extras=True).items():
            add(f"{name}.{field}", below)
    return keys


def find_key(name: str) -> Key:
    """The setting of that dotted name; "chat.keys.quit" finds the free table chat.keys.

    Raises:
        ConfigError: there is none; the nearest one is named.
    """
    keys = setting_keys()
    if name in keys:
        return keys[name]
    for key in keys.values():
        if key.is_free and name.startswith(key.name + ".") and len(name) > len(key.name) + 1:
            return key
    raise ConfigError(f"There is no setting {name!r}.", _nearest(name, keys))


def split_key(name: str) -> tuple[str, ...]:
    """A dotted name as the names of its tables and its own; an entry of a free table keeps its dots.

    Raises:
        ConfigError: there is no such setting.
    """
    key = find_key(name)
    return (*key.name.split("."), *([name[len(key.name) + 1 :]] if name != key.name else []))


def get_value(settings: Settings, name: str) -> Any:
    """The value of a setting by its dotted name; None for an entry of a free table that is not there.

    Raises:
        ConfigError: there is no such setting.
    """
    key = find_key(name)
    value: Any = settings
    for part in key.name.split("."):
        value = getattr(value, part)
    if name != key.name:
        entry = name[len(key.name) + 1 :]
        return value.get(int(entry) if key.name == "sampling.logit_bias" else entry)
    return value


def load_settings(
    flags: Mapping[str, object] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Settings:
    """Merge flags, environment, file and defaults.

    Args:
        flags: dotted key -> value; a value of None counts as not given, the text "auto" stands for None.
        environ: instead of the process's own. A variable that is empty counts as not set.
        path: the settings file, which must exist; without it EDGE_CONFIG or the user's own, which need not.

    Raises:
        ConfigError: a key or EDGE_ variable is unknown, a value is not allowed, or the file is not TOML.
        StorageError: the file is there and cannot be read.
    """
    environ = os.environ if environ is None else environ
    paths = default_paths(environ)
    config_file = Path(path).expanduser().absolute() if path is not None else paths.config_file
    merged = _Merged()
    document = read_toml(config_file, must_exist=path is not None)
    merged.add_table("", document.values, document.where, base=config_file.parent)
    for variable, name in _BORROWED_VARIABLES.items():
        if environ.get(variable):
            merged.add_text(name, environ[variable], variable)
    merged.add_environment(environ)
    for name, value in (flags or {}).items():
        if value is not None:
            merged.add(name, value, COMMAND_LINE)
    return merged.build(paths, config_file)


class _Merged:
    """Values that were set, by dotted key. Later ones win, so sources are added from the weakest to the strongest."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.sources: dict[str, str] = {}

    def add(self, name: str, value: object, source: str, *, base: Path | None = None) -> None:
        try:
            key = find_key(name)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error.message}", error.hint) from None
        if isinstance(value, str) and source == COMMAND_LINE:
            return self.add_text(name, value, source)
        if name != key.name:
            value = {name[len(key.name) + 1 :]: value}
        converted = _convert(key, value, source, base=base)
        if key.is_free:
            converted = {**self.values.get(key.name, {}), **converted}
        self.values[key.name] = converted
        self.sources[key.name] = source
        return None

    def add_text(self, name: str, text: str, source: str) -> None:
        key = find_key(name)
        value = parse_text(name, text, source)
        if key.is_free:
            value = {**self.values.get(key.name, {}), **value}
        self.values[key.name] = value
        self.sources[key.name] = source

    def add_table(self, prefix: str, table: Mapping[str, Any], where: Any, *, base: Path) -> None:
        keys = setting_keys()
        for part, value in table.items():
            name = prefix + part
            source = where(name)
            if name in _TABLES:
                if not isinstance(value, dict):
                    hint = f"Write [{name}] on a line of its own, and its settings below."
                    raise ConfigError(f"{source}: {name} is a table, not a single value.", hint)
                self.add_table(name + ".", value, where, base=base)
            elif name not in keys:
                raise ConfigError(f"{source}: there is no setting {name!r}.", _nearest(name, keys))
            elif name == "paths.config_file":
                raise ConfigError(f"{source}: a settings file cannot say where it is.", "Set EDGE_CONFIG instead.")
            else:
                self.add(name, value, source, base=base)

    def add_environment(self, environ: Mapping[str, str]) -> None:
        by_variable = {key.variable: key for key in setting_keys().values()}
        free = {variable: key for variable, key in by_variable.items() if key.is_free}
        for variable in sorted(environ):
            if not variable.startswith("EDGE_") or variable.startswith("EDGE_TEST_") or variable in RESERVED_VARIABLES:
                continue
            key = by_variable.get(variable)
            entry = ""
            if key is None:
                for start, table in free.items():
                    if variable.startswith(start + "_") and len(variable) > len(start) + 1:
                        key, entry = table, "." + variable[len(start) + 1 :].lower()
            if key is None or (key.is_free and not entry):
                known = [name for name in by_variable if name not in free] + list(RESERVED_VARIABLES)
                raise ConfigError(
                    f"The environment variable {variable} is not a setting.",
                    f"Unset it. {_nearest(variable, known)}",
                )
            if environ[variable]:
                self.add_text(key.name + entry, environ[variable], variable)

    def build(self, paths: Paths, config_file: Path) -> Settings:
        """Settings from the values; paths that follow from other paths are worked out here."""
        nested: dict[str, dict[str, Any]] = {table: {} for table in _TABLES}
        top: dict[str, Any] = {}
        for name, value in self.values.items():
            table, _, field = name.rpartition(".")
            (nested[table] if table else top)[field] = value
        found = nested["paths"]
        data_dir = found.get("data_dir", paths.data_dir)
        follows_data_dir = "data_dir" in found and "models_dir" not in found
        nested["paths"] = {
            "data_dir": data_dir,
            "cache_dir": found.get("cache_dir", paths.cache_dir),
            "models_dir": data_dir / "models" if follows_data_dir else found.get("models_dir", paths.models_dir),
            "config_file": config_file,
        }
        return Settings(
            **top,
            **{table: made(**nested[table]) for table, made in _TABLES.items()},
            sources={name: self.sources.get(name, DEFAULT) for name in setting_keys()},
        )


def parse_text(name: str, text: str, source: str) -> Any:
    """A value written as text, as in a variable or on a command line, as the setting's type.

    Texts are taken as they are; "auto" is None where that is allowed; a list is JSON, or one text that stands for itself.

    Args:
        name: dotted key. An entry of a free table gives a dict with that entry.
        text: the value.
        source: where it is from, for the error.

    Raises:
        ConfigError: there is no such setting, or it cannot be this.
    """
    key = find_key(name)
    value: object = text
    if key.is_free:
        if name == key.name:
            raise ConfigError(f"{source}: {name} is a table.", f"Set one entry, such as {name}.NAME.")
        value = {name[len(key.name) + 1 :]: text}
    elif key.type == tuple[str, ...]:
        value = [text]
        if text.lstrip().startswith("["):
            try:
                value = json.loads(text)
            except ValueError as error:
                hint = 'Write a list as JSON: ["one", "two"].'
                raise ConfigError(f"{source}: {name} is not a list ({error}).", hint) from None
    elif key.type is bool:
        word = text.strip().lower()
        value = {"yes": True, "on": True, "no": False, "off": False}.get(word, word)
    return _convert(key, value, source, strict=False)


def _convert(key: Key, value: object, source: str, *, strict: bool = True, base: Path | None = None) -> Any:
    """A value as the setting's type, or ConfigError that says where it is and what is allowed."""
    if key.is_optional and value == "auto":
        return None
    if key.type is Path and isinstance(value, (str, os.PathLike)) and str(value):
        given = Path(value).expanduser()
        return given if given.is_absolute() else (base or Path.cwd()) / given
    refused = ConfigError(f"{source}: {key.name} cannot be {_show(value)}.", f"Allowed: {key.allowed}.")
    if key.type is Path:
        raise refused
    try:
        converted = msgspec.convert(value, key.type, strict=strict, str_keys=True)
    except msgspec.ValidationError:
        raise refused from None
    table, _, field = key.name.rpartition(".")
    if table == "sampling":
        try:
            Sampling(**{field: converted})
        except UsageError as error:
            raise ConfigError(f"{source}: {error.message}", error.hint) from None
    return converted


def _show(value: object) -> str:
    """A value as the user wrote it, near enough, and never a page of it."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _describe(info: Any) -> str:
    """A type in words."""
    kinds = msgspec.inspect
    if isinstance(info, kinds.UnionType):
        rest = [one for one in info.types if not isinstance(one, kinds.NoneType)]
        text = " or ".join(_describe(one) for one in rest)
        return text + ', or "auto"' if len(rest) < len(info.types) else text
    if isinstance(info, kinds.LiteralType):
        return ", ".join(sorted(f'"{value}"' for value in info.values))
    if isinstance(info, kinds.IntType):
        return "a whole number" + (f", {info.ge} or more" if info.ge is not None else "")
    if isinstance(info, kinds.VarTupleType):
        return f"a list, each {_describe(info.item_type)}"
    if isinstance(info, kinds.DictType):
        return f"a table, each entry {_describe(info.value_type)}"
    words: dict[type, str] = {kinds.FloatType: "a number", kinds.BoolType: "true or false", kinds.StrType: "a text"}
    return words[type(info)]


def _nearest(name: str, known: Iterable[str]) -> str:
    """A hint that names what was probably meant: the whole name is compared first, then its last part."""
    known = list(known)
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    if not found:
        by_end = {candidate.rpartition(".")[2]: candidate for candidate in known}
        ends = difflib.get_close_matches(name.rpartition(".")[2], list(by_end), n=1, cutoff=0.7)
        found = [by_end[end] for end in ends] or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean {found[0]}?" if found else "See them all with: edge config ls"
