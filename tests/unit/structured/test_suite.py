"""The JSON Schema Test Suite: what is enforced, refused, narrower than the schema, or wrong, never worse than the baseline."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from edge.backends.fake import FakeTokenizer
from edge.constraint import Constraint
from edge.errors import ConstraintError
from edge.structured.compiler import Compiler
from edge.structured.rewrite import rewrite

FOLDER = Path(__file__).parents[2] / "fixtures/json_schema_suite"
SUITE: dict[str, list[tuple[Any, list[tuple[Any, bool]]]]] = json.loads(
    gzip.decompress((FOLDER / "draft2020-12.json.gz").read_bytes())
)
BASELINE: dict[str, dict[str, int]] = json.loads((FOLDER / "baseline.json").read_text())
FAULTS = ("refused", "narrow", "wrong")


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    return Compiler(FakeTokenizer())


def allows(compiler: Compiler, schema: Any, instances: list[Any]) -> list[bool] | None:
    """Tell which instances may be written; None if the schema is refused."""
    try:
        compiled = compiler.compile(Constraint.json_schema(schema))
    except ConstraintError:
        return None
    found = []
    for instance in instances:
        matcher, text = compiled.matcher(), json.dumps(instance, ensure_ascii=False).encode("utf-8", "surrogatepass")
        is_valid = matcher.n_valid(text) == len(text)
        if is_valid:
            for byte in text:
                matcher.accept(byte)
        found.append(is_valid and matcher.is_complete)
    return found


def score(compiler: Compiler, file: str) -> Counter[str]:
    counts: Counter[str] = Counter()
    for schema, tests in SUITE[file]:
        found = allows(compiler, schema, [instance for instance, _ in tests])
        if found is None:
            counts["refused"] += len(tests)
            continue
        for is_allowed, (_, is_valid) in zip(found, tests, strict=True):
            counts["right" if is_allowed == is_valid else "narrow" if is_valid else "wrong"] += 1
    return counts


@pytest.mark.parametrize("file", SUITE)
def test_no_file_fares_worse_than_its_baseline(compiler: Compiler, file: str) -> None:
    counts = score(compiler, file)
    assert {fault: counts[fault] for fault in FAULTS if counts[fault] > BASELINE[file].get(fault, 0)} == {}
    assert counts["right"] >= BASELINE[file].get("right", 0)


def test_nothing_wrong_is_allowed_outside_of_formats() -> None:
    assert BASELINE.keys() == SUITE.keys()
    assert {file: counts["wrong"] for file, counts in BASELINE.items() if "wrong" in counts and "format/" not in file} == {}


@pytest.mark.parametrize("file", SUITE)
def test_a_rewritten_schema_allows_nothing_that_the_original_does_not(file: str) -> None:
    """By another validator, on everything that the file tries any schema with."""
    instances = [instance for _, tests in SUITE[file] for instance, _ in tests]
    for schema, _ in SUITE[file]:
        changed = json.loads(rewrite(json.dumps(schema)))
        if changed == schema:
            continue
        try:
            before, after = (
                jsonschema_rs.validator_for(each, validate_formats=True, offline=True) for each in (schema, changed)
            )
        except (ValueError, jsonschema_rs.ReferencingError):
            continue  # a remote document
        for instance in instances:
            assert before.is_valid(instance) or not after.is_valid(instance), (schema, changed, instance)
