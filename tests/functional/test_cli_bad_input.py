"""Everything that can be wrong with what the user gives: a clear error, its exit code, never a crash."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

from edge_cli.main import run as run_here
from tests.tiny_gguf import TOKENS, write_gguf

EDGE = Path(sys.executable).with_name("edge")
LIMIT_S = 240

Edge = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def edge(shared_cache: Path) -> Edge:
    """Run `edge ARGS` to its end, with empty stdin and more variables where they are given."""

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environ = {**os.environ, "EDGE_CACHE_DIR": str(shared_cache), **variables}
        return subprocess.run(
            [EDGE, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environ, timeout=LIMIT_S
        )

    return run


@pytest.fixture
def edge_here(shared_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Edge:
    """Like `edge`, in this process, for what is refused before an engine sees it."""

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        with monkeypatch.context() as patch:
            for name, value in {"EDGE_CACHE_DIR": str(shared_cache), **variables}.items():
                patch.setenv(name, value)
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
            code = run_here(arguments)
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return run


def check(done: subprocess.CompletedProcess[str], code: int, *said: str) -> None:
    """The exit code, an error of ours on stderr that says these things, and nothing else."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert len(done.stderr.splitlines()) >= 2, "no hint"
    assert "Traceback" not in done.stderr
    assert "bug in edge" not in done.stderr
    for text in said:
        assert text in done.stderr


def write_model(path: Path, architecture: str, *, n_embd: int = 64, n_rows: int = 64) -> Path:
    """A GGUF file with the header of a tiny (or enormous) llama and no data: a hole of the size that it promises."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(2048)
    writer.add_embedding_length(n_embd)
    writer.add_feed_forward_length(4 * n_embd)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b"])
    n_bytes = 2 * n_embd * n_rows
    writer.add_tensor_info("token_embd.weight", (n_rows, n_embd), gguf.np.dtype("float16"), n_bytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, path.stat().st_size + n_bytes + 64)
    return path


def test_a_file_that_is_not_there(edge_here: Edge, tmp_path: Path) -> None:
    check(edge_here("run", "-m", str(tmp_path / "none.gguf"), "hi"), 3, "none.gguf")


def test_an_unknown_name_suggests_the_nearest(edge_here: Edge) -> None:
    check(edge_here("run", "-m", "smollm2-135n", "hi"), 3, "smollm2-135n", "smollm2-135m")


def test_a_file_that_is_not_a_model(edge_here: Edge, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_text("this is no model\n" * 100)
    check(edge_here("run", "-m", str(path), "hi"), 1, "x.gguf", "not a GGUF")


def test_an_empty_file(edge_here: Edge, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.touch()
    check(edge_here("run", "-m", str(path), "hi"), 1, "x.gguf")


@pytest.mark.model
@pytest.mark.parametrize("n_bytes", [100, 100_000, 50_000_000])
def test_a_file_that_is_cut_off(edge: Edge, tmp_path: Path, model_path: Path, n_bytes: int) -> None:
    path = tmp_path / "x.gguf"
    with model_path.open("rb") as source:
        path.write_bytes(source.read(n_bytes))
    check(edge("run", "-m", str(path), "hi"), 1, "x.gguf")


def test_an_architecture_that_nobody_knows(edge: Edge, tmp_path: Path) -> None:
    check(edge("run", "-m", str(write_model(tmp_path / "x.gguf", "martian")), "hi"), 1, "martian")


def test_a_model_without_its_tensors(edge: Edge, tmp_path: Path) -> None:
    check(edge("run", "-m", str(write_model(tmp_path / "x.gguf", "llama")), "hi"), 1, "x.gguf")


def test_a_model_larger_than_memory(edge: Edge, tmp_path: Path) -> None:
    path = write_model(tmp_path / "x.gguf", "llama", n_embd=1 << 19, n_rows=1 << 20)
    try:
        check(edge("run", "-m", str(path), "hi"), 1, "1.1 TB", "may be used")
        check(edge("run", "--estimate-only", "-m", str(path)), 1, "1.1 TB", "may be used")
    finally:
        path.unlink()


@pytest.mark.parametrize(
    "tokens", [[*TOKENS[:-1], "a"], [*TOKENS[:3], *(f"w{n}" for n in range(256))]], ids=["twice", "no bytes"]
)
def test_a_file_that_llamacpp_does_not_survive(edge: Edge, tmp_path: Path, tokens: list[str]) -> None:
    scores = {"change": lambda writer: writer.add_token_scores([0.0] * len(tokens)), "tokenizer": "llama"}
    path = write_gguf(tmp_path / "hostile.gguf", tokens=tokens, **(scores if "w0" in tokens else {}))  # type: ignore[arg-type]
    for _ in range(2):
        done = edge("run", "-m", str(path), "hi")
        check(done, 1, "hostile.gguf", "its vocabulary", "crashes")
        assert "backtrace" not in done.stderr
    script = "import edge, sys\ntry:\n    edge.load(sys.argv[1])\nexcept edge.errors.ModelFileError:\n    print('alive')"
    program = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=LIMIT_S)
    assert program.stdout == "alive\n", program.stderr


@pytest.mark.model
def test_an_accelerator_that_is_not_here(edge_here: Edge, model_path: Path) -> None:
    devices = json.loads(edge_here("devices", "--json").stdout)
    here = {name for engine in devices["engines"] for name in engine["accelerators"]} | {gpu["api"] for gpu in devices["gpus"]}
    missing = [name for name in ("cuda", "metal", "ane") if name not in here]
    assert missing, "no machine has all three"
    for name in missing:
        check(edge_here("run", "-m", str(model_path), "--require", name, "hi"), 4)


@pytest.mark.model
def test_a_backend_that_does_not_exist(edge_here: Edge, model_path: Path) -> None:
    check(edge_here("run", "-m", str(model_path), "--backend", "warp", "hi"), 4, "warp")


def test_a_directory_as_model(edge_here: Edge, tmp_path: Path) -> None:
    done = edge_here("run", "-m", str(tmp_path), "hi")
    assert done.returncode in (1, 3)
    check(done, done.returncode, str(tmp_path))


def test_wrong_options_and_settings(edge_here: Edge, tmp_path: Path) -> None:
    check(edge_here("run", "--temprature", "1", "hi"), 2, "--temperature")
    check(edge_here("run", "--top-p", "2", "hi"), 2, "from 0 to 1")
    check(edge_here("run"), 2, 'edge run "')
    check(edge_here("models", "ls", EDGE_MODLE="x"), 2, "EDGE_MODEL")
    settings = tmp_path / "c.toml"
    settings.write_text("\n[sampling]\ntemprature = 1\n")
    check(edge_here("config", "ls", EDGE_CONFIG=str(settings)), 2, f"{settings}:3", "sampling.temperature")


@pytest.mark.model
def test_a_prompt_longer_than_the_window(edge: Edge, model_path: Path, tmp_path: Path) -> None:
    text = tmp_path / "long.txt"
    text.write_text("word " * 5000)
    done = edge("run", "-m", str(model_path), "--context", "512", "-f", str(text), "Summarise")
    check(done, 1, "512")


def test_data_directory_that_cannot_be_written(edge_here: Edge, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check(edge_here("run", "--continue", "hi", EDGE_DATA_DIR=str(tmp_path / "file")), 1, str(tmp_path / "file"))
