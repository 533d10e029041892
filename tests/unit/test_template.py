"""Chat templates against transformers' apply_chat_template: the same template, the same tokenizer, the same ids."""

from __future__ import annotations

import functools
import re
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from edge.backends.base import ModelInfo
from edge.errors import TemplateError, UsageError
from edge.template import CHATML, ChatTemplate, PrefixReport, check_prefix
from edge.types import Message

FOLDER = Path(__file__).parent.parent / "fixtures" / "templates"
FAMILIES = sorted(path.stem for path in FOLDER.glob("*.jinja"))
BOS, EOS = "<s>", "</s>"
NOW = datetime(2025, 3, 4, 5, 6, 7)

# Tokens that these models' tokenizers read in plain text too ("special": false in tokenizer.json), and the special ones.
ADDED = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
SPECIAL = """<|im_start|> <|im_end|> <|im_sep|> <|endoftext|> <start_of_turn> <end_of_turn> <|user|> <|assistant|> <|system|> <|end|>
    <|begin_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|> <|start_of_role|> <|end_of_role|> <|end_of_text|>
    <｜User｜> <｜Assistant｜> <｜end▁of▁sentence｜> <|START_OF_TURN_TOKEN|> <|END_OF_TURN_TOKEN|> <|USER_TOKEN|> <|CHATBOT_TOKEN|>
    <|SYSTEM_TOKEN|> <|START_RESPONSE|> <|END_RESPONSE|> <|start|> <|message|> <|channel|> <|return|> [INST] [/INST]
    [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [gMASK] <sop> <|observation|> <|startoftext|>""".split()
CORPUS = ["What is the capital of France? Paris.\n\nYou are a helpful assistant. user system assistant model", "  one two\n three"]

BENIGN = {
    "one": [Message("user", "Hi")],
    "system": [Message("system", "Be brief."), Message("user", "What is the capital of France?")],
    "turns": [
        Message("system", "Be brief."),
        Message("user", "  Hi there\n"),
        Message("assistant", " Hello! "),
        Message("user", "1 < 2, 'q' \"d\" {{ x }} {% y %} <b>é 😀</b> a > b [x]"),
        Message("assistant", "Yes.\n\n- one\n- two"),
        Message("user", "ok"),
    ],
    "thinking": [
        Message("user", "Hi"),
        Message("assistant", "<think>\nA greeting.\n</think>\n\nHello!"),
        Message("user", "Bye"),
        Message("assistant", "<think>\nEnd.\n</think>\n\nBye!"),
    ],
}


class Tokenizer:
    """A small byte-level BPE with the special tokens of all families, behind both transformers and `tokenize`."""

    def __init__(self):
        from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
        from tokenizers import Tokenizer as Fast

        fast = Fast(models.BPE())
        fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        fast.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        fast.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
        fast.add_special_tokens([BOS, EOS, *SPECIAL])
        fast.add_tokens([AddedToken(text, normalized=False) for text in ADDED])
        self.fast = fast
        self.plain = Fast.from_str(fast.to_str())
        self.plain.encode_special_tokens = True
        self.special_ids = {fast.token_to_id(text) for text in [BOS, EOS, *SPECIAL]}
        self.marker_ids = self.special_ids | {fast.token_to_id(text) for text in ADDED}

    def __call__(self, text, *, add_special=False, parse_special=False):
        return (self.fast if parse_special else self.plain).encode(text, add_special_tokens=add_special).ids

    def apply_chat_template(self, source, messages, **kwargs):
        from transformers import PreTrainedTokenizerFast

        theirs = PreTrainedTokenizerFast(tokenizer_object=self.fast, bos_token=BOS, eos_token=EOS, chat_template=source)
        rows = [{"role": m.role, "content": m.content} | ({"name": m.name} if m.name else {}) for m in messages]
        text = theirs.apply_chat_template(rows, tokenize=False, **kwargs)
        ids = theirs.apply_chat_template(rows, tokenize=True, return_dict=False, **kwargs)
        return text, ids


@functools.cache
def tokenizer():
    return Tokenizer()


@functools.cache
def load(family):
    return ChatTemplate((FOLDER / f"{family}.jinja").read_text("utf-8"), bos_text=BOS, eos_text=EOS, now=lambda: NOW)


def model_info(chat_template, *, bos_text="", adds_bos=False):
    return ModelInfo("m", "llama", 0, 0, 0, 0, chat_template, bos_text, EOS, adds_bos, {})


@pytest.fixture(autouse=True)
def stopped_clock(monkeypatch):
    import transformers.utils.chat_template_utils as theirs

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return NOW

    monkeypatch.setattr(theirs, "datetime", Clock)


# -- the same as transformers


@pytest.mark.parametrize("with_prompt", [True, False])
@pytest.mark.parametrize("case", BENIGN)
@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_those_of_transformers(family, case, with_prompt):
    template, messages = load(family), BENIGN[case]
    prompt = template.render(messages, add_generation_prompt=with_prompt)
    # Where the template refuses the messages, transformers gets them as we fitted them; test_fits_... looks at the fitting.
    fits = not prompt.notices
    given_messages = messages if fits else prompt.messages
    text, ids = tokenizer().apply_chat_template(template.source, given_messages, add_generation_prompt=with_prompt)
    assert prompt.text == text
    assert template.encode(prompt, tokenizer()) == ids
    assert prompt.segments, "the contents of these messages can be told from the template"
