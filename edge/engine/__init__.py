"""The thread that owns the backend, and what chooses tokens and throttles it.

scheduler.py  prefill in chunks, decode in one pass; admission and preemption
sampling.py   llama.cpp's sampler chain in numpy
governor.py   throttles the engine while the device is hot, low on battery or short of memory
"""
