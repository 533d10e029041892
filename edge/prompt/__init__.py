"""From messages to tokens, and from tokens to text.

template.py      chat templates
sandbox.py       Jinja within limits
budget.py        limits of one rendering
contents.py      separates the template's words from people's
encode.py        pieces to tokens; only the template's words become special tokens
roles.py         fits a conversation to a template
rows.py          messages and tool calls as templates take them
tools/           how models write tool calls
reasoning.py     thoughts, told apart from the answer; reply_parser.py, thoughts and calls of a reply
options.py       what a prompt is made of besides messages
window.py        messages that enter the context window
summary.py       summaries of the messages that do not
prompting.py     messages to prompt tokens, tokenising only new text
tokenizers.py    the tokenizer of a loaded model, usable from any thread
hf_tokenizer.py  the tokenizer of a Hugging Face folder
stream.py        token bytes to whole characters, and stop texts
sentences.py     where a text that is being written may be complete
repetition.py    replies that only repeat themselves
"""
