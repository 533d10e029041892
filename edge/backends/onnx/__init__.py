"""ONNX decoders on onnxruntime.

backend.py       the contract
session.py       onnxruntime's sessions, providers and placement
kv.py            keys and values in buffers that stay in place between passes
"""
