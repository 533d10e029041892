"""ONNX: a decoder written node by node with the package onnx; int4 blocks of a GGUF are carried over.

steps.py      ONNX as a step of a conversion
export.py     checkpoint or GGUF -> folder in the layout of onnxruntime-genai
limits.py     what the kernels cannot compute
decoder.py    the graph of all layers
matrices.py   matrices and the products with them: carried over, quantised anew, or in float32
blocks.py     blocks of weights as MatMulNBits has them, a GGUF's own among them
k_quant.py    the search for the scale and zero point of a block
sources.py    weights of a checkpoint or a GGUF, some rows at a time
external.py   the weight file, written in pieces
nodes.py      nodes and constants of a graph
rotation.py   tables of cosines and sines
folder.py     genai_config.json and the tokenizer
"""
