"""Builds the decoder as a MIL program, in the shape that Core ML's compilers take on every unit of an Apple device.

Everything is static: (1, channels, 1, tokens) activations, linears as 1x1 convolutions, one fp16 state with the keys and
values of all layers, a mask that the host builds. The program is written with coremltools' MIL builder instead of traced from
torch: there is no second copy of the weights, and each matrix enters in its final encoding.

Source: Apple, "Deploying Transformers on the Apple Neural Engine" (2022), for the layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .decoder import Decoder, Linear, layer_linears
from .weights import Blocks, Dense, Palette, Weight

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["HEAD_ROWS", "MASKED", "STATE", "DecoderProgram"]

HEAD_ROWS = 16384
"""Most rows of a piece of the vocabulary projection: the Neural Engine takes no longer axis."""
MASKED = -1e4
"""Value of the host's mask where a token must not look; zero elsewhere."""
STATE = "kv_cache"
SMALLEST = 2.0**-10
"""Floor of the divisor in the norm. Exact for any value: numerator and epsilon are divided by the same number."""

Tables = Mapping[str, tuple["NDArray[np.float32]", "NDArray[np.float32]"]]


@dataclass(frozen=True)
class DecoderProgram:
    """Builds the functions of one package.

    Attributes:
        decoder: sizes and switches.
        tables: rotary tables by layer type, [context, rotated dims / 2] each.
        weight: name of a matrix in the checkpoint ("model.layers.0.mlp.up_proj") -> its encoding.
        vector: name of a tensor in the checkpoint -> float32 [n], or None if it does not exist.
        context: cache rows.
        stateful: keys and values in a Core ML state; otherwise the host passes the cache and gets the new rows.
    """

    decoder: Decoder
    tables: Tables
    weight: Callable[[str], Weight]
    vector: Callable[[str], NDArray[np.float32] | None]
    context: int
    stateful: bool

    @property
    def cache_shape(self) -> tuple[int, int, int, int]:
        """[2 x layers, key heads, context, head dimension]; rows 2l are layer l's keys, 2l + 1 its values."""
        return 2 * self.decoder.n_layers, self.decoder.n_kv_heads, self.context, self.decoder.head_dim

    @property
    def windowed(self) -> bool:
        """Whether a layer sees less than the whole context, which needs a second mask."""
        return any(self.decoder.window(layer, self.context) for layer in range(self.decoder.n_layers))

    def build(self, n_tokens: int, with_logits: bool) -> Any:
        """Build one function.

        Args:
            n_tokens: tokens in one call.
            with_logits: compute the whole model and the logits of the last token. Otherwise stop after the last layer's keys
                and values, the only results of a prefill.

        Returns:
            A coremltools MIL Program with the function `main`.
        """
        import coremltools as ct
        from coremltools.converters.mil import Builder as mb
        from coremltools.converters.mil.mil import Function, Program, types

        mask_shape = (1, 1, n_tokens, self.context)
        inputs = {
            "tokens": mb.placeholder((1, n_tokens), dtype=types.int32),
            "position": mb.placeholder((1,), dtype=types.int32),
            "mask": mb.placeholder(mask_shape, dtype=types.fp16),
        }
        if self.windowed:
            inputs["window_mask"] = mb.placeholder(mask_shape, dtype=types.fp16)
        make = mb.state_tensor_placeholder if self.stateful else mb.placeholder
        inputs[STATE] = make(self.cache_shape, dtype=types.fp16)
        with Function(inputs, opset_version=ct.target.iOS18) as function:
            outputs = _FunctionBuilder(self, mb, function.inputs, n_tokens).run(with_logits)
            function.set_outputs(outputs)
        program = Program()
        program.add_function("main", function)
        return program


