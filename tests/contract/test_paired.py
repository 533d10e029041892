"""Two engines for one model, beyond the contract: what is handed over, when, and what happens if one of them fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edge
from edge.adapters import Adapter
from edge.assistant import Assistant, DiskCache
from edge.backends.base import Backend, open_backend
from edge.backends.cells_backend import CellsBackend
from edge.backends.paired import PairedBackend, pair_with
from edge.errors import BackendError, ContextFullError, UnsupportedError
from edge.kv.open import model_fingerprint
from edge.kv.store import BlockStore, StoreOptions
from edge.plan import Plan
from edge.plan.receipt import PrefillPlan
from edge.reply import Reply
from edge.types import Sampling
from tests.adapters import write_adapter
from tests.contract.entries import CHUNK, make_plan, open_pair
from tests.contract.test_across_engines import divergence, logs, numbers_of, random_tokens

pytest.importorskip("openvino")

GREEDY = Sampling(temperature=0, max_tokens=8)
DOCS = Path(__file__).parent.parent.parent / "docs"


@pytest.fixture
def plan(tiny_model: Callable[[str], Path]) -> Plan:
    return make_plan(tiny_model("llama"))


@pytest.fixture
def pair(plan: Plan) -> Iterator[PairedBackend]:
    with open_pair(plan, "llamacpp", "openvino") as backend:
        assert isinstance(backend, PairedBackend)
        yield backend


def prefiller_of(pair: PairedBackend) -> CellsBackend:
    assert pair._prefiller is not None
    return pair._prefiller


def exported(backend: Backend, end: int, start: int = 0, seq_id: int = 0) -> np.ndarray[Any, Any]:
    return numbers_of(backend, backend.export_kv(seq_id, start, end), end - start)


def test_the_numbers_are_those_of_the_engine_that_prefilled(pair: PairedBackend, plan: Plan) -> None:
    tokens = random_tokens(CHUNK)
    with open_backend(replace(plan, backend="openvino")) as openvino, open_backend(plan) as llamacpp:
        for backend in (pair, openvino, llamacpp):
            backend.prefill(0, tokens)
        found = exported(pair, CHUNK)
        assert np.array_equal(found[:, :, :-1], exported(openvino, CHUNK)[:, :, :-1])
        assert not np.array_equal(found[:, :, :-1], exported(llamacpp, CHUNK)[:, :, :-1])
        rest = random_tokens(16, 4)
        assert divergence(logs(llamacpp, rest), logs(pair, rest)) < 1e-4


def test_what_is_short_stays_with_the_engine_that_decodes(pair: PairedBackend, plan: Plan) -> None:
    with open_backend(plan) as llamacpp:
        for backend in (pair, llamacpp):
            backend.prefill(0, random_tokens(15))
            backend.decode([(0, 30)])
        assert np.array_equal(pair.logits(0), llamacpp.logits(0))


def test_behind_a_long_text_a_chunk_has_to_be_longer(plan: Plan) -> None:
    with open_backend(plan) as decoder, open_backend(replace(plan, backend="openvino", n_seq=1)) as prefiller:
        pair = PairedBackend(decoder, prefiller, least=16, per_token=0.25)
        pair.prefill(0, random_tokens(2 * CHUNK))  # the second chunk, of 32 tokens behind 32, is worth it
        assert prefiller.length(0) == 2 * CHUNK - 1
        pair.prefill(0, random_tokens(24, 5))  # and 24 behind 64 are not
        assert prefiller.length(0) == 2 * CHUNK - 1


def test_the_prefiller_is_emptied_when_a_reply_begins(pair: PairedBackend) -> None:
    pair.prefill(0, random_tokens(100))
    assert prefiller_of(pair).length(0) > CHUNK
    pair.prefill(1, random_tokens(3, 5))
    pair.decode([(1, 30)])
    assert prefiller_of(pair).length(0) > CHUNK, "the reply in another sequence is not the one to this prompt"
    pair.decode([(0, 30)])
    assert prefiller_of(pair).length(0) == 0


def test_prompts_that_take_turns_are_computed_as_one_after_the_other(pair: PairedBackend) -> None:
    one, other = random_tokens(96), random_tokens(96, 5)
    for seq_id, tokens in ((0, one), (1, other)):
        pair.prefill(seq_id, tokens)
    expected = [exported(pair, 96, seq_id=seq_id) for seq_id in (0, 1)]
    for seq_id in (0, 1):
        pair.rewind(seq_id, 0)
    for start in range(0, 96, CHUNK):
        for seq_id, tokens in ((0, one), (1, other)):
            pair.prefill(seq_id, tokens[start : start + CHUNK])
    for seq_id in (0, 1):
        assert np.array_equal(exported(pair, 96, seq_id=seq_id), expected[seq_id])


@pytest.mark.parametrize("n_asked", [1, 2, 3])
def test_a_prompt_that_is_stopped_keeps_whole_chunks_and_goes_on(pair: PairedBackend, n_asked: int) -> None:
    tokens, answers = random_tokens(100), iter([False] * n_asked + [True] * 100)
    pair.prefill(0, tokens)
    expected = exported(pair, 100)
    pair.rewind(0, 0)
    n_done = pair.prefill(0, tokens, should_stop=lambda: next(answers))
    assert n_done == pair.length(0) < 100
    assert n_done % CHUNK == 0
    assert prefiller_of(pair).length(0) <= n_done
    other = random_tokens(100 - n_done, 8)
    pair.prefill(0, other)  # a prompt that goes on in another way finds nothing of the first one
    assert not np.array_equal(exported(pair, 100), expected)
    pair.rewind(0, n_done)
    pair.prefill(0, tokens[n_done:])
    assert np.array_equal(exported(pair, 100), expected)


def test_ctrl_c_between_the_engines_leaves_nothing_of_the_chunk(pair: PairedBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = random_tokens(CHUNK)
    pair.prefill(0, tokens)
    expected = exported(pair, CHUNK)
    pair.rewind(0, 0)
    decoder = pair._decoder

    def interrupt(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(decoder, "prefill", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pair.prefill(0, tokens)
    assert pair.length(0) == prefiller_of(pair).length(0) == 0
    pair.prefill(0, tokens)
    assert np.array_equal(exported(pair, CHUNK), expected)


@pytest.mark.parametrize("method", ["prefill", "export_kv", "import_kv", "rewind"])
def test_if_the_prefiller_fails_the_other_engine_goes_on_alone(
    pair: PairedBackend, plan: Plan, method: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = random_tokens(100)
    pair.prefill(0, tokens[:CHUNK])
    pair.prefill(1, tokens[:20])  # so the next chunk of the first one is handed to the prefiller
    prefiller = prefiller_of(pair)

    def fail(*_: object, **__: object) -> int:
        raise BackendError("It broke.")

    monkeypatch.setattr(prefiller, method, fail)
    with caplog.at_level(logging.WARNING, "edge.backends"):
        pair.prefill(0, tokens[CHUNK:])
    assert not pair.is_paired
    assert "openvino failed, so llamacpp prefills, too, until the model is loaded again: It broke." in caplog.text
    with pytest.raises(BackendError):
        prefiller.length(0)  # its memory is free
    assert (pair.length(0), pair.length(1)) == (100, 20)
    with open_backend(plan) as alone:
        alone.prefill(0, tokens)
        rest = random_tokens(16, 4)
        assert divergence(logs(alone, rest), logs(pair, rest)) < 1e-4


def test_a_failure_of_the_engine_that_decodes_is_an_error_and_changes_nothing(
    pair: PairedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> int:
        raise BackendError("It broke.")

    pair.prefill(0, random_tokens(CHUNK))
    monkeypatch.setattr(pair._decoder, "_prefill_chunk", fail)
    with pytest.raises(BackendError, match="It broke"):
        pair.prefill(0, random_tokens(CHUNK, 5))
    assert pair.length(0) == CHUNK


def test_what_does_not_fit_is_refused_before_it_is_computed(pair: PairedBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefiller_of(pair), "prefill", lambda *_, **__: pytest.fail("computed in vain"))
    with pytest.raises(ContextFullError):
        pair.prefill(0, random_tokens(pair.n_ctx + 1))


def test_another_size_holds_for_both(pair: PairedBackend) -> None:
    pair.prefill(0, random_tokens(100))
    pair.rewind(0, 0)
    pair.resize(512)
    assert pair.n_ctx == prefiller_of(pair).n_ctx == 512
    pair.prefill(0, random_tokens(400))
    assert prefiller_of(pair).length(0) > 300


def test_adapters_are_applied_by_the_engine_that_has_them(plan: Plan, tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "adapter.gguf", plan.artifact.path)
    adapter = Adapter("adapter", path, 1.0, "0" * 64, path.stat().st_size, 4, 4)
    tokens = random_tokens(CHUNK)
    with open_backend(replace(plan, adapters=(adapter,))) as alone:
        alone.set_adapters(((0, 1.0),))
        alone.prefill(0, tokens)
        expected = alone.logits(0)
        alone.set_adapters(())
        alone.rewind(0, 0)
        with open_backend(replace(plan, backend="openvino", n_seq=1)) as prefiller:
            pair = PairedBackend(alone, prefiller, least=16)
            pair.set_adapters(((0, 1.0),))
            pair.prefill(1, tokens)
            assert np.allclose(pair.logits(1), expected, atol=1e-3)
            assert prefiller.length(0) == 0
            pair.set_adapters(())
            pair.prefill(2, tokens)
            assert prefiller.length(0) == CHUNK - 1


@pytest.mark.parametrize(
    ("changes", "other"),
    [({"kv_type_k": "q8_0", "kv_type_v": "q8_0"}, {}), ({}, {"kv_type_k": "f32", "kv_type_v": "f32"})],
)
def test_engines_without_a_common_layout_are_refused(plan: Plan, changes: dict[str, Any], other: dict[str, Any]) -> None:
    decoder, prefiller = replace(plan, **changes), replace(plan, backend="openvino", n_seq=1, **{**changes, **other})
    prefiller = replace(prefiller, kv_type_k=other.get("kv_type_k", "f16"), kv_type_v=other.get("kv_type_v", "f16"))
    with open_backend(decoder) as engine:
        paired = replace(decoder, prefill=PrefillPlan(prefiller, 16))
        with pytest.raises(UnsupportedError, match="openvino and llamacpp cannot work together on this model"):
            pair_with(engine, paired, open_backend)
        assert engine.prefill(0, [30]) == 1, "it is still open"


def test_engines_that_compute_something_else_are_refused(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    from edge.backends.openvino.blocks import Blocks

    read = Blocks.read

    def read_wrongly(self: Blocks, seq_id: int, start: int, end: int, out: Any) -> None:
        read(self, seq_id, start, end, out)
        out["key_cache.1"][...] *= -1

    monkeypatch.setattr(Blocks, "read", read_wrongly)
    with pytest.raises(UnsupportedError, match="do not compute the same: their keys and values differ by"):
        open_pair(plan, "llamacpp", "openvino")


class House:
    """A directory with a block store, and assistants of one engine or two on it."""

    def __init__(self, directory: Path, plan: Plan) -> None:
        self.directory = directory
        self.plan = replace(plan, n_ctx=512, n_ubatch=128, n_seq=2)

    def open(self, *, is_paired: bool = True) -> Assistant:
        plan = self.plan
        if is_paired:
            plan = replace(plan, prefill=PrefillPlan(replace(plan, backend="openvino", n_seq=1), 32))
        backend = pair_with(open_backend(plan), plan, open_backend)
        blocks = BlockStore(self.directory, StoreOptions(budget_bytes=1 << 30, min_free_bytes=0, sync=False))
        model = model_fingerprint(backend, plan.artifact, across_engines=True)
        disk = DiskCache(blocks, model, engine=model_fingerprint(backend, plan.artifact))
        return Assistant(backend, plan, disk=disk, speculates=False)

    def ask(self, text: str, *, is_paired: bool = True) -> Reply:
        with self.open(is_paired=is_paired) as ai:
            reply = ai.generate(text, sampling=GREEDY)
            reply.wait()
            ai.flush_cache()
        return reply


def letters(n: int, seed: int) -> str:
    return "".join(map(chr, np.random.default_rng(seed).integers(97, 122, n)))


def test_blocks_say_who_computed_them(tmp_path: Path, plan: Plan) -> None:
    house, text = House(tmp_path / "kv", plan), letters(300, 1)
    cold = house.ask(text)
    assert cold.usage.n_restored == 0
    warm = house.ask(text)
    assert warm.usage.n_restored == warm.usage.n_prompt - 1
    assert warm.usage.n_foreign == 0, "those of the same two engines are one's own"
    assert warm.text == cold.text
    alone = house.ask(text, is_paired=False).usage
    assert alone.n_foreign == alone.n_restored == alone.n_prompt - 1
    longer = house.ask(text + letters(60, 2), is_paired=False)
    assert house.ask(text + letters(60, 2) + "x").usage.n_foreign > 0, longer.usage


def test_more_conversations_than_fit_are_evicted_and_come_back(tmp_path: Path, plan: Plan) -> None:
    texts = [letters(200, seed) for seed in range(5)]
    expected = [House(tmp_path / f"kv{seed}", plan).ask(text).text for seed, text in enumerate(texts)]
    with House(tmp_path / "kv", plan).open() as ai:
        for _ in range(2):
            replies = [ai.generate(text, sampling=GREEDY) for text in texts]
            assert [reply.wait() for reply in replies] == expected
        assert sum(reply.usage.n_restored for reply in replies) > 300


def test_a_reply_is_cancelled_while_another_engine_prefills(tmp_path: Path, plan: Plan) -> None:
    with House(tmp_path / "kv", plan).open() as ai:
        reply = ai.generate(letters(450, 1), sampling=GREEDY)
        reply.cancel()
        reply.wait()
        assert reply.finish_reason == "cancelled"
        assert ai.generate(letters(200, 2), sampling=GREEDY).wait() == House(tmp_path / "other", plan).ask(letters(200, 2)).text


def test_a_model_is_loaded_on_two_engines(own_home: Path, tiny_model: Callable[[str], Path]) -> None:
    path, text = tiny_model("llama"), letters(300, 3)
    with edge.load(str(path), backend="llamacpp", prefill_with="openvino", context=1024) as ai:
        assert ai.plan is not None and ai.plan.prefill is not None
        assert (ai.plan.backend, ai.plan.prefill.plan.backend) == ("llamacpp", "openvino")
        found = ai.generate(text, sampling=GREEDY)
        found.wait()
    with edge.load(str(path), backend="llamacpp", prefill_with="off", context=1024) as ai:
        assert ai.plan is not None and ai.plan.prefill is None
        assert ai.generate(text, sampling=GREEDY).wait() == found.text


@pytest.mark.model
def test_smollm2_says_the_same_whoever_prefills(model_path: Path) -> None:
    plan = make_plan(model_path, n_ctx=512, n_seq=1, n_ubatch=256)
    with open_backend(plan) as alone, open_pair(plan, "llamacpp", "openvino") as pair:
        tokens = alone.tokenizer.tokenize((DOCS / "latency.md").read_text("utf-8"))[: 256 + 64]
        for backend in (alone, pair):
            backend.prefill(0, tokens[:256])
        expected, found = logs(alone, tokens[256:]), logs(pair, tokens[256:])
        assert 0 < divergence(expected, found) < 0.01
        assert (expected.argmax(-1) == found.argmax(-1)).mean() > 0.85
