"""llama.cpp beyond the contract: other architectures, broken files, quantised caches, stopping inside a chunk, silence."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import edge.backends.llamacpp.backend
from edge.backends.base import Backend
from edge.backends.llamacpp.backend import LlamaCppBackend
from edge.backends.llamacpp.library import AbortFlag, load_library
from edge.errors import (
    BackendError,
    BackendUnavailableError,
    ContextFullError,
    ModelFileError,
    ModelNotFoundError,
    UnsupportedError,
    UsageError,
)
from edge.types import Sampling

PlanFor = Callable[..., Any]
TinyModel = Callable[[str], Path]
FailAfter = Callable[[int, int], None]


def tokens(n_tokens: int, seed: int = 1) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(20, 256, n_tokens)]


# -- models that cannot do everything


def test_a_recurrent_model_says_what_it_cannot_do(tiny_model: TinyModel, plan_for: PlanFor) -> None:
    for architecture in ("mamba", "lfm2"):
        with LlamaCppBackend(plan_for(tiny_model(architecture))) as backend:
            assert not backend.capabilities.rewind
            assert not backend.capabilities.export_kv
            assert backend.capabilities.checkpoints
            backend.prefill(0, tokens(50))
            expected = backend.logits(0)
            for call in (
                lambda backend=backend: backend.rewind(0, 20),
                lambda backend=backend: backend.copy(0, 1, 20),
                lambda backend=backend: backend.export_kv(0, 0, 20),
                lambda backend=backend: backend.export_kv(0, 10, 50),
            ):
                with pytest.raises(UnsupportedError, match=architecture):
                    call()
            assert [backend.length(seq_id) for seq_id in range(2)] == [50, 0]
            np.testing.assert_array_equal(backend.logits(0), expected)


@pytest.mark.parametrize("architecture", ["mamba", "lfm2", "gemma3"])
def test_other_architectures_keep_the_rest_of_the_contract(tiny_model: TinyModel, plan_for: PlanFor, architecture: str) -> None:
    prompt, tail = tokens(70), tokens(6, seed=2)
    with LlamaCppBackend(plan_for(tiny_model(architecture))) as backend:
        backend.prefill(0, prompt + tail)
        expected = backend.logits(0)
        backend.rewind(0, 0)
        assert backend.prefill(0, prompt, should_stop=lambda: backend.length(0) > 0) == 32
        backend.prefill(0, prompt[32:])
        backend.copy(0, 1, len(prompt))
        for seq_id in (0, 1):
            for token in tail:
                backend.decode([(seq_id, token)])
            np.testing.assert_allclose(backend.logits(seq_id), expected, atol=0.05)
        backend.rewind(0, 0)
        with pytest.raises(ContextFullError):
            backend.prefill(0, tokens(backend.n_ctx))
        backend.decode([(1, 50)])


@pytest.mark.parametrize("architecture", ["mamba", "lfm2"])
def test_a_recurrent_state_is_exported_and_imported_whole(tiny_model: TinyModel, plan_for: PlanFor, architecture: str) -> None:
    prompt, tail = tokens(40), tokens(10, seed=2)
    with LlamaCppBackend(plan_for(tiny_model(architecture))) as backend:
        backend.prefill(0, prompt)
        state = backend.export_kv(0, 0, len(prompt))
        backend.prefill(0, tail)
        expected = backend.logits(0)
        for seq_id in (1, 2):
            backend.import_kv(seq_id, memoryview(state))
            assert backend.length(seq_id) == len(prompt)
            backend.prefill(seq_id, tail)
            np.testing.assert_array_equal(backend.logits(seq_id), expected)
        np.testing.assert_array_equal(backend.logits(0), expected)
        with pytest.raises(BackendError, match="position 0"):
            backend.import_kv(1, state)
        with pytest.raises(BackendError):
            backend.import_kv(3, state[:-1])
        broken = bytearray(state)
        broken[24:28] = b"\0\0\0\0"  # llama.cpp's own magic
        with pytest.raises(BackendError, match=r"refused"):
            backend.import_kv(3, bytes(broken))
        assert backend.length(3) == 0
        backend.import_kv(3, state)


def test_blocks_of_short_and_long_rope_are_told_apart(tiny_model: TinyModel, plan_for: PlanFor) -> None:
    """LongRoPE turns positions otherwise as soon as the context is longer than the original one: here 512 tokens."""
    identities = []
    for n_ctx in (256, 512, 768):
        with LlamaCppBackend(plan_for(tiny_model("llama longrope"), n_ctx=n_ctx)) as backend:
            identities.append(backend.kv_identity())
            backend.prefill(0, tokens(60))
            identities[-1]["block"] = len(backend.export_kv(0, 0, 60))
    assert identities[0] == identities[1] != identities[2]


def test_blocks_of_a_sliding_window_give_the_same_bits(tiny_model: TinyModel, plan_for: PlanFor) -> None:
    prompt, tail = tokens(192), tokens(20, seed=2)
    with LlamaCppBackend(plan_for(tiny_model("gemma3"))) as backend:
        blocks = []
        for start in range(0, len(prompt), 32):
            backend.prefill(0, prompt[start : start + 32])
            blocks.append(backend.export_kv(0, start, start + 32))
        backend.prefill(0, tail)
        expected = backend.logits(0)
        backend.rewind(0, 0)
        for block in blocks:
            backend.import_kv(1, block)
        backend.prefill(1, tail)
        np.testing.assert_array_equal(backend.logits(1), expected)
        backend.rewind(1, 50)  # what its window had passed over was imported too
        backend.prefill(1, prompt[50:] + tail)
        np.testing.assert_allclose(backend.logits(1), expected, atol=0.05)


def test_a_sliding_window_can_be_rewound_and_exports_what_it_has(tiny_model: TinyModel, plan_for: PlanFor) -> None:
    prompt, tail = tokens(200), tokens(5, seed=3)
    with LlamaCppBackend(plan_for(tiny_model("gemma3"))) as backend:
        assert backend.info.details["sliding window"] == "64 tokens"
        assert backend.capabilities.rewind
        backend.prefill(0, prompt[:96] + tail)
        expected = backend.logits(0)
        backend.rewind(0, 0)
        backend.prefill(0, prompt)
        backend.rewind(0, 96)  # far behind the window of 64
        backend.prefill(0, tail)
        np.testing.assert_allclose(backend.logits(0), expected, atol=0.05)
        backend.prefill(0, prompt[96:])
        for span in ((0, 10), (90, 180)):  # passed over; wider than the window
            with pytest.raises(UnsupportedError, match="moved on"):
                backend.export_kv(0, *span)


def test_a_window_whose_cells_were_reused_says_so_and_does_not_compute_nonsense(
    tiny_model: TinyModel, plan_for: PlanFor
) -> None:
    prompt, tail = tokens(190), tokens(5, seed=3)
    with LlamaCppBackend(plan_for(tiny_model("gemma3"))) as backend:
        backend.prefill(0, prompt[:100])
        backend.prefill(1, tokens(10, seed=4))
        backend.prefill(0, prompt[100:])
        backend.rewind(1, 0)
        backend.prefill(2, tokens(30, seed=5))  # takes cells that sequence 0 no longer attends to
        for call in (lambda: backend.rewind(0, 130), lambda: backend.copy(0, 3, 130)):
            with pytest.raises(UnsupportedError, match="moved on"):
                call()
        assert backend.length(0) == 190
        backend.prefill(0, tail)
        after_reuse = backend.logits(0)
        for seq_id in (0, 2):
            backend.rewind(seq_id, 0)
        backend.prefill(0, prompt + tail)
        np.testing.assert_allclose(after_reuse, backend.logits(0), atol=0.05)


# -- files that cannot be used


def test_an_unknown_architecture_is_named(tmp_path: Path, plan_for: PlanFor) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "perceptron9000")
    writer.add_tensor("token_embd.weight", np.zeros((8, 32), np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    with pytest.raises(ModelFileError, match="perceptron9000"):
        LlamaCppBackend(plan_for(tmp_path / "model.gguf"))


def test_a_file_that_is_cut_off_never_reaches_llama_cpp(tmp_path: Path, tiny_model: TinyModel, plan_for: PlanFor) -> None:
    whole = tiny_model("llama").read_bytes()
    for n_bytes in (0, 3, 100, len(whole) // 2, len(whole) - 1):
        path = tmp_path / "model.gguf"
        path.write_bytes(whole[:n_bytes])
        with pytest.raises(ModelFileError):
            LlamaCppBackend(plan_for(path))


def test_what_is_no_model_is_refused(tmp_path: Path, plan_for: PlanFor) -> None:
    path = tmp_path / "model.gguf"
    path.write_text("<html>Sign in to continue</html>")
    with pytest.raises(ModelFileError):
        LlamaCppBackend(plan_for(path))
    plan = plan_for(path)
    path.unlink()
    with pytest.raises(ModelNotFoundError):
        LlamaCppBackend(plan)


def test_a_model_that_lacks_a_tensor_is_refused_with_its_name(tmp_path: Path, plan_for: PlanFor) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(32)
    writer.add_tensor("token_embd.weight", np.zeros((32, 32), np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    with pytest.raises(ModelFileError, match="output_norm"):
        LlamaCppBackend(plan_for(tmp_path / "model.gguf"))


def test_a_model_without_a_tokenizer_is_refused(tiny_model: TinyModel, plan_for: PlanFor) -> None:
    with pytest.raises(ModelFileError, match="no tokenizer"):
        LlamaCppBackend(plan_for(tiny_model("llama without tokenizer")))


def test_an_encoder_is_refused(tiny_model: TinyModel, plan_for: PlanFor) -> None:
    with pytest.raises(ModelFileError, match="encoder"):
        LlamaCppBackend(plan_for(tiny_model("bert")))


def test_an_accelerator_that_is_not_in_this_build_is_refused(tiny_model: TinyModel, plan_for: PlanFor) -> None:
    if load_library().llama_supports_gpu_offload():
        with LlamaCppBackend(plan_for(tiny_model("llama"), accelerator="cuda", gpu_layers=-1)) as backend:
            assert backend.prefill(0, tokens(3)) == 3
        return
    with pytest.raises(BackendUnavailableError, match="cuda"):
        LlamaCppBackend(plan_for(tiny_model("llama"), accelerator="cuda", gpu_layers=-1))


@pytest.mark.parametrize("changes", [{"kv_type_k": "q3"}, {"kv_type_v": ""}, {"n_seq": 0}, {"n_seq": 256}])
def test_a_plan_that_makes_no_sense_is_refused(tiny_model: TinyModel, plan_for: PlanFor, changes: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        LlamaCppBackend(plan_for(tiny_model("llama"), **changes))


def test_what_llama_cpp_refuses_is_told_in_its_words(tiny_model: TinyModel, plan_for: PlanFor) -> None:
    library = load_library()
    quiet = library.llama_log_callback(lambda *_: None)
    library.llama_log_set(quiet, None)  # as another user of llama.cpp in this process may
    with pytest.raises(BackendError, match="flash_attn"):
        LlamaCppBackend(plan_for(tiny_model("llama"), kv_type_v="q8_0", flash_attention=False))


def test_numbers_that_overflow_are_an_error_and_no_nonsense(tmp_path: Path, tiny_model: TinyModel, plan_for: PlanFor) -> None:
    path = tmp_path / "damaged.gguf"
    shutil.copy(tiny_model("llama"), path)
    reader = gguf.GGUFReader(path, "r+")
    (norm,) = [tensor for tensor in reader.tensors if tensor.name == "output_norm.weight"]
    norm.data[:] = np.nan
    del norm, reader
    with LlamaCppBackend(plan_for(path)) as backend:
        backend.prefill(0, tokens(5))
        for sampling in (Sampling(temperature=0), Sampling(), Sampling(repeat_penalty=1.1)):
            sampler = backend.open_sampler(sampling, tokens(5))
            with pytest.raises(BackendError, match="not numbers"):
                sampler.sample(0)
            sampler.close()


# -- the cache


@pytest.mark.parametrize("architecture", ["llama q4_0", "llama", "gemma3", "mamba", "lfm2"])
@pytest.mark.parametrize("start", [0, 37, 130])
def test_pieces_of_a_chunk_leave_its_bits(tiny_model: TinyModel, plan_for: PlanFor, architecture: str, start: int) -> None:
    """Split a long prompt as the scheduler does beside replies: pieces of the grain or more, the rest too."""
    prompt = tokens(700)
    with LlamaCppBackend(plan_for(tiny_model(architecture), n_ctx=1024, n_ubatch=512)) as backend:
        grain = backend.chunk_grain

        def compute(*ends: int) -> list[np.ndarray]:
            backend.rewind(0, 0)
            logits = []
            for first, end in pairwise([0, *([start] if start else []), *ends]):
                backend.prefill(0, prompt[first:end])
                if end >= 512:
                    logits.append(backend.logits(0))
            return logits

        expected = compute(512, 700)
        for pieces in ((start + grain,), (start + 2 * grain, start + 3 * grain)):
            np.testing.assert_array_equal(compute(*pieces, 512, 700), expected)
        np.testing.assert_array_equal([compute(512, 512 + grain, 700)[n] for n in (0, 2)], expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"flash_attention": False},
        {"kv_type_k": "q8_0", "kv_type_v": "q8_0"},
        {"kv_type_k": "q8_0", "kv_type_v": "q4_0"},
        {"kv_type_k": "q4_0", "kv_type_v": "q4_0"},
        {"kv_type_k": "f32", "kv_type_v": "f32"},
        {"n_seq": 1},
    ],
)
def test_export_and_import_keep_the_bits_of_every_kind_of_cache(
    tiny_model: TinyModel, plan_for: PlanFor, changes: dict[str, object]
) -> None:
    prompt = tokens(3 * 32 + 2)
    with LlamaCppBackend(plan_for(tiny_model("llama"), **changes)) as backend:
        backend.prefill(0, prompt)
        expected = backend.logits(0)
        blocks = [backend.export_kv(0, start, start + 32) for start in (0, 32, 64)]
        backend.rewind(0, 0)
        for block in blocks:
            backend.import_kv(0, block)
        backend.prefill(0, prompt[96:])
        np.testing.assert_array_equal(backend.logits(0), expected)


def test_a_block_of_another_cache_is_refused_and_nothing_is_left_of_it(tiny_model: TinyModel, plan_for: PlanFor) -> None:
    with LlamaCppBackend(plan_for(tiny_model("llama"), kv_type_k="q8_0")) as other:
        other.prefill(0, tokens(40))
        foreign = other.export_kv(0, 0, 40)
    with LlamaCppBackend(plan_for(tiny_model("llama"), kv_type_v="q8_0")) as backend:
        backend.prefill(0, tokens(10))
        own = backend.export_kv(0, 0, 10)
        with pytest.raises(BackendError, match="refused"):
            backend.import_kv(1, foreign)
        assert backend.length(1) == 0
        backend.import_kv(1, own)
        backend.prefill(1, tokens(backend.n_ctx - 20))  # every cell is free again
        with pytest.raises(ContextFullError):
            backend.prefill(1, [50])


# -- passes


def test_a_chunk_can_be_stopped_in_the_middle(
    tiny_model: TinyModel, plan_for: PlanFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags: list[AbortFlag] = []

    class Flag(AbortFlag):
        def __init__(self, library: Any) -> None:
            super().__init__(library)
            flags.append(self)

    monkeypatch.setattr(edge.backends.llamacpp.backend, "AbortFlag", Flag)
    library, prompt, codes = load_library(), tokens(300), list[int]()
    real = library.llama_decode

    def decode(context: Any, batch: Any) -> int:
        if batch.n_tokens == 256:
            flags[0].set()  # while the pass is under way, from the engine's view: before its first operation
        codes.append(real(context, batch))
        return codes[-1]

    plan = plan_for(tiny_model("llama"), n_ctx=512, n_ubatch=256)
    with LlamaCppBackend(plan) as backend:
        backend.prefill(0, prompt)
        expected = backend.logits(0)
        backend.rewind(0, 0)
        with monkeypatch.context() as patch:
            patch.setattr(library, "llama_decode", decode)
            assert backend.prefill(0, prompt, should_stop=lambda: False) == 0
        assert codes == [2]
        assert backend.length(0) == 0
        assert backend.prefill(0, prompt, should_stop=lambda: False) == 300
        np.testing.assert_array_equal(backend.logits(0), expected)


def test_the_watcher_sets_the_flag_when_it_is_told_to_stop() -> None:
    flag = AbortFlag(load_library())
    assert not flag.callback(flag.user_data)
    asked = threading.Event()

    def should_stop() -> bool:
        asked.set()
        return True

    with flag.watching(should_stop, poll_s=0.001):
        assert asked.wait(120)
        while not flag.callback(flag.user_data):
            asked.wait(0.001)
    assert not flag.callback(flag.user_data)


@pytest.mark.model
def test_esc_during_a_long_chunk_does_not_wait_for_its_end(model_path: Path, plan_for: PlanFor) -> None:
    with LlamaCppBackend(plan_for(model_path, n_ctx=512, n_ubatch=512)) as backend:
        answers = iter([False])  # go on when asked before the chunk, stop when asked again
        assert backend.prefill(0, tokens(512), should_stop=lambda: next(answers, True)) == 0
        assert backend.length(0) == 0
        assert backend.prefill(0, tokens(20)) == 20


def test_closing_from_another_thread_waits_for_the_pass(tiny_model: TinyModel, plan_for: PlanFor) -> None:
    backend = LlamaCppBackend(plan_for(tiny_model("llama")))
    started, result = threading.Event(), []

    def work() -> None:
        try:
            while True:
                backend.rewind(0, 0)
                backend.prefill(0, tokens(200), should_stop=lambda: bool(backend.length(0) and started.set()))
        except BackendError as error:
            result.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    assert started.wait(30)
    backend.close()
    worker.join(30)
    assert len(result) == 1
    assert "closed" in str(result[0])


def test_several_threads_compute_the_same(tiny_model: TinyModel, plan_for: PlanFor) -> None:
    results = []
    for n_threads in (1, 2):
        plan = plan_for(tiny_model("llama"), n_threads=n_threads, n_threads_batch=n_threads)
        with LlamaCppBackend(plan) as backend:
            backend.prefill(0, tokens(80))
            backend.decode([(0, 50)])
            results.append(backend.logits(0))
    np.testing.assert_allclose(results[0], results[1], atol=1e-3)


# -- failures of the engine


@pytest.fixture
def fail_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Lets some passes succeed; the next one computes, and then reports failure."""
    library = load_library()
    real = library.llama_decode

    def break_down(n_good: int, code: int) -> None:
        left = [n_good]

        def decode(context: Any, batch: Any) -> int:
            result: int = real(context, batch)
            left[0] -= 1
            if left[0] < 0:
                monkeypatch.setattr(library, "llama_decode", real)
                return code
            return result

        monkeypatch.setattr(library, "llama_decode", decode)

    return break_down


