"""Recognisers: speech to text.

moonshine.py  English, on plain onnxruntime: the default
tokens.py     its vocabulary
whisper.py    a hundred languages, through CTranslate2
invented.py   transcripts that nobody said
"""
