"""`edge config`."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from edge.config import setting_keys


@pytest.fixture
def config(own_home: Path) -> Path:
    return own_home / "config.toml"


def test_ls_shows_every_setting_with_its_origin(call: Any, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("context = 512\n")
    monkeypatch.setenv("EDGE_SAMPLING_TOP_K", "7")
    result = call("config", "ls")
    rows = {line.split()[0]: line for line in result.out.splitlines()}
    assert list(rows) == ["setting", *setting_keys()]
    assert rows["context"].split() == ["context", "512", f"{config}:1"]
    assert rows["sampling.top_k"].endswith("EDGE_SAMPLING_TOP_K")
    changed = call("config", "ls", "--changed", "--json")
    values = json.loads(changed.out)
    assert values["context"]["value"] == 512
    assert "model" not in values


def test_set_get_unset(call: Any, config: Path) -> None:
    assert call("config", "set", "sampling.temperature", "0.2").code == 0
    assert config.read_text() == "[sampling]\ntemperature = 0.2\n"
    assert call("config", "get", "sampling.temperature").out == "0.2\n"
    assert json.loads(call("config", "get", "sampling.temperature", "--json").out) == {
        "value": 0.2,
        "source": f"{config}:2",
    }
    assert call("config", "unset", "sampling.temperature").code == 0
    assert config.read_text().strip() == ""
    assert "is not set" in call("config", "unset", "sampling.temperature").err


def test_get_a_section(call: Any, config: Path) -> None:
    config.write_text("[hub]\noffline = true\n")
    result = call("config", "get", "hub")
    assert (result.code, result.out) == (0, "hub.endpoint  auto\nhub.offline   true\n")
    assert json.loads(call("config", "get", "hub", "--json").out) == {
        "hub.endpoint": {"value": None, "source": "default"},
        "hub.offline": {"value": True, "source": f"{config}:2"},
    }
    assert call("config", "get", "chat.keys").out == "{}\n"


@pytest.mark.parametrize(
    "text", ["[hub]\noffline = true\n", "hub.offline = true\n", "hub = { offline = true }\n", "[hub]\n# note\noffline = true\n"]
)
def test_unset_leaves_no_empty_section(call: Any, config: Path, text: str) -> None:
    config.write_text(f"context = 512\n{text}")
    assert call("config", "unset", "hub.offline").code == 0
    assert config.read_text() == "context = 512\n"


@pytest.mark.parametrize(
    ("key", "text", "shown"),
    [
        ("sampling.stop", '["a", "b"]', '["a", "b"]'),
        ("context", "auto", "auto"),
        ("chat.keys.quit-now", "ctrl+x", "ctrl+x"),
        ("chat.theme", "dark", "dark"),
        ("backend", "llamacpp", "llamacpp"),
        ("model", "hf:owner/repo:Q4_K_M", "hf:owner/repo:Q4_K_M"),
        ("sampling.logit_bias.5", "-inf", "-inf"),
        ("gpu_layers", "-1", "-1"),
        ("hub.offline", "yes", "true"),
        ("paths.models_dir", "/m", "/m"),
        ("system", 'Say "hi"\n# and more', 'Say "hi"\n# and more'),
    ],
)
def test_what_was_set_is_what_is_read(call: Any, key: str, text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGE_MODELS_DIR")
    assert call("config", "set", key, text).code == 0
    result = call("config", "get", key)
    assert (result.code, result.out) == (0, shown + "\n")


def test_json_has_no_infinity(call: Any) -> None:
    call("config", "set", "sampling.logit_bias.5", "-inf")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    values = json.loads(call("config", "ls", "--json").out, parse_constant=refuse)
    assert values["sampling.logit_bias"]["value"] == {"5": "-inf"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("set", "contxt", "5"), "Did you mean context?"),
        (("set", "context", "many"), "a whole number, 1 or more"),
        (("set", "sampling.top_p", "3"), "from 0 to 1"),
        (("set", "chat.keys", "x"), "chat.keys.NAME"),
        (("set", "paths.config_file", "x"), "EDGE_CONFIG"),
        (("set", "chat.keys.quit-nwo", "ctrl+x"), "Did you mean 'quit-now'?"),
        (("set", "chat.keys.quit-now", "crtl+x"), "Did you mean 'ctrl'?"),
        (("set", "chat.theme", "edge-drak"), "Did you mean edge-dark?"),
        (("set", "backend", "lamacpp"), "Did you mean llamacpp?"),
        (("set", "backend", "tensorrt"), "Known: llamacpp"),
        (("get", "samplng"), "Did you mean sampling?"),
        (("set", "sampling", "1"), "sampling is a section, not one setting."),
        (("get", "contxt"), "Did you mean context?"),
        (("unset", "contxt"), "Did you mean context?"),
    ],
)
def test_refusals_change_nothing(call: Any, config: Path, arguments: tuple[str, ...], said: str) -> None:
    result = call("config", *arguments)
    assert (result.code, result.out) == (2, "")
    assert said in result.err
    assert not config.exists()


def test_a_broken_file_can_be_mended(call: Any, config: Path) -> None:
    config.write_text("modle = 1  # oops\ncontext = 5\n")
    assert call("config", "ls").code == 2
    assert call("config", "path").out == f"{config}\n"
    assert call("config", "unset", "modle").code == 0
    assert config.read_text() == "context = 5\n"
    assert call("config", "ls").code == 0


def test_set_refuses_a_model_that_cannot_be(call: Any, config: Path) -> None:
    result = call("config", "set", "model", "smollm2-135n")
    assert (result.code, result.out) == (3, "")
    assert "Did you mean smollm2-135m?" in result.err
    assert not config.exists()


def test_keys_are_checked_with_those_that_are_set_already(call: Any, config: Path) -> None:
    assert call("config", "set", "chat.keys.quit-now", "ctrl+x").code == 0
    result = call("config", "set", "chat.keys.new", "ctrl+x")
    assert result.code == 2
    assert "ctrl+x would be both" in result.err


def test_set_works_in_a_broken_file_and_says_that_it_did_not_look(call: Any, config: Path) -> None:
    config.write_text("modle = 1\n")
    result = call("config", "set", "backend", "llamacpp")
    assert result.code == 0
    assert "was not checked" in result.err


def test_without_the_chat_app_its_names_are_not_checked_and_that_is_said(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "textual" else find(name, *rest))
    result = call("config", "set", "chat.theme", "whatever")
    assert result.code == 0
    assert "chat.theme could not be checked" in result.err


def test_a_variable_that_wins_is_named(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_CONTEXT", "9")
    monkeypatch.setenv("EDGE_CHAT_KEYS_SEARCH", "f9")
    assert "EDGE_CONTEXT is set and overrides" in call("config", "set", "context", "5").err
    assert "EDGE_CHAT_KEYS_SEARCH is set and overrides" in call("config", "set", "chat.keys.search", "f8").err
    assert "overrides" not in call("config", "set", "threads", "1").err


def test_paths_as_json(call: Any, own_home: Path) -> None:
    paths = json.loads(call("config", "path", "--json").out)
    assert paths["data_dir"] == str(own_home / "data")
    assert paths["conversations_file"] == str(own_home / "data" / "conversations.db")
