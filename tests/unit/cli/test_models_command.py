"""`edge models`: what is shown of models that are here and of those that are not, and how a pull is reported."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import edge.catalog
from edge.catalog import DownloadProgress, load_catalog
from edge.errors import ChecksumError, ModelNotFoundError
from edge.formats.artifact import open_artifact
from edge_cli import output
from tests.tiny_onnx import write_onnx


@pytest.fixture
def small_model(tmp_path: Path) -> Path:
    """A GGUF file of a few hundred bytes."""
    path = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Small")
    writer.add_license("MIT")
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(8)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_file_type(0)
    writer.add_tensor("token_embd.weight", np.zeros((3, 8), dtype=np.float32))
    writer.add_tensor("output_norm.weight", np.zeros(8, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_name_with_line_ends_makes_up_no_rows(call: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama\nlayers")
    writer.add_name("Small\nlicence  MIT\r\n\u2028path\t/x\x1b[31m")
    writer.add_license("Own\nsha256  0000")
    writer.add_block_count(1)
    writer.add_embedding_length(8)
    writer.add_tensor("token_embd.weight", np.zeros((4, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert open_artifact(path).name == "Small licence MIT path /x [31m"
    shown = call("models", "show", str(path)).out
    rows = shown.splitlines()
    assert rows[0].split(maxsplit=1) == ["model", "Small licence MIT path /x [31m"]
    assert [row.split()[0] for row in rows].count("licence") == 1
    assert not any(row.startswith(("path  /x", "sha256")) for row in rows)
    assert re.search(r"^architecture +llama layers$", shown, re.MULTILINE)


def test_ls_offers_the_catalogue(call: Any) -> None:
    result = call("models", "ls")
    assert (result.code, result.err) == (0, "")
    for name, entry in load_catalog().items():
        for artifact in entry.artifacts:
            option = f" --format {artifact.form}" if len(entry.artifacts) > 1 else ""
            assert f"edge models pull {name}{option}  " in result.out
    listed = json.loads(call("models", "ls", "--json").out)
    assert [model["name"] for model in listed] == [name for name, entry in load_catalog().items() for _ in entry.artifacts]
    assert not any(model["is_here"] for model in listed)


def test_ls_here_with_nothing_here_says_what_to_do(call: Any) -> None:
    result = call("models", "ls", "--here")
    assert (result.code, result.out) == (0, "")
    assert "edge models pull" in result.err
    assert json.loads(call("models", "ls", "--here", "--json").out) == []


def test_show_a_model_of_the_catalogue_that_is_not_here(call: Any) -> None:
    result = call("models", "show", "smollm2-135m")
    assert result.code == 0
    assert "edge models pull smollm2-135m" in result.out
    assert json.loads(call("models", "show", "smollm2-135m", "--json").out)["is_here"] is False
    for option in ("--path", "--verify"):
        result = call("models", "show", "smollm2-135m", option)
        assert (result.code, result.out) == (3, "")
        assert "edge models pull smollm2-135m" in result.err


def test_show_a_file(call: Any, small_model: Path) -> None:
    result = call("models", "show", str(small_model))
    rows = dict(line.split(None, 1) for line in result.out.splitlines() if not line.startswith("chat"))
    assert (rows["model"], rows["licence"], rows["architecture"]) == ("Small", "MIT", "llama")
    assert rows["weights"].startswith("32, ")
    about = json.loads(call("models", "show", str(small_model), "--json").out)
    assert (about["n_layer"], about["n_head_kv"], about["size_bytes"]) == (2, 1, small_model.stat().st_size)
    assert call("models", "show", str(small_model), "--path").out == f"{small_model}\n"
    assert len(json.loads(call("models", "show", str(small_model), "--verify", "--json").out)["sha256"]) == 64


def test_unknown_names(call: Any) -> None:
    for command in ("show", "pull", "rm"):
        result = call("models", command, "smollm2-135n")
        assert (result.code, result.out) == (3, "")
        assert "smollm2-135m" in result.err


def test_rm_leaves_other_peoples_files_alone(call: Any, small_model: Path) -> None:
    result = call("models", "rm", str(small_model))
    assert result.code == 2
    assert small_model.is_file()


def test_rm_goes_on_after_one_that_cannot_be_removed(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def remove(name: str, settings: Any, *, formats: Any) -> Any:
        if name == "bad":
            raise ModelNotFoundError("bad is not on this device.", "See what is: edge models ls")
        return edge.catalog.Removed((Path(f"/m/{name}"),), 2_000_000)

    monkeypatch.setattr(edge.catalog, "remove", remove)
    result = call("models", "rm", "a", "bad", "b", "a")
    assert result.code == 3
    assert result.err.splitlines() == [
        "a is removed, 2.0 MB freed.",
        "Error: bad is not on this device.",
        "See what is: edge models ls",
        "b is removed, 2.0 MB freed.",
    ]
    results = json.loads(call("models", "rm", "bad", "b", "--json").out)
    assert [(one["name"], one["is_removed"]) for one in results] == [("bad", False), ("b", True)]


def test_sizes_that_only_the_hub_knows_are_said(call: Any, terminal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {line.split()[0]: line.split() for line in call("models", "ls").out.splitlines()}
    assert rows["smollm2-360m"][1:6] == ["gguf", "Q8_0", "~386.4", "MB", "362M"]
    assert rows["smollm2-135m"][1:6] == ["gguf", "Q4_1", "98.4", "MB", "135M"]
    assert rows["smollm2-135m"][6] in ("fits", "tight", "too") and rows["smollm2-135m"][-3:] == ["trying", "things", "out."]
    told = "from the hub's listing at download"
    shown = call("models", "show", "smollm2-360m").out
    assert re.search(r"^size +~386.4 MB$", shown, re.MULTILINE)
    assert re.search(f"^sha256 +{told}$", shown, re.MULTILINE)
    stdout = terminal()
    monkeypatch.setattr(sys, "stdout", stdout)
    assert told in call("models", "ls").err


@pytest.mark.parametrize("columns", ["80", "100", "180"])
def test_what_a_model_is_good_for_is_listed(call: Any, terminal: Any, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    stdout = terminal()
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setenv("COLUMNS", columns)
    assert call("models", "ls").code == 0
    listed = output.plain(stdout.written())
    assert all(word in listed for word in ("params", "memory", "what it is good for"))
    words = " ".join(listed.split())
    assert "edge models pull smollm2-360m · A step up from the default, still small enough for a Raspberry Pi." in words
    assert all(len(line) <= int(columns) for line in listed.splitlines())


def test_ls_on_a_terminal_says_what_the_models_here_take(
    call: Any, terminal: Any, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = edge.catalog.Installed("small", "hf:a/small", small_model, 1_500_000, "hub", "edge", ("small",), None, "MIT")
    monkeypatch.setattr(edge.catalog, "list_models", lambda settings: [installed, installed])
    assert "in all" not in call("models", "ls").err
    monkeypatch.setattr(sys, "stdout", terminal())
    assert "2 models on this device, 3.0 MB in all." in call("models", "ls").err


def test_verifying_is_quiet_unless_a_person_watches(call: Any, small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[str] = []

    def verify(model: str, *, settings: Any, on_progress: Any, formats: Any) -> str:
        on_progress(DownloadProgress(model, 5, 10, "verify"))
        reported.append(model)
        return "0" * 64

    monkeypatch.setattr(edge.catalog, "verify", verify)
    assert call("models", "show", "--verify", str(small_model)).err == ""
    assert reported == [str(small_model)]


def test_show_an_onnx_folder(call: Any, tmp_path: Path) -> None:
    folder = write_onnx(tmp_path / "tiny", kind="int4")
    shown = call("models", "show", str(folder)).out
    for text in ("onnx", "llama", "int4", "2, 64 wide", "4,096 tokens", "f32, 1,024 bytes a token"):
        assert text in shown
    about = json.loads(call("models", "show", str(folder), "--json").out)
    assert (about["format"], about["n_vocab"], about["kv_type"]) == ("onnx", 259, "f32")
    digest = json.loads(call("models", "show", str(folder), "--verify", "--json").out)["sha256"]
    with (folder / "model.onnx.data").open("r+b") as file:
        file.write(b"other weights")
    assert json.loads(call("models", "show", str(folder), "--verify", "--json").out)["sha256"] != digest


@pytest.fixture
def three(tmp_path: Path, small_model: Path, own_home: Path) -> Path:
    """A model of the user's own catalogue: a GGUF and an ONNX folder of theirs, and something that is not there."""
    folder = write_onnx(tmp_path / "folder", kind="int4")
    assert "int4" in open_artifact(folder).facts.quantisation  # type: ignore[union-attr]
    text = "[models.three]\nlicence = 'MIT'\ndescription = 'For tests.'\n"
    for path, more in ((small_model, "quantisation = 'F32'"), (folder, "format = 'onnx'"), (tmp_path / "coreml-gone", "")):
        text += f"[[models.three.artifacts]]\nreference = '{path}'\n{more}\n"
    (own_home / "catalog.toml").write_text("# mine\n" + text)
    return folder


