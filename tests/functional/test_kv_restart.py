"""Restarts with real models: SmolLM2, and Gemma 3 270M with its sliding window of 512 tokens."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import edge
from edge.config import load_settings
from edge.reply import Reply
from tests.prove import proof_size

pytestmark = [pytest.mark.model, pytest.mark.slow]
GREEDY = edge.Sampling(temperature=0, max_tokens=16)
# 17 tokens a day: SmolLM2 needs a few whole blocks of 128 tokens, Gemma more than its window of 512.
N_DAYS = proof_size(18, 35)
GEMMA_DAYS = 35
# Where one of the two shows the same as the other, each is taken in other tests.
BOTH = [("smollm2", N_DAYS), ("gemma3", GEMMA_DAYS)]


def story(n_days: int) -> str:
    return " ".join(
        f"On day {n} the ship passed an island with {n % 7} palm trees and {n % 5} huts." for n in range(1, n_days + 1)
    )


@pytest.fixture(scope="session")
def gemma_path() -> Path:
    """Gemma 3 270M, 253 MB. `make test` pulls it and sets EDGE_TEST_GEMMA; without it the tests that need it fail."""
    path = Path(os.environ.get("EDGE_TEST_GEMMA", ""))
    if not path.is_file():
        pytest.fail("EDGE_TEST_GEMMA does not name the model file. Run the tests with: make test")
    return path


def go_on(model: Path, text: str, *, exact: bool = False, enabled: bool = True) -> tuple[str, Reply]:
    """Load the model, write on after a text, and close it: a process of its own, as far as KV cache and disk go."""
    settings = load_settings({"model": str(model), "context": 1024, "kv.exact": exact, "kv.enabled": enabled})
    with edge.load(settings=settings) as ai:
        reply = ai.complete(text, GREEDY)
        return reply.wait(), reply


@pytest.mark.prove
@pytest.mark.parametrize(("name", "n_days"), proof_size([("gemma3", GEMMA_DAYS)], BOTH))
def test_an_exact_restored_run_writes_what_a_cold_one_writes(name: str, n_days: int, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue("model_path" if name == "smollm2" else "gemma_path")
    question = story(n_days) + " In the end the captain said:"
    cold, reply = go_on(model, question, exact=True, enabled=False)
    assert reply.usage.n_reused == 0
    assert reply.usage.n_prompt > 17 * n_days
    go_on(model, story(n_days), exact=True)
    restored, reply = go_on(model, question, exact=True)
    assert reply.usage.n_restored >= 17 * n_days // 128 * 128
    assert restored == cold


@pytest.mark.prove
@pytest.mark.parametrize(("name", "n_days"), proof_size([("smollm2", N_DAYS)], BOTH))
def test_a_restored_run_goes_on_as_one_that_was_not_stopped(name: str, n_days: int, request: pytest.FixtureRequest) -> None:
    """The usual mode restores to the token."""
    model = request.getfixturevalue("model_path" if name == "smollm2" else "gemma_path")
    question = story(n_days) + " In the end the captain said:"
    settings = load_settings({"model": str(model), "context": 1024})
    with edge.load(settings=settings) as ai:
        written = [ai.complete(question, GREEDY).wait() for _ in range(2)]
    again, reply = go_on(model, question)
    assert reply.usage.n_restored == reply.usage.n_prompt - 1
    assert again == written[1]


@pytest.mark.prove
def test_a_killed_process_leaves_what_it_had_prefilled(model_path: Path) -> None:
    """kill -9 while a reply is generated: its prompt is restored, and leads to the same words as a cold prefill."""
    script = (
        "import edge, os, signal, sys, time\n"
        "from edge.config import load_settings\n"
        "from edge.kv.open import open_block_store\n"
        "settings = load_settings({'model': sys.argv[1], 'context': 1024})\n"
        "ai = edge.load(settings=settings)\n"
        "blocks = open_block_store(settings)\n"
        "reply = ai.conversation().send(sys.argv[2], sampling=edge.Sampling(temperature=0, max_tokens=200))\n"
        "for number, piece in enumerate(reply):\n"
        "    if number == 3:\n"
        "        while blocks.stats().n_tokens < int(sys.argv[3]): time.sleep(0.01)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    n_least, text = 17 * N_DAYS // 128 * 128, story(N_DAYS)
    command = [sys.executable, "-c", script, str(model_path), text, str(n_least)]
    done = subprocess.run(command, timeout=300, env=dict(os.environ))
    assert done.returncode == -9
    with edge.load(settings=load_settings({"model": str(model_path), "context": 1024})) as ai:
        reply = ai.conversation().send(text, sampling=GREEDY)
        assert reply.wait()
        assert reply.usage.n_restored >= n_least, "whole blocks go to the disk while the prompt is read"
        [check] = ai.check_cache(1)
        assert (check.is_same_choice, check.kl < 0.05) == (True, True)


@pytest.mark.prove
@pytest.mark.parametrize("name", proof_size(["smollm2"], ["smollm2", "gemma3"]))
def test_what_is_prefilled_ahead_is_restored_by_another_process(name: str, request: pytest.FixtureRequest) -> None:
    """With a real tokenizer, which may join the end of the document with what follows."""
    model = request.getfixturevalue("model_path" if name == "smollm2" else "gemma_path")
    settings = load_settings({"model": str(model), "context": 1024})
    notes = [edge.Attachment("notes.txt", story(N_DAYS))]
    with edge.load(settings=settings) as ai:
        warm = ai.prewarm(system="Be brief.", attachments=notes)
        assert warm.wait() == ""
        again = ai.prewarm(system="Be brief.", attachments=notes)
        again.wait()
    assert warm.usage.n_computed == warm.usage.n_prompt > 17 * N_DAYS
    assert again.usage.n_reused == warm.usage.n_prompt - 1
    for question in ("Where were 6 palm trees?", "1, 2, 3?", "\nAnd huts?"):
        with edge.load(settings=settings) as ai:
            reply = ai.conversation(system="Be brief.").send(question, attachments=notes, cache="off", max_tokens=1)
            reply.wait()
            assert reply.usage.n_restored >= warm.usage.n_prompt - 1
            assert reply.usage.n_computed < 30
