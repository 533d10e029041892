"""ONNX: onnxruntime-genai's model builder in a child process; int4 blocks of a GGUF are carried over.

steps.py    ONNX as a step of a conversion
export.py   checkpoint -> folder in the layout of onnxruntime-genai
limits.py   what the builder cannot build
builder.py  the child process with the builder, corrected where it errs
blocks.py   blocks of a GGUF in the place of float matrices
"""
