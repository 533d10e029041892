"""The entry point of `edge`: the list of commands, and the one place that turns errors into text and exit codes."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

import click

import edge
from edge_cli import output, signals, streams
from edge_cli.group import CONTEXT_SETTINGS, Entry, LazyGroup

__all__ = ["EXIT_CODES", "cli", "main", "run"]

COMMANDS = {
    "chat": Entry("edge_cli.chat:chat", "Chat with a model in the terminal."),
    "run": Entry("edge_cli.run:run", "Answer one prompt and exit."),
    "batch": Entry("edge_cli.batch:batch", "Answer a file of requests (OpenAI's batch format)."),
    "score": Entry("edge_cli.score:score", "Say how likely given answers are, for each line of a file."),
    "embed": Entry("edge_cli.embed:embed", "Turn texts into vectors, for search and comparison."),
    "say": Entry("edge_cli.say:say", "Say a text, or write it as a WAV file."),
    "listen": Entry("edge_cli.listen:listen", "Print what is said, a line for each utterance."),
    "voice": Entry("edge_cli.voice:voice", "Check what a conversation by voice needs."),
    "serve": Entry("edge_cli.serve:serve", "Serve models to other programs, over HTTP."),
    "models": Entry("edge_cli.models:models", "List, download, show, name and remove models."),
    "convert": Entry("edge_cli.convert:convert", "Convert a checkpoint to GGUF, ONNX or Core ML."),
    "eval": Entry("edge_cli.evaluate:evaluate", "Measure quality, speed and memory of models, side by side."),
    "bench": Entry("edge_cli.bench:bench", "Measure the speed of models on this device, side by side."),
    "tune": Entry("edge_cli.tune:tune", "Find and save the fastest settings for a model on this device."),
    "ladder": Entry("edge_cli.ladder:ladder", "Measure step by step how much faster replies became, from the naive way."),
    "profile": Entry("edge_cli.profile:profile", "Show where the time of one turn goes."),
    "doctor": Entry("edge_cli.doctor:doctor", "Check this device and suggest how to make it faster."),
    "devices": Entry("edge_cli.devices:devices", "Show this machine and its accelerators."),
    "conversations": Entry(
        "edge_cli.conversations:conversations", "List, show, search, export, import and delete saved conversations."
    ),
    "docs": Entry("edge_cli.docs:docs", "Add documents, and search them by words and by meaning."),
    "kv": Entry("edge_cli.kv:kv", "Manage the on-disk KV cache."),
    "config": Entry("edge_cli.config:config", "Show and change settings."),
    "mcp": Entry("edge_cli.mcp:mcp", "Manage servers of tools (Model Context Protocol), or be one."),
    "completion": Entry("edge_cli.completion:completion", "Print the completion script for your shell: bash, zsh or fish."),
}

EXIT_CODES = {
    0: "ok",
    1: "failed",
    2: "wrong usage or settings",
    3: "model missing",
    4: "accelerator or backend not available",
    5: "quality gate failed",
    129: "ended by SIGHUP",
    130: "interrupted",
    143: "ended by SIGTERM",
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
@click.version_option(edge.__version__, "-V", "--version", prog_name="edge", message="%(prog)s %(version)s")
def cli() -> None:
    """Run small language models on this device: chat, prompts from the shell, and tools for models.

    Settings come from flags, EDGE_* variables and the settings file, in this order; see edge config ls.
    """


def main() -> None:
    """Run the command line and exit."""
    streams.prepare()
    signals.catch()
    if logging.lastResort is not None:
        logging.getLogger("edge").addHandler(logging.lastResort)  # warnings go to stderr
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str], app: object = None) -> int:
    """Run one command and return the exit code. `app` replaces the real `edge_cli.app.App` in tests."""
    from edge.errors import EdgeError

    try:
        result = cli.main(args=list(arguments), prog_name="edge", standalone_mode=False, obj=app)
        return result if isinstance(result, int) else 0
    except streams.OutputClosedError:
        return 0
    except (KeyboardInterrupt, click.Abort):
        return signals.exit_code()
    except EdgeError as error:
        output.error(error.message, error.hint)
        return error.exit_code
    except click.UsageError as error:
        # click has no context for an option without its value.
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
    except Exception as error:  # noqa: BLE001 (a bug becomes a report, not a traceback)
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
    except Exception as failure:  # noqa: BLE001 (a failure to write the report must not hide the bug)
        output.note(trace)
        output.error(message, f"The report could not be saved ({failure}), so it is printed above.")
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
