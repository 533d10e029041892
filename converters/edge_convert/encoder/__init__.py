"""Sentence-embedding models of BERT's shape, to ONNX folders that `edge embed` loads.

config.py   reads and checks the checkpoint: sizes, tensors, pooling
graph.py    the encoder as an ONNX graph
steps.py    the plan: read, write, compare with transformers
"""
