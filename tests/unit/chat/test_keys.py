from __future__ import annotations

import itertools

import pytest
from textual import events
from textual._xterm_parser import XTermParser

from edge.errors import ConfigError
from edge_chat.keys import bindings, composer_actions, display_key, display_keys, make_keymap, register_enter_sequences
from edge_chat.table import REGISTRY


def test_defaults_do_not_clash() -> None:
    together = {"everywhere": {"chat", "composer", "message", "sidebar"}, "chat": {"composer", "message", "sidebar"}}
    for one, other in itertools.combinations([c for c in REGISTRY if c.keys], 2):
        both = (
            one.scope == other.scope or other.scope in together.get(one.scope, ()) or one.scope in together.get(other.scope, ())
        )
        assert not both or not set(one.keys.split(",")) & set(other.keys.split(",")), (one.name, other.name)


def test_keymap() -> None:
    assert make_keymap(REGISTRY, {"send": "ctrl+s", "newline": "enter"}) == {"send": "ctrl+s", "newline": "enter"}
    assert make_keymap(REGISTRY, {"help": " f1 , ? "}) == {"help": "f1,?"}
    assert make_keymap(REGISTRY, {}) == {}


def test_keys_may_be_swapped() -> None:
    assert make_keymap(REGISTRY, {"copy": "e", "edit": "c"}) == {"copy": "e", "edit": "c"}


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"snd": "ctrl+s"}, "no action 'snd'. Did you mean 'send'"),
        ({"stats": "f9"}, "no action 'stats'"),
        ({"send": "crtl+s"}, "not a key. Did you mean 'ctrl'"),
        ({"send": "ctrl+"}, "not a key"),
        ({"send": ""}, "not a key"),
        ({"send": "s"}, "could not be typed"),
        ({"send": "entre"}, "Did you mean 'enter'"),
        ({"send": "ctrl+j"}, "ctrl\\+j would be both 'send' and 'newline'"),
        ({"new": "ctrl+q"}, "both 'new' and 'quit-now'"),
        ({"copy": "f1"}, "both 'copy' and 'help'"),
    ],
)
def test_bad_keys_are_refused(wanted: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_keymap(REGISTRY, wanted)


def test_the_same_key_in_two_places_is_fine() -> None:
    assert make_keymap(REGISTRY, {"copy": "r"}) == {"copy": "r"}  # r renames in the list, which is another place


def test_bindings_carry_ids_for_the_keymap() -> None:
    found = {binding.id: binding for binding in bindings(REGISTRY, "chat")}
    assert found["new"].key == "ctrl+n" and found["new"].priority and found["new"].action == "screen.command('new')"
    assert not found["stop"].priority
    assert {binding.action for binding in bindings(REGISTRY, "sidebar")} == {
        "screen.command('list-rename')",
        "screen.command('list-delete')",
    }


def test_keys_of_the_composer() -> None:
    assert composer_actions(REGISTRY, {})["enter"] == "send"
    assert composer_actions(REGISTRY, {})["shift+\r"] == "newline"
    changed = composer_actions(REGISTRY, {"send": "ctrl+s", "newline": "enter"})
    assert changed == {"ctrl+s": "send", "enter": "newline"}


def test_names_of_keys() -> None:
    assert display_key("ctrl+j") == "Ctrl+J"
    assert display_key("f1") == "F1"
    assert display_key("escape") == "Esc"
    assert display_key("c") == "c"
    assert display_keys("shift+enter,ctrl+j,alt+enter") == "Shift+Enter, Ctrl+J or Alt+Enter"
    assert display_keys("") == ""


@pytest.mark.parametrize(
    ("sent", "key"),
    [("\x1b\r", "alt+enter"), ("\x1b[13;2u", "shift+enter"), ("\n", "ctrl+j"), ("\r", "enter"), ("\x1b[13;3u", "alt+enter")],
)
def test_what_terminals_send_for_the_enter_keys(sent: str, key: str) -> None:
    register_enter_sequences()
    found = [token for token in XTermParser().feed(sent) if isinstance(token, events.Key)]
    assert [event.key for event in found] == [key]
