"""Settings: who wins, what is refused and what the refusal says."""

from __future__ import annotations

import dataclasses
import os
import pwd
import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.config import Settings, find_key, get_value, load_settings, parse_text, setting_keys, split_key
from edge.config.toml import read_toml, set_in_file, unset_in_file
from edge.errors import ConfigError, StorageError, UsageError
from edge.files import make_private_dir, open_file, write_private
from edge.types import Sampling


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "settings.toml"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path, text: str) -> ConfigError:
    """The error that this settings file causes."""
    with pytest.raises(ConfigError) as caught:
        load_settings(path=write(path, text), environ={})
    return caught.value


# Who wins


def test_defaults_are_those_of_the_structs() -> None:
    settings = load_settings(environ={})
    assert settings.model == "smollm2-135m"
    assert settings.sampling == Sampling()
    assert set(settings.sources.values()) == {"default"}


def test_flag_beats_environment_beats_file_beats_default(config: Path) -> None:
    write(config, 'model = "from-file"\ncontext = 100\nthreads = 1\n')
    environ = {"EDGE_CONTEXT": "200", "EDGE_THREADS": "2"}
    settings = load_settings({"threads": 3}, environ=environ, path=config)
    assert (settings.model, settings.context, settings.threads) == ("from-file", 200, 3)
    assert settings.sources["model"] == f"{config}:1"
    assert settings.sources["context"] == "EDGE_CONTEXT"
    assert settings.sources["threads"] == "command line"
    assert settings.sources["window"] == "default"


def test_a_flag_of_none_is_not_given_and_auto_is_none(config: Path) -> None:
    write(config, "context = 100\nthreads = 4\n")
    settings = load_settings({"context": None, "threads": "auto"}, environ={}, path=config)
    assert (settings.context, settings.threads) == (100, None)


def test_an_empty_variable_is_not_set(config: Path) -> None:
    write(config, "context = 100\n")
    assert load_settings(environ={"EDGE_CONTEXT": ""}, path=config).context == 100


def test_every_key_can_be_set_by_its_variable() -> None:
    """The names are worked out from the structs; none may collide, and each must arrive where it belongs."""
    samples = {bool: "true", int: "7", float: "1", Path: "/somewhere"}
    variables = [key.variable for key in setting_keys().values()]
    assert len(set(variables)) == len(variables)
    for name, key in setting_keys().items():
        if key.is_free or name == "paths.config_file":
            continue
        text = next((samples[kind] for kind in samples if key.type is kind), None)
        if text is None:
            least = re.search(r"number from ([\d.]+) to", key.allowed)
            text = least[1] if least else "7" if "number" in key.allowed else "word"
            text = key.allowed.split('"')[1] if text == "word" and '"' in key.allowed else text
        settings = load_settings(environ={key.variable: text})
        assert settings.sources[name] == key.variable
        assert get_value(settings, name) == parse_text(name, text, "test")


def test_nested_and_free_tables_from_the_environment(config: Path) -> None:
    write(config, '[chat.keys]\nquit = "ctrl+x"\nhelp = "f1"\n[sampling.logit_bias]\n5 = -1\n')
    environ = {
        "EDGE_SAMPLING_TEMPERATURE": "0",
        "EDGE_CHAT_THEME": "nord",
        "EDGE_CHAT_KEYS_NEW_CONVERSATION": "ctrl+n",
        "EDGE_CHAT_KEYS_QUIT": "ctrl+q",
        "EDGE_SAMPLING_LOGIT_BIAS_12": "-inf",
    }
    settings = load_settings(environ=environ, path=config)
    assert settings.sampling.temperature == 0.0
    assert settings.chat.theme == "nord"
    assert settings.chat.keys == {"quit": "ctrl+q", "help": "f1", "new_conversation": "ctrl+n"}
    assert settings.sampling.logit_bias == {5: -1.0, 12: float("-inf")}
    assert get_value(settings, "chat.keys.help") == "f1"
    assert get_value(settings, "sampling.logit_bias.5") == -1.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [("###", ("###",)), ('["a", "\\n\\n"]', ("a", "\n\n")), ("a,b", ("a,b",)), ("[]", ())],
)
def test_a_list_in_a_variable_is_json_or_one_text(text: str, expected: tuple[str, ...]) -> None:
    assert load_settings(environ={"EDGE_SAMPLING_STOP": text}).sampling.stop == expected


