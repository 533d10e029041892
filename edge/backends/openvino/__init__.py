"""GGUF decoders on OpenVINO, with paged attention over keys and values that edge allocates.

backend.py   the contract
passes.py    the compiled model, and passes over several sequences
stateful.py  the same without paged attention: a request a sequence
blocks.py    keys and values in blocks that sequences share
compiled.py  compiles a model, or what was stored of it
neutral.py   the same as rows of the layout that engines share
graph.py     a decoder as an OpenVINO model
shape.py     a decoder's numbers, and what differs between architectures
rotation.py  rotary positions, and how models stretch them
tensors.py   the tensors of a GGUF file
weights.py   blocks of a GGUF file as compressed weights
support.py   the models that cannot be run
library.py   OpenVINO imported once, its errors turned into ours
"""
