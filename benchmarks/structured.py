#!/usr/bin/env python3
"""Measure structured output: the cost of masks against a decode step, and the schemas that can be enforced.

    python benchmarks/structured.py [--model int4.gguf] [--rounds 3] [--json FILE]
    python benchmarks/structured.py --schemas FOLDER      # only count how many of these schema files can be enforced

For each kind of schema, greedy replies of the model. Printed: the time to compile it; for each token the mean and the longest
time that masks take on the engine thread, and that choosing takes longer among some tokens than among all; both as a share of
a decode step; the tokens that were forced, of all; and the time of the reply against one that forces nothing. All are processor
time, with one thread, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

INVOICE = {
    "type": "object",
    "properties": {
        "number": {"type": "string", "maxLength": 12},
        "date": {"type": "string", "format": "date"},
        "seller": {"$ref": "#/$defs/party"},
        "buyer": {"$ref": "#/$defs/party"},
        "items": {
            "type": "array",
            "minItems": 1,
            "maxItems": 3,
            "items": {
                "type": "object",
                "properties": {
                    "text": {"type": "string", "maxLength": 40},
                    "amount": {"type": "integer", "minimum": 1, "maximum": 99},
                    "unit": {"enum": ["piece", "hour", "kg"]},
                },
                "required": ["text", "amount", "unit"],
                "additionalProperties": False,
            },
        },
        "currency": {"enum": ["EUR", "USD", "GBP"]},
    },
    "required": ["number", "date", "seller", "buyer", "items", "currency"],
    "additionalProperties": False,
    "$defs": {
        "party": {
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 30}, "town": {"type": "string", "maxLength": 20}},
            "required": ["name", "town"],
            "additionalProperties": False,
        }
    },
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 12},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
            },
            "required": ["name", "children"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}
LETTER = (
    "Harbour Books, Whitfield, bill 2026-17 of 4 March 2026 to Ada Byron, Eastvale: two atlases, and three hours of binding, "
    "in euros."
)


def tool(number: int) -> dict[str, Any]:
    """Return the schema of a call of one of many tools."""
    properties = {
        "name": {"const": f"tool_{number}"},
        "arguments": {"type": "object", "properties": {"query": {"type": "string"}}},
    }
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def workloads() -> dict[str, tuple[Any, str]]:
    """Return a constraint and a question of each kind."""
    from edge.constraint import Constraint

    person = {"name": {"type": "string"}, "age": {"type": "integer"}, "likes": {"type": "array", "items": {"type": "string"}}}
    form = {"email": {"type": "string", "format": "email"}, "plate": {"type": "string", "pattern": "^[A-Z]{1,3}-[0-9]{2,4}$"}}
    schema = Constraint.json_schema
    return {
        "person": (schema({"type": "object", "properties": person, "required": list(person)}), "Describe a person."),
        "invoice: nested, enums, limits": (schema(INVOICE), LETTER),
        "recursive": (schema(TREE), "Draw the tree of a small family."),
        "20 tools": (schema({"anyOf": [tool(number) for number in range(20)]}), "Search for the weather."),
        "formats and patterns": (schema({"type": "object", "properties": form, "required": list(form)}), "Invent a customer."),
        "a long text": (schema({"type": "object", "properties": {"story": {"type": "string"}}}), "Tell a story about a fox."),
        "any JSON object": (Constraint.json_object(), "Describe a town as JSON."),
        "regular expression": (Constraint.regex(r"([A-Z][a-z]+ ){3,8}[a-z]+\."), "Say something."),
        "choices": (Constraint.choices(["yes", "no", "it depends"]), "Is snow white?"),
    }


class Timed:
    """A matcher that notes the time of every token, and may force nothing."""

    def __init__(self, matcher: Any, *, forces: bool) -> None:
        self._matcher, self._forces = matcher, forces
        self.masks: list[float] = []  # microseconds, those of a token together
        self.newest: Any = None

    is_complete = property(lambda self: self._matcher.is_complete)
    is_over = property(lambda self: self._timed(lambda: self._matcher.is_over))

    def allowed(self) -> Any:
        self.masks.append(0.0)
        self.newest = self._timed(self._matcher.allowed)
        return self.newest

    def accept(self, token: int) -> None:
        self._timed(lambda: self._matcher.accept(token))

    def n_valid(self, tokens: Any) -> int:
        return int(self._timed(lambda: self._matcher.n_valid(tokens)))

    def forced(self) -> Any:
        return self._timed(self._matcher.forced) if self._forces else []

    def _timed(self, function: Any) -> Any:
        began = time.thread_time()
        result = function()
        if self.masks:
            self.masks[-1] += (time.thread_time() - began) * 1e6
        return result


class Engine:
    """A model with a scheduler and a compiler of its own."""

    def __init__(self, plan: Any) -> None:
        from edge.backends.base import open_backend
        from edge.engine.scheduler import Scheduler
        from edge.prompt.template import ChatTemplate
        from edge.structured.compiler import Compiler

        backend = open_backend(plan)
        self.tokenizer, self.template = backend.tokenizer, ChatTemplate.from_model(backend.info)
        self.scheduler, self.compiler = Scheduler(backend), Compiler(backend.tokenizer)

    def ask(self, constraint: Any, question: str, n_tokens: int, *, forces: bool) -> tuple[Any, Timed | None]:
        """Return how a greedy reply ended, and its matcher. None as a constraint is free text."""
        from edge.engine.generation import Failed, Finished, Generation
        from edge.structured.prompt import with_schema
        from edge.types import Message, Sampling

        messages = [Message("user", question)]
        if constraint is not None:
            messages = with_schema(messages, constraint)
        prompt = self.tokenizer.tokenize(self.template.render(messages).text, parse_special=True)
        matcher = Timed(self.compiler.compile(constraint).matcher(), forces=forces) if constraint is not None else None
        self.scheduler.call_alone(lambda _backend, _chunk_size: None)
        events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        sampling = Sampling(temperature=0, max_tokens=n_tokens)
        self.scheduler.submit(Generation(prompt, sampling, events.put, constraint=matcher))
        while not isinstance(event := events.get(), Finished):
            if isinstance(event, Failed):
                raise event.error
        return event, matcher

    def step_us(self, n_steps: int = 30) -> float:
        """Return the microseconds of a decode step behind 200 tokens."""

        def measure(backend: Any, _chunk_size: int) -> float:
            sampler = backend.open_sampler(Sampling(temperature=0))
            backend.prefill(0, list(range(100, 300)))
            began = time.process_time()
            for _ in range(n_steps):
                backend.decode([(0, sampler.sample(0))])
            taken = time.process_time() - began
            sampler.close()
            backend.rewind(0, 0)
            return taken * 1e6 / n_steps

        from edge.types import Sampling

        return float(self.scheduler.call_alone(measure))

    def choosing_us(self, mask: Any, temperature: float) -> float:
        """Return by how many microseconds choosing among some tokens takes longer than among all."""
        from edge.types import Sampling

        def measure(backend: Any, _chunk_size: int) -> float:
            backend.prefill(0, [1, 2, 3])
            times = {}
            for allowed in (None, mask) * 2:
                sampler, taken = backend.open_sampler(Sampling(temperature=temperature, seed=1)), []
                for _ in range(100):
                    began = time.thread_time()
                    sampler.sample(0, 0, allowed)
                    taken.append((time.thread_time() - began) * 1e6)
                sampler.close()
                times[allowed is None] = statistics.median(taken)
            backend.rewind(0, 0)
            return times[False] - times[True]

        return float(self.scheduler.call_alone(measure))


def measure(engine: Engine, constraint: Any, question: str, n_rounds: int, n_tokens: int, step_us: float) -> dict[str, Any]:
    """Measure one kind of schema."""
    from edge.structured.compiler import Compiler

    fresh = Compiler(engine.tokenizer)
    fresh._vocabulary = engine.compiler._vocabulary
    began = time.perf_counter()
    fresh.compile(constraint)
    compile_ms = (time.perf_counter() - began) * 1000
    masks, ratios = [], []
    for _ in range(n_rounds):
        began = time.process_time()
        end, matcher = engine.ask(constraint, question, n_tokens, forces=True)
        between = time.process_time()
        engine.ask(constraint, question, n_tokens, forces=False)
        ratios.append((between - began) / (time.process_time() - between))
        assert matcher is not None
        masks += matcher.masks
    assert matcher is not None
    choosing = {at: engine.choosing_us(matcher.newest, at) for at in (0.0, 0.7)}
    mean = statistics.fmean(masks)
    return {
        "compile_ms": compile_ms, "mean_us": mean, "most_us": max(masks),
        "greedy_us": choosing[0.0], "random_us": choosing[0.7],
        "share": (mean + max(choosing.values())) / step_us, "forced": end.usage.n_forced, "tokens": end.usage.n_generated,
        "time": statistics.median(ratios), "is_partial": end.is_partial,
    }  # fmt: skip


def count_schemas(folder: Path) -> int:
    """Count how many schemas in the files of a folder can be enforced, and why the others cannot.

    A file is a schema, or has one with instances, as MaskBench has: {"schema": ..., "tests": [{"data": ..., "valid": ...}]}.
    """
    from edge.backends.fake import FakeTokenizer
    from edge.constraint import Constraint
    from edge.errors import EdgeError
    from edge.structured.compiler import Compiler

    compiler, counts, reasons, times = Compiler(FakeTokenizer()), Counter[tuple[str, bool]](), Counter[str](), []
    instances: Counter[str] = Counter()
    for path in sorted(folder.rglob("*.json")):
        try:
            schema = json.loads(path.read_text("utf-8"))
        except ValueError:
            continue
        tests = []
        if isinstance(schema, dict) and isinstance(schema.get("tests"), list) and "schema" in schema:
            schema, tests = schema["schema"], schema["tests"]
        began, compiled = time.perf_counter(), None
        try:
            compiled = compiler.compile(Constraint.json_schema(schema))
        except EdgeError as error:
            reasons[error.message.split(" at #")[0][:90]] += 1
        times.append((time.perf_counter() - began) * 1000)
        counts[path.parent.name, compiled is not None] += 1
        if compiled is not None:
            instances.update(judge(compiled.matcher(), test["data"], is_valid=test["valid"]) for test in tests)
    names = sorted({name for name, _ in counts})
    print("| schemas | enforced | of |\n|---|---:|---:|")
    for name in names:
        print(f"| {name} | {counts[name, True]:,} | {counts[name, True] + counts[name, False]:,} |")
    print(f"| all | {sum(counts[name, True] for name in names):,} | {counts.total():,} |")
    print(f"compiling: mean {statistics.fmean(times):.1f} ms, longest {max(times):.0f} ms")
    print("instances:", ", ".join(f"{n:,} {what}" for what, n in instances.most_common()) or "none")
    for reason, n in reasons.most_common(15):
        print(f"{n:6,}  {reason}")
    return 0


def judge(matcher: Any, instance: Any, *, is_valid: bool) -> str:
    """Tell whether a schema allows an instance as it should."""
    text = json.dumps(instance, ensure_ascii=False).encode("utf-8", "surrogatepass")
    if len(text) > 3000:
        return "not tried, being long"
    is_allowed = matcher.n_valid(text) == len(text)
    if is_allowed:
        for byte in text:
            matcher.accept(byte)
        is_allowed = matcher.is_complete
    return "right" if is_allowed == is_valid else "narrower" if is_valid else "wrong"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("EDGE_TEST_MODEL"), help="a GGUF, or a name of the catalogue")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=160, help="most tokens of a reply")
    parser.add_argument("--schemas", type=Path, default=None, help="a folder of schema files, such as JSONSchemaBench's data")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    if options.schemas is not None:
        return count_schemas(options.schemas)
    if not options.model:
        parser.error("give --model, or set EDGE_TEST_MODEL")
    import edge
    from edge.config import load_settings

    engine = Engine(edge.plan_model(options.model, settings=load_settings({"context": 2048, "threads": 1})))
    began = time.perf_counter()
    engine.compiler.compile(workloads()["choices"][0])
    print(f"vocabulary of {engine.tokenizer.n_vocab:,} tokens: {(time.perf_counter() - began) * 1000:.0f} ms, once a model")
    step_us = statistics.median(engine.step_us() for _ in range(options.rounds))
    print(f"a decode step without a schema: {step_us / 1000:.2f} ms\n")
    print(
        "| schema | compile, ms | mask: mean, longest, us | choosing: greedy, random, us | of a step | forced | reply's time |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    results = {}
    for name, (constraint, question) in workloads().items():
        found = results[name] = measure(engine, constraint, question, options.rounds, options.tokens, step_us)
        print(
            f"| {name} | {found['compile_ms']:.1f} | {found['mean_us']:.0f}, {found['most_us']:,.0f} | "
            f"{found['greedy_us']:+.0f}, {found['random_us']:+.0f} | {found['share']:.1%} | "
            f"{found['forced']} of {found['tokens']} | {found['time']:.2f} |",
            flush=True,
        )
    engine.scheduler.close()
    if options.json:
        options.json.write_text(
            json.dumps({"step_us": step_us, "load_average": os.getloadavg()[0], **results}, indent=1) + "\n", "utf-8"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
