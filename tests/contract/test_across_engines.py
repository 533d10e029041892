"""Keys and values of one engine in another one: both ways, in memory and from the disk."""

from __future__ import annotations

import ctypes
import logging
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edge.assistant import Assistant, DiskCache
from edge.backends.base import MAX_DRAFT, Backend, open_backend
from edge.backends.cells_backend import BLOCK_HEADER
from edge.backends.llamacpp import neutral
from edge.backends.neutral import MAKER_BYTES, NeutralLayout
from edge.errors import BackendError
from edge.kv.open import model_fingerprint
from edge.kv.store import BlockStore, StoreOptions
from edge.reply import Reply
from edge.types import Sampling
from tests.contract.architectures import write
from tests.contract.conftest import HEAD_DIM, KV_HEADS
from tests.contract.entries import make_plan

pytest.importorskip("openvino")

from edge.backends.openvino.blocks import Blocks

ENGINES = ("llamacpp", "openvino")
PAIRS = [("llamacpp", "openvino"), ("openvino", "llamacpp")]
N_TOKENS = 150
DOCS = Path(__file__).parent.parent.parent / "docs"


def random_tokens(n: int, seed: int = 3) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(20, 256, n)]


def blocks_of(backend: Backend, n: int, size: int = 64) -> list[bytes]:
    return [backend.export_kv(0, start, min(start + size, n)) for start in range(0, n, size)]


def logs(backend: Backend, tokens: list[int]) -> npt.NDArray[np.float64]:
    """Logarithms of the next token's probabilities after each token, which is shown to the engine."""
    rows = []
    for at in range(0, len(tokens), MAX_DRAFT):
        token, *draft = tokens[at : at + MAX_DRAFT]
        backend.decode([(0, token)], {0: draft} if draft else {})
        rows += [backend.logits(0, n_back).astype(np.float64) for n_back in range(len(draft), -1, -1)]
    logits = np.array(rows) - np.max(rows, axis=-1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))


def divergence(expected: npt.NDArray[np.float64], found: npt.NDArray[np.float64]) -> float:
    return float((np.exp(expected) * (expected - found)).sum(-1).mean())


def numbers_of(backend: Backend, block: bytes, n: int) -> npt.NDArray[np.float16]:
    """The numbers of a block, shape (2, layers, tokens, heads, head_dim)."""
    assert backend.neutral is not None
    return backend.neutral.numbers(np.frombuffer(block, np.uint8)[BLOCK_HEADER.size + MAKER_BYTES :], n)


@pytest.fixture(scope="module")
def open_tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Backend]:
    """Opens a tiny random model on an engine, keys and values in float16."""
    folder = tmp_path_factory.mktemp("across")

    def open_one(engine: str, kind: str = "llama", **changes: object) -> Backend:
        path = folder / f"{kind}.gguf"
        return open_backend(make_plan(path if path.exists() else write(path, kind), backend=engine, **changes))

    return open_one