def test_a_line_for_each_format(call: Any, three: Path, small_model: Path) -> None:
    lines = [line.split() for line in call("models", "ls").out.splitlines() if line.startswith("three")]
    assert [line[1] for line in lines] == ["gguf", "onnx", "coreml"]
    assert ["here," in line for line in lines] == [True, True, False]
    assert "nothing at" in call("models", "ls").out
    listed = [row for row in json.loads(call("models", "ls", "--json").out) if row["name"] == "three"]
    assert [(row["format"], row["is_here"]) for row in listed] == [("gguf", True), ("onnx", True), ("coreml", False)]
    shown = call("models", "show", "three")
    assert "For tests." in shown.out
    assert f"here, {three}" in shown.out
    about = json.loads(call("models", "show", "three", "--json").out)
    assert (about["format"], about["name"]) == ("gguf", "three")
    assert [(row["format"], row["path"]) for row in about["artifacts"]] == [
        ("gguf", str(small_model)),
        ("onnx", str(three)),
        ("coreml", None),
    ]
    assert call("models", "show", "three", "--format", "onnx", "--path").out == f"{three}\n"
    assert json.loads(call("models", "show", "three", "--format", "onnx", "--json").out)["quantisation"] == "int4"
    assert call("models", "show", "three", "--format", "coreml").code == 3


