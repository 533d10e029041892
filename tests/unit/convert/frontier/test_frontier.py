"""A frontier of students: candidates, halving, the choice of a point, the report, and a search on a tiny model that resumes."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra [convert]: pip install 'edge-assistant[convert]'")

import msgspec
import numpy as np
import torch

from edge.errors import EdgeError, UsageError
from edge_cli.convert_frontier import convert_frontier
from edge_cli.main import run
from edge_convert.checkpoint import open_checkpoint
from edge_convert.facts import Request
from edge_convert.frontier import measure as measuring
from edge_convert.frontier.points import (
    WHOLE,
    Candidate,
    Frontier,
    Point,
    candidates,
    choose_point,
    parse_limits,
    survivors,
)
from edge_convert.frontier.report import frontier_markdown, plot_frontier, read_frontier
from edge_convert.frontier.search import Costs, Rounds, round_sizes, search
from edge_convert.gguf.quantise import GgufOptions
from edge_convert.inputs import Input
from edge_convert.pipeline import run as run_plan
from edge_convert.plan import make_plan
from edge_convert.smaller.corpus import load_corpus
from edge_convert.smaller.recipe import Recipe, Source, Text, Training, check_recipe
from edge_convert.smaller.records import HeldOut
from tests.checkpoints import make_checkpoint

QUIET = lambda *_: None  # noqa: E731
FULL = ("full_attention",)


def point(name: str, speed: float, divergence: float, **values: Any) -> Point:
    return Point(
        name=name,
        n_layers=2,
        inner=256,
        kept=(0, 1),
        n_params=1_000_000,
        n_rounds=1,
        seconds=1.0,
        n_tokens=1,
        divergence=divergence,
        top1=1 - divergence,
        held_out={"text": HeldOut(divergence=divergence, top1=1 - divergence)},
        decode_estimate=speed,
        prefill_estimate=speed,
        **values,
    )


def frontier_of(*points: Point) -> Frontier:
    return Frontier(
        model="tiny",
        n_vocab=400,
        whole_vocab=601,
        growth=1.1,
        layout="Q4_0",
        machine="a machine",
        teacher_decode=10.0,
        teacher_prefill=100.0,
        points=points,
        finalists=tuple(one.name for one in points if one.name != WHOLE),
    )


# -- points


def test_the_candidates_of_a_model_of_thirty_layers() -> None:
    found = candidates(30, 1536, FULL * 30)
    assert {one.n_layers for one in found} == {30, 28, 26, 24, 22, 20, 15}
    assert {one.inner for one in found} == {1536, 1280, 1024}  # multiples of 256, for K-quants
    assert Candidate(name="26-layers-ffn-1280", n_layers=26, inner=1280) in found
    assert len({one.name for one in found}) == len(found)
    assert not any(one.n_layers == 30 and one.inner == 1536 for one in found)


def test_candidates_that_a_pattern_of_windows_forbids_are_left_out() -> None:
    kinds = ("sliding_attention", "sliding_attention", "full_attention") * 2
    with_first_out = candidates(6, 256, kinds, order=(0, 1, 2, 3, 4))
    assert {one.n_layers for one in with_first_out} == {6, 3}
    assert {one.n_layers for one in candidates(6, 256, FULL * 6, order=(1, 2, 3, 4))} >= {6, 5, 4, 3}


def test_a_point_that_another_beats_leaves_first() -> None:
    good = [point("slow", 1.1, 0.1), point("middle", 1.3, 0.2), point("fast", 1.6, 0.5)]
    beaten = [point("beaten", 1.2, 0.3), point("far", 1.05, 0.9)]
    assert [one.name for one in survivors([*beaten, *good], 3)] == ["slow", "middle", "fast"]
    line = [point(f"{step}", 1 + step / 10, 0.1 * 1.5**step) for step in (1, 2, 3, 5, 6, 7)]
    above = point("above", 1.4, 0.11 * 1.5**4)  # nothing beats it, and it lies above the line between its neighbours
    assert survivors([above, *line], 6) == line
    assert survivors(good, 5) == good


def test_with_a_speed_to_reach_the_nearest_of_the_fast_ones_stay() -> None:
    points = [point("slow", 1.1, 0.1), point("a", 1.3, 0.4), point("b", 1.5, 0.3), point("c", 1.9, 0.9)]
    assert [one.name for one in survivors(points, 2, 1.3)] == ["a", "b"]
    assert {one.name for one in survivors(points, 2, 1.8)} != {"c"}  # only one reaches it: as without


def test_rounds_halve_and_their_times_are_equal() -> None:
    assert round_sizes(11, 3) == [11, 6, 3]
    assert round_sizes(3, 3) == [3]
    assert round_sizes(2, 3) == [2]


def test_limits_choose_a_point() -> None:
    frontier = frontier_of(
        point(WHOLE, 1.1, 0.0), point("slow", 1.2, 0.1, answers_kept=0.9), point("middle", 1.4, 0.2), point("fast", 1.8, 0.6)
    )
    chosen = {text: choose_point(frontier, parse_limits(text))[0].name for text in ("speed=1.3", "kl=0.25", "top1=0.85")}
    assert chosen == {"speed=1.3": "middle", "kl=0.25": "middle", "top1=0.85": "slow"}
    assert choose_point(frontier, parse_limits("kept=0.8"))[0].name == "slow"
    with pytest.raises(UsageError, match="No point") as raised:
        choose_point(frontier, parse_limits("speed=1.5, kl=0.3"))
    assert "middle: speed=1.40, kl=0.20" in raised.value.hint


@pytest.mark.parametrize("text", ["", "speed", "speed=fast", "size=3", "kl=0.1,kl=0.2", "kl=nan"])
def test_limits_that_cannot_be_meant(text: str) -> None:
    with pytest.raises(UsageError, match="is not a limit"):
        parse_limits(text)


def test_estimates_of_speed_count_what_a_token_reads() -> None:
    costs = Costs(
        layer_params=100,
        inner_params=3,
        inner=20,
        n_layers=10,
        head_params=250,
        whole_head_params=500,
        head_bits=2,
        growth=1.25,
    )
    assert costs.decode(10, 20) == pytest.approx((1000 + 1000) / (1000 + 500) / 1.25)
    assert costs.decode(5, 10) == pytest.approx(2000 / (5 * 70 + 500) / 1.25)
    assert costs.prefill(5, 10) == pytest.approx(1000 / 350 / 1.25)


# -- report


def test_the_report_says_what_was_measured_and_what_was_not(tmp_path: Path) -> None:
    measured = point("fast<1>", 1.8, 0.6, decode=1.7, prefill=1.9, answers_kept=0.75, n_answers=40)
    frontier = frontier_of(point(WHOLE, 1.1, 0.0), measured)
    text = frontier_markdown(frontier)
    assert "| **fast<1>** | 1.0 M | 0.600 | 40.0% | 1 s, 1 tokens | 1.70x | 1.90x | 75% of 40 |" in text
    assert "~1.10x" in text
    assert "400 of 601 tokens stay; held-out texts take 1.100 times" in text
    picture = ET.fromstring(plot_frontier(frontier))
    said = "".join(picture.itertext())
    assert "fast<1>" in said
    assert "answers kept" in said
    assert len(picture.findall(".//{http://www.w3.org/2000/svg}circle")) == 2 + 2 + 2 + 1


# -- a search


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("teacher") / "tiny", "llama", num_hidden_layers=4)


@pytest.fixture(scope="module")
def searched(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder "out" of a search with a smaller vocabulary; questions and rounds of speed are few."""
    folder = tmp_path_factory.mktemp("search")
    (folder / "words.txt").write_text("\n\n\n".join(f"the house {number} of the street" for number in range(200)))
    text = Text(name="words", tokens=600, held_out_tokens=128, source=Source(file=str(folder / "words.txt")))
    recipe = check_recipe(
        Recipe(keep_vocab=400, texts=(text,), training=Training(minutes=1, window=64, batch=1)), is_search=True
    )
    options = GgufOptions(quantisations=("Q4_0",), threads=1)
    request = Request(smaller=recipe, frontier_minutes=0.005, card=False, gguf=options)
    patch = pytest.MonkeyPatch()
    asked = measuring.measure_facts
    patch.setattr(measuring, "measure_facts", lambda *given, **named: asked(*given, limit=2, **named))
    patch.setattr(measuring, "_N_ROUNDS", 1)
    try:
        run_plan(make_plan(Input(kind="checkpoint", path=tiny, source="tiny"), folder / "out", request))
    finally:
        patch.undo()
    return folder / "out"


