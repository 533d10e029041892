#!/usr/bin/env python3
"""Compare one model in every format: greedy answers of GGUF, ONNX and Core ML, token by token.

    python benchmarks/agreement.py SOURCE.gguf OTHER [OTHER ...] [--prompts 20] [--tokens 8] [--json agreement.json]

SOURCE is what the others were made from; llama.cpp's answers to it are the reference. OTHER is a GGUF file, an ONNX folder or a
Core ML package. Every format answers by itself, and is then shown the reference's answer, so that one early difference does not
count as many. Each model runs in turn, on the CPU, with a KV cache in float16.

Away from a Mac, Core ML packages are computed by the converters' evaluator in the place of Apple's engine: that says what the
package computes, not what a Mac makes of it. The table says so.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))  # tests/standins

from edge.backends.base import Backend, open_backend
from edge.device import probe
from edge.formats.artifact import open_artifact
from edge.plan import PlanRequest, make_plan
from edge.plan.receipt import MemoryEstimate, Plan

PROMPTS = (
    "What is the capital of France?",
    "Name three colours.",
    "How many legs does a spider have?",
    "What is 12 plus 30?",
    "Write one sentence about the sea.",
    "Who wrote Pride and Prejudice?",
    "Translate 'good morning' into Spanish.",
    "What do bees make?",
    "Is the sun a star?",
    "List two kinds of trees.",
    "What is water made of?",
    "Explain what a train is.",
    "What comes after Wednesday?",
    "Give me a word that rhymes with cat.",
    "Which planet is the largest?",
    "How do I boil an egg?",
    "What is the opposite of cold?",
    "Tell me a fact about dogs.",
    "Where do penguins live?",
    "What is a prime number?",
)
CONTEXT = 256


@dataclass
class Answers:
    """Answers of one model.

    Attributes:
        name: of the file or folder.
        engine: what computed it.
        prompts: token ids of every prompt.
        greedy: its own answer to every prompt, token ids.
        logits: at each position of the reference's answers, float32 [positions, vocab].
        seconds: of everything but loading.
    """

    name: str
    engine: str
    prompts: list[list[int]] = field(default_factory=list)
    greedy: list[list[int]] = field(default_factory=list)
    logits: list[np.ndarray] = field(default_factory=list)
    seconds: float = 0.0


def plan_for(path: Path) -> Plan:
    artifact = open_artifact(path)
    if artifact.format == "coreml" and platform.system() != "Darwin":  # which the plan knows, and would refuse
        memory = MemoryEstimate(0, 0, 0, 0, 0)
        return Plan(
            "coreml", "cpu", artifact, CONTEXT, 1, 1, 1, 64, 64, 0, "f16", "f16", True, True, False, True, memory, ()
        )  # fmt: skip
    plan = make_plan(probe(), artifact, PlanRequest(require="cpu", context=CONTEXT, n_seq=1))
    return replace(plan, n_ubatch=64)


@contextmanager
def opened(path: Path) -> Iterator[tuple[str, Backend]]:
    plan = plan_for(path)
    if plan.backend != "coreml" or platform.system() == "Darwin":
        with open_backend(plan) as backend:
            yield {"llamacpp": "llama.cpp", "onnx": "onnxruntime", "coreml": "Core ML"}[backend.name], backend
        return
    from edge.backends.coreml.backend import CoreMLBackend
    from edge.backends.coreml.trial import Verdict
    from tests.standins.coremltools_predict import make_coremltools

    with tempfile.TemporaryDirectory() as cache:
        good = Verdict(is_good=True)
        with CoreMLBackend(plan, coremltools=make_coremltools(), verdict=good, cache_dir=Path(cache)) as backend:
            yield "evaluator in the place of Core ML", backend


def ask(path: Path, n_prompts: int, n_tokens: int, reference: Answers | None) -> Answers:
    with opened(path) as (engine, backend):
        name = path.parent.name if path.suffix == ".mlpackage" else path.name
        answers = Answers(name, engine)
        started = time.perf_counter()
        for number, text in enumerate(PROMPTS[:n_prompts]):
            chat = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
            prompt = backend.tokenizer.tokenize(chat, parse_special=True)
            answers.prompts.append(prompt)
            backend.rewind(0, 0)
            backend.prefill(0, prompt)
            logits, own, seen = backend.logits(0), [], []
            for _ in range(n_tokens):
                seen.append(logits)
                own.append(int(logits.argmax()))
                if backend.tokenizer.is_end(own[-1]):
                    break
                backend.decode([(0, own[-1])])
                logits = backend.logits(0)
            answers.greedy.append(own)
            shown = reference.greedy[number] if reference else own
            n_same = next((i for i, pair in enumerate(zip(own, shown, strict=False)) if pair[0] != pair[1]), len(own))
            if n_same < len(shown):  # from where it said something else, it is shown what the reference said
                seen = seen[: n_same + 1]
                backend.rewind(0, len(prompt) + n_same)
                for token in shown[n_same : len(shown) - 1]:
                    backend.decode([(0, token)])
                    seen.append(backend.logits(0))
            answers.logits.append(np.stack(seen[: len(shown)]))
            print(f"{engine}: {number + 1} of {n_prompts}", file=sys.stderr)
        answers.seconds = time.perf_counter() - started
    return answers


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def compare(reference: Answers, other: Answers) -> dict[str, Any]:
    expected, found = np.concatenate(reference.logits), np.concatenate(other.logits)
    log_p, log_q = log_softmax(expected), log_softmax(found)
    ordered = np.sort(expected, axis=-1)
    margin = ordered[:, -1] - ordered[:, -2]
    same = expected.argmax(axis=-1) == found.argmax(axis=-1)
    return {
        "model": other.name,
        "engine": other.engine,
        "same_prompt_tokens": sum(a == b for a, b in zip(reference.prompts, other.prompts, strict=True)),
        "same_answers": sum(a == b for a, b in zip(reference.greedy, other.greedy, strict=True)),
        "n_prompts": len(reference.prompts),
        "same_tokens": int(same.sum()),
        "n_tokens": len(same),
        "widest_margin_lost": float(margin[~same].max()) if not same.all() else 0.0,
        "kl_nats": float((np.exp(log_p) * (log_p - log_q)).sum(axis=-1).mean()),
        "seconds": other.seconds,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="GGUF file that the others were made from")
    parser.add_argument("others", type=Path, nargs="*", help="GGUF files, ONNX folders, Core ML packages")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), choices=range(1, len(PROMPTS) + 1), metavar="N")
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    reference = ask(options.source, options.prompts, options.tokens, None)
    rows = [compare(reference, ask(path, options.prompts, options.tokens, reference)) for path in options.others]
    print(
        f"reference: {reference.name} ({reference.engine}), {options.prompts} prompts, {options.tokens} tokens each at most\n"
    )
    print("| model | computed by | same prompt tokens | same answers | same next token | KL (nats) | widest margin lost |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['model']} | {row['engine']} | {row['same_prompt_tokens']} of {row['n_prompts']} "
            f"| {row['same_answers']} of {row['n_prompts']} | {row['same_tokens']} of {row['n_tokens']} "
            f"| {row['kl_nats']:.5f} | {row['widest_margin_lost']:.2f} |"
        )
    if options.json:
        options.json.write_text(json.dumps({"reference": reference.name, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