@pytest.mark.parametrize(("code", "error"), [(-3, BackendError), (-1, BackendError), (1, ContextFullError)])
def test_a_failed_pass_leaves_what_was_there_before(
    tiny_model: TinyModel, plan_for: PlanFor, fail_after: FailAfter, code: int, error: type[Exception]
) -> None:
    prompt = tokens(80)
    with LlamaCppBackend(plan_for(tiny_model("llama"))) as backend:
        backend.prefill(0, prompt)
        expected = backend.logits(0)
        backend.rewind(0, 0)
        fail_after(1, code)
        with pytest.raises(error):
            backend.prefill(0, prompt)
        assert backend.length(0) == 32
        with pytest.raises(BackendError, match="no newest logits"):
            backend.logits(0)
        backend.prefill(0, prompt[32:])
        np.testing.assert_array_equal(backend.logits(0), expected)
        backend.prefill(1, prompt[:3])
        fail_after(0, code)
        with pytest.raises(error):
            backend.decode([(0, 50), (1, 51)])
        assert (backend.length(0), backend.length(1)) == (80, 3)
        backend.decode([(1, 51), (0, 50)])
        assert backend.length(0) == 81


def test_a_recurrent_model_loses_the_sequence_whose_pass_failed_and_no_other(
    tiny_model: TinyModel, plan_for: PlanFor, fail_after: FailAfter
) -> None:
    prompt = tokens(40)
    with LlamaCppBackend(plan_for(tiny_model("mamba"))) as backend:
        backend.prefill(0, prompt)
        expected = backend.logits(0)
        backend.prefill(1, prompt)
        fail_after(0, -3)
        with pytest.raises(BackendError):
            backend.decode([(1, 50)])
        assert (backend.length(0), backend.length(1)) == (40, 0)
        backend.prefill(1, prompt)
        np.testing.assert_array_equal(backend.logits(1), expected)
        np.testing.assert_array_equal(backend.logits(0), expected)


