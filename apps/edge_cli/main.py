"""The entry of the command `edge`: the list of commands, and the one place where errors become text and exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

import edge
from edge_cli import output
from edge_cli.group import CONTEXT_SETTINGS, Entry, LazyGroup

__all__ = ["EXIT_CODES", "cli", "main", "run"]

COMMANDS = {
    "chat": Entry("edge_cli.chat:chat", "Chat with a model in the terminal."),
    "run": Entry("edge_cli.run:run", "Answer one prompt and exit."),
    "models": Entry("edge_cli.models:models", "List, fetch, show, name and remove models."),
    "convert": Entry("edge_cli.convert:convert", "Convert a checkpoint to GGUF, ONNX or Core ML."),
    "eval": Entry("edge_cli.evaluate:evaluate", "Measure models side by side: quality, speed and memory."),
    "bench": Entry("edge_cli.bench:bench", "Measure how fast models run here, side by side."),
    "tune": Entry("edge_cli.tune:tune", "Find the fastest settings for a model here, and remember them."),
    "doctor": Entry("edge_cli.doctor:doctor", "Check this device, and say what would make it faster."),
    "devices": Entry("edge_cli.devices:devices", "Show what this machine is and what can compute on it."),
    "kv": Entry("edge_cli.kv:kv", "What models have read, kept on the disk so that they need not read it again."),
    "config": Entry("edge_cli.config:config", "Show and change settings."),
    "completion": Entry("edge_cli.completion:completion", "Print the script that completes edge in your shell."),
}

EXIT_CODES = {
    0: "ok",
    1: "failed",
    2: "wrong usage or settings",
    3: "model missing",
    4: "accelerator or backend not available",
    5: "quality gate failed",
    130: "interrupted",
}

EPILOG = (
    "\b\nExamples:\n"
    "  edge chat\n"
    '  edge run "What is the capital of France?"\n'
    '  cat news.txt | edge run "Summarise"\n'
    "\n\b\nExit codes:\n" + "\n".join(f"  {code:<5}{meaning}" for code, meaning in EXIT_CODES.items())
)


@click.group(
    cls=LazyGroup,
    entries=COMMANDS,
    context_settings=CONTEXT_SETTINGS,
    epilog=EPILOG,
)
@click.version_option(edge.__version__, prog_name="edge", message="%(prog)s %(version)s")
def cli() -> None:
    """Small language models on this device: chat, prompts from the shell, and the models themselves.

    Settings come from flags, EDGE_* variables and the settings file, in this order; see edge config ls.
    """


def main() -> None:
    """Run the command line and exit."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A terminal that cannot show a character gets a question mark rather than a traceback.
            stream.reconfigure(errors="replace")
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str], app: object = None) -> int:
    """Run one command.

    Args:
        arguments: without the name of the program.
        app: an `edge_cli.app.App` in the place of the real one, for tests.

    Returns:
        The exit code.
    """
    from edge.errors import EdgeError

    try:
        result = cli.main(args=list(arguments), prog_name="edge", standalone_mode=False, obj=app)
        return result if isinstance(result, int) else 0
    except output.OutputClosedError:
        output.abandon_stdout()
        return 0
    except (KeyboardInterrupt, click.Abort):
        return 130
    except EdgeError as error:
        output.error(error.message, error.hint)
        return error.exit_code
    except click.UsageError as error:
        # click does not say where an option without its value stood.
        named = arguments[0] if arguments and arguments[0] in COMMANDS else ""
        where = error.ctx.command_path if error.ctx else f"edge {named}".rstrip()
        output.error(error.format_message(), f"Try: {where} --help")
        return 2
    except click.ClickException as error:
        output.error(error.format_message())
        return error.exit_code
    except MemoryError:
        output.error("There is not enough memory for this.", "Close other programs, or choose a smaller model.")
        return 1
    except Exception as error:  # noqa: BLE001 (the last resort: a bug of ours becomes a report, not a page of code)
        return _report_bug(error)


def _report_bug(error: Exception) -> int:
    import traceback

    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    message = f"This is a bug in edge: {type(error).__name__}: {error}"
    if os.environ.get("EDGE_DEBUG", "") not in ("", "0"):
        output.note(trace)
        output.error(message)
        return 1
    try:
        path = _write_report(trace)
    except Exception as failure:  # noqa: BLE001 (whatever keeps the report off the disk must not hide the bug)
        output.note(trace)
        output.error(message, f"The report could not be kept ({failure}), so here it is above.")
        return 1
    output.error(message, f"The details are in {path}; EDGE_DEBUG=1 shows them here.")
    return 1


def _write_report(trace: str) -> str:
    import platform
    import time

    from edge.config import default_path
    from edge.files import write_private

    now = time.strftime("%Y%m%d-%H%M%S")
    path = default_path("paths.data_dir") / "reports" / f"bug-{now}-{os.getpid()}.txt"
    about = f"edge {edge.__version__}, Python {platform.python_version()}, {platform.platform()}\n\n"
    write_private(path, (about + trace).encode("utf-8", "replace"))
    return str(path)
