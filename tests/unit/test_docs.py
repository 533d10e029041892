"""The documentation site builds without a broken link, and the code of its tutorials runs."""

from __future__ import annotations

import io
import os
import re
import shlex
import sys
from functools import partial
from pathlib import Path

import pytest
from sybil import Document, Example
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

from edge.kv.options import StoreOptions
from edge_cli.main import run
from tools import build_docs

ROOT = Path(__file__).parents[2]
TUTORIALS = [
    ROOT / "docs/python.md",
    ROOT / "docs/structured.md",
    ROOT / "docs/documents.md",
    *sorted((ROOT / "docs/tutorials").glob("*.md")),
]


def run_console(example: Example) -> None:
    """Run every `$ edge ...` line of a block in this process."""
    for line in example.parsed.splitlines():
        if line.startswith("$ "):
            name, *arguments = shlex.split(line[2:])
            assert name == "edge"
            assert run(arguments) == 0, line


@pytest.fixture
def tutorial_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder where `smollm2-135m` is the real model if EDGE_TEST_MODEL names it, and otherwise a fake."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    monkeypatch.setenv("EDGE_SAMPLING_MAX_TOKENS", "16")  # where a tutorial sets none
    monkeypatch.setenv("EDGE_THREADS", "1")  # two wait for each other on a busy machine
    patient = partial(StoreOptions, read_timeout_s=60.0, open_wait_s=60.0, turn_timeout_s=60.0)  # the disk may be busy, too
    monkeypatch.setattr("edge.kv.store.StoreOptions", patient)
    if "EDGE_TEST_MODEL" in os.environ:
        monkeypatch.setenv("EDGE_MODELS_DIR", str(Path(os.environ["EDGE_TEST_MODEL"]).parents[3]))
    else:
        write_fake_model(tmp_path / "fake.gguf")
        assert run(["models", "add", "smollm2-135m", str(tmp_path / "fake.gguf")]) == 0
        monkeypatch.setenv("EDGE_BACKEND", "fake")
    return tmp_path


def write_fake_model(path: Path) -> None:
    """Write a header that a plan can be made of."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_embedding_length(8)
    writer.add_context_length(4096)
    writer.add_head_count(1)
    writer.add_tensor("token_embd.weight", np.zeros((8, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_the_code_of_a_tutorial_runs(page: Path, tutorial_folder: Path) -> None:
    if page.stem == "convert-model":
        from tests.checkpoints import make_checkpoint

        make_checkpoint(tutorial_folder / "my-checkpoint", "llama")
    document = Document.parse(str(page), PythonCodeBlockParser(), CodeBlockParser("console", run_console))
    examples = list(document.examples())
    assert examples
    for example in examples:
        example.evaluate()


def test_every_file_of_the_repository_that_a_page_names_exists() -> None:
    named = re.compile(r"(?<![\w/~.-])(?:edge|apps|converters|tests|tools|benchmarks|models)/[\w/-]+(?:\.\w+)?")
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    missing = [
        f"{page.relative_to(ROOT)}: {path}"
        for page in pages
        for path in named.findall(page.read_text(encoding="utf-8"))
        if not (ROOT / path).exists()
    ]
    assert missing == []


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Zensical and mkdocstrings need Python 3.11")
def test_the_site_builds_without_broken_links_and_requests_to_other_hosts() -> None:
    assert build_docs.build() == []


def test_a_public_name_is_documented_where_it_is_defined() -> None:
    import edge.types

    assert build_docs.defining_path(edge, "Conversation", edge.Conversation) == "edge.dialogue.Conversation"
    assert build_docs.defining_path(edge.types, "Role", edge.types.Role) == "edge.messages.Role"


def test_the_check_finds_what_is_broken(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(
        '<h1 id="top">x</h1> <a href="#top">fine</a> <a href="#gone">x</a> <a href="gone.html">x</a>'
        ' <a href="other.html#gone">x</a> <a href="https://example.org">fine</a> <script src="https://example.org/x.js"></script>'
        ' <link rel="stylesheet" href="//example.org/x.css"> <p style="background: url(https://example.org/x.png)"></p>'
    )
    (tmp_path / "other.html").write_text('<img src="data:image/png;base64,x">')
    (tmp_path / "x.css").write_text("@import 'https://example.org/y.css'; a { background: url(y.png) }")
    assert list(build_docs.find_problems(tmp_path)) == [
        "index.html: #gone has no such anchor",
        "index.html: gone.html does not exist",
        "index.html: other.html#gone has no such anchor",
        "index.html: loads https://example.org/x.js",
        "index.html: loads //example.org/x.css",
        "index.html: loads https://example.org/x.png",
        "x.css: loads https://example.org/y.css",
    ]