# -- against others


@pytest.mark.model
def test_logits_equal_those_of_the_high_level_class(model_path: Path, plan_for: PlanFor) -> None:
    from llama_cpp import Llama

    text = "The quick brown fox jumps over the lazy dog, and the capital of France is"
    other = Llama(str(model_path), n_ctx=256, n_batch=32, n_ubatch=32, n_threads=1, flash_attn=True, verbose=False)
    try:
        with LlamaCppBackend(plan_for(model_path)) as backend:
            ids = backend.tokenizer.tokenize(text)
            assert ids == other.tokenize(text.encode(), add_bos=False)
            backend.prefill(0, ids)
            other.eval(ids)
            theirs = np.array(other._ctx.get_logits()[: backend.info.n_vocab], dtype=np.float32)
            np.testing.assert_allclose(backend.logits(0), theirs, atol=1e-4)
            assert backend.tokenizer.token_bytes(int(backend.logits(0).argmax())) == b" Paris"
    finally:
        other.close()


@pytest.mark.model
def test_the_real_model_is_described(model_path: Path, plan_for: PlanFor) -> None:
    with LlamaCppBackend(plan_for(model_path)) as backend:
        info = backend.info
    assert (info.architecture, info.n_vocab, info.n_ctx_train) == ("llama", 49152, 8192)
    assert 134e6 < info.n_params < 135e6
    assert info.size_bytes < model_path.stat().st_size
    assert (info.bos_text, info.eos_text, info.adds_bos) == ("<|im_start|>", "<|im_end|>", False)
    assert info.chat_template is not None
    assert "add_generation_prompt" in info.chat_template
    assert info.details["weights"] == "Q4_1"


