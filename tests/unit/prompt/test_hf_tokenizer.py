"""The tokenizer of a folder against transformers, and against llama.cpp for the real model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.errors import ModelFileError, UsageError
from edge.files import MAX_JSON_BYTES
from edge.prompt.hf_tokenizer import HFTokenizer
from edge.prompt.stream import TextStream
from tests.checkpoints import TOKENIZERS, add_tokens, make_tokenizer

TEXTS = (
    "The capital of France is Paris.",
    "  two spaces, then\n\nlines\r\n\tand a tab  ",
    "größer naïve 日本語 中文 العربية 🧑\u200d🚀 e\u0301 1234567",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "<s>no</s> <unk> <|endoftext|> <tool> <0xE2> ▁",
)
STRIPPING = ("llama2", "phi3")  # they take one space off the start of a text
PIECES = [*"<|>_ \nxs/", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "im_end", "<|", "|>"]
Made = tuple[HFTokenizer, Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """Gives ours and transformers' tokenizer of a kind; each is trained once."""
    known: dict[str, Made] = {}

    def get(kind: str) -> Made:
        if kind not in known:
            folder = tmp_path_factory.mktemp(kind)
            theirs = make_tokenizer(folder, kind)
            known[kind] = HFTokenizer(folder), theirs
        return known[kind]

    return get


def streamed(tokenizer: HFTokenizer, ids: list[int], *, special: bool) -> str:
    stream = TextStream()
    return "".join(stream.feed(tokenizer.token_bytes(id, special=special)) for id in ids) + stream.final()


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_tokens_are_those_of_transformers(made: Callable[[str], Made], kind: str) -> None:
    ours, theirs = made(kind)
    for text in TEXTS:
        assert ours.tokenize(text, parse_special=True) == theirs.encode(text, add_special_tokens=False)
        assert ours.tokenize(text, parse_special=True, add_special=True) == theirs.encode(text)
    assert ours.adds_bos == (theirs.encode("a") != theirs.encode("a", add_special_tokens=False))
    assert (ours.bos_text, ours.eos_text, ours.n_tokens) == (theirs.bos_token, theirs.eos_token, len(theirs))
    assert ours.chat_template == theirs.chat_template


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_streaming_gives_what_transformers_decodes(made: Callable[[str], Made], kind: str) -> None:
    ours, theirs = made(kind)
    for text in TEXTS:
        ids = theirs.encode(text)
        for special in (False, True):
            expected = theirs.decode(ids, skip_special_tokens=not special)
            found = streamed(ours, ids, special=special)
            if (
                kind in STRIPPING
                and found.startswith(" ")
                and not expected.startswith(" " * (len(found) - len(found.lstrip())))
            ):
                found = found[1:]
            assert found == expected


@pytest.mark.parametrize("kind", ["smollm", "gemma"])
def test_any_tokens_stream_as_transformers_decodes_them(made: Callable[[str], Made], kind: str) -> None:
    ours, theirs = made(kind)
    random = np.random.default_rng(3)
    n_compared = 0
    for _ in range(200):
        ids = [int(id) for id in random.integers(0, ours.n_tokens, 12)]
        expected = theirs.decode(ids, skip_special_tokens=True)
        if kind == "gemma" and "\ufffd" in expected:
            continue  # transformers writes one for every byte, Unicode asks for one a broken character
        n_compared += 1
        assert streamed(ours, ids, special=False) == expected
    assert n_compared > 5


@pytest.mark.parametrize("kind", ["smollm", "phi3", "gemma"])
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.lists(st.sampled_from([*"<|>_ \nxs/", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "im_end", "<|", "|>"])).map(
        "".join
    )
)
def test_nothing_a_person_types_becomes_a_special_token(made: Callable[[str], Made], kind: str, text: str) -> None:
    ours, theirs = made(kind)
    ids = ours.tokenize(text)
    assert set(ids).isdisjoint(theirs.all_special_ids)
    assert streamed(ours, ids, special=False).lstrip(" ") == text.lstrip(" ")


