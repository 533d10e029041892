"""What the app says about itself, in words: what the model is doing, how to begin, which keys there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_chat.keys import display_keys

if TYPE_CHECKING:
    from edge_chat.app import ChatApp
    from edge_chat.model_host import ModelHost, ModelState

__all__ = ["activity", "hints", "model_text", "short_name", "tips"]


# What `edge.load` calls its stages, as something that is being done to a model.
_STAGES = {
    "connect": "looking for",
    "wait": "waiting for another process to fetch",
    "download": "downloading",
    "unpack": "unpacking",
    "verify": "checking",
    "planning": "planning",
    "loading": "loading",
}


def activity(state: ModelState) -> str:
    """What the model host is doing, in words."""
    if state.phase != "loading":
        return ""
    share = f", {state.share:.0%}" if state.share > 0 else ""
    return f"{_STAGES.get(state.stage, state.stage)} {short_name(state.wanted)}{share}"


def short_name(reference: str) -> str:
    """A model's reference as short as it can be told apart: the file's name of a path."""
    return reference.rpartition("/")[2] or reference


def model_text(host: ModelHost) -> str:
    """The same as a sentence for a conversation without messages."""
    state = host.state
    if state.phase == "loading":
        doing = activity(state)
        return f"{doing[:1].upper()}{doing[1:]}; you can write already."
    if host.assistant is not None:
        return f"{host.assistant.model_name} is ready."
    return "No model is loaded; choose one with /model." if state.phase == "failed" else ""


def tips(app: ChatApp) -> list[tuple[str, str]]:
    """How to begin: (keys, what they do)."""
    newline = app.keys_of("newline")
    return [
        (display_keys(app.keys_of("send")), "send the message"),
        (display_keys(newline.rpartition(",")[0] or newline), "begin a new line"),
        ("/", "commands, such as /model and /set"),
        ("@", "attach a file by its name"),
        (app.key_display("conversations"), "your conversations"),
        (app.key_display("palette"), "find any command"),
        (app.key_display("help"), "help"),
    ]


def hints(app: ChatApp, width: int) -> str:
    """The line below the composer: as many keys as have room, the first and the last always."""
    shown = [
        f"{app.key_display('send')} send",
        f"{app.key_display('newline')} new line",
        "@ file",
        "/ command",
        f"{app.key_display('editor')} editor",
        f"{app.key_display('palette')} commands",
        f"{app.key_display('help')} help",
    ]
    separator = ", " if app.is_plain else " · "
    while len(shown) > 2 and len(separator.join(shown)) > width:
        shown.pop(-2)
    return separator.join(shown)
