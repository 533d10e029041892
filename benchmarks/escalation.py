#!/usr/bin/env python3
"""Calibrate when a small model should send a question on: answers that are right, over the share that is sent on.

    python benchmarks/escalation.py [--small smollm2-135m] [--larger gemma3-270m | openai:URL] [--questions FILE.jsonl]
        [--limit N] [--max-tokens 24] [--json FILE] [--plot FILE.svg]

Each line of FILE has a "question" and its "answers": an answer is right as in docs/eval.md (one of them is in it). Both models
get all questions at temperature 0 behind the same three examples, so that base models answer, too. Of the small model's
answer two signals are measured as the router does (edge/tiers/router.py): the mean entropy of its tokens, and its agreement
with another answer, drawn at temperature 0.7.

For each signal the questions are sent on in the order of doubt, and the share of right answers is printed for every tenth, with
the threshold that gives it. Beside it are what chance would give (a line from one model to the other) and what an oracle would,
which sends on only what the small model gets wrong and the larger one right. AUROC says how well a signal tells the small
model's wrong answers from its right ones: 0.5 is chance.

To ask a server for the larger model's answers, name it as openai:URL; this program agrees that the questions are sent there.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import edge
from edge.messages import Message
from edge.tiers.router import N_LIKELIEST, SECOND_TEMPERATURE, EntropyMeter, agreement_of
from edge_convert.evaluate.tasks.facts import Question, ask, is_right, read_questions

TENTHS = [tenth / 10 for tenth in range(11)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", default="smollm2-135m")
    parser.add_argument("--larger", default="gemma3-270m")
    parser.add_argument("--questions", type=Path, help="default: the questions of edge eval --tasks")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    rows = read_questions(file=options.questions)[: options.limit]
    measured = ask_small(options.small, rows, options.max_tokens)
    ask_larger(options, rows, measured)
    result = summary(measured)
    report(options, measured, result)
    if options.json:
        options.json.write_text(json.dumps({"questions": measured, **result}, ensure_ascii=False, indent=1), encoding="utf-8")
    if options.plot:
        options.plot.write_text(svg(result), encoding="utf-8")


def prompt(question: Question) -> list[Message]:
    """Return a question behind the examples of `edge eval --tasks`."""
    return [Message(role, text) for role, text in ask(question).messages]


def ask_small(name: str, rows: list[Question], max_tokens: int) -> list[dict[str, Any]]:
    """Return the small model's answers with their signals."""
    found = []
    with edge.load(name) as ai:
        for number, row in enumerate(rows):
            note(f"{name}: {number + 1} of {len(rows)}")
            first = ai.generate(prompt(row), temperature=0, max_tokens=max_tokens, logprobs=N_LIKELIEST)
            text = first.wait()
            second = ai.generate(prompt(row), temperature=SECOND_TEMPERATURE, seed=1, max_tokens=max_tokens).wait()
            meter = EntropyMeter()
            meter.add(first.logprobs)
            small = {"text": text, "is_right": is_right(text, row)}
            signals = {"entropy": meter.mean, "agreement": agreement_of(text, second)}
            found.append({"question": row.question, "small": small, **signals})
    return found


def ask_larger(options: argparse.Namespace, rows: list[Question], measured: list[dict[str, Any]]) -> None:
    """Add the larger model's answers, asked for as a next tier is."""
    with edge.load(options.small, escalate_to=options.larger, consent="always") as ai:
        for number, (row, one) in enumerate(zip(rows, measured, strict=True)):
            note(f"{options.larger}: {number + 1} of {len(rows)}")
            reply = ai.generate(prompt(row), temperature=0, max_tokens=options.max_tokens, escalate=True)
            text = reply.wait()
            if not reply.escalated:
                sys.exit(f"\n{options.larger} did not answer: {' '.join(reply.notices)}")
            one["larger"] = {"text": text, "is_right": is_right(text, row), "by": reply.answered_by}


