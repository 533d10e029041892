"""Damaged models are refused in one sentence, or converted: no other exception, nothing left behind."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gguf", reason="needs the extra [convert]: pip install 'edge-assistant[convert]'")

from edge.errors import EdgeError, ModelFileError
from edge.formats.gguf import read_header
from edge_convert.facts import Request, read_facts
from edge_convert.gguf.quantise import FLOATS, GgufOptions, type_of_weights
from edge_convert.inputs import Input
from edge_convert.pipeline import run
from edge_convert.plan import make_plan
from edge_convert.step_process import isolate
from tests.prove import proof_size
from tests.unit.convert.conftest import Make
from tests.unit.convert.mutations import damage_gguf, damage_json, damage_safetensors, gguf_type, write_gguf_fields

REQUEST = Request(gguf=GgufOptions(quantisations=("F32",), use_imatrix=False), card=False)
_LONGEST_MESSAGE = 700
_LIMIT_S = 120


@contextmanager
def in_time() -> Iterator[None]:
    def stop(_number: int, _frame: object) -> None:
        raise AssertionError("it does not end")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(_LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def convert(path: Path, out: Path, request: Request = REQUEST) -> str | None:
    """Convert a model in this process, and return the message of its refusal, which must be a sentence; None if it worked."""
    found = Input(kind="gguf" if path.is_file() else "checkpoint", path=path, source=path.name)
    try:
        with in_time():
            run(make_plan(found, out, request))
    except EdgeError as error:
        assert isinstance(error, ModelFileError), error
        assert error.message and error.hint
        assert len(error.message) < _LONGEST_MESSAGE and "\n" not in error.message
        assert 'File "' not in error.message and "report" not in error.hint.lower()
        assert not out.exists()
        return error.message
    shutil.rmtree(out)
    return None


def damaged_copy(checkpoint: Path, copy: Path, name: str, data: bytes) -> Path:
    shutil.copytree(checkpoint, copy)
    (copy / name).write_bytes(data)
    return copy


@pytest.mark.parametrize(
    ("name", "n_seeds"),
    [
        ("config.json", 8),
        ("model.safetensors", 10),
        ("tokenizer.json", 8),
        ("tokenizer_config.json", 4),
        ("generation_config.json", 4),
    ],
)
@pytest.mark.prove
def test_a_damaged_file_of_a_checkpoint(name: str, n_seeds: int, tiny_checkpoint: Make, tmp_path: Path) -> None:
    refused = 0
    for seed in range(proof_size(n_seeds, 200)):
        kind = ("qwen3", "gemma3", "phi3", "llama3")[seed % 4]
        checkpoint = tiny_checkpoint(kind)
        damage = damage_safetensors if name.endswith(".safetensors") else damage_json
        data = damage((checkpoint / name).read_bytes(), random.Random(f"{name} {seed}"))
        path = damaged_copy(checkpoint, tmp_path / f"{seed}", name, data)
        refused += convert(path, tmp_path / "out") is not None
        shutil.rmtree(path)
    assert refused > n_seeds // 3


def write_tiny_gguf(checkpoint: Path, path: Path) -> Path:
    from edge_convert.checkpoint import open_checkpoint
    from edge_convert.gguf.tensors import write_gguf

    return write_gguf(open_checkpoint(checkpoint), path, "F32")


@pytest.mark.prove
def test_a_damaged_gguf(tiny_checkpoint: Make, tmp_path: Path) -> None:
    request = Request(gguf=GgufOptions(quantisations=("F16",), use_imatrix=False), card=False)
    whole = [write_tiny_gguf(tiny_checkpoint(kind), tmp_path / f"{kind}.gguf") for kind in ("llama-linear", "qwen2")]
    refused, n_seeds = 0, proof_size(8, 200)
    for seed in range(n_seeds):
        damage_gguf(whole[seed % 2], tmp_path / "m.gguf", random.Random(seed))
        refused += convert(tmp_path / "m.gguf", tmp_path / "out", request) is not None
    assert refused > n_seeds // 3


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("llama.block_count", 10**9, "block_count|damaged|num_hidden_layers"),
        ("llama.attention.key_length", 0, "key_length is 0"),
        ("llama.attention.value_length", 2**31 - 1, "value_length is 2147483647"),
        ("llama.vocab_size", 5, "vocab_size is 5"),
        ("llama.block_count", 1, "holds blk.1."),
        ("llama.attention.head_count", 7, "num_attention_heads (7)"),
        ("llama.attention.head_count", 10**6, "num_attention_heads (1000000)"),
        ("llama.attention.head_count_kv", 0, "names no attention heads"),
        ("llama.attention.key_length", 2**31 - 1, "the rest of it says 2147483647"),
        ("llama.context_length", 0, "max_position_embeddings"),
        ("llama.rope.dimension_count", 0, "partial_rotary_factor"),
        ("llama.rope.dimension_count", 7, "partial_rotary_factor"),
        ("llama.attention.layer_norm_rms_epsilon", float("nan"), "nan as llama.attention.layer_norm_rms_epsilon"),
        ("tokenizer.ggml.bos_token_id", 10**6, "bos_token_id is 1000000"),
        ("tokenizer.ggml.pre", True, "pre is true or false, and should be text"),
        ("tokenizer.ggml.tokens", 7, "tokens is a whole number, and should be a list"),
        ("tokenizer.ggml.bos_token_id", "x", "bos_token_id is text, and should be a whole number"),
        ("tokenizer.ggml.padding_token_id", 1.5, "pad_token_id is a number, and should be a whole number"),
        ("tokenizer.ggml.add_space_prefix", "x", "llama.cpp cannot read the tokenizer of m.gguf"),
    ],
)
def test_numbers_of_a_gguf_that_contradict_the_rest(
    key: str, value: Any, reason: str, tiny_checkpoint: Make, tmp_path: Path
) -> None:
    from gguf import GGUFReader

    reader = GGUFReader(write_tiny_gguf(tiny_checkpoint("llama-linear"), tmp_path / "whole.gguf"))
    fields = {name: (field.contents(), field.types) for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    fields[key] = (value, [gguf_type(value)])
    write_gguf_fields(tmp_path / "m.gguf", fields, {tensor.name: tensor.data for tensor in reader.tensors})
    message = convert(tmp_path / "m.gguf", tmp_path / "out", REQUEST)
    assert message is not None
    assert [part for part in reason.split("|") if part in message]


@pytest.mark.parametrize(
    ("name", "old", "new", "reason"),
    [
        (
            "tokenizer_config.json",
            b'"tokenizer_class"',
            b'"tokenizer_class": 7, "x"',
            "tokenizer_class is a whole number, and",
        ),
        ("tokenizer_config.json", b"{", b'{"x": "\xe9", ', "not UTF-8 text"),
        ("tokenizer.json", b'"merges": [', b'"merges": [["no", "token"], ', "out of vocabulary"),
        ("tokenizer.json", b'"decoder": {', b'"decoder": {"type": "Strange"}, "x": {', "tokenizer.json of"),
        ("config.json", b"{", b'{"use_cache": {},', "use_cache is a table, and should be true or false"),
        ("config.json", b"{", b'{"torch_dtype": "float8", ', "torch_dtype is 'float8', which is not known"),
        (
            "config.json",
            b'"initializer_range": 0.02',
            b'"initializer_range": {}',
            "initializer_range is a table, and should be a number",
        ),
        ("generation_config.json", b'"eos_token_id": 2', b'"eos_token_id": [true]', "eos_token_id is true, and the"),
        (
            "tokenizer.json",
            b'"added_tokens": [',
            b'"added_tokens": [7, ',
            "added_tokens[0] is a whole number, and should be a table",
        ),
        ("config.json", b'"model_type"', b'"x"', "as its model_type"),
    ],
)
def test_the_sentence_names_file_and_value(
    name: str, old: bytes, new: bytes, reason: str, tiny_checkpoint: Make, tmp_path: Path
) -> None:
    checkpoint = tiny_checkpoint("qwen3")
    data = (checkpoint / name).read_bytes()
    if b"use_cache" in new:
        data = data.replace(b'"use_cache"', b'"x"')
    path = damaged_copy(checkpoint, tmp_path / "copy", name, data.replace(old, new, 1))
    message = convert(path, tmp_path / "out")
    assert message and reason in message


def test_a_panic_of_a_library_is_refused_and_a_stop_is_not() -> None:
    from edge_convert.tokenizer_files import library_reads

    class PanicException(BaseException):
        """As pyo3 raises it for a panic of Rust."""

    with pytest.raises(ModelFileError, match=r"tokenizer\.json cannot be read: no such id"), library_reads("tokenizer.json"):
        raise PanicException("no such\n  id")
    with pytest.raises(KeyboardInterrupt), library_reads("tokenizer.json"):
        raise KeyboardInterrupt


def test_a_source_that_a_later_step_refuses_leaves_nothing(tiny_checkpoint: Make, tmp_path: Path) -> None:
    """In processes of their own, as the command runs them."""
    checkpoint = tiny_checkpoint("qwen3")
    data = (checkpoint / "tokenizer.json").read_bytes().replace(b'"Isolated"', b'"Removed"')
    path = damaged_copy(checkpoint, tmp_path / "copy", "tokenizer.json", data)
    found = Input(kind="checkpoint", path=path, source="copy")
    with pytest.raises(ModelFileError, match="does not know"):
        run(isolate(make_plan(found, tmp_path / "out", REQUEST), found, REQUEST))
    assert not (tmp_path / "out").exists()


def test_a_gguf_whose_file_type_is_not_that_of_its_weights(tiny_checkpoint: Make, tmp_path: Path) -> None:
    from gguf import GGUFReader, GGUFValueType

    reader = GGUFReader(write_tiny_gguf(tiny_checkpoint("llama-linear"), tmp_path / "whole.gguf"))
    fields = {name: (field.contents(), field.types) for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    honest = type_of_weights(read_header(tmp_path / "whole.gguf"))
    assert honest in FLOATS
    for code, named in ((2, "Q4_0"), (15, "Q4_K_M"), (7, "Q8_0")):
        fields["general.file_type"] = (code, [GGUFValueType.UINT32])
        path = tmp_path / f"\x1b]0;a\u202e\nb-{named}.gguf"
        write_gguf_fields(path, fields, tensors)
        source = Input(kind="gguf", path=path, source=path.name)
        request = Request(gguf=GgufOptions(quantisations=(named,)), card=False)
        plan = make_plan(source, tmp_path / "out", request)
        assert f"says that its weights are {named}, but they are {honest}" in "".join(plan.notes)
        assert not any("Copy" in step.title for step in plan.steps)
        facts = read_facts(source)
        assert (facts.quantised, facts.name) == (None, "]0;a b")
