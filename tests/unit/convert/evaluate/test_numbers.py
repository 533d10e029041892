"""The arithmetic of the card: metrics against plain loops, windows, the gate, and how the card is written down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from edge.errors import ModelFileError, ModelNotFoundError, QualityGateError, UsageError
from edge_convert.evaluate.card import Card, Failure, Row, Speed, markdown, read_card, to_json
from edge_convert.evaluate.gate import Limit, check, enforce, parse_gate
from edge_convert.evaluate.logits import find_format, greedy, model_in
from edge_convert.evaluate.measure import QualityJob
from edge_convert.evaluate.metrics import Quality, Scores, compare, summarise
from edge_convert.evaluate.page import html_page
from edge_convert.evaluate.passages import TextOptions, Window, beginnings, make_windows, read_texts

N_VOCAB = 50


class TableModel:
    """A model whose logits depend on the last two tokens, by a seeded table; noise makes it differ from its sibling."""

    tool = "a table"
    n_vocab = N_VOCAB

    def __init__(self, noise: float = 0.0) -> None:
        table = np.random.default_rng(5).normal(0, 2, (N_VOCAB, N_VOCAB, N_VOCAB))
        extra = np.random.default_rng(6).normal(0, 1, table.shape)
        self.table = (table + noise * extra).astype(np.float32)
        self.read: list[int] = []

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        pairs = zip([0, *tokens[:-1]], tokens, strict=True)
        return np.stack([self.table[before, last] for before, last in pairs])

    def start(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        self.read = list(tokens)
        return self.logits(self.read)[-1]

    def step(self, token: int) -> NDArray[np.float32]:
        self.read.append(token)
        return self.logits(self.read)[-1]

    def tokenise(self, text: str) -> list[int] | None:
        return [byte % N_VOCAB for byte in text.encode()]

    def close(self) -> None:
        """Nothing to release."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def windows(folder: Path) -> list[Window]:
    return make_windows(TableModel(), folder, TextOptions(n_prose=100, window=40, n_prompts=5, n_answer=12))


def test_windows_cover_the_prose_and_end_with_the_references_answers(folder: Path) -> None:
    found = windows(folder)
    prose, chat = [w for w in found if w.kind == "prose"], [w for w in found if w.kind == "chat"]
    assert [len(window.tokens) for window in prose] == [40, 40, 20]
    assert [token for window in prose for token in window.tokens] == (TableModel().tokenise(read_texts()[0]) or [])[:100]
    for prompt, window in zip(read_texts()[1], chat, strict=False):
        asked = TableModel().tokenise(prompt) or []
        assert list(window.tokens) == asked + greedy(TableModel(), asked, 12)
        assert window.first == len(asked) - 1


