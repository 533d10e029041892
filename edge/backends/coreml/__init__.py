"""Core ML on Apple's devices, through coremltools.

backend.py       the contract
engine.py        compiled models, loaded functions, the compute plan
sequence.py      one sequence and its state
trial.py         tries a package in a child process before a unit is used
"""
