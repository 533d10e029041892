"""Special tokens keep their ids and their meaning on the way to a GGUF and back."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra [convert]: pip install 'edge-assistant[convert]'")

from edge.errors import ModelFileError
from edge_convert.checkpoint import open_checkpoint
from edge_convert.gguf.engine import run_task
from edge_convert.gguf.read_back import checkpoint_from_gguf
from edge_convert.gguf.tensors import write_gguf
from edge_convert.gguf.tokenizer_json import build_tokenizer
from edge_convert.gguf.vocabulary import read_vocabulary
from tests.checkpoints import add_tokens, make_checkpoint

PLAIN, CONTROL = False, True


def with_tokens(folder: Path, kind: str, tokens: dict[str, bool], n_padding: int = 0) -> Path:
    """A checkpoint with added tokens, and rows of the embedding that no token uses."""
    make_checkpoint(folder, kind)
    add_tokens(folder, tokens)
    described = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    n_vocab = max([*described["model"]["vocab"].values(), *(token["id"] for token in described["added_tokens"])]) + 1
    keep = {path.name: path.read_bytes() for path in folder.glob("tokenizer*")}
    make_checkpoint(folder, kind, vocab_size=n_vocab + n_padding)
    for name, content in keep.items():
        (folder / name).write_bytes(content)
    return folder


def change(path: Path, **keys: Any) -> None:
    content = {**(json.loads(path.read_text()) if path.is_file() else {}), **keys}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


@pytest.mark.parametrize("kind", ["qwen2", "llama3", "gemma3", "llama-linear"])
def test_plain_tokens_between_control_tokens_keep_their_ids(kind: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    tokens = {"<tool_call>": PLAIN, "<|fim_pad|>": CONTROL, "<think>": PLAIN, "\n\n\n": PLAIN, "<|last|>": CONTROL}
    if kind == "gemma3":
        tokens |= {"\t\t": PLAIN, "▁" * 9: PLAIN, "▁" * 11: PLAIN}
    folder = with_tokens(tmp_path / "checkpoint", kind, tokens, n_padding=5)
    path = write_gguf(open_checkpoint(folder), tmp_path / "model.gguf", "F32")
    back = checkpoint_from_gguf(path, tmp_path / "back")
    texts = [
        "a<think>b</think>",
        "<tool_call>\n\n{}<|fim_pad|><|last|>",
        "a  b         c           d\t\td\n\n\n",
        "<|im_end|> <think> x",
    ]
    ours = run_task("tokenise", {"model": str(path), "texts": texts})
    tokenizer = Tokenizer.from_file(str(back / "tokenizer.json"))
    assert [tokenizer.encode(text).ids for text in texts] == ours
    original = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert all(tokenizer.token_to_id(text) == original.token_to_id(text) for text in tokens)


def test_two_ids_of_one_text_are_refused(tmp_path: Path) -> None:
    """llama.cpp would abort."""
    folder = with_tokens(tmp_path / "checkpoint", "qwen2", {"e": PLAIN})
    with pytest.raises(ModelFileError, match=r"has the token 'e' twice, as \d+ and \d+"):
        write_gguf(open_checkpoint(folder), tmp_path / "model.gguf", "F32")


@pytest.mark.parametrize(
    ("config", "generation", "tokenizer", "expected"),
    [
        ([0, 2], None, ..., {0, 2}),  # a list in config.json, no eos_token
        (0, [2, 1, 0], ..., {0, 1, 2}),
        (2, [0], "<|im_end|>", {0, 2}),
        (None, None, ..., None),  # none at all
    ],
)
def test_replies_end_where_the_checkpoint_says(
    config: Any, generation: Any, tokenizer: Any, expected: set[int] | None, tmp_path: Path
) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", "llama")
    change(folder / "config.json", eos_token_id=config, bos_token_id=None if expected is None else 0)
    change(folder / "generation_config.json", eos_token_id=generation)
    change(folder / "tokenizer_config.json", eos_token=tokenizer, bos_token=...)
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    path = write_gguf(open_checkpoint(folder), tmp_path / "model.gguf", "F32")
    ends = set(run_task("find_ends", {"model": str(path)}))
    comma = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"][","]
    assert 11 not in ends
    assert comma not in ends
    assert ends >= (expected or set())
    back = checkpoint_from_gguf(path, tmp_path / "back")
    again = json.loads((back / "generation_config.json").read_text())["eos_token_id"]
    assert set(again) >= (expected or set())


def test_an_end_beyond_the_vocabulary_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", "llama")
    change(folder / "generation_config.json", eos_token_id=[2, 99_999])
    with pytest.raises(ModelFileError, match=r"generation_config\.json: eos_token_id is 99999"):
        write_gguf(open_checkpoint(folder), tmp_path / "model.gguf", "F32")


def test_without_any_special_token_there_is_no_end_to_write(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", "llama", vocab_size=600)
    described = json.loads((folder / "tokenizer.json").read_text())
    described["added_tokens"] = []
    (folder / "tokenizer.json").write_text(json.dumps(described))
    change(folder / "config.json", eos_token_id=None, bos_token_id=None, pad_token_id=None)
    change(folder / "generation_config.json", eos_token_id=None)
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ModelFileError, match="names no token that ends a reply"):
        write_gguf(open_checkpoint(folder), tmp_path / "model.gguf", "F32")


@pytest.mark.prove(whole_only=True)
def test_gemma_keeps_line_breaks_and_runs_of_spaces(tmp_path: Path) -> None:
    """The real Gemma 3 270M, whose line breaks and runs of spaces are tokens of the user: two minutes, with all comparisons."""
    from tokenizers import Tokenizer

    gemma_path = Path(os.environ["EDGE_TEST_GEMMA"])
    back = checkpoint_from_gguf(gemma_path, tmp_path / "back")
    tokenizer = Tokenizer.from_file(str(back / "tokenizer.json"))
    assert tokenizer.token_to_id("\n") == 107
    texts = ["a\nb\n\nc", "x\ty", "1  2    3", "<start_of_turn>user\nHi<end_of_turn>\n"]
    assert [tokenizer.encode(text).ids for text in texts] == run_task("tokenise", {"model": str(gemma_path), "texts": texts})
    assert json.loads((back / "generation_config.json").read_text())["eos_token_id"] == [1, 106]


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "BPE"},
        {"model": {"type": "BPE", "vocab": {"a": "x"}, "merges": []}},
        {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [1]}},
        {"added_tokens": [{"content": "x"}]},
        {"added_tokens": [{"id": -3, "content": "x"}]},
        {"added_tokens": ["x"]},
        {"pre_tokenizer": "bytes"},
        {"normalizer": [1]},
    ],
)
def test_damaged_tokenizers_are_refused_by_name(changes: dict[str, Any], tiny_checkpoint: Any, tmp_path: Path) -> None:
    described = json.loads((tiny_checkpoint("llama") / "tokenizer.json").read_text(encoding="utf-8"))
    (tmp_path / "tokenizer.json").write_text(json.dumps({**described, **changes}))
    with pytest.raises(ModelFileError, match=r"tokenizer\.json is damaged"):
        read_vocabulary(tmp_path, 1000)


def test_a_long_piece_is_not_cut_everywhere() -> None:
    """All cuts of one piece of 200,000 letters would take 20 GB."""
    import tracemalloc

    tokens = ["<unk>", "a", "b", "ab", "a" * 200_000]
    facts = {"model": "llama", "tokens": tokens, "scores": [0.0, -1.0, -2.0, -3.0, -4.0], "token_type": [2, 1, 1, 1, 1]}
    tracemalloc.start()
    try:
        content, _ = build_tokenizer({f"tokenizer.ggml.{name}": value for name, value in facts.items()}, "m.gguf")
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert content["model"]["merges"] == [("a", "b")]
    assert most < 50_000_000