@pytest.mark.parametrize("n_tokens", [16, 70, 150])
def test_slow_models_read_beginnings(folder: Path, n_tokens: int) -> None:
    whole = windows(folder)
    part = beginnings(whole, n_tokens)
    assert part[0].tokens == whole[0].tokens[: n_tokens // 2]
    for number, window in part.items():
        assert number == 0 or (window.kind == "chat" and window == whole[number])
    assert len(part) > 1, "an answer, even where it does not fit"
    if len(part) > 2:
        assert sum(len(window.tokens) for window in part.values()) <= n_tokens
    left_out = [len(window.tokens) for number, window in enumerate(whole) if window.kind == "chat" and number not in part]
    assert min(left_out, default=n_tokens) > n_tokens - sum(len(window.tokens) for window in part.values())


def test_a_chat_template_is_applied_in_a_sandbox(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}!")
    prompt = read_texts()[1][0]
    window = make_windows(TableModel(), folder, TextOptions(n_prose=8, window=8, n_prompts=1, n_answer=1))[-1]
    assert list(window.tokens[:-1]) == TableModel().tokenise(f"<user>{prompt}!")
    chatml = TableModel().tokenise(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n")
    for unusable in ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ raise_exception('no') }}", "{% for %}"):
        (folder / "chat_template.jinja").write_text(unusable)
        window = make_windows(TableModel(), folder, TextOptions(n_prose=8, window=8, n_prompts=1, n_answer=1))[-1]
        assert list(window.tokens[:-1]) == chatml  # as edge does with such a model


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{% generation %}<{{ m.role }}>{{ m.content }}{% endgeneration %}{% endfor %}!",
        "{% if tools is not none %}tools{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}!",
    ],
)
def test_chat_templates_are_rendered_as_edge_does(source: str, folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(source)
    window = make_windows(TableModel(), folder, TextOptions(n_prose=8, window=8, n_prompts=1, n_answer=1))[-1]
    assert list(window.tokens[:-1]) == TableModel().tokenise(f"<user>{read_texts()[1][0]}!")


def test_logits_that_are_not_numbers_are_refused(folder: Path) -> None:
    job = QualityJob(path=str(folder), n_threads=1, windows={}, folder="")
    for value in (math.nan, math.inf):
        with pytest.raises(ModelFileError, match="not numbers"):
            job.finite(np.array([[0.0, value]], np.float32))


@pytest.mark.parametrize("bad", [{"window": 4}, {"window": 4000}, {"n_answer": 510}])
def test_windows_that_do_not_fit_are_refused(bad: dict[str, int], folder: Path) -> None:
    with pytest.raises(UsageError, match="window has 8 to 512"):
        make_windows(TableModel(), folder, TextOptions(**bad))


def slow_scores(window: Window, reference: TableModel, model: TableModel) -> tuple[list[float], list[float], list[bool]]:
    """KL, negative log-likelihood and agreement, position by position, as the textbook writes them."""
    kl, nll, same = [], [], []
    rows = list(zip(reference.logits(window.tokens), model.logits(window.tokens), strict=True))
    for position in range(window.first, len(window.tokens) - 1):
        p, q = ([math.exp(float(x)) for x in row] for row in rows[position])
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        kl.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
        nll.append(-math.log(q[window.tokens[position + 1]]))
        same.append(p.index(max(p)) == q.index(max(q)))
    return kl, nll, same


def test_metrics_are_what_plain_loops_give(folder: Path) -> None:
    reference, model = TableModel(), TableModel(noise=0.4)
    read = windows(folder)
    found = summarise(read, [compare(w, reference.logits(w.tokens), model.logits(w.tokens)) for w in read])
    slow = [slow_scores(window, reference, model) for window in read]
    kl, nll, same = ([value for part in slow for value in part[index]] for index in range(3))
    assert found.all.n_tokens == len(kl) == 39 + 39 + 19 + 5 * 12
    assert found.all.kl_mean == pytest.approx(sum(kl) / len(kl), rel=1e-5)
    assert found.all.kl_p99 == pytest.approx(float(np.quantile(kl, 0.99)), rel=1e-5)
    assert found.all.perplexity == pytest.approx(math.exp(sum(nll) / len(nll)), rel=1e-5)
    assert found.all.top1 == sum(same) / len(same)
    assert found.chat is not None
    assert found.prose.n_tokens + found.chat.n_tokens == found.all.n_tokens
    assert 0.0 < found.all.top1 < 1.0


def test_divergence_is_where_free_running_answers_part(folder: Path) -> None:
    reference, model = TableModel(), TableModel(noise=0.15)
    read = [window for window in windows(folder) if window.kind == "chat"]
    prose = [window for window in windows(folder) if window.kind == "prose"]
    found = summarise(
        [*prose, *read], [compare(w, reference.logits(w.tokens), model.logits(w.tokens)) for w in [*prose, *read]]
    )
    expected = []
    for window in read:
        asked, answer = window.tokens[: window.first + 1], list(window.tokens[window.first + 1 :])
        own = greedy(model, asked, len(answer))
        expected.append(next((at for at, (a, b) in enumerate(zip(own, answer, strict=True)) if a != b), None))
    assert found.divergence == tuple(expected)
    assert len(set(expected)) > 1
    assert found.mean_divergence == sum(12 if at is None else at for at in expected) / len(expected)


def test_a_padded_vocabulary_does_not_count(folder: Path) -> None:
    window = windows(folder)[0]
    logits = TableModel().logits(window.tokens)
    padded = np.concatenate([logits, np.full((len(logits), 14), 30.0, np.float32)], axis=1)
    assert compare(window, logits, padded).kl.max() == 0.0


def scores(**changes: float) -> Scores:
    values = {"perplexity": 21.0, "reference_perplexity": 20.0, "kl_mean": 0.05, "kl_p99": 0.4, "top1": 0.92}
    return Scores(n_tokens=100, **(values | changes))


def quality(**changes: float) -> Quality:
    return Quality(all=scores(**changes), prose=scores(**changes), chat=scores(), divergence=(3, None), n_answer=32)


def card(*rows: Row, gate: str = "") -> Card:
    reference = Row(
        name="source",
        format="checkpoint",
        size_bytes=269_000_000,
        tool="transformers 5",
        is_reference=True,
        quality=quality(kl_mean=0.0, top1=1.0),
    )
    return Card(
        reference="source",
        n_prose=100,
        n_prompts=2,
        n_answer=32,
        n_rounds=3,
        n_prefill=128,
        n_decode=32,
        machine="Linux x86_64, 1 of 2 CPU threads",
        gate=gate,
        rows=(reference, *rows),
    )


def row(name: str = "Q4_0", failures: tuple[Failure, ...] = ()) -> Row:
    speed = Speed(load_s=0.5, prefill_tokens_per_s=200.0, decode_tokens_per_s=30.0, peak_bytes=150_000_000)
    return Row(
        name=name,
        format="gguf",
        size_bytes=91_000_000,
        tool="llama.cpp",
        is_reference=False,
        quality=quality(),
        speed=speed,
        failures=failures,
    )


def test_a_gate_is_read() -> None:
    assert parse_gate("top1=0.9, kl=0.1,ppl=+5%") == (Limit("top1", 0.9), Limit("kl", 0.1), Limit("ppl", 0.05, True))
    assert parse_gate("ppl=25") == (Limit("ppl", 25.0),)


@pytest.mark.parametrize(
    "text", ["", "top1", "top2=1", "kl=low", "kl=-1", "kl=nan", "top1=90", "kl=+5%", "top1=0.9,top1=0.8", "ppl=+%", "kl=0.1,"]
)
def test_a_gate_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_gate(text)


@pytest.mark.parametrize(
    ("gate", "failed"),
    [
        ("top1=0.92,kl=0.05,kl99=0.4,ppl=+5%,divergence=17.5", []),
        ("top1=0.93", ["top1 is 0.92, 0.01 below the limit of 0.93"]),
        ("kl=0.02,top1=0.5", ["kl is 0.05, 0.03 above the limit of 0.02"]),
        ("ppl=+4%", ["ppl is 21, 0.2 above the limit of 20.8"]),
        ("ppl=20.5", ["ppl is 21, 0.5 above the limit of 20.5"]),
        ("divergence=20", ["divergence is 17.5, 2.5 below the limit of 20"]),
    ],
)
def test_the_gate_says_what_failed_by_how_much(gate: str, failed: list[str]) -> None:
    assert [str(failure) for failure in check(quality(), parse_gate(gate))] == failed


def test_numbers_that_are_none_do_not_pass() -> None:
    assert len(check(quality(kl_mean=math.nan, top1=math.nan, perplexity=math.nan), parse_gate("kl=9,top1=0,ppl=+900%"))) == 3


def test_a_failed_gate_is_exit_code_5() -> None:
    enforce(card(row()))
    with pytest.raises(QualityGateError, match=r"Q4_0: kl is 0\.05, 0\.03 above the limit of 0\.02") as caught:
        enforce(card(row(failures=(Failure("kl", 0.05, 0.02),))))
    assert caught.value.exit_code == 5
    assert caught.value.hint


def test_a_card_survives_json(tmp_path: Path) -> None:
    made = card(row(failures=(Failure("kl", 0.05, 0.02),)), gate="kl=0.02")
    (tmp_path / "card.json").write_bytes(to_json(made))
    assert read_card(tmp_path / "card.json") == made
    (tmp_path / "card.json").write_bytes(b"{}")
    with pytest.raises(ModelFileError, match="not a quality card"):
        read_card(tmp_path / "card.json")


def test_markdown_has_a_line_a_model_and_only_columns_that_say_something() -> None:
    text = markdown(card(row("a|b"), row("second", (Failure("kl", 0.05, 0.02),)), gate="kl=0.02"))
    table = [line for line in text.splitlines() if line.startswith("|")][:5]
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    assert "a\\|b" in table[3]
    assert "91.0 MB" in table[3]
    assert "second: kl is 0.05, 0.03 above the limit of 0.02." in text
    assert "beginnings" not in text and " *" not in text
    part = msgspec.structs.replace(row("package"), format="coreml", is_part=True, speed=None)
    text = markdown(card(row("a"), part))
    assert "21.00 * |" in text and text.count(" * |") == 1
    assert "* Computed by edge's evaluator, which is slow, these read only 100 tokens of the prose and 2 of the" in text
    assert "package. source's perplexity there is 20.00." in text
    bare = msgspec.structs.replace(card(), n_rounds=0)
    assert "prefill" not in markdown(bare)


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.count: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_is_whole_loads_nothing_and_escapes_names() -> None:
    page = Page()
    text = html_page(card(row("<script>alert(1)</script>"), row("second"), gate="kl=0.02"))
    page.feed(text)
    assert not page.open
    assert not page.addresses
    assert "script" not in page.count
    assert "url(" not in text
    assert page.count["svg"] == 1
    assert page.count["circle"] == 2
    assert page.count["section"] == 6
    assert "<script>alert(1)</script>" in page.words
    assert "computed by" in page.words and page.words.count("llama.cpp") == 2 and "transformers 5" in page.words
    assert page.count["table"] == 2


def test_plots_leave_out_the_name_that_all_models_begin_with() -> None:
    page = Page()
    page.feed(html_page(card(row("source-Q4_0"), row("source.Q4_1"), row("onnx-int4"))))
    assert page.words.count("source-Q4_0") == 2  # in the two tables
    assert {"Q4_0", "Q4_1", "onnx-int4"} <= set(page.words)
    ambiguous = Page()
    ambiguous.feed(html_page(card(row("source-Q4_0"), row("source.Q4_0"))))
    assert "Q4_0" not in ambiguous.words


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        find_format(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ModelFileError, match="not a model that can be evaluated"):
        find_format(tmp_path / "notes.txt")
    (tmp_path / "x.mlpackage").mkdir()
    assert find_format(tmp_path / "x.mlpackage") == "coreml"


def test_the_model_in_a_folder_that_a_conversion_made(tmp_path: Path) -> None:
    for folder, model in (("gguf-Q4_0", "a-Q4_0.gguf"), ("coreml-gpu", "model.mlpackage")):
        (tmp_path / folder / model).mkdir(parents=True)
        assert model_in(tmp_path / folder) == tmp_path / folder / model
        assert model_in(tmp_path / folder / model) == tmp_path / folder / model
    (tmp_path / "gguf-Q4_0/another.gguf").touch()  # it takes a person to say which
    assert model_in(tmp_path / "gguf-Q4_0") == tmp_path / "gguf-Q4_0"
    (tmp_path / "coreml-gpu/config.json").touch()  # a checkpoint
    assert model_in(tmp_path / "coreml-gpu") == tmp_path / "coreml-gpu"


def test_a_card_that_could_not_be_written_is_said_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from edge_cli.main import run

    for option, file in (("--html", tmp_path / "nowhere/card.html"), ("--markdown", tmp_path)):
        assert run(["eval", str(tmp_path / "no-model"), option, str(file)]) == 1
        assert f"{file} cannot be written" in capsys.readouterr().err


def test_models_of_the_same_name_are_told_apart_by_their_folders() -> None:
    from edge_convert.evaluate.evaluation import _names

    paths = [Path(f"/x/{name}/gguf-Q4_0/model-Q4_0.gguf") for name in ("a", "b")]
    assert list(_names(paths)) == ["a/gguf-Q4_0/model-Q4_0.gguf", "b/gguf-Q4_0/model-Q4_0.gguf"]
    assert list(_names([paths[0], Path("/x/other.gguf")])) == ["model-Q4_0", "other"]
    assert list(_names([Path("/x/1/m.gguf"), Path("/x/2/m.gguf")])) == ["1/m.gguf", "2/m.gguf"]
    with pytest.raises(UsageError, match="named twice"):
        _names([paths[0], paths[0]])