def unigram_folder(folder: Path) -> Path:
    """A SentencePiece Unigram model, whose vocabulary holds the special tokens as words like any other."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = [(letter, -5.0) for letter in "abcdefgs<>/|"]
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁", -2.0), *letters], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}}))
    return folder


def test_words_of_the_vocabulary_that_are_special_cannot_be_typed(tmp_path: Path) -> None:
    tokenizer = HFTokenizer(unigram_folder(tmp_path / "unigram"))
    assert tokenizer.tokenize("<s>", parse_special=True) == [1]
    typed = tokenizer.tokenize("a</s><s>b")
    assert set(typed).isdisjoint({1, 2})
    assert b"".join(map(tokenizer.token_bytes, typed)).replace(b" ", b"") == b"a</s><s>b"
    assert tokenizer.tokenize("é")[-1] == 0  # what the vocabulary lacks may be unknown
    assert tokenizer.is_end(2) and not tokenizer.is_end(1)


def test_ends_and_begins_come_from_every_file(tmp_path: Path) -> None:
    make_tokenizer(tmp_path, "smollm")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "chat_template.jinja").write_text("{{ 'from a file' }}")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6], "bos_token_id": 4}))
    (tmp_path / "genai_config.json").write_text(json.dumps({"model": {"eos_token_id": 7}}))
    tokenizer = HFTokenizer(tmp_path)
    # 0 and 2 are <|endoftext|> and <|im_end|>, which end a turn wherever they are.
    assert [id for id in range(20) if tokenizer.is_end(id)] == [0, 2, 5, 6, 7]
    assert tokenizer.eos_text.encode() == tokenizer.token_bytes(5, special=True)
    assert tokenizer.token_bytes(5) == b""
    assert tokenizer.chat_template == "{{ 'from a file' }}"


def test_the_default_of_several_templates_counts(tmp_path: Path) -> None:
    make_tokenizer(tmp_path, "smollm")
    (tmp_path / "chat_template.jinja").unlink()
    templates = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": templates, "add_bos_token": True, "bos_token": "<|im_start|>"})
    )
    tokenizer = HFTokenizer(tmp_path)
    assert tokenizer.chat_template == "D"
    assert tokenizer.adds_bos
    assert tokenizer.tokenize("x", add_special=True)[0] == tokenizer.tokenize("<|im_start|>", parse_special=True)[0]


def test_ids_without_a_token_have_no_bytes(tmp_path: Path) -> None:
    n_tokens = len(make_tokenizer(tmp_path, "smollm"))
    ours = HFTokenizer(tmp_path, n_tokens + 100)
    assert ours.token_bytes(n_tokens + 50) == b""
    assert not ours.is_end(n_tokens + 50)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": lambda folder: (folder / "tokenizer.json").unlink(),
    "a folder": lambda folder: ((folder / "tokenizer.json").unlink(), (folder / "tokenizer.json").mkdir()),
    "cut off": lambda folder: (folder / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes()[:-99]),
    "nested": lambda folder: (folder / "tokenizer.json").write_text('{"model":{},"decoder":{"a":' + "[" * 100_000),
    "no model": lambda folder: (folder / "tokenizer.json").write_text('{"model": {"type": "BPE"}}'),
    "no decoder": lambda folder: edit(folder, decoder=None),
    "other decoder": lambda folder: edit(folder, decoder={"type": "WordPiece", "prefix": "##", "cleanup": True}),
    "no text": lambda folder: (folder / "chat_template.jinja").write_bytes(b"\xff\xfe"),
    "large": lambda folder: (folder / "tokenizer_config.json").write_bytes(b" " * (MAX_JSON_BYTES + 1)),
    "wrong types": lambda folder: (folder / "generation_config.json").write_text('{"eos_token_id": "2"}'),
    "list": lambda folder: (folder / "tokenizer_config.json").write_text("[]"),
}


def edit(folder: Path, **changes: object) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_an_error_of_ours(tmp_path: Path, damage: str) -> None:
    make_tokenizer(tmp_path, "smollm")
    HFTokenizer(tmp_path)
    DAMAGES[damage](tmp_path)
    with pytest.raises(ModelFileError):
        HFTokenizer(tmp_path)


def test_added_tokens_without_a_row_are_never_fed(tmp_path: Path) -> None:
    n_rows = len(make_tokenizer(tmp_path, "smollm"))
    add_tokens(tmp_path, {"<picture>": True, "<plain>": False})
    tokenizer = HFTokenizer(tmp_path, n_rows)
    assert tokenizer.n_tokens == n_rows + 2
    assert max(tokenizer.tokenize("see <picture>")) < n_rows, "what is typed is no special token"
    for text, parse_special in (("see <picture>", True), ("a <plain> one", False)):
        with pytest.raises(UsageError, match=f"{text.split()[1]!r}, which this model does not know") as caught:
            tokenizer.tokenize(text, parse_special=parse_special)
        assert "Leave it out" in caught.value.hint
    assert tokenizer.tokenize("see a picture", parse_special=True) == HFTokenizer(tmp_path).tokenize("see a picture")


@pytest.mark.parametrize("why", ["a word has none", "too many", "it ends a text"])
def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path, why: str) -> None:
    n_rows = len(make_tokenizer(tmp_path, "smollm"))
    if why == "a word has none":
        n_rows -= 2  # the last one is an added token
    elif why == "too many":
        add_tokens(tmp_path, {f"<{n}>": True for n in range(257)})
    else:
        add_tokens(tmp_path, {"<end>": True})
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    with pytest.raises(ModelFileError, match=f"tokens, the model {n_rows}"):
        HFTokenizer(tmp_path, n_rows)
    HFTokenizer(tmp_path)


@pytest.mark.model
def test_the_real_tokenizer_agrees_with_transformers_and_with_llama_cpp(model_path: Path, tmp_path: Path) -> None:
    from gguf import GGUFReader
    from transformers import PreTrainedTokenizerFast

    from edge_convert.gguf.tokenizer_json import build_tokenizer

    fields = {name: field.contents() for name, field in GGUFReader(model_path).fields.items()}
    tokenizer, config = build_tokenizer(fields, str(model_path))
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    ours, theirs = HFTokenizer(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for text in (*TEXTS, Path(__file__).read_text(encoding="utf-8")):
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.tokenize(text, parse_special=True) == ids
        assert streamed(ours, ids, special=False) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.is_end(2)