@pytest.mark.parametrize(("text", "expected"), [("1", True), ("yes", True), ("ON", True), ("0", False), ("off", False)])
def test_yes_and_no_in_a_variable(text: str, expected: bool) -> None:
    assert load_settings(environ={"EDGE_HUB_OFFLINE": text}).hub.offline is expected


def test_the_hubs_own_variables_count_below_ours() -> None:
    environ = {"HF_ENDPOINT": "http://a", "HF_HUB_OFFLINE": "1"}
    settings = load_settings(environ=environ)
    assert (settings.hub.endpoint, settings.hub.offline) == ("http://a", True)
    assert load_settings(environ={**environ, "EDGE_HUB_ENDPOINT": "http://b"}).hub.endpoint == "http://b"


def test_reserved_variables_are_tolerated() -> None:
    load_settings(environ={"EDGE_TEST_MODEL": "/m.gguf", "EDGE_TEST_ANYTHING": "x", "EDGE_DEBUG": "1"})


def test_a_whole_number_is_a_number(config: Path) -> None:
    settings = load_settings(path=write(config, "[sampling]\ntemperature = 1\n"), environ={})
    assert settings.sampling.temperature == 1.0
    assert isinstance(settings.sampling.temperature, float)


# Directories


def test_models_follow_the_data_directory_unless_set(tmp_path: Path) -> None:
    environ = {"EDGE_DATA_DIR": str(tmp_path / "d")}
    assert load_settings(environ=environ).paths.models_dir == tmp_path / "d" / "models"
    environ["EDGE_MODELS_DIR"] = str(tmp_path / "m")
    assert load_settings(environ=environ).paths.models_dir == tmp_path / "m"


def test_paths_in_a_file_are_relative_to_it(config: Path) -> None:
    write(config, '[paths]\ndata_dir = "here"\ncache_dir = "~/cache"\n')
    paths = load_settings(path=config, environ={}).paths
    assert paths.data_dir == config.parent / "here"
    assert paths.models_dir == config.parent / "here" / "models"
    assert paths.cache_dir == Path.home() / "cache"
    assert paths.config_file == config


def test_settings_made_directly_have_directories(own_home: Path) -> None:
    paths = Settings().paths
    assert (paths.data_dir, paths.config_file) == (own_home / "data", own_home / "config.toml")


# Refusals


@pytest.mark.parametrize(
    ("text", "line", "hint"),
    [
        ('modle = "x"', 1, "model"),
        ("# comment\n\n[sampling]\n# more\ntemprature = 1", 5, "sampling.temperature"),
        ("temperature = 1", 1, "sampling.temperature"),
        ("sampling.topk = 3", 1, "sampling.top_k"),
        ('system = """\nmodle = 1\n"""\ncontxt = 5', 4, "context"),
        ("[smapling]\ntemperature = 1", 1, "sampling"),
        ('[chat]\nthem = "nord"', 2, "chat.theme"),
    ],
)
def test_an_unknown_key_is_refused_with_its_line_and_the_nearest(config: Path, text: str, line: int, hint: str) -> None:
    error = refusal(config, text)
    assert error.message.startswith(f"{config}:{line}: there is no setting ")
    assert hint in error.hint
    assert error.exit_code == 2


