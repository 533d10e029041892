"""The GGUF header reader: against llama.cpp's own reader, and against files that lie."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.errors import ModelFileError, ModelNotFoundError
from edge.formats.gguf import ArrayInfo, GGUFHeader, read_header
from edge.formats.gguf_tables import FILE_TYPES, REMOVED_TYPES, TENSOR_TYPES
from tests.tiny_gguf import write_gguf


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str, code: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", code) + value


def text_entry(key: str, text: str) -> bytes:
    return entry(key, 8, string(text))


def tensor(name: str, shape: tuple[int, ...], code: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, code, offset)


ARCHITECTURE = text_entry("general.architecture", "llama")


def build(
    entries: list[bytes],
    tensors: list[bytes] = [],  # noqa: B006  (never changed)
    data: bytes = b"",
    *,
    version: int = 3,
    n_keys: int | None = None,
    n_tensors: int | None = None,
) -> bytes:
    head = struct.pack(
        "<4sIQQ",
        b"GGUF",
        version,
        len(tensors) if n_tensors is None else n_tensors,
        len(entries) if n_keys is None else n_keys,
    )
    raw = head + b"".join(entries) + b"".join(tensors)
    return raw + b"\0" * (-len(raw) % 32) + data


def write_model(path: Path, *, arch: str = "llama", vocab: int = 100, seed: int = 0) -> Path:
    """A small whole model by llama.cpp's own writer."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name("tiny")
    writer.add_block_count(2)
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv([2, 4])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_float32("general.float", 0.5)
    writer.add_float64("general.double", -1.25)
    writer.add_int64("general.long", -(2**40))
    writer.add_uint64("general.ulong", 2**63)
    writer.add_bool("general.yes", True)
    writer.add_chat_template("{{ messages }}")
    writer.add_token_list([f"word{i}".encode() for i in range(vocab)])
    writer.add_token_scores([float(i) for i in range(vocab)])
    writer.add_token_types([1] * vocab)
    writer.add_tensor("token_embd.weight", rng.standard_normal((vocab, 64)).astype(np.float32))
    writer.add_tensor("blk.0.attn_q.weight", rng.standard_normal((64, 64)).astype(np.float16))
    quantised = gguf.quants.quantize(rng.standard_normal((64, 64)).astype(np.float32), gguf.GGMLQuantizationType.Q4_0)
    writer.add_tensor("blk.1.attn_q.weight", quantised, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def check_against_reference(path: Path) -> GGUFHeader:
    """Everything that `gguf.GGUFReader` finds, our reader finds too, and nothing else."""
    header = read_header(path)
    reference = gguf.GGUFReader(path)
    fields = {name: value for name, value in reference.fields.items() if not name.startswith("GGUF.")}
    assert list(header.metadata) == list(fields)
    for name, value in fields.items():
        ours, theirs = header.metadata[name], value.contents()
        if isinstance(ours, ArrayInfo):
            assert ours.length == len(theirs)
            assert ours.type == value.types[-1].name.lower()
        elif isinstance(ours, tuple):
            assert list(ours) == theirs
        else:
            assert ours == theirs
            assert type(ours) is type(theirs)
    assert len(header.tensors) == len(reference.tensors)
    for ours_tensor, theirs_tensor in zip(header.tensors, reference.tensors, strict=True):
        assert ours_tensor.name == theirs_tensor.name
        assert ours_tensor.shape == tuple(int(length) for length in theirs_tensor.shape)
        assert ours_tensor.type == theirs_tensor.tensor_type.name
        assert header.data_offset + ours_tensor.offset == theirs_tensor.data_offset
        assert ours_tensor.size_bytes == theirs_tensor.n_bytes
    assert header.data_offset == reference.data_offset
    assert header.n_params == sum(int(t.n_elements) for t in reference.tensors)
    return header


def test_a_small_model_reads_as_llama_cpp_reads_it(tmp_path: Path) -> None:
    header = check_against_reference(write_model(tmp_path / "m.gguf"))
    assert (header.architecture, header.name, header.version) == ("llama", "tiny", 3)
    assert (header.n_layer, header.n_embd, header.n_ctx_train, header.n_vocab) == (2, 64, 512, 100)
    assert (header.n_head, header.n_head_kv) == (4, (2, 4))
    assert (header.head_dim_k, header.head_dim_v) == (16, 16)
    assert header.chat_template == "{{ messages }}"
    assert header.file_type == "Q4_0"
    assert header.metadata["tokenizer.ggml.tokens"] == ArrayInfo("string", 100)
    assert not header.is_recurrent
    assert not header.is_hybrid
    assert header.sliding_window is None


@pytest.mark.model
def test_the_real_model_reads_as_llama_cpp_reads_it(model_path: Path) -> None:
    header = check_against_reference(model_path)
    assert (header.architecture, header.file_type, header.n_layer) == ("llama", "Q4_1", 30)
    assert (header.n_head, header.n_head_kv, header.head_dim_k, header.n_embd) == (9, 3, 64, 576)
    assert (header.n_vocab, header.n_ctx_train, header.n_params) == (49152, 8192, 134_515_008)
    assert header.chat_template
    assert "<|im_start|>" in header.chat_template
    assert header.data_offset + header.tensors_bytes == header.file_bytes == model_path.stat().st_size


def test_the_tables_are_those_of_llama_cpp() -> None:
    theirs = {int(kind): (kind.name, *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType}
    # The range of versions in pyproject.toml includes some that know fewer types.
    assert theirs.items() <= TENSOR_TYPES.items()
    assert not REMOVED_TYPES.keys() & TENSOR_TYPES.keys()
    names = {
        int(kind): kind.name.replace("MOSTLY_", "").replace("ALL_", "") for kind in gguf.LlamaFileType if kind.name != "GUESSED"
    }
    assert names.items() <= FILE_TYPES.items()


def test_version_2_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(build([ARCHITECTURE], version=2))
    assert read_header(path).version == 2


def test_large_lists_are_skipped_in_chunks(tmp_path: Path) -> None:
    """Texts longer than a chunk, and lists over many chunks, leave the cursor where it belongs."""
    long = [b"x" * n for n in (0, 1, 300_000, 7, 262_144, 262_136)] + [b"y" * (i % 50) for i in range(60_000)]
    words = struct.pack("<IQ", 8, len(long)) + b"".join(string(word) for word in long)
    numbers = struct.pack("<IQ", 6, 200_000) + b"\0" * 800_000
    path = tmp_path / "m.gguf"
    path.write_bytes(
        build([ARCHITECTURE, entry("a.words", 9, words), entry("a.numbers", 9, numbers), text_entry("a.end", "end")])
    )
    header = read_header(path)
    assert header.metadata["a.words"] == ArrayInfo("string", len(long))
    assert header.metadata["a.numbers"] == ArrayInfo("float32", 200_000)
    assert header.metadata["a.end"] == "end"


def test_texts_that_are_not_utf8_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(build([ARCHITECTURE, entry("general.name", 8, string(b"caf\xe9"))]))
    assert read_header(path).name == "caf\ufffd"


@pytest.mark.parametrize(
    ("arch", "entries", "recurrent", "hybrid"),
    [
        ("mamba", [("ssm.state_size", 16), ("attention.head_count", 0)], True, False),
        ("rwkv7", [("wkv.head_size", 64), ("attention.head_count", 0)], True, False),
        ("falcon-h1", [("ssm.state_size", 16), ("attention.head_count", 8)], False, True),
        ("lfm2", [("shortconv.l_cache", 3), ("attention.head_count", 8)], False, True),
        ("qwen2", [("attention.head_count", 8)], False, False),
    ],
)
def test_recurrent_and_hybrid_models_are_told_apart(
    tmp_path: Path, arch: str, entries: list[tuple[str, int]], recurrent: bool, hybrid: bool
) -> None:
    path = tmp_path / "m.gguf"
    numbers = [entry(f"{arch}.{key}", 4, struct.pack("<I", value)) for key, value in entries]
    path.write_bytes(build([text_entry("general.architecture", arch), *numbers]))
    header = read_header(path)
    assert (header.is_recurrent, header.is_hybrid) == (recurrent, hybrid)


def test_a_hybrid_model_may_give_its_heads_by_layer(tmp_path: Path) -> None:
    """LFM2 and Jamba write 0 heads for the layers that keep a state."""
    path = tmp_path / "m.gguf"
    heads = struct.pack("<IQ4i", 5, 4, 0, 8, 0, 8)
    path.write_bytes(
        build(
            [
                text_entry("general.architecture", "lfm2"),
                entry("lfm2.block_count", 4, struct.pack("<I", 4)),
                entry("lfm2.embedding_length", 4, struct.pack("<I", 512)),
                entry("lfm2.attention.head_count", 4, struct.pack("<I", 8)),
                entry("lfm2.attention.head_count_kv", 9, heads),
                entry("lfm2.shortconv.l_cache", 4, struct.pack("<I", 3)),
                entry("lfm2.attention.sliding_window", 4, struct.pack("<I", 128)),
            ]
        )
    )
    header = read_header(path)
    assert header.n_head_kv == (0, 8, 0, 8)
    assert header.is_hybrid
    assert header.head_dim_k == 64
    assert header.sliding_window == 128


def test_a_truncated_file_is_named_with_both_sizes(tmp_path: Path) -> None:
    whole = write_model(tmp_path / "m.gguf")
    size = whole.stat().st_size
    raw = whole.read_bytes()
    # The writer pads behind the last tensor; nothing of the model is lost with the padding.
    needed = read_header(whole).data_offset + max(t.offset + t.size_bytes for t in read_header(whole).tensors)
    path = tmp_path / "cut.gguf"
    path.write_bytes(raw[: needed - 1])
    with pytest.raises(ModelFileError, match=rf"cut off: it has {needed - 1:,} of {needed:,} bytes") as caught:
        read_header(path)
    assert "Download it again" in caught.value.hint
    path.write_bytes(raw[:200])
    with pytest.raises(ModelFileError, match="ends in the middle of its header: it has only 200 bytes"):
        read_header(path)
    assert needed <= size


BAD_FILES = {
    "empty": (b"", "is empty"),
    "two letters": (b"GG", "ends in the middle"),
    "text": (b"hello, this is no model at all", "not a GGUF file"),
    "web page": (b"<!DOCTYPE html><html>", "web page"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "safetensors": (struct.pack("<Q", 20) + b'{"a": {"dtype": 1}}', "safetensors"),
    "zip": (b"PK\x03\x04" + b"\0" * 40, "zip"),
    "ggml": (b"tjgg"[::-1] + b"\0" * 40, "old GGML"),
    "big-endian": (struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), "big-endian"),
    "version 1": (build([ARCHITECTURE], version=1), "version 1"),
    "version 99": (build([ARCHITECTURE], version=99), "version 99"),
    "too many keys": (build([ARCHITECTURE], n_keys=2**60), "claims 1,152,921,504,606,846,976 metadata entries"),
    "too many tensors": (build([ARCHITECTURE], n_tensors=2**60), "claims .* tensors"),
    "key longer than the file": (build([struct.pack("<QI", 2**40, 8) + b"x" * 40]), "middle of its header"),
    "text longer than the file": (build([entry("a", 8, struct.pack("<Q", 2**63))]), "middle of its header"),
    "duplicate key": (build([ARCHITECTURE, ARCHITECTURE]), "'general.architecture' twice"),
    "unknown value type": (build([entry("a", 77, b"\0" * 32)]), "unknown type 77"),
    "list of lists": (build([entry("a", 9, struct.pack("<IQ", 9, 1) + b"\0" * 32)]), "list of unknown type 9"),
    "list too long": (build([entry("a", 9, struct.pack("<IQ", 6, 2**61))]), "middle of its header"),
    "texts too many": (build([entry("a", 9, struct.pack("<IQ", 8, 2**61))]), "claims .* texts"),
    "last text too long": (
        build([entry("a", 9, struct.pack("<IQ", 8, 100) + string("x") * 99 + struct.pack("<Q", 2**64 - 1))]),
        "middle of its header",
    ),
    "no architecture": (build([text_entry("general.name", "x")]), "which architecture"),
    "architecture is a number": (build([entry("general.architecture", 4, b"\1\0\0\0")]), "which architecture"),
    "layers are a text": (build([ARCHITECTURE, text_entry("llama.block_count", "many")]), "not a usable number"),
    "layers below zero": (
        build([ARCHITECTURE, entry("llama.block_count", 5, struct.pack("<i", -1))]), "not a usable number"
    ),
    "layers as a truth": (build([ARCHITECTURE, entry("llama.block_count", 7, b"\1")]), "not a usable number"),
    "layers as a list": (
        build([ARCHITECTURE, entry("llama.block_count", 9, struct.pack("<IQI", 4, 1, 3))]), "not a usable number"
    ),
    "heads for other layers": (
        build([ARCHITECTURE, entry("llama.attention.head_count", 9, struct.pack("<IQI", 4, 1, 3))]),
        "1 values of attention.head_count for 0 layers",
    ),
    "alignment 24": (build([ARCHITECTURE, entry("general.alignment", 4, struct.pack("<I", 24))]), "power of two"),
    "alignment 0": (build([ARCHITECTURE, entry("general.alignment", 4, struct.pack("<I", 0))]), "power of two"),
    "alignment text": (build([ARCHITECTURE, text_entry("general.alignment", "32")]), "power of two"),
    "five dimensions": (build([ARCHITECTURE], [tensor("t", (1, 1, 1, 1, 1))], b"\0" * 64), "claims 5 dimensions"),
    "unknown weights": (build([ARCHITECTURE], [tensor("t", (32,), 4711)], b"\0" * 64), "number 4711"),
    "removed weights": (build([ARCHITECTURE], [tensor("t", (32,), 31)], b"\0" * 64), "Q4_0_4_4.*no longer"),
    "half a block": (build([ARCHITECTURE], [tensor("t", (33,), 2)], b"\0" * 64), "impossible shape"),
    "overflowing shape": (build([ARCHITECTURE], [tensor("t", (2**32, 2**32))], b"\0" * 64), "impossible shape"),
    "crooked offset": (build([ARCHITECTURE], [tensor("t", (4,), 0, 7)], b"\0" * 64), "not a multiple of 32"),
    "offset outside": (build([ARCHITECTURE], [tensor("t", (4,), 0, 2**40)], b"\0" * 64), "cut off"),
    "same tensor twice": (
        build([ARCHITECTURE], [tensor("t", (4,)), tensor("t", (4,), 0, 32)], b"\0" * 64), "two tensors of the same name"
    ),
    "tensors overlap": (
        build([ARCHITECTURE], [tensor("t", (16,)), tensor("u", (4,), 0, 32)], b"\0" * 64), "'u' overlap"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_FILES)
def test_bad_files_are_refused_by_name(tmp_path: Path, what: str) -> None:
    raw, message = BAD_FILES[what]
    path = tmp_path / "bad.gguf"
    path.write_bytes(raw)
    with pytest.raises(ModelFileError, match=message) as caught:
        read_header(path)
    assert "bad.gguf" in caught.value.message
    assert caught.value.hint
    assert caught.value.exit_code == 1


def test_what_the_file_says_cannot_speak_to_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    nasty = text_entry("\x1b[2J" + "x" * 500, "1")
    path.write_bytes(build([nasty, nasty]))
    with pytest.raises(ModelFileError) as caught:
        read_header(path)
    assert "\x1b" not in caught.value.message
    assert len(caught.value.message) < 200


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        read_header(tmp_path / "none.gguf")
    assert caught.value.exit_code == 3
    with pytest.raises(ModelFileError, match="not a file"):
        read_header(tmp_path)
    with pytest.raises(ModelFileError, match="cannot be read"):
        read_header(str(tmp_path) + "/a\0b")


def read_bounded(path: Path) -> GGUFHeader | None:
    """Read within 8 MB and 1 s, or be refused: nothing else may come out, whatever the file holds."""
    tracemalloc.start()
    start = time.process_time()
    try:
        return read_header(path)
    except ModelFileError:
        return None
    finally:
        spent = time.process_time() - start
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert spent < 1.0
        assert peak < 8 << 20


def test_two_thousand_damaged_headers(tmp_path: Path) -> None:
    whole = write_model(tmp_path / "m.gguf", vocab=70)
    raw = whole.read_bytes()
    end = read_header(whole).data_offset
    rng = random.Random(20240229)
    path = tmp_path / "damaged.gguf"
    n_read = 0
    for _ in range(2000):
        damaged = bytearray(raw)
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(end)
            kind = rng.randrange(4)
            if kind == 0:
                damaged[at] ^= 1 << rng.randrange(8)
            elif kind == 1:  # a huge or strange number where one may stand
                damaged[at : at + 8] = struct.pack("<Q", rng.choice((0, 1, 2**31, 2**32, 2**63, 2**64 - 1, len(raw))))
            elif kind == 2:
                damaged[at : at + 4] = rng.randbytes(4)
            else:
                del damaged[at : at + rng.randrange(1, 64)]
        if rng.random() < 0.25:
            del damaged[rng.randrange(len(damaged)) :]
        path.write_bytes(damaged)
        n_read += read_bounded(path) is not None
    # Flips in texts and in values are no damage a reader could see; most of the rest must be refused.
    assert 0 < n_read < 1500


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.builds(entry, st.text(max_size=12), st.integers(0, 13), st.binary(max_size=40)),
            st.builds(tensor, st.text(max_size=12), st.tuples(st.integers(0, 2**64 - 1)), st.integers(0, 45)),
        ),
        max_size=8,
    ),
    st.integers(0, 2**64 - 1),
    st.integers(0, 9),
)
def test_any_bytes_behind_the_magic(tmp_path: Path, parts: list[bytes], n_tensors: int, n_keys: int) -> None:
    path = tmp_path / "any.gguf"
    path.write_bytes(build([ARCHITECTURE, *parts], n_keys=n_keys, n_tensors=n_tensors % 7 if n_tensors % 2 else n_tensors))
    read_bounded(path)


