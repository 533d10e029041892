"""A second model that drafts: replies stay what they are without it, it keeps in step, and it stops where it does not pay."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from edge.assistant import Assistant
from edge.backends.base import Capabilities
from edge.backends.fake import FakeBackend
from edge.engine.draft_model import DraftModel, Guess, check_draft
from edge.engine.drafting import Lookup, Planner
from edge.engine.generation import Finished, Generation
from edge.engine.governor import Limits
from edge.engine.scheduler import Scheduler
from edge.errors import BackendError, UnsupportedError, UsageError
from edge.kv.cache import KVCache
from edge.types import Sampling
from tests.unit.bench.fakes import Clock
from tests.unit.engine.test_decoding import GREEDY, QUOTE, Watched, check_cache
from tests.unit.engine.test_scheduler import Listener, ask

PLAIN = "Nothing of this sentence was said before, by anybody; so it has to be guessed."  # the message has it in capitals


def say(message: str) -> str:
    """What the large model says: what was said, but never in letters that were there before."""
    return message.swapcase()


def nearly(message: str) -> str:
    """What a draft model says that is wrong now and then."""
    return "".join("?" if number % 7 == 6 else letter for number, letter in enumerate(say(message)))


class Draft(FakeBackend):
    """A draft model. Notes how many tokens it computed."""

    def __init__(self, script: Callable[[str], str] = nearly, **options: Any) -> None:
        super().__init__(script=script, **options)
        self.n_prefilled = self.n_decoded = 0
        self.is_broken = False

    def prefill(self, seq_id: int, tokens: Sequence[int], **options: Any) -> int:
        if self.is_broken:
            raise BackendError("The accelerator is gone.")
        self.n_prefilled += len(tokens)
        return super().prefill(seq_id, tokens, **options)

    def decode(self, steps: Any, *drafts: Any) -> None:
        self.n_decoded += len(steps)
        super().decode(steps, *drafts)


class Eager(DraftModel):
    """Always drafts as much as it may, so that what does not come true is tried, too."""

    def __init__(self, backend: Draft, n_draft: int = 16) -> None:
        super().__init__(backend, backend.info.n_vocab)
        self.draft, self._n_draft = backend, n_draft

    def guess(self, seq_id: int, tokens: Sequence[int], n_most: int, n_other: int, *_: Any) -> Guess | None:
        """As if any prefill paid, and a long draft took no longer than none."""
        return super().guess(seq_id, tokens, min(n_most, self._n_draft), n_other, 1e9, lambda n_tokens: 1.0)

    @property
    def _has_paid(self) -> bool:
        return True

    def _goes_on(self, *_: Any) -> bool:
        return True

    def _decode_ahead(self, *arguments: Any, is_trial: bool) -> list[tuple[int, float]]:
        self._n_rounds = 0
        return super()._decode_ahead(*arguments, is_trial=False)


class NoLookup(Planner):
    """Finds nothing worth a draft in a reply's own text."""

    def length(self, n_match: int, n_other: int, n_most: int) -> int:
        return 0


def run(
    draft: DraftModel | None, asked: Sequence[tuple[str, Sampling]], planner: Planner | None = None, **options: Any
) -> tuple[list[Finished], list[str], FakeBackend]:
    """Ask all at once; return how each ended, its text, and the large model."""
    backend = Watched(**options)
    backend._script = say
    cache = KVCache(backend)
    scheduler = Scheduler(backend, cache, planner=planner or NoLookup(), draft=draft)
    listeners = [Listener() for _ in asked]
    for (text, sampling), listener in zip(asked, listeners, strict=True):
        scheduler.submit(Generation(ask(backend, text), sampling, listener.events.put))
    ends = [listener.until(Finished) for listener in listeners]
    scheduler.call(lambda _: check_cache(cache, backend))
    if draft is not None:
        scheduler.call(lambda _: check_step(draft))
    scheduler.close()
    return ends, [listener.text for listener in listeners], backend


def check_step(draft: DraftModel) -> None:
    """What the draft model holds is what it thinks it holds."""
    backend = draft._backend
    assert isinstance(backend, FakeBackend)
    for seq_id, held in draft._held.items():
        assert [cell.token for cell in backend._sequences[seq_id]] == held