def test_a_model_in_two_formats_that_is_not_here(call: Any) -> None:
    shown = call("models", "show", "phi3-mini").out
    assert "gguf Q4_K_M" in shown
    assert "edge models pull phi3-mini --format onnx" in shown
    assert [row["format"] for row in json.loads(call("models", "show", "phi3-mini", "--json").out)["artifacts"]] == [
        "gguf",
        "onnx",
    ]


def test_adding_and_forgetting_a_name(call: Any, three: Path, small_model: Path, own_home: Path) -> None:
    added = call("models", "add", "mine", str(three))
    assert (added.code, "mine: onnx int4" in added.err) == (0, True)
    call("models", "add", "mine", str(three))
    assert (own_home / "catalog.toml").read_text().count("models.mine.artifacts") == 1, "once"
    assert call("models", "add", "mine", "hf:acme/mine-GGUF:Q8_0").err.startswith("mine is now hf:acme/mine-GGUF:Q8_0.")
    kinds = [(row["format"], row["is_here"]) for row in json.loads(call("models", "show", "mine", "--json").out)["artifacts"]]
    assert kinds == [("onnx", True), ("gguf", False)]
    for arguments, said in (
        (("../up", str(three)), "cannot be the name"),
        (("x", "nowhere"), "no file or folder"),
        (("x", "hf:"), "not a valid Hub reference"),
    ):
        refused = call("models", "add", *arguments)
        assert refused.code in (2, 3)
        assert said in refused.err
    gone = call("models", "rm", "three", "--format", "onnx")
    assert (gone.code, f"{three} is your file and was not deleted." in gone.err) == (0, True)
    assert (three / "model.onnx").is_file()
    assert [row["format"] for row in json.loads(call("models", "show", "three", "--json").out)["artifacts"]] == [
        "gguf",
        "coreml",
    ]
    assert call("models", "rm", "three", "mine").code == 0
    text = (own_home / "catalog.toml").read_text()
    assert text.startswith("# mine\n")
    assert "three" not in text
    assert text.count("mine.artifacts") == 1
    assert "hf:acme/mine-GGUF:Q8_0" in text, "a reference can be fetched again"
    assert small_model.is_file()


