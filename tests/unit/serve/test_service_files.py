"""The examples of tools/service: what they start is what `edge serve` takes, and the system's own checkers accept them."""

from __future__ import annotations

import configparser
import json
import os
import plistlib
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from edge_cli.main import cli
from edge_cli.serve import serve

FOLDER = Path(__file__).parents[3] / "tools" / "service"


def check(command: list[str]) -> None:
    """Parse a command of edge, which fails where an option is unknown or wrong."""
    program, name, *arguments = command
    assert (Path(program).name, name) == ("edge", "serve")
    with cli.make_context("edge", ["serve"]) as parent:
        serve.make_context("serve", arguments, parent=parent).close()


def test_the_unit_starts_a_server_that_has_time_to_stop() -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string((FOLDER / "edge.service").read_text(encoding="utf-8"))
    check(shlex.split(unit["Service"]["ExecStart"]))
    assert int(unit["Service"]["TimeoutStopSec"]) > 10 + 5, "the grace, and what comes after it"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    program = tmp_path / ".venv" / "bin" / "edge"
    program.parent.mkdir(parents=True)
    program.symlink_to("/bin/true")
    unit, text = tmp_path / "edge.service", (FOLDER / "edge.service").read_text(encoding="utf-8")
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}

    def verify(text: str) -> tuple[int, str]:
        unit.write_text(text.replace("%h", str(tmp_path)), encoding="utf-8")
        command = ["systemd-analyze", "verify", "--user", "--man=no", unit]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        return done.returncode, done.stderr

    assert verify(text) == (0, "")
    assert "edge.service" in verify(text.replace("Restart=", "Restart=sometimes-"))[1], "it tells what is wrong"


def test_the_agent_of_launchd_is_a_property_list() -> None:
    agent = plistlib.loads((FOLDER / "edge.serve.plist").read_bytes())
    check(agent["ProgramArguments"])
    assert agent["KeepAlive"] == {"SuccessfulExit": False} and agent["RunAtLoad"] is True
    assert agent["ExitTimeOut"] > 15 and agent["Umask"] == 0o077
    assert agent["Label"] == "edge.serve"


def test_the_image_starts_a_server_with_keys_as_another_user_than_root() -> None:
    text = re.sub(r"\\\n", " ", (FOLDER / "Dockerfile").read_text(encoding="utf-8"))
    lines = [line.split(None, 1) for line in text.splitlines() if line and not line.startswith("#")]
    last = {line[0]: line[1] for line in lines}
    check([*json.loads(last["ENTRYPOINT"]), *json.loads(last["CMD"])])
    assert "--keys" in last["CMD"] and last["USER"] == "edge" and last["STOPSIGNAL"] == "SIGTERM"
    stages = re.findall(r"^FROM \S+ AS (\S+)", text, re.MULTILINE)
    assert set(re.findall(r"--from=(\S+)", text)) == set(stages)
    json.loads(last["HEALTHCHECK"].partition("CMD")[2])
    extra = re.search(r"/src\[(\w+)\]", text)
    assert extra is not None and f"\n{extra[1]} = [" in (FOLDER.parents[1] / "pyproject.toml").read_text(encoding="utf-8")
