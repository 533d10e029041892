"""The card: models side by side, as values, Markdown and JSON; page.py has the HTML."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edge.errors import ModelFileError
from edge.units import reason, size_text
from edge_convert.evaluate.metrics import Quality, Scores
from edge_convert.evaluate.tasks import report
from edge_convert.evaluate.tasks.suite import Usefulness

__all__ = [
    "AT_LEAST",
    "COLUMNS",
    "KINDS_TITLE",
    "KIND_COLUMNS",
    "N_QUALITY_COLUMNS",
    "USE_COLUMNS",
    "Card",
    "Failure",
    "Row",
    "Speed",
    "failures",
    "has_usefulness",
    "kind_texts",
    "markdown",
    "notes",
    "read_card",
    "row_texts",
    "to_json",
    "use_texts",
    "used_columns",
]


AT_LEAST = ("top1", "divergence", "facts", "kept", "instructions")
"""Measures of a gate that are better when larger."""


class Failure(msgspec.Struct, frozen=True):
    """A condition that a model does not meet.

    Attributes:
        measure: a key of MEASURES.
        value: what was measured.
        limit: what was allowed.
    """

    measure: str
    value: float
    limit: float

    def __str__(self) -> str:
        side = "below" if self.measure in AT_LEAST else "above"
        return f"{self.measure} is {self.value:.4g}, {abs(self.value - self.limit):.4g} {side} the limit of {self.limit:.10g}"


class Speed(msgspec.Struct, frozen=True, kw_only=True):
    """Speed of a model in one round, each in a fresh process, or the medians over the rounds.

    Attributes:
        load_s: from opening the file to the end of a first step over one token.
        prefill_tokens_per_s: of a prompt, into an empty KV.
        decode_tokens_per_s: one token at a time after that prompt.
        peak_bytes: resident memory of the process, its libraries included.
    """

    load_s: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    peak_bytes: int


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One model.

    Attributes:
        name: for people.
        format: "checkpoint", "gguf", "onnx" or "coreml".
        size_bytes: on disk, all files.
        tool: engine that computed it.
        is_reference: whether the others are compared with it.
        quality: against the reference.
        speed: None if it was not measured.
        splits_alike: whether its tokenizer gives the reference's tokens; None if it has none.
        is_part: whether it read the beginnings of the texts only, since edge's evaluator computed it.
        usefulness: its replies, judged; None if the tasks were not asked for, or nothing here runs the model.
        good_for: one sentence that follows from them.
        failures: conditions of the gate that it does not meet.
    """

    name: str
    format: str
    size_bytes: int
    tool: str
    is_reference: bool
    quality: Quality
    speed: Speed | None = None
    splits_alike: bool | None = None
    is_part: bool = False
    usefulness: Usefulness | None = None
    good_for: str = ""
    failures: tuple[Failure, ...] = ()


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """The quality card of some models.

    Attributes:
        version: of this layout.
        reference: name of the model that the others are compared with.
        n_prose: positions of prose that count.
        n_prompts: chat prompts.
        n_answer: tokens of each answer.
        n_rounds: rounds of the speed measurement; 0 without.
        n_prefill: tokens of prefill in a round.
        n_decode: tokens of decode in a round.
        machine: that speed was measured on.
        gate: the conditions, as given.
        title: heading of its pages.
        rows: the reference first.
    """

    version: int = 1
    reference: str
    n_prose: int
    n_prompts: int
    n_answer: int
    n_rounds: int
    n_prefill: int
    n_decode: int
    machine: str
    gate: str = ""
    title: str = "Quality of the converted models"
    rows: tuple[Row, ...]


COLUMNS = (
    "model",
    "size",
    "perplexity",
    "KL mean",
    "KL p99",
    "top-1",
    "same greedy",
    "load",
    "prefill",
    "decode",
    "peak memory",
)
"""Headings of `row_texts`."""

KINDS_TITLE = "By kind of text (KL mean / top-1), and the engine of each model"
KIND_COLUMNS = ("model", "prose", "chat", "computed by")
"""Headings of `kind_texts`."""

USE_COLUMNS = ("model", *report.COLUMNS)
"""Headings of `use_texts`."""

N_QUALITY_COLUMNS = 7
"""The first of them, up to the greedy tokens; the rest is speed."""


def used_columns(card: Card) -> list[int]:
    """Return the indices of COLUMNS that some row fills."""
    return [index for index in range(len(COLUMNS)) if any(row_texts(row)[index] for row in card.rows)]


def row_texts(row: Row) -> tuple[str, ...]:
    """Return a row as texts, one for each of COLUMNS."""
    quality, speed = row.quality, row.speed
    if row.is_reference:
        kl, p99, top1, same = "reference", "", "", ""
    else:
        kl, p99 = _kl(quality.all.kl_mean), _kl(quality.all.kl_p99)
        top1 = f"{100 * quality.all.top1:.1f}%"
        same = f"{quality.mean_divergence:.1f} of {quality.n_answer}" if quality.divergence else ""
    measured = ("", "", "", "")
    if speed is not None:
        measured = (
            f"{speed.load_s:.2f} s",
            f"{speed.prefill_tokens_per_s:.0f} tok/s",
            f"{speed.decode_tokens_per_s:.1f} tok/s",
            size_text(speed.peak_bytes),
        )
    perplexity = f"{quality.prose.perplexity:.2f}{' *' if row.is_part else ''}"
    return (row.name, size_text(row.size_bytes), perplexity, kl, p99, top1, same, *measured)


