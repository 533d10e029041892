"""The teacher writes the training text of its student: answers to prompts, by sampling.

Text of the teacher's own is free of other people's rights, and of the kind that the student will be asked to write. It writes
128 answers at a time, which costs a CPU little more per step than 16, so transformers is faster here than llama.cpp one by one.

Answers are stored batch by batch, so that a stopped run continues with the next.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from jinja2 import TemplateError

from edge.errors import ModelFileError, UsageError
from edge_convert.smaller.corpus import Document
from edge_convert.smaller.models import open_model
from edge_convert.smaller.recipe import ANSWERS_AT_ONCE, Text
from edge_convert.tokenizer_files import load_tokenizer

__all__ = ["in_order", "write_answers"]

_MAX_PROMPT_SHARE = 0.6


def write_answers(
    folder: Path,
    teacher: Path,
    text: Text,
    prompts: Sequence[str],
    window: int,
    seed: int,
    on_progress: Callable[[str, float], None],
) -> None:
    """Let the teacher answer until the recipe's number of tokens is reached, or no prompts are left.

    Args:
        folder: for NAME-NUMBER.json of each batch; existing ones are not written again.
        teacher: checkpoint folder.
        text: how much, and how.
        prompts: each is asked once.
        window: longest conversation in tokens.
        seed: of the order and the sampling.
        on_progress: called with the number of tokens as text, and the share that is done.

    Raises:
        ModelFileError: the teacher has no chat template, or it fails.
        UsageError: no prompt fits.
    """
    wanted = text.tokens + text.held_out_tokens
    model: Any = None
    done, number = 0, 0
    for batch in _batches(teacher, text, prompts, window, seed):
        path = folder / f"{text.name}-{number:05}.json"
        number += 1
        if not path.is_file():
            model = model or _open(teacher)
            torch.manual_seed(seed * 100_003 + number)
            documents = _answer(model, batch, text)
            part = path.with_suffix(".part")
            part.write_bytes(msgspec.json.encode(documents))
            part.rename(path)
        # A conversation takes a whole window.
        done += window * len(batch)
        on_progress(f"{text.name}: {min(done, wanted):,} of {wanted:,} tokens", min(1.0, done / wanted))
        if done >= wanted:
            return
    if not number:
        raise UsageError(f"No prompt of {text.name} fits into a window of {window} tokens.", "Use a longer window.")


def in_order(prompts: Sequence[str], seed: int) -> list[str]:
    """Return prompts in the order in which they are answered, each once."""
    asked = list(dict.fromkeys(prompts))
    random.Random(seed).shuffle(asked)  # noqa: S311  # an order, no secret
    return asked


def _open(teacher: Path) -> Any:
    """Open the teacher, with a head that gets contiguous rows.

    transformers passes the last position of a prompt as a view with gaps, for which torch would copy the head, tens of MB, for
    each answer.
    """
    model = open_model(teacher)
    model.get_output_embeddings().register_forward_pre_hook(lambda _module, inputs: (inputs[0].contiguous(),))
    return model


def _batches(teacher: Path, text: Text, prompts: Sequence[str], window: int, seed: int) -> Iterator[list[list[int]]]:
    """Yield prompts as tokens, in batches."""
    tokenizer = load_tokenizer(teacher)
    if not tokenizer.chat_template:
        raise ModelFileError(
            f"{teacher.name} has no chat template, so it cannot be asked to write.", "Train on a text: --distill-text FILE"
        )
    asked = in_order(prompts, seed)
    longest = int(window * _MAX_PROMPT_SHARE)
    for start in range(0, len(asked), ANSWERS_AT_ONCE):
        messages = [[{"role": "user", "content": prompt}] for prompt in asked[start : start + ANSWERS_AT_ONCE]]
        try:
            rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except (TemplateError, ValueError) as error:
            raise ModelFileError(f"The chat template of {teacher.name} fails: {error}.", "Train on a text instead.") from error
        encoded = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        fitting = [ids for ids in encoded if len(ids) <= min(longest, window - 8)]
        if fitting:
            yield fitting


def _answer(model: Any, batch: Sequence[Sequence[int]], text: Text) -> list[Document]:
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends]) - {None}
    longest = max(map(len, batch))
    filler = min(ends) if ends else 0
    device = model.device
    tokens = torch.tensor([[filler] * (longest - len(ids)) + list(ids) for ids in batch], device=device)
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in batch], device=device)
    with torch.inference_mode():
        written = model.generate(
            tokens,
            attention_mask=mask,
            max_new_tokens=text.answer_tokens,
            do_sample=True,
            temperature=text.temperature,
            top_k=0,
            top_p=1.0,
            use_cache=True,
            pad_token_id=filler,
        )
    documents = []
    for ids, row in zip(batch, written[:, longest:].tolist(), strict=True):
        end = next((index + 1 for index, token in enumerate(row) if token in ends), len(row))
        documents.append(Document(tuple(ids) + tuple(row[:end]), len(ids), is_whole=True))
    return documents
