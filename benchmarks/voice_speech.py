#!/usr/bin/env python3
"""Measure the voices, each in a process of its own: how fast and how soon they speak, and how well they are understood.

    python benchmarks/voice_speech.py [--voices kokoro hibari flite] [--threads 1 2] [--rounds 5] [--json FILE]

It takes `edge models pull voice`, and flite where that is measured. Printed are, for each voice and number of threads (only
Kokoro has a choice):

  open     time to open it, the phonemes included
  first    time to the sound of a first clause of six words: median and range
  rtf      time for a second of speech, over three sentences of 2 to 12 s: median and range of the rounds
  memory   how much the process grew by all that
  heard    words that Moonshine hears otherwise, of those that were said
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "apps")]

import numpy as np  # noqa: E402
import psutil  # noqa: E402

CLAUSE = "When you open the old door,"
SENTENCES = (
    "The clocks were striking.",
    "It was a bright cold day in April, and nobody wondered why the streets were empty.",
    "She walked along the river until the lights of the town were far behind her, and then she sat down under a tree, "
    "opened the letter with cold fingers, and read it twice from beginning to end.",
)


def words(text: str) -> list[str]:
    return "".join(character for character in text.lower() if character.isalpha() or character == " ").split()


def errors(said: list[str], heard: list[str]) -> int:
    """Return the edit distance of two lists of words."""
    row = list(range(len(heard) + 1))
    for i, one in enumerate(said, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (one != other))
    return row[-1]


def measure(name: str, threads: int, rounds: int) -> dict[str, Any]:
    from edge.catalog import voice_folder
    from edge.config import load_settings
    from edge_voice.registry import open_stage
    from edge_voice.transcripts import transcribe
    from edge_voice.tts.kokoro import Kokoro

    settings, process = load_settings(), psutil.Process()
    before = process.memory_info().rss
    began = time.perf_counter()
    if name == "kokoro":
        voice: Any = Kokoro(voice_folder("kokoro-82m", settings=settings), threads=threads)
    else:
        voice = open_stage("voice", name, settings)
    open_s = time.perf_counter() - began
    first, paces, sounds = list[float](), list[float](), list[Any]()
    list(voice.speak(CLAUSE))
    for _ in range(rounds):
        began = time.perf_counter()
        next(iter(voice.speak(CLAUSE)))
        first.append(time.perf_counter() - began)
        began = time.perf_counter()
        sounds = [np.concatenate(list(voice.speak(sentence))) for sentence in SENTENCES]
        paces.append((time.perf_counter() - began) * voice.rate / sum(map(len, sounds)))
    grown = process.memory_info().rss - before
    said = [word for sentence in SENTENCES for word in words(sentence)]
    heard = [word for sound in sounds for word in words(transcribe(sound, voice.rate, "en", settings=settings).text)]
    return {
        "open_s": open_s,
        "first_s": [statistics.median(first), min(first), max(first)],
        "rtf": [statistics.median(paces), min(paces), max(paces)],
        "memory_mb": grown / 1e6,
        "n_wrong": errors(said, heard),
        "n_words": len(said),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voices", nargs="+", default=["kokoro", "hibari", "flite"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child[0], int(options.child[1]), options.rounds)))
        return
    results = {}
    for name in options.voices:
        for threads in options.threads if name == "kokoro" else [1]:
            command = [sys.executable, __file__, "--child", name, str(threads), "--rounds", str(options.rounds)]
            found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            results[f"{name}, {threads} threads" if name == "kokoro" else name] = found
            first, pace = found["first_s"], found["rtf"]
            print(f"{name}, {threads} threads: open {found['open_s']:.2f} s", end="; ")
            print(f"first {first[0]:.2f} s ({first[1]:.2f} to {first[2]:.2f})", end="; ")
            print(f"rtf {pace[0]:.3f} ({pace[1]:.3f} to {pace[2]:.3f})", end="; ")
            print(f"memory {found['memory_mb']:.0f} MB; heard wrong {found['n_wrong']} of {found['n_words']}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