KINDS = ["llama", "llama yarn", "llama longrope", "qwen2", "qwen3", "phi3", "phi3 partial", "smollm3", "granite", "olmo2"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_engine_goes_on_from_the_other_ones_blocks(open_tiny: Callable[..., Backend], kind: str) -> None:
    tokens, rest = random_tokens(N_TOKENS), random_tokens(16, 4)
    with open_tiny("llamacpp", kind) as llamacpp, open_tiny("openvino", kind) as openvino:
        blocks, expected, wrong = {}, {}, {}
        for backend in (llamacpp, openvino):
            backend.prefill(0, random_tokens(N_TOKENS, 9))
            wrong[backend.name] = logs(backend, rest)
            backend.rewind(0, 0)
            backend.prefill(0, tokens)
            blocks[backend.name] = blocks_of(backend, N_TOKENS)
            expected[backend.name] = logs(backend, rest)
        for backend, other in ((llamacpp, openvino), (openvino, llamacpp)):
            backend.rewind(0, 0)
            for block in blocks[other.name]:
                assert backend.maker(block).split()[0] == other.name and other.maker(block) == ""
                backend.import_kv(0, block)
            given, again = other.export_kv(0, 0, N_TOKENS), backend.export_kv(0, 0, N_TOKENS)
            if backend is llamacpp:  # the other one has this one's by the second time
                assert np.array_equal(numbers_of(other, given, N_TOKENS), numbers_of(backend, again, N_TOKENS))
            found = logs(backend, rest)
            # The engines keep weights and keys in float16, in their own ways; what another text leaves is far away.
            own = expected[backend.name]
            assert divergence(own, found) < 1e-4 < 0.05 < divergence(own, wrong[backend.name])
        assert llamacpp.neutral is not None
        common = [backend.neutral.common(backend.kv_identity()) for backend in (llamacpp, openvino)]  # type: ignore[union-attr]
        assert common[0] == common[1]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_block_says_where_each_number_is(open_tiny: Callable[..., Backend], engine: str) -> None:
    with open_tiny(engine) as backend:
        assert backend.neutral == NeutralLayout(2, KV_HEADS, HEAD_DIM)
        backend.prefill(0, [50] * 40)
        whole = numbers_of(backend, backend.export_kv(0, 0, 40), 40).astype(np.float32)
        part = numbers_of(backend, backend.export_kv(0, 30, 31), 1)
    assert whole.shape == (2, 2, 40, KV_HEADS, HEAD_DIM)
    assert np.array_equal(whole[:, :, 30:31], part)
    # The same token everywhere, so the values of the first layer are equal, and its keys are rotated: each pair of neighbours,
    # as the rows of a Llama's file have it, turns by one radian a position or less and keeps its length.
    np.testing.assert_allclose(whole[1, 0], whole[1, 0, :1].repeat(40, 0), atol=0.01)
    pairs = whole[0, 0].reshape(40, KV_HEADS, HEAD_DIM // 2, 2)
    lengths = np.linalg.norm(pairs, axis=-1)
    np.testing.assert_allclose(lengths, lengths[:1].repeat(40, 0), rtol=0.02, atol=0.01)
    turned = np.arctan2(pairs[1, ..., 1], pairs[1, ..., 0]) - np.arctan2(pairs[0, ..., 1], pairs[0, ..., 0])
    np.testing.assert_allclose(np.cos(turned[:, 0]), np.cos(1.0), atol=0.02)


def test_rows_of_llama_cpp_follow_their_positions_whatever_cells_they_are_in(open_tiny: Callable[..., Backend]) -> None:
    tokens = random_tokens(100)
    with open_tiny("llamacpp") as backend:
        backend.prefill(0, tokens)
        expected = backend.export_kv(0, 20, 60)
        block = backend.export_kv(0, 0, 20)
        backend.rewind(0, 0)
        backend.prefill(0, tokens[:10])
        backend.copy(0, 1, 10)
        backend.prefill(1, tokens[10:20])
        backend.rewind(0, 0)
        backend.prefill(2, tokens[:50])
        backend.rewind(1, 0)  # the first cells are free again, and the next positions go there
        backend.copy(2, 3, 50)
        backend.prefill(3, tokens[50:60])
        state = np.frombuffer(_raw_state(backend, 3), np.uint8)
        positions = state[16 : 16 + 12 * 60].view("<u4")[::3]
        assert (positions[:-1] > positions[1:]).any(), "this test needs cells that are out of order"
        found = backend.export_kv(3, 20, 60)
        assert block[:8] == found[:8]
        one, other = numbers_of(backend, expected, 40), numbers_of(backend, found, 40)
    np.testing.assert_allclose(one.astype(np.float32), other.astype(np.float32), atol=0.02)


def _raw_state(backend: Any, seq_id: int) -> bytes:
    """What llama.cpp itself exports."""
    size = backend._library.llama_state_seq_get_size(backend._context, seq_id)
    state = np.empty(size, np.uint8)
    address = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    assert backend._library.llama_state_seq_get_data(backend._context, address, size, seq_id) == size
    return state.tobytes()


def test_blocks_of_another_kind_are_an_engines_own(
    open_tiny: Callable[..., Backend], tiny_model: Callable[[str], Path]
) -> None:
    own: list[tuple[str, dict[str, object]]] = [
        ("llamacpp", {"kv_type_k": "q8_0", "kv_type_v": "q8_0"}),
        ("llamacpp", {"flash_attention": False}),
        ("openvino", {"kv_type_k": "f32", "kv_type_v": "f32"}),
    ]
    for engine, changes in own:
        with open_tiny(engine, **changes) as backend:
            backend.prefill(0, random_tokens(20))
            block = backend.export_kv(0, 0, 20)
            assert backend.neutral is None and backend.maker(block) == ""
        with open_tiny("llamacpp") as other, pytest.raises(BackendError):
            other.import_kv(0, block)
    for kind in ("gemma3", "mamba", "lfm2"):
        with open_backend(make_plan(tiny_model(kind))) as backend:
            assert backend.neutral is None


def test_a_version_of_llama_cpp_with_another_state_keeps_its_blocks_to_itself(
    open_tiny: Callable[..., Backend], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neutral, "_F16", 30)
    with open_tiny("llamacpp") as backend:
        assert backend.neutral is None
        backend.prefill(0, random_tokens(20))
        block = backend.export_kv(0, 0, 20)
        backend.rewind(0, 0)
        backend.import_kv(0, block)
        assert backend.length(0) == 20


class House:
    """A directory with a block store, and assistants of both engines on it."""

    def __init__(self, directory: Path, model: Path) -> None:
        self.directory, self.model = directory, model

    def ask(self, engine: str, text: str, *, across: bool = True, exact: bool = False) -> Reply:
        plan = make_plan(self.model, backend=engine, n_ctx=512, n_ubatch=128, n_seq=1 if exact else 2)
        backend = open_backend(plan)
        blocks = BlockStore(self.directory, StoreOptions(budget_bytes=1 << 30, min_free_bytes=0, sync=False))
        model = model_fingerprint(backend, plan.artifact, exact=exact, across_engines=across)
        own = model_fingerprint(backend, plan.artifact, exact=exact)
        with Assistant(backend, plan, disk=DiskCache(blocks, model, engine=own), exact=exact) as ai:
            reply = ai.generate(text, sampling=Sampling(temperature=0, max_tokens=4))
            reply.wait()
            ai.flush_cache()
        return reply


@pytest.fixture
def house(tmp_path: Path, tiny_model: Callable[[str], Path]) -> House:
    return House(tmp_path / "kv", tiny_model("llama"))


TEXT = "".join(random.Random(5).choices("abcdefgh ijk lmnop", k=300))


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_restart_with_another_engine_prefills_nothing_again(house: House, first: str, second: str) -> None:
    cold = house.ask(first, TEXT).usage
    assert (cold.n_restored, cold.n_foreign) == (0, 0)
    warm = house.ask(second, TEXT).usage
    assert warm.n_restored == warm.n_foreign == warm.n_prompt - 1
    longer = house.ask(first, TEXT + " more").usage  # blocks of both follow each other
    assert longer.n_restored > 290 > longer.n_foreign


def test_engines_share_nothing_where_that_is_wished(house: House) -> None:
    for options in ({"across": False}, {"exact": True}):
        house.ask("openvino", TEXT, **options)
        usage = house.ask("llamacpp", TEXT, **options).usage
        assert (usage.n_restored, usage.n_foreign) == (0, 0)
        usage = house.ask("llamacpp", TEXT, **options).usage
        assert usage.n_restored >= 256 and usage.n_foreign == 0


def test_numbers_that_are_far_from_ones_own_are_not_used(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read = Blocks.read

    def read_wrongly(self: Blocks, seq_id: int, start: int, end: int, out: Any) -> None:
        read(self, seq_id, start, end, out)
        out["key_cache.1"][...] *= -1

    monkeypatch.setattr(Blocks, "read", read_wrongly)
    house.ask("openvino", TEXT)
    monkeypatch.undo()
    with caplog.at_level(logging.WARNING, "edge.kv"):
        reply = house.ask("llamacpp", TEXT)
    assert (reply.usage.n_restored, reply.usage.n_foreign) == (0, 0)
    assert reply.text == house.ask("llamacpp", TEXT, across=False).text
    assert "are not used: they differ from this engine's by" in caplog.text
    again = house.ask("llamacpp", TEXT).usage
    assert again.n_restored >= 256 > again.n_foreign == 0, "its own are stored all the same"


@pytest.mark.model
def test_what_smollm2_says_next_hardly_depends_on_who_prefilled(model_path: Path) -> None:
    plan = make_plan(model_path, n_ctx=512, n_seq=1, n_ubatch=256)
    with open_backend(plan) as one, open_backend(replace(plan, backend="openvino")) as other:
        tokens = one.tokenizer.tokenize((DOCS / "kv.md").read_text("utf-8"))[: 256 + 64]
        blocks, expected = [], []
        for backend in (one, other):
            backend.prefill(0, tokens[:256])
            blocks.append(blocks_of(backend, 256, 128))
            expected.append(logs(backend, tokens[256:]))
        for backend, own, foreign in ((one, expected[0], blocks[1]), (other, expected[1], blocks[0])):
            backend.rewind(0, 0)
            for block in foreign:
                backend.import_kv(0, block)
            found = logs(backend, tokens[256:])
            assert divergence(own, found) < 0.01
            assert (own.argmax(-1) == found.argmax(-1)).mean() > 0.85
