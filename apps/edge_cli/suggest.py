"""The command that was probably meant: other programs' words for it, its name in another group, or a similar one."""

from __future__ import annotations

import difflib

import click

__all__ = ["explain", "suggest"]

_CUTOFF = 0.66
"""Of difflib: "chta" is near "chat", and "help" is not near "eval"."""

_MAX_SUGGESTED = 4

_SYNONYMS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("list", "ls"), ("ls",)),
    **dict.fromkeys(("rm", "remove", "delete", "del", "uninstall"), ("rm", "forget", "unset")),
    **dict.fromkeys(("pull", "download", "fetch", "install"), ("pull",)),
    **dict.fromkeys(("show", "info", "view", "cat", "describe"), ("show", "get", "stats")),
    **dict.fromkeys(("edit", "change"), ("set",)),
    **dict.fromkeys(("find", "grep"), ("search",)),
    **dict.fromkeys(("logs", "log", "history", "chats", "sessions"), ("conversations",)),
    **dict.fromkeys(("ask", "prompt", "query", "generate", "complete"), ("run",)),
    **dict.fromkeys(("quantize", "quantise", "create"), ("convert",)),
    **dict.fromkeys(("repl", "tui"), ("chat",)),
    **dict.fromkeys(("settings", "options"), ("config",)),
    **dict.fromkeys(("cp", "copy", "alias", "tag"), ("add",)),
    "get": ("show",),
    "cache": ("kv",),
    "benchmark": ("bench",),
    "evaluate": ("eval",),
    "gpu": ("devices",),
    "prune": ("gc",),
    "backup": ("export",),
    "restore": ("import",),
}
"""What others call a command (Ollama, llm, mods, aichat, docker) -> its names here, the likeliest first."""


_NO_SERVICE = "Nothing runs in the background: edge chat and edge run load the model themselves; edge serve runs until Ctrl-C."
_EXPLAINED = {
    **dict.fromkeys(("start", "stop", "ps", "unload"), _NO_SERVICE),
    **dict.fromkeys(("update", "upgrade"), "Update it with: pip install --upgrade edge-assistant"),
    **dict.fromkeys(("login", "auth"), "Models that need an account: hf auth login, or set HF_TOKEN."),
}
"""What others have a command for, and edge does not."""


def explain(name: str) -> str:
    """Return why edge has no command of that name; "" if there is nothing to say."""
    return _EXPLAINED.get(name.lower(), "")


def suggest(ctx: click.Context, group: click.Group, name: str) -> list[str]:
    """Return the command lines that an unknown name may mean: "edge models ls".

    Args:
        ctx: of the group.
        group: that does not know the name.
        name: as typed.
    """
    known = group.list_commands(ctx)
    words = dict.fromkeys([name.lower(), *_SYNONYMS.get(name.lower(), ())])
    here = next((word for word in words if word in known), None)
    if here is not None:
        return [f"{ctx.command_path} {here}"]
    is_root = ctx.parent is None
    if is_root and (below := _below(ctx, group, words)):
        return below[:_MAX_SUGGESTED]
    extra = ["help", "version"] if is_root else ["help"]
    near = difflib.get_close_matches(name.lower(), [*known, *extra], n=1, cutoff=_CUTOFF)
    if near:
        return [f"{ctx.command_path} {near[0]}"]
    root = ctx.find_root()
    if not is_root and isinstance(root.command, click.Group):
        above = root.command.list_commands(root)
        return [f"{root.command_path} {word}" for word in words if word in above][:1]
    return []


def _below(ctx: click.Context, root: click.Group, words: dict[str, None]) -> list[str]:
    """Return the commands of these names in the groups below the root, those of the likeliest name only."""
    groups = {name: root.get_command(ctx, name) for name in root.list_commands(ctx)}
    for word in words:
        found = [
            f"{ctx.command_path} {name} {word}"
            for name, group in groups.items()
            if isinstance(group, click.Group) and word in group.list_commands(ctx)
        ]
        if found:
            return found
    return []