@pytest.mark.parametrize(
    ("text", "line", "said", "allowed"),
    [
        ('context = "lots"', 1, 'context cannot be "lots"', 'a whole number, 1 or more, or "auto"'),
        ("context = 0", 1, "context cannot be 0", "1 or more"),
        ("[kv]\nbudget_gb = inf", 2, "kv.budget_gb", "a number from 0 to"),
        ("[kv]\nmin_free_gb = nan", 2, "kv.min_free_gb", "a number from 0 to"),
        ("[kv]\nbudget_gb = 1e300", 2, "kv.budget_gb", "a number from 0 to"),
        ("context = true", 1, "context cannot be true", "a whole number"),
        ('window = "forget"', 1, 'window cannot be "forget"', '"drop", "refuse", "summarise"'),
        ("kv_type_k = 8", 1, "kv_type_k cannot be 8", '"f16", "f32", "q4_0", "q8_0"'),
        ('[sampling]\ntop_k = "many"', 2, "sampling.top_k", "a whole number"),
        ('[sampling]\ntop_p = "0.5"', 2, "sampling.top_p", "a number"),
        ("[sampling]\ntop_p = 1.5", 2, "top_p is 1.5", "from 0 to 1"),
        ('[sampling]\nstop = "x"', 2, "sampling.stop", "a list, each a text"),
        ("[chat.keys]\nquit = 3", 1, "chat.keys", "each entry a text"),
        ("sampling = 3", 1, "sampling is a table", "[sampling]"),
        ('[hub]\noffline = "maybe"', 2, "hub.offline", "true or false"),
        ("[paths]\ndata_dir = 3", 2, "paths.data_dir", "a path"),
        ('[paths]\nconfig_file = "x"', 2, "cannot say where it is", "EDGE_CONFIG"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(config: Path, text: str, line: int, said: str, allowed: str) -> None:
    error = refusal(config, text)
    assert error.message.startswith(f"{config}:{line}: ")
    assert said in error.message
    assert allowed in error.hint


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("EDGE_MODLE", "EDGE_MODEL"),
        ("EDGE_SAMPLING_TEMPRATURE", "EDGE_SAMPLING_TEMPERATURE"),
        ("EDGE_PATHS_DATA_DIR", "EDGE_DATA_DIR"),
        ("EDGE_DEBGU", "EDGE_DEBUG"),
    ],
)
def test_an_unknown_variable_is_refused_with_the_nearest(variable: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=variable) as caught:
        load_settings(environ={variable: "1"})
    assert f"Did you mean {hint}?" in caught.value.hint


@pytest.mark.parametrize(
    ("variable", "text", "said"),
    [
        ("EDGE_THREADS", "many", "EDGE_THREADS: threads cannot be"),
        ("EDGE_SAMPLING_TOP_P", "2", "EDGE_SAMPLING_TOP_P: top_p is 2.0"),
        ("EDGE_SAMPLING_TEMPERATURE", "nan", "temperature is nan"),
        ("EDGE_SAMPLING_STOP", '["a"', "sampling.stop is not a list"),
        ("EDGE_SAMPLING_LOGIT_BIAS_X", "1", "sampling.logit_bias cannot be"),
        ("EDGE_HUB_OFFLINE", "perhaps", "hub.offline cannot be"),
    ],
)
def test_a_wrong_variable_is_named(variable: str, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(environ={variable: text})
    assert said in caught.value.message
    assert caught.value.message.startswith(variable)


def test_an_unknown_flag_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"command line: There is no setting 'sampling\.tempo'"):
        load_settings({"sampling.tempo": 1}, environ={})


def test_a_file_that_is_not_toml_says_where(config: Path) -> None:
    error = refusal(config, "model = 'x'\nthis is not toml\n")
    assert str(config) in error.message
    assert "line 2" in error.message


def test_a_file_that_is_not_text_or_far_too_long(config: Path) -> None:
    config.write_bytes(b"model = '\xff'")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_toml(config)
    config.write_bytes(b"#" * (2 << 20))
    with pytest.raises(ConfigError, match="longer than a settings file"):
        read_toml(config)
    with pytest.raises(StorageError, match="cannot be read"):
        read_toml(config.parent)


def test_a_file_named_explicitly_must_exist(config: Path) -> None:
    with pytest.raises(ConfigError, match="There is no settings file"):
        load_settings(path=config, environ={})
    assert load_settings(environ={"EDGE_CONFIG": str(config)}).paths.config_file == config


@given(text=st.text(max_size=200))
def test_any_text_gives_settings_or_our_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("any") / "c.toml"
    path.write_text(text, encoding="utf-8", errors="replace", newline="")
    try:
        load_settings(path=path, environ={})
    except ConfigError as error:
        assert str(path) in error.message


@given(value=st.floats() | st.integers() | st.text(max_size=5) | st.booleans() | st.lists(st.integers(), max_size=2))
def test_any_value_of_a_flag_is_taken_or_refused_by_name(value: object) -> None:
    for field in dataclasses.fields(Sampling):
        try:
            load_settings({f"sampling.{field.name}": value}, environ={})
        except UsageError as error:
            assert error.message.startswith("command line: ")


# Writing


def test_setting_a_key_keeps_comments_and_order(config: Path) -> None:
    before = '# mine\nmodel = "a"  # the small one\n\n[sampling]\n# calm\ntemperature = 0.2\n'
    write(config, before)
    set_in_file(config, split_key("sampling.temperature"), 0.5)
    assert config.read_text() == before.replace("0.2", "0.5")
    set_in_file(config, split_key("context"), 512)
    set_in_file(config, split_key("chat.keys.quit"), "ctrl+q")
    settings = load_settings(path=config, environ={})
    assert (settings.model, settings.context, settings.chat.keys) == ("a", 512, {"quit": "ctrl+q"})
    assert "# mine" in config.read_text() and "# calm" in config.read_text()


def test_unsetting_removes_the_key_and_empty_tables(config: Path) -> None:
    write(config, 'model = "a"\n\n[chat.keys]\nquit = "x"\n')
    assert unset_in_file(config, split_key("chat.keys.quit"))
    assert not unset_in_file(config, split_key("chat.keys.quit"))
    assert not unset_in_file(config, ("model", "name"))
    assert config.read_text().strip() == 'model = "a"'


def test_a_new_file_is_private_and_so_is_its_directory(tmp_path: Path) -> None:
    path = tmp_path / "new" / "config.toml"
    set_in_file(path, split_key("model"), "a")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path]


