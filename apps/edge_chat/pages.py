"""The pages to read, as Markdown: help, keys, numbers, context, plan. Pure functions of what they show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edge_chat import format as fmt
from edge_chat.commands import GROUPS, Command, Registry
from edge_chat.keys import display_keys
from edge_chat.widgets.status import StatusValues

if TYPE_CHECKING:
    from edge.conversation import Node
    from edge.engine.governor import Limits
    from edge.plan import Plan

__all__ = ["command_help", "context", "help_page", "keys", "plan", "stats"]

KeysOf = Callable[[str], str]
"""Name of a command -> its keys, comma-separated, as the user set them."""

_SCOPES = {"message": "on a chosen message", "sidebar": "in the list of conversations"}


def help_page(registry: Registry, keys_of: KeysOf) -> str:
    """The help screen."""
    lines = [
        f"Type a message; {display_keys(keys_of('send'))} sends it, {display_keys(keys_of('newline'))} begins a new line.",
        "",
        "`/` at the beginning is a command, `@` and a part of a name attaches a file. Up and Down at the edges walk through "
        "what you sent before. A long text that you paste becomes an attachment. Begin with `//` to send a message that "
        "begins with a slash.",
        "",
        f"{display_keys(keys_of('message-previous'))} chooses a message; then single keys act on it.",
        "",
    ]
    for group in GROUPS:
        commands = [c for c in registry.slash_commands() if c.group == group]
        if commands:
            lines += [f"## {group}", "", "| Command | Keys | |", "| --- | --- | --- |"]
            lines += [f"| `{_cell(c.usage)}` | {display_keys(_keys(c, keys_of))} | {_cell(c.help)} |" for c in commands]
            lines.append("")
    return "\n".join(lines)


def _keys(command: Command, keys_of: KeysOf) -> str:
    return ",".join(filter(None, (keys_of(name) for name in (command.name, *command.keys_of))))


def command_help(command: Command, keys_of: KeysOf, scope: str) -> str:
    """Help on one command.

    Args:
        command: which.
        keys_of: as for `help_page`.
        scope: where its keys work.
    """
    keys = _keys(command, keys_of)
    lines = [f"`{command.usage}`", "", command.help, ""]
    if keys:
        lines += [f"Keys: {display_keys(keys)} {_SCOPES.get(scope, '')}".rstrip() + ".", ""]
    if command.aliases:
        lines += ["Also: " + ", ".join(f"`/{alias}`" for alias in command.aliases) + ".", ""]
    if command.example:
        lines += [f"Example: `{command.example}`", ""]
    return "\n".join(lines)


def keys(registry: Registry, keys_of: KeysOf) -> str:
    """All keys by where they work, and how to change them."""
    headings = {
        "everywhere": "Everywhere",
        "chat": "In the chat",
        "composer": "While writing",
        "message": "On a chosen message",
        "sidebar": "In the list of conversations",
    }
    lines: list[str] = []
    for scope, heading in headings.items():
        commands = [c for c in registry if c.scope == scope and keys_of(c.name)]
        lines += [f"## {heading}", "", "| Action | Keys | |", "| --- | --- | --- |"]
        lines += [f"| `{c.name}` | {display_keys(keys_of(c.name))} | {_cell(c.help)} |" for c in commands]
        lines.append("")
    lines += [
        "## To change one",
        "",
        "Name the action and its keys in the settings file (`edge config path` says where it is):",
        "",
        "```toml",
        "[chat.keys]",
        'send = "ctrl+s"',
        'newline = "enter"',
        "```",
        "",
    ]
    return "\n".join(lines)


def stats(nodes: Sequence[Node]) -> str:
    """The numbers of every answer on the active path, and of all together."""
    answers = [(node, StatusValues().with_record(node.record)) for node in nodes if node.role == "assistant"]
    measured = [(node, values) for node, values in answers if values.has_reply]
    if not measured:
        return "No answer has been measured in this conversation yet."
    lines = [
        "| # | Answer | Tokens | First token | Speed | Reused |",
        "| ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    total = reused = prompt = 0
    for number, (node, values) in enumerate(measured, 1):
        generated = values.used - values.n_prompt
        total, reused, prompt = total + generated, reused + values.n_reused, prompt + values.n_prompt
        speed = fmt.rate(values.tokens_per_s) if values.tokens_per_s else "–"
        lines.append(
            f"| {number} | {_cell(fmt.one_line(node.content, 28))} | {fmt.count(generated)} "
            f"| {fmt.seconds(values.first_token_ms)} | {speed} | {fmt.count(values.n_reused)}/{fmt.count(values.n_prompt)} |"
        )
    share = f"{100 * reused / prompt:.0f} %" if prompt else "–"
    lines += [
        "",
        f"{fmt.plural(len(measured), 'answer')}, {fmt.plural(total, 'token')} written. Of {fmt.count(prompt)} prompt tokens "
        f"{fmt.count(reused)} ({share}) were in the cache and did not have to be read again.",
        "",
    ]
    return "\n".join(lines)


def context(counted: Sequence[tuple[Node, int]], *, n_system: int, n_ctx: int, policy: str) -> str:
    """What fills the context window.

    Args:
        counted: messages of the active path with their tokens.
        n_system: tokens of the system prompt.
        n_ctx: tokens of the window.
        policy: what happens when it is full: "drop", "summarise" or "refuse".
    """
    used = n_system + sum(n for _, n in counted)
    behaviour = {
        "drop": "When it is full, the oldest messages are left out of what the model reads; you are told which.",
        "summarise": "When it is full, the oldest messages are replaced by a summary; you are told which.",
        "refuse": "When it is full, nothing more is sent until you start a new conversation.",
    }
    lines = [
        f"The messages take {fmt.count(used)} of {fmt.count(n_ctx)} tokens ({100 * used / n_ctx:.0f} %), and each a few more "
        f"for the model's own marks. {behaviour.get(policy, '')}",
        "",
    ]
    if n_system or counted:
        lines += ["| Tokens | | |", "| ---: | --- | --- |"]
        if n_system:
            lines.append(f"| {fmt.count(n_system)} | System prompt | |")
        for node, n_tokens in counted:
            who = "You" if node.role == "user" else "Answer"
            text = node.content or ", ".join(attachment.name for attachment in node.attachments)
            lines.append(f"| {fmt.count(n_tokens)} | {who} | {_cell(fmt.one_line(text, 40))} |")
        lines.append("")
    return "\n".join(lines)


def plan(receipt: Plan, notices: Sequence[str], limits: Limits | None = None) -> str:
    """The placement receipt, and what is held back of it now."""
    lines = ["| | | Why |", "| --- | --- | --- |"]
    lines += [f"| {_cell(choice.what)} | {_cell(choice.value)} | {_cell(choice.reason)} |" for choice in receipt.choices]
    memory = receipt.memory
    lines += [
        "",
        f"Memory: {fmt.n_bytes(memory.weights_bytes)} weights + {fmt.n_bytes(memory.kv_bytes)} KV cache + "
        f"{fmt.n_bytes(memory.compute_bytes)} to compute = {fmt.n_bytes(memory.total_bytes)} of "
        f"{fmt.n_bytes(memory.available_bytes)} that may be used.",
        "",
    ]
    if limits is not None and limits.note:
        lines += [f"Held back now: {limits.note} ({limits.why}).", ""]
    lines += [f"- {fmt.clean(notice)}" for notice in notices]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Text inside a Markdown table."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
