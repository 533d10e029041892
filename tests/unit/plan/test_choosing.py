"""The choice among a model's formats, for captured machines, and its lines in the receipt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge.device import CapturedSystem, DeviceProfile, Engine, probe
from edge.errors import BackendUnavailableError, ModelTooLargeError, UsageError
from edge.formats.artifact import Artifact
from edge.formats.coreml import CoreMLPackage, Golden, PackageInfo
from edge.formats.gguf import GGUFHeader, TensorInfo
from edge.formats.onnx import OnnxFolder
from edge.plan.choosing import choose_plan, rank_formats
from edge.plan.receipt import Plan, PlanRequest
from edge.plan.speed import EngineSpeed
from edge.plan.tuning import Lookup, Tuning

FIXTURES = Path(__file__).parents[2] / "fixtures" / "devices"
MIB = 2**20
ENGINES = {"llamacpp": "llama-cpp-python", "onnx": "onnxruntime", "openvino": "openvino", "coreml": "coremltools"}


def device(name: str, **builds: tuple[str, ...]) -> DeviceProfile:
    """A captured machine with exactly these engines, each built for these accelerators."""
    profile = probe(CapturedSystem((FIXTURES / f"{name}.txt").read_text()))
    engines = tuple(
        Engine(engine, ENGINES[engine], "1.0" if engine in builds else "", builds.get(engine, ())) for engine in ENGINES
    )
    return replace(profile, engines=engines)


def gguf(file_type: str = "Q4_0", size: int = 90 * MIB) -> Artifact:
    sizes = {"n_layer": 30, "n_embd": 576, "n_head": 9, "n_head_kv": 3, "head_dim_k": 64, "head_dim_v": 64}
    counts = {"n_ctx_train": 8192, "n_vocab": 49152, "n_params": 1, "tensors_bytes": size, "version": 3, "data_offset": 0}
    flags = {"is_recurrent": False, "is_hybrid": False, "sliding_window": None, "chat_template": None, "metadata": {}}
    tensors = tuple(TensorInfo(f"blk.{i}.w", (1,), "Q4_0", 0, size // 30) for i in range(30))
    names = {"architecture": "llama", "name": "Tiny", "file_type": file_type, "file_bytes": size, "tensors": tensors}
    header = GGUFHeader(**sizes, **counts, **flags, **names)  # type: ignore[arg-type]
    return Artifact(Path(f"{file_type}.gguf"), "gguf", "Tiny", size, header=header)


def onnx(size: int = 110 * MIB) -> Artifact:
    names = ("input_ids", "attention_mask", "position_ids", "logits")
    layers = dict.fromkeys(("past_key", "past_value", "present_key", "present_value"), ("x",) * 30)
    flags = dict.fromkeys(("shares_buffer", "has_last_logits", "has_branches", "has_position_ids", "has_attention_mask"), True)
    sizes = {"n_layer": 30, "n_head": 9, "n_head_kv": 3, "head_dim": 64, "n_embd": 576, "n_vocab": 49152, "n_ctx_train": 8192}
    about: dict[str, Any] = {"architecture": "llama", "kv_type": "f32", "logits_type": "f32", "quantisation": "int4"}
    folder = OnnxFolder(
        model=Path("o/model.onnx"), files=(Path("o/model.onnx"),), weights_bytes=size,
        **about, **sizes, **flags, **layers, **{name: name for name in names},
    )  # fmt: skip
    return Artifact(Path("o"), "onnx", "Tiny", size, onnx=folder)


def coreml(variant: str = "ane", context: int = 2048, tmp: Path = Path("none")) -> Artifact:
    info = PackageInfo(
        variant=variant, context=context, chunk=64, stateful=True, n_layers=30, n_kv_heads=3, head_dim=64, vocab=49152,
        window=None, n_ctx_train=8192, golden=Golden(prompt=[0], continuation=[0]),
    )  # type: ignore[arg-type]  # fmt: skip
    package = CoreMLPackage(tmp / "m.mlpackage", info, tmp / "model.mlmodel", tmp / "weight.bin")
    return Artifact(Path("m.mlpackage"), "coreml", "Tiny", 100 * MIB, coreml=package)


def tuning_of(backend: str, tokens_per_s: float, **changes: Any) -> Tuning:
    found = measured(backend, tokens_per_s, **changes).tuning
    assert found is not None
    return found


def measured(backend: str, tokens_per_s: float, kv_type: str = "f16", divergence: float | None = 0.004) -> Lookup:
    tuning = Tuning(
        backend=backend, accelerator="cpu", threads=2, threads_batch=2, n_ubatch=512, flash_attention=True, kv_type_k=kv_type,
        kv_type_v=kv_type, decode_tokens_per_s=tokens_per_s, prefill_tokens_per_s=100.0, default_decode_tokens_per_s=10.0,
        default_prefill_tokens_per_s=90.0, n_prompt=128, n_decode=32, measured_on="2026-11-26", divergence=divergence,
    )  # type: ignore[arg-type]  # fmt: skip
    return Lookup(tuning)


def choose(profile: DeviceProfile, *artifacts: Artifact, tuned: dict[str, Lookup] | None = None, **asked: Any) -> Plan:
    return choose_plan(profile, [(each, (tuned or {}).get(each.format)) for each in artifacts], PlanRequest(**asked))


def reason(plan: Plan) -> str:
    return next(choice.reason for choice in plan.choices if choice.what == "format")


def test_a_jetson_uses_cuda_through_whatever_can() -> None:
    jetson = device("jetson-orin-nano", llamacpp=("cuda", "cpu"), onnx=("cuda", "cpu"))
    plan = choose(jetson, onnx(), gguf())
    assert (plan.backend, plan.accelerator) == ("llamacpp", "cuda")
    plan = choose(device("jetson-orin-nano", llamacpp=("cpu",), onnx=("cuda", "tensorrt", "cpu")), gguf(), onnx())
    assert (plan.backend, plan.accelerator) == ("onnx", "cuda")
    assert "CUDA device computes fastest" in reason(plan)
    plan = choose(jetson, gguf(), onnx(), backend="onnx")
    assert (plan.backend, plan.artifact.format, reason(plan)) == ("onnx", "onnx", "what onnx reads, which is asked for")


def test_a_mac_uses_the_neural_engine_or_metal() -> None:
    mac = device("mac-m1", llamacpp=("metal", "cpu"), coreml=("ane", "metal", "cpu"), onnx=("ane", "cpu"))
    plan = choose(mac, gguf(), onnx(), coreml())
    assert (plan.backend, plan.accelerator) == ("coreml", "ane")
    assert "least energy" in reason(plan)
    plan = choose(mac, gguf(), onnx())
    assert (plan.backend, plan.accelerator) == ("llamacpp", "metal")
    assert choose(mac, gguf(), coreml(), require="metal").accelerator == "metal"
    plan = choose(mac, gguf(), onnx(), require="ane")
    assert (plan.backend, plan.accelerator) == ("onnx", "ane")


def test_what_openvino_makes_of_weights_is_counted() -> None:
    machine = device("raspberry-pi-5", onnx=("openvino", "cpu"))
    plan = choose(machine, onnx(), context=1024)
    assert (plan.accelerator, plan.memory.weights_bytes) == ("cpu", 110 * MIB)
    plan = choose(machine, onnx(), context=1024, require="openvino")
    assert (plan.accelerator, plan.memory.weights_bytes) == ("openvino", 16 * 110 * MIB)


def test_on_a_cpu_what_was_measured_faster_is_used() -> None:
    cpu = device("raspberry-pi-5", llamacpp=("cpu",), onnx=("cpu",))
    plan = choose(cpu, onnx(), gguf())
    assert plan.backend == "llamacpp"
    assert "nothing was measured here; also here: onnx int4" in reason(plan)
    both = {"gguf": measured("llamacpp", 20.0), "onnx": measured("onnx", 25.0, "f32")}
    plan = choose(cpu, gguf(), onnx(), tuned=both)
    assert plan.backend == "onnx"
    assert reason(plan) == "edge tune measured on this device, in seconds for a turn of a chat: onnx int4 7.68, gguf Q4_0 8.96"
    only_one = {"onnx": measured("onnx", 25.0, "f32")}
    assert choose(cpu, gguf(), onnx(), tuned=only_one).backend == "llamacpp", "one figure alone compares nothing"


def test_what_was_measured_on_another_accelerator_than_the_one_asked_for_does_not_count() -> None:
    laptop = device("laptop-rtx4060", llamacpp=("cuda", "cpu"), onnx=("cuda", "cpu"))
    both = {"gguf": measured("llamacpp", 20.0), "onnx": measured("onnx", 25.0, "f32")}
    assert choose(laptop, gguf(), onnx(), tuned=both).backend == "onnx"
    plan = choose(laptop, gguf(), onnx(), tuned=both, require="cuda")
    assert (plan.backend, plan.accelerator) == ("llamacpp", "cuda")
    assert "nothing was measured here" in reason(plan)


def test_of_one_format_the_layout_that_suits_the_cpu_is_used() -> None:
    cpu = device("raspberry-pi-5", llamacpp=("cpu",))
    plan = choose(cpu, gguf("Q4_1", 80 * MIB), gguf("Q4_0", 90 * MIB), gguf("Q8_0", 130 * MIB))
    assert plan.artifact.path.name == "Q4_0.gguf"


def test_what_was_published_goes_before_what_was_converted_from_it() -> None:
    cpu = device("raspberry-pi-5", llamacpp=("cpu",), onnx=("cpu",))
    copy = replace(gguf("Q4_0", 80 * MIB), made_from=("0" * 64,))
    plan = choose(cpu, copy, gguf("Q4_1", 90 * MIB), replace(onnx(), made_from=("0" * 64,)))
    assert plan.artifact.path.name == "Q4_1.gguf"
    assert reason(plan).startswith("as it was published; also here: gguf Q4_0, onnx int4")
    # Another accelerator, or a measurement, is a reason to take the copy.
    mac = device("mac-m1", llamacpp=("metal", "cpu"), coreml=("ane", "metal", "cpu"))
    assert choose(mac, gguf("Q4_1"), replace(coreml(), made_from=("0" * 64,))).backend == "coreml"
    both = {"gguf": measured("llamacpp", 20.0), "onnx": measured("onnx", 25.0, "f32")}
    assert choose(cpu, gguf(), replace(onnx(), made_from=("0" * 64,)), tuned=both).backend == "onnx"


def test_what_does_not_fit_is_passed_over_and_told() -> None:
    small = device("raspberry-pi-5", llamacpp=("cpu",), onnx=("cpu",))
    small = replace(small, memory=replace(small.memory, available_bytes=1200 * MIB, total_bytes=1200 * MIB))
    plan = choose(small, gguf(size=4000 * MIB), onnx())
    assert plan.backend == "onnx"
    assert reason(plan).startswith("gguf Q4_0 does not fit into memory; ")
    with pytest.raises(ModelTooLargeError):
        choose(small, gguf(size=4000 * MIB), onnx(size=4000 * MIB))


def test_what_cannot_do_what_is_asked_for_is_passed_over_and_told() -> None:
    mac = device("mac-m1", llamacpp=("metal", "cpu"), coreml=("ane", "metal", "cpu"))
    plan = choose(mac, gguf(), coreml(context=2048), context=4096)
    assert (plan.backend, plan.n_ctx) == ("llamacpp", 4096)
    assert reason(plan).startswith("coreml ane cannot do what is asked for (A context of 4,096 tokens is asked for")
    cpu = device("raspberry-pi-5", llamacpp=("cpu",), onnx=("cpu",))
    faster = {"gguf": measured("llamacpp", 20.0), "onnx": measured("onnx", 25.0, "f32")}
    plan = choose(cpu, gguf(), onnx(), tuned=faster, kv_type_k="q8_0", kv_type_v="q8_0")
    assert (plan.backend, plan.kv_type_k) == ("llamacpp", "q8_0")
    with pytest.raises(UsageError, match="999 threads"):
        choose(cpu, gguf(), onnx(), threads=999)


def test_what_no_engine_here_reads_is_left_out() -> None:
    cpu = device("raspberry-pi-5", onnx=("cpu",))
    plan = choose(cpu, gguf(), coreml(), onnx())
    assert (plan.backend, reason(plan)) == ("onnx", "the only one that can be run here")
    assert rank_formats(cpu, PlanRequest()) == ("onnx",)
    assert rank_formats(cpu, PlanRequest(backend="coreml")) == ("coreml",), "what is missing is said later"
    with pytest.raises(BackendUnavailableError, match="needs the package llama-cpp-python"):
        choose(cpu, gguf(), coreml())
    with pytest.raises(BackendUnavailableError, match="runs on a Mac only, and this is Linux"):
        choose(device("raspberry-pi-5", coreml=()), coreml())


def test_formats_in_the_order_of_what_is_here() -> None:
    assert rank_formats(device("raspberry-pi-5", llamacpp=("cpu",), onnx=("cpu",)), PlanRequest()) == ("gguf", "onnx")
    mac = device("mac-m1", llamacpp=("metal", "cpu"), coreml=("ane", "metal", "cpu"), onnx=("ane", "cpu"))
    assert rank_formats(mac, PlanRequest()) == ("coreml", "gguf", "onnx")
    assert rank_formats(mac, PlanRequest(backend="onnx")) == ("onnx",)
    assert rank_formats(device("raspberry-pi-5"), PlanRequest()) == ("gguf",)


def test_a_format_that_loses_quality_is_not_chosen_for_its_speed() -> None:
    machine = device("raspberry-pi-5", llamacpp=("cpu",), onnx=("cpu",))
    fast = {"gguf": measured("llamacpp", 20.0, divergence=0.0), "onnx": measured("onnx", 90.0, divergence=0.03)}
    assert choose(machine, gguf(), onnx(), tuned=fast).artifact.format == "gguf"
    equal = {**fast, "onnx": measured("onnx", 90.0, divergence=0.009)}
    far = EngineSpeed(
        backend="llamacpp", accelerator="cpu", prefill_tokens_per_s=900.0, decode_tokens_per_s=20.0, load_s=0.0,
        divergence=0.0236, exact=0.0048, exact_limit=0.0201,
    )  # fmt: skip
    tuning = measured("llamacpp", 20.0, divergence=0.0236).tuning
    assert tuning is not None and not tuning.is_lossless
    assert msgspec.structs.replace(tuning, engines=(far,)).is_lossless, "near to the weights, far from the usual engine"
    assert choose(machine, gguf(), onnx(), tuned=equal).artifact.format == "onnx"
    assert choose(machine, gguf(), onnx(), tuned=fast, backend="onnx").artifact.format == "onnx", "but it may be asked for"


def both_engines(available_bytes: int = 8 << 30) -> DeviceProfile:
    machine = device("raspberry-pi-5", llamacpp=("cpu",), openvino=("cpu",))
    return replace(machine, memory=replace(machine.memory, available_bytes=available_bytes))


def test_the_engine_that_was_measured_to_be_faster_is_used_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.backends.openvino.support.why_not", lambda artifact: "")
    machine, model = both_engines(), gguf()
    ours, usual = (
        EngineSpeed(
            backend=name, accelerator="cpu", prefill_tokens_per_s=prefill, decode_tokens_per_s=50.0, load_s=0.0,
            peak_bytes=n_bytes, divergence=divergence, agreement=1.0, pass_ms=((1, 10.0), (2, 11.0)),
        )
        for name, prefill, n_bytes, divergence in (("openvino", 900.0, 500 * MIB, 0.0042), ("llamacpp", 90.0, 200 * MIB, 0.0))
    )  # fmt: skip
    found = msgspec.structs.replace(
        tuning_of("openvino", 50.0), prefill_tokens_per_s=900.0, divergence=0.0042, engines=(ours, usual), is_quick=True
    )
    tuned = {"gguf": Lookup(found)}
    plan = choose(machine, model, tuned=tuned)
    assert (plan.backend, plan.pass_costs) == ("openvino", ((1, 1.0), (2, 1.1)))
    said = next(choice.reason for choice in plan.choices if choice.what == "backend")
    assert said.startswith(
        "measured at set-up on 2026-11-26: a turn of 256 new tokens and 128 of reply takes 2.84 s, with llamacpp "
    )
    assert "10.0 times faster prefill" in said and "524.3 MB of memory instead of 209.7 MB" in said and "0.0042 nats" in said
    assert next(choice.reason for choice in plan.choices if choice.what == "threads").startswith("the 4 ")
    exact = tuple(msgspec.structs.replace(one, exact=nats) for one, nats in ((ours, 0.0048), (usual, 0.0197)))
    known = {"gguf": Lookup(msgspec.structs.replace(found, engines=exact))}
    said = next(choice.reason for choice in choose(machine, model, tuned=known).choices if choice.what == "backend")
    assert said.endswith("apart by rounding (0.0048 from the weights computed exactly, llamacpp 0.0197)")
    for asked in ({"backend": "llamacpp"}, {"kv_type_k": "q8_0", "kv_type_v": "q8_0"}, {"flash_attention": False}):
        assert choose(machine, model, tuned=tuned, **asked).backend == "llamacpp", asked
    assert dict(choose(machine, model, tuned=tuned, backend="llamacpp").pass_costs) == {1: 1.0, 2: 1.1}
    monkeypatch.setattr("edge.backends.openvino.support.why_not", lambda artifact: "it has a sliding window")
    assert choose(machine, model, tuned=tuned).backend == "llamacpp", "a model of the same shape that it cannot run"


def test_a_folder_that_stores_bfloat16_needs_no_cpu_with_amx() -> None:
    folder = onnx()
    assert folder.onnx is not None
    model = replace(folder, onnx=replace(folder.onnx, kv_type="bf16"))
    for asked in ({}, {"kv_type_k": "bf16", "kv_type_v": "bf16"}):
        plan = choose(device("raspberry-pi-5", onnx=("cpu",)), model, **asked)
        assert (plan.backend, plan.kv_type_k) == ("onnx", "bf16")


def test_an_engine_that_was_not_faster_is_said_too() -> None:
    other = EngineSpeed(
        backend="openvino",
        accelerator="cpu",
        prefill_tokens_per_s=128.0,
        decode_tokens_per_s=16.0,
        load_s=0.0,
        divergence=0.004,
    )
    found = msgspec.structs.replace(tuning_of("llamacpp", 50.0), reference="llamacpp on cpu", engines=(other,))
    plan = choose(both_engines(), gguf(), tuned={"gguf": Lookup(found)})
    said = next(choice.reason for choice in plan.choices if choice.what == "backend")
    assert said.endswith("measured by edge tune on 2026-11-26: a turn takes 5.12 s, with openvino on cpu 10.00 s")
    asked = choose(both_engines(), gguf(), tuned={"gguf": Lookup(found)}, backend="llamacpp")
    assert "measured" not in next(choice.reason for choice in asked.choices if choice.what == "backend")


def test_a_kv_type_chooses_the_engine_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.backends.openvino.support.why_not", lambda artifact: "")
    asked = {"kv_type_k": "f32", "kv_type_v": "f32"}
    for tuned in ({}, {"gguf": Lookup(tuning_of("openvino", 50.0))}):
        plan = choose(both_engines(), gguf(), tuned=tuned, **asked)
        assert (plan.backend, plan.kv_type_k) == ("openvino", "f32")
        said = next(choice.reason for choice in plan.choices if choice.what == "backend")
        assert said == "the engine here that stores keys and values as f32", "what was measured was another type"
    with pytest.raises(UsageError, match="cannot store a KV cache as f32"):
        choose(device("raspberry-pi-5", llamacpp=("cpu",)), gguf(), **asked)
    with pytest.raises(UsageError) as refused:
        choose(both_engines(), gguf(), backend="llamacpp", **asked)
    assert str(refused.value.hint).endswith("For f32: --backend openvino."), "nor the engine of the tests"


def test_a_faster_engine_never_costs_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.backends.openvino.support.why_not", lambda artifact: "")
    tuned = {"gguf": Lookup(tuning_of("openvino", 50.0))}
    assert choose(both_engines(), gguf(), tuned=tuned).backend == "openvino"
    small = both_engines(720 * MIB)
    assert choose(small, gguf(), backend="openvino").n_ctx < choose(small, gguf()).n_ctx
    assert choose(small, gguf(), tuned=tuned).backend == "llamacpp"
