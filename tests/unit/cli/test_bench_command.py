"""edge bench and edge tune from the command line, with the fake backend and with measurements that are given."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest

from edge.bench.run import Candidate
from edge.bench.tune import Report
from edge.bench.tuner import Outcome, Trial
from edge.bench.values import Result
from edge.device import probe
from edge.errors import BackendError, UsageError
from edge.formats.artifact import open_artifact
from edge.formats.coreml import METADATA_KEY
from edge.plan.receipt import Safety
from edge.plan.speed import EngineSpeed
from edge.plan.tuning import remember
from tests.tiny_onnx import write_onnx
from tests.tiny_package import INFO, program_of, write_package
from tests.unit.bench.fakes import sample, setting, write_gguf
from tests.unit.cli.conftest import Call, Terminal
from tests.unit.plan.test_tuning import make

QUICK = ("--prompt", "20", "--decode", "3", "--reps", "2")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf")


@pytest.fixture(autouse=True)
def canary(monkeypatch: pytest.MonkeyPatch) -> None:
    """The canary tries llama.cpp for real, which has its own tests."""
    monkeypatch.setattr("edge.backends.llamacpp.canary.load_safety", lambda cache_dir: Safety(use_extra_buffers=True, note=""))


@pytest.fixture
def bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading memory takes a while and is tested elsewhere."""
    from edge.bench import run

    plain = run.run_bench
    monkeypatch.setattr(
        "edge.bench.run.run_bench", lambda *args, **options: plain(*args, measure_bandwidth=lambda *_: 1e9, **options)
    )


def test_json_is_the_whole_result(call: Call, model: Path, bandwidth: None) -> None:
    done = call("bench", str(model), "--backend", "fake", "--threads", "1", "--threads", "2", "--json", *QUICK)
    assert done.code == 0
    result = msgspec.json.decode(done.out, type=Result, strict=True)
    assert result.format == 1
    assert [row.setting.threads for row in result.rows] == [1, 2]
    assert [row.name for row in result.rows] == ["Tiny, 1 thread", "Tiny, 2 threads"]
    assert all(len(row.samples) == 2 for row in result.rows)
    assert (result.n_prompt, result.n_decode, result.n_rounds) == (20, 3, 2)
    # The names that scripts rely on.
    assert set(json.loads(done.out)) == {
        "format", "edge", "device", "processor", "measured_at", "n_prompt", "n_decode", "n_rounds", "bandwidth_bytes_per_s",
        "energy", "is_complete", "rows",
    }  # fmt: skip
    assert {
        "first_token_s",
        "prefill_tokens_per_s",
        "decode_tokens_per_s",
        "peak_bytes",
        "decode_joules",
        "bandwidth_share",
    } <= set(json.loads(done.out)["rows"][0])


def test_table_and_picture(call: Call, model: Path, tmp_path: Path, bandwidth: None) -> None:
    picture = tmp_path / "bench.svg"
    done = call("bench", str(model), "--backend", "fake", "--plot", str(picture), *QUICK)
    assert done.code == 0
    headings, line = done.out.splitlines()
    assert headings.startswith("model  first token")
    assert line.startswith("Tiny  ")
    assert " ms  " in line
    assert "±" in line
    assert "20 prompt tokens, 3 generated tokens; medians of 2 rounds" in done.err
    assert "Energy: " in done.err
    assert ElementTree.fromstring(picture.read_text()).tag.endswith("svg")


def test_a_folder_that_is_not_there(call: Call, model: Path, tmp_path: Path, bandwidth: None) -> None:
    done = call("bench", str(model), "--backend", "fake", "--plot", str(tmp_path / "no" / "bench.svg"), *QUICK)
    assert (done.code, done.out) == (1, "")  # before minutes of measuring
    assert "there is no folder" in done.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_picture_that_fails_after_all(call: Call, model: Path, bandwidth: None) -> None:
    done = call("bench", str(model), "--backend", "fake", "--plot", "/dev/full", *QUICK)
    assert done.code == 1
    assert "cannot be written" in done.err
    assert "\nTiny  " in done.out  # what took minutes is not lost