def test_a_search_leaves_a_report_and_the_finalists(searched: Path) -> None:
    frontier = read_frontier(searched / "frontier")
    assert [path.name for path in searched.iterdir()] == ["frontier"]
    assert frontier.points[0].name == WHOLE
    assert len(frontier.points) == 6
    assert len(frontier.finalists) == 3
    for one in frontier.points:
        student = searched / "frontier" / one.name
        assert student.is_dir() == (one.name in frontier.finalists) == (one.decode is not None)
        if student.is_dir():
            found = open_checkpoint(student).model
            assert (found.n_layers, found.inner, found.n_vocab) == (one.n_layers, one.inner, 400)
            assert one.n_rounds == 2
            assert len(one.kept) == one.n_layers
    assert (searched / "frontier/frontier.svg").is_file()


def test_a_point_is_trained_on_and_converted(
    searched: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    searched = Path(shutil.copytree(searched, tmp_path / "out"))  # the student comes beside the frontier
    name = next(name for name in read_frontier(searched / "frontier").finalists if "ffn" in name)
    found = Input(kind="checkpoint", path=tiny, source="tiny")
    options = {"minutes": None, "point": name, "at_least": None, "distill_minutes": 0.005, "dry_run": False, "as_json": False}
    recipe = Recipe(keep_vocab=400, training=Training(minutes=1, window=64, batch=1))
    gguf = GgufOptions(quantisations=("F16",), use_imatrix=False, threads=1)
    request = Request(smaller=recipe, card=False, gguf=gguf)

    def carry_out(asked: Request) -> int:
        plan = make_plan(found, searched, asked)
        assert f"Take the point {name} of the frontier" in [step.title for step in plan.steps]
        run_plan(plan)
        return 0

    assert convert_frontier(found, searched, request, options, carry_out) == 0
    assert f"Going on with {name}: as you chose." in capsys.readouterr().err
    (student,) = searched.glob("checkpoint-*")
    assert open_checkpoint(student).model.n_vocab == 400
    report = json.loads((student / "report.json").read_bytes())
    before = next(one for one in read_frontier(searched / "frontier").points if one.name == name)
    assert report["before"]["words"]["divergence"] == pytest.approx(before.divergence, rel=0.02)
    with pytest.raises(UsageError, match="no trained point nowhere"):
        convert_frontier(found, searched, request, {**options, "point": "nowhere"}, carry_out)


def test_a_search_that_is_stopped_goes_on(searched: Path, tiny: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    corpus = load_corpus(searched / "frontier/text")
    rng = torch.Generator().manual_seed(1)
    hidden = {name: (torch.randn(*windows.shape, 128, generator=rng) * 0.1).bfloat16() for name, windows in _windows(corpus)}
    states = {name: value.view(torch.uint16).numpy() for name, value in hidden.items()}
    costs = Costs(layer_params=100, inner_params=1, inner=256, n_layers=4, head_params=100, whole_head_params=100)
    some = [Candidate(name=f"{n}-layers", n_layers=n, inner=256) for n in (3, 2)]
    rounds = Rounds(training=Training(minutes=1, window=64, batch=1, save_s=0), minutes=0.004, n_finalists=1)
    teacher = open_checkpoint(tiny)

    def go(on_progress: Any = QUIET) -> list[Point]:
        found: list[Point] = search(
            tmp_path, teacher, corpus, states["."], {"words": states["words"]}, some, (1, 2), costs, rounds, on_progress
        )
        return found

    def stop(text: str, share: float) -> None:
        if "2-layers" in text and "step" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(stop)
    assert (tmp_path / "2-layers.part/state.safetensors").is_file()
    (tmp_path / "results.json").unlink()  # as if killed before it was written: the folder holds the point, too
    said: list[str] = []
    points = go(lambda text, share: said.append(text))
    assert not any("round 1 of 2, 3-layers" in text for text in said)
    assert {one.name for one in points} == {"3-layers", "2-layers"}
    assert sum(one.n_rounds for one in points) == 3
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1
    assert msgspec.to_builtins(go()) == msgspec.to_builtins(points)  # all is done: nothing is trained again


def _windows(corpus: Any) -> list[tuple[str, Any]]:
    return [(".", corpus.tokens), *((name, windows) for name, (windows, _) in corpus.held_out.items())]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--point", "a"], "--point is only for --frontier"),
        (["--frontier"], "--minutes 60"),
        (["--frontier", "--minutes", "1", "--keep-layers", "2"], "--keep-layers does not go with --frontier"),
        (["--frontier", "--point", "a", "--at-least", "kl=1"], "either --point or --at-least"),
        (["--frontier", "--minutes", "1", "--at-least", "size=1"], "is not a limit"),
        (["--frontier", "--minutes", "inf"], "A search cannot take inf minutes"),
        (["--frontier", "--minutes", "nan"], "A search cannot take nan minutes"),
        (["--frontier", "--minutes", "1", "--quant", "IQ2_XXS"], "IQ2_XXS cannot be made so"),
    ],
)
def test_what_the_command_refuses(
    options: list[str], said: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["convert", str(tiny), *options, "--out", str(tmp_path / "out")]) != 0
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "layout"),
    [
        ([], "Q4_K_M"),
        (["--keep-vocab", "400"], "Q4_K_M"),
        (["--to", "onnx"], "Q4_K_M"),
        (["--to", "onnx", "--bits", "8"], "Q8_0"),
    ],
)
def test_a_search_needs_nothing_else_to_leave_out_and_no_gguf_to_come(
    options: list[str], layout: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["convert", str(tiny), "--frontier", "--minutes", "1", *options, "--dry-run", "--out", str(tmp_path / "out")]
    assert run(command) == 0
    assert f"Measure the last 3 in {layout}" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "said"), [("smollm3", "cannot lose layers"), ("granite4", "cannot be narrowed")])
