#!/usr/bin/env python3
"""Measure a talk with real models, from recordings of a virtual microphone and a virtual loudspeaker (PulseAudio).

    python benchmarks/voice.py [--model NAME] [--voices hibari,kokoro] [--rounds 7] [--minutes 0]

Recorded human speech is played into the microphone; both devices are recorded all the time, and what is measured is read
off the two recordings. Printed are medians, with the range over the rounds:

  first sound     from the end of speech to the first sound of the reply, for each voice
  of that         time of the last transcription, endpoint to first token, and share of the prompt that was prefilled by then
  endpoint        from the end of speech to the decision that the speaker has finished
  transcription   of 5 seconds of speech
  interruption    from the first sound of the user's voice to the silence of the loudspeaker
  own echo        replies of which the loudspeaker, heard by the microphone, interrupted itself; none should
  lost samples    of the microphone, in the whole run; --minutes adds a talk of that length
  memory          of the process with all models, for each voice

It needs Debian's pulseaudio, pulseaudio-utils, libasound2-plugins, libportaudio2 and pocketsphinx-testdata, and the models:
edge models pull voice.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "apps")]

from tests.human_speech import human_set, why_no_speech  # noqa: E402
from tests.virtual_sound import VirtualSound, why_no_sound  # noqa: E402

RATE = 16_000
LOUD = 0.03
TARGETS = {
    "first sound": {"kokoro": 1.5, "": 0.8}, "endpoint": 0.35, "transcription": 0.15, "interruption": 0.25, "memory": 600.0,
}  # fmt: skip


class Recorder:
    """Records a sink from now on, and knows when each sample was played."""

    def __init__(self, sound: VirtualSound, sink: str) -> None:
        command = ["parec", f"--device={sink}.monitor", "--latency-msec=20", "--raw", "--format=float32le", "--channels=1"]
        self._child = subprocess.Popen([*command, f"--rate={RATE}"], stdout=subprocess.PIPE, env={**os.environ, **sound.env})
        # Not in memory, which is measured.
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by `close`
        self._n_bytes = 0
        self._origin_s = float("inf")
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        while not self._n_bytes:
            time.sleep(0.01)

    def _read(self) -> None:
        assert self._child.stdout is not None
        while piece := self._child.stdout.read1(65536):  # type: ignore[attr-defined]
            self._file.write(piece)
            self._n_bytes += len(piece)
            # No piece arrives before its last sample was played; the promptest one says when the first sample was.
            self._origin_s = min(self._origin_s, time.monotonic() - self._n_bytes / 4 / RATE)

    def loud(self, from_s: float, to_s: float) -> tuple[float, float] | None:
        """Return the times of the first and the last loud sample within a stretch of time; None if it is silent."""
        start, end = (max(0, int((at_s - self._origin_s) * RATE)) for at_s in (from_s, to_s))
        self._file.flush()
        n_bytes = max(0, min(4 * (end - start), self._n_bytes // 4 * 4 - 4 * start))
        sound = np.frombuffer(os.pread(self._file.fileno(), n_bytes, 4 * start), np.float32)
        found = np.flatnonzero(np.abs(sound) > LOUD)
        if not len(found):
            return None
        return self._origin_s + (start + found[0]) / RATE, self._origin_s + (start + found[-1]) / RATE

    def close(self) -> None:
        """Stop recording."""
        self._child.terminate()
        self._child.wait()
        self._thread.join()
        self._file.close()


class Setting:
    """A talk, its two recordings, and the events so far."""

    def __init__(self, sound: VirtualSound, mic: Recorder, speaker: Recorder, ai: Any, settings: Any, n_tokens: int) -> None:
        from edge import Sampling

        self.sound, self.mic, self.speaker = sound, mic, speaker
        self.talk = ai.conversation(sampling=Sampling(max_tokens=n_tokens, temperature=0)).talk(
            settings=settings, hands_free=True
        )
        self.events: list[tuple[float, Any]] = []
        threading.Thread(target=self._read, daemon=True).start()
        self.wait_for("listening")
        time.sleep(0.5)

    def _read(self) -> None:
        for event in self.talk:
            self.events.append((time.monotonic(), event))

    def wait_for(self, kind: str, since_s: float = 0.0, timeout_s: float = 40.0) -> Any:
        """Return the first event of a kind since a time; None if none comes."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            for at_s, event in list(self.events):
                if event.kind == kind and at_s >= since_s:
                    return event
            time.sleep(0.005)
        return None

    def until_idle(self) -> None:
        """Wait until nobody speaks any more."""
        until = time.monotonic() + 60
        while not self.talk.is_idle and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(0.4)


