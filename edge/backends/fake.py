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
from typing import TYPE_CHECKING, NamedTuple

from edge.adapters import mix_text
from edge.backends.base import MAX_DRAFT, Capabilities, ModelInfo
from edge.backends.logits_backend import LogitsBackend
from edge.errors import BackendError, CancelledError
from edge.prompt.tokenizers import Token, Tokenizer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edge.adapters import Adapter, Mix
    from edge.plan.receipt import Plan

__all__ = ["CHATML", "FakeBackend", "FakeTokenizer", "default_answer"]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_SPECIALS = {"<|im_start|>": 256, "<|im_end|>": 257, "<|endoftext|>": 258}
_PIECES = [bytes([i]) for i in range(256)] + [text.encode() for text in _SPECIALS]
_IM_START, _IM_END, _END_OF_TEXT = 256, 257, 258
_N_VOCAB = len(_PIECES)
_SPECIAL_PATTERN = re.compile("(" + "|".join(re.escape(text) for text in _SPECIALS) + ")")
_CERTAIN = 100.0  # a logit so high that the script is followed at any sane temperature
_CELL = struct.Struct("<i16s")
_MARK_BYTES = 2

Script = Callable[[str], str] | Mapping[str, str]


def default_answer(message: str) -> str:
    """Return what the fake says unless it has a script: Markdown that names the message it answers."""
    first_line = message.strip().split("\n", 1)[0][:60] or "nothing"
    return (
        f"You said: **{first_line}**\n\n- words: {len(message.split())}\n- characters: {len(message)}\n\n"
        f"```python\nprint({first_line!r})\n```\n"
    )


class _Cell(NamedTuple):
    """One cell of the KV cache. `digest` stands for the key and value: it depends on every token up to here, and begins with a
    mark of the adapters, so that a sequence which is computed with different ones is found out.
    """

    token: int
    digest: bytes