def test_models_that_a_search_could_not_cut_are_refused_before_it(kind: str, said: str, tmp_path: Path) -> None:
    request = Request(smaller=Recipe(training=Training(minutes=1)), frontier_minutes=1, card=False)
    folder = make_checkpoint(tmp_path / kind, kind)
    with pytest.raises(UsageError, match=said):
        make_plan(Input(kind="checkpoint", path=folder, source=kind), tmp_path / "out", request)


def _without(name: str) -> Callable[[Path], Any]:
    return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def _change_report(folder: Path, **values: Any) -> None:
    path = folder / "frontier.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | values))


def _put(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_without("frontier.json"), "There is no frontier"),
        (lambda folder: _put(folder, "frontier.json", "{"), "frontier.json is damaged"),
        (lambda folder: _change_report(folder, points=[]), "do not fit together"),
        (lambda folder: _change_report(folder, finalists=[]), "do not fit together"),
        (lambda folder: _change_report(folder, finalists=["nowhere"]), "do not fit together"),
        (_without("POINT"), "lacks the student"),
        (_without("POINT/model.safetensors"), "holds no weights"),
        (_without("POINT/choice.json"), "choice.json is missing"),
        (lambda folder: _put(folder, "POINT/choice.json", "[]"), "choice.json is damaged"),
        (_without("text/corpus.json"), "corpus.json is missing"),
        (_without("text/tokens.npy"), "tokens.npy"),
        (lambda folder: _put(folder, "text/tokens.npy", "no array"), "tokens.npy cannot be used"),
        (lambda folder: np.save(folder / "text/counted.npy", np.zeros(3)), "tokens.npy cannot be used"),
        (lambda folder: np.save(folder / "text/tokens.npy", np.load(folder / "text/tokens.npy") + 9000), "tokens beyond"),
        (_without("tokens.json"), "tokens.json is missing"),
        (lambda folder: _put(folder, "tokens.json", "{}"), "tokens.json is damaged"),
        (lambda folder: _put(folder, "tokens.json", "[5, 3]"), "does not name 400 of 601 tokens"),
    ],
)
def test_a_damaged_frontier_is_refused_in_a_sentence(
    damage: Callable[[Path], Any], said: str, searched: Path, tiny: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(searched, tmp_path / "out")) / "frontier"
    point = read_frontier(folder).finalists[0]
    (folder / point).rename(folder / "POINT")  # so that the damage can name it
    damage(folder)
    if (folder / "POINT").is_dir():
        (folder / "POINT").rename(folder / point)
    with pytest.raises(EdgeError) as raised:
        _go_on(folder.parent, tiny, point)
    assert said in raised.value.message.replace(point, "POINT")
    assert raised.value.hint


