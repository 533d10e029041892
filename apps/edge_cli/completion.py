"""`edge completion`: the completion script for a shell."""

from __future__ import annotations

import click

from edge_cli import output
from edge_cli.group import examples

__all__ = ["completion"]

_FILES = {
    "bash": "~/.local/share/bash-completion/completions/edge",
    "zsh": "~/.zfunc/_edge",
    "fish": "~/.config/fish/completions/edge.fish",
}


def _offer_shells(ctx: click.Context, param: object, incomplete: str) -> list[str]:
    return [shell for shell in _FILES if shell.startswith(incomplete)]


@click.command(epilog=examples(*(f"edge completion {shell} > {path}" for shell, path in _FILES.items())))
@click.argument("shell", metavar="bash|zsh|fish", shell_complete=_offer_shells)
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for your shell: bash, zsh or fish.

    It completes commands, options, models, conversations and settings.
    """
    from click.shell_completion import get_completion_class

    from edge.errors import UsageError

    if shell not in _FILES:
        raise UsageError(f"There is no completion for {shell!r}.", "There is one for bash, zsh and fish: edge completion bash")
    completer = get_completion_class(shell)
    if completer is None:
        raise click.UsageError(f"This version of click does not know {shell}.", ctx)
    script = completer(ctx.find_root().command, {}, "edge", "_EDGE_COMPLETE").source().strip("\n")
    path = _FILES[shell]
    hints = f"# To install it for yourself:\n#   mkdir -p {path.rpartition('/')[0]}\n#   edge completion {shell} > {path}"
    if shell == "zsh":
        hints += "\n# and, once, in ~/.zshrc before compinit:\n#   fpath+=~/.zfunc"
    first, _, rest = script.partition("\n")
    # zsh reads "#compdef" from the first line only.
    output.line(f"{first}\n{hints}\n{rest}" if first.startswith("#compdef") else f"{hints}\n{script}")
