"""`edge voice doctor` on virtual devices: in order, muted, apart, overdriven, and gone."""

from __future__ import annotations

import json
import os
import subprocess
import time
from typing import Any

import pytest

from edge.config import Settings
from edge_cli.main import run
from tests.virtual_sound import VirtualSound

pytestmark = pytest.mark.timeout(200)


def doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Return the exit code, the whole answer, and the state of each check."""
    capsys.readouterr()
    code = run(["voice", "doctor", "--json", *arguments])
    answer = json.loads(capsys.readouterr().out)
    return code, answer, {check["what"]: f"{check['state']}: {check['text']}" for check in answer["checks"]}


def pactl(*arguments: str) -> None:
    subprocess.run(["pactl", *arguments], check=True, stdout=subprocess.DEVNULL, env=os.environ.copy())


def test_devices_levels_and_the_loop(
    virtual_sound: VirtualSound, voice_settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    code, answer, checks = doctor(capsys)
    assert code == 1  # a null sink that nobody plays to is silent to the last bit
    assert "muted" in checks["level"]
    assert {"microphone", "default"} <= {device["name"] for device in answer["microphones"]}
    assert checks["models"].startswith("ok: silero-vad")

    pactl("load-module", "module-loopback", "source=speaker.monitor", "sink=mic", "latency_msec=20")
    time.sleep(1)
    for _ in range(3):  # a machine that is busy with other tests has gaps in its sound
        code, answer, checks = doctor(capsys)
        if checks["loop"].startswith("ok"):
            break
    assert (code, answer["is_ok"]) == (0, True), checks
    assert checks["loop"].startswith("ok: heard after")
    assert answer["loop"]["n_heard"] == 3
    assert 0 < answer["loop"]["delay_s"] < 0.5
    assert abs(answer["loop"]["drift"]) < 0.03
    assert 0 <= answer["loop"]["loss_db"] < 8

    pactl("set-sink-volume", "mic", "1600%")
    code, _, checks = doctor(capsys)
    assert code == 1
    assert "clipped" in checks["loop"]

    pactl("set-source-mute", "mic.monitor", "1")
    code, _, checks = doctor(capsys, "--silent")
    assert code == 1
    assert "muted" in checks["level"]
    assert "loop" not in checks


def test_a_device_that_is_gone_is_one_finding(
    virtual_sound: VirtualSound, voice_settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    virtual_sound.unplug("mic")
    code, _, checks = doctor(capsys, "--input", "microphone")
    assert code == 1
    assert checks["microphone"].startswith("broken: The microphone microphone cannot be opened")
    assert "level" not in checks
    assert run(["voice", "doctor", "--input", "trumpet"]) == 1
    assert "no microphone named 'trumpet'" in capsys.readouterr().out
