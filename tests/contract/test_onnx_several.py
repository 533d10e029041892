"""Several sequences in one pass of the ONNX backend, and other threads, while keys and values stay where they are."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import queue
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import edge.backends.onnx.passes
from edge.backends.onnx.backend import OnnxBackend
from edge.engine.generation import Failed, Finished, Generation
from edge.engine.governor import Limits
from edge.engine.scheduler import Scheduler
from edge.errors import BackendError, ContextFullError, ModelTooLargeError
from edge.types import Sampling
from tests.contract.entries import N_CTX, onnx_plan
from tests.tiny_onnx import write_onnx

pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
onnx = pytest.importorskip("onnx", reason="needs the extra [convert]")

Tiny = Callable[[str], Path]
LENGTHS = (40, 3, 75, 1)
DETAIL = "several replies"


def text(seq_id: int, n_tokens: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seq_id).integers(20, 256, n_tokens)]


@contextmanager
def passes(backend: OnnxBackend) -> Iterator[list[Any]]:
    """Notes the binding of every pass."""
    real, seen = backend.passes.run, []

    def run(binding: Any, should_stop: Any) -> bool:
        seen.append(binding)
        return real(binding, should_stop)

    backend.passes.run = run  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        backend.passes.run = real  # type: ignore[method-assign]


def alone(backend: OnnxBackend, seq_id: int, reply: list[int]) -> npt.NDArray[np.float32]:
    """Logits after a reply that nobody else was there for."""
    for each in range(4):
        backend.rewind(each, 0)
    backend.prefill(seq_id, text(seq_id, LENGTHS[seq_id]))
    for token in reply:
        backend.decode([(seq_id, token)])
    return backend.logits(seq_id)


@pytest.mark.parametrize(
    "changes", [{}, {"kind": "int4"}, {"kv": "f16"}, {"positions": True}, {"soft_cap": True}, {"external": False}], ids=str
)
def test_one_pass_gives_what_each_gives_alone(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_onnx(tmp_path, **changes)
    kv = changes.get("kv", "f32")
    replies = [text(10 + seq_id, 6) for seq_id in range(4)]
    with OnnxBackend(onnx_plan(tmp_path, kv_type_k=kv, kv_type_v=kv)) as backend:
        assert backend.info.details[DETAIL] == "in one pass"
        expected = [alone(backend, seq_id, replies[seq_id]) for seq_id in range(4)]
        for seq_id in range(4):
            backend.rewind(seq_id, 0)
            backend.prefill(seq_id, text(seq_id, LENGTHS[seq_id]))
        with passes(backend) as seen:
            for n in range(6):
                # In any order: a step names its sequences.
                backend.decode([(seq_id, replies[seq_id][n]) for seq_id in (2, 0, 3, 1)])
        assert len(seen) == 6
        tolerance = {"int4": 0.3, "f16": 2e-2}.get(changes.get("kind", kv), 1e-4)
        for seq_id in range(4):
            np.testing.assert_allclose(backend.logits(seq_id), expected[seq_id], atol=tolerance)
            assert backend.length(seq_id) == LENGTHS[seq_id] + 6


@pytest.mark.parametrize(("wanted", "n_passes"), [((0, 1), 1), ((1, 3), 1), ((0, 2, 3), 1), ((0, 3), 2), ((2, 3), 1)])
def test_idle_sequences_keep_all_they_have(tiny_onnx: Tiny, wanted: tuple[int, ...], n_passes: int) -> None:
    replies = {seq_id: text(10 + seq_id, 3) for seq_id in wanted}
    with OnnxBackend(onnx_plan(tiny_onnx("onnx"))) as backend:
        expected = {seq_id: alone(backend, seq_id, replies[seq_id]) for seq_id in wanted}
        for seq_id in range(4):
            backend.rewind(seq_id, 0)
            backend.prefill(seq_id, text(seq_id, LENGTHS[seq_id]))
        idle = [seq_id for seq_id in range(4) if seq_id not in wanted]
        before = {seq_id: (backend.logits(seq_id), backend.export_kv(seq_id, 0, LENGTHS[seq_id])) for seq_id in idle}
        with passes(backend) as seen:
            for n in range(3):
                backend.decode([(seq_id, replies[seq_id][n]) for seq_id in wanted])
        assert len(seen) == 3 * n_passes
        for seq_id in wanted:
            np.testing.assert_allclose(backend.logits(seq_id), expected[seq_id], atol=1e-4)
        for seq_id, (logits, block) in before.items():
            np.testing.assert_array_equal(backend.logits(seq_id), logits)
            assert backend.length(seq_id) == LENGTHS[seq_id]
            assert backend.export_kv(seq_id, 0, LENGTHS[seq_id]) == block


def test_a_full_idle_sequence_is_not_written_to(tiny_onnx: Tiny) -> None:
    with OnnxBackend(onnx_plan(tiny_onnx("onnx"))) as backend:
        backend.prefill(1, text(1, N_CTX))
        for seq_id, n_tokens in ((0, 9), (2, 10)):
            backend.prefill(seq_id, text(seq_id, n_tokens))
        for n_idle, n_passes in ((N_CTX, 2), (N_CTX - 1, 1)):
            backend.rewind(1, n_idle)
            before = backend.export_kv(1, 0, n_idle)
            with passes(backend) as seen:
                backend.decode([(0, 50), (2, 51)])
            assert len(seen) == n_passes, "an idle one is computed along where it has room for one more position"
            assert backend.export_kv(1, 0, n_idle) == before


def test_conversations_near_the_whole_window_stay_side_by_side(tiny_onnx: Tiny) -> None:
    """Each sequence has a buffer of the whole context, so no conversation has to make room for another."""
    backend = OnnxBackend(onnx_plan(tiny_onnx("onnx")))
    scheduler = Scheduler(backend)
    ended: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask(prompt: list[int]) -> Finished:
        scheduler.submit(Generation(prompt, Sampling(temperature=0, max_tokens=2), ended.put))
        while not isinstance(event := ended.get(timeout=600), Finished):
            assert not isinstance(event, Failed), event
        return event

    try:
        prompts = [text(seq_id, N_CTX - 20) for seq_id in range(4)]
        for prompt in prompts:
            assert ask(prompt).usage.n_reused < 3
        for prompt in prompts:
            assert ask([*prompt, 50]).usage.n_reused >= len(prompt)
    finally:
        scheduler.close()


def test_a_failed_pass_leaves_all_of_them_as_they_were(tiny_onnx: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    with OnnxBackend(onnx_plan(tiny_onnx("onnx"))) as backend:
        for seq_id in range(4):
            backend.prefill(seq_id, text(seq_id, LENGTHS[seq_id]))
        real, left = backend.passes.run, [1]

        def run(binding: Any, should_stop: Any) -> bool:
            left[0] -= 1
            if left[0] < 0:
                raise RuntimeError("no such kernel")
            return real(binding, should_stop)

        with monkeypatch.context() as patch:
            patch.setattr(backend.passes, "run", run)
            with pytest.raises(BackendError, match="no such kernel"):
                backend.decode([(0, 50), (3, 51)])  # two passes, of which the second fails
        assert [backend.length(seq_id) for seq_id in range(4)] == list(LENGTHS)
        for seq_id in (0, 3):
            with pytest.raises(BackendError, match="no newest logits"):
                backend.logits(seq_id)
        backend.decode([(0, 50), (3, 51)])
        after = backend.logits(0)
        np.testing.assert_allclose(after, alone(backend, 0, [50]), atol=1e-4)


def edited(folder: Path, edit: Callable[[Any], None]) -> Path:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    edit(model.graph)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder


def one_row_only(graph: Any) -> None:
    for port in [*graph.input, *graph.output]:
        dim = port.type.tensor_type.shape.dim[0]
        dim.Clear()
        dim.dim_value = 1


def longest_row_counts(graph: Any) -> None:
    """The length of a row is taken to be that of the longest one: no difference for one row."""
    from onnx import helper, numpy_helper

    sub = next(node for node in graph.node if node.op_type == "Sub")
    place = list(graph.node).index(sub)
    graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "zero_axis"))
    summed = sub.input[0]
    added = [
        helper.make_node("ReduceMax", [summed, "zero_axis"], ["longest"], keepdims=1),
        helper.make_node("Sub", [summed, summed], ["no_length"]),
        helper.make_node("Add", ["no_length", "longest"], ["lengths"]),
    ]
    sub.input[0] = "lengths"
    for node in reversed(added):
        graph.node.insert(place, node)


def a_choice_by_length(graph: Any) -> None:
    """As Phi's models have one, between rotations."""
    from onnx import TensorProto, helper

    branches = {}
    for name in ("then_branch", "else_branch"):
        constant = helper.make_node("Constant", [], [name], value_float=1.0)
        output = helper.make_tensor_value_info(name, TensorProto.FLOAT, [])
        branches[name] = helper.make_graph([constant], name, [], [output])
    condition = helper.make_node("Constant", [], ["is_long"], value=helper.make_tensor("", TensorProto.BOOL, [], [True]))
    graph.node.extend([condition, helper.make_node("If", ["is_long"], ["factor"], **branches)])


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (one_row_only, "one row only"),
        (longest_row_counts, "disturb each other"),
        (a_choice_by_length, "from some length on"),
        (None, "side by side"),
    ],
)
def test_what_cannot_go_together_goes_one_after_another(
    tmp_path: Path, edit: Callable[[Any], None] | None, reason: str
) -> None:
    folder = write_onnx(tmp_path, shares=edit is not None)
    if edit is not None:
        edited(folder, edit)
    with OnnxBackend(onnx_plan(folder)) as backend:
        told = backend.info.details[DETAIL]
        assert told.startswith("one after another: ") and reason in told
        expected = [alone(backend, seq_id, [50]) for seq_id in range(4)]
        for seq_id in range(4):
            backend.rewind(seq_id, 0)
            backend.prefill(seq_id, text(seq_id, LENGTHS[seq_id]))
        with passes(backend) as seen:
            backend.decode([(seq_id, 50) for seq_id in range(4)])
        assert len(seen) == 4
        for seq_id in range(4):
            np.testing.assert_array_equal(backend.logits(seq_id), expected[seq_id])


