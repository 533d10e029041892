"""A server of fake models that the tests of a module share, and the official clients of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai import OpenAI

from tests.serving import Serving, serving, wait_until


@pytest.fixture(scope="module")
def running() -> Iterator[Serving]:
    """A server with two models, "tiny" and "other"."""
    with serving(models=("tiny", "other")) as server:
        wait_until(lambda: server.ask("GET", "/health")[0] == 200)
        yield server


@pytest.fixture
def client(running: Serving) -> Iterator[OpenAI]:
    """OpenAI's own client, which raises where a response is not as its types say."""
    with OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, _strict_response_validation=True) as made:
        yield made
