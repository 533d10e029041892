#!/usr/bin/env python3
"""Measure the stages that hear, each in a process of its own, on human speech.

    python benchmarks/voice_stages.py [--threads 1] [--rounds 9] [--json FILE]

It takes Debian's pocketsphinx-testdata (100 words), `edge models pull voice` and
`edge models pull whisper-base`.
Printed are, for each stage, memory (how much the process grew by opening it and using it once) and:

  vad        time of a frame of 32 ms: median and 99th percentile; speech found with and without noise, and in noise alone
  endpoint   time of a judgement
  ear        from the end of speech, as the VAD hears it, to the endpoint, the computing included; and what ended the utterances
  moonshine  time of 5 s of speech, median and range; words wrong, of 100: with silence around each recording, bare, and bare
             with noise 10 dB below the speech
  whisper    likewise
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

import numpy as np  # noqa: E402
import psutil  # noqa: E402

STAGES = ("vad", "endpoint", "ear", "moonshine", "whisper")
RATE = 16_000


def noisy(sound: Any, db: float) -> Any:
    """Return a sound with white noise so many dB below it."""
    level = np.sqrt((sound**2).mean()) * 10 ** (-db / 20)
    return (sound + np.random.default_rng(0).normal(0, level, len(sound))).astype(np.float32)


def memory_mb() -> float:
    return float(psutil.Process().memory_info().rss / 1e6)


def timed(run: Any, rounds: int) -> list[float]:
    """Return the times of so many runs, in ms, after one that does not count."""
    run()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        times.append((time.perf_counter() - began) * 1000)
    return times


def measure_vad(settings: Any, rounds: int, recordings: list[Any]) -> dict[str, Any]:
    from edge_voice.vad import open_silero

    vad = open_silero(settings)
    sound = np.concatenate([one.samples for one in recordings])

    def probabilities(samples: Any, times: list[float] | None = None) -> Any:
        vad.reset()
        found = []
        for start in range(0, len(samples) - vad.frame, vad.frame):
            began = time.perf_counter()
            found.append(vad.probability(samples[start : start + vad.frame]))
            if times is not None:
                times.append((time.perf_counter() - began) * 1000)
        return np.array(found)

    times: list[float] = []
    clean = probabilities(sound, times) > 0.5
    speech = clean & (np.abs(sound[: len(clean) * vad.frame].reshape(-1, vad.frame)).max(axis=1) > 0.02)
    in_noise = probabilities(noisy(sound, 10)) > 0.5
    alone = probabilities(np.random.default_rng(1).normal(0, 0.05, 60 * RATE).astype(np.float32)) > 0.5
    return {
        "frame_ms_p50": statistics.median(times),
        "frame_ms_p99": float(np.quantile(times, 0.99)),
        "speech_found_at_10_db": float(in_noise[speech].mean()),
        "found_in_noise_alone": float(alone.mean()),
    }


def measure_endpoint(settings: Any, rounds: int, recordings: list[Any]) -> dict[str, Any]:
    from edge_voice.endpoint import open_smart_turn

    turn = open_smart_turn(settings)
    times = timed(lambda: turn.probability(recordings[5].samples), 3 * rounds)
    return {"ms_p50": statistics.median(times), "ms_max": max(times)}


def measure_ear(settings: Any, rounds: int, recordings: list[Any]) -> dict[str, Any]:
    """Let the ear hear each recording in real time, with its own thread for transcripts; takes a minute and a half."""
    from edge_voice.ear import Ear
    from edge_voice.events import Endpoint, Final
    from edge_voice.registry import open_stage
    from edge_voice.stages import BLOCK

    events: list[Any] = []
    stages = (open_stage("vad", "silero", settings), open_stage("endpoint", "smart-turn", settings))
    recogniser = open_stage("recogniser", "moonshine", settings)
    ear = Ear(*stages, recogniser, settings.voice, events.append, time.monotonic)
    at_s = time.monotonic()
    for recording in recordings:
        around = np.pad(recording.samples, (RATE // 2, int(2.5 * RATE)))
        for start in range(0, len(around) - BLOCK, BLOCK):
            time.sleep(max(0.0, at_s + BLOCK / RATE - time.monotonic()))
            ear.feed(around[start : start + BLOCK], at_s)
            at_s += BLOCK / RATE
    ear.close()
    ends = [event for event in events if isinstance(event, Endpoint)]
    delays = [1000 * event.delay_s for event in ends]
    fast = [1000 * event.delay_s for event in ends if event.reason == "model"]
    return {
        "endpoint_ms_p50": statistics.median(delays),
        "endpoint_ms_p50_by_model": statistics.median(fast),
        "endpoint_ms_max": max(delays),
        "ended_by": dict(Counter(event.reason for event in ends)),
        "utterances": len([event for event in events if isinstance(event, Final)]),
        "recordings": len(recordings),
    }


def measure_recogniser(name: str, settings: Any, rounds: int, recordings: list[Any], threads: int) -> dict[str, Any]:
    from edge.catalog import voice_folder
    from edge_voice.asr.moonshine import Moonshine
    from edge_voice.asr.whisper import Whisper
    from edge_voice.transcripts import transcribe_segments
    from edge_voice.vad import open_silero
    from tests.human_speech import word_errors

    if name == "moonshine":
        recogniser: Any = Moonshine(voice_folder("moonshine-tiny-en", settings=settings), threads=threads)
    else:
        recogniser = Whisper(voice_folder("whisper-base", settings=settings), threads=threads)
    five = np.concatenate([one.samples for one in recordings if one.name.startswith("sense")])[: 5 * RATE]
    times = timed(lambda: recogniser.transcribe(five, language="en"), rounds)
    used_mb = memory_mb()
    vad = open_silero(settings)

    def around(sound: Any) -> str:
        found = transcribe_segments(np.pad(sound, RATE // 2), vad, recogniser, "en")
        return " ".join(segment.text for segment in found)

    def wrong(understand: Any) -> int:
        return word_errors((one.words, understand(one.samples)) for one in recordings)[0]

    return {
        "five_seconds_ms_p50": statistics.median(times),
        "five_seconds_ms_min": min(times),
        "five_seconds_ms_max": max(times),
        "words_wrong": wrong(around),
        "words_wrong_bare": wrong(lambda sound: recogniser.transcribe(sound, language="en")),
        "words_wrong_at_10_db": wrong(lambda sound: recogniser.transcribe(noisy(sound, 10), language="en")),
        "threads": threads,
        "used_mb": used_mb,
    }


def measure(stage: str, rounds: int, threads: int) -> dict[str, Any]:
    """Measure one stage in this process."""
    import ctranslate2  # noqa: F401
    import onnxruntime  # noqa: F401
    import soxr  # noqa: F401

    from edge.config import load_settings
    from tests.human_speech import human_set, why_no_speech

    if reason := why_no_speech():
        raise SystemExit(f"There is nothing to measure with: {reason}.")
    settings, recordings = load_settings(), human_set()
    before_mb = memory_mb()
    if stage in ("moonshine", "whisper"):
        found = measure_recogniser(stage, settings, rounds, recordings, threads)
        return {"memory_mb": found.pop("used_mb") - before_mb, **found}
    found = {"vad": measure_vad, "endpoint": measure_endpoint, "ear": measure_ear}[stage](settings, rounds, recordings)
    return {"memory_mb": memory_mb() - before_mb, **found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="of a recogniser")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--stage", choices=STAGES, default=None, help="only this one, in this process, as JSON")
    options = parser.parse_args()
    if options.stage:
        print(json.dumps(measure(options.stage, options.rounds, options.threads)))
        return 0
    results: dict[str, Any] = {}
    for stage in STAGES:
        arguments = ["--stage", stage, "--rounds", str(options.rounds), "--threads", str(options.threads)]
        done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True)
        results[stage] = json.loads(done.stdout)
        print(stage)
        for name, value in results[stage].items():
            print(f"  {name.replace('_', ' '):28}{value if isinstance(value, (int, dict)) else f'{value:.3g}'}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