def test_where_there_is_no_memory_for_another_size_the_old_one_stays(tiny_onnx: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*about: Any) -> Any:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with OnnxBackend(onnx_plan(tiny_onnx("onnx"))) as backend:
        expected = alone(backend, 0, [50])
        backend.rewind(0, 0)
        with monkeypatch.context() as patch:
            patch.setattr(edge.backends.onnx.passes, "open_buffers", refuse)
            with pytest.raises(ModelTooLargeError, match="allocate keys and values"):
                backend.resize(2 * N_CTX)
        assert backend.n_ctx == N_CTX
        with pytest.raises(ContextFullError):
            backend.prefill(0, text(0, N_CTX + 1))
        np.testing.assert_array_equal(alone(backend, 0, [50]), expected)


# -- threads


def test_a_session_is_opened_again_only_when_the_number_changes(tiny_onnx: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "edge.onnx")
    with OnnxBackend(onnx_plan(tiny_onnx("onnx"))) as backend:
        backend.prefill(0, text(0, 20))
        session = backend.passes.session.native
        old = weakref.ref(session)
        backend.set_threads(1, 4)
        backend.set_threads(3, 3)
        backend.set_threads(1, 1)
        backend.decode([(0, 50)])
        assert backend.passes.session.native is session
        backend.set_threads(2, 2)
        assert backend.passes.session.native is session, "not before a pass needs it"
        backend.decode([(0, 51)])
        assert backend.passes.session.native is not session
        del session
        assert old() is None, "two of them would be the weights twice"
        assert "opened again with 2 threads instead of 1, in " in caplog.text
        assert backend.passes.session.native.get_session_options().intra_op_num_threads == 2


