"""The entry: help, exit codes, errors, and how little it imports."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import edge
from edge import errors
from edge_cli.app import App
from edge_cli.main import COMMANDS, EXIT_CODES, cli

HEAVY = ("llama_cpp", "numpy", "huggingface_hub", "httpx", "textual", "jinja2", "rich", "psutil", "sqlite3", "tomlkit")


def commands(group: click.Group = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command below a group."""
    ctx = click.Context(group)
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


ALL = dict(commands())


def modules_after(code: str) -> set[str]:
    """Return the modules that a fresh interpreter has imported after some code."""
    script = f"{code}\nimport json, sys\nprint()\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"], ["config", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    loaded = modules_after(f"from edge_cli.main import run\nassert run({arguments!r}) == 0")
    assert not loaded.intersection(HEAVY)
    if arguments[0].startswith("--"):
        assert not loaded.intersection({"msgspec", "platformdirs", "dataclasses", "edge.config", "asyncio"})


def test_import_edge_imports_nothing_else() -> None:
    loaded = modules_after("import edge")
    assert {name for name in loaded if name.partition(".")[0] == "edge"} == {"edge", "edge.lazy"}
    assert not loaded.intersection((*HEAVY, "msgspec", "click", "dataclasses"))


def test_version(call: Any) -> None:
    assert call("--version").out == f"edge {edge.__version__}\n"


def test_help_lists_commands_and_exit_codes(call: Any) -> None:
    result = call("--help")
    assert result.code == 0
    for name in COMMANDS:
        assert re.search(rf"^  {name} ", result.out, re.MULTILINE)
    for code in EXIT_CODES:
        assert re.search(rf"^    {code} +\w", result.out, re.MULTILINE)


def test_every_exit_code_of_an_error_is_documented() -> None:
    codes = {getattr(errors, name).exit_code for name in errors.__all__}
    assert codes <= set(EXIT_CODES)


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_has_help_with_examples_that_parse(path: tuple[str, ...], call: Any) -> None:
    result = call(*path, "--help")
    assert result.code == 0
    assert result.out.startswith(f"Usage: edge {' '.join(path)}")
    if isinstance(ALL[path], click.Group):
        return
    lines = re.findall(r"^ +(.*\bedge .*)$", result.out[result.out.index("Examples:") :], re.MULTILINE)
    assert lines
    used = 0
    for line in lines:
        for part in re.split(r'\s[|<>]\s|"\$\(|\)"', line):
            words = shlex.split(part)
            if words[:1] == ["edge"]:
                parse(words[1:])
                used += tuple(words[1 : 1 + len(path)]) == path
    assert used


def parse(words: list[str]) -> None:
    """Let click read a command line without running it; what it does not understand raises."""
    command: click.Command = cli
    ctx: click.Context | None = None
    name = "edge"
    while isinstance(command, click.Group):
        ctx = click.Context(command, info_name=name, parent=ctx)
        name, *words = words
        found = command.get_command(ctx, name)
        assert found is not None
        command = found
    command.make_context(name, words, parent=ctx)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_the_command_says(name: str) -> None:
    assert ALL[(name,)].get_short_help_str(200).rstrip(".") in COMMANDS[name].help


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["chta"], "There is no command edge chta. Did you mean edge chat?"),
        (["config", "gte", "x"], "Did you mean edge config get?"),
        (["run", "--temprature", "1", "x"], "--temperature"),
        (["run", "--require", "gpu", "x"], "cuda"),
        (["config", "get"], "Missing argument"),
        (["--versoin"], "--version"),
    ],
)
def test_wrong_usage_names_the_nearest(call: Any, arguments: list[str], said: str) -> None:
    result = call(*arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("Error: ")
    assert said in result.err
    assert "--help" in result.err


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("pull", "edge models pull"),
        ("download x", "edge models pull"),
        ("list", "edge models ls, edge conversations ls, edge docs ls or edge kv ls"),
        ("ls", "edge models ls, edge conversations ls, edge docs ls or edge kv ls"),
        ("show", "edge models show, edge conversations show or edge docs show"),
        ("rm x", "edge models rm, edge conversations rm or edge docs rm"),
        ("remove x", "edge models rm, edge conversations rm or edge docs rm"),
        ("delete x", "edge models rm, edge conversations rm or edge docs rm"),
        ("edit", "edge config set"),
        ("logs", "edge conversations"),
        ("history", "edge conversations"),
        ("gc", "edge kv gc"),
        ("import x", "edge conversations import or edge kv import"),
        ("quantize", "edge convert"),
        ("CHAT", "edge chat"),
        ("model", "edge models"),
        ("conversation", "edge conversations"),
        ("dcotor", "edge doctor"),
        ("rnu", "edge run"),
        ("server", "edge serve"),
        ("ps", ""),
        ("versions", "edge version"),
        ("hlep", "edge help"),
        ("models list", "edge models ls"),
        ("models remove x", "edge models rm"),
        ("models download x", "edge models pull"),
        ("models get", "edge models show"),
        ("models chat", "edge chat"),
        ("kv list", "edge kv ls"),
        ("kv rm x", "edge kv forget"),
        ("kv delete", "edge kv forget"),
        ("config show", "edge config get"),
        ("config edit", "edge config set"),
        ("config rm", "edge config unset"),
        ("config list", "edge config ls"),
        ("conversations delete", "edge conversations rm"),
        ("conversations find", "edge conversations search"),
        ("conversations cat", "edge conversations show"),
        ("conversations logs", "edge conversations ls"),
        ("models conversations", "edge conversations"),
    ],
)
def test_the_words_of_other_programs_name_the_command(call: Any, typed: str, meant: str) -> None:
    result = call(*typed.split())
    assert (result.code, result.out) == (2, "")
    named = re.search(r"Did you mean (.*)\?", result.err)
    assert (named[1] if named else "") == meant


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("start", "edge serve"),
        ("stop", "background"),
        ("update", "pip install --upgrade"),
        ("login", "hf auth login"),
    ],
)
def test_what_edge_has_no_command_for_is_explained(call: Any, typed: str, said: str) -> None:
    result = call(typed)
    assert (result.code, result.out) == (2, "")
    assert said in result.err


