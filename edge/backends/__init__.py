"""Engines that run a model. `open_backend(plan)` is the only way in; the SDK of each is imported only when it is opened.

base.py            the contract
cells_backend.py   what all engines share: checks, cells, chunks of a prompt, frames of KV blocks; cells.py counts the cells
logits_backend.py  what engines share that compute logits and nothing else; sampling.py, llama.cpp's sampler chain in numpy
neutral.py         a layout of KV blocks that engines share; paired.py, an engine that prefills for another one
logprobs.py        log-probabilities of tokens
stopping.py        stops an engine half-way through a pass
fake.py            a backend without a model, for tests
llamacpp/, onnx/, coreml/
"""

from edge.backends.base import Backend, Capabilities, ModelInfo, Sampler, open_backend

__all__ = ["Backend", "Capabilities", "ModelInfo", "Sampler", "open_backend"]