def test_several_rows_go_on_together_with_other_threads(tiny_onnx: Tiny) -> None:
    with OnnxBackend(onnx_plan(tiny_onnx("onnx"))) as backend:
        expected = [alone(backend, seq_id, [50, 51]) for seq_id in range(2)]
        for seq_id in range(2):
            backend.rewind(seq_id, 0)
            backend.prefill(seq_id, text(seq_id, LENGTHS[seq_id]))
        backend.decode([(0, 50), (1, 50)])
        backend.set_threads(2, 2)
        with passes(backend) as seen:
            backend.decode([(0, 51), (1, 51)])
        assert len(seen) == 1
        for seq_id in range(2):
            np.testing.assert_allclose(backend.logits(seq_id), expected[seq_id], atol=1e-4)


def test_a_scheduler_writes_replies_together_and_goes_on_when_it_is_held_back(tiny_onnx: Tiny) -> None:
    def write(n_at_once: int, limits: Limits | None) -> tuple[list[tuple[int, ...]], int]:
        """The replies to two prompts, and how many passes were for both."""
        backend = OnnxBackend(onnx_plan(tiny_onnx("onnx")))
        n_together, n_threads = 0, {1}
        real, real_prefill, are_there = backend.passes.compute_neighbours, backend.prefill, threading.Event()

        def wait(*arguments: Any, **options: Any) -> Any:
            assert are_there.wait(600)
            return real_prefill(*arguments, **options)

        def count(first: int, lengths: list[int], tokens: dict[int, int]) -> Any:
            nonlocal n_together
            n_together += len(tokens) == 2
            if limits is not None and n_together == 3:
                scheduler.throttle(limits)
            logits = real(first, lengths, tokens)
            n_threads.add(backend.passes.session.n_threads)
            return logits

        backend.passes.compute_neighbours = count  # type: ignore[method-assign]
        backend.prefill = wait  # type: ignore[method-assign]
        scheduler = Scheduler(backend)
        ended: list[queue.SimpleQueue[Any]] = [queue.SimpleQueue() for _ in range(2)]
        replies: list[tuple[int, ...]] = []
        try:
            for first in range(0, 2, n_at_once):
                several = range(first, first + n_at_once)
                are_there.clear()
                for n in several:
                    listener = ended[n].put
                    scheduler.submit(Generation(text(n, 30 + n), Sampling(temperature=0, max_tokens=20), listener))
                are_there.set()
                for n in several:
                    while not isinstance(event := ended[n].get(timeout=600), Finished):
                        assert not isinstance(event, Failed), event
                    replies.append(event.tokens)
        finally:
            scheduler.close()
        assert n_threads == {1, 2 if limits else 1}
        return replies, n_together

    expected, none = write(1, None)
    assert none == 0 and all(len(reply) > 5 for reply in expected)
    together, n_together = write(2, Limits(2, 2, 0.0, N_CTX, single_reply=False))
    assert together == expected
    assert n_together >= 5


