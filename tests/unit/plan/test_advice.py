"""Advice: every piece appears when its reason is there, and only then."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edge.device import CapturedSystem, DeviceProfile, Engine, Thermal, probe
from edge.formats.artifact import Artifact
from edge.formats.gguf import GGUFHeader, TensorInfo
from edge.plan import Plan, PlanRequest, make_plan
from edge.plan.advice import advice
from edge.plan.receipt import Safety

FIXTURES = Path(__file__).parents[2] / "fixtures" / "devices"
MIB = 2**20


def device(name: str) -> DeviceProfile:
    return probe(CapturedSystem((FIXTURES / f"{name}.txt").read_text()))


def model(file_type: str = "Q4_0", weights: int = 92 * MIB) -> Artifact:
    tensors = tuple(TensorInfo(f"blk.{i}.w.weight", (576,), file_type, 0, weights // 30) for i in range(30))
    header = GGUFHeader(
        version=3, metadata={"llama.feed_forward_length": 1536}, tensors=tensors, data_offset=0, file_bytes=weights,
        architecture="llama", name="tiny", n_layer=30, n_head=9, n_head_kv=3, head_dim_k=64, head_dim_v=64, n_embd=576,
        n_ctx_train=8192, n_vocab=49152, sliding_window=None, chat_template=None, file_type=file_type, n_params=135 * 10**6,
        tensors_bytes=weights, is_recurrent=False, is_hybrid=False,
    )  # fmt: skip
    return Artifact(Path("tiny.gguf"), "gguf", "tiny", weights, header=header)


def plan_for(profile: DeviceProfile, file_type: str = "Q4_0", safety: Safety | None = None) -> Plan:
    return make_plan(profile, model(file_type), safety=safety)


def test_nothing_to_say() -> None:
    """A machine in order, with a model that suits it."""
    for name in ("raspberry-pi-5", "mac-m3-pro"):
        profile = device(name)
        assert advice(profile) == []
        assert advice(profile, plan_for(profile, safety=Safety(True, ""))) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("jetson-orin-nano", ["power mode 15W; MAXN_SUPER is faster", "sudo nvpmodel -m 2"]),
        (
            "jetson-agx-orin",
            [
                "Orin (integrated) is idle: llama.cpp was built without CUDA",
                "MODE_30W; MAXN is faster",
                "sudo nvpmodel -m 0",
                "4 CPUs are switched off",
                "92 °C and close to slowing down",
            ],
        ),
        ("laptop-rtx4060", ["runs on battery (63 %)", "power-saving mode is on (low-power)"]),
        ("mac-m1", ["runs on battery (72 %)", "power-saving mode is on"]),
        ("container-cgroup-v2", ["pays for 1.5 of 16 CPUs", "the cgroup's limit of 2.1 GB, of 33.6 GB"]),
        ("container-cgroup-v1", ["affinity allows 4 of 8 CPUs"]),
    ],
)
def test_advice_for_a_captured_machine(name: str, words: list[str]) -> None:
    said = "\n".join(advice(device(name)))
    for word in words:
        assert word in said


def test_the_best_mode_needs_no_advice() -> None:
    profile = device("jetson-orin-nano")
    assert profile.jetson is not None
    for mode, is_said in (("MAXN_SUPER", False), ("25W", True), ("7W", True)):
        said = advice(replace(profile, jetson=replace(profile.jetson, power_mode=mode)))
        assert any("nvpmodel" in text for text in said) == is_said


def test_no_engine() -> None:
    profile = replace(device("raspberry-pi-5"), engines=(Engine("llamacpp", "llama-cpp-python", "", ()),))
    assert "llama-cpp-python is not installed" in advice(profile)[0]


def test_heat() -> None:
    profile = replace(device("raspberry-pi-5"), thermal=Thermal("throttled", 85.0, "cpu-thermal"))
    assert "slowed down by heat" in advice(profile)[0]


@pytest.mark.parametrize(
    ("name", "feature", "word"), [("container-cgroup-v1", "avx2", "AVX2"), ("raspberry-pi-5", "dotprod", "dot-product")]
)
def test_an_old_cpu(name: str, feature: str, word: str) -> None:
    profile = device(name)
    assert not any(word in text for text in advice(profile))
    features = tuple(item for item in profile.cpu.features if item != feature)
    assert any(word in text for text in advice(replace(profile, cpu=replace(profile.cpu, features=features))))


def test_weights_that_are_not_repacked() -> None:
    pi = device("raspberry-pi-5")
    [text] = advice(pi, plan_for(pi, "Q4_1"))
    assert "packed as Q4_1" in text
    assert text.endswith(": edge convert tiny.gguf --quant Q4_0 --name tiny-q4_0")
    off = plan_for(pi, safety=Safety(False, "off: the trial died. Build again."))
    assert "Weight repacking is off" in advice(pi, off)[0]
    assert "Build again." in advice(pi, off)[0]
    amx = replace(pi, cpu=replace(pi.cpu, features=("avx2", "amx_tile")))
    assert "has AMX" in advice(amx, plan_for(amx, safety=Safety(False, "off")))[-1]
    mac = device("mac-m3-pro")
    assert advice(mac, plan_for(mac, "Q4_1")) == []  # the GPU does not mind


def test_a_plan_that_is_short_of_memory() -> None:
    pi = device("raspberry-pi-5")
    tight = replace(pi, memory=replace(pi.memory, available_bytes=408 * MIB))
    plan = plan_for(tight)
    assert plan.kv_type_k == "q8_0"
    said = "\n".join(advice(tight, plan))
    assert "stored as q8_0" in said
    assert "may be used. Close other programs" in said


def test_a_gpu_that_the_plan_does_not_use() -> None:
    laptop = device("laptop-rtx4060")
    plan = make_plan(laptop, model(), PlanRequest(gpu_layers=0))
    assert any("RTX 4060 Laptop GPU is not used by this plan" in text for text in advice(laptop, plan))
    part = make_plan(laptop, model(), PlanRequest(gpu_layers=12))
    assert any("Only 12 of 31 layers" in text for text in advice(laptop, part))
    assert not any("layers" in text for text in advice(laptop, make_plan(laptop, model())))


def test_openvino_is_proposed_where_nobody_knows_which_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    def on(version: str, name: str = "raspberry-pi-5", *features: str) -> list[str]:
        profile = device(name)
        engines = tuple(
            Engine("openvino", "openvino", version, ("cpu",) if version else ()) if engine.name == "openvino" else engine
            for engine in profile.engines
        )
        profile = replace(profile, engines=engines, cpu=replace(profile.cpu, features=features))
        return [text for text in advice(profile, plan_for(profile, safety=Safety(True, ""))) if "OpenVINO" in text]

    monkeypatch.setattr("edge.backends.openvino.support.why_not", lambda artifact: "")
    assert "edge tune tiny.gguf --quick" in on("2026.4")[0]
    (text,) = on("", "raspberry-pi-5", "avx2")
    assert "pip install 'edge-assistant[openvino]'" in text
    assert on("") == [], "no package for its processor is sure to be faster"
    monkeypatch.setattr("edge.backends.openvino.support.why_not", lambda artifact: "it has experts")
    assert on("2026.4") == []