def trim(speech: np.ndarray) -> np.ndarray:
    """Return speech from its first to its last loud sample, as loud as it can be: both are then seen in a recording."""
    speech = 0.9 * speech / np.abs(speech).max()
    loud = np.flatnonzero(np.abs(speech) > 0.08)
    return speech[loud[0] : loud[-1] + 1].astype(np.float32)


def say(setting: Setting, speech: np.ndarray) -> tuple[float, float] | None:
    """Let the user speak; return when the first and the last sound of that was, by the recording."""
    began_s = time.monotonic()
    setting.sound.play(speech, RATE).join()
    time.sleep(0.3)
    return setting.mic.loud(began_s, time.monotonic())


def take_turn(setting: Setting, speech: np.ndarray, listen_s: float = 1.5) -> dict[str, float] | None:
    """Say something, and measure until the reply sounds; then be silent."""
    since_s = time.monotonic()
    spoken = say(setting, speech)
    if spoken is None or setting.wait_for("speaking", since_s) is None:
        setting.talk.interrupt()
        setting.until_idle()
        return None
    time.sleep(listen_s)
    setting.talk.interrupt()
    endpoint, final = setting.wait_for("endpoint", since_s), setting.wait_for("final", since_s)
    setting.until_idle()
    heard = setting.speaker.loud(spoken[1], time.monotonic())
    if heard is None or endpoint is None or final is None:
        return None
    done = setting.wait_for("reply_done", since_s)
    timings = done.timings if done is not None else None
    return {
        "first sound": heard[0] - spoken[1],
        "endpoint": endpoint.at_s - spoken[1],
        "transcribe": final.transcribe_s,
        "first token": (timings.first_token_s if timings is not None else None) or float("nan"),
        "prefilled": timings.prefilled / max(1, timings.prompt) if timings is not None else float("nan"),
    }


def interrupt(setting: Setting, speech: np.ndarray, interjection: np.ndarray) -> float | None:
    """Speak into a reply, and return the time from the first sound of that to silence."""
    since_s = time.monotonic()
    say(setting, speech)
    if setting.wait_for("speaking", since_s) is None:
        setting.talk.interrupt()
        setting.until_idle()
        return None
    time.sleep(1.2)
    began_s = time.monotonic()
    spoken = say(setting, interjection)
    event = setting.wait_for("interrupted", began_s, 5)
    time.sleep(0.6)
    if spoken is None or event is None:
        setting.talk.interrupt()
        setting.until_idle()
        return None
    # Its own reply begins later than a second after the endpoint of the interjection at the earliest in this window.
    played = setting.speaker.loud(spoken[0] - 0.5, spoken[0] + 0.8)
    setting.talk.interrupt()
    setting.until_idle()
    if played is None or played[1] <= spoken[0]:
        return None  # it was silent between two sentences when the user began
    return played[1] - spoken[0]


@contextmanager
def echoing(sound: VirtualSound) -> Iterator[None]:
    """Let the microphone hear the loudspeaker, 60 ms later."""
    command = ["pactl", "load-module", "module-loopback", "source=speaker.monitor", "sink=mic", "latency_msec=60"]
    environment = {**os.environ, **sound.env}
    module = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    try:
        yield
    finally:
        subprocess.run(["pactl", "unload-module", module], env=environment, check=False, capture_output=True)


def count_own_interruptions(setting: Setting, speeches: Sequence[np.ndarray]) -> int:
    """Return how many replies interrupt themselves while the microphone hears the loudspeaker."""
    n = 0
    with echoing(setting.sound):  # one for all: each has another delay, as another room would
        for speech in speeches:
            since_s = time.monotonic()
            say(setting, speech)
            if setting.wait_for("speaking", since_s) is not None:
                n += setting.wait_for("interrupted", since_s, 6.0) is not None
            setting.talk.interrupt()
            setting.until_idle()
    return n


def measure_transcription(settings: Any, speech: np.ndarray, rounds: int) -> list[float]:
    """Time the recogniser alone on 5 seconds of speech."""
    from edge_voice.opening import choose_recogniser
    from edge_voice.registry import open_stage

    recogniser = open_stage("recogniser", choose_recogniser(settings), settings)
    recogniser.transcribe(speech)
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        recogniser.transcribe(speech)
        times.append(time.perf_counter() - began)
    return times