def test_the_worst_vocabulary_is_walked_in_time(tmp_path: Path) -> None:
    """Four million empty words in a sparse file of 32 MB: the most that is accepted takes less than the second."""
    path = tmp_path / "worst.gguf"
    head = build([ARCHITECTURE, entry("a", 9, struct.pack("<IQ", 8, 4_000_000))])
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + 8 * 4_000_000)
    header = read_header(path)
    assert header.metadata["a"] == ArrayInfo("string", 4_000_000)
    with path.open("r+b") as file:
        file.seek(0)
        file.write(build([ARCHITECTURE, entry("a", 9, struct.pack("<IQ", 8, 4_000_001))]))
    with pytest.raises(ModelFileError, match="texts"):
        read_header(path)


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        ({"block_count": 2**31 - 1}, "2,147,483,647 layers"),
        ({"block_count": 30_000_000}, "30,000,000 layers"),
        ({"block_count": 12}, "12 layers, and has 11 tensors"),
        ({"nextn_predict_layers": 2}, "claims 2 layers that predict"),
        ({"expert_count": 8}, "uses 0 of 8 experts"),
        ({"expert_used_count": 2}, "uses 2 of 0 experts"),
        ({"expert_count": 2, "expert_used_count": 4}, "uses 4 of 2 experts"),
        ({"expert_count": 100_000, "expert_used_count": 2}, "100,000 experts"),
        ({"vocab_size": 2**31 - 1}, "2,147,483,647 tokens"),
    ],
    ids=str,
)
def test_impossible_numbers_are_refused_at_once(tmp_path: Path, numbers: dict[str, int], says: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", numbers=numbers)
    tracemalloc.start()
    try:
        with pytest.raises(ModelFileError, match=says):
            read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("eps", [float("nan"), -1.0, float("inf"), float("-inf")])
def test_an_epsilon_that_no_norm_can_use_is_refused(tmp_path: Path, eps: float) -> None:
    with pytest.raises(ModelFileError, match="epsilon"):
        read_header(write_gguf(tmp_path / "m.gguf", eps=eps))


def test_an_unknown_scaling_of_positions_is_refused_by_name(tmp_path: Path) -> None:
    def scale(name: str) -> Path:
        return write_gguf(tmp_path / "m.gguf", change=lambda writer: writer.add_string("llama.rope.scaling.type", name))

    with pytest.raises(ModelFileError, match="'other'"):
        read_header(scale("other"))
    for name in ("none", "linear", "yarn", "longrope"):
        assert read_header(scale(name)).n_layer == 1


def test_possible_numbers_pass(tmp_path: Path) -> None:
    numbers = {"expert_count": 4, "expert_used_count": 2, "nextn_predict_layers": 1, "vocab_size": 259}
    assert read_header(write_gguf(tmp_path / "m.gguf", numbers=numbers)).n_layer == 1
