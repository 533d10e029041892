"""Facts that model files state, read without their SDKs and without trusting them.

artifact.py     one model on disk, opened and checked
facts.py        a model in numbers, whatever its format
gguf.py         a bounded reader of GGUF headers; gguf_header.py, their values; gguf_facts.py, the model's numbers in them
bert_gguf.py    writes the checkpoint of a sentence-embedding BERT as GGUF
gguf_adapter.py LoRA adapters as GGUF files, compared with their model
gguf_blocks.py  weights in blocks, unpacked
gguf_shards.py  models that are split into several GGUF files
gguf_tables.py  numbers that GGUF files use, and their names
onnx.py         folders in the layout of onnxruntime-genai
onnx_graph.py   inputs, outputs and weights of an ONNX file
protobuf.py     as much of the wire format as ONNX needs
coreml.py       Core ML packages of `edge convert`
logits.py       log-probabilities of logits
"""