def spread(values: Sequence[float], target: float, unit: str = "s") -> dict[str, Any]:
    """Return median and range, and whether the target is met."""
    middle = statistics.median(values) if values else float("nan")
    return {
        "median": round(middle, 3), "min": round(min(values, default=middle), 3), "max": round(max(values, default=middle), 3),
        "n": len(values), "target": target, "is_met": bool(middle <= target), "unit": unit,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("EDGE_TEST_MODEL", "smollm2-135m"))
    parser.add_argument("--voices", default="hibari,kokoro", help="names, comma-separated")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--minutes", type=float, default=0.0, help="of a further talk that looks for lost samples")
    parser.add_argument("--context", type=int, default=4096, help="context window of the model, in tokens")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if reason := why_no_sound() or why_no_speech():
        raise SystemExit(reason)
    with tempfile.TemporaryDirectory(prefix="edge-sound-") as folder, VirtualSound(Path(folder)) as sound:
        os.environ.update(sound.env)
        found = measure(sound, options)
    report(found)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def with_voice(name: str) -> Any:
    """Return the settings with a voice."""
    import msgspec

    from edge.config import load_settings

    settings = load_settings()
    return msgspec.structs.replace(settings, voice=msgspec.structs.replace(settings.voice, voice=name))


def resident_mb() -> float:
    """Return the memory of this process, without what nobody uses any more."""
    import psutil

    gc.collect()
    return float(psutil.Process().memory_info().rss / 1e6)


def measure(sound: VirtualSound, options: argparse.Namespace) -> dict[str, Any]:
    """Run all measurements."""
    import edge

    # Commands and cards: in longer ones there are pauses, in which a speaker may have finished.
    speeches = [trim(recording.samples) for recording in human_set() if len(recording.samples) < 4 * RATE]
    devices = sound, Recorder(sound, "mic"), Recorder(sound, "speaker")
    names, found, n_lost = options.voices.split(","), dict[str, Any](), 0
    five_seconds = np.concatenate(speeches * 3)[: 5 * RATE]
    times = measure_transcription(with_voice(names[0]), five_seconds, options.rounds)
    found["transcription"] = spread(times, TARGETS["transcription"])
    with edge.load(options.model, context=options.context) as ai:
        steps: list[dict[str, float]] = []
        for name in names:
            setting = Setting(*devices, ai, with_voice(name), 40)
            turns = [take_turn(setting, speeches[n % len(speeches)]) for n in range(options.rounds + 1)][1:]
            done = [turn for turn in turns if turn is not None]
            target = TARGETS["first sound"].get(name, TARGETS["first sound"][""])
            found[f"first sound, {name}"] = spread([turn["first sound"] for turn in done], target)
            found[f"memory, {name}"] = spread([resident_mb()], TARGETS["memory"], "MB")
            steps += done
            n_lost += setting.talk.line.n_lost
            setting.talk.close()
            del setting
        for name in ("transcribe", "first token", "prefilled") if steps else ():
            found[f"of that, {name}"] = round(statistics.median(turn[name] for turn in steps), 3)
        found["endpoint"] = spread([turn["endpoint"] for turn in steps], TARGETS["endpoint"])
        setting = Setting(*devices, ai, with_voice(names[0]), 150)
        silences = [interrupt(setting, speeches[n % len(speeches)], speeches[-1]) for n in range(options.rounds)]
        found["interruption"] = spread([value for value in silences if value is not None], TARGETS["interruption"])
        found["own echo, of 3"] = count_own_interruptions(setting, speeches[:3])
        found["further turns"] = talk_on(setting, speeches, options.minutes)
        found["lost samples"] = n_lost + setting.talk.line.n_lost
        setting.talk.close()
    for recorder in devices[1:]:
        recorder.close()
    return found


def talk_on(setting: Setting, speeches: Sequence[np.ndarray], minutes: float) -> int:
    """Take turns for so many minutes, and return how many there were."""
    until, n = time.monotonic() + 60 * minutes, 0
    while time.monotonic() < until:
        take_turn(setting, speeches[n % len(speeches)], 4.0)
        n += 1
    return n


def report(found: dict[str, Any]) -> None:
    """Print a line for each measurement."""
    for name, value in found.items():
        if isinstance(value, dict):
            unit, met = value["unit"], "met" if value["is_met"] else "MISSED"
            text = f"{value['median']:.3f} {unit} ({value['min']:.3f} to {value['max']:.3f}, {value['n']} times)"
            print(f"{name:24} {text}, at most {value['target']} {unit}: {met}")
        else:
            print(f"{name:24} {value}")


if __name__ == "__main__":
    main()
