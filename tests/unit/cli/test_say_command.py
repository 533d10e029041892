"""`edge say`: to a loudspeaker, a file or stdout, from arguments or a pipe."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import wave
from pathlib import Path

import numpy as np
import pytest

from edge.errors import SoundError
from edge_cli.completers import complete_voice
from edge_cli.main import run
from tests.standins.voice import PLAYED, SAID

VOICE = ["--voice", "tests.standins.voice:open_voice"]
SPEAKER = ["-s", "voice.speaker=tests.standins.voice:open_speaker"]
pytestmark = pytest.mark.usefixtures("own_home")


def read(data: bytes | Path) -> tuple[np.ndarray, int]:
    with wave.open(io.BytesIO(data) if isinstance(data, bytes) else str(data)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2"), file.getframerate()


def test_to_the_loudspeaker(capsys: pytest.CaptureFixture[str]) -> None:
    PLAYED.clear()
    assert run(["say", *VOICE, *SPEAKER, "Hello", "there."]) == 0
    assert SAID == ["Hello there."]
    assert [rate for _, rate in PLAYED] == [24_000, 24_000]
    assert capsys.readouterr().out == ""


def test_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "speech.wav"
    assert run(["say", *VOICE, "--out", str(path), "Two words."]) == 0
    samples, rate = read(path)
    assert rate == 24_000 and len(samples) == rate // 2
    assert np.abs(samples).max() == pytest.approx(0.3 * 32768, abs=40)
    assert "0.5 s" in capsys.readouterr().err
    assert run(["say", *VOICE, "--json", "--out", str(path), "One."]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["duration_s"], shown["rate"], shown["out"]) == (0.25, 24_000, str(path))
    assert len(read(path)[0]) == 6000, "it is replaced"
    assert list(tmp_path.glob(".*")) == [], "nothing is left beside it"


def test_a_pipe_to_stdout(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from edge_cli.main import main; main()", "say", *VOICE, "--out", "-", "-"]
    done = subprocess.run(command, input="Ein **Text** \u00e4 \U0001f642.".encode() + b"\xff", capture_output=True, check=True)
    samples, rate = read(done.stdout)
    assert len(samples) == 3 * rate // 4 or len(samples) == rate, "three words, and perhaps the byte that is none"
    assert done.stderr == b""


def test_nothing_to_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["say", *VOICE, *SPEAKER, "--", "---"]) == 0
    assert "no words" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--voice", "nobody", "hi"], 2, "no voice named 'nobody'"),
        (["--speed", "3", "hi"], 2, "speed"),
        (["--out", "/nowhere/x.wav", *VOICE, "hi"], 1, "cannot be written"),
        (["--out", "/", *VOICE, "hi"], 2, "is a folder"),
        (["--out", "x.wav", "--device", "usb", "hi"], 2, "no loudspeaker is used"),
        (["--out", "-", "--json", "hi"], 2, "both"),
        ([*VOICE, "-s", "voice.speaker=tests.standins.voice:open_no_speaker", "hi"], None, "edge say --out speech.wav"),
    ],
)
def test_errors_say_what_to_do(
    arguments: list[str], code: int | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(["say", *arguments])
    assert found == code if code is not None else found > 0
    assert message in capsys.readouterr().err


def test_without_a_loudspeaker_nothing_is_fetched_or_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_arguments: object, **_options: object) -> None:
        raise AssertionError

    monkeypatch.setattr("edge_cli.say.fetch_voice", never)
    monkeypatch.setattr("edge_voice.tts.choice.measure_kokoro", never)
    assert run(["say", "-s", "voice.speaker=tests.standins.voice:open_no_speaker", "--measure", "hi"]) == SoundError.exit_code


def test_ctrl_c_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "speech.wav"
    command = [sys.executable, "-c", "from edge_cli.main import main; main()", "say", *VOICE, "--out", str(path), "-"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ)
    assert child.stdin
    child.stdin.write(b"The first sentence. The second one")
    child.stdin.flush()
    while not list(tmp_path.glob(".speech.wav.*")):
        assert child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    child.communicate()
    assert child.returncode == 130
    assert list(tmp_path.iterdir()) == []


def test_voices_are_completed() -> None:
    names = [item.value for item in complete_voice(None, None, "")]  # type: ignore[arg-type]
    assert {"kokoro", "hibari", "flite", "say", "kokoro/af_heart", "kokoro/am_puck"} <= set(names)
    assert [item.value for item in complete_voice(None, None, "kokoro/am_p")] == ["kokoro/am_puck"]  # type: ignore[arg-type]