def test_a_linked_file_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real.toml", tmp_path / "link.toml"
    write(real, 'model = "a"\n')
    link.symlink_to(real)
    set_in_file(link, split_key("model"), "b")
    assert link.is_symlink()
    assert real.read_text() == 'model = "b"\n'


# The home directory, users and the current directory


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without an entry in the system's list, as in containers, and without HOME."""

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", *(name for name in os.environ if name.startswith("XDG_"))):
        monkeypatch.delenv(name, raising=False)


def test_no_home_is_needed_where_every_path_is_given(no_home: None, config: Path, tmp_path: Path) -> None:
    variables = {"EDGE_DATA_DIR": str(tmp_path / "d"), "EDGE_CACHE_DIR": str(tmp_path / "c"), "EDGE_CONFIG": str(config)}
    assert load_settings(environ=variables).paths.models_dir == tmp_path / "d/models"
    write(config, f"[paths]\ndata_dir = '{tmp_path}/d'\ncache_dir = '{tmp_path}/c'\n")
    assert load_settings(environ={"EDGE_CONFIG": str(config)}).paths.cache_dir == tmp_path / "c"


@pytest.mark.parametrize("missing", ["EDGE_DATA_DIR", "EDGE_CACHE_DIR", "EDGE_CONFIG"])
def test_without_a_home_the_missing_path_is_named(no_home: None, tmp_path: Path, missing: str) -> None:
    variables = {name: str(tmp_path / name) for name in ("EDGE_DATA_DIR", "EDGE_CACHE_DIR", "EDGE_CONFIG") if name != missing}
    with pytest.raises(ConfigError, match=r"home directory is unknown.* paths\.\w") as caught:
        load_settings(environ=variables)
    assert missing in caught.value.hint
    assert "HOME" in caught.value.hint


@pytest.mark.parametrize("variable", ["EDGE_DATA_DIR", "EDGE_CACHE_DIR", "EDGE_MODELS_DIR", "EDGE_CONFIG"])
def test_the_home_of_nobody_is_refused_by_name(variable: str) -> None:
    with pytest.raises(ConfigError, match=rf"{variable}: .*'~nobody2/x' leads nowhere: there is no user 'nobody2'"):
        load_settings(environ={variable: "~nobody2/x"})
    with pytest.raises(ConfigError, match="there is no user 'nobody2'"):
        parse_text("paths.cache_dir", "~nobody2/x", "--set")


def test_a_relative_path_in_a_directory_that_was_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for variable in ("EDGE_DATA_DIR", "EDGE_CACHE_DIR", "EDGE_CONFIG"):
        with pytest.raises(
            ConfigError, match=rf"{variable}: .*'d' is relative to the current directory, which no longer exists"
        ):
            load_settings(environ={variable: "d"})
    assert load_settings().paths.data_dir.is_absolute()


