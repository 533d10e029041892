"""One prefill and one decode, and passes of several tokens, through the contract of every backend.

The timed work is that of a reply: choosing each token, asking whether it ends the reply, its bytes. A reply continues past its
end, so that every run decodes equally many tokens.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from edge.bench.values import Sample
from edge.device.cost import peak_bytes
from edge.types import Sampling

if TYPE_CHECKING:
    from edge.backends.base import Backend
    from edge.device.energy import Meter

__all__ = ["PASSES", "measure", "measure_passes", "prompt_tokens", "warm_up"]

PASSES = (1, 2, 4, 8, 16)
"""Tokens of the passes of which the time is measured: a token and the draft behind it."""
_PASSES_BEHIND = 256  # tokens in the KV cache
_PASS_ROUNDS = 5


def prompt_tokens(n_vocab: int, n_tokens: int) -> list[int]:
    """Return tokens spread over the vocabulary; prefill takes equally long for any tokens."""
    first = min(3, n_vocab - 1)
    return [first + (7919 * index) % max(1, n_vocab - first) for index in range(n_tokens)]


def warm_up(backend: Backend) -> None:
    """Run one step, so that engines do the work that they postpone until first use."""
    backend.rewind(0, 0)
    backend.prefill(0, prompt_tokens(backend.info.n_vocab, 8))
    backend.decode([(0, prompt_tokens(backend.info.n_vocab, 1)[0])])
    backend.logits(0)


def measure(
    backend: Backend,
    n_prompt: int,
    n_decode: int,
    *,
    meter: Meter | None = None,
    clock: Callable[[], float] = time.perf_counter,
    cpu_clock: Callable[[], float] = time.process_time,
) -> Sample:
    """Prefill a prompt into an empty sequence and decode a reply.

    Args:
        backend: open, with room for `n_prompt + n_decode + 1` tokens.
        n_prompt, n_decode: tokens to prefill, and to decode after the first one. At least 1 each.
        meter: of energy.
        clock, cpu_clock: wall clock and processor time, in seconds.

    Raises:
        EdgeError: the backend's.
    """
    prompt = prompt_tokens(backend.info.n_vocab, n_prompt)
    backend.rewind(0, 0)
    sampler = backend.open_sampler(Sampling(temperature=0.0), prompt[-1:])
    try:
        joules_0 = meter.joules() if meter is not None else None
        cpu_0, started = cpu_clock(), clock()
        backend.prefill(0, prompt)
        backend.logits(0)  # waits for the pass
        prefilled = clock()
        token = sampler.sample(0)
        first, cpu_1 = clock(), cpu_clock()
        joules_1 = meter.joules() if meter is not None else None
        begun = clock()
        for _ in range(n_decode):
            backend.tokenizer.is_end(token)
            backend.tokenizer.token_bytes(token)
            backend.decode([(0, token)])
            token = sampler.sample(0)
        ended, cpu_2 = clock(), cpu_clock()
        joules_2 = meter.joules() if meter is not None else None
    finally:
        sampler.close()
    return Sample(
        first_token_s=first - started,
        prefill_s=prefilled - started,
        decode_s=ended - begun,
        n_prompt=n_prompt,
        n_decode=n_decode,
        prefill_cpu_s=cpu_1 - cpu_0,
        decode_cpu_s=cpu_2 - cpu_1,
        peak_bytes=peak_bytes(),
        prefill_joules=_between(joules_0, joules_1),
        decode_joules=_between(joules_1, joules_2),
    )


def measure_passes(backend: Backend, *, clock: Callable[[], float] = time.perf_counter) -> dict[int, float]:
    """Measure passes over several tokens of one reply, in turns, with the logits after each token.

    Returns:
        Tokens of a pass -> its median time in ms; a single one where the engine takes no drafts.

    Raises:
        EdgeError: the backend's.
    """
    sizes = PASSES if backend.capabilities.drafts else PASSES[:1]
    n_behind = min(_PASSES_BEHIND, backend.n_ctx - sizes[-1] - _PASS_ROUNDS - 1)
    tokens = prompt_tokens(backend.info.n_vocab, n_behind + sizes[-1])
    rest = tokens[n_behind:]
    backend.rewind(0, 0)
    backend.prefill(0, tokens[:n_behind])
    times: dict[int, list[float]] = {size: [] for size in sizes}
    can_rewind = backend.capabilities.rewind
    for number in range(1 + _PASS_ROUNDS):
        for size in sizes if number % 2 else reversed(sizes):
            started = clock()
            if size == 1:
                backend.decode([(0, rest[0])])
            else:
                backend.decode([(0, rest[0])], {0: rest[1:size]})
            backend.logits(0)  # waits for the pass
            if number:  # in the first round engines prepare for passes of this size
                times[size].append((clock() - started) * 1000)
            if can_rewind:
                backend.rewind(0, n_behind)
    return {size: statistics.median(measured) for size, measured in times.items()}


def _between(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else max(0.0, after - before)