def test_a_candidate_that_fails(call: Call, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise BackendError("The engine\x1b[2J gave up.")

    from edge.bench import run

    plain = run.run_bench
    monkeypatch.setattr(
        "edge.bench.run.run_bench",
        lambda *args, **options: plain(*args, open_worker=fail, measure_bandwidth=lambda *_: 1e9, **options),
    )
    done = call("bench", str(model), "--backend", "fake", *QUICK)
    assert done.code == 1
    assert "Tiny: The engine gave up." in done.err  # and nothing in it moves the cursor


@pytest.mark.parametrize("n_done", [0, 1])
def test_ctrl_c_shows_what_there_is(call: Call, model: Path, monkeypatch: pytest.MonkeyPatch, n_done: int) -> None:
    class Impatient:
        load_s, energy, n_runs = 0.1, "", 0

        def __init__(self, plan: Any, *, with_energy: bool) -> None: ...

        def run(self, n_prompt: int, n_decode: int) -> Any:
            self.n_runs += 1
            if self.n_runs > n_done:
                raise KeyboardInterrupt
            return sample(1.0, 1.0, n_prompt, n_decode)

        def close(self) -> None: ...

        stop = close

    from edge.bench import run

    plain = run.run_bench
    monkeypatch.setattr(
        "edge.bench.run.run_bench",
        lambda *args, **options: plain(*args, open_worker=Impatient, measure_bandwidth=lambda *_: 1e9, **options),
    )
    done = call("bench", str(model), "--backend", "fake", *QUICK)
    assert done.code == 130
    assert ("20.0" in done.out) == (n_done == 1)
    said = "Stopped after 1 of 2 rounds." if n_done else "Stopped before anything was measured."
    assert said in done.err
    assert ("one round, so no spread" in done.err) == (n_done == 1)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("bench", "no-such-model"), 3, "no-such-model"),
        (("bench", "MODEL", "--backend", "nonsense"), 4, "no backend 'nonsense'"),
        (("bench", "MODEL", "--reps", "0"), 2, "--reps"),
        (("bench", "MODEL", "--kv-type", "q2"), 2, "q2"),
        (("bench", "MODEL", "--threads", "100000", "--backend", "fake"), 2, "100000 threads"),
        (("bench", "MODEL", "--require", "cuda", "--backend", "fake"), 4, "CUDA"),
        (("tune", "no-such-model"), 3, "no-such-model"),
        (("tune", "MODEL", "--minutes", "0"), 2, "--minutes"),
        (("tune", "--show", "--forget"), 2, "exclude"),
    ],
)
def test_what_goes_wrong(call: Call, model: Path, arguments: tuple[str, ...], code: int, said: str) -> None:
    done = call(*(str(model) if word == "MODEL" else word for word in arguments))
    assert done.code == code
    assert said in done.err
    assert done.out == ""


