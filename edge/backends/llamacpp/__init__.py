"""llama.cpp, through the low-level functions of llama-cpp-python.

backend.py       the contract
model.py         opens a model and its context
adapters.py      LoRA adapters of an open model
logits.py        the newest logits of every sequence
library.py       llama.cpp imported once, its log caught, its results turned into our errors
vocabulary.py    the tokenizer
sampler.py       llama.cpp's sampler chain from our settings
canary.py        tries the fast kernels in a child process, once per build and CPU; canary_child.py, that process
neutral.py       its states as blocks that other engines can use
state_file.py    slot and session files of llama.cpp; slot_import.py, from one to blocks on the disk
unpack.py        a file with its weights in 16 bits
trial.py         tries an unknown model file in a child process, once per file and build; trial_child.py, that process
"""
