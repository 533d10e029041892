"""A backend without a model, for tests and demonstrations of everything above it.

It keeps the whole contract: a KV cache of counted cells, chunks, rewinding, sharing, export, real sampling. Its "model"
is a pure function of the tokens in the cache: after the header of an assistant's turn it answers the last user message
by script, anywhere else it gives pseudo-random logits. The tokenizer is UTF-8 bytes and three special tokens.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from edge.backends.base import Backend, Capabilities, ModelInfo, Sampler, check_resize, check_threads
from edge.errors import BackendError, CancelledError, ContextFullError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edge.plan import Plan
    from edge.types import Sampling

__all__ = ["CHATML", "FakeBackend", "default_answer"]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_SPECIALS = {"<|im_start|>": 256, "<|im_end|>": 257, "<|endoftext|>": 258}
_PIECES = [bytes([i]) for i in range(256)] + [text.encode() for text in _SPECIALS]
_IM_START, _IM_END, _END_OF_TEXT = 256, 257, 258
_N_VOCAB = len(_PIECES)
_SPECIAL_PATTERN = re.compile("|".join(re.escape(text) for text in _SPECIALS))
_CERTAIN = 100.0  # a logit so high that the script is followed at any sane temperature
_BLOCK_MAGIC = b"FAKEKV1\0"
_CELL = struct.Struct("<i16s")

Script = Callable[[str], str] | Mapping[str, str]


def default_answer(message: str) -> str:
    """What the fake says unless it is told otherwise: Markdown that names the message it answers."""
    first_line = message.strip().split("\n", 1)[0][:60] or "nothing"
    return (
        f"You said: **{first_line}**\n\n- words: {len(message.split())}\n- characters: {len(message)}\n\n"
        f"```python\nprint({first_line!r})\n```\n"
    )


class _Cell:
    """One cell of the KV cache. `digest` stands for the key and value: it depends on every token up to here."""

    __slots__ = ("digest", "n_users", "token")

    def __init__(self, token: int, digest: bytes) -> None:
        self.token = token
        self.digest = digest
        self.n_users = 1


class FakeBackend(Backend):
    """See the module.

    Args:
        plan: `n_ctx` and `n_seq` are taken from it; None for the defaults.
        on_progress: as in `open_backend`.
        script: the answer to a user message: a function, or a mapping (messages it lacks get `default_answer`).
        delay_s: time one decode step takes, in seconds.
        prefill_delay_s: time one chunk of a prompt takes, in seconds.
        n_ctx: cells, unless the plan says.
        n_seq: sequences, unless the plan says.
        chunk_size: tokens a chunk.

    Attributes:
        threads: what `set_threads` was last told; nothing is computed by them.

    Raises:
        CancelledError: on_progress said False.
    """

    name = "fake"

    def __init__(
        self,
        plan: Plan | None = None,
        *,
        on_progress: Callable[[float], bool] | None = None,
        script: Script | None = None,
        delay_s: float = 0.0,
        prefill_delay_s: float = 0.0,
        n_ctx: int = 4096,
        n_seq: int = 4,
        chunk_size: int = 64,
    ) -> None:
        for share in (0.0, 0.5, 1.0):
            if on_progress is not None and not on_progress(share):
                raise CancelledError("Loading was stopped.")
        self.n_ctx = n_ctx if plan is None else plan.n_ctx
        self.chunk_size = chunk_size
        self.capabilities = Capabilities(
            rewind=True,
            export_kv=True,
            checkpoints=True,
            n_seq=n_seq if plan is None else plan.n_seq,
            grammar=False,
            embeddings=False,
            threads=True,
            resize=True,
        )
        self.threads = (1, 1) if plan is None else (plan.n_threads, plan.n_threads_batch)
        self.info = ModelInfo(
            name="Fake",
            architecture="fake",
            n_params=0,
            size_bytes=0,
            n_vocab=_N_VOCAB,
            n_ctx_train=self.n_ctx,
            chat_template=CHATML,
            bos_text="",
            eos_text="<|im_end|>",
            adds_bos=False,
            details={"tokenizer": "UTF-8 bytes"},
        )
        self._script = script
        self._delay_s = delay_s
        self._prefill_delay_s = prefill_delay_s
        self._sequences: list[list[_Cell]] = [[] for _ in range(self.capabilities.n_seq)]
        self._n_used = 0
        self._has_logits: set[int] = set()
        self._answers: dict[bytes, list[int]] = {}
        self._is_open = True

    # -- text

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        self._check_open()
        if not parse_special:
            return list(text.encode("utf-8", "replace"))
        tokens: list[int] = []
        position = 0
        for match in _SPECIAL_PATTERN.finditer(text):
            tokens.extend(text[position : match.start()].encode("utf-8", "replace"))
            tokens.append(_SPECIALS[match.group()])
            position = match.end()
        tokens.extend(text[position:].encode("utf-8", "replace"))
        return tokens

    def token_bytes(self, token: int, *, special: bool = False) -> bytes:
        self._check_open()
        self._check_tokens([token])
        return _PIECES[token] if special or token < 256 else b""

    def is_end(self, token: int) -> bool:
        self._check_open()
        self._check_tokens([token])
        return token in (_IM_END, _END_OF_TEXT)

    # -- cache

    def length(self, seq_id: int) -> int:
        return len(self._cells(seq_id))

    def prefill(
        self,
        seq_id: int,
        tokens: Sequence[int],
        *,
        should_stop: Callable[[], bool] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> int:
        cells = self._cells(seq_id)
        if not tokens:
            raise UsageError("There is nothing to prefill.", "Give at least one token.")
        self._check_tokens(tokens)
        self._check_room(len(tokens))
        n_done = 0
        self._has_logits.discard(seq_id)
        while n_done < len(tokens):
            if should_stop is not None and should_stop():
                return n_done
            n_chunk = self.chunk_size - len(cells) % self.chunk_size
            for token in tokens[n_done : n_done + n_chunk]:
                self._append(cells, token)
            n_done = min(n_done + n_chunk, len(tokens))
            if self._prefill_delay_s:
                time.sleep(self._prefill_delay_s)
            if on_progress is not None:
                on_progress(n_done, len(tokens))
        self._has_logits.add(seq_id)
        return n_done

    def decode(self, steps: Sequence[tuple[int, int]]) -> None:
        self._check_open()
        if not steps:
            raise UsageError("There is nothing to decode.", "Give at least one step.")
        if len({seq_id for seq_id, _ in steps}) != len(steps):
            raise UsageError("A sequence is in this step twice.", "Give every sequence at most once.")
        self._check_tokens([token for _, token in steps])
        rows = [(self._cells(seq_id), token) for seq_id, token in steps]
        self._check_room(len(steps))
        for cells, token in rows:
            self._append(cells, token)
        self._has_logits.update(seq_id for seq_id, _ in steps)
        if self._delay_s:
            time.sleep(self._delay_s)

    def rewind(self, seq_id: int, n_keep: int) -> None:
        cells = self._cells(seq_id)
        if not 0 <= n_keep <= len(cells):
            raise UsageError(f"Sequence {seq_id} has {len(cells)} tokens; {n_keep} cannot be kept.")
        if n_keep < len(cells):
            self._release(cells[n_keep:])
            del cells[n_keep:]
            self._has_logits.discard(seq_id)

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        cells = self._cells(source)
        if not 0 <= n_tokens <= len(cells):
            raise UsageError(f"Sequence {source} has {len(cells)} tokens; {n_tokens} cannot be copied.")
        if source == target:
            self.rewind(source, n_tokens)
            return
        shared = cells[:n_tokens]
        self.rewind(target, 0)
        for cell in shared:
            cell.n_users += 1
        self._sequences[target] = shared

    def export_kv(self, seq_id: int, start: int, end: int) -> bytes:
        cells = self._cells(seq_id)
        if not 0 <= start < end <= len(cells):
            raise UsageError(f"Sequence {seq_id} has {len(cells)} tokens; [{start}, {end}) cannot be exported.")
        body = b"".join(_CELL.pack(cell.token, cell.digest) for cell in cells[start:end])
        return _BLOCK_MAGIC + struct.pack("<ii", start, end - start) + body

    def import_kv(self, seq_id: int, block: bytes | memoryview) -> None:
        cells = self._cells(seq_id)
        block = bytes(block)
        header = len(_BLOCK_MAGIC) + 8
        if len(block) < header or not block.startswith(_BLOCK_MAGIC):
            raise BackendError("This is not a block of the fake backend's KV cache.")
        start, count = struct.unpack_from("<ii", block, len(_BLOCK_MAGIC))
        if len(block) != header + count * _CELL.size:
            raise BackendError("The KV block is cut off or too long.")
        if start != len(cells):
            raise BackendError(f"The KV block starts at position {start}, but the sequence ends at {len(cells)}.")
        self._check_room(count)
        cells.extend(_Cell(token, digest) for token, digest in _CELL.iter_unpack(block[header:]))
        self._n_used += count
        self._has_logits.discard(seq_id)

    def set_threads(self, n_threads: int, n_threads_batch: int) -> None:
        self._check_open()
        check_threads(n_threads, n_threads_batch)
        self.threads = (n_threads, n_threads_batch)

    def resize(self, n_ctx: int) -> None:
        self._check_open()
        check_resize(n_ctx, [len(cells) for cells in self._sequences])
        self.n_ctx = n_ctx

    def kv_identity(self) -> dict[str, str | int | float | bool]:
        self._check_open()
        return {"backend": self.name, "version": 1}

    # -- choosing

    def logits(self, seq_id: int) -> npt.NDArray[np.float32]:
        import numpy as np

        cells = self._cells(seq_id)
        if seq_id not in self._has_logits:
            raise BackendError(f"Sequence {seq_id} has no newest logits.", "Prefill or decode at least one token.")
        scripted = self._scripted_token(cells)
        random = np.random.default_rng(int.from_bytes(cells[-1].digest, "little"))
        values = random.normal(0.0, 2.0, _N_VOCAB).astype(np.float32)
        if scripted is not None:
            values[scripted] = _CERTAIN
        return values

    def open_sampler(self, sampling: Sampling, history: Sequence[int] = ()) -> Sampler:
        from edge.decode.sampling import NumpySampler, find_breakers

        self._check_open()
        self._check_tokens(history)
        breakers = None
        if sampling.dry_multiplier:
            breakers = find_breakers(sampling.dry_sequence_breakers, _PIECES, self.tokenize)
        return NumpySampler(sampling, history, self.logits, _N_VOCAB, breakers)

    def close(self) -> None:
        self._is_open = False
        self._sequences = []
        self._answers.clear()

    # -- inside

    def _check_open(self) -> None:
        if not self._is_open:
            raise BackendError("The model is closed.", "Open it again.")

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if not 0 <= token < _N_VOCAB:
                raise UsageError(f"There is no token {token}.", f"The vocabulary has {_N_VOCAB} tokens.")

    def _check_room(self, n_tokens: int) -> None:
        if self._n_used + n_tokens > self.n_ctx:
            raise ContextFullError(
                f"{n_tokens} tokens do not fit: {self._n_used} of {self.n_ctx} cells of the context are in use.",
                "Shorten the conversation or load the model with a larger context.",
            )

    def _cells(self, seq_id: int) -> list[_Cell]:
        self._check_open()
        if not 0 <= seq_id < len(self._sequences):
            raise UsageError(f"There is no sequence {seq_id}.", f"There are {len(self._sequences)}, counted from 0.")
        return self._sequences[seq_id]

    def _append(self, cells: list[_Cell], token: int) -> None:
        before = cells[-1].digest if cells else b""
        digest = hashlib.blake2b(before + token.to_bytes(4, "little"), digest_size=16).digest()
        cells.append(_Cell(token, digest))
        self._n_used += 1

    def _release(self, cells: Sequence[_Cell]) -> None:
        for cell in cells:
            cell.n_users -= 1
            self._n_used -= cell.n_users == 0

    def _scripted_token(self, cells: Sequence[_Cell]) -> int | None:
        """What the script wants next, or None outside of an assistant's turn."""
        start = next((i for i in range(len(cells) - 1, -1, -1) if cells[i].token == _IM_START), None)
        if start is None:
            return None
        body_start = start + 1 + len(b"assistant\n")
        header = [cell.token for cell in cells[start + 1 : body_start]]
        turn_ended = any(cell.token == _IM_END for cell in cells[body_start:])
        if header != list(b"assistant\n") or turn_ended:
            return None
        key = cells[body_start - 1].digest
        if key not in self._answers:
            message = _last_user_message([cell.token for cell in cells[:start]])
            self._answers[key] = [*self._answer(message).encode(), _IM_END]
        answer = self._answers[key]
        return answer[min(len(cells) - body_start, len(answer) - 1)]

    def _answer(self, message: str) -> str:
        if self._script is None:
            return default_answer(message)
        if isinstance(self._script, Mapping):
            return self._script[message] if message in self._script else default_answer(message)
        return self._script(message)


def _last_user_message(tokens: Sequence[int]) -> str:
    turns = [list(turn) for is_break, turn in itertools.groupby(tokens, key=lambda token: token == _IM_START) if not is_break]
    for turn in reversed(turns):
        text = b"".join(_PIECES[token] for token in itertools.takewhile(lambda token: token != _IM_END, turn))
        role, _, content = text.decode(errors="replace").partition("\n")
        if role == "user":
            return content
    return ""
