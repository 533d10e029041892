"""The main job as it is shipped: the catalogue's default model, its advised settings, nothing else said."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.model
QUESTION = "What is the capital of France?"


@pytest.fixture
def shipped(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The models that `make test` pulled, found by their names."""
    monkeypatch.setenv("EDGE_MODELS_DIR", str(model_path.parents[3]))


@pytest.mark.usefixtures("shipped")
def test_the_question_of_the_readme_is_answered() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("edge")), "run", "--temperature", "0", QUESTION],
        capture_output=True,
        text=True,
        timeout=300,
        env=dict(os.environ),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Paris" in done.stdout


@pytest.mark.usefixtures("shipped")
def test_the_program_of_the_readme_runs() -> None:
    import edge

    with edge.load("smollm2-135m", context=1024) as ai:
        conversation = ai.conversation(system="Be brief")
        first = conversation.send("hi", sampling=edge.Sampling(seed=1, max_tokens=16))
        text = "".join(first)
        second = conversation.send("And in one word?", sampling=edge.Sampling(seed=1, max_tokens=8))
        assert second.wait()
        assert text
        assert second.usage.n_reused == first.usage.n_prompt + first.usage.n_generated - (first.finish_reason == "length")
        assert second.timing.first_token_ms > 0
        assert conversation.messages[-1].record["plan"]["backend"] == "llamacpp"


@pytest.mark.usefixtures("shipped")
async def test_two_conversations_at_once_from_an_event_loop() -> None:
    import asyncio

    import edge

    async with await edge.aload("smollm2-135m", context=1024) as ai:
        sampling = edge.Sampling(temperature=0, max_tokens=12)
        alone = await ai.conversation().send(QUESTION, sampling=sampling)
        together = await asyncio.gather(*(_ask(ai.conversation(), sampling) for _ in range(2)))
        assert "Paris" in alone
        assert all("Paris" in text for text in together)


async def _ask(conversation: object, sampling: object) -> str:
    return await conversation.send(QUESTION, sampling=sampling)  # type: ignore[attr-defined,no-any-return]


def test_a_text_that_repeats_its_prompt_is_guessed_unless_that_is_off(model_path: Path) -> None:
    import edge

    text = "one two three four five six seven eight nine ten, " * 4
    for speculate in (True, False):
        settings = edge.load_settings({"model": str(model_path), "context": 1024, "engine.speculate": speculate})
        with edge.load(settings=settings) as ai:
            reply = ai.complete(text, temperature=0, max_tokens=40)
            reply.wait()
        usage = reply.usage
        assert (usage.n_accepted > 0) == speculate, usage
        assert usage.n_drafted >= usage.n_accepted
