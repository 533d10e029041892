"""Messages that enter the context window: whole turns, the same choice every time, and a prefix that lives long."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edge.errors import ContextFullError, UsageError
from edge.prompt.summary import Summary
from edge.prompt.window import fit, message_counter
from edge.types import Message

OVERHEAD = 7  # what a template writes besides messages
PER_MESSAGE = 4


def count(messages):
    """A tokenizer with a token a letter."""
    return OVERHEAD + sum(PER_MESSAGE + len(message.content) for message in messages)


def count_one(message):
    return PER_MESSAGE + len(message.content)


def talk(sizes, system=0):
    """A conversation that ends with a message to be answered: sizes of user, assistant, user, ... messages."""
    head = [Message("system", "s" * system)] if system else []
    roles = itertools.cycle(["user", "assistant"])
    return head + [Message(role, chr(97 + n % 26) * size) for n, (role, size) in enumerate(zip(roles, sizes, strict=False))]


def requests(messages):
    """The conversation as it was at each message that was to be answered."""
    return [messages[: n + 1] for n, message in enumerate(messages) if message.role == "user"]


def choose(messages, n_ctx=400, reserve=100, **kwargs):
    return fit(messages, **{"n_ctx": n_ctx, "reserve": reserve, "count": count, "count_one": count_one, **kwargs})


def test_everything_stays_while_it_fits():
    messages = talk([10, 10, 10], system=20)
    window = choose(messages)
    assert window.messages == messages
    assert (len(window.dropped), window.notice, window.n_tokens) == (0, None, count(messages))


def test_drops_whole_old_turns_and_says_so():
    messages = talk([50] * 7, system=20)
    window = choose(messages)
    assert window.messages[0] == messages[0], "the system prompt stays"
    assert window.messages[1:] == messages[1 + len(window.dropped) :]
    assert window.dropped.start == 1
    assert len(window.dropped) % 2 == 0
    assert window.messages[1].role == "user"
    assert window.n_tokens == count(window.messages) <= 300
    n_dropped_tokens = sum(map(count_one, messages[1 : 1 + len(window.dropped)]))
    assert f"oldest {len(window.dropped)} messages" in window.notice
    assert f"{n_dropped_tokens:,} tokens" in window.notice
    assert "400" in window.notice
    assert window.dropped == choose(messages[:-2]).dropped != choose(messages[:-4]).dropped, "it was full the turn before"


def test_tools_and_their_results_stay_with_their_turn():
    turn = [Message("user", "u" * 40), Message("assistant", "call"), Message("tool", "t" * 40), Message("assistant", "a" * 40)]
    window = choose([*turn, *turn, Message("user", "u" * 60)])
    assert len(window.dropped) in (4, 8)
    assert window.messages[0].role == "user"


sizes = st.lists(st.integers(1, 90), min_size=1, max_size=60).map(lambda s: s if len(s) % 2 else s[:-1])


@given(sizes, st.integers(0, 60), st.integers(0, 3))
def test_going_on_never_moves_the_boundary_back(message_sizes, system, extra):
    boundary = 0
    for messages in requests(talk(message_sizes, system)):
        window = choose(messages, count_one=lambda message: count_one(message) + extra)
        assert len(window.dropped) >= boundary
        boundary = len(window.dropped)
        assert window.n_tokens == count(window.messages) <= 300
        assert window.messages[-1] == messages[-1]


@given(sizes, st.integers(0, 60), st.data())
def test_the_choice_depends_on_nothing_but_the_conversation(message_sizes, system, data):
    messages = talk(message_sizes, system)
    expected = choose(messages)
    # Earlier calls, in whatever order, and a counter that remembers them, change nothing.
    counter = message_counter(count)
    for earlier in data.draw(st.permutations(requests(messages))):
        choose(earlier, count_one=counter)
    with_memory = choose(messages, count_one=counter)
    assert with_memory == choose(messages, count_one=message_counter(count))
    assert choose(messages) == expected


@given(sizes)
def test_a_branch_keeps_what_it_shares(message_sizes):
    messages = talk(message_sizes)
    assume(len(messages) > 2)
    other = [*messages[:-1], Message("user", "another question")]
    previous = choose(messages[:-2])
    assert len(choose(other).dropped) >= len(previous.dropped)


def test_the_prefix_changes_rarely_over_200_turns():
    n_ctx, reserve = 4096, 512
    messages = talk([20 + (n * 37) % 90 for n in range(399)], system=100)
    previous, n_dropped, n_changes, n_kept_tokens, n_tokens = [], 0, 0, 0, 0
    for request in requests(messages):
        window = choose(request, n_ctx=n_ctx, reserve=reserve)
        n_tokens += window.n_tokens
        if previous and window.messages[: len(previous)] != previous:
            n_changes += 1
            assert len(window.dropped) > n_dropped
        else:
            n_kept_tokens += count(previous)
            assert len(window.dropped) == n_dropped
        previous, n_dropped = window.messages, len(window.dropped)
    longest_turn = 2 * (110 + PER_MESSAGE)
    # After the window was emptied down to half, this many turns fit at least before it is full again.
    k = ((n_ctx - reserve) // 2 - longest_turn) // longest_turn
    assert k >= 6
    assert 1 <= n_changes <= 200 // k
    # What a KV cache saves: nearly all tokens of nearly all prompts were there before.
    assert n_kept_tokens / n_tokens > 0.85


def test_a_message_that_does_not_fit_alone_is_refused_with_numbers():
    with pytest.raises(ContextFullError) as caught:
        choose(talk([20, 20, 400], system=30))
    assert "404 tokens" in caught.value.message
    assert "has 400, of which 100 are kept for the reply" in caught.value.message
    assert "--context 1024" in caught.value.hint
    assert caught.value.needed == 1024


@pytest.mark.parametrize(
    ("trained", "hint"),
    [
        (0, "Shorten it, or load the model with a larger context (--context 1024)."),
        (1024, "Shorten it, or load the model with a larger context (--context 1024)."),
        (600, "Shorten it, or load the model with a larger context (--context 600)."),
        (512, "Shorten it, or send it in parts."),
    ],
)
@pytest.mark.parametrize("policy", ["drop", "refuse"])
def test_no_window_is_recommended_that_the_model_was_not_trained_for(trained, hint, policy):
    with pytest.raises(ContextFullError) as caught:
        choose(talk([20, 20, 400], system=30), n_ctx_train=trained, policy=policy)
    assert ("--context" in caught.value.hint) == ("--context" in hint)
    assert policy == "refuse" or caught.value.hint == hint


def test_a_system_prompt_that_does_not_fit_is_refused():
    with pytest.raises(ContextFullError, match="system prompt"):
        choose([Message("system", "s" * 500)])
    with pytest.raises(ContextFullError, match="for the system prompt"):
        choose(talk([20], system=500))


def test_refuse_refuses():
    assert choose(talk([50] * 3), policy="refuse").notice is None
    with pytest.raises(ContextFullError, match="holds 300"):
        choose(talk([50] * 7), policy="refuse")


@pytest.mark.parametrize(
    "arguments", [{"policy": "forget"}, {"messages": []}, {"reserve": 400}], ids=["policy", "messages", "reserve"]
)
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises(UsageError):
        choose(**{"messages": talk([10]), **arguments})


@given(sizes, st.sampled_from(["drop", "summarise"]))
def test_the_last_count_is_that_of_the_window(message_sizes, policy):
    counted = []

    def remembered(messages):
        counted.append(list(messages))
        return count(messages)

    messages = talk(message_sizes, system=20)
    window = choose(messages, count=remembered, policy=policy, summarise=Summariser())
    assert counted[-1] == window.messages


# -- summaries


class Summariser:
    def __init__(self, text="They talked."):
        self.text = text
        self.calls = []

    def __call__(self, messages):
        self.calls.append(list(messages))
        return self.text


def test_a_summary_takes_the_place_of_what_is_dropped():
    messages, summarise = talk([50] * 7, system=20), Summariser()
    window = choose(messages, policy="summarise", summarise=summarise)
    (given_messages,) = summarise.calls
    assert given_messages == messages[1 : 1 + len(window.dropped)]
    assert window.messages[0].role == "system"
    assert window.messages[0].content.startswith(messages[0].content)
    assert window.messages[0].content.endswith("They talked.")
    assert "replaced by a summary" in window.notice
    assert window.n_tokens == count(window.messages) <= 300
    again = choose(messages, policy="summarise", summarise=summarise, summary=window.summary)
    assert again == window
    assert len(summarise.calls) == 1, "a kept summary is not written again"


def test_a_summary_is_continued_not_started_over():
    messages, summarise = talk([30] * 41), Summariser()
    summary, boundaries = None, []
    for request in requests(messages):
        window = choose(request, policy="summarise", summarise=summarise, summary=summary)
        summary = window.summary or summary
        boundaries.append(len(window.dropped))
    moves = sorted(set(boundaries) - {0})
    assert len(moves) == len(summarise.calls) >= 2
    for call, start, end in zip(summarise.calls[1:], moves, moves[1:], strict=False):
        assert call[0].role == "system"
        assert "They talked." in call[0].content
        assert call[1:] == messages[start:end]


def test_the_length_of_a_summary_does_not_move_the_boundary():
    messages = talk([50] * 9)
    windows = [choose(messages, policy="summarise", summarise=Summariser(text)) for text in ("x", "many words " * 500)]
    assert windows[0].dropped == windows[1].dropped
    assert windows[1].n_tokens <= 300
    assert windows[1].summary.text.endswith("…"), "it was shortened, and says so"


def test_the_summary_of_other_messages_is_not_used():
    messages, summarise = talk([50] * 7), Summariser("right")
    foreign = Summary(2, "0" * 64, "wrong")
    window = choose(messages, policy="summarise", summarise=summarise, summary=foreign)
    assert "wrong" not in window.messages[0].content
    assert all("wrong" not in message.content for call in summarise.calls for message in call)


def test_without_a_summariser_old_turns_are_left_out():
    window = choose(talk([50] * 7), policy="summarise")
    assert "left out" in window.notice
    assert window.summary is None


# -- counting


def test_a_counter_counts_each_message_once():
    n_calls = 0

    def counted(messages):
        nonlocal n_calls
        n_calls += 1
        return count(messages)

    counter = message_counter(counted)
    messages = talk([40] * 101)
    for request in requests(messages):
        fit(request, n_ctx=400, reserve=100, count=counted, count_one=counter)
    # Per message once; per turn the window and what is always there, and while it is young the whole conversation; and two for
    # the counter itself.
    assert n_calls <= 101 + 2 * 51 + 12 + 2


def test_a_counter_forgets_the_oldest():
    calls = []

    def counted(messages):
        calls.append(messages[-1].content)
        return count(messages)

    counter = message_counter(counted, max_entries=2)
    for content in ("a", "b", "a", "c", "a", "b"):
        assert counter(Message("user", content)) >= count_one(Message("user", content))
    assert [call for call in calls if call != "Hello"] == ["a", "b", "c", "b"]


def test_a_count_that_promised_too_little_still_ends_below_the_window():
    window = choose(talk([50] * 9), count_one=lambda message: 30)
    assert window.n_tokens == count(window.messages) <= 300
    assert window.dropped
