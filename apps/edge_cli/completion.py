"""`edge completion`: the script that completes edge in a shell."""

from __future__ import annotations

import click

from edge_cli import output
from edge_cli.group import CONTEXT_SETTINGS, examples

__all__ = ["completion"]

_INSTALL = {
    "bash": (
        "# To install it for you:",
        "#   mkdir -p ~/.local/share/bash-completion/completions",
        "#   edge completion bash > ~/.local/share/bash-completion/completions/edge",
    ),
    "zsh": (
        "# To install it for you, in a directory that is in your $fpath:",
        "#   mkdir -p ~/.zfunc && edge completion zsh > ~/.zfunc/_edge",
        "# and, once, in ~/.zshrc before compinit:",
        "#   fpath+=~/.zfunc",
    ),
    "fish": (
        "# To install it for you:",
        "#   edge completion fish > ~/.config/fish/completions/edge.fish",
    ),
}


def _offer_shells(ctx: click.Context, param: object, incomplete: str) -> list[str]:
    return [shell for shell in _INSTALL if shell.startswith(incomplete)]


@click.command(
    context_settings=CONTEXT_SETTINGS,
    epilog=examples(
        "edge completion bash > ~/.local/share/bash-completion/completions/edge",
        "edge completion zsh > ~/.zfunc/_edge",
        "edge completion fish > ~/.config/fish/completions/edge.fish",
    ),
)
@click.argument("shell", metavar="bash|zsh|fish", shell_complete=_offer_shells)
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes edge in your shell.

    There is one for bash, zsh and fish. It completes commands, options, models, conversations and settings.
    """
    from click.shell_completion import get_completion_class

    from edge.errors import UsageError

    if shell not in _INSTALL:
        raise UsageError(f"There is no completion for {shell!r}.", "There is one for bash, zsh and fish: edge completion bash")
    completer = get_completion_class(shell)
    if completer is None:
        raise click.UsageError(f"This version of click does not know {shell}.", ctx)
    script = completer(ctx.find_root().command, {}, "edge", "_EDGE_COMPLETE").source().strip("\n")
    first, _, rest = script.partition("\n")
    hints = "\n".join(_INSTALL[shell])
    # zsh reads "#compdef" from the first line only.
    output.line(f"{first}\n{hints}\n{rest}" if first.startswith("#compdef") else f"{hints}\n{script}")
