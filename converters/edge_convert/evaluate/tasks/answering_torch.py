"""Greedy replies of a checkpoint folder: transformers in float32, several prompts in a pass."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from edge.errors import ModelFileError
from edge.types import Message
from edge_convert.evaluate.logits import tokenise_with
from edge_convert.evaluate.passages import find_template
from edge_convert.evaluate.tasks.asks import AnswerOptions, Ask
from edge_convert.torch_device import compute_device
from edge_convert.torch_models import load_float32

__all__ = ["answer"]

_BATCH = 16


def answer(model: Path, asks: Sequence[Ask], options: AnswerOptions) -> Generator[tuple[int, str], None, None]:
    """See `answering.answer`. Prompts of about the same length share a pass."""
    if options.n_threads:
        torch.set_num_threads(options.n_threads)
    prompts = [_tokens(model, one) for one in asks]
    loaded: Any = load_float32(model, compute_device())
    ends = _ends(loaded)
    order = sorted(range(len(asks)), key=lambda number: (asks[number].max_tokens, len(prompts[number])))
    decode = transformers.AutoTokenizer.from_pretrained(model, local_files_only=True).decode
    while order:
        longest = asks[order[0]].max_tokens
        group = [number for number in order[: _BATCH if options.n_parallel > 1 else 1] if asks[number].max_tokens == longest]
        del order[: len(group)]
        for number, found in zip(group, _generate(loaded, [prompts[at] for at in group], longest, ends), strict=True):
            end = next((at for at, token in enumerate(found) if token in ends), None)
            yield number, decode(found[:end], skip_special_tokens=True)


def _tokens(folder: Path, one: Ask) -> list[int]:
    template = find_template(folder)
    messages = [Message(role, text) for role, text in one.messages]  # type: ignore[arg-type]
    text = template.render(messages).text if template else "\n".join(text for _, text in one.messages) + "\n"
    tokens = tokenise_with(folder, text)
    if not tokens:
        raise ModelFileError(f"{folder.name} has no tokenizer.", "Add its tokenizer.json, or leave the tasks out.")
    return tokens[1:] if len(tokens) > 1 and tokens[0] == tokens[1] and template else tokens


def _ends(model: Any) -> tuple[int, ...]:
    found = model.generation_config.eos_token_id
    found = model.config.eos_token_id if found is None else found
    return () if found is None else tuple(found) if isinstance(found, list | tuple) else (int(found),)


def _generate(model: Any, prompts: Sequence[Sequence[int]], n: int, ends: tuple[int, ...]) -> list[list[int]]:
    """Return the tokens behind each prompt; those behind the end of a reply are padding."""
    width = max(map(len, prompts))
    rows = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    with torch.inference_mode():
        found = model.generate(
            rows,
            attention_mask=mask,
            max_new_tokens=n,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=1.0,
            eos_token_id=list(ends) or None,
            pad_token_id=ends[0] if ends else 0,
        )
    rest: list[list[int]] = found[:, width:].tolist()
    return rest
