"""ONNX decoders on onnxruntime.

backend.py       the contract
passes.py        passes over the model
trial.py         the first passes, which show what works
session.py       onnxruntime's sessions, providers and placement
kv.py            keys and values in buffers that stay in place between passes
"""