@pytest.mark.parametrize(
    ("typed", "same"),
    [("help", "--help"), ("help run", "run --help"), ("help models ls", "models ls --help"), ("models help", "models --help"),
     ("models help ls", "models ls --help"), ("version", "--version"), ("-V", "--version")],
)  # fmt: skip
def test_help_and_version_are_commands_too(call: Any, typed: str, same: str) -> None:
    first, second = call(*typed.split()), call(*same.split())
    assert (first.code, first.err) == (0, "")
    assert first.out == second.out
    assert first.out


def test_help_of_an_unknown_command_names_the_nearest(call: Any) -> None:
    result = call("help", "modles")
    assert result.code == 2
    assert "edge models" in result.err


@pytest.mark.parametrize("arguments", [(), ("config",), ("models",)])
def test_no_command_is_a_usage_error_with_the_help(call: Any, arguments: tuple[str, ...]) -> None:
    result = call(*arguments)
    assert (result.code, result.out) == (2, "")
    assert "Commands:" in result.err


def failing(error: BaseException) -> App:
    def load(**_: object) -> Any:
        raise error

    return App(load=load)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.BackendError("It failed.", "Try again."), 1),
        (errors.ModelNotFoundError("No such model.", "Pull it."), 3),
        (errors.BackendUnavailableError("No CUDA.", "Leave it out."), 4),
        (errors.QualityGateError("Worse.", "Use more bits."), 5),
        (errors.CancelledError("Stopped.", "Again."), 130),
    ],
)
def test_errors_become_a_message_a_hint_and_an_exit_code(call: Any, error: errors.EdgeError, code: int) -> None:
    result = call("run", "hi", app=failing(error))
    assert (result.code, result.out) == (code, "")
    assert result.err == f"Error: {error.message}\n{error.hint}\n"


def test_control_characters_in_an_error_do_not_reach_the_terminal(call: Any) -> None:
    result = call("run", "hi", app=failing(errors.BackendError("bad \x1b[31mname\x07", "\x1b]0;title\x07again")))
    assert result.err == "Error: bad name\nagain\n"


def test_an_interrupt_is_130_without_a_traceback(call: Any) -> None:
    result = call("run", "hi", app=failing(KeyboardInterrupt()))
    assert (result.code, result.out, result.err.strip()) == (130, "", "")


def test_a_bug_is_reported_to_a_private_file(call: Any, own_home: Path) -> None:
    result = call("run", "hi", app=failing(ZeroDivisionError("oh no")))
    assert (result.code, result.out) == (1, "")
    assert "This is a bug in edge: ZeroDivisionError: oh no" in result.err
    assert "Traceback" not in result.err
    (report,) = (own_home / "data" / "reports").iterdir()
    assert str(report) in result.err
    assert "Traceback" in report.read_text()
    assert report.stat().st_mode & 0o777 == 0o600


