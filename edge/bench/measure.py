"""One reading of a prompt and one writing of tokens, through the contract that every backend keeps.

What is timed is what a reply takes: choosing each token, asking whether it ends the reply, its bytes. A reply goes on past its
end, so that every run writes equally much.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edge.bench.values import Sample
from edge.types import Sampling

if TYPE_CHECKING:
    from edge.backends.base import Backend
    from edge.device.energy import Meter

__all__ = ["measure", "peak_bytes", "prompt_tokens", "warm_up"]


def prompt_tokens(n_vocab: int, n_tokens: int) -> list[int]:
    """Tokens spread over the vocabulary; which they are makes no difference to how long reading them takes."""
    first = min(3, n_vocab - 1)
    return [first + (7919 * index) % max(1, n_vocab - first) for index in range(n_tokens)]


def warm_up(backend: Backend) -> None:
    """What engines put off until they are first used."""
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
    """Read a prompt into an empty sequence and write a reply behind it.

    Args:
        backend: an open one, with room for `n_prompt + n_decode + 1` tokens.
        n_prompt, n_decode: tokens to read, and to write after the first one. At least 1 each.
        meter: of energy.
        clock, cpu_clock: seconds of wall clock and of processor time.

    Raises:
        EdgeError: as the backend's.
    """
    prompt = prompt_tokens(backend.info.n_vocab, n_prompt)
    backend.rewind(0, 0)
    sampler = backend.open_sampler(Sampling(temperature=0.0), prompt[-1:])
    try:
        joules_0 = meter.joules() if meter is not None else None
        cpu_0, started = cpu_clock(), clock()
        backend.prefill(0, prompt)
        backend.logits(0)  # waits for the pass
        is_read = clock()
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
        prefill_s=is_read - started,
        decode_s=ended - begun,
        n_prompt=n_prompt,
        n_decode=n_decode,
        prefill_cpu_s=cpu_1 - cpu_0,
        decode_cpu_s=cpu_2 - cpu_1,
        peak_bytes=peak_bytes(),
        prefill_joules=_between(joules_0, joules_1),
        decode_joules=_between(joules_1, joules_2),
    )


def peak_bytes(status: Path = Path("/proc/self/status")) -> int:
    """The most memory that this process has had."""
    import resource

    try:
        for line in status.read_text("ascii", "replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass  # not Linux, or an odd one
    # On Linux this begins with what the parent had when it started us, which is why it is only the second choice.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _between(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else max(0.0, after - before)
