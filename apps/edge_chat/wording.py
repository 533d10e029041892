"""Texts of the app about itself: what the model and a reply are doing, first steps, key hints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from edge.tiers.address import PREFIX
from edge_chat import format as fmt
from edge_chat.keys import Keymap, display_keys
from edge_chat.widgets.empty import STAYS_HERE

if TYPE_CHECKING:
    from textual.widget import Widget

    from edge.config import Settings
    from edge.types import Sampling
    from edge_chat.model_host import ModelHost, ModelState
    from edge_chat.replies import ReplyRun

__all__ = [
    "Unanswered",
    "activity",
    "below",
    "chat_hint",
    "disk_problem",
    "farewell",
    "focus_keys",
    "hints",
    "list_keys",
    "model_text",
    "promise",
    "recent_keys",
    "reply_notices",
    "reply_state",
    "short_name",
    "tips",
    "unanswered",
]


# Stages of `edge.load` as verbs that take a model.
_STAGES = {
    "connect": "looking for",
    "wait": "waiting for another process that downloads",
    "download": "downloading",
    "unpack": "unpacking",
    "verify": "checking",
    "planning": "planning",
    "loading": "loading",
}


def activity(state: ModelState) -> str:
    """Return what the model host is doing: "loading smollm2-135m, 40%"."""
    if state.phase != "loading":
        return ""
    share = f", {state.share:.0%}" if state.share > 0 else ""
    return f"{_STAGES.get(state.stage, state.stage)} {short_name(state.wanted)}{share}"


def short_name(reference: str) -> str:
    """Return the last part of a model's reference: the file name of a path."""
    return reference.rpartition("/")[2] or reference


def model_text(host: ModelHost) -> str:
    """Return what the model host is doing, as a sentence for an empty conversation."""
    state = host.state
    if state.phase == "loading":
        doing = activity(state)
        return f"{doing[:1].upper()}{doing[1:]}; you can type already."
    if host.assistant is not None:
        return f"{host.assistant.model_name} is ready."
    return "No model is loaded; choose one with /model." if state.phase == "failed" else ""


def disk_problem(problem: str) -> str:
    """Return what a failed disk cache means. `problem` is its reason."""
    return f"The on-disk KV cache is off: {problem}. Replies still work, but prompts are processed again after a restart."


def reply_state(run: ReplyRun, keymap: Keymap) -> str:
    """Return what a reply is doing: "processing prompt, 1,024 of 3,000 tokens · Esc stops"."""
    stop = f"{keymap.display('stop')} stops"
    if run.phase == "prefill":
        done, total = run.progress
        return f"processing prompt, {done:,} of {total:,} tokens · {stop}"
    if run.reply is not None and run.reply.is_repeating:
        return f"repeats itself · {stop}"
    if run.calls and run.calls[-1][1] is None:
        return f"calling {run.calls[-1][0].name} · {stop}"
    if run.reasoning and not run.text:
        return f"thinking · {stop}"
    return f"generating · {stop}" if run.phase == "decode" else f"waiting · {stop}"


def below(state: str, n_below: int, n_new: int, keymap: Keymap, *, is_plain: bool) -> str:
    """Return what is going on out of sight: "generating · Esc stops · ↓ 34 new lines · Ctrl+End".

    Args:
        state: of the reply being generated, if its head is out of sight, as `reply_state` has it; "" otherwise.
        n_below, n_new: lines below the screen, and how many of them are new.
        keymap: the keys in force.
        is_plain: use words only.
    """
    parts = [state] if state else []
    if n_below:
        count = fmt.plural(n_new or n_below, "new line" if n_new else "line")
        parts += [f"{count} below" if is_plain else f"↓ {count}", keymap.display("scroll-bottom")]
    return (", " if is_plain else " · ").join(parts)


def chat_hint(hint: str) -> str:
    """Return the hint of an error with the command of the chat in place of that of the shell."""
    return hint.replace("See names: edge models ls", "See names: /model")


def farewell(title: str, n_messages: int, short_id: str, *, is_plain: bool) -> str:
    """Return the line for the shell: a conversation, and the command that opens it again."""
    name = fmt.clean(fmt.one_line(title, 40)) or "Untitled"
    separator = ", " if is_plain else " · "
    return separator.join((name, fmt.plural(n_messages, "message"), f"edge chat --conversation {short_id}"))


Unanswered = Literal["left", "stopped", "elsewhere"]
"""Why a message has no answer: the app was left, the user stopped it, or another process may be generating it."""


def unanswered(keymap: Keymap, why: Unanswered) -> str:
    """Return the note below a message without an answer."""
    key = keymap.display("regenerate")
    if why == "stopped":
        return f"No answer: it was stopped before its first word. {key} asks again."
    if why == "elsewhere":
        return f"No answer yet; another process may be generating it. {key} asks here."
    return f"No answer (the app may have been stopped). {key} asks again."


