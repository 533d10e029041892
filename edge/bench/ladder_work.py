"""The three workloads of `edge ladder`: their texts, and how much of them there is time for."""

from __future__ import annotations

from edge.bench.ladder_values import Work

__all__ = ["LABELS", "QUESTIONS", "WORKS", "choose_work", "document", "items", "manual", "session_of"]

QUESTIONS = (
    "What should I check before I switch the device on?",
    "The lamp blinks red. What does it mean?",
    "And when it stays red after a minute?",
    "How do I clean the filter?",
    "How often?",
    "Give me the whole procedure as a short list.",
    "The pump is loud. Is that normal?",
    "Which parts may I open myself?",
    "What does code 26 on the display mean?",
    "And code 39?",
    "The battery is warm. What now?",
    "Sum up what I have to do today.",
)
"""Messages of the chat; the program is restarted between some of them."""

ABOUT_DOCUMENT = (
    "What does the document say about the valve?",
    "Quote the section about the sensor.",
    "After how many minutes is the tank opened?",
    "Which section mentions the battery?",
)
LABELS = ("praise", "complaint", "question")
_ITEMS = (
    "The water tastes better than ever, thank you.",
    "The lamp has been red since Monday and nobody answers.",
    "Can I use the filter of last year's model?",
    "Two hoses were missing from the box.",
    "Setting it up took five minutes. Lovely.",
    "Where do I find the serial number?",
    "It leaks, and the replacement leaks, too.",
    "Does it need to be switched off over night?",
    "The best device that I have bought this year.",
    "The cover broke on the second day.",
    "How long is the warranty?",
    "Quiet, small and reliable.",
)
_TASK = (
    "Sort messages of customers of a water purifier. Answer with one word: praise if the customer is content, complaint if "
    "something is wrong, question if the customer wants to know something. A message that thanks for help is praise. A message "
    "that asks when something will be repaired is a complaint. If it is both, the first sentence decides.\nMessage: "
)

WORKS = (
    Work(name="full", n_turns=12, n_sessions=3, n_words=760, n_reply=32, n_questions=4, n_items=12, n_logits=256),
    Work(name="half", n_turns=12, n_sessions=3, n_words=380, n_reply=24, n_questions=4, n_items=8, n_logits=128),
    Work(name="quarter", n_turns=6, n_sessions=3, n_words=190, n_reply=16, n_questions=2, n_items=6, n_logits=64),
    Work(name="least", n_turns=4, n_sessions=2, n_words=60, n_reply=8, n_questions=2, n_items=3, n_logits=32),
)
"""The largest first. Only the first one is the workload that docs/ladder.md has figures of."""

_TOKENS_PER_WORD = 1.35
_TURN_TOKENS = 24  # a question and what the template adds
_TASK_TOKENS = 110
_WHOLE_COST = 4.5  # of all rungs, in runs of the first one; measured with the full workload
_N_STEPS = 12


def choose_work(budget_s: float, prefill_tokens_per_s: float, decode_tokens_per_s: float, ready_s: float) -> Work:
    """Return the largest extent that all rungs can be measured with in a time.

    Args:
        budget_s: time for everything.
        prefill_tokens_per_s, decode_tokens_per_s: speeds of the first rung.
        ready_s: time to start the program and load the model.
    """
    for work in WORKS:
        prompt = work.n_words * _TOKENS_PER_WORD
        grown = prompt + (work.n_turns / 2) * (_TURN_TOKENS + work.n_reply)
        n_prefill = (
            work.n_turns * grown + work.n_questions * (prompt + _TURN_TOKENS) + work.n_items * len(LABELS) * _TASK_TOKENS
        )
        n_decode = (work.n_turns + work.n_questions) * work.n_reply
        first = n_prefill / prefill_tokens_per_s + n_decode / decode_tokens_per_s
        if first * _WHOLE_COST + _N_STEPS * (work.n_sessions * ready_s + work.n_logits / decode_tokens_per_s / 4) <= budget_s:
            return work
    return WORKS[-1]


def session_of(number: int, n: int, n_sessions: int) -> int:
    """Return in which run of the program message `number` of `n` is sent."""
    return number * n_sessions // n


def manual(n_words: int = 760) -> str:
    """Return a system prompt, the same in every run: about 1,000 tokens of 760 words."""
    return "\n".join(["You are the assistant of a water purifier. Answer from its manual.", *_sections(n_words - 12, 7, 3)])


def document(n_words: int = 760) -> str:
    """Return a document to ask about, another one than the manual."""
    return "\n".join(["Service notes.", *_sections(n_words - 2, 3, 7)])


def items(n: int) -> list[str]:
    """Return the prompts to score, of which all but the last words are the same."""
    return [_TASK + text for text in _ITEMS[:n]]


def _sections(n_words: int, step: int, offset: int) -> list[str]:
    parts = ("filter", "lamp", "pump", "valve", "tank", "hose", "switch", "cover", "sensor", "battery")
    acts = ("check", "clean", "close", "open", "replace", "turn", "press", "wait for", "empty", "lift")
    lines: list[str] = []
    n_done = number = 0
    while n_done < n_words:
        number += 1
        first, second = parts[number % 10], parts[(number * step + offset) % 10]
        lines.append(
            f"Section {number}. If the {first} is warm, {acts[number % 10]} the {second} and {acts[(number * 3 + 1) % 10]} "
            f"the {first} after {number % 9 + 1} minutes; code {number * 13 % 97} on the display means that it is done."
        )
        n_done += len(lines[-1].split())
    return lines
