"""From messages to tokens, and from tokens to text.

template.py   chat templates
sandbox.py    Jinja within limits
budget.py     what one rendering may use
contents.py   tells the template's words from people's
encode.py     pieces to tokens; only the template's words become special tokens
roles.py      fits a conversation to what a template accepts
window.py     what enters the context window
summary.py    summaries of what no longer fits
prompting.py  messages to prompt tokens, tokenising only new text
tokenizers.py the tokenizer of a loaded model, from any thread; hf_tokenizer.py, that of a Hugging Face folder
stream.py     token bytes to whole characters, and stop texts
"""