class FakeTokenizer(Tokenizer):
    """UTF-8 bytes and three special tokens."""

    def __init__(self) -> None:
        super().__init__(_N_VOCAB)

    def _encode(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        tokens: list[int] = []
        for part in _SPECIAL_PATTERN.split(text) if parse_special else [text]:
            special = _SPECIALS.get(part) if parse_special else None
            tokens += part.encode("utf-8", "replace") if special is None else [special]
        return tokens

    def _look_up(self, token: int) -> Token:
        return Token(_PIECES[token] if token < 256 else b"", _PIECES[token], token in (_IM_END, _END_OF_TEXT))


class FakeBackend(LogitsBackend):
    """See the module.

    Args:
        plan: `n_ctx`, `n_seq` and threads are taken from it; None for the defaults.
        on_progress: as in `open_backend`.
        script: the answer to a user message: a function, or a mapping (messages it lacks get `default_answer`).
        delay_s: time one decode step takes, in seconds.
        prefill_delay_s: time one chunk of a prompt takes, in seconds.
        n_ctx: cells, unless the plan says.
        n_seq: sequences, unless the plan says.
        chunk_size: tokens a chunk.
        chat_template: of the model; its turns begin with "<|im_start|>".
        drafts: it takes draft tokens, so a step may add several tokens to a reply.
        adapters: those of the plan come before them. Answers begin with the names of those in use: "[pirate at 0.5] ".

    Attributes:
        threads: the last arguments of `set_threads`; they compute nothing.

    Raises:
        CancelledError: on_progress said False.
    """

    name = "fake"
    block_magic = b"FAKEKV2\0"

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
        drafts: bool = False,
        chat_template: str = CHATML,
        adapters: Sequence[Adapter] = (),
    ) -> None:
        for share in (0.0, 0.5, 1.0):
            if on_progress is not None and not on_progress(share):
                raise CancelledError("Loading was stopped.")
        self.threads = (1, 1)
        if plan is not None:
            n_ctx, n_seq, self.threads = plan.n_ctx, plan.n_seq, (plan.n_threads, plan.n_threads_batch)
        capabilities = Capabilities(
            rewind=True,
            export_kv=True,
            checkpoints=True,
            n_seq=n_seq,
            shared_cells=True,
            threads=True,
            resize=True,
            drafts=drafts,
            adapters=True,
            max_outputs=n_seq + MAX_DRAFT if drafts else 0,
        )
        info = ModelInfo(
            name="Fake",
            architecture="fake",
            n_params=0,
            size_bytes=0,
            n_vocab=_N_VOCAB,
            n_ctx_train=n_ctx,
            chat_template=chat_template,
            bos_text="",
            eos_text="<|im_end|>",
            adds_bos=False,
            details={"tokenizer": "UTF-8 bytes"},
        )
        super().__init__(info, capabilities, FakeTokenizer(), n_ctx=n_ctx, chunk_size=chunk_size)
        self.adapters = (*(plan.adapters if plan is not None else ()), *adapters)
        self._mix: Mix = ()
        self._mixes: dict[bytes, Mix] = {_mark(()): ()}  # that were in use, by their mark in the cells
        self._script = script
        self._delay_s = delay_s
        self._prefill_delay_s = prefill_delay_s
        self._sequences: list[list[_Cell]] = [[] for _ in range(n_seq)]
        self._answers: dict[bytes, list[int]] = {}

    # -- for LogitsBackend

    def _compute(
        self, seq_id: int, start: int, ids: npt.NDArray[np.int64], should_stop: Callable[[], bool] | None
    ) -> npt.NDArray[np.float32]:
        if self._prefill_delay_s:
            time.sleep(self._prefill_delay_s)
        return self._append(seq_id, ids.tolist())

    def _compute_one(self, seq_id: int, start: int, token: int) -> npt.NDArray[np.float32]:
        return self._append(seq_id, [token])

    def _compute_draft(self, seq_id: int, start: int, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        import numpy as np

        self._append(seq_id, tokens)
        cells = self._sequences[seq_id]
        return np.stack([self._logits_after(cells[: start + 1 + row]) for row in range(len(tokens))])

    def _decode(self, steps: Sequence[tuple[int, Sequence[int]]], starts: dict[int, int]) -> None:
        super()._decode(steps, starts)
        if self._delay_s:
            time.sleep(self._delay_s)

    def _late_logits(self, seq_id: int) -> npt.NDArray[np.float32]:
        return self._logits_after(self._sequences[seq_id])

    def _logits_after(self, cells: Sequence[_Cell]) -> npt.NDArray[np.float32]:
        import numpy as np

        scripted = self._scripted_token(cells)
        random = np.random.default_rng(int.from_bytes(cells[-1].digest, "little"))
        values = random.normal(0.0, 2.0, _N_VOCAB).astype(np.float32)
        if scripted is not None:
            values[scripted] = _CERTAIN
        return values

    def _truncate(self, seq_id: int, n_keep: int) -> None:
        del self._sequences[seq_id][n_keep:]

    def _copy(self, source: int, target: int, n_tokens: int) -> None:
        self._sequences[target] = self._sequences[source][:n_tokens]

    def _kv_bytes(self, n_tokens: int) -> int:
        return n_tokens * _CELL.size

    def _read_kv(self, seq_id: int, start: int, end: int, out: npt.NDArray[np.uint8]) -> None:
        out.data[:] = b"".join(_CELL.pack(*cell) for cell in self._sequences[seq_id][start:end])

    def _write_kv(self, seq_id: int, start: int, end: int, data: npt.NDArray[np.uint8]) -> None:
        self._sequences[seq_id].extend(_Cell(*cell) for cell in _CELL.iter_unpack(data.data))

    def _free_kv(self, seq_id: int) -> None:
        pass  # _truncate did

    # -- adapters, and what a governor changes

    def set_adapters(self, mix: Mix) -> None:
        self._check_open()
        self._check_mix(mix)
        self._mix = mix
        self._mixes[_mark(mix)] = mix

    def set_threads(self, n_threads: int, n_threads_batch: int) -> None:
        self._check_threads(n_threads, n_threads_batch)
        self.threads = (n_threads, n_threads_batch)

    def resize(self, n_ctx: int) -> None:
        self._check_resize(n_ctx)
        self._allocate(n_ctx)

    def kv_identity(self) -> dict[str, str | int | float | bool]:
        self._check_open()
        return {"backend": self.name, "version": 3}

    # -- inside

    def _free(self) -> None:
        self._sequences = []
        self._answers.clear()

    def _append(self, seq_id: int, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        import numpy as np

        cells, mark = self._sequences[seq_id], _mark(self._mix)
        if cells and self._mix_of(cells[-1]) not in (self._mix, None):
            raise BackendError(f"Sequence {seq_id} was computed with other adapters until now.")
        for token in tokens:
            before = cells[-1].digest if cells else b""
            digest = hashlib.blake2b(before + token.to_bytes(4, "little"), digest_size=16 - _MARK_BYTES).digest()
            cells.append(_Cell(token, mark + digest))
        return np.empty(0, np.float32)  # see _late_logits

    def _mix_of(self, cell: _Cell) -> Mix | None:
        """Return the adapters that a cell was computed with; None if it came from elsewhere."""
        return self._mixes.get(cell.digest[:_MARK_BYTES])

    def _scripted_token(self, cells: Sequence[_Cell]) -> int | None:
        """Return what the script wants next, or None outside of an assistant's turn."""
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
            turns = _turns([cell.token for cell in cells[:start]])
            mix = self._mix_of(cells[body_start - 1]) or ()  # the newest pass may have computed another sequence
            begin = f"[{mix_text(mix, self.adapters)}] " if mix else ""
            self._answers[key] = [*(begin + self._answer(turns)).encode(), _IM_END]
        answer = self._answers[key]
        return answer[min(len(cells) - body_start, len(answer) - 1)]

    def _answer(self, turns: Sequence[tuple[str, str]]) -> str:
        """Return the answer to a prompt: (role, text) of each of its messages."""
        message = next((text for role, text in reversed(turns) if role == "user"), "")
        if callable(self._script):
            return self._script(message)
        script = self._script or {}
        return script[message] if message in script else default_answer(message)


def _mark(mix: Mix) -> bytes:
    """Return the mark of adapters in the cells that are computed with them."""
    return hashlib.blake2b(repr(mix).encode(), digest_size=_MARK_BYTES).digest()


def _turns(tokens: Sequence[int]) -> list[tuple[str, str]]:
    """Return (role, text) of each turn."""
    turns = [list(turn) for is_break, turn in itertools.groupby(tokens, key=lambda token: token == _IM_START) if not is_break]
    found = []
    for turn in turns:
        text = b"".join(_PIECES[token] for token in itertools.takewhile(lambda token: token != _IM_END, turn))
        role, _, content = text.decode(errors="replace").partition("\n")
        found.append((role, content))
    return found