def test_a_bug_is_shown_when_debugging(call: Any, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_DEBUG", "1")
    result = call("run", "hi", app=failing(ZeroDivisionError("oh no")))
    assert result.code == 1
    assert "Traceback" in result.err
    assert not (own_home / "data" / "reports").exists()


def test_a_bug_is_shown_when_it_cannot_be_kept(call: Any, own_home: Path) -> None:
    (own_home / "data").write_text("a file in the way")
    result = call("run", "hi", app=failing(ZeroDivisionError("oh no")))
    assert result.code == 1
    assert "Traceback" in result.err
    assert "could not be saved" in result.err


def test_a_wrong_setting_stops_everything_with_2(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_MODLE", "x")
    result = call("run", "hi")
    assert result.code == 2
    assert "Did you mean EDGE_MODEL?" in result.err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_the_script_with_how_to_install_it(call: Any, shell: str) -> None:
    result = call("completion", shell)
    assert result.code == 0
    assert f"edge completion {shell} >" in result.out
    assert f"_EDGE_COMPLETE={shell}_complete" in result.out
    if shell == "zsh":
        assert result.out.startswith("#compdef edge\n")


def complete(line: str) -> list[str]:
    """Return the proposals of the shell at the end of a command line."""
    words = line.split(" ")
    environ = {
        **os.environ,
        "_EDGE_COMPLETE": "bash_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    code = "from edge_cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ, timeout=300)
    assert done.stderr == ""
    return [answer.partition(",")[2] for answer in done.stdout.splitlines()]


def test_the_shell_proposes_files_for_an_adapter() -> None:
    from click.shell_completion import BashComplete

    from edge_cli.main import cli

    found = BashComplete(cli, {}, "edge", "_EDGE_COMPLETE").get_completions(["run", "--lora"], "pir")
    assert [(item.type, item.value) for item in found] == [("file", "pir")]


def test_completion_offers_commands_options_and_settings() -> None:
    assert complete("edge mo") == ["models"]
    assert "--temperature" in complete("edge run --te")
    assert "sampling.top_k" in complete("edge config get sampling.top")
    assert "sampling.top_k=" in complete("edge run -s sampling.top_")
    assert complete("edge run --require c") == ["cuda", "cpu"]


def test_completion_offers_the_values_of_options_and_settings() -> None:
    assert set(complete("edge run --backend ")) >= {"llamacpp", "onnx", "coreml"}
    assert complete("edge run --kv-type q") == ["q8_0", "q4_0"]
    assert "smollm2-135m" in complete("edge config set model smol")
    assert "textual-dark" in complete("edge config set chat.theme textual-")
    assert complete("edge config set window d") == ["drop"]
    assert complete("edge config set kv.enabled ") == ["true", "false"]
    assert set(complete("edge config set backend ")) >= {"llamacpp", "auto"}
    assert complete("edge config set kv_type_k f") == ["f16", "f32"]
    assert not any(complete("edge config set sampling.temperature "))
    assert complete("edge run -s window=r") == ["window=refuse"]
    assert "chat.theme=nord" in complete("edge run -s chat.theme=no")
    assert not any(complete("edge config set nosuch "))


def test_an_option_without_its_value_points_to_the_help_of_its_command(call: Any) -> None:
    result = call("run", "--file")
    assert result.code == 2
    assert result.err.endswith("Try: edge run --help\n")


def test_a_shell_without_completion_is_told_which_have_one(call: Any) -> None:
    result = call("completion", "powershell")
    assert (result.code, result.out) == (2, "")
    assert result.err.splitlines() == [
        "Error: There is no completion for 'powershell'.",
        "There is one for bash, zsh and fish: edge completion bash",
    ]


def help_texts(command: click.Command, path: str) -> Iterator[tuple[str, str]]:
    """Every help page below a command as an 80-column terminal shows it."""
    ctx = click.Context(command, info_name=path, terminal_width=80)
    yield path, command.get_help(ctx)
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            below = command.get_command(ctx, name)
            assert below is not None
            yield from help_texts(below, f"{path} {name}")


def test_no_help_line_is_cut_or_too_long_for_80_columns() -> None:
    for path, text in help_texts(cli, "edge"):
        for line in text.splitlines()[1:]:
            assert len(line) <= 80, (path, line)
            assert not line.endswith("..."), (path, line)


def test_completion_offers_models() -> None:
    assert "smollm2-135m" in complete("edge run -m smol")


def test_completion_is_silent_with_broken_settings(own_home: Path) -> None:
    (own_home / "config.toml").write_text("= broken")
    assert not any(complete("edge run --conversation x"))
