"""The texts of the evaluation as tokens: windows of prose, and chat prompts with the reference's own answers.

Every model of a card reads the same tokens. The place where its greedy answer would leave the reference's shows without
decoding: as long as both choose the same tokens they have read the same text, so it is the first position at which the model
prefers another token.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import msgspec

from edge.errors import ModelFileError, UsageError
from edge.prompt.template import ChatTemplate
from edge.types import Message
from edge_convert.evaluate.logits import CONTEXT, LogitModel, chat_template, greedy, special_texts

if TYPE_CHECKING:
    from edge.backends.base import ModelInfo

__all__ = ["TextOptions", "Window", "beginnings", "find_template", "make_windows", "read_texts"]


class TextOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Amount of text that is read.

    Attributes:
        n_prose: tokens of the novel, over all windows.
        window: tokens of a window; each is read into an empty KV.
        n_prompts: chat prompts.
        n_answer: tokens of the reference's answer to each.
        n_slow: tokens, in all, for models that edge's evaluator computes.
    """

    n_prose: int = 1024
    window: int = 256
    n_prompts: int = 8
    n_answer: int = 32
    n_slow: int = 192


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens that are read in one go.

    Attributes:
        kind: "prose" or "chat".
        tokens: at most CONTEXT.
        first: the first position that counts, as an index into tokens; tokens[first + 1] is predicted there.
    """

    kind: str
    tokens: tuple[int, ...]
    first: int


def read_texts() -> tuple[str, list[str]]:
    """Read the novel's chapter and the chat prompts that ship with this package."""
    folder = files("edge_convert.evaluate") / "texts"
    prompts: list[str] = json.loads((folder / "chat.json").read_text(encoding="utf-8"))
    return (folder / "novel.txt").read_text(encoding="utf-8"), prompts


def make_windows(model: LogitModel, path: Path, options: TextOptions) -> list[Window]:
    """Tokenise the texts as the reference does, and let it answer the prompts by its chat template.

    Raises:
        UsageError: a window is too short or longer than CONTEXT.
        ModelFileError: the reference has no tokenizer.
    """
    if not 8 <= options.window <= CONTEXT or options.n_answer + 8 > CONTEXT:
        raise UsageError(f"A window has 8 to {CONTEXT} tokens.", "Use fewer.")
    novel, prompts = read_texts()
    tokens = model.tokenise(novel)
    if not tokens:
        raise ModelFileError(f"{path.name} has no tokenizer.", "Give another reference: --against")
    end = min(options.n_prose, len(tokens))
    found = [
        Window(kind="prose", tokens=tuple(tokens[start : min(end, start + options.window)]), first=0)
        for start in range(0, end, options.window)
        if min(end, start + options.window) - start >= 8
    ]
    template = find_template(path)
    for prompt in prompts[: options.n_prompts]:
        text = template.render([Message("user", prompt)]).text if template else prompt
        asked = model.tokenise(text) or []
        if len(asked) > 1 and asked[0] == asked[1] and template:  # both the template and the tokenizer begin a text
            del asked[0]
        asked = asked[: CONTEXT - options.n_answer]
        answer = greedy(model, asked, options.n_answer)
        found.append(Window(kind="chat", tokens=tuple(asked + answer), first=len(asked) - 1))
    return found


def beginnings(windows: Sequence[Window], n_tokens: int) -> dict[int, Window]:
    """Return the windows of a slow model: half of its tokens prose, then whole answers, as many as fit, at least one.

    Returns:
        Windows, or their beginnings, by their number.
    """
    first = windows[0]
    found = {0: msgspec.structs.replace(first, tokens=first.tokens[: max(first.first + 2, n_tokens // 2)])}
    left = n_tokens - len(found[0].tokens)
    for number, window in enumerate(windows):
        if window.kind == "chat" and (len(found) == 1 or len(window.tokens) <= left):
            found[number] = window
            left -= len(window.tokens)
    return found


class _Model(NamedTuple):
    """The part of a ModelInfo that its chat template needs."""

    chat_template: str
    bos_text: str
    eos_text: str
    adds_bos: bool = False


def find_template(path: Path, specials: tuple[str, str] | None = None) -> ChatTemplate | None:
    """Return a model's chat template as edge runs it, or ChatML where it fails; None where the model has none.

    Args:
        path: of the model.
        specials: texts of its beginning and end tokens; None reads them.
    """
    source = chat_template(path)
    if source is None:
        return None
    bos, eos = specials or special_texts(path)
    model = _Model(source, bos, eos, bool(bos))
    # Templates with a date must not change daily.
    return ChatTemplate.from_model(cast("ModelInfo", model), now=lambda: datetime(2025, 1, 1))
