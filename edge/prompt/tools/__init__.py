"""How models write tool calls: one small file a family.

base.py      parts of a reply, and the parser that all families share
scan.py      ends of JSON and of quoted text
hermes.py    Hermes, Qwen 2.5 and 3, SmolLM3, Granite 4: JSON in tags; Qwen3-Coder and Qwen 3.5: XML in the same tags
llama3.py    Llama 3.1 to 3.3: bare JSON
mistral.py   Mistral: an array, or a name and its arguments
lfm2.py      LFM2: calls as Python writes them
gemma.py     FunctionGemma and Gemma 4: a notation of their own
phi4.py      Phi-4-mini; granite3.py, Granite 3: an array behind a word
coerce.py    untyped values by their schema
choose.py    the family of a template, by the template's own text
grammar.py   the grammar of a call, behind the text that opens it; notation.py, of values that are not JSON
forced.py    the grammar of a reply that has to call a tool, and of one that has begun to
fallback.py  tools for models whose template knows none
"""

from __future__ import annotations