def kind_texts(row: Row) -> tuple[str, ...]:
    """Return a row as texts, one for each of KIND_COLUMNS."""
    prose, chat = ("", "") if row.is_reference else (_agreement(row.quality.prose), _agreement(row.quality.chat))
    return row.name, prose, chat, row.tool


def use_texts(row: Row) -> tuple[str, ...]:
    """Return the usefulness of a row as texts, one for each of USE_COLUMNS."""
    return row.name, *report.texts(row.usefulness)


def has_usefulness(card: Card) -> bool:
    """Return whether the tasks were asked of some model."""
    return any(row.usefulness is not None for row in card.rows)


def _agreement(scores: Scores | None) -> str:
    return f"{_kl(scores.kl_mean)} / {100 * scores.top1:.1f}%" if scores else ""


def _kl(value: float) -> str:
    return f"{value:.4f}" if value < 0.1 else f"{value:.2f}"


def notes(card: Card) -> list[str]:
    """Return what a reader must know to understand the numbers, a sentence or two each."""
    found = [
        f"Compared with {card.reference} over the same tokens: {card.n_prose} of prose (Jane Austen, Emma, chapter II) and the "
        f"greedy answers to {card.n_prompts} chat prompts, {card.n_answer} tokens each. Perplexity is that of the prose.",
        "KL is the Kullback-Leibler divergence from the reference's distribution in nats, mean and 99th percentile over all "
        "positions; top-1 is how often both prefer the same token; same greedy is how many tokens of an answer are the "
        "reference's before the first other one, mean over the prompts.",
    ]
    parts = [row for row in card.rows if row.is_part]
    if parts:
        quality = parts[0].quality
        n_answers = len(quality.divergence)
        answers = f" and {n_answers} of the answers" if n_answers > 1 else " and one answer" if n_answers else ""
        found.append(
            f"* Computed by edge's evaluator, which is slow, these read only {quality.prose.n_tokens} tokens of the "
            f"prose{answers}: {', '.join(row.name for row in parts)}. {card.reference}'s perplexity there is "
            f"{quality.prose.reference_perplexity:.2f}. Their speed was not measured: that of the evaluator says nothing."
        )
    if card.n_rounds:
        found.append(
            f"Speed: medians of {card.n_rounds} alternating rounds, each in a fresh process: prefill of {card.n_prefill} "
            f"tokens, decode of {card.n_decode}, on {card.machine}. Peak memory is that of the process with its libraries."
        )
    useful = [row.usefulness for row in card.rows if row.usefulness is not None]
    if useful:
        found += report.notes(useful[-1])
        if missing := [row.name for row in card.rows if row.usefulness is None]:
            found.append(f"No engine of edge runs these here, so they were asked nothing: {', '.join(missing)}.")
    odd = [row.name for row in card.rows if row.splits_alike is False]
    if odd:
        found.append(f"These tokenise the text differently from the reference: {', '.join(odd)}. Check their tokenizers.")
    if card.gate:
        failed = sum(bool(row.failures) for row in card.rows)
        found.append(f"Gate {card.gate}: {f'{failed} failed' if failed else 'passed by all'}.")
    return found


def failures(card: Card) -> list[str]:
    """Return the unmet conditions of the gate, a sentence each."""
    return [f"{row.name}: {failure}." for row in card.rows for failure in row.failures]


def markdown(card: Card) -> str:
    """Return the card as Markdown."""
    used = used_columns(card)
    lines = [f"# {card.title}", "", "| " + " | ".join(COLUMNS[index] for index in used) + " |"]
    lines.append("|---|" + "---:|" * (len(used) - 1))
    for row in card.rows:
        texts = row_texts(row)
        lines.append("| " + " | ".join(texts[index].replace("|", "\\|") for index in used) + " |")
    lines += ["", f"{KINDS_TITLE}:", "", "| " + " | ".join(KIND_COLUMNS) + " |", "|---|---:|---:|---|"]
    lines += ["| " + " | ".join(text.replace("|", "\\|") for text in kind_texts(row)) + " |" for row in card.rows]
    if has_usefulness(card):
        lines += ["", f"{report.TITLE}:", "", "| " + " | ".join(USE_COLUMNS) + " |", "|---|" + "---:|" * (len(USE_COLUMNS) - 1)]
        lines += ["| " + " | ".join(text.replace("|", "\\|") for text in use_texts(row)) + " |" for row in card.rows]
        lines += ["", *(f"**{row.name}**: {row.good_for}\n" for row in card.rows if row.good_for)]
    lines += ["", *(f"- {note}" for note in notes(card) + failures(card)), ""]
    return "\n".join(lines)


def to_json(card: Card) -> bytes:
    """Return the card as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(card), indent=2) + b"\n"


def read_card(path: Path) -> Card:
    """Read a card that `to_json` wrote.

    Raises:
        ModelFileError: it is missing or not a card.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Card)
    except (OSError, msgspec.MsgspecError) as error:
        raise ModelFileError(f"{path} is not a quality card: {reason(error)}.", "Make it: edge eval MODEL... --json") from error