def test_a_narrow_terminal_gets_two_tables(terminal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from edge_cli import bench, output

    rows = [["a model with a long name", "1,234 ms", "200.0 ±3%", "33.1 ±1%", "1.02x", "0.50 s", "182 MiB", "48%", ""]]

    def shown(columns: int) -> str:
        stdout = terminal()
        with monkeypatch.context() as patch:
            patch.setenv("COLUMNS", str(columns))
            patch.setattr("sys.stdout", stdout)
            output.wide_table(bench._COLUMNS, rows, bench._N_SPEED_COLUMNS)
        text: str = stdout.written()
        return text

    wide, narrow = shown(200), shown(76)
    assert wide.count("memory") == narrow.count("memory") == 1
    assert len(wide.splitlines()) == 2
    assert len(narrow.splitlines()) > 4
    for figure in rows[0][1:8]:
        assert figure in narrow


# -- tune


SPEED = EngineSpeed(
    backend="openvino", accelerator="cpu", prefill_tokens_per_s=1642.0, decode_tokens_per_s=68.4, load_s=2.0,
    peak_bytes=534_000_000, divergence=0.0042, agreement=0.955, exact=0.0031, pass_ms=((1, 10.0), (8, 18.0)),
)  # fmt: skip


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Record the arguments of edge tune; the search itself is tested elsewhere."""
    calls: list[Any] = []
    trials = (
        Trial("threads", "1", "2", 5, 0.25, 0.02, is_taken=True, why="faster by more than the spread"),
        Trial("batch", "128 tokens", "512 tokens", 1, -0.1, 0.0, is_taken=False, why="others were faster"),
    )

    def tune(device: Any, artifacts: Any, options: Any, *, cache_dir: Path, on_progress: Any) -> list[Report]:
        calls.append(options)
        on_progress("threads: 1", 0.5)
        found = make(threads=1, threads_batch=1, engines=(SPEED,), reference="llamacpp on cpu")
        remember(device, artifacts[0], found, cache_dir=cache_dir)
        return [Report(found, Outcome(setting(), trials, is_complete=False), is_better=True, seconds=61.23)]

    monkeypatch.setattr("edge.bench.tune.tune", tune)
    return calls


def test_tune_says_what_it_found(call: Call, model: Path, measured: list[Any]) -> None:
    done = call("tune", str(model), "--minutes", "2")
    assert done.code == 0
    assert measured[0].budget_s == 120
    assert measured[0].kv_types == ()
    assert "1.25x" in done.out
    assert "taken" in done.out
    assert "33.1 tokens/s, default 28.9" in done.out
    assert "0.0042 nats, 96% the same" in done.out and "0.0031 nats" in done.out
    assert "534.0 MB" in done.out
    assert "Time ran out" in done.err


def test_tune_of_a_name_with_several_formats(
    call: Call, model: Path, own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_onnx(tmp_path / "onnx-tiny", kind="int4")
    rows = "".join(f"[[models.both.artifacts]]\nreference = '{path}'\n" for path in (model, folder))
    (own_home / "catalog.toml").write_text(rows)
    given: list[Any] = []

    def tune(device: Any, artifacts: Any, options: Any, *, cache_dir: Path, on_progress: Any) -> list[Report]:
        given.extend(artifacts)
        found = [make(decode_tokens_per_s=speed, divergence=0.004) for speed in (20.0, 30.0)]
        for artifact, tuning in zip(artifacts, found, strict=True):
            remember(device, artifact, tuning, cache_dir=cache_dir)
        return [Report(tuning, Outcome(setting(), (), is_complete=True), is_better=True, seconds=1.0) for tuning in found]

    monkeypatch.setattr("edge.bench.tune.tune", tune)
    done = call("tune", "both")
    assert [artifact.format for artifact in given] == ["gguf", "onnx"]
    assert done.code == 0
    assert "Fastest turn of a chat, so edge runs it: onnx int4." in done.err
    shown = json.loads(call("tune", "both", "--show", "--json").out)["formats"]
    assert [(row["format"], row["tuning"]["decode_tokens_per_s"]) for row in shown] == [("gguf", 20.0), ("onnx", 30.0)]
    assert "2" in call("tune", "both", "--forget").err
    shown_none = call("tune", "both", "--show")
    assert shown_none.code == 1
    assert "both as gguf" in shown_none.err
    assert "both as onnx" in shown_none.err


def test_tune_says_what_a_kv_type_costs(call: Call, model: Path, measured: list[Any]) -> None:
    done = call("tune", str(model), "--kv-type", "q8_0")
    assert measured[0].kv_types == ("q8_0",)
    assert "KV cache as q8_0: half the memory" in done.err


def test_tune_refuses_a_kv_type_where_there_is_no_choice(call: Call, tmp_path: Path, measured: list[Any]) -> None:
    done = call("tune", str(write_onnx(tmp_path / "onnx-tiny", kind="int4")), "--kv-type", "q8_0")
    assert (done.code, measured) == (2, [])
    assert "has a fixed type of KV cache" in done.err


def test_tune_that_is_interrupted_keeps_nothing(call: Call, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tune(*_: object, on_progress: Any, **__: object) -> Any:
        on_progress("threads: 1", 0.5)
        raise KeyboardInterrupt

    monkeypatch.setattr("edge.bench.tune.tune", tune)
    done = call("tune", str(model))
    assert (done.code, done.out) == (130, "")
    assert "Nothing was saved" in done.err
    assert call("tune", str(model), "--show").code == 1


def test_once_is_once(call: Call, model: Path, measured: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("tune", str(model), "--quick", "--minutes", "2").code == 2
    assert call("tune", str(model), "--quick", "--kv-type", "q8_0").code == 2
    assert call("tune", str(model), "--quick", "--once").code == 0
    assert (measured[0].budget_s, measured[0].is_quick) == (60.0, True)
    monkeypatch.setattr("edge.plan.tuning.is_settled", lambda *_, **__: True)
    done = call("tune", str(model), "--quick", "--once")
    assert (done.code, done.out, done.err, len(measured)) == (0, "", "", 1)
    again = call("tune", str(model), "--quick", "--once", "--json")
    assert (again.code, "tuning" in json.loads(again.out), len(measured)) == (0, True, 1)


def test_an_interrupted_once_is_not_asked_again(call: Call, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def tune(*_: object, **__: object) -> Any:
        calls.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr("edge.bench.tune.tune", tune)
    done = call("tune", str(model), "--quick", "--once")
    assert (done.code, "Skipped" in done.err) == (130, True)
    assert call("tune", str(model), "--quick", "--once").code == 0
    assert len(calls) == 1


def test_tune_as_json(call: Call, model: Path, measured: list[Any]) -> None:
    found = json.loads(call("tune", str(model), "--json").out)
    assert set(found) == {"model", "format", "path", "tuning", "is_better", "is_complete", "seconds", "trials"}
    assert (found["tuning"]["threads"], found["tuning"]["decode_tokens_per_s"]) == (1, 33.1)
    assert found["tuning"]["turn_s"] == pytest.approx(256 / 210.5 + 128 / 33.1, rel=1e-3)
    (engine,) = found["tuning"]["engines"]
    assert (engine["backend"], engine["divergence"]) == ("openvino", 0.0042)
    assert engine["pass_costs"] == {"1": 1.0, "8": 1.8}
    assert found["trials"][0]["gain"] == 0.25
    assert found["seconds"] == 61.2


def test_show_and_forget(call: Call, model: Path, measured: list[Any], tmp_path: Path) -> None:
    other = write_gguf(tmp_path / "other.gguf", name="Other")
    assert "No settings are saved yet" in call("tune", "--show").err
    assert call("tune", str(model), "--show").code == 1
    call("tune", str(model))
    shown = call("tune", str(model), "--show")
    assert shown.code == 0
    assert "llamacpp on cpu" in shown.out
    assert call("tune", str(other), "--show").code == 0  # of the same shape
    assert "Tiny" in call("tune", "--show").out
    assert json.loads(call("tune", str(model), "--show", "--json").out)["tuning"]["threads"] == 1
    assert len(json.loads(call("tune", "--show", "--json").out)["records"]) == 1
    assert call("tune", str(model), "--forget").err == "Deleted saved settings: 1.\n"
    assert call("tune", "--forget").err == "There are no saved settings to delete.\n"
    assert json.loads(call("tune", str(model), "--show", "--json").out)["tuning"] is None


def test_show_says_why_something_does_not_count(call: Call, model: Path, measured: list[Any], own_home: Path) -> None:
    call("tune", str(model))
    file = own_home / "cache" / "tuning.json"
    file.write_text(file.read_text().replace('"threads": 1', '"threads": 2'))
    shown = call("tune", str(model), "--show")
    assert shown.code == 1
    assert "changed since" in shown.err


def test_the_plan_uses_it(call: Call, model: Path, measured: list[Any]) -> None:
    call("tune", str(model))
    estimate = call("run", "--estimate-only", "--explain", "-m", str(model))
    assert "measured by edge tune on 2026-11-26: decode 33.1 tokens/s" in estimate.err
    asked = call("run", "--estimate-only", "--explain", "-m", str(model), "--threads", "1")
    assert "asked for" in asked.err


def test_the_list_of_commands_names_them(call: Call) -> None:
    listed = call("--help").out
    assert "bench " in listed
    assert "tune " in listed
    assert "edge bench smollm2-135m" in call("bench", "--help").out


def test_candidates_are_named_by_what_differs(model: Path, tmp_path: Path) -> None:
    from edge.bench.candidates import Grid, find_candidates

    artifacts = [open_artifact(model), open_artifact(write_gguf(tmp_path / "copy.gguf"))]

    def names(grid: Grid) -> list[str]:
        found: list[Candidate] = find_candidates(probe(), artifacts, grid, n_tokens=1024, cache_dir=tmp_path)
        return [candidate.name for candidate in found]

    assert names(Grid(backends=("fake",))) == ["tiny", "copy"]
    grid = Grid(backends=("fake",), n_ubatch=(64, 128), flash_attention=(True, False))
    assert names(grid)[:2] == ["tiny, batch 64, flash attention on", "tiny, batch 64, flash attention off"]
    assert len(names(grid)) == 8


def test_a_package_with_a_short_context_is_measured_as_far_as_it_goes(tmp_path: Path) -> None:
    from edge.bench.candidates import Grid, find_candidates

    about = json.dumps({**INFO, "context": 512})
    package = open_artifact(write_package(tmp_path / "short.mlpackage", program_of({METADATA_KEY: about})))
    grid = Grid(backends=("fake",))
    (found,) = find_candidates(probe(), [package], grid, n_tokens=40, cache_dir=tmp_path)
    assert found.plan.n_ctx == 512
    with pytest.raises(UsageError, match="built for 512 tokens, and 641 are to be measured"):
        find_candidates(probe(), [package], grid, n_tokens=640, cache_dir=tmp_path)


def test_of_several_formats_those_that_can_do_what_is_asked_for_are_measured(model: Path, tmp_path: Path) -> None:
    from edge.bench.candidates import Grid, find_candidates

    folder = write_onnx(tmp_path / "onnx-tiny", kind="int4")
    artifacts = [open_artifact(path, source="both") for path in (model, folder)]
    told: list[tuple[str, str]] = []

    def formats(grid: Grid) -> list[str]:
        found = find_candidates(
            probe(), artifacts, grid, n_tokens=40, cache_dir=tmp_path, on_left_out=lambda a, why: told.append((a.format, why))
        )
        return [candidate.plan.artifact.format for candidate in found]

    assert formats(Grid(backends=("fake",))) == ["gguf", "onnx"]
    assert told == []
    assert formats(Grid(backends=("fake",), kv_types=("f16", "q8_0"))) == ["gguf", "gguf"]
    assert [form for form, _ in told] == ["onnx"]
    assert "stores its KV cache as f32" in told[0][1]
    with pytest.raises(UsageError, match="threads"):
        formats(Grid(backends=("fake",), threads=(1, 9999)))
    artifacts = [replace(artifact, source=str(artifact.path)) for artifact in artifacts]
    with pytest.raises(UsageError, match="stores its KV cache as f32"):  # each was named by itself
        formats(Grid(backends=("fake",), kv_types=("q8_0",)))


def test_terminal_table(
    call: Call, model: Path, bandwidth: None, terminal: type[Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    screen = terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "160")
    from edge_cli.main import run

    assert run(["bench", str(model), "--backend", "fake", *QUICK]) == 0
    assert "decode t/s" in screen.written()