@pytest.fixture
def special(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """Files that are not ordinary ones: a FIFO, a socket, a directory, the null device, and a link to the FIFO."""
    folder = tmp_path / "special"
    folder.mkdir()
    os.mkfifo(folder / "fifo")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket"))
    (folder / "directory").mkdir()
    (folder / "link").symlink_to(folder / "fifo")
    yield {"device": Path(os.devnull), **{path.name: path for path in folder.iterdir()}}
    listener.close()


@pytest.mark.parametrize("kind", ["fifo", "socket", "directory", "link"])
def test_only_an_ordinary_file_is_read_and_nothing_is_waited_for(special: dict[str, Path], kind: str) -> None:
    path = special[kind]
    with pytest.raises(StorageError, match=f"{re.escape(str(path))} cannot be read: it is a ") as caught:
        load_settings(environ={"EDGE_CONFIG": str(path)})
    assert "EDGE_CONFIG" in caught.value.hint
    with pytest.raises(OSError, match="it is a "):
        open_file(path)


def test_the_null_device_is_an_empty_settings_file(special: dict[str, Path]) -> None:
    assert load_settings(environ={"EDGE_CONFIG": os.devnull}).context is None
    with open_file(special["device"]) as file:
        assert file.read() == b""
    with pytest.raises(StorageError, match="it is a device"):
        load_settings(environ={"EDGE_CONFIG": "/dev/zero"})


@pytest.mark.parametrize(
    "arguments",
    [
        {"flags": 5}, {"flags": "context"}, {"flags": [("context", 1)]}, {"flags": {5: 1}}, {"environ": 5},
        {"environ": {"EDGE_CONTEXT": 5}}, {"path": 5}, {"path": b"/x"}, {"path": "a\0b"}, {"environ": {"EDGE_CONFIG": "a\0b"}},
        {"flag_names": 5}, {"flag_names": {"context": 5}},
    ],
)  # fmt: skip
def test_arguments_of_another_type_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises((UsageError, StorageError)) as caught:
        load_settings(**arguments)
    assert caught.value.hint


@pytest.mark.parametrize("kind", ["device", "fifo", "socket", "directory", "link"])
def test_only_an_ordinary_file_is_replaced(special: dict[str, Path], kind: str) -> None:
    path = special[kind]
    before = path.lstat()
    for change in (
        lambda: set_in_file(path, split_key("context"), 512),
        lambda: unset_in_file(path, split_key("context")),
        lambda: write_private(path, b"new"),
    ):
        with pytest.raises(StorageError, match=f"{re.escape(str(path))} is a .*not replaced") as caught:
            change()
        assert "ordinary file" in caught.value.hint
    after = path.lstat()
    assert (after.st_mode, after.st_ino, after.st_dev) == (before.st_mode, before.st_ino, before.st_dev)


def test_a_link_to_nothing_gives_the_file_it_names(tmp_path: Path) -> None:
    (tmp_path / "link.toml").symlink_to(tmp_path / "real.toml")
    set_in_file(tmp_path / "link.toml", split_key("context"), 512)
    assert (tmp_path / "link.toml").is_symlink()
    assert (tmp_path / "real.toml").read_text() == "context = 512\n"


def test_a_text_that_is_not_utf_8_is_not_written(config: Path) -> None:
    write(config, 'model = "a"\n')
    for parts in (("system",), ("chat", "keys", "caf\udce9")):
        with pytest.raises(ConfigError, match=r"not UTF-8 text: .*caf.udce9") as caught:
            set_in_file(config, parts, "caf\udce9")
        assert "TOML is UTF-8" in caught.value.hint
    assert config.read_text() == 'model = "a"\n'


def test_a_failed_write_leaves_the_old_file_and_no_other(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(config, 'model = "a"\n')

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        write_private(config, b"new")
    assert config.read_text() == 'model = "a"\n'
    assert list(config.parent.iterdir()) == [config]


def test_editing_a_broken_file_is_refused(config: Path) -> None:
    write(config, "= broken")
    with pytest.raises(ConfigError, match="not a TOML file"):
        set_in_file(config, split_key("model"), "a")
    write(config, "sampling = 3\n")
    with pytest.raises(ConfigError, match="not a table"):
        set_in_file(config, split_key("sampling.top_k"), 3)


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    write(tmp_path / "file", "")
    with pytest.raises(StorageError, match="cannot be made"):
        make_private_dir(tmp_path / "file" / "below")


def test_find_key() -> None:
    assert find_key("chat.keys.quit").name == "chat.keys"
    assert split_key("chat.keys.a.b") == ("chat", "keys", "a.b")
    assert find_key("context").is_optional
    assert not find_key("model").is_optional
    with pytest.raises(ConfigError, match=r"no setting 'chat\.keys\.'"):
        find_key("chat.keys.")


def test_the_page_on_settings_has_every_one_with_its_variable_and_default() -> None:
    page = (Path(__file__).parents[3] / "docs" / "config.md").read_text(encoding="utf-8")
    lines = [line.split("|") for line in page.splitlines() if line.startswith("| `")]
    rows = {cells[1].strip(" `"): cells for cells in lines}
    settings = load_settings(environ={})
    assert list(rows) == list(setting_keys())
    for name, key in setting_keys().items():
        assert f"`{key.variable}" in rows[name][2]
        value = get_value(settings, name)
        if value is None:
            assert rows[name][4].strip() == "`auto`"
        elif isinstance(value, (bool, int, float)):
            assert rows[name][4].strip(" `") == str(value).lower()
