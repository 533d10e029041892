"""The installed command with the standard streams and signals that other programs give it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from edge_cli.ascii import ERRORS

EDGE = Path(sys.executable).with_name("edge")
LIMIT_S = 120
COMMANDS = [["--help"], ["--version"], ["run", "--help"], ["config", "ls", "--json"], ["models", "ls"]]


def shell(line: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a line of the shell, in which "$@" is edge with its arguments."""
    command = ["bash", "-c", line, "bash", str(EDGE), *arguments]
    environ = {**os.environ, **variables}
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, stdin=subprocess.DEVNULL, env=environ)


@pytest.mark.prove(one_of=2)
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(("stdout", "said"), [(">/dev/full", "No space left on device"), (">&-", "it is closed")])
def test_a_stdout_that_cannot_be_written(arguments: list[str], stdout: str, said: str) -> None:
    done = shell(f'"$@" {stdout}', *arguments)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == f"Error: stdout cannot be written: {said}."
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_reader_that_has_left_is_no_error(arguments: list[str]) -> None:
    done = shell('("$@"; echo $? >&2) | true', *arguments)
    assert done.stderr == "0\n"


@pytest.mark.prove(one_of=2)
@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["run", "-m", "no-such", "hi"], 3), (["run", "--no-such"], 2), (["config"], 2), (["config", "get", "no.such"], 2)],
)
def test_the_exit_code_says_it_whatever_stderr_is(arguments: list[str], code: int, stderr: str) -> None:
    assert shell(f'"$@" {stderr}', *arguments).returncode == code


def test_a_stderr_that_cannot_be_written_costs_no_output() -> None:
    assert json.loads(shell('"$@" 2>&-', "config", "ls", "--json").stdout)


def test_output_waits_for_a_slow_reader() -> None:
    """The pipe is smaller than the output, and its writer is told to come back later."""
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    child = subprocess.Popen([EDGE, "config", "ls", "--json"], stdout=theirs, stderr=subprocess.PIPE)
    os.close(theirs)
    time.sleep(0.5)
    with os.fdopen(ours, "rb") as reader:
        assert len(json.loads(reader.read())) > 20
    _, errors = child.communicate(timeout=LIMIT_S)
    assert (child.returncode, errors) == (0, b"")


READ = """
import sys
from edge_cli.prompt import read_prompt
text, attachments = read_prompt(sys.argv[1:], (), use_stdin=True, is_chatty=False)
print([text, *(attachment.text for attachment in attachments)])
"""


@pytest.mark.parametrize("words", [[], ["-"], ["question"]])
def test_stdin_that_is_not_ready_is_waited_for(words: list[str]) -> None:
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    child = subprocess.Popen([sys.executable, "-c", READ, *words], stdin=ours, stdout=subprocess.PIPE, text=True)
    os.close(ours)

    def write() -> None:
        for part in ("first ", "second ", "third"):
            time.sleep(0.2)
            os.write(theirs, part.encode())
        os.close(theirs)

    writer = threading.Thread(target=write)
    writer.start()
    out, _ = child.communicate(timeout=LIMIT_S)
    writer.join()
    text = "first second third"
    assert out == f"{[text] if words != ['question'] else ['question', text]}\n"


WAIT = """
import sys, time
from edge_cli import main
def at_end(): pass
def load(**options):
    try:
        print("loading", flush=True)
        time.sleep(60)
    finally:
        at_end()
from edge_cli.app import App
main.run = lambda arguments, run=main.run: run(arguments, App(load=load))
main.main()
"""


def stopped(number: int, code: str = WAIT, *, n_times: int = 1) -> tuple[int, bytes]:
    """Send a command a signal while it works. Returns its exit code and what it said."""
    command = [sys.executable, "-c", code, "run", "--no-stdin", "hi"]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"loading\n"
    for _ in range(n_times):
        child.send_signal(number)
    _, errors = child.communicate(timeout=LIMIT_S)
    return child.returncode, errors.strip()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_ends_a_command_in_silence_with_its_code(number: int, code: int) -> None:
    assert stopped(number) == (code, b"")


def test_the_second_signal_does_not_interrupt_what_saves_the_work() -> None:
    slow = WAIT.replace("        at_end()", "        " + "time.sleep(0.5); sys.stderr.write('saved')")
    assert stopped(signal.SIGTERM, slow, n_times=3) == (143, b"saved")


def test_nohup_keeps_its_effect() -> None:
    ignoring = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + WAIT.replace(
        "time.sleep(60)", "time.sleep(0.5); raise SystemExit(0)"
    )
    assert stopped(signal.SIGHUP, ignoring)[0] == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("┌─┬╮│║", "+-++||"),
        ("▌█▊", "|#|"),
        ("… – “x”", '. - "x"'),
        ("é ü Å", "e u A"),
        ("日本", "????"),
        ("👩‍👧", "????"),
        ("⠋ ✓", ". v"),
    ],
)
def test_without_utf8_lines_stay_lines_and_columns_stay(text: str, said: str) -> None:
    assert text.encode("ascii", ERRORS).decode() == said


def test_json_is_escaped_where_the_stream_is_not_utf8() -> None:
    text = "caf\u00e9 \u65e5"
    done = shell('"$@"', "config", "get", "system", "--json", PYTHONIOENCODING="ascii", EDGE_SYSTEM=text)
    assert text in json.dumps(json.loads(done.stdout), ensure_ascii=False), done.stdout


@pytest.mark.parametrize(
    "arguments", [["run", "-f", "-", "hi"], ["run", "-"], ["conversations", "import", "-"], ["kv", "warm", "-"]]
)
def test_a_closed_stdin_that_is_named_is_said(arguments: list[str]) -> None:
    done = shell('"$@" <&-', *arguments)
    assert (done.returncode, done.stderr.splitlines()[0][:23]) == (2, "Error: stdin is closed,")


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "-f", "no-such-file", "hi"], ["kv", "import", "no-such-file"], ["kv", "import-slot", "no-such-file"],
        ["kv", "warm", "no-such-file"], ["conversations", "import", "no-such-file"],
        ["convert", "smollm2-135m", "--recipe", "no-such-file"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_missing_input_file_has_one_exit_code(arguments: list[str]) -> None:
    done = shell('"$@"', *arguments)
    assert done.returncode == 2
    assert "no-such-file" in done.stderr.splitlines()[0]
