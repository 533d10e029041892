"""GGUF decoders on OpenVINO: the contract over the files beside this one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edge.backends.base import Capabilities, ModelInfo
from edge.backends.logits_backend import LogitsBackend
from edge.backends.openvino.library import load_library
from edge.errors import CancelledError
from edge.registry import load_entry

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from edge.plan.receipt import Plan

__all__ = ["OpenVINOBackend"]


class OpenVINOBackend(LogitsBackend):
    """See the package and `Backend`.

    Args:
        plan: what to load and how. The artifact is a GGUF file.
        on_progress: as in `open_backend`.
        cache_dir: for transformed models; None is the setting paths.cache_dir.

    Attributes:
        passes: runs the model.

    Raises:
        BackendUnavailableError: openvino, or llama.cpp, whose tokenizer it uses, is not installed.
        UnsupportedError: the model is of a kind that it does not know.
        ModelFileError: the file is damaged.
        ModelTooLargeError: memory ran out.
        UsageError: the plan asks for a type of keys and values that it does not have.
        CancelledError: on_progress said False.
    """

    name = "openvino"
    block_magic = b"EDGEOV1\0"

    def __init__(
        self, plan: Plan, *, on_progress: Callable[[float], bool] | None = None, cache_dir: Path | None = None
    ) -> None:
        from edge.backends.neutral import MAGIC
        from edge.backends.openvino.neutral import neutral_layout
        from edge.backends.openvino.passes import open_passes
        from edge.backends.openvino.rotation import rotation_variant
        from edge.backends.openvino.shape import INTERLEAVED
        from edge.formats.gguf import read_header

        def report(share: float) -> None:
            if on_progress is not None and not on_progress(share):
                raise CancelledError("Loading was stopped.")

        if cache_dir is None:
            from edge.config.load import load_settings

            cache_dir = load_settings(strict=False).paths.cache_dir
        report(0.0)
        self._library = load_library()
        path = plan.artifact.path
        header = plan.artifact.header or read_header(path)
        tokenizer, about = load_entry("edge.backends.llamacpp.model:open_vocabulary")(path)
        try:
            report(0.1)
            self.passes, attention = open_passes(self._library, header, plan, cache_dir)
            self.is_faster_next = self.passes.is_stored
            report(1.0)
        except BaseException:
            tokenizer.close()
            raise
        super().__init__(
            ModelInfo(
                name=header.name or plan.artifact.name,
                architecture=header.architecture,
                n_params=header.n_params,
                size_bytes=header.tensors_bytes,
                n_ctx_train=header.n_ctx_train,
                chat_template=header.chat_template,
                details={
                    "weights": header.file_type,
                    "attention": attention,
                    "layers": str(header.n_layer),
                    "width": str(header.n_embd),
                    "heads": f"{header.n_head} (KV {header.n_head_kv})",
                },
                **about,
            ),
            Capabilities(
                rewind=True, export_kv=True, checkpoints=True, n_seq=plan.n_seq, shared_cells=True, resize=True, drafts=True
            ),
            tokenizer,
            n_ctx=plan.n_ctx,
            chunk_size=plan.n_ubatch,
        )
        self._kv_type, self._attention = plan.kv_type_k, attention.partition(":")[0]
        self._processor = "" if plan.accelerator == "cpu" else attention
        self._rope = rotation_variant(header, plan.n_ctx)  # what a smaller cache later on does not change
        self._accelerator = plan.accelerator
        self._is_interleaved = header.architecture in INTERLEAVED
        self.neutral = neutral_layout(header, plan) if self._attention == "paged" else None
        if self.neutral is not None:
            self.block_magic = MAGIC

    def kv_identity(self) -> dict[str, str | int | float | bool]:
        from edge.device.identity import cpu_identity

        self._check_open()
        return {
            "backend": self.name,
            "version": str(self._library.get_version()),
            "processor": self._processor or cpu_identity(),  # OpenVINO chooses its kernels by it
            "layout": str(self.neutral or f"{self.block_magic.decode('ascii', 'replace')} {self._kv_type} {self._attention}"),
            "rope": self._rope,
            "accelerator": self._accelerator,
            "chunk_size": self.chunk_size,
        }

    def resize(self, n_ctx: int) -> None:
        with self._lock:
            self._check_resize(n_ctx)
            self.passes.allocate(n_ctx)
            self._allocate(n_ctx)

    # -- for LogitsBackend

    def _compute(
        self, seq_id: int, start: int, ids: npt.NDArray[np.int64], should_stop: Callable[[], bool] | None
    ) -> npt.NDArray[np.float32] | None:
        found = self.passes.run([(seq_id, start, ids, 1)], should_stop)  # type: ignore[list-item]
        return None if found is None else found[0][-1].copy()

    def _decode(self, steps: Sequence[tuple[int, Sequence[int]]], starts: dict[int, int]) -> None:
        found = self.passes.run([(seq_id, starts[seq_id], tokens, len(tokens)) for seq_id, tokens in steps])
        assert found is not None  # nobody asked to stop
        for (seq_id, tokens), rows in zip(steps, found, strict=True):
            self._note_logits(seq_id, rows.copy() if len(tokens) > 1 else rows[0].copy())

    def _truncate(self, seq_id: int, n_keep: int) -> None:
        self.passes.blocks.truncate(seq_id, n_keep)

    def _copy(self, source: int, target: int, n_tokens: int) -> None:
        self.passes.blocks.share(source, target, n_tokens)

    def _kv_bytes(self, n_tokens: int) -> int:
        return self.neutral.size(n_tokens) if self.neutral else n_tokens * self.passes.blocks.row_bytes()

    def _read_kv(self, seq_id: int, start: int, end: int, out: npt.NDArray[np.uint8]) -> None:
        if self.neutral:
            self.neutral.clear(out, end - start)
        self.passes.blocks.read(seq_id, start, end, self._rows(out, end - start))

    def _write_kv(self, seq_id: int, start: int, end: int, data: npt.NDArray[np.uint8]) -> None:
        self.passes.blocks.extend(seq_id, start, end - start)
        self.passes.blocks.write(seq_id, start, end, self._rows(data, end - start))

    def _rows(self, data: npt.NDArray[np.uint8], n: int) -> dict[str, npt.NDArray[np.generic]]:
        from edge.backends.openvino.neutral import neutral_rows

        if self.neutral is None:
            return self.passes.blocks.rows(data, n)
        return neutral_rows(self.neutral, data, n, is_interleaved=self._is_interleaved)

    def _free_kv(self, seq_id: int) -> None:
        pass  # _truncate did

    def _free(self) -> None:
        self.passes.close()
