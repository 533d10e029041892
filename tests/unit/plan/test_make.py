"""Plans: for captured machines, for every kind of request, and what holds for all of them."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edge.device import CapturedSystem, DeviceProfile, Engine, probe
from edge.errors import BackendUnavailableError, EdgeError, ModelTooLargeError, UsageError
from edge.formats.artifact import Artifact
from edge.formats.gguf import GGUFHeader, TensorInfo
from edge.plan import Plan, PlanRequest, make_plan
from edge.plan.choosing import rank_formats
from edge.plan.memory import Layout, gguf_memory
from edge.plan.placement import find_targets
from edge.plan.receipt import Safety
from edge.registry import ENGINES
from edge.units import size_text

FIXTURES = Path(__file__).parents[2] / "fixtures" / "devices"
MIB, GIB = 2**20, 2**30


def device(
    name: str, *, free: int | None = None, gpu_free: int | None = None, built_for: tuple[str, ...] = ()
) -> DeviceProfile:
    """A captured machine, with other amounts of free memory or another build of llama.cpp."""
    profile = probe(CapturedSystem((FIXTURES / f"{name}.txt").read_text()))
    if free is not None:
        memory = replace(profile.memory, available_bytes=free, total_bytes=max(free, profile.memory.total_bytes))
        profile = replace(profile, memory=memory)
        gpus = tuple(replace(gpu, free_bytes=min(gpu.total_bytes, free)) for gpu in profile.gpus if gpu.is_unified)
        profile = replace(profile, gpus=gpus or profile.gpus)
    if gpu_free is not None:
        profile = replace(profile, gpus=tuple(replace(gpu, free_bytes=gpu_free) for gpu in profile.gpus))
    if built_for:
        engines = tuple(Engine(e.name, e.package, "0.3.36", built_for) if e.name == "llamacpp" else e for e in profile.engines)
        profile = replace(profile, engines=engines)
    return profile


def model(
    *,
    n_layer: int = 28,
    n_embd: int = 3072,
    n_head: int = 24,
    n_kv: int = 8,
    dim: int = 128,
    n_ctx: int = 131072,
    n_vocab: int = 128256,
    weights: int = 1900 * MIB,
    **changes: Any,
) -> Artifact:
    """A model of about the size of Llama-3.2-3B at 4 bits, as a header without a file."""
    part = weights // (n_layer + 1)
    tensors = [TensorInfo("token_embd.weight", (n_embd, n_vocab), "Q4_0", 0, part)]
    tensors += [TensorInfo(f"blk.{i}.all.weight", (n_embd,), "Q4_0", 0, part) for i in range(n_layer)]
    values: dict[str, Any] = {
        "version": 3, "metadata": {"llama.feed_forward_length": 8192}, "tensors": tuple(tensors), "data_offset": 0,
        "file_bytes": weights, "architecture": "llama", "name": "test", "n_layer": n_layer, "n_head": n_head,
        "n_head_kv": n_kv, "head_dim_k": dim, "head_dim_v": dim, "n_embd": n_embd, "n_ctx_train": n_ctx,
        "n_vocab": n_vocab, "sliding_window": None, "chat_template": None, "file_type": "Q4_0", "n_params": 3 * 10**9,
        "tensors_bytes": weights, "is_recurrent": False, "is_hybrid": False,
    }  # fmt: skip
    header = GGUFHeader(**{**values, **changes})
    return Artifact(Path("/models/test.gguf"), "gguf", "test-3b", weights, header=header)


SMALL = model(n_layer=30, n_embd=576, n_head=9, n_kv=3, dim=64, n_ctx=8192, n_vocab=49152, weights=92 * MIB)
BIG = model()


def choice(plan: Plan, what: str) -> tuple[str, str]:
    return next((c.value, c.reason) for c in plan.choices if c.what == what)


# -- captured machines


@pytest.mark.parametrize(
    ("name", "accelerator", "threads", "prefill"),
    [
        ("jetson-orin-nano", "cuda", 6, 6),
        ("jetson-agx-orin", "cpu", 8, 8),  # its llama.cpp has no CUDA
        ("mac-m1", "metal", 4, 4),
        ("mac-m3-pro", "metal", 5, 5),
        ("raspberry-pi-5", "cpu", 4, 4),
        ("laptop-rtx4060", "cuda", 6, 6),
        ("container-cgroup-v2", "cpu", 1, 1),  # 1.5 CPUs are paid for, of 16
        ("container-cgroup-v1", "cpu", 2, 2),  # 4 hardware threads of 2 cores
    ],
)
def test_the_plan_for_a_captured_machine(name: str, accelerator: str, threads: int, prefill: int) -> None:
    plan = make_plan(device(name), SMALL)
    assert (plan.backend, plan.accelerator, plan.n_threads, plan.n_threads_batch) == ("llamacpp", accelerator, threads, prefill)
    assert plan.gpu_layers == (31 if accelerator != "cpu" else 0)
    assert (plan.n_ctx, plan.kv_type_k, plan.kv_type_v, plan.n_ubatch) == (8192, "f16", "f16", 512)
    assert plan.use_mmap == (name != "jetson-orin-nano")
    assert plan.flash_attention


def test_the_receipt_says_why_a_gpu_is_idle() -> None:
    value, reason = choice(make_plan(device("jetson-agx-orin"), SMALL), "accelerator")
    assert value == "cpu"
    assert "Orin (integrated) is here, but the installed llama-cpp-python was built without CUDA" in reason


def test_the_receipt_as_text_is_aligned() -> None:
    plan = make_plan(device("raspberry-pi-5"), SMALL)
    lines = plan.explain().splitlines()
    assert len(lines) == len(plan.choices)
    starts = {line.index(c.reason) for line, c in zip(lines, plan.choices, strict=True) if c.reason}
    assert len(starts) == 1
    for part in ("8,192 tokens", "23,040 bytes a token", "the 4 physical cores", "weights 96.5 MB, KV cache 188.7 MB"):
        assert part in plan.explain()


def test_the_receipt_as_json() -> None:
    plan = make_plan(device("mac-m1"), SMALL)
    values = json.loads(json.dumps(plan.to_dict()))
    assert values["artifact"]["name"] == "test-3b"
    assert values["accelerator"] == "metal"
    assert {"what": "backend", "value": "llamacpp"}.items() <= values["choices"][0].items()
    assert values["memory"]["total_bytes"] == plan.memory.total_bytes


def test_what_the_canary_found_is_in_the_receipt() -> None:
    laptop = device("raspberry-pi-5")
    for safety in (Safety(False, "off: the trial run died"), Safety(True, ""), None):
        plan = make_plan(laptop, SMALL, safety=safety)
        assert plan.use_extra_buffers == (safety is None or safety.use_extra_buffers)
        value, reason = choice(plan, "weight repacking")
        assert (value == "on") == plan.use_extra_buffers
        assert reason
    assert choice(make_plan(laptop, SMALL, safety=Safety(False, "off: it died")), "weight repacking")[1] == "off: it died"


# -- threads


def test_efficiency_cores_join_prefill_only_where_the_team_gains() -> None:
    laptop = device("laptop-rtx4060", built_for=("cpu",))
    assert make_plan(laptop, SMALL).n_threads_batch == 6  # 10 cores at 73 % are 1.2 times 6 cores
    many = replace(laptop, cpu=replace(laptop.cpu, usable_efficiency=8, n_efficiency=8))
    plan = make_plan(many, SMALL)
    assert (plan.n_threads, plan.n_threads_batch) == (6, 14)
    assert "73% as fast" in choice(plan, "threads, prefill")[1]


def test_a_process_on_slow_cores_only_still_has_threads() -> None:
    pi = device("raspberry-pi-5")
    slow = replace(pi, cpu=replace(pi.cpu, usable_performance=0, usable_efficiency=2, n_efficiency=2))
    assert make_plan(slow, SMALL).n_threads == 2


def test_threads_asked_for() -> None:
    laptop = device("container-cgroup-v1")
    plan = make_plan(laptop, SMALL, PlanRequest(threads=4))
    assert (plan.n_threads, plan.n_threads_batch) == (4, 4)
    with pytest.raises(UsageError) as error:
        make_plan(laptop, SMALL, PlanRequest(threads=5))
    assert "affinity allows 4 of 8 CPUs" in error.value.message
    assert "--threads 4" in error.value.hint


# -- context and KV cache


def test_context_is_lowered_to_what_fits() -> None:
    sizes = [make_plan(device("raspberry-pi-5", free=free * MIB), BIG).n_ctx for free in (2800, 3000, 3200, 3600)]
    assert sizes == sorted(sizes)
    assert 2048 <= sizes[0] < sizes[-1] == 8192
    plan = make_plan(device("raspberry-pi-5", free=3000 * MIB), BIG)
    assert "as much as fits into memory; the model was trained for 131,072" in choice(plan, "context")[1]


def test_the_kv_cache_is_quantised_only_when_memory_is_short() -> None:
    tight = make_plan(device("raspberry-pi-5", free=2400 * MIB), BIG)
    assert (tight.kv_type_k, tight.kv_type_v, tight.n_ubatch) == ("q8_0", "q8_0", 128)
    assert 512 <= tight.n_ctx <= 2048
    assert "to save memory" in choice(tight, "KV cache")[1]
    roomy = make_plan(device("raspberry-pi-5"), BIG)
    assert (roomy.kv_type_k, roomy.n_ubatch) == ("f16", 512)


def with_openvino(free_mib: int = 4000) -> DeviceProfile:
    engine = Engine("openvino", "openvino", "2026.4.1", ("cpu",))
    pi = device("raspberry-pi-5", free=free_mib * MIB)
    return replace(pi, engines=(*(item for item in pi.engines if item.name != engine.name), engine))


def test_each_engine_has_kv_types_of_its_own() -> None:
    def plan(free: int = 4000, **asked: Any) -> Plan:
        return make_plan(with_openvino(free), SMALL, PlanRequest(**{"backend": "openvino", **asked}))

    exact, small = plan(), plan(kv_type_k="u8", kv_type_v="u8")
    assert (small.backend, small.kv_type_k) == ("openvino", "u8")
    assert small.memory.kv_bytes / exact.memory.kv_bytes == pytest.approx(0.625)
    for backend, kv_type, known in (
        ("openvino", "q8_0", "f16, u8, bf16, f32"),
        ("llamacpp", "u8", "f16, q8_0, q4_0. For u8: --backend openvino."),
    ):
        with pytest.raises(UsageError, match=f"cannot store a KV cache as {kv_type}") as refused:
            plan(backend=backend, kv_type_k=kv_type, kv_type_v=kv_type)
        assert known in refused.value.hint
    for mixed in ({"kv_type_k": "u8"}, {"kv_type_k": "u8", "kv_type_v": "f16"}):
        with pytest.raises(UsageError, match="asks for u8 and f16") as refused:
            plan(**mixed)
        assert "--kv-type u8" in refused.value.hint
    assert plan(backend="llamacpp", kv_type_k="q8_0").kv_type_v == "f16"
    with pytest.raises(UsageError, match="as bf16 only on CPUs with amx_bf16") as refused:
        plan(kv_type_k="bf16", kv_type_v="bf16")
    assert refused.value.hint == "Use --kv-type f16."
    kinds = []
    for free in range(500, 1500, 8):
        with suppress(ModelTooLargeError):
            kinds.append(plan(free).kv_type_k)
    assert set(kinds) == {"u8", "f16"}
    assert kinds == sorted(kinds, reverse=True)  # less memory, smaller type; bf16 saves none


def test_with_amx_keys_and_values_can_be_bfloat16() -> None:
    xeon = with_openvino()
    xeon = replace(xeon, cpu=replace(xeon.cpu, features=("avx2", "amx_bf16")))
    made = make_plan(xeon, SMALL, PlanRequest(backend="openvino", kv_type_k="bf16", kv_type_v="bf16"))
    assert made.kv_type_k == made.kv_type_v == "bf16"
    exact = make_plan(xeon, SMALL, PlanRequest(backend="openvino"))
    assert made.memory.kv_bytes == exact.memory.kv_bytes
    asked = PlanRequest(backend="openvino", context=4096, kv_type_k="bf16", kv_type_v="bf16")
    with pytest.raises(ModelTooLargeError) as refused:
        make_plan(replace(xeon, memory=replace(xeon.memory, available_bytes=690 * MIB)), SMALL, asked)
    assert "--kv-type u8" in refused.value.hint, "the same offer as with f16"


def test_keys_and_values_in_32_bits_are_asked_for_and_never_offered_for_want_of_memory() -> None:
    asked = PlanRequest(backend="openvino", context=4096, kv_type_k="f32", kv_type_v="f32")
    made, exact = (
        make_plan(with_openvino(), SMALL, asked),
        make_plan(with_openvino(), SMALL, replace(asked, kv_type_k=None, kv_type_v=None)),
    )
    assert made.memory.kv_bytes == 2 * exact.memory.kv_bytes
    with pytest.raises(ModelTooLargeError) as refused:
        make_plan(with_openvino(740), SMALL, asked)
    assert "--kv-type f16" in refused.value.hint, "the first one that fits"
    with pytest.raises(UsageError, match="cannot store a KV cache as f32") as elsewhere:
        make_plan(with_openvino(), SMALL, replace(asked, backend="llamacpp"))
    assert "For f32: --backend openvino" in elsewhere.value.hint


def test_heads_that_cannot_be_quantised_stay_exact() -> None:
    odd = model(dim=120, n_head=24)
    plan = make_plan(device("raspberry-pi-5", free=2400 * MIB), odd)
    assert plan.kv_type_k == "f16"
    with pytest.raises(UsageError, match="120 numbers wide"):
        make_plan(device("raspberry-pi-5"), odd, PlanRequest(kv_type_v="q4_0"))


def test_context_asked_for_is_kept_or_refused() -> None:
    pi = device("raspberry-pi-5", free=3000 * MIB)
    plan = make_plan(pi, BIG, PlanRequest(context=3000))
    assert plan.n_ctx == 3072  # llama.cpp's steps of 256
    assert "3,000 asked for" in choice(plan, "context")[1]
    with pytest.raises(ModelTooLargeError) as error:
        make_plan(pi, BIG, PlanRequest(context=7000))
    assert "7,000 tokens needs" in error.value.message
    assert "GB may be used" in error.value.message
    assert "--kv-type q8_0" in error.value.hint
    assert "--context " in error.value.hint
    offered = int(error.value.hint.split("--context ")[1].rstrip("."))
    assert make_plan(pi, BIG, PlanRequest(context=offered)).n_ctx == offered
    assert make_plan(pi, BIG, PlanRequest(context=7000, kv_type_k="q8_0", kv_type_v="q8_0")).n_ctx == 7168
    with pytest.raises(ModelTooLargeError):
        make_plan(pi, BIG, PlanRequest(context=offered + 256))


def test_context_beyond_the_training_is_done_and_said() -> None:
    plan = make_plan(device("raspberry-pi-5"), SMALL, PlanRequest(context=16384))
    assert plan.n_ctx == 16384
    assert "trained for 8,192" in choice(plan, "context")[1]
    [notice] = plan.notices
    assert "16,384 tokens" in notice and "trained for 8,192" in notice


@pytest.mark.parametrize("context", [None, 100, 8000, 8192])
def test_a_context_within_the_training_needs_no_notice(context: int | None) -> None:
    assert make_plan(device("raspberry-pi-5"), SMALL, PlanRequest(context=context)).notices == []
    odd = model(n_ctx=1000, weights=100 * MIB)  # in steps of 256, 1,000 are 1,024
    assert make_plan(device("raspberry-pi-5"), odd, PlanRequest(context=1000)).notices == []


def test_a_model_of_a_short_context_gets_all_of_it() -> None:
    plan = make_plan(device("raspberry-pi-5"), model(n_ctx=1024, weights=100 * MIB))
    assert plan.n_ctx == 1024
    assert choice(plan, "context")[1] == "all that the model was trained for"


def test_a_model_that_is_too_large_is_refused_with_numbers() -> None:
    with pytest.raises(ModelTooLargeError) as error:
        make_plan(device("container-cgroup-v2"), BIG)
    assert "weights 2.0 GB" in error.value.message
    assert "the cgroup's limit of 2.1 GB" in error.value.message
    assert "higher memory limit for the container" in error.value.hint
    assert error.value.exit_code == 1


def test_a_format_of_which_only_the_size_is_known() -> None:
    onnx = Artifact(Path("/models/a"), "onnx", "a", 3 * GIB)
    plan = make_plan(device("raspberry-pi-5"), onnx, PlanRequest(backend="fake"))
    assert plan.memory.weights_bytes == 3 * GIB
    with pytest.raises(ModelTooLargeError):
        make_plan(device("raspberry-pi-5", free=2 * GIB), onnx, PlanRequest(backend="fake"))


# -- accelerators


def test_as_many_layers_as_fit() -> None:
    laptop = device("laptop-rtx4060", gpu_free=2 * GIB)
    plan = make_plan(laptop, BIG)
    assert plan.accelerator == "cuda"
    assert 1 <= plan.gpu_layers < 29
    assert choice(plan, "layers offloaded")[0] == f"{plan.gpu_layers} of 29"
    assert plan.memory.device_bytes <= plan.memory.device_available_bytes < 2 * GIB
    memory = gguf_memory(BIG.header)  # type: ignore[arg-type]
    more = Layout(plan.n_ctx, plan.n_seq, plan.n_ubatch, "f16", "f16", True, plan.gpu_layers + 1, "cuda")
    assert memory.footprint(more).device.total > plan.memory.device_available_bytes


def test_a_gpu_that_is_full_leaves_the_cpu() -> None:
    laptop = device("laptop-rtx4060", gpu_free=300 * MIB)
    plan = make_plan(laptop, BIG)
    assert (plan.accelerator, plan.gpu_layers) == ("cpu", 0)
    assert "cuda has no room for it" in choice(plan, "accelerator")[1]
    with pytest.raises(BackendUnavailableError, match="not even in part") as error:
        make_plan(laptop, BIG, PlanRequest(require="cuda"))
    assert error.value.exit_code == 4


def test_layers_asked_for_are_kept_or_refused() -> None:
    laptop = device("laptop-rtx4060", gpu_free=1700 * MIB)
    most = make_plan(laptop, BIG).gpu_layers
    assert make_plan(laptop, BIG, PlanRequest(gpu_layers=3)).gpu_layers == 3
    assert make_plan(laptop, BIG, PlanRequest(gpu_layers=0)).accelerator == "cpu"
    for wanted in (-1, 29, 99):
        with pytest.raises(ModelTooLargeError) as error:
            make_plan(laptop, BIG, PlanRequest(gpu_layers=wanted))
        assert "29 layers on NVIDIA GeForce RTX 4060 Laptop GPU" in error.value.message
        offered = int(error.value.hint.split("--gpu-layers ")[1].rstrip("."))
        assert offered >= most  # with a smaller context than the usual one even more fit
        assert make_plan(laptop, BIG, PlanRequest(gpu_layers=offered)).gpu_layers == offered
    assert make_plan(device("laptop-rtx4060"), BIG, PlanRequest(gpu_layers=-1)).gpu_layers == 29


def test_main_memory_and_the_gpus_own_are_two_things() -> None:
    laptop = device("laptop-rtx4060", free=1 * GIB)
    assert make_plan(laptop, BIG).gpu_layers == 29
    with pytest.raises(ModelTooLargeError) as error:
        make_plan(laptop, BIG, PlanRequest(gpu_layers=3))  # most of the weights would be in main memory
    assert "of main memory, beside NVIDIA GeForce RTX 4060 Laptop GPU" in error.value.message
    assert "805.3 MB may be used" in error.value.message


def test_metal_may_not_use_all_of_the_memory() -> None:
    mac = device("mac-m1", free=7 * GIB)  # of which Metal gets 5.3 GiB
    large = model(weights=5400 * MIB)
    assert 20 < make_plan(mac, large).gpu_layers < 29
    with pytest.raises(ModelTooLargeError) as error:
        make_plan(mac, large, PlanRequest(gpu_layers=-1))
    assert "29 layers on Apple M1 GPU needs 5.8 GB there, and 5.7 GB may be used" in error.value.message
    assert "--gpu-layers 28" in error.value.hint


def test_a_model_too_large_for_gpu_and_cpu_together() -> None:
    with pytest.raises(ModelTooLargeError) as error:
        make_plan(device("laptop-rtx4060"), model(weights=30 * GIB))
    assert "weights 32.2 GB" in error.value.message
    assert "smaller model" in error.value.hint


def test_on_a_jetson_leaving_layers_out_saves_nothing() -> None:
    nano = device("jetson-orin-nano", free=2600 * MIB)
    plan = make_plan(nano, BIG)
    assert (plan.accelerator, plan.gpu_layers) == ("cpu", 0)  # CUDA's own memory does not fit beside it
    assert plan.memory.device_bytes == 0


def test_flash_attention_is_off_where_the_gpu_has_no_kernel() -> None:
    odd = model(n_head=32, dim=192, n_kv=4)
    assert not make_plan(device("laptop-rtx4060"), odd).flash_attention
    assert make_plan(device("raspberry-pi-5"), odd).flash_attention
    request = PlanRequest(kv_type_v="q8_0")  # quantised values need it
    plan = make_plan(device("laptop-rtx4060"), odd, request)
    assert plan.accelerator == "cpu"
    assert "cuda cannot store values as q8_0" in choice(plan, "accelerator")[1]
    with pytest.raises(UsageError, match="heads are 192 numbers wide"):
        make_plan(device("laptop-rtx4060"), odd, replace(request, require="cuda"))


@pytest.mark.parametrize(
    ("name", "built_for", "require", "message"),
    [
        ("raspberry-pi-5", (), "cuda", "no CUDA device"),
        ("raspberry-pi-5", (), "metal", "Mac with an Apple chip"),
        ("raspberry-pi-5", (), "ane", "cannot use the Neural Engine"),
        ("mac-m1", (), "ane", "cannot use the Neural Engine"),
        ("mac-m1", (), "cuda", "no CUDA device"),
        ("mac-m1", ("cpu",), "metal", "built without Metal"),
        ("jetson-agx-orin", (), "cuda", "built without CUDA"),
    ],
)
def test_what_is_required_and_missing(name: str, built_for: tuple[str, ...], require: Any, message: str) -> None:
    with pytest.raises(BackendUnavailableError, match=message) as error:
        make_plan(device(name, built_for=built_for), SMALL, PlanRequest(require=require))
    assert error.value.exit_code == 4
    assert error.value.hint


@pytest.mark.parametrize(("name", "require"), [("laptop-rtx4060", "cuda"), ("mac-m1", "metal"), ("laptop-rtx4060", "cpu")])
def test_what_is_required_and_there(name: str, require: Any) -> None:
    assert make_plan(device(name), SMALL, PlanRequest(require=require)).accelerator == require


def test_the_neural_engine_needs_core_ml() -> None:
    row = replace(ENGINES["coreml"], accelerators=("ane", "cpu"))
    targets, missing = find_targets(device("mac-m1"), row, PlanRequest())
    assert [target.accelerator for target in targets] == ["ane", "cpu"]
    assert (targets[0].reason, missing) == ("Apple M1", ())
    for name, message in (("mac-m3-pro", "not installed with Core ML"), ("raspberry-pi-5", "no Neural Engine here")):
        with pytest.raises(BackendUnavailableError, match=message):
            find_targets(device(name), row, PlanRequest(require="ane"))


def test_what_is_required_and_missing_is_said_of_the_engine_that_could() -> None:
    with pytest.raises(BackendUnavailableError, match="onnxruntime was built without OpenVINO"):
        rank_formats(device("raspberry-pi-5"), PlanRequest(require="openvino"), must_run=True)
    with pytest.raises(BackendUnavailableError, match="llamacpp backend cannot use OpenVINO"):
        rank_formats(device("raspberry-pi-5"), PlanRequest(require="openvino", backend="llamacpp"), must_run=True)


def test_backends() -> None:
    pi = device("raspberry-pi-5")
    with pytest.raises(BackendUnavailableError, match="no backend 'vllm'"):
        make_plan(pi, SMALL, PlanRequest(backend="vllm"))
    with pytest.raises(BackendUnavailableError, match="onnxruntime, which is not installed") as caught:
        make_plan(pi, replace(SMALL, format="onnx"))
    assert "[onnx]" in caught.value.hint
    with pytest.raises(BackendUnavailableError, match="cannot read onnx"):
        make_plan(pi, replace(SMALL, format="onnx"), PlanRequest(backend="llamacpp"))
    with pytest.raises(BackendUnavailableError, match="cannot read coreml"):
        make_plan(pi, replace(SMALL, format="coreml"), PlanRequest(backend="llamacpp"))
    bare = replace(pi, engines=(Engine("llamacpp", "llama-cpp-python", "", ()),))
    with pytest.raises(BackendUnavailableError, match="llama-cpp-python, which is not installed"):
        make_plan(bare, SMALL)
    assert make_plan(bare, SMALL, PlanRequest(backend="fake")).backend == "fake"


@pytest.mark.parametrize(
    "request_",
    [
        PlanRequest(context=0),
        PlanRequest(n_seq=0),
        PlanRequest(n_seq=256),
        PlanRequest(gpu_layers=-2),
        PlanRequest(threads=0),
        PlanRequest(kv_type_k="q2_k"),
        PlanRequest(require="cpu", gpu_layers=4),
    ],
)
def test_requests_that_cannot_be(request_: PlanRequest) -> None:
    with pytest.raises(UsageError) as error:
        make_plan(device("raspberry-pi-5"), SMALL, request_)
    assert error.value.exit_code == 2
    assert error.value.hint


def test_the_receipt_says_what_sequences_cost() -> None:
    plans = {n_seq: make_plan(device("raspberry-pi-5"), SMALL, PlanRequest(n_seq=n_seq)) for n_seq in (None, 1, 16)}
    assert choice(plans[1], "sequences") == ("1", "asked for")
    value, reason = choice(plans[16], "sequences")
    more = plans[16].memory.total_bytes - plans[1].memory.total_bytes
    assert (value, reason) == ("16", f"asked for; {size_text(more)} more memory than one")
    assert 0 < more < 8 * MIB, "llama.cpp's sequences share one cache"
    assert choice(plans[None], "sequences")[1].startswith("conversations that stay in the KV cache side by side; ")


@pytest.mark.parametrize("request_", [PlanRequest(gpu_layers=4), PlanRequest(gpu_layers=-1)])
def test_layers_without_an_accelerator(request_: PlanRequest) -> None:
    with pytest.raises(BackendUnavailableError, match="cannot be put on an accelerator"):
        make_plan(device("raspberry-pi-5"), SMALL, request_)


# -- what holds for every plan

NAMES = ["raspberry-pi-5", "laptop-rtx4060", "mac-m3-pro", "jetson-orin-nano", "container-cgroup-v2"]
MACHINES = {name: device(name) for name in NAMES}
models = st.builds(
    model,
    n_layer=st.integers(1, 48),
    n_embd=st.sampled_from([256, 1024, 4096]),
    n_head=st.sampled_from([4, 16, 32]),
    n_kv=st.integers(1, 16),
    dim=st.sampled_from([48, 64, 80, 128, 192]),
    n_ctx=st.sampled_from([256, 2048, 8192, 131072]),
    n_vocab=st.sampled_from([1000, 32000, 262144]),
    weights=st.integers(1 * MIB, 9000 * MIB),
)
requests = st.builds(
    PlanRequest,
    context=st.one_of(st.none(), st.integers(1, 60_000)),
    threads=st.one_of(st.none(), st.integers(1, 20)),
    gpu_layers=st.one_of(st.none(), st.integers(-1, 50)),
    kv_type_k=st.sampled_from([None, "f16", "q8_0", "q4_0"]),
    kv_type_v=st.sampled_from([None, "f16", "q8_0", "q4_0"]),
    n_seq=st.one_of(st.none(), st.integers(1, 16)),
    require=st.sampled_from([None, None, None, "cpu", "cuda", "metal"]),
)
memories = st.one_of(st.integers(0, 3000 * MIB), st.integers(0, 40_000 * MIB))


def with_memory(name: str, free: int, gpu_free: int) -> DeviceProfile:
    profile = MACHINES[name]
    is_unified = any(gpu.is_unified for gpu in profile.gpus)
    gpus = tuple(replace(gpu, free_bytes=min(gpu.total_bytes, free) if is_unified else gpu_free) for gpu in profile.gpus)
    return replace(profile, memory=replace(profile.memory, available_bytes=free), gpus=gpus)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(NAMES), models, requests, memories, memories)
def test_a_plan_fits_its_own_estimate_and_does_what_was_asked(
    name: str, artifact: Artifact, request_: PlanRequest, free: int, gpu_free: int
) -> None:
    profile = with_memory(name, free, gpu_free)
    try:
        plan = make_plan(profile, artifact, request_)
    except EdgeError as error:
        assert isinstance(error, ModelTooLargeError | BackendUnavailableError | UsageError)
        assert error.message and error.hint
        return
    memory = plan.memory
    assert memory.total_bytes == memory.weights_bytes + memory.kv_bytes + memory.compute_bytes
    assert memory.total_bytes <= memory.available_bytes < free + gpu_free
    assert memory.device_bytes <= memory.device_available_bytes
    assert memory.total_bytes - memory.device_bytes <= free
    assert artifact.header is not None
    layers = gguf_memory(artifact.header)
    layout = Layout(
        plan.n_ctx, plan.n_seq, plan.n_ubatch, plan.kv_type_k, plan.kv_type_v, plan.flash_attention, plan.gpu_layers,
        plan.accelerator,
    )  # fmt: skip
    assert layers.footprint(layout).total == memory.total_bytes
    assert 1 <= plan.n_threads <= plan.n_threads_batch <= profile.cpu.usable_logical
    assert plan.n_ctx >= 1
    if request_.context is not None:
        assert request_.context <= plan.n_ctx < request_.context + 256
    if request_.gpu_layers is not None:
        asked = layers.n_layer + 1 if request_.gpu_layers < 0 else min(request_.gpu_layers, layers.n_layer + 1)
        assert plan.gpu_layers == asked
    assert request_.threads in (None, plan.n_threads)
    assert request_.kv_type_k in (None, plan.kv_type_k)
    assert request_.kv_type_v in (None, plan.kv_type_v)
    assert request_.require in (None, plan.accelerator)
    assert plan.flash_attention or plan.kv_type_v == "f16"
    assert all(c.what and c.value and c.reason for c in plan.choices)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(NAMES), models, memories, memories, memories)
def test_more_memory_never_gives_a_smaller_context(name: str, artifact: Artifact, free: int, more: int, gpu_free: int) -> None:
    """On one accelerator, that is: a GPU that becomes large enough is taken with a smaller context, too."""
    for require in ("cpu", "cuda", "metal"):
        request = PlanRequest(require=require)  # type: ignore[arg-type]
        try:
            before = make_plan(with_memory(name, free, gpu_free), artifact, request)
        except EdgeError:
            continue
        after = make_plan(with_memory(name, free + more, gpu_free + more), artifact, request)
        assert after.n_ctx >= before.n_ctx


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(NAMES), models, memories, st.integers(1, 60_000))
def test_what_is_offered_instead_would_fit(name: str, artifact: Artifact, free: int, context: int) -> None:
    profile = with_memory(name, free, free // 2)
    try:
        make_plan(profile, artifact, PlanRequest(context=context))
        assume(False)
    except ModelTooLargeError as error:
        hint = error.hint
    if "--context " in hint:
        offered = int(hint.split("--context ")[1].rstrip("."))
        assert offered < context + 256
        make_plan(profile, artifact, PlanRequest(context=offered))
    if "--kv-type " in hint:
        kv_type = hint.split("--kv-type ")[1].split()[0].rstrip(".")
        make_plan(profile, artifact, PlanRequest(context=context, kv_type_k=kv_type, kv_type_v=kv_type))
