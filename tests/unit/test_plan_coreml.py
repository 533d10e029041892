"""Which accelerators a Core ML package may use on a captured Mac, and what the receipt says when the first one did not work."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from edge.choosing import choose_plan
from edge.errors import UsageError
from edge.loading import _with_placement
from edge.plan import make_plan
from edge.receipt import PlanRequest
from tests.unit.test_choosing import coreml, device, gguf

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


def test_a_package_whose_unit_failed_before_gives_way_to_one_made_for_the_next() -> None:
    both: Any = [(coreml("ane"), None), (replace(coreml("gpu"), size_bytes=200 << 20), None)]
    mac = device("mac-m1", **MAC)
    plan = choose_plan(mac, both, PlanRequest())
    assert (plan.artifact, plan.accelerator) == (both[0][0], "ane")
    plan = choose_plan(mac, both, PlanRequest(), has_failed=lambda artifact, accelerator: accelerator == "ane")
    assert (plan.artifact, plan.accelerator) == (both[1][0], "metal")
    plan = choose_plan(mac, both, PlanRequest(), has_failed=lambda artifact, accelerator: True)
    assert plan.accelerator in ("ane", "metal"), "somebody has to say what is wrong"


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