class _FunctionBuilder:
    """Writes the operations of one function. x is always (1, channels, 1, tokens), fp16."""

    def __init__(self, parent: DecoderProgram, mb: Any, inputs: Mapping[str, Any], n_tokens: int) -> None:
        self._parent, self._decoder, self._context = parent, parent.decoder, parent.context
        self._mb, self._inputs, self._n = mb, inputs, n_tokens
        self._cache: Any = None
        self._new_rows: list[Any] = []
        self._rotary: dict[str, tuple[Any, Any]] = {}
        self._start: Any = inputs["position"]
        self._stop: Any = mb.add(x=self._start, y=np.int32(n_tokens))

    def run(self, with_logits: bool) -> list[Any]:
        mb, decoder = self._mb, self._decoder
        self._positions()
        self._cache = mb.read_state(input=self._inputs[STATE]) if self._parent.stateful else self._inputs[STATE]
        x = self._embed()
        for layer in range(decoder.n_layers):
            last = layer == decoder.n_layers - 1
            x = self._layer(x, layer, only_cache=last and not with_logits)
        outputs = []
        if not self._parent.stateful:
            outputs.append(mb.concat(values=self._new_rows, axis=0, name="new_rows"))
        elif not with_logits:
            # a function needs an output; these rows also let a host check a prefill
            outputs.append(mb.identity(x=self._new_rows[-1], name="last_rows"))
        if with_logits:
            outputs.append(self._logits(x))
        return outputs

    # -- pieces -------------------------------------------------------------------------------------------------

    def _positions(self) -> None:
        mb = self._mb
        rows = mb.add(x=self._start, y=np.arange(self._n, dtype=np.int32))
        for kind, tables in self._parent.tables.items():
            pair = []
            for part, table in zip(("cos", "sin"), tables, strict=True):
                const = mb.const(val=table.astype(np.float16), name=f"rotary_{part}_{kind}")
                picked = mb.gather(x=const, indices=rows, axis=0, validate_indices=False)  # [tokens, dims / 2]
                picked = mb.transpose(x=picked, perm=[1, 0])
                pair.append(mb.expand_dims(x=picked, axes=[0, 1]))  # [1, 1, dims / 2, tokens]
            self._rotary[kind] = (pair[0], pair[1])

    def _embed(self) -> Any:
        mb, decoder = self._mb, self._decoder
        table = self._encode(self._parent.weight("model.embed_tokens"), "embed_tokens", conv=False)
        x = mb.gather(x=table, indices=self._inputs["tokens"], axis=0, validate_indices=False)  # [1, tokens, hidden]
        x = mb.expand_dims(x=mb.transpose(x=x, perm=[0, 2, 1]), axes=[2])
        scale = decoder.embed_scale * decoder.residual_scale
        return x if scale == 1.0 else mb.mul(x=x, y=np.float16(scale))

    def _layer(self, x: Any, layer: int, only_cache: bool) -> Any:
        mb, decoder, prefix = self._mb, self._decoder, f"model.layers.{layer}."
        linears = layer_linears(decoder, layer)
        normed = self._norm(x, prefix + "input_layernorm", residual=True) if decoder.has_pre_norms else x
        turn = layer if not decoder.rotates or decoder.rotates[layer] else None
        keys = self._heads(normed, linears["k"], prefix + "self_attn.k_norm", turn)
        values = self._heads(normed, linears["v"], None, None)
        self._write(keys, values, layer)
        if only_cache:
            return x
        attended = self._attend(self._heads(normed, linears["q"], prefix + "self_attn.q_norm", turn), layer)
        out = self._linear(attended, linears["o"])
        if decoder.has_post_norms:
            out = self._norm(out, prefix + "post_attention_layernorm", scale=decoder.residual_scale)
        x = mb.add(x=x, y=self._scaled(out, decoder.branch_scale))
        before_mlp = "pre_feedforward_layernorm" if decoder.has_post_norms else "post_attention_layernorm"
        normed = self._norm(x, prefix + before_mlp, residual=True) if decoder.has_pre_norms else x
        gate, up = self._linear(normed, linears["gate"]), self._linear(normed, linears["up"])
        gate = mb.silu(x=gate) if decoder.activation == "silu" else mb.gelu(x=gate, mode="TANH_APPROXIMATION")
        out = self._linear(mb.mul(x=gate, y=up), linears["down"])
        if decoder.has_post_norms:
            out = self._norm(out, prefix + "post_feedforward_layernorm", scale=decoder.residual_scale)
        return mb.add(x=x, y=self._scaled(out, decoder.branch_scale))

    def _scaled(self, x: Any, scale: float) -> Any:
        return x if scale == 1.0 else self._mb.mul(x=x, y=np.float16(scale))

    def _heads(self, x: Any, linear: Linear, norm: str | None, rotate_as: int | None) -> Any:
        """Project (1, hidden, 1, tokens) to (1, heads, tokens, head_dim), normed and rotated where asked."""
        mb, dim = self._mb, self._decoder.head_dim
        heads = self._linear(x, linear)
        if norm is not None and self._decoder.has_wide_norms:
            heads, norm = self._norm(heads, norm), None
        heads = mb.reshape(x=heads, shape=[1, (linear.stop - linear.start) // dim, dim, self._n])
        if norm is not None:
            heads = self._norm(heads, norm, axis=2)
        if rotate_as is not None:
            heads = self._rotate(heads, self._decoder.layer_types[rotate_as])
        return mb.transpose(x=heads, perm=[0, 1, 3, 2])

    def _rotate(self, x: Any, kind: str) -> Any:
        mb, n_heads, dim = self._mb, x.shape[1], self._decoder.head_dim
        cos, sin = self._rotary[kind]
        half = cos.shape[2]

        def part(start: int, stop: int) -> Any:
            return mb.slice_by_index(x=x, begin=[0, 0, start, 0], end=[1, n_heads, stop, self._n])

        first, second = part(0, half), part(half, 2 * half)
        turned = [
            mb.sub(x=mb.mul(x=first, y=cos), y=mb.mul(x=second, y=sin)),
            mb.add(x=mb.mul(x=second, y=cos), y=mb.mul(x=first, y=sin)),
        ]
        if 2 * half < dim:  # Phi-4 rotates a part of each head
            turned.append(part(2 * half, dim))
        return mb.concat(values=turned, axis=2)

    def _write(self, keys: Any, values: Any, layer: int) -> None:
        mb, decoder = self._mb, self._decoder
        rows = mb.concat(values=[keys, values], axis=0)  # [2, key heads, tokens, head_dim]
        self._new_rows.append(rows)
        first, last = np.array([2 * layer, 0], np.int32), np.array([2 * layer + 2, decoder.n_kv_heads], np.int32)
        begin = mb.concat(values=[first, self._start, np.array([0], np.int32)], axis=0)
        end = mb.concat(values=[last, self._stop, np.array([decoder.head_dim], np.int32)], axis=0)
        cache = mb.slice_update(x=self._cache, update=rows, begin=begin, end=end)
        if self._parent.stateful:
            cache = mb.coreml_update_state(state=self._inputs[STATE], value=cache)
        self._cache = cache

    def _attend(self, queries: Any, layer: int) -> Any:
        """Attend from (1, heads, tokens, head_dim) to (1, heads x head_dim, 1, tokens); heads with the same keys share one."""
        mb, decoder, n, context = self._mb, self._decoder, self._n, self._context
        kv, groups, dim = decoder.n_kv_heads, decoder.groups, decoder.head_dim
        queries = mb.mul(x=queries, y=np.float16(decoder.attention_scale))
        queries = mb.reshape(x=queries, shape=[1, kv, groups * n, dim])

        def cached(row: int) -> Any:
            return mb.slice_by_index(x=self._cache, begin=[row, 0, 0, 0], end=[row + 1, kv, context, dim])

        scores = mb.matmul(x=queries, y=cached(2 * layer), transpose_y=True)
        scores = mb.reshape(x=scores, shape=[kv, groups, n, context])
        if decoder.attention_softcap is not None:
            scores = self._softcap(scores, decoder.attention_softcap)
        mask = self._inputs["mask" if decoder.window(layer, context) is None else "window_mask"]
        scores = mb.softmax(x=mb.add(x=scores, y=mask), axis=-1)
        scores = mb.reshape(x=scores, shape=[1, kv, groups * n, context])
        out = mb.matmul(x=scores, y=cached(2 * layer + 1))
        out = mb.transpose(x=mb.reshape(x=out, shape=[1, kv * groups, n, dim]), perm=[0, 1, 3, 2])
        return mb.reshape(x=out, shape=[1, kv * groups * dim, 1, n])

    def _logits(self, x: Any) -> Any:
        mb, decoder = self._mb, self._decoder
        if self._n > 1:
            x = mb.slice_by_index(x=x, begin=[0, 0, 0, self._n - 1], end=[1, decoder.hidden, 1, self._n])
        x = self._norm(x, "model.norm", residual=True)
        head = self._parent.weight("model.embed_tokens" if decoder.tied else "lm_head")
        pieces = []
        for start in range(0, decoder.vocab, HEAD_ROWS):
            piece = self._encode(head.rows(start, min(start + HEAD_ROWS, decoder.vocab)), f"head_{start}", conv=True)
            pieces.append(mb.conv(x=x, weight=piece))
        logits = pieces[0] if len(pieces) == 1 else mb.concat(values=pieces, axis=1)
        logits = mb.reshape(x=logits, shape=[1, decoder.vocab])
        logits = self._scaled(logits, 1 / decoder.logit_divisor)
        if decoder.final_softcap is not None:
            logits = self._softcap(logits, decoder.final_softcap)
        return mb.identity(x=logits, name="logits")

    # -- small operations ---------------------------------------------------------------------------------------

    def _softcap(self, x: Any, cap: float) -> Any:
        mb = self._mb
        return mb.mul(x=mb.tanh(x=mb.mul(x=x, y=np.float16(1 / cap))), y=np.float16(cap))

    def _norm(self, x: Any, name: str, axis: int = 1, residual: bool = False, scale: float = 1.0) -> Any:
        """Apply an RMSNorm that cannot overflow in fp16: the input is divided by its largest absolute value first."""
        mb, decoder = self._mb, self._decoder
        weight = self._parent.vector(name + ".weight")
        if weight is None:
            if axis == 2:  # only Qwen3 and Gemma 3 have norms on heads
                return x
            raise KeyError(name)
        weight = (weight + 1.0 if decoder.norm_plus_one else weight) * scale
        shape = [1, 1, 1, 1]
        shape[axis] = -1
        root_eps = decoder.norm_eps**0.5 * (decoder.residual_scale if residual else 1.0)
        largest = mb.maximum(x=mb.reduce_max(x=mb.abs(x=x), axes=[axis], keep_dims=True), y=np.float16(SMALLEST))
        x = mb.real_div(x=x, y=largest)
        eps = mb.real_div(x=np.full((1, 1, 1, 1), root_eps, np.float16), y=largest)
        mean = mb.reduce_mean(x=mb.mul(x=x, y=x), axes=[axis], keep_dims=True)
        x = mb.mul(x=x, y=mb.rsqrt(x=mb.add(x=mean, y=mb.mul(x=eps, y=eps)), epsilon=np.float16(0)))
        return mb.mul(x=x, y=weight.astype(np.float16).reshape(shape))

    def _linear(self, x: Any, linear: Linear) -> Any:
        mb = self._mb
        weight = self._parent.weight(linear.tensor).rows(linear.start, linear.stop)
        arguments = {"x": x, "weight": self._encode(weight, f"{linear.tensor}_{linear.start}", conv=True)}
        bias = self._parent.vector(linear.tensor + ".bias")
        if bias is not None:
            arguments["bias"] = bias[linear.start : linear.stop].astype(np.float16)
        return mb.conv(**arguments)

    def _encode(self, weight: Weight, name: str, conv: bool) -> Any:
        """Add a matrix as a constant or a constexpr: [rows, columns], or [rows, columns, 1, 1] for a convolution."""
        mb, name = self._mb, name.replace(".", "_")
        tail = (1, 1) if conv else ()

        def shaped(array: Any) -> Any:
            return array.reshape(array.shape + tail)

        if isinstance(weight, Dense):
            return mb.const(val=shaped(weight.values), name=name)
        if isinstance(weight, Blocks):
            offset = {} if weight.offset is None else {"offset": shaped(weight.offset)}
            codes = _sub_byte(shaped(weight.codes), weight.bits)
            return mb.constexpr_blockwise_shift_scale(data=codes, scale=shaped(weight.scale), name=name, **offset)
        if isinstance(weight, Palette):
            n_groups, size = weight.lut.shape
            lut = weight.lut.reshape(n_groups, 1, *tail, size, 1)
            return mb.constexpr_lut_to_dense(indices=_sub_byte(shaped(weight.indices), weight.bits), lut=lut, name=name)
        raise TypeError(weight)


def _sub_byte(array: Any, bits: int) -> Any:
    """Mark an array of bytes as one of 4 or 6 bits per element, as coremltools does."""
    from coremltools.converters.mil.mil import types

    if bits == 8:
        return array
    return array.view(types.nptype_from_builtin(types.string_to_builtin(f"uint{bits}")))
