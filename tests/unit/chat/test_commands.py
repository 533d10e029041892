from __future__ import annotations

import pytest

from edge.errors import UsageError
from edge_chat.actions import COMPLETERS, RUNNERS
from edge_chat.commands import GROUPS, Command, Registry, SlashLine, parse_slash
from edge_chat.table import REGISTRY

WANTED = (
    *("model", "new", "system", "set", "save", "import", "stats", "title", "search", "copy", "regenerate", "edit"),
    *("fork", "attach", "theme", "keys", "context", "plan", "help", "quit"),
)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("/new", SlashLine("new", "")),
        ("  /Model  smollm2-135m ", SlashLine("model", "smollm2-135m")),
        ("/system Be brief.\nAnd kind.", SlashLine("system", "Be brief.\nAnd kind.")),
        ("/list-rename", SlashLine("list-rename", "")),
    ],
)
def test_commands_are_read(text: str, line: SlashLine) -> None:
    assert parse_slash(text) == line


@pytest.mark.parametrize("text", ["hello", "/usr/bin/env", "//new", "/", "/ new", "/5", "a /new", "", "/etc/hosts is a file"])
def test_messages_are_not_commands(text: str) -> None:
    assert parse_slash(text) is None


@pytest.mark.parametrize("name", WANTED)
def test_every_promised_command_is_there(name: str) -> None:
    command = REGISTRY.find(name)
    assert command.help.endswith(".")
    assert command.group in GROUPS


def test_every_command_has_a_function() -> None:
    run_elsewhere = {command.name for command in REGISTRY if command.scope in ("everywhere", "composer")}
    assert {command.name for command in REGISTRY} - run_elsewhere == set(RUNNERS)
    assert all(REGISTRY[name].argument for name in COMPLETERS)


def test_aliases() -> None:
    assert REGISTRY.find("clear").name == "new"
    assert REGISTRY.find("params").name == "parameters"


def test_unknown_command_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no command /regenrate\. Did you mean /regenerate\?"):
        REGISTRY.find("regenrate")
    with pytest.raises(UsageError, match="Type /help"):
        REGISTRY.find("zzzzzz")


def test_keys_without_a_command_cannot_be_typed() -> None:
    for name in ("newline", "message-previous"):
        with pytest.raises(UsageError):
            REGISTRY.find(name)


def test_search_puts_beginnings_first() -> None:
    names = [command.name for command in REGISTRY.search("s")]
    assert set(names[:5]) == {"set", "system", "search", "save", "stats"} and "new" not in names
    assert [command.name for command in REGISTRY.search("param")] == ["parameters"]
    assert REGISTRY.search("clea")[0].name == "new"
    assert REGISTRY.search("")[0].name == "new"
    assert REGISTRY.search("qqq") == []


def test_clashes_are_refused() -> None:
    one = Command("one", "One", "One.", aliases=("uno",), group="App")
    with pytest.raises(ValueError, match="'uno'"):
        Registry([one, Command("uno", "Two", "Two.", group="App")])
    with pytest.raises(ValueError, match="no group"):
        Registry([Command("two", "Two", "Two.", group="Nowhere")])
