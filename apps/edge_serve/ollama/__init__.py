"""Ollama's protocol.

wire.py      fields of requests, and parts that several responses share
chat.py      chat; generate.py, one prompt
embed.py     vectors of texts
models.py    lists of models, what is loaded, and what this server does not do
described.py  what its endpoints answer, for /openapi.json
"""