class Pull:
    """In the place of `edge.catalog.pull`: reports and then does what it is told."""

    def __init__(self, path: Path, failure: BaseException | None = None) -> None:
        self.path = path
        self.failure = failure
        self.references: list[str] = []
        self.formats: tuple[str, ...] = ()

    def __call__(self, reference: str, *, settings: Any, on_progress: Any, accept_licence: bool, formats: Any) -> Any:
        self.references.append(reference)
        self.formats = formats
        on_progress(DownloadProgress(reference, 0, None, "connect"))
        for done in range(0, 1001, 10):
            on_progress(DownloadProgress(reference, done * 1000, 1_000_000, "download"))
        if self.failure is not None:
            raise self.failure
        return open_artifact(self.path)


def test_pull_prints_the_path_and_a_line_every_tenth(call: Any, small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge.catalog, "pull", Pull(small_model))
    result = call("models", "pull", "x")
    assert (result.code, result.out) == (0, f"{small_model}\n")
    lines = result.err.splitlines()
    assert lines[0] == "Looking for x"
    assert lines[1] == "Downloading x: 0 B of 1.0 MB"
    assert len(lines) == 1 + 11 + 1
    assert "\x1b" not in result.err
    assert json.loads(call("models", "pull", "x", "--json").out)["path"] == str(small_model)


def test_pull_quietly_prints_nothing(call: Any, small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pull = Pull(small_model)
    monkeypatch.setattr(edge.catalog, "pull", pull)
    assert call("models", "pull", "--quiet") == call("models", "pull", "-q", "smollm2-135m")
    assert call("models", "pull", "-q").out == call("models", "pull", "-q").err == ""
    assert set(pull.references) == {"smollm2-135m"}
    assert pull.formats[0] == "gguf", "what suits this device best"
    call("models", "pull", "-q", "smollm2-135m", "--format", "coreml")
    assert pull.formats == ("coreml",)


@pytest.mark.parametrize("has_terminal", [False, True])
def test_an_interrupted_pull_says_how_to_go_on(
    call: Any, small_model: Path, monkeypatch: pytest.MonkeyPatch, terminal: Any, has_terminal: bool
) -> None:
    monkeypatch.setattr(edge.catalog, "pull", Pull(small_model, KeyboardInterrupt()))
    stderr = terminal()
    if has_terminal:
        monkeypatch.setattr(sys, "stderr", stderr)
    result = call("models", "pull", "x")
    assert (result.code, result.out) == (130, "")
    said = stderr.written() if has_terminal else result.err
    assert "run the same command again to resume" in said


def test_a_failed_pull_is_an_error(call: Any, small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge.catalog, "pull", Pull(small_model, ChecksumError("It lied.", "Try later.")))
    result = call("models", "pull", "x")
    assert (result.code, result.out) == (1, "")
    assert result.err.endswith("Error: It lied.\nTry later.\n")
