"""The pages to read, as Markdown: help, keys, statistics, context, plan. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len

from edge.units import duration_text, size_text
from edge_chat import format as fmt
from edge_chat import wording
from edge_chat.commands import GROUPS, Command, Registry
from edge_chat.keys import display_keys
from edge_chat.markup.tables import GAP
from edge_chat.widgets.rows import fit
from edge_chat.widgets.status import StatusValues

if TYPE_CHECKING:
    from edge.conversation import Node
    from edge.engine.governor import Limits
    from edge.plan import Plan

__all__ = ["command_help", "context", "help_page", "keys", "literal", "plan", "stats"]

KeysOf = Callable[[str], str]
"""Command name -> its keys, comma-separated, as the user set them."""

_LEAST_QUOTED, _QUOTED = 12, 24  # cells of a text in a table: below the first it gets the second, and is wrapped
_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]")
_SCOPES = {"message": "on a selected message", "sidebar": "in the list of conversations"}


def help_page(registry: Registry, keys_of: KeysOf) -> str:
    """Return the help page."""
    lines = [
        f"Type a message; {display_keys(keys_of('send'))} sends it, {display_keys(keys_of('newline'))} starts a new line.",
        "",
        "`/` at the start is a command, `@` and part of a name attaches a file. Up in the first line and Down in the last go "
        "through your earlier messages. A long pasted text becomes an attachment. Start with `//` to send a message that "
        "starts with a slash.",
        "",
        f"{display_keys(keys_of('message-previous'))} selects a message; single keys then act on it.",
        "",
    ]
    for group in GROUPS:
        commands = [c for c in registry.slash_commands() if c.group == group]
        if commands:
            lines += [f"## {group}", "", "| Command | Keys | What it does |", "| --- | --- | --- |"]
            lines += [f"| `{_cell(c.usage)}` | {display_keys(_keys(c, keys_of))} | {_cell(c.help)} |" for c in commands]
            lines.append("")
    return "\n".join(lines)


def _keys(command: Command, keys_of: KeysOf) -> str:
    return ",".join(filter(None, (keys_of(name) for name in (command.name, *command.keys_of))))


def command_help(command: Command, keys_of: KeysOf, scope: str) -> str:
    """Return the help on one command, whose keys work in `scope`."""
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
    """Return all keys by scope, and how to change them."""
    headings = {
        "everywhere": "Everywhere",
        "chat": "In the chat",
        "composer": "In the message box",
        "message": "On a selected message",
        "sidebar": "In the list of conversations",
    }
    lines: list[str] = []
    for scope, heading in headings.items():
        commands = [c for c in registry if c.scope == scope and keys_of(c.name)]
        lines += [f"## {heading}", "", "| Action | Keys | What it does |", "| --- | --- | --- |"]
        lines += [f"| `{c.name}` | {display_keys(keys_of(c.name))} | {_cell(c.help)} |" for c in commands]
        lines.append("")
    lines += [
        "## Changing a key",
        "",
        "Name the action and its keys in the settings file (`edge config path` prints its path):",
        "",
        "```toml",
        "[chat.keys]",
        'send = "ctrl+s"',
        'newline = "enter"',
        "```",
        "",
    ]
    return "\n".join(lines)


def stats(nodes: Sequence[Node], width: int) -> str:
    """Return the figures of every answer on the active path, and their totals.

    Args:
        nodes: the active path.
        width: cells of a line; the beginnings of the answers get what the figures leave.
    """
    answers = [(node, StatusValues().with_record(node.record)) for node in nodes if node.role == "assistant"]
    measured = [(node, values) for node, values in answers if values.has_reply]
    if not measured:
        return "No answer in this conversation has been measured yet."
    rows: list[Sequence[str]] = []
    total = reused = prompt = 0
    for number, (node, values) in enumerate(measured, 1):
        generated = values.used - values.n_prompt
        total, reused, prompt = total + generated, reused + values.n_reused, prompt + values.n_prompt
        speed = fmt.rate(values.tokens_per_s) if values.tokens_per_s else "–"
        first_token, reuse = duration_text(values.first_token_ms / 1000), f"{values.n_reused:,}/{values.n_prompt:,}"
        rows.append((str(number), node.content, f"{generated:,}", first_token, speed, reuse))
    lines = _table(("#:", "Answer", "Tokens:", "First token:", "Speed:", "Reused:"), rows, width, 1)
    share = f"{100 * reused / prompt:.0f} %" if prompt else "–"
    lines += [
        "",
        f"{fmt.plural(len(measured), 'answer')}, {fmt.plural(total, 'token')} generated. Of {prompt:,} prompt tokens, "
        f"{reused:,} ({share}) came from the KV cache.",
        "",
    ]
    return "\n".join(lines)


def context(counted: Sequence[tuple[Node, int]], width: int, *, system: str, n_system: int, n_ctx: int, policy: str) -> str:
    """Return what fills the context window.

    Args:
        counted: messages of the active path with their tokens.
        width: cells of a line; the beginnings of the messages get what the figures leave.
        system: the system prompt.
        n_system: its tokens.
        n_ctx: tokens of the window.
        policy: the setting `window`: "drop", "summarise" or "refuse".
    """
    used = n_system + sum(n for _, n in counted)
    behaviour = {
        "drop": "When it is full, the oldest messages are left out of the prompt; a notice says which.",
        "summarise": "When it is full, a summary replaces the oldest messages; a notice says which.",
        "refuse": "When it is full, nothing more is sent until you start a new conversation.",
    }
    lines = [
        f"The messages take {used:,} of {n_ctx:,} tokens ({100 * used / n_ctx:.0f} %), plus a few for the chat template. "
        f"{behaviour.get(policy, '')}",
        "",
    ]
    rows = [(f"{n_system:,}", "System prompt", system)] if n_system else []
    for node, n_tokens in counted:
        text = node.content or ", ".join(attachment.name for attachment in node.attachments)
        rows.append((f"{n_tokens:,}", "You" if node.role == "user" else "Answer", text))
    if rows:
        lines += [*_table(("Tokens:", "From", "Text"), rows, width, 2), ""]
    return "\n".join(lines)


def plan(receipt: Plan, notices: Sequence[str], limits: Limits | None = None, disk_problem: str | None = None) -> str:
    """Return the placement receipt, the current throttling and the state of the disk cache."""
    lines = ["| What | Choice | Why |", "| --- | --- | --- |"]
    lines += [f"| {_cell(choice.what)} | {_cell(choice.value)} | {_cell(choice.reason)} |" for choice in receipt.choices]
    memory = receipt.memory
    draft = f" + {size_text(memory.draft_bytes)} draft model" if memory.draft_bytes else ""
    prefill = f" + {size_text(memory.prefill_bytes)} prefill engine" if memory.prefill_bytes else ""
    lines += [
        "",
        f"Memory: {size_text(memory.weights_bytes)} weights + {size_text(memory.kv_bytes)} KV cache + "
        f"{size_text(memory.compute_bytes)} working buffers{draft}{prefill} = {size_text(memory.total_bytes)} of "
        f"{size_text(memory.available_bytes)} available.",
        "",
    ]
    if limits is not None and limits.note:
        lines += [f"Throttled now: {limits.note} ({limits.why}).", ""]
    if disk_problem is not None:
        lines += [wording.disk_problem(disk_problem), ""]
    lines += [f"- {fmt.clean(notice)}" for notice in notices]
    return "\n".join(lines)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], width: int, quoted: int) -> list[str]:
    """Return a Markdown table in which one column has the beginnings of longer texts, each on one line.

    Args:
        headings: of the columns; a colon at the end aligns the column to the right.
        rows: as many cells each.
        width: cells of a line.
        quoted: number of the column with the texts.
    """
    names = [heading.rstrip(":") for heading in headings]
    others = [max(map(cell_len, column)) for n, column in enumerate(zip(names, *rows, strict=True)) if n != quoted]
    room = width - sum(others) - len(GAP) * len(others)
    room = room if room >= _LEAST_QUOTED else _QUOTED  # else it wraps, or each row becomes a record
    rules = ["---:" if heading.endswith(":") else "---" for heading in headings]
    lines = [f"| {' | '.join(cells)} |" for cells in (names, rules)]
    for row in rows:
        cells = [literal(fit(" ".join(text.split()), room)) if n == quoted else text for n, text in enumerate(row)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def literal(text: str) -> str:
    """Escape a text so that Markdown shows it as it is, in a cell too. A backslash would begin a formula in `\\(`."""
    return _PUNCTUATION.sub(lambda found: f"&#{ord(found[0])};", text)


def _cell(text: str) -> str:
    """Escape a text for a cell of a Markdown table."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
