"""The thread that owns the backend, and its throttle.

scheduler.py   prefill in chunks, decode in one pass; admission and preemption
decoding.py    one round of decode, with the drafts that are worth it
drafting.py    what a reply may say next, looked up in its own text, and how much of it pays
draft_model.py what it may say next, by a second, smaller model
rounds.py      which prompt gets the next chunk, and how large it is
sharing.py     which waiting prompts another one saves work
crowding.py    fewer threads while other programs use the cores
adapter_turns.py  replies with different adapters take turns
generation.py  one reply that is asked of the engine, and its events
scripted.py    a sampler that chooses nothing, to learn how likely a text is
packing.py     such texts, and the rest of their prompts, several in one pass
constraint.py  what the engine asks of a schema or grammar
governor.py    throttles the engine while the device is hot, low on battery or short of memory
"""
