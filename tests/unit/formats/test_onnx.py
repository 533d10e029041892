"""ONNX folders that strangers made: what is read of them, and that what is damaged or hostile is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.errors import ModelFileError
from edge.formats.onnx import read_onnx_folder
from edge.formats.onnx_graph import FIRST_LOGITS, only_last_logits, read_graph
from edge.formats.protobuf import ProtobufError, bytes_field, fields, number_field, varints
from tests.tiny_onnx import N_VOCAB, write_onnx


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_onnx(tmp_path / "model")


def test_a_folder_says_what_it_is(folder: Path) -> None:
    found = read_onnx_folder(folder)
    assert (found.n_layer, found.n_head, found.n_head_kv, found.head_dim, found.n_vocab) == (2, 4, 2, 32, N_VOCAB)
    assert (found.kv_type, found.logits_type, found.cell_bytes) == ("f32", "f32", 2 * 2 * 2 * 32 * 4)
    assert found.shares_buffer and found.has_attention_mask
    assert not found.has_position_ids and not found.has_last_logits
    assert found.past_key == ("past_key_values.0.key", "past_key_values.1.key")
    assert found.files == (folder / "model.onnx", folder / "model.onnx.data")
    model = onnx.load(folder / "model.onnx")
    expected = sum(onnx.numpy_helper.to_array(weight).nbytes for weight in model.graph.initializer)
    assert found.weights_bytes == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"kind": "int4"}, ("int4", True, "f32")),
        ({"attention": "plain"}, ("f32", False, "f32")),
        ({"shares": False}, ("f32", False, "f32")),
        ({"kv": "f16"}, ("f16", True, "f16")),
    ],
)
def test_kinds_of_folders(tmp_path: Path, changes: dict[str, Any], expected: tuple[str, bool, str]) -> None:
    found = read_onnx_folder(write_onnx(tmp_path, **changes))
    assert (found.quantisation, found.shares_buffer, found.kv_type) == expected


def test_a_promise_to_share_that_the_operators_cannot_keep_is_not_believed(tmp_path: Path) -> None:
    write_onnx(tmp_path, attention="plain")
    edit(tmp_path, lambda config: config["search"].update(past_present_share_buffer=True))
    assert not read_onnx_folder(tmp_path).shares_buffer


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "genai_config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def point_weights(folder: Path, **entries: str) -> None:
    """Let the model say that its weights are elsewhere."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for weight in model.graph.initializer:
        for entry in weight.external_data:
            if entry.key in entries:
                entry.value = entries[entry.key]
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def link_weights(folder: Path) -> None:
    data = folder / "model.onnx.data"
    outside = data.rename(folder.parent / "elsewhere.data")
    data.symlink_to(outside)


