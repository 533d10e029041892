"""The command table."""

from __future__ import annotations

from dataclasses import replace

from edge_chat.commands import Command, Registry, Scope

__all__ = ["REGISTRY"]


def _group(name: str, *commands: Command) -> list[Command]:
    return [replace(command, group=name) for command in commands]


def _key(name: str, title: str, help: str, keys: str, scope: Scope = "chat") -> Command:
    return Command(name, title, help, keys=keys, scope=scope, is_slash=False)


REGISTRY = Registry(
    [
        *_group(
            "Writing",
            _key("send", "Send", "Send the message, or run the command.", "enter", "composer"),
            _key("newline", "New line", "Start a new line.", "shift+enter,ctrl+j,alt+enter", "composer"),
            Command(
                "talk",
                "Speak a message",
                "Listen until you pause, and send what you said; again sends at once. It interrupts a reply that is spoken.",
                keys="f5",
            ),
            Command(
                "voice",
                "Voice",
                "Turn voice on or off: spoken replies, and a key to speak; `hands-free` listens all the time.",
                argument="[on|off|hands-free]",
            ),
            Command("editor", "Write in your editor", "Open the message in $VISUAL or $EDITOR.", keys="ctrl+g"),
            Command(
                "attach",
                "Attach a file",
                "Attach a text file. `@path` inside a message does the same, and `@docs` answers from your documents.",
                argument="path",
                needs_argument=True,
                example="/attach notes.md",
            ),
        ),
        *_group(
            "Conversation",
            Command("new", "New conversation", "Start a new conversation.", aliases=("clear",), keys="ctrl+n"),
            Command(
                "conversations",
                "Conversations",
                "Show or hide the list of conversations.",
                aliases=("sidebar", "list"),
                keys="ctrl+o,f2",
            ),
            Command(
                "search",
                "Search conversations",
                "Search titles, messages and attachments of all conversations.",
                argument="[text]",
                keys="ctrl+f",
                example='/search "context window"',
            ),
            Command(
                "title",
                "Rename the conversation",
                "Rename this conversation; an empty title is replaced by the first message.",
                argument="[text]",
                aliases=("rename",),
            ),
            Command(
                "system",
                "System prompt",
                "Show or change the system prompt of this conversation.",
                argument="[text]",
                example="/system Answer in one sentence.",
            ),
            Command(
                "role",
                "Role",
                "Use one of your roles, the files in `prompts` beside the settings file, as the system prompt; `off` ends it.",
                argument="[name]",
                aliases=("persona",),
                example="/role translator",
            ),
            Command(
                "save",
                "Save to a file",
                "Save the conversation as Markdown (the messages on the screen) or JSON (all branches). /import reads both.",
                argument="[md|json] [path]",
                aliases=("export",),
                example="/save md talk.md",
            ),
            Command(
                "import",
                "Import from a file",
                "Import what /save wrote, or an export of ChatGPT or llm.",
                argument="path",
                needs_argument=True,
            ),
            Command("delete", "Delete the conversation", "Delete this conversation, after asking."),
            Command("undo", "Undo deleting", "Restore the last deleted conversation."),
            _key("list-rename", "Rename", "Rename the highlighted conversation.", "ctrl+t", "sidebar"),
            _key("list-delete", "Delete", "Delete the highlighted conversation, after asking.", "delete,ctrl+d", "sidebar"),
        ),
        *_group(
            "Messages",
            _key(
                "message-previous",
                "Previous message",
                "Select the message above; single keys then act on it.",
                "ctrl+up,alt+up",
            ),
            _key(
                "message-next",
                "Next message",
                "Select the message below; after the last one, return to the message box.",
                "ctrl+down,alt+down",
            ),
            Command(
                "stop",
                "Stop",
                "Stop the reply and keep its text; close what is open; return to the message box.",
                keys="escape",
            ),
            Command(
                "copy",
                "Copy",
                "Copy the selected message or the last answer; `code` copies its code block, `all` the conversation.",
                argument="[code|all]",
                keys="c",
                scope="message",
            ),
            Command(
                "copy-code",
                "Copy a code block",
                "Copy the last code block; again copies the one before.",
                argument="[number]",
                keys="y",
                scope="message",
            ),
            Command(
                "table",
                "See a table wide",
                "Show the last table with nothing wrapped; the arrow keys scroll. Again shows the one before.",
                argument="[number]",
                keys="t",
                scope="message",
            ),
            Command(
                "details",
                "Thoughts and tool calls",
                "Show or hide what the model thought, and the tool calls, of the selected or last message.",
                aliases=("fold",),
                keys="o",
                scope="message",
            ),
            Command(
                "open",
                "Open a passage",
                "Open the document of a passage below the selected or last answer: in your editor at its line, or its viewer.",
                argument="[number]",
                example="/open 2",
            ),
            Command(
                "regenerate",
                "Regenerate the answer",
                "Answer again, as a new branch.",
                aliases=("retry", "again"),
                keys="ctrl+r",
            ),
            Command(
                "continue",
                "Continue the answer",
                "Continue an answer that was stopped or cut off, in the same message.",
                aliases=("resume",),
                keys="g",
                scope="message",
            ),
            Command(
                "edit", "Edit a message", "Edit your selected or last message, as a new branch.", keys="e", scope="message"
            ),
            Command(
                "fork",
                "Fork the conversation",
                "Copy everything up to the selected message into a new conversation.",
                keys="f",
                scope="message",
            ),
            Command(
                "branch",
                "Next branch",
                "Show the next branch of the selected or last branched message.",
                keys_of=("branch-previous", "branch-next"),
            ),
            _key("branch-previous", "Previous branch", "Show the previous branch.", "left", "message"),
            _key("branch-next", "Next branch of the message", "Show the next branch.", "right", "message"),
        ),
        *_group(
            "Model",
            Command(
                "model",
                "Choose a model",
                "Switch to another model; it loads while you read and write.",
                argument="[name]",
                keys="f3",
                example="/model hf:owner/repo:Q4_0",
            ),
            Command(
                "set",
                "Set a parameter",
                "Set a sampling parameter for this session; without a value, show it.",
                argument="[parameter value]",
                example="/set temperature 0.2",
            ),
            Command("parameters", "Parameters", "Show and change all sampling parameters.", aliases=("params",), keys="f4"),
            Command(
                "think",
                "Think or not",
                "Have the model think before it answers, or answer at once, for this session; `auto` leaves it to the model.",
                argument="[on|off|auto]",
            ),
            Command(
                "tools",
                "Tools",
                "Show the tools that the model can call, or turn them on and off for this session.",
                argument="[on|off] [name]",
            ),
            Command(
                "lora",
                "Adapters",
                "Show the LoRA adapters, or apply some in this conversation; `none` is the model alone.",
                argument="[name:scale ...]",
                example="/lora pirate:0.5",
            ),
            Command(
                "escalate",
                "Larger model or server",
                "Show what is sent on to the next tier; `now` has it answer, `preview` shows what would leave this device.",
                argument="[action]",
                example="/escalate now",
            ),
            Command("stats", "Statistics of this conversation", "Show speed, latency and cache reuse of every answer."),
            Command("context", "Context window", "Show how full the context window is, and with which messages."),
            Command("plan", "Plan", "Show what runs where, and why: the placement receipt.", aliases=("explain",)),
        ),
        *_group(
            "View",
            Command("theme", "Theme", "Choose a dark or light theme.", argument="[name]", example="/theme light"),
            Command("plain", "Plain mode", "Turn drawing, spinners and colour-only signals off or on, for screen readers."),
            _key("scroll-up", "Page up", "Scroll the conversation up.", "pageup"),
            _key("scroll-down", "Page down", "Scroll the conversation down.", "pagedown"),
            _key("scroll-top", "To the start", "Scroll to the first message.", "ctrl+home"),
            _key("scroll-bottom", "To the end", "Scroll to the last message and stay there.", "ctrl+end"),
        ),
        *_group(
            "App",
            _key("palette", "Command palette", "Find a command by part of its name.", "ctrl+p"),
            Command(
                "help", "Help", "Show all commands, or help on one command.", argument="[command]", aliases=("h",), keys="f1"
            ),
            Command("keys", "Keys", "Show all keys and how to change them."),
            _key(
                "interrupt",
                "Copy, stop or quit",
                "Copy the selected text; otherwise stop the reply; twice quits.",
                "ctrl+c",
                "everywhere",
            ),
            Command("quit", "Quit", "Quit; everything is saved.", aliases=("exit", "q", "bye"), keys_of=("quit-now",)),
            _key("quit-now", "Quit at once", "Quit from anywhere; everything is saved.", "ctrl+q", "everywhere"),
        ),
    ]
)
