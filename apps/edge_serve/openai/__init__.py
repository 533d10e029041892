"""OpenAI's protocol.

wire.py         fields of requests, and parts that several responses share
options.py      tools, form and thinking
messages.py     messages of a request as the runtime takes them
probabilities.py  log probabilities of tokens
chat.py         chat completions; completions.py, a text that is continued
responses.py    responses; response_wire.py, their input; response_stream.py, their items and events
embeddings.py   vectors of texts
adapters.py     LoRA adapters, as llama.cpp's server has them; documents.py, passages that an answer rests on
models.py       the list of models; tokens.py, texts to tokens and back, as llama.cpp's server and vLLM have it
described.py    what its endpoints answer, for /openapi.json
"""