HOSTILE: dict[str, Callable[[Path], object]] = {
    "no config": lambda folder: (folder / "genai_config.json").write_text("[]"),
    "config cut off": lambda folder: (folder / "genai_config.json").write_text('{"model":'),
    "no layers": lambda folder: edit(folder, lambda c: c["model"]["decoder"].update(num_hidden_layers=0)),
    "a million layers": lambda folder: edit(folder, lambda c: c["model"]["decoder"].update(num_hidden_layers=1_000_000)),
    "more layers than there are": lambda folder: edit(folder, lambda c: c["model"]["decoder"].update(num_hidden_layers=3)),
    "other heads": lambda folder: edit(folder, lambda c: c["model"]["decoder"].update(num_key_value_heads=4)),
    "other width": lambda folder: edit(folder, lambda c: c["model"]["decoder"].update(head_size=64)),
    "other vocabulary": lambda folder: edit(folder, lambda c: c["model"].update(vocab_size=5)),
    "model elsewhere": lambda folder: edit(folder, lambda c: c["model"]["decoder"].update(filename="../model.onnx")),
    "model at the root": lambda folder: edit(folder, lambda c: c["model"]["decoder"].update(filename="/etc/passwd")),
    "no such model": lambda folder: edit(folder, lambda c: c["model"]["decoder"].update(filename="other.onnx")),
    "pictures": lambda folder: edit(folder, lambda c: c["model"].update(vision={"filename": "v.onnx"})),
    "pipeline": lambda folder: edit(folder, lambda c: c["model"]["decoder"].update(pipeline=[{"a": {}}])),
    "a name without a layer": lambda folder: edit(
        folder, lambda c: c["model"]["decoder"]["inputs"].update(past_key_names="past.%s.key")
    ),
    "an input nobody knows": lambda folder: edit(folder, lambda c: c["model"]["decoder"]["inputs"].update(attention_mask="m")),
    "empty model": lambda folder: (folder / "model.onnx").write_bytes(b""),
    "no model": lambda folder: (folder / "model.onnx").write_bytes(b"GGUF" * 100),
    "cut off": lambda folder: (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:-50]),
    "no weights": lambda folder: (folder / "model.onnx.data").unlink(),
    "weights cut off": lambda folder: (folder / "model.onnx.data").write_bytes(b"0" * 100),
    "weights in another folder": lambda folder: point_weights(folder, location="../../etc/passwd"),
    "weights at the root": lambda folder: point_weights(folder, location="/etc/passwd"),
    "weights behind a backslash": lambda folder: point_weights(folder, location="..\\model.onnx.data"),
    "weights behind a link": link_weights,
    "weights before the file": lambda folder: point_weights(folder, offset="-8"),
    "weights far behind the file": lambda folder: point_weights(folder, offset="9" * 30),
    "weights of another length": lambda folder: point_weights(folder, length="4"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_damaged_or_hostile_is_refused(folder: Path, name: str) -> None:
    HOSTILE[name](folder)
    with pytest.raises(ModelFileError) as caught:
        read_onnx_folder(folder)
    assert caught.value.hint


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_to_a_model_file_raises_anything_else(folder: Path, data: st.DataObject) -> None:
    path = folder / "model.onnx"
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    broken = bytearray(whole)
    broken[place : place + 3] = data.draw(st.binary(min_size=1, max_size=3))
    path.write_bytes(broken)
    try:
        read_onnx_folder(folder)
        only_last_logits(bytes(broken), "logits")
    except (ModelFileError, ProtobufError):
        pass
    finally:
        path.write_bytes(whole)


# -- rewriting


@pytest.mark.parametrize("changes", [{}, {"kind": "int4"}, {"soft_cap": True}, {"kv": "f16"}, {"external": False}])
def test_only_the_last_logits_are_those_of_the_whole(tmp_path: Path, changes: dict[str, Any]) -> None:
    import onnxruntime as ort

    write_onnx(tmp_path, **changes)
    path = tmp_path / "model.onnx"
    edited = only_last_logits(path.read_bytes(), "logits")
    assert edited is not None
    onnx.load_model_from_string(edited)
    options = ort.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(tmp_path))
    kind = np.float16 if changes.get("kv") == "f16" else np.float32
    feeds: dict[str, Any] = {"input_ids": np.arange(20, 31)[None], "attention_mask": np.ones((1, 11), np.int64)}
    for layer in range(2):
        for part in ("key", "value"):
            feeds[f"past_key_values.{layer}.{part}"] = np.zeros((1, 2, 0, 32), kind)
    models = (str(path), edited)
    sessions = [ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]) for model in models]
    whole, last = (session.run(None, feeds) for session in sessions)
    assert whole[0].shape == (1, 11, N_VOCAB)
    assert last[-1].shape == (1, 1, N_VOCAB), "the output that was rewritten comes last"
    np.testing.assert_allclose(last[-1][0, 0], whole[0][0, -1], rtol=1e-3, atol=1e-3)
    for before, after in zip(whole[1:], last[:-1], strict=True):
        np.testing.assert_array_equal(before, after)
    (*_, three) = sessions[1].run(None, feeds | {FIRST_LOGITS: np.array([-3])})
    assert three.shape == (1, 3, N_VOCAB)
    np.testing.assert_allclose(three[0], whole[0][0, -3:], rtol=1e-3, atol=1e-3)


def test_an_output_layer_that_is_not_known_is_left_alone(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    next(node for node in model.graph.node if "logits" in node.output).op_type = "Softmax"
    assert only_last_logits(model.SerializeToString(), "logits") is None
    assert only_last_logits(model.SerializeToString(), "nothing") is None


# -- the wire format, against the library


def test_fields_are_those_of_the_library(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    graph = read_graph(folder / "model.onnx")
    assert [port.name for port in graph.inputs] == [port.name for port in model.graph.input]
    assert [port.name for port in graph.outputs] == [port.name for port in model.graph.output]
    assert [weight.name for weight in graph.weights] == [weight.name for weight in model.graph.initializer]
    assert graph.ops.total() == len(model.graph.node)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(1, 2**29 - 1), st.binary(max_size=300))
def test_what_is_written_is_read(number: int, tag: int, value: bytes) -> None:
    data = memoryview(number_field(tag, number) + bytes_field(tag, value))
    (first, second) = fields(data)
    assert first[0] == second[0] == tag
    assert varints(first[1]) == [number]
    assert bytes(second[1]) == value  # type: ignore[arg-type]
    assert (first[2], first[3], second[2], second[3]) == (0, second[2], first[3], len(data))


@pytest.mark.parametrize("data", [b"\x00", b"\x0a\x05abc", b"\x08" + b"\x80" * 11, b"\x0b", b"\x0d\x00", b"\x80"])
def test_damaged_messages(data: bytes) -> None:
    with pytest.raises(ProtobufError):
        list(fields(memoryview(data)))