def test_a_model_whose_files_changed_keeps_its_threads(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_onnx(tmp_path)
    with OnnxBackend(onnx_plan(tmp_path)) as backend:
        expected = alone(backend, 0, [50])
        (tmp_path / "model.onnx.data").unlink()
        backend.set_threads(2, 2)
        np.testing.assert_array_equal(alone(backend, 0, [50]), expected)
        assert backend.passes.session.n_threads == 1
        assert "has changed since it was loaded" in caplog.text
        assert caplog.text.count("has changed") == 1, "it is not tried at every pass"


@pytest.mark.parametrize("n_failures", [1, 2])
def test_a_session_that_cannot_be_opened_again(
    tiny_onnx: Tiny, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, n_failures: int
) -> None:
    with OnnxBackend(onnx_plan(tiny_onnx("onnx"))) as backend:
        expected = alone(backend, 0, [50, 51])
        alone(backend, 0, [50])
        runtime = backend.passes.session.runtime
        real, left = runtime.InferenceSession, [n_failures]

        def fail(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] >= 0:
                raise MemoryError
            return real(*arguments, **options)

        monkeypatch.setattr(runtime, "InferenceSession", fail)
        backend.set_threads(2, 2)
        if n_failures == 1:
            backend.decode([(0, 51)])
            np.testing.assert_array_equal(backend.logits(0), expected)
            assert backend.passes.session.n_threads == 1
            assert "could not be opened again with 2 threads: There is not enough memory" in caplog.text
            return
        with pytest.raises(BackendError, match="could not be opened again"):
            backend.decode([(0, 51)])
        with pytest.raises(BackendError, match="closed"):
            backend.length(0)


def test_threads_are_no_matter_of_an_accelerator(tiny_onnx: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from edge.backends.onnx.session import PROVIDERS
    from edge.errors import UnsupportedError

    monkeypatch.setitem(PROVIDERS, "openvino", ())
    plan = dataclasses.replace(onnx_plan(tiny_onnx("onnx")), accelerator="openvino")
    with OnnxBackend(plan) as backend:
        assert not backend.capabilities.threads
        with pytest.raises(UnsupportedError, match="threads"):
            backend.set_threads(2, 2)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells how many threads a process has")
def test_the_threads_are_really_there(tiny_onnx: Tiny) -> None:
    def here() -> set[str]:  # threads of other tests may end meanwhile
        return {path.name for path in Path("/proc/self/task").iterdir()}

    with OnnxBackend(onnx_plan(tiny_onnx("onnx"))) as backend:
        before = here()
        backend.set_threads(5, 5)
        backend.prefill(0, [50])
        pool = here() - before
        assert len(pool) == 4  # and the one that calls
        backend.set_threads(1, 1)
        backend.decode([(0, 50)])
        assert not pool & here()