@pytest.mark.parametrize(
    "script", [say, nearly, lambda message: "All of this is wrong, from the first letter to the last one."]
)
def test_a_reply_is_the_same_whatever_is_guessed(script: Callable[[str], str]) -> None:
    (plain,), (text,), without = run(None, [(PLAIN, GREEDY)])
    draft = Eager(Draft(script))
    (end,), (same_text,), drafting = run(draft, [(PLAIN, GREEDY)])
    assert same_text == text == say(PLAIN)
    assert (end.tokens, end.reason) == (plain.tokens, plain.reason)
    assert end.usage.n_drafted == draft.n_guessed > 0
    assert end.usage.n_accepted == draft.n_accepted
    n_saved = without.n_passes - drafting.n_passes  # type: ignore[attr-defined]
    assert n_saved == end.usage.n_accepted or script is say  # the end of the reply is not guessed
    if script is say:
        assert drafting.n_passes < without.n_passes / 8  # type: ignore[attr-defined]
    if script is nearly:
        assert drafting.n_passes < without.n_passes / 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("n_draft", [1, 2, 5, 16])
@pytest.mark.parametrize("max_tokens", [1, 2, 3, 7, 40, None])
def test_the_limit_of_tokens_holds_within_a_draft(n_draft: int, max_tokens: int | None) -> None:
    sampling = Sampling(temperature=0, max_tokens=max_tokens)
    (plain,), (text,), _ = run(None, [(PLAIN, sampling)])
    (end,), (same_text,), _ = run(Eager(Draft(), n_draft), [(PLAIN, sampling)])
    assert (end.tokens, end.reason, same_text) == (plain.tokens, plain.reason, text)


@pytest.mark.parametrize("stop", ["THIS", "SENTENCE WAS", ",", "NOTHING OF T"])
def test_a_stop_text_ends_a_reply_within_a_draft(stop: str) -> None:
    sampling = Sampling(temperature=0, stop=(stop,))
    (plain,), (text,), _ = run(None, [(PLAIN, sampling)])
    (end,), (same_text,), _ = run(Eager(Draft()), [(PLAIN, sampling)])
    assert same_text == text
    assert (end.reason, end.stopped_by) == (plain.reason, plain.stopped_by)


