"""Runs a model over a text and sums, for every weight matrix, the squares of its inputs.

llama.cpp calls back for every matrix product. `ggml_tensor` is read by the layout of ggml.h, which is checked against the
library's own functions on the first tensor.

Source: `tools/imatrix` of llama.cpp, whose numbers these are: the mean square of each input.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.errors import BackendError, ModelFileError
from edge_convert.gguf.imatrix_file import Sums, write_imatrix
from edge_convert.gguf.llama import fill_batch, load_library, load_model
from edge_convert.torch_device import chosen_device

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["collect"]

_F32 = 0
_HINT = "Convert without it: --no-imatrix"


class _Tensor(ctypes.Structure):
    """`struct ggml_tensor`."""


_Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(_Tensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
]


class _Collector:
    """Sums of squares by weight name, filled by llama.cpp's callback."""

    def __init__(self) -> None:
        library = ctypes.CDLL(str(_library_path()))
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        self._name = ctypes.CFUNCTYPE(ctypes.c_char_p, pointer)(("ggml_get_name", library))
        self._op_name = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_int)(("ggml_op_name", library))
        self._n_bytes = ctypes.CFUNCTYPE(size, pointer)(("ggml_nbytes", library))
        self._get = ctypes.CFUNCTYPE(None, pointer, pointer, size, size)(("ggml_backend_tensor_get", library))
        self._is_checked = False
        self.sums: dict[str, NDArray[np.float64]] = {}
        self.counts: dict[str, int] = {}
        self.failure: Exception | None = None

    def __call__(self, address: int, is_question: bool, _: object) -> bool:
        """Answer llama.cpp, which first asks whether a tensor is wanted, and calls again when it is computed."""
        try:
            tensor = _Tensor.from_address(address)
            if not self._is_checked:
                self._check_layout(address, tensor)
            if self._op_name(tensor.op) != b"MUL_MAT" or not tensor.src[0] or not tensor.src[1]:
                return not is_question
            name = tensor.src[0].contents.name.decode("utf-8", "replace")
            if not name.endswith(".weight"):
                return not is_question
            if not is_question:
                self._add(name, tensor.src[1])
        except Exception as error:  # noqa: BLE001 (nothing may be raised through C code; collect() raises it)
            self.failure = error
            return False
        return True

    def _check_layout(self, address: int, tensor: _Tensor) -> None:
        expected = 4 * tensor.ne[0] * tensor.ne[1] * tensor.ne[2] * tensor.ne[3] if tensor.type == _F32 else None
        if tensor.name != self._name(address) or (expected and expected != self._n_bytes(address)):
            raise BackendError("This build of llama.cpp has another tensor layout than edge knows.", _HINT)
        self._is_checked = True

    def _add(self, name: str, source: Any) -> None:
        import numpy as np

        inputs = source.contents
        width, rows = int(inputs.ne[0]), int(inputs.ne[1]) * int(inputs.ne[2]) * int(inputs.ne[3])
        if inputs.type != _F32 or inputs.nb[1] != 4 * width or inputs.nb[0] != 4:
            raise BackendError(f"The inputs of {name} are not laid out as expected.", _HINT)
        values = np.empty((rows, width), dtype=np.float32)
        self._get(ctypes.addressof(inputs), values.ctypes.data, 0, values.nbytes)
        if not np.isfinite(values).all():
            raise ModelFileError(
                f"The model computes no finite numbers at {name}: its weights are damaged, or too large.",
                "Download it again. To quantise it as it is: --no-imatrix",
            )
        squares = np.einsum("ij,ij->j", values, values, dtype=np.float64)
        self.sums[name] = self.sums.get(name, 0.0) + squares
        self.counts[name] = self.counts.get(name, 0) + rows


def collect(
    on_progress: Callable[[float], None], model: str, chunks: list[list[int]], out: str, threads: int, text: str
) -> int:
    """Compute the importance matrix of a model, and save it.

    Args:
        on_progress: called with the share that is done.
        model: path of a GGUF file in 16 or 32 bits.
        chunks: token ids; each chunk is a text of its own.
        out: file for it, see imatrix_file.py.
        threads: CPU threads.
        text: name of the text.

    Returns:
        Number of matrices.

    Raises:
        BackendError: the model cannot be run, or the engine's tensors cannot be read.
        ModelFileError: it computes no finite numbers.
    """
    library = load_library()
    # Repacked weights would change nothing here, and AMX crashes in some builds.
    on_host = {"n_gpu_layers": 0} if chosen_device() == "cpu" else {}
    loaded = load_model(library, model, use_extra_bufts=False, **on_host)
    if not loaded:
        raise BackendError("llama.cpp cannot load the converted model.", "Report this.")
    collector = _Collector()
    callback = library.ggml_backend_sched_eval_callback(collector)
    longest = max(len(chunk) for chunk in chunks)
    params = library.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = longest
    params.n_threads = params.n_threads_batch = threads
    params.cb_eval = callback
    context = library.llama_init_from_model(loaded, params)
    if not context:
        raise BackendError("llama.cpp cannot run the converted model.", "Report this.")
    batch = library.llama_batch_init(longest, 0, 1)
    for done, chunk in enumerate(chunks):
        library.llama_memory_clear(library.llama_get_memory(context), True)
        fill_batch(batch, chunk, 0, wants_all=True)  # else the last layer would only be computed for the last token
        code = library.llama_decode(context, batch)
        if collector.failure:
            raise collector.failure
        if code != 0:
            raise BackendError(f"llama.cpp stopped with code {code} during calibration.", _HINT)
        on_progress((done + 1) / len(chunks))
    sums = {name: Sums(total, collector.counts[name]) for name, total in collector.sums.items()}
    if sums:
        write_imatrix(Path(out), sums, len(chunks), longest, text)
    return len(sums)


def _library_path() -> Path:
    """Return the path of ggml's own library, beside llama.cpp's."""
    import llama_cpp

    folder = Path(llama_cpp.__file__).parent / "lib"
    found = sorted([*folder.glob("libggml-base.so"), *folder.glob("libggml-base.dylib"), *folder.glob("ggml-base.dll")])
    if not found:
        raise BackendError("This build of llama.cpp has no separate ggml library.", _HINT)
    return found[0]
