"""The accelerators of a Core ML package on a captured Mac, and the receipt when the first one did not work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge.errors import UsageError
from edge.formats.artifact import Artifact
from edge.loading import _with_placement
from edge.plan import make_plan
from edge.plan.choosing import choose_plan
from edge.plan.receipt import Plan, PlanRequest
from tests.unit.plan.test_choosing import coreml, device, gguf

MAC: dict[str, Any] = {"coreml": ("ane", "metal", "cpu")}


@pytest.mark.parametrize(
    ("variant", "accelerator", "fallbacks"),
    [("ane", "ane", ("metal", "cpu")), ("fp16", "ane", ("metal", "cpu")), ("gpu", "metal", ("cpu",))],
)
def test_each_variant_goes_where_it_was_made_for(variant: str, accelerator: str, fallbacks: tuple[str, ...]) -> None:
    plan = make_plan(device("mac-m1", **MAC), coreml(variant))
    assert (plan.backend, plan.accelerator, plan.fallbacks) == ("coreml", accelerator, fallbacks)
    assert plan.to_dict()["fallbacks"] == fallbacks


@pytest.mark.parametrize("required", ["ane", "metal", "cpu"])
def test_what_is_required_is_not_changed(required: Any) -> None:
    plan = make_plan(device("mac-m1", **MAC), coreml("gpu"), PlanRequest(require=required))
    assert (plan.accelerator, plan.fallbacks) == (required, ())


def test_a_package_fixes_its_context() -> None:
    plan = make_plan(device("mac-m1", **MAC), coreml("ane", context=512))
    assert (plan.n_ctx, plan.n_ubatch, plan.kv_type_k) == (512, 64, "f16")
    with pytest.raises(UsageError, match="512"):
        make_plan(device("mac-m1", **MAC), coreml("ane", context=512), PlanRequest(context=1024))


def test_other_engines_have_no_fallbacks() -> None:
    assert make_plan(device("mac-m1", llamacpp=("metal", "cpu")), gguf()).fallbacks == ()


BOTH: Any = [(coreml("ane"), None), (replace(coreml("gpu"), size_bytes=200 << 20), None)]


def variant_of(artifact: Artifact) -> str:
    assert artifact.coreml is not None
    return artifact.coreml.info.variant


def test_a_package_whose_unit_fails_gives_way_to_one_made_for_the_next() -> None:
    failed: set[tuple[str, str]] = set()

    def plan() -> Plan:
        def why(row: object, artifact: Artifact, name: str) -> str:
            return "it died" if (variant_of(artifact), name) in failed else ""

        return choose_plan(device("mac-m1", **MAC), BOTH, PlanRequest(), why_failed=why)

    seen = []
    while len(failed) < 5:  # each unit fails in its turn
        found = plan()
        units = [(variant_of(found.artifact), name) for name in (found.accelerator, *found.fallbacks)]
        seen += [unit for unit in units if unit not in failed]
        assert failed.issuperset(seen) is False, "nothing new would be tried"
        failed.update(units)
    assert seen == [("ane", "ane"), ("gpu", "metal"), ("ane", "metal"), ("gpu", "cpu"), ("ane", "cpu")]
    assert plan().fallbacks, "where nothing works, all of it is told"


def test_the_receipt_says_why_another_package_is_used() -> None:
    plan = choose_plan(
        device("mac-m1", **MAC), BOTH, PlanRequest(), why_failed=lambda row, artifact, name: "it died" if name == "ane" else ""
    )
    assert (plan.artifact.path, plan.accelerator) == (BOTH[1][0].path, "metal")
    assert plan.choices[0].reason.startswith("coreml ane does not work on ane: it died; ")


def test_a_package_that_works_nowhere_gives_way_to_any_other_format() -> None:
    mac = device("mac-m1", llamacpp=("cpu",), **MAC)
    both: Any = [(coreml("ane"), None), (gguf(), None)]
    plan = choose_plan(mac, both, PlanRequest(), why_failed=lambda row, artifact, name: "it died")
    assert (plan.backend, plan.accelerator) == ("llamacpp", "cpu")


def test_a_package_keeps_the_units_on_which_no_other_that_fits_is_better(tmp_path: Path) -> None:
    mac = device("mac-m1", **MAC)
    assert choose_plan(mac, BOTH, PlanRequest()).fallbacks == ()
    with (tmp_path / "weight.bin").open("wb") as weights:
        weights.truncate(99 << 30)
    huge: Any = [BOTH[0], (coreml("gpu", tmp=tmp_path), None)]
    assert choose_plan(mac, huge, PlanRequest()).fallbacks == ("metal", "cpu")


def engine_with(**details: str) -> Any:
    return SimpleNamespace(info=SimpleNamespace(details=details))


def test_the_receipt_says_what_was_tried_and_what_is_used() -> None:
    plan = make_plan(device("mac-m1", **MAC), coreml("ane"))
    tried = "the Neural Engine is not used: A trial of m.mlpackage died of signal 6"
    placement = "GPU 100 % of the work (80 operations)"
    used = _with_placement(plan, engine_with(accelerator="metal", tried=tried, placement=placement))
    assert used.accelerator == "metal"
    (choice,) = [choice for choice in used.choices if choice.what == "accelerator"]
    assert choice.value == "metal"
    assert choice.reason == f"ane was chosen; {tried}"
    assert used.choices[-1].value == placement
    same = _with_placement(plan, engine_with(accelerator="ane"))
    assert same == plan