def test_a_point_of_another_model_is_refused(searched: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(searched, tmp_path / "out"))
    other = make_checkpoint(tmp_path / "other", "llama", num_hidden_layers=5)
    finalists = read_frontier(folder / "frontier").finalists
    narrow = next(name for name in finalists if "layers" not in name) if any("layers" not in n for n in finalists) else None
    point = narrow or finalists[0]
    wide = make_checkpoint(tmp_path / "wide", "llama", num_hidden_layers=4, num_attention_heads=8)
    for model in (wide, *([other] if narrow else [])):
        with pytest.raises(UsageError, match="is no student of"):
            _go_on(folder, model, point)


def _go_on(out: Path, source: Path, point: str) -> None:
    """Go on with a point for a moment, as the command does."""
    options = {"minutes": None, "point": point, "at_least": None, "distill_minutes": 0.001, "dry_run": False, "as_json": True}
    recipe = Recipe(keep_vocab=400, training=Training(minutes=1, window=64, batch=1))
    request = Request(smaller=recipe, card=False, gguf=GgufOptions(quantisations=("F16",), use_imatrix=False, threads=1))
    found = Input(kind="checkpoint", path=source, source=source.name)

    def carry_out(asked: Request) -> int:
        run_plan(make_plan(found, out, asked))
        return 0

    convert_frontier(found, out, request, options, carry_out)
