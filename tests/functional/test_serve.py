"""`edge serve` with the real model, asked by OpenAI's client."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

pytestmark = pytest.mark.model

EDGE = Path(sys.executable).with_name("edge")
ASK: Any = {
    "model": "",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_tokens": 12,
    "temperature": 0,
}


@pytest.fixture(scope="module")
def client(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    home = str(tmp_path_factory.mktemp("home"))
    env = {"HOME": home, "PATH": "/usr/bin:/bin", "EDGE_CACHE_DIR": home, "EDGE_THREADS": "1"}
    command = [EDGE, "serve", "-m", model_path, "--context", "1024", "--port", "0", "--json", "--log", "off"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, _strict_response_validation=True) as made:
            yield made
        process.terminate()
        assert process.wait(60) == 0


def test_it_answers_streamed_as_whole_and_again_from_its_cache(client: OpenAI) -> None:
    whole = client.chat.completions.create(**ASK)
    assert "Paris" in (whole.choices[0].message.content or "")
    stream = client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole.choices[0].message.content
    )
    usage = chunks[-1].usage
    assert usage is not None and usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1


def test_the_model_is_named_after_its_file(client: OpenAI, model_path: Path) -> None:
    client.chat.completions.create(**{**ASK, "max_tokens": 1})  # waits until it is loaded
    (model,) = [model for model in client.models.list() if model.id == model_path.stem]
    assert model.model_dump()["status"] == "loaded"


def test_a_prompt_beyond_the_window_is_refused(client: OpenAI) -> None:
    from openai import BadRequestError

    with pytest.raises(BadRequestError, match="maximum context length is 1,024"):
        client.chat.completions.create(model="", messages=[{"role": "user", "content": "word " * 2000}])
