"""Forward KL over a large vocabulary, in pieces, with an analytic gradient.

With logits = W h, the gradient of KL(teacher || student) by the student's hidden state h is W^T (p_student - p_teacher). So
only a few hundred rows of logits exist at a time, the teacher's logits come from its last hidden states, and autograd sees the
body of the student only.
"""

from __future__ import annotations

from typing import Any

import torch

from edge_convert.smaller.recipe import ROWS_AT_ONCE

__all__ = ["Head"]


class Head:
    """The head of a model: hidden states to logits.

    Args:
        weight: [n_vocab, width], in the dtype and on the device of the computation.
        cap: logits become cap * tanh(logits / cap), as in Gemma 2; None leaves them.
        bias: [n_vocab], or None.
        chunk: rows of logits that exist at a time.
    """

    def __init__(self, weight: Any, cap: float | None = None, bias: Any = None, chunk: int = ROWS_AT_ONCE) -> None:
        self._weight, self._cap, self._bias, self._chunk = weight, cap, bias, chunk
        self._buffers: tuple[Any, ...] | None = None

    def logits(self, hidden: Any) -> Any:
        """Return the float32 logits of a few rows."""
        return self._capped(self._product(hidden)).float()

    def gradient(self, student: Any, teacher: Any) -> Any:
        """Return the gradient of the mean KL(teacher || student) by the student's hidden states.

        Args:
            student: [n, width].
            teacher: [n, width], the teacher's last hidden states at the same positions.

        Returns:
            [n, width], in the student's dtype.
        """
        found = torch.empty_like(student)
        with torch.no_grad():
            for start in range(0, len(student), self._chunk):
                rows = slice(start, start + self._chunk)
                theirs, ours = self._take(len(student[rows]))
                self._product(teacher[rows], theirs)
                self._product(student[rows], ours)
                slope = None
                if self._cap is not None:
                    theirs, ours = self._capped(theirs), self._capped(ours)
                    slope = 1 - (ours / self._cap).square()
                torch.softmax(theirs, -1, out=theirs)
                torch.softmax(ours, -1, out=ours)
                ours.sub_(theirs)
                if slope is not None:
                    ours.mul_(slope)
                torch.mm(ours, self._weight, out=found[rows])
        return found.div_(len(student))

    def sampled_gradient(self, hidden: Any, chance: Any) -> Any:
        """Return the gradient of -log p of a token sampled from p, for each row: its squares make the Fisher information.

        Args:
            hidden: [n, width].
            chance: generator of the sampling.

        Returns:
            [n, width], in the dtype of `hidden`; rows are not divided by their number.
        """
        found = torch.empty_like(hidden)
        with torch.no_grad():
            for start in range(0, len(hidden), self._chunk):
                rows = slice(start, start + self._chunk)
                logits = self.logits(hidden[rows])
                slope = 1 if self._cap is None else 1 - (logits / self._cap).square()
                share = logits.softmax(-1)
                token = torch.multinomial(share, 1, generator=chance)
                share.scatter_add_(1, token, torch.full_like(token, -1, dtype=share.dtype))
                found[rows] = (share * slope).to(hidden.dtype) @ self._weight
        return found

    def divergence(self, student: Any, teacher: Any) -> tuple[Any, Any]:
        """Return KL(teacher || student) and whether both prefer the same token, for each row.

        Returns:
            float32 [n] in nats, and bool [n].
        """
        divergences, agreements = [], []
        with torch.no_grad():
            for start in range(0, len(student), self._chunk):
                rows = slice(start, start + self._chunk)
                theirs = self.logits(teacher[rows]).log_softmax(-1)
                ours = self.logits(student[rows]).log_softmax(-1)
                divergences.append((theirs.exp() * (theirs - ours)).sum(-1))
                agreements.append(theirs.argmax(-1) == ours.argmax(-1))
        return torch.cat(divergences), torch.cat(agreements)

    def _product(self, hidden: Any, out: Any = None) -> Any:
        found = torch.mm(hidden, self._weight.T, out=out) if out is not None else hidden @ self._weight.T
        return found if self._bias is None else found.add_(self._bias)

    def _capped(self, logits: Any) -> Any:
        return logits if self._cap is None else (logits / self._cap).tanh_().mul_(self._cap)

    def _take(self, n_rows: int) -> tuple[Any, Any]:
        """Return two tables of logits that are reused: fresh memory costs more than the computation in it."""
        if self._buffers is None:
            shape = (self._chunk, len(self._weight))
            self._buffers = tuple(torch.empty(shape, dtype=self._weight.dtype, device=self._weight.device) for _ in range(2))
        return self._buffers[0][:n_rows], self._buffers[1][:n_rows]
