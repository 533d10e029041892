"""What the app says about itself, in words: what the model is doing, how to begin, which keys there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from edge_chat import format as fmt
from edge_chat.keys import display_key, display_keys

if TYPE_CHECKING:
    from textual.widget import Widget

    from edge.types import Sampling
    from edge_chat.app import ChatApp
    from edge_chat.model_host import ModelHost, ModelState
    from edge_chat.replies import ReplyRun
    from edge_chat.widgets.cards import ErrorCard
    from edge_chat.widgets.message import MessageView

__all__ = [
    "Unanswered",
    "about_reply",
    "activity",
    "focus_keys",
    "hints",
    "list_keys",
    "model_text",
    "short_name",
    "tips",
    "unanswered",
]


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


Unanswered = Literal["left", "stopped", "elsewhere"]
"""Why a message has no answer: the conversation was left so, the user stopped it, another process may be writing it."""


def unanswered(app: ChatApp, why: Unanswered) -> str:
    """Below a message without an answer."""
    key = app.key_display("regenerate")
    if why == "stopped":
        return f"No answer was written: it was stopped before its first word. {key} asks again."
    if why == "elsewhere":
        return f"No answer yet; the program that asked may be writing it. {key} asks here."
    return f"No answer was written (the app may have been stopped). {key} asks again."


def about_reply(run: ReplyRun, sampling: Sampling, before: str | None) -> list[str]:
    """What is to be known of how a reply came out.

    Args:
        run: the reply, when it is over.
        sampling: how its tokens were chosen.
        before: the answer that it was to differ from.
    """
    notices = []
    reply = run.reply
    if reply is not None and reply.finish_reason == "length":
        if sampling.max_tokens is not None and reply.usage.n_generated >= sampling.max_tokens:
            limit = fmt.plural(sampling.max_tokens, "token")
            notices.append(f"This answer ends at the limit you set, {limit}. /set max_tokens none takes it away.")
        else:
            notices.append("This answer is cut off: the context window is full. /context shows with what.")
    if before is not None and run.text == before and run.phase == "done":
        notices.append(f"This is the same answer as before, because {_why_same(sampling)}.")
    return notices


def _why_same(sampling: Sampling) -> str:
    if sampling.temperature == 0:
        return "temperature 0 always takes the likeliest words. /set temperature 0.7 gives others"
    if sampling.seed is not None:
        return f"the seed is fixed at {sampling.seed}. /set seed none gives others"
    return f"temperature {sampling.temperature:g} leaves little to chance. /set temperature 1 gives others"


def tips(app: ChatApp) -> list[tuple[str, str]]:
    """How to begin: (keys, what they do)."""
    return [
        (display_keys(app.keys_of("send")), "send the message"),
        (_sure_key(app.keys_of("newline")), "begin a new line"),
        ("/", "commands, such as /model and /set"),
        ("@", "attach a file by its name"),
        (app.key_display("conversations"), "your conversations"),
        (app.key_display("palette"), "find any command"),
        (app.key_display("help"), "help"),
    ]


def focus_keys(app: ChatApp, focused: Widget | None) -> list[str]:
    """The keys that work on what has the focus; while one writes where that has none of its own."""
    from edge_chat.widgets.cards import ErrorCard
    from edge_chat.widgets.message import MessageView

    if isinstance(focused, MessageView):
        return _message_keys(app, focused)
    return _card_keys(app, focused) if isinstance(focused, ErrorCard) else _writing_keys(app)


def _writing_keys(app: ChatApp) -> list[str]:
    """The keys that work while one writes."""
    return [
        f"{app.key_display('send')} send",
        f"{_sure_key(app.keys_of('newline'))} new line",
        "@ file",
        "/ command",
        f"{app.key_display('editor')} editor",
        f"{app.key_display('palette')} commands",
        f"{app.key_display('help')} help",
    ]


def _message_keys(app: ChatApp, view: MessageView) -> list[str]:
    """The keys that work on a chosen message."""
    names = ["copy", "copy-code", "regenerate", "fork"] if view.role == "assistant" else ["copy", "edit", "regenerate", "fork"]
    short = {"copy-code": "copy code"}
    shown = [f"{app.key_display(name)} {short.get(name, name)}" for name in names]
    if view.branch is not None:
        shown.append(f"{app.key_display('branch-previous')}/{app.key_display('branch-next')} branch")
    return [*shown, f"{app.key_display('stop')} write"]


def _card_keys(app: ChatApp, card: ErrorCard) -> list[str]:
    """The keys that work on a chosen error."""
    return [*(f"{key} {label[:1].lower()}{label[1:]}" for key, _, label in card.actions), f"{app.key_display('stop')} write"]


def list_keys(app: ChatApp) -> list[str]:
    """The keys that work in the list of conversations."""
    names = {"list-rename": "rename", "list-delete": "delete", "search": "search", "stop": "back"}
    return ["Enter open", *(f"{app.key_display(name)} {what}" for name, what in names.items())]


def hints(keys: list[str], width: int, *, is_plain: bool) -> str:
    """The line below the composer: as many keys as have room, the first and the last always."""
    shown = list(keys)
    separator = ", " if is_plain else " · "
    while len(shown) > 2 and len(separator.join(shown)) > width:
        shown.pop(-2)
    return separator.join(shown)


def _sure_key(keys: str) -> str:
    """The key to show of several for a new line: many terminals send for Shift+Enter what they send for Enter."""
    names = [key.strip() for key in keys.split(",")]
    return display_key(next((key for key in names if not key.endswith("enter")), names[0]))