# -- silence

LOUD = """
import sys
from edge.backends.llamacpp.backend import LlamaCppBackend
import importlib.util
spec = importlib.util.spec_from_file_location("models", sys.argv[1])
models = importlib.util.module_from_spec(spec); sys.modules["models"] = models; spec.loader.exec_module(models)
from pathlib import Path
with LlamaCppBackend(models.make_plan(Path(sys.argv[2]))) as backend:
    backend.prefill(0, [50] * 40)
    backend.decode([(0, 51)])
for changes in ({"kv_type_v": "q8_0", "flash_attention": False},):
    try:
        LlamaCppBackend(models.make_plan(Path(sys.argv[2]), **changes))
    except Exception as error:
        assert "flash_attn" in str(error)
    else:
        raise SystemExit("it was not refused")
"""


def test_nothing_of_llama_cpps_log_reaches_the_terminal(tiny_model: TinyModel) -> None:
    models = Path(__file__).parent / "conftest.py"
    command = [sys.executable, "-c", LOUD, str(models), str(tiny_model("llama"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_backend_is_a_backend(tiny_model: TinyModel, plan_for: PlanFor) -> None:
    with LlamaCppBackend(plan_for(tiny_model("llama"))) as backend:
        assert isinstance(backend, Backend)
        assert backend.n_ctx == 256
        assert backend.chunk_size == 32