def summary(measured: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the curves: the share of right answers for each share that is sent on."""
    n = len(measured)
    right = {who: sum(one[who]["is_right"] for one in measured) / n for who in ("small", "larger")}
    gains = sorted((one["larger"]["is_right"] - one["small"]["is_right"] for one in measured), reverse=True)
    curves = {}
    for signal, sign in (("entropy", 1), ("agreement", -1)):
        order = sorted(measured, key=lambda one, signal=signal, sign=sign: -sign * one[signal])  # most doubtful first
        curves[signal] = {
            "points": [point(order, share, signal) for share in TENTHS],
            "auroc": auroc([sign * one[signal] for one in measured], [not one["small"]["is_right"] for one in measured]),
        }
    chance = [right["small"] + share * (right["larger"] - right["small"]) for share in TENTHS]
    oracle = [right["small"] + sum(gains[: round(share * n)]) / n for share in TENTHS]
    return {"n": n, "right": right, "curves": curves, "chance": chance, "oracle": oracle}


def point(order: list[dict[str, Any]], share: float, signal: str) -> dict[str, float | None]:
    """Return what sending on so many of the most doubtful gives, and the threshold for it: halfway between two questions."""
    k, n = round(share * len(order)), len(order)
    right = sum(one["larger" if number < k else "small"]["is_right"] for number, one in enumerate(order)) / n
    threshold = None if k in (0, n) else (order[k - 1][signal] + order[k][signal]) / 2
    return {"share": share, "right": right, "threshold": threshold}


def auroc(doubt: list[float], is_wrong: list[bool]) -> float | None:
    """Return how likely a wrong answer has more doubt than a right one; equal ones count half. None without both kinds."""
    wrong = [value for value, bad in zip(doubt, is_wrong, strict=True) if bad]
    fine = [value for value, bad in zip(doubt, is_wrong, strict=True) if not bad]
    if not wrong or not fine:
        return None
    return sum((a > b) + (a == b) / 2 for a in wrong for b in fine) / (len(wrong) * len(fine))


def report(options: argparse.Namespace, measured: list[dict[str, Any]], result: dict[str, Any]) -> None:
    """Print a table as docs/tiers.md has it."""
    print(f"\n{result['n']} questions: {options.small} {result['right']['small']:.0%} right, ", end="")
    print(f"{options.larger} {result['right']['larger']:.0%}")
    for signal, curve in result["curves"].items():
        print(f"AUROC of {signal}: {curve['auroc']:.2f}" if curve["auroc"] is not None else f"AUROC of {signal}: unknown")
    print("\n| sent on | by entropy | threshold (nats) | by agreement | threshold | by chance | by an oracle |")
    print("|---|---|---|---|---|---|---|")
    entropy, agreement = (result["curves"][signal]["points"] for signal in ("entropy", "agreement"))
    for place, share in enumerate(TENTHS):
        cells = []
        for one in (entropy[place], agreement[place]):
            cells += [f"{one['right']:.0%}", "" if one["threshold"] is None else f"{one['threshold']:.2f}"]
        print(f"| {share:.0%} | {' | '.join(cells)} | {result['chance'][place]:.0%} | {result['oracle'][place]:.0%} |")


def svg(result: dict[str, Any]) -> str:
    """Return the curves as a picture."""
    lines = {
        "entropy": ([one["right"] for one in result["curves"]["entropy"]["points"]], "#1f77b4"),
        "agreement": ([one["right"] for one in result["curves"]["agreement"]["points"]], "#2ca02c"),
        "chance": (result["chance"], "#999999"),
        "oracle": (result["oracle"], "#d62728"),
    }
    values = [value for points, _ in lines.values() for value in points]
    low, high = min(values) - 0.02, max(values) + 0.02
    width, height, edge_px = 560, 320, 50

    def place(share: float, value: float) -> str:
        x = edge_px + share * (width - 2 * edge_px)
        return f"{x:.1f},{height - edge_px - (value - low) / (high - low) * (height - 2 * edge_px):.1f}"

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">']
    for number, (name, (points, colour)) in enumerate(lines.items()):
        path = " ".join(place(share, value) for share, value in zip(TENTHS, points, strict=True))
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>')
        parts.append(f'<text x="{edge_px + 8}" y="{edge_px + 16 * number}" fill="{colour}">{name}</text>')
    parts.append(f'<text x="{width / 2}" y="{height - 12}" text-anchor="middle">share of questions sent on</text>')
    parts += [f'<text x="4" y="{place(0, value).partition(",")[2]}">{value:.0%}</text>' for value in (low + 0.02, high - 0.02)]
    return "\n".join([*parts, "</svg>\n"])


def note(text: str) -> None:
    """Say on a terminal how far it is."""
    if sys.stderr.isatty():
        print(f"\r{text}  ", end="", file=sys.stderr)


if __name__ == "__main__":
    main()
