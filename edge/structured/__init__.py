"""Structured output: the constraint of a reply, enforced token by token with llguidance.

compiler.py    constraints compiled once for a vocabulary
grammar.py     a constraint as llguidance's grammar, and its errors in plain words
rewrite.py     keywords that llguidance does not know, by those that it does; one_of.py, oneOf; walk.py, schemas in a schema
matcher.py     what the engine asks of it, for one reply; triggered.py, for the tool calls in a free one
shapes.py      types and their schemas, texts and their values
partial.py     the value of JSON that is still being written
prompt.py      the schema in the prompt
check.py       what is said at the end of a reply
vocabulary.py  edge's tokenizer as llguidance's

llguidance is imported inside functions: it takes some 60 ms.

Source: "Guidance" (guidance-ai/llguidance), an Earley parser over a lexer of regular-expression derivatives.
"""
