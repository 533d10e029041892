"""Anthropic's protocol.

wire.py       fields of requests
blocks.py     messages in blocks as the runtime takes them
messages.py   messages and their count
stream.py     the events of a streamed message
described.py  what its endpoints answer, for /openapi.json
"""
