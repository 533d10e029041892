"""The thread that owns the backend, and its throttle.

scheduler.py   prefill in chunks, decode in one pass; admission and preemption
rounds.py      which prompt gets the next chunk, and how large it is
generation.py  one reply that is asked of the engine, and its events
governor.py    throttles the engine while the device is hot, low on battery or short of memory
"""
