"""Turns of a model with a next tier: who answers, what leaves the device, and what happens when the tier fails."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import edge
from edge import events
from edge.assistant import Assistant
from edge.backends.fake import FakeBackend
from edge.errors import BackendError, ModelTooLargeError, UsageError
from edge.messages import Message, ToolCall
from edge.testing import FakeModel
from edge.tiers.address import read_address
from edge.tiers.base import Outgoing
from edge.tiers.escalation import Escalation
from edge.tiers.local import LocalTier
from edge.tiers.remote import RemoteTier
from edge.tiers.router import Router
from tests.servers.chat import WAIT_S, ChatServer, Says, chat_server
from tests.serving import serving
from tests.unit.grounding.shelf import RESET, library

SURE, UNSURE = "sure", "unsure"


class Doubting(FakeBackend):
    """A fake model that is unsure of each token of its answers to questions with "unsure": half for that, half for another."""

    def _logits_after(self, cells: Sequence[object]) -> npt.NDArray[np.float32]:
        logits = super()._logits_after(cells)  # type: ignore[arg-type]
        said = bytes(cell.token for cell in cells if cell.token < 256)  # type: ignore[attr-defined]
        if UNSURE.encode() in said:
            logits[ord("x")] = logits.max() - 0.01
        return logits


def small(escalation: Escalation | None = None, *, store: edge.ConversationStore | None = None, **options: object) -> Assistant:
    backend = Doubting(script=lambda text: f"small says {text}", n_ctx=2048, **options)  # type: ignore[arg-type]
    return Assistant(backend, store=store, sampling=edge.Sampling(temperature=0), escalation=escalation)


@contextlib.contextmanager
def larger(answers: Callable[[str], object] = lambda text: f"LARGE says {text}") -> Iterator[tuple[FakeModel, LocalTier]]:
    model = FakeModel(answers)  # type: ignore[arg-type]
    with model.load() as assistant:
        assistant.model_name = "large"
        yield model, LocalTier("large", lambda: contextlib.nullcontext(assistant))


def remote(server: ChatServer, **options: float) -> RemoteTier:
    return RemoteTier(read_address(f"openai:{server.url}#m"), pause_s=0.01, **options)  # type: ignore[arg-type]


def test_by_hand_a_larger_model_answers_and_the_reply_says_so() -> None:
    with larger() as (model, tier), small(Escalation(tier)) as ai:
        reply = ai.generate("hi", escalate=True)
        assert reply.wait() == "LARGE says hi"
        assert (reply.answered_by, reply.escalated) == ("large", "by hand")
        assert reply.usage.n_generated > 0
        assert model.prompts[-1][-1] == ("user", "hi")
        here = ai.generate("hi")
        assert here.wait() == "small says hi"
        assert (here.answered_by, here.escalated) == (ai.model_name, "")


def test_without_a_tier_replies_say_who_answers() -> None:
    with small() as ai:
        reply = ai.generate("hi")
        reply.wait()
        assert reply.answered_by == ai.model_name
        assert ai.escalation is None
        with pytest.raises(UsageError, match="no larger model"):
            ai.generate("hi", escalate=True)


@pytest.mark.parametrize("router", [Router(max_entropy=0.3), Router(max_entropy=0.3, probe_tokens=4)], ids=["whole", "probe"])
def test_an_unsure_answer_is_dropped_and_never_shown(router: Router) -> None:
    with larger() as (_, tier), small(Escalation(tier, router)) as ai:
        reply = ai.generate(UNSURE)
        shown = "".join(event.text for event in reply.events() if isinstance(event, events.Text))
        assert shown == reply.text == f"LARGE says {UNSURE}"
        assert reply.escalated.startswith("entropy 0.69 above")
        assert reply.logprobs == []
        sure = ai.generate(SURE)
        assert sure.wait() == f"small says {SURE}"
        assert sure.answered_by == ai.model_name
        assert sure.logprobs == []


def test_a_sure_answer_is_shown_while_it_goes_on() -> None:
    with larger() as (_, tier), small(Escalation(tier, Router(max_entropy=0.3, probe_tokens=3)), delay_s=0.02) as ai:
        reply = ai.generate("a long question " * 5)
        first = next(iter(reply))
        assert first
        assert not reply.is_done, "only the probe is held back"


def test_agreement_asks_twice() -> None:
    with larger() as (_, tier), small(Escalation(tier, Router(min_agreement=0.9))) as ai:
        assert ai.generate(SURE).wait() == f"small says {SURE}"
        reply = ai.generate(UNSURE)
        assert reply.wait() == f"LARGE says {UNSURE}"
        assert reply.escalated.startswith("agreement")


def test_rules_and_switches() -> None:
    with larger() as (_, tier), small(Escalation(tier, Router(min_tokens=20, patterns=("prove",)))) as ai:
        assert ai.generate("please prove").wait().startswith("LARGE")
        assert ai.generate("x" * 40).wait().startswith("LARGE")
        assert ai.generate("please prove", escalate=False).wait().startswith("small")
        assert ai.escalation is not None
        ai.escalation.is_on = False
        assert ai.generate("please prove").wait().startswith("small")
        assert ai.generate("please prove", escalate=True).wait().startswith("LARGE")


def test_what_cannot_be_sent_on() -> None:
    with larger() as (_, tier), small(Escalation(tier, Router(patterns=("",)))) as ai:
        assert ai.generate("hi", logprobs=1).wait().startswith("small")
        assert all(reply.wait().startswith("small") for reply in ai.generate_choices("hi", 2))
        assert ai.choose("hi", ["a", "b"]).text in ("a", "b")
        with pytest.raises(UsageError, match="cannot be sent on"):
            ai.generate("hi", logprobs=1, escalate=True)


def test_schemas_and_tools_work_in_a_larger_model_here() -> None:
    def weather(city: str) -> str:
        """Tell the weather."""
        return f"rain in {city}"

    def say(text: str) -> object:
        return ToolCall("weather", {"city": "Paris"}) if text == "weather?" else f"LARGE: {text}"

    with larger(say) as (model, tier), small(Escalation(tier)) as ai:
        reply = ai.generate("weather?", tools=[weather], approve="always", escalate=True)
        assert reply.wait() == "LARGE: rain in Paris"
        assert [call.name for call in reply.tool_calls] == ["weather"]
        assert model.prompts[-1][-1] == ("tool", "rain in Paris"), "the round behind the call is sent on, too"
        saved = ai.conversation(tools=[weather], approve="always")
        saved.send("weather?", escalate=True).wait()
        assert [(node.role, node.model) for node in saved.messages if node.role == "assistant"] == [("assistant", "large")] * 2


def test_conversations_save_who_answered(tmp_path: Path) -> None:
    with edge.ConversationStore(tmp_path / "c.db") as store, larger() as (_, tier), small(Escalation(tier), store=store) as ai:
        talk = ai.conversation()
        talk.send("one").wait()
        talk.send("two", escalate=True).wait()
        talk.send("three").wait()
        answers = [node for node in talk.messages if node.role == "assistant"]
        assert [node.model for node in answers] == [ai.model_name, "large", ai.model_name]
        assert [node.record["answered_by"] for node in answers] == [ai.model_name, "large", ai.model_name]
        assert [node.record.get("escalated") for node in answers] == [None, "by hand", None]
        assert answers[1].record["tokens"] == [], "token ids of another model are no use to this one"


def test_nothing_leaves_the_device_unless_somebody_agrees() -> None:
    asked: list[Outgoing] = []

    def agree(outgoing: Outgoing) -> bool:
        asked.append(outgoing)
        return "Be brief" in outgoing.text()

    with chat_server() as server, small(Escalation(remote(server), Router(patterns=("",)))) as ai:
        reply = ai.generate("hi")
        assert reply.wait() == "small says hi"
        assert "nobody agreed" in reply.notices[0]
        assert server.paths == []
        assert ai.escalation is not None
        ai.escalation.consent = agree
        refused = ai.generate("hi")
        assert refused.wait() == "small says hi"
        assert "as you wished" in refused.notices[0]
        assert server.paths == []
        reply = ai.generate([Message("system", "Be brief"), Message("user", "hi")])
        assert reply.wait() == "Paris"
        assert reply.answered_by == f"real-model at {server.url.removeprefix('http://')}"
        assert server.asked == [asked[-1].body]


def test_passages_of_documents_are_sent_on_once_and_consent_is_asked_for_them_too() -> None:
    asked: list[Outgoing] = []
    question = "How do I reset the pump?"

    def agree(outgoing: Outgoing) -> bool:
        asked.append(outgoing)
        return len(asked) > 1

    with chat_server() as server, small(Escalation(remote(server), consent=agree)) as ai:
        for _ in range(2):
            reply = ai.generate(question, docs=library(), escalate=True)
            reply.wait()
            assert [one.number for one in reply.citations] == [1, 2]
        assert RESET.text in asked[0].text(), "what would be sent can be seen first"
        assert server.asked == [asked[1].body]
        sent = server.asked[0]["messages"][-1]["content"]
        assert sent.count(RESET.text) == 1
        assert sent.endswith(question)
        assert "/docs/" not in str(server.asked[0])
    with larger(lambda _: "Hold it [2].") as (model, tier), small(Escalation(tier)) as ai:
        conversation = ai.conversation(docs=library())
        reply = conversation.send(question, escalate=True)
        reply.wait()
        assert model.prompts[-1][-1][1].count(RESET.text) == 1
        assert conversation.messages[0].message().content == model.prompts[-1][-1][1]
        assert [one.number for one in reply.cited] == [2]
        assert [event.kind for event in reply.events()].count("passages") == 1


def test_another_edge_can_be_the_server() -> None:
    with serving(script=lambda text: f"SERVER says {text}") as server:
        tier = RemoteTier(read_address(f"openai:{server.url}"))
        with small(Escalation(tier, consent="always")) as ai:
            talk = ai.conversation(system="Be brief")
            reply = talk.send("hi", escalate=True, max_tokens=100)
            assert reply.wait() == "SERVER says hi"
            assert reply.answered_by == f"tiny at {server.url.removeprefix('http://')}"
            assert reply.usage.n_prompt > 0
            assert reply.usage.n_generated > 0
            short = talk.send("hello", escalate=True, max_tokens=3)
            short.wait()
            assert short.finish_reason == "length"


def test_a_server_that_fails_leaves_the_answer_to_the_model_here() -> None:
    with chat_server(*[Says(status=500)] * 3) as server, small(Escalation(remote(server), consent="always")) as ai:
        reply = ai.generate("hi", escalate=True)
        assert reply.wait() == "small says hi"
        assert (reply.answered_by, reply.escalated) == (ai.model_name, "")
        assert "No answer from" in reply.notices[0]
        assert "status 500" in reply.notices[0]


def test_an_answer_that_was_measured_and_is_whole_is_not_computed_again() -> None:
    with chat_server(*[Says(status=400)] * 3) as server:
        with small(Escalation(remote(server), Router(max_entropy=0.3), consent="always")) as ai:
            before = ai.n_decoded
            reply = ai.generate(UNSURE)
            assert reply.wait() == f"small says {UNSURE}"
            assert ai.n_decoded - before <= len(reply.tokens) + 1
            assert reply.answered_by == ai.model_name
            cut = ai.generate(UNSURE)
            assert cut.wait() == f"small says {UNSURE}"
        with small(Escalation(remote(server), Router(max_entropy=0.3, probe_tokens=3), consent="always")) as ai:
            assert ai.generate(UNSURE).wait() == f"small says {UNSURE}"


def test_an_answer_that_breaks_off_is_continued_here() -> None:
    breaks_off = Says(pieces=("small sa", "ys"), cut_after=1)
    with chat_server(breaks_off) as server, small(Escalation(remote(server), consent="always")) as ai:
        talk = ai.conversation()
        reply = talk.send("hi", escalate=True)
        text = reply.wait()
        node = talk.messages[-1]
    assert text.startswith("small sa")
    assert len(text) > len("small sa")
    assert "broke off" in reply.notices[0]
    assert reply.answered_by.endswith(f"then {ai.model_name}")
    assert node.content == text
    assert node.record["answered_by"] == reply.answered_by


def test_a_model_that_cannot_be_loaded_leaves_the_answer_to_the_small_one() -> None:
    @contextlib.contextmanager
    def hold() -> Iterator[Assistant]:
        raise ModelTooLargeError("It does not fit.", "Choose a smaller one.")
        yield

    with small(Escalation(LocalTier("large", hold))) as ai:
        reply = ai.generate("hi", escalate=True)
        assert reply.wait() == "small says hi"
        assert "does not fit" in reply.notices[0]


@pytest.mark.parametrize("says", [Says(stall_after=0), Says(stall_after=2)])
def test_stopping_stops_the_server(says: Says) -> None:
    with chat_server(says) as server, small(Escalation(remote(server), consent="always")) as ai:
        talk = ai.conversation()
        reply = talk.send("hi", escalate=True)
        until = threading.Event()
        while len(reply.text) < len("".join(says.pieces[: says.stall_after])) or not server.asked:
            assert not until.wait(0.01)
        reply.cancel()
        assert reply.wait(WAIT_S) == "".join(says.pieces[: says.stall_after])
        assert reply.finish_reason == "cancelled"
        assert server.gone.wait(WAIT_S)
        assert talk.send("again").wait() == "small says again"


def test_a_time_limit_holds_for_the_server_too() -> None:
    with chat_server(Says(stall_after=1)) as server, small(Escalation(remote(server), consent="always")) as ai:
        reply = ai.generate("hi", escalate=True, timeout_s=1.0)
        assert reply.wait(WAIT_S) in ("", "Pa")
        assert reply.finish_reason == "cancelled"
        assert "longer than 1 seconds" in reply.notices[-1]


def test_stopping_while_consent_is_asked_for_sends_nothing() -> None:
    asked, answer = threading.Event(), threading.Event()

    def agree(outgoing: Outgoing) -> bool:
        asked.set()
        return answer.wait(WAIT_S)

    with chat_server() as server, small(Escalation(remote(server), consent=agree)) as ai:
        reply = ai.generate("hi", escalate=True)
        assert asked.wait(WAIT_S)
        reply.cancel()
        answer.set()
        reply.wait(WAIT_S)
        assert reply.finish_reason == "cancelled"
        assert server.paths == []


def test_closing_closes_the_tier() -> None:
    closed: list[str] = []
    one = LocalTier("one", lambda: contextlib.nullcontext(), lambda: closed.append("one"))  # type: ignore[arg-type,return-value]
    two = LocalTier("two", lambda: contextlib.nullcontext(), lambda: closed.append("two"))  # type: ignore[arg-type,return-value]
    with small(Escalation(one)) as ai:
        ai.escalation = Escalation(one, Router(max_entropy=1))
        assert closed == []
        ai.escalation = Escalation(two)
        assert closed == ["one"]
    assert closed == ["one", "two"]


def test_a_larger_model_that_is_closed_meanwhile() -> None:
    model = FakeModel(lambda text: "LARGE " * 50, token_s=0.02)
    with model.load() as assistant, small(Escalation(LocalTier("large", lambda: contextlib.nullcontext(assistant)))) as ai:
        reply = ai.generate("hi", escalate=True)
        next(iter(reply))
        assistant.close()
        text = reply.wait(WAIT_S)
        assert text.startswith("L")
        assert "broke off" in reply.notices[-1]
        gone = ai.generate("hi", escalate=True)
        assert gone.wait() == "small says hi"
        with pytest.raises(BackendError):
            assistant.generate("hi")
