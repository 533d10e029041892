"""GGUF: tensors, config and tokenizer are written here; llama.cpp quantises and calibrates in a child process.

steps.py           GGUF as steps of a conversion
tensors.py         a checkpoint as a GGUF file in 16 or 32 bits
adapter.py         a LoRA adapter as a GGUF file
config.py          config.json as the keys of a GGUF file
limits.py          what llama.cpp can compute of it
vocabulary.py      tokenizer.json as llama.cpp has it
tokenizer.py       that as the keys of a GGUF file
check_logits.py    proof that llama.cpp computes what transformers does
quantise.py        quantisation, and proof that the tokenizer is the same
imatrix.py         the importance matrix; imatrix_child.py computes it, imatrix_file.py reads and writes llama.cpp's files
shards.py          a model in several files, and joined again
llama.py           llama.cpp's C functions, for child processes
blocks.py          blocks of int4 weights as numbers
engine.py          runs llama.cpp's work in a child process, engine_child.py
from_header.py     the header of a GGUF file as config.json
read_back.py       a GGUF file back to a checkpoint folder
tokenizer_json.py  its tokenizer as tokenizer.json
"""