def reply_notices(run: ReplyRun, sampling: Sampling, before: str | None) -> list[str]:
    """Return what the user should know about a finished reply.

    Args:
        run: the reply.
        sampling: how its tokens were chosen.
        before: the answer that it replaces; None for a first answer.
    """
    notices = []
    reply = run.reply
    if reply is not None and reply.finish_reason == "length":
        if sampling.max_tokens is not None and reply.usage.n_generated >= sampling.max_tokens:
            limit = fmt.plural(sampling.max_tokens, "token")
            notices.append(
                f"This answer ends at the limit you set, {limit}. /continue goes on; /set max_tokens none removes the limit."
            )
        else:
            notices.append("This answer is cut off: the context window is full. /context shows what fills it.")
    if reply is not None and reply.finish_reason == "repetition":
        notices.append("/continue goes on; /set max_repeats 0 never stops it.")
    if before is not None and run.text == before and run.phase == "done":
        notices.append(f"This is the same answer as before, because {_why_same(sampling)}.")
    return notices


def _why_same(sampling: Sampling) -> str:
    if sampling.temperature == 0:
        return "temperature 0 always takes the likeliest token. /set temperature 0.7 gives other answers"
    if sampling.seed is not None:
        return f"the seed is fixed at {sampling.seed}. /set seed none gives other answers"
    return f"temperature {sampling.temperature:g} leaves little to chance. /set temperature 1 gives other answers"


def promise(settings: Settings) -> str:
    """Return where what is typed goes: nowhere, unless the settings name a server."""
    to = settings.escalation.to or ""
    if not to.startswith(PREFIX):
        return STAYS_HERE
    if settings.escalation.consent == "always":
        return f"A language model on this device, and {to.removeprefix(PREFIX)}, as your settings allow."
    return f"A language model on this device. You are asked before anything goes to {to.removeprefix(PREFIX)}."


def tips(keymap: Keymap) -> list[tuple[str, str]]:
    """Return the first steps: (keys, what they do)."""
    return [
        (display_keys(keymap.keys("send")), "send the message"),
        (keymap.display_newline(), "start a new line"),
        ("/", "commands, such as /model"),
        ("@", "attach a file by its name"),
        (keymap.display("conversations"), "your conversations"),
        (keymap.display("palette"), "find any command"),
        (keymap.display("help"), "help"),
    ]


def recent_keys(key: str, number: int) -> str:
    """Return how to go on with one of the last conversations, given the key that sends and their number."""
    if number < 2:
        return f"{key} opens it."
    return f"{key} opens the first; {' or '.join(str(n) for n in range(2, number + 1))} and {key}, that one."


def focus_keys(keymap: Keymap, focused: Widget | None) -> list[str]:
    """Return hints for the keys that work on the focused widget; those of the message box if it has none of its own."""
    from edge_chat.widgets.cards import ErrorCard
    from edge_chat.widgets.message import MessageView

    write = f"{keymap.display('stop')} write"
    if isinstance(focused, ErrorCard):
        return [*(f"{key} {label[:1].lower()}{label[1:]}" for key, _, label in focused.actions), "x dismiss", write]
    if isinstance(focused, MessageView):
        names = ["copy", "copy-code" if focused.role == "assistant" else "edit", "regenerate", "fork"]
        if focused.is_open:
            names.insert(0, "continue")
        shown = [f"{keymap.display(name)} {name.replace('-', ' ')}" for name in names]
        if focused.branch is not None:  # first, since the last hints are left out where there is little room
            shown.insert(0, f"{keymap.display('branch-previous')}/{keymap.display('branch-next')} branch")
        return [*shown, write]
    return [
        f"{keymap.display('send')} send",
        f"{keymap.display_newline()} new line",
        "@ file",
        "/ command",
        f"{keymap.display('editor')} editor",
        f"{keymap.display('palette')} commands",
        f"{keymap.display('help')} help",
    ]


def list_keys(keymap: Keymap) -> list[str]:
    """Return hints for the keys that work in the conversation list."""
    names = {"list-rename": "rename", "list-delete": "delete", "search": "search", "stop": "back"}
    return ["Enter open", *(f"{keymap.display(name)} {what}" for name, what in names.items())]


def hints(keys: list[str], width: int, *, is_plain: bool) -> str:
    """Join as many key hints as fit, always the first and the last."""
    shown = list(keys)
    separator = ", " if is_plain else " · "
    while len(shown) > 2 and len(separator.join(shown)) > width:
        shown.pop(-2)
    return separator.join(shown)