def test_replies_are_the_same_at_any_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sampler draws once a token with a draft as without, so the very same reply shows that no distribution changed."""
    rng, seeds = random.Random(4), [0]
    monkeypatch.setattr("edge.backends.sampling.seed_of", lambda _: seeds[0])
    n_accepted = 0
    for _ in range(30):
        sampling = Sampling(
            temperature=rng.choice([0.7, 30.0, 60.0]),
            top_p=rng.choice([1.0, 0.95]),
            repeat_penalty=rng.choice([1.0, 1.2]),
            max_tokens=60,
        )
        seeds[0] = rng.randrange(2**31)
        (plain,), (text,), _ = run(None, [(PLAIN, sampling)])
        (end,), (same_text,), _ = run(Eager(Draft(), rng.choice([1, 4, 16])), [(PLAIN, sampling)])
        assert (end.tokens, end.reason, same_text) == (plain.tokens, plain.reason, text)
        n_accepted += end.usage.n_accepted
    assert n_accepted > 100


def test_it_keeps_in_step_by_rewinding() -> None:
    draft = Draft()
    (end,), _, _ = run(Eager(draft, 8), [(PLAIN, GREEDY)])
    n_all = end.usage.n_prompt + end.usage.n_generated
    assert draft.n_prefilled < n_all + end.usage.n_drafted, "nothing is prefilled twice"
    n_before = draft.n_prefilled
    assert n_before >= end.usage.n_prompt


def test_the_next_turn_of_a_sequence_prefills_only_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    # Where what was said before promises more, which depends on measured times, the draft model is not asked.
    monkeypatch.setattr(Lookup, "draft", lambda self, n_most: ([], 0))
    draft = Draft(say)
    with Assistant(Watched(n_ctx=8192), speculates=True, draft=draft) as assistant:
        conversation = assistant.conversation(system="Be brief, and say nothing that is not asked for. " * 10)
        assistant._scheduler._decoder._model = Eager(draft, 8)
        conversation.send(PLAIN, temperature=0).wait()
        n_first = draft.n_prefilled
        assert n_first > 480
        conversation.send("and more of it", temperature=0).wait()
        assert 0 < draft.n_prefilled - n_first < 250


def test_several_replies_at_once_and_preempted_ones() -> None:
    asked = [(PLAIN, GREEDY), (PLAIN.upper(), GREEDY), (QUOTE, GREEDY), ("a", Sampling(temperature=0, max_tokens=1))]
    plain, texts, _ = run(None, asked)
    ends, same_texts, _ = run(Eager(Draft()), asked)
    assert same_texts == texts
    assert [(end.tokens, end.reason) for end in ends] == [(end.tokens, end.reason) for end in plain]
    n_ctx = 2 * len(ask(FakeBackend(), PLAIN)) + 60
    _, said, _ = run(Eager(Draft(n_ctx=n_ctx, n_seq=3)), [(PLAIN, GREEDY)] * 3, n_ctx=n_ctx, n_seq=3)
    assert said == [say(PLAIN)] * 3


@pytest.mark.parametrize("n_room", range(20, 100, 7))
def test_a_full_cache_of_the_draft_model_ends_neither_it_nor_a_reply(n_room: int, caplog: pytest.LogCaptureFixture) -> None:
    asked = [(PLAIN, GREEDY), (PLAIN[::-1], GREEDY), (PLAIN.upper(), GREEDY)]
    draft = Draft(n_ctx=len(ask(FakeBackend(), PLAIN)) + len(PLAIN) + n_room)
    ends, texts, _ = run(Eager(draft), asked)
    assert texts == [say(text) for text, _ in asked]
    assert sum(end.usage.n_accepted for end in ends) > 10
    assert caplog.records == []


def test_what_repeats_is_looked_up_and_the_rest_guessed() -> None:
    draft = Eager(Draft(lambda message: "wrong " * 100))
    text = "ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT. one two three four five six seven eight. " * 2
    (end,), (said,), _ = run(draft, [(text, GREEDY)], planner=Planner(), delay_s=0.005)
    assert said == say(text)
    assert end.usage.n_accepted > 60 > 10 * draft.n_accepted, "from the text itself"


@pytest.mark.parametrize("sampling", [Sampling(temperature=0, seed=1)])
def test_nothing_is_guessed_for_a_reply_that_is_to_be_repeated(sampling: Sampling) -> None:
    draft = Draft()
    (end,), _, _ = run(Eager(draft), [(PLAIN, sampling)])
    assert end.usage.n_drafted == 0 == draft.n_prefilled


def test_a_draft_model_that_fails_ends_no_reply(caplog: pytest.LogCaptureFixture) -> None:
    draft = Draft()
    draft.is_broken = True
    _, texts, _ = run(Eager(draft), [(PLAIN, GREEDY), (QUOTE, GREEDY)])
    assert texts == [say(PLAIN), say(QUOTE)]
    assert [record.message for record in caplog.records] == [
        "The draft model failed and is not used any more: The accelerator is gone."
    ]


def test_it_is_closed_and_throttled_with_the_large_model() -> None:
    backend, draft = Watched(), Draft()
    scheduler = Scheduler(backend, planner=Planner(), draft=DraftModel(draft, draft.info.n_vocab))
    scheduler.throttle(Limits(2, 3, 0.0, backend.n_ctx, single_reply=False))
    scheduler.call(lambda _: None)
    assert draft.threads == backend.threads == (2, 3)
    scheduler.close()
    with pytest.raises(BackendError):
        draft.length(0)


# -- how much is guessed, with times that only the test moves


class Slow(Draft):
    """Moves a clock: a pass and each token of a prefill take so many milliseconds."""

    def __init__(self, clock: Clock, pass_ms: float, prefill_ms: float = 0.1, script: Callable[[str], str] = say) -> None:
        super().__init__(script)
        self.clock, self.pass_ms, self.prefill_ms = clock, pass_ms, prefill_ms

    def prefill(self, seq_id: int, tokens: Sequence[int], **options: Any) -> int:
        self.clock.now += (self.pass_ms if len(tokens) == 1 else len(tokens) * self.prefill_ms) / 1000
        return super().prefill(seq_id, tokens, **options)

    def decode(self, steps: Any, *drafts: Any) -> None:
        self.clock.now += self.pass_ms / 1000
        super().decode(steps, *drafts)


def large_ms(n_tokens: int) -> float:
    """Return the time of a pass of the large model: 10 ms, and 1 ms for each further token."""
    return 9.0 + n_tokens


def follow(model: DraftModel, truth: str, *, decoded_ms: float = 1e9, n_rounds: int = 30, n_most: int = 15) -> list[int]:
    """Play a reply in which every guess is compared with the truth; return the length of each guess."""
    backend = model._backend
    assert isinstance(backend, FakeBackend)
    tokens, reply = ask(backend, PLAIN), backend.tokenizer.tokenize(truth)
    lengths = []
    for _ in range(n_rounds):
        n_said = len(tokens) - len(ask(backend, PLAIN))
        if n_said + n_most + 2 > len(reply):
            break
        tokens.append(reply[n_said])
        guess = model.guess(0, tokens, n_most, 0, decoded_ms, large_ms)
        lengths.append(len(guess.tokens) if guess is not None else 0)
        if guess is not None:
            rest = reply[n_said + 1 :]
            n_accepted = next((n for n, token in enumerate(guess.tokens) if token != rest[n]), len(guess.tokens))
            model.note(guess, n_accepted)
            tokens += rest[:n_accepted]
    return lengths


def model_of(clock: Clock, draft: Slow) -> DraftModel:
    return DraftModel(draft, draft.info.n_vocab, clock)


def test_a_quick_model_that_is_right_guesses_as_much_as_it_may() -> None:
    clock = Clock()
    lengths = follow(model_of(clock, Slow(clock, pass_ms=0.5)), say(PLAIN))
    assert max(lengths) >= 12
    assert sum(lengths) + len(lengths) > 50


def test_the_first_guesses_measure_several_lengths_and_a_plain_pass_stays_measured() -> None:
    clock = Clock()
    lengths = follow(model_of(clock, Slow(clock, pass_ms=0.5)), "abc" * 300, n_rounds=48)
    guessed = [length for length in lengths if length]
    assert guessed[:6] == [2, 4, 8, 2, 4, 8]
    model = model_of(clock, Slow(clock, pass_ms=0.5))
    assert [n for n in range(1, 49) if follow(model, say(PLAIN), n_rounds=1)[0] == 0 and n > 8][:3] == [12, 24, 36]


def test_a_model_that_is_as_slow_as_the_large_one_is_given_up() -> None:
    clock = Clock()
    lengths = follow(model_of(clock, Slow(clock, pass_ms=10)), "ab" * 500, n_rounds=150)
    assert sum(1 for length in lengths if length) <= 16, "it was measured"
    assert sum(lengths[30:]) == 0


def test_a_model_that_is_wrong_is_given_up_and_tried_now_and_then() -> None:
    clock = Clock()
    model = model_of(clock, Slow(clock, pass_ms=2, script=lambda message: "#" * 3000))
    lengths = follow(model, "abcdefgh" * 300, n_rounds=900)
    assert 0 < sum(1 for length in lengths[:100] if length) <= 16
    assert 0 < sum(1 for length in lengths[300:] if length) <= 4
    assert max(lengths[300:]) <= 8


def test_a_long_prompt_is_prefilled_once_the_reply_has_taken_as_long() -> None:
    clock = Clock()
    draft = Slow(clock, pass_ms=0.5, prefill_ms=1.0)
    model = model_of(clock, draft)
    tokens = draft.tokenizer.tokenize("w" * 1000)
    assert model.guess(0, tokens, 8, 0, 0.0, large_ms) is None
    n_measured = draft.n_prefilled
    assert 0 < n_measured <= 32, "the first few, to learn what it costs"
    for decoded_ms in (0.0, 500.0, 900.0):
        assert model.guess(0, tokens, 8, 0, decoded_ms, large_ms) is None
        assert draft.n_prefilled == n_measured
    guesses = [model.guess(0, tokens, 8, 0, 1000.0, large_ms) for _ in range(9)]
    assert guesses[-1] is not None
    assert guesses[:-1] == [None] * 8
    assert draft.n_prefilled == 1000


def test_guesses_are_learnt_by_how_sure_they_were() -> None:
    model = model_of(Clock(), Slow(Clock(), 1.0))
    before = model._share(0.97), model._share(0.4)
    for _ in range(100):
        model.note(Guess((1, 2), (0.97, 0.4), 1.0, 0, 10.0, 12.0), 1)
    assert model._share(0.97) > before[0]
    assert model._share(0.4) < before[1] / 2


# -- which models can draft


class OtherTokenizer(type(FakeBackend().tokenizer)):  # type: ignore[misc]
    """Means something else by a token."""

    def _look_up(self, token: int) -> Any:
        found = super()._look_up(token)
        return found._replace(special=b"!") if token == 65 else found


def test_a_model_with_another_vocabulary_is_refused() -> None:
    with FakeBackend() as backend, FakeBackend() as draft:
        check_draft(backend, draft)
        draft.tokenizer = OtherTokenizer()
        with pytest.raises(UsageError, match=r"cannot draft for Fake: token 65 means something else.*same family"):
            check_draft(backend, draft)


def test_a_vocabulary_may_be_padded_but_not_be_another() -> None:
    with FakeBackend() as backend, FakeBackend() as draft:
        vocabulary = draft.tokenizer.vocabulary()
        draft.tokenizer.vocabulary = lambda: [*vocabulary, *[b"<pad>"] * 100]  # type: ignore[method-assign]
        check_draft(backend, draft)
        draft.tokenizer.vocabulary = lambda: [*vocabulary, *[b"x"] * 1000]  # type: ignore[method-assign]
        with pytest.raises(UsageError, match="1,259 tokens in its vocabulary, the other 259"):
            check_draft(backend, draft)


def test_a_model_that_cannot_be_rewound_is_refused() -> None:
    with FakeBackend() as backend, FakeBackend() as draft:
        draft.capabilities = Capabilities(rewind=False, export_kv=False, checkpoints=True, n_seq=4, shared_cells=True)
        with pytest.raises(UnsupportedError, match="taken back"):
            check_draft(backend, draft)
