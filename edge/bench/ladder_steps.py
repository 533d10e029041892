"""The steps of the ladder: what each one adds to the setup below it, or why it cannot be tried here."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec.structs import replace

from edge.bench.ladder_values import Kind, Setup
from edge.errors import EdgeError
from edge.plan.checks import engines_with
from edge.plan.make import make_plan
from edge.plan.placement import find_targets, is_installed
from edge.plan.receipt import PlanRequest
from edge.registry import ENGINES

if TYPE_CHECKING:
    from edge.device.profile import DeviceProfile
    from edge.formats.artifact import Artifact
    from edge.names import Accelerator
    from edge.plan.receipt import Plan
    from edge.registry import EngineRow

__all__ = ["STEPS", "Models", "Step", "Variant", "naive_setup"]

_NO_WORSE = 0.8


@dataclass(frozen=True)
class Models:
    """What the ladder is climbed with.

    Attributes:
        device: from `edge.device.probe`.
        start: the model of the first rung, in 16 bits where that can be made.
        packed: the model as it is, in each of its formats, if `start` was made of it; otherwise other formats of it.
        source: that of which `start` was made: the same weights, packed; None if it is the model as it is.
        student: the same model with fewer layers; None without one.
        draft: a smaller model that guesses tokens; None without one.
        engines: names that may be used; () for every one that is installed and chosen unasked.
        n_ctx: context window, in tokens.
    """

    device: DeviceProfile
    start: Artifact
    packed: tuple[Artifact, ...] = ()
    source: Artifact | None = None
    student: Artifact | None = None
    draft: Artifact | None = None
    engines: tuple[str, ...] = ()
    n_ctx: int = 4096

    def rows(self, artifact: Artifact) -> list[EngineRow]:
        """Return the engines that may run a model, the usual one first."""
        allowed = [ENGINES[name] for name in self.engines] or [row for row in ENGINES.values() if row.is_automatic]
        return [row for row in allowed if artifact.format in row.formats and is_installed(self.device, row)]

    def plan(self, artifact: Artifact, backend: str, accelerator: Accelerator) -> Plan:
        """Return how edge would run a model there.

        Raises:
            EdgeError: it cannot.
        """
        return make_plan(self.device, artifact, PlanRequest(backend=backend, require=accelerator, context=self.n_ctx))


@dataclass(frozen=True)
class Variant:
    """One way to take a step."""

    title: str
    setup: Setup


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: short and stable.
        kind: whether it changes what the model computes beyond rounding.
        variants: takes models and the setup below; returns what to try, or why there is nothing.
        is_about_speed: it makes passes faster or slower, and saves none; so where nothing is reused yet, it is judged by what
            it would gain if only new tokens were computed.
        worth: times faster that it has to be; below 1 where it costs nothing, and helps later if not in every turn.
    """

    name: str
    kind: Kind
    variants: Callable[[Models, Setup], Sequence[Variant] | str]
    is_about_speed: bool = False
    worth: float = 1.01


def naive_setup(models: Models) -> Setup:
    """Return the naive way: one thread of the CPU, plain attention, and every prompt computed from its first token.

    Raises:
        EdgeError: no engine here runs the model on the CPU.
    """
    row = models.rows(models.start)[0]
    plan = models.plan(models.start, row.name, "cpu")
    return replace(
        _setup(plan, models.start), threads=1, threads_batch=1, flash_attention=plan.flash_attention and not _has_flash(row)
    )


def _setup(plan: Plan, artifact: Artifact, below: Setup | None = None) -> Setup:
    """Return how a plan runs; on the CPU with the threads, and on the same engine with the attention, of the setup below."""
    values = {
        "path": os.fsencode(artifact.path),
        "weights": artifact.quantisation or "as they are",
        "backend": plan.backend,
        "accelerator": plan.accelerator,
        "threads": plan.n_threads,
        "threads_batch": plan.n_threads_batch,
        "n_ubatch": plan.n_ubatch,
        "flash_attention": plan.flash_attention,
        "prefill_with": None,
    }
    if below is None:
        return Setup(**values)  # type: ignore[arg-type]
    if plan.accelerator == "cpu":
        own = "threads_batch" in ENGINES[plan.backend].options
        values |= {"threads": below.threads, "threads_batch": below.threads_batch if own else below.threads}
    if plan.backend == below.backend:
        values["flash_attention"] = below.flash_attention
    if below.kv_type not in ENGINES[plan.backend].kv_types:
        values["kv_type"] = None
    return replace(below, **values)


def _has_flash(row: EngineRow) -> bool:
    return "flash_attention" in row.options


def _threads(models: Models, below: Setup) -> list[Variant] | str:
    plan = models.plan(models.start, below.backend, "cpu")
    changed = replace(below, threads=plan.n_threads, threads_batch=plan.n_threads_batch, n_ubatch=plan.n_ubatch)
    if changed == below:
        return "there is one core"
    return [Variant(f"{plan.n_threads} threads, batches of {plan.n_ubatch}", changed)]


def _flash(models: Models, below: Setup) -> list[Variant] | str:
    plan = models.plan(models.start, below.backend, "cpu")
    if not _has_flash(ENGINES[below.backend]) or not plan.flash_attention:
        return f"{ENGINES[below.backend].title} has no choice of attention for this model"
    return [Variant("flash attention", replace(below, flash_attention=True))]


def _engine(models: Models, below: Setup) -> list[Variant] | str:
    return (
        _on_engines(models, models.start, below, with_below=False) or "no other engine or accelerator here runs these weights"
    )


def _on_engines(models: Models, artifact: Artifact, below: Setup, *, with_below: bool) -> list[Variant]:
    """Return a variant for each engine and accelerator that runs a model, the one of the setup below first."""
    found: list[Variant] = []
    for row in models.rows(artifact):
        for target in find_targets(models.device, row, PlanRequest())[0]:
            is_below = (row.name, target.accelerator) == (below.backend, below.accelerator)
            if is_below and not with_below:
                continue
            try:
                plan = models.plan(artifact, row.name, target.accelerator)
            except EdgeError:
                continue
            where = "" if target.accelerator == "cpu" else f" on {target.accelerator}"
            variant = Variant(f"{row.title}{where}", _setup(plan, artifact, below))
            found.insert(0 if is_below else len(found), variant)
    return found


def _in_floats(models: Models, below: Setup) -> list[Variant] | str:
    """Return the packed weights on engines that need not round the inputs of products to 8 bits for them."""
    if models.source is None:
        return "the model has no fewer bits than on the first rung"
    able = engines_with("f32", models.source, models.device.cpu)
    found = [
        Variant(f"{models.source.quantisation} in floats, {one.title}", replace(one.setup, kv_type="f32"))
        for one in _on_engines(models, models.source, below, with_below=True)
        if one.setup.backend in able and one.setup.accelerator == "cpu"
    ]
    return found or "no engine here computes packed weights in floats"


def _two_engines(models: Models, below: Setup) -> list[Variant] | str:
    if below.kv_type is not None:
        return f"no other engine reads keys and values in {below.kv_type}"
    return _prefilled_elsewhere(models, models.start, below) or "no second engine here runs these weights"


def _prefilled_elsewhere(models: Models, artifact: Artifact, setup: Setup) -> list[Variant]:
    """Return a variant for each other engine that may prefill, on the same accelerator, what this one decodes."""
    others = [row for row in models.rows(artifact) if row.name != setup.backend and setup.accelerator in row.accelerators]
    title = ENGINES[setup.backend].title
    return [Variant(f"{row.title} prefills, {title} decodes", replace(setup, prefill_with=row.name)) for row in others]


def _switch(title: str, **changes: bool) -> Callable[[Models, Setup], list[Variant] | str]:
    return lambda models, below: [Variant(title, replace(below, **changes))]


def _draft(models: Models, below: Setup) -> list[Variant] | str:
    if models.draft is None:
        return "no draft model was given (--draft)"
    if os.fsencode(models.draft.path) == below.path:
        return "the model itself is no draft of its own"
    return [Variant(f"draft model {models.draft.name}", replace(below, draft=os.fsencode(models.draft.path)))]


def _packed(models: Models, below: Setup) -> list[Variant] | str:
    if not models.packed:
        return "the model has no fewer bits than on the first rung"
    found: list[Variant] = []
    for artifact in models.packed:
        kind = artifact.quantisation if artifact.format == "gguf" else artifact.kind
        tried = _on_engines(models, artifact, replace(below, draft=None, kv_type=None), with_below=True)
        tried += [pair for one in tried for pair in _prefilled_elsewhere(models, artifact, one.setup)]
        found += [Variant(f"{kind}, {one.title}", one.setup) for one in tried]
    return found or "no engine here runs it"


def _kv_type(models: Models, below: Setup) -> list[Variant] | str:
    row = ENGINES[below.backend]
    kv_type = next((name for name in ("q8_0", "u8") if name in row.kv_types), None)
    if kv_type is None:
        return f"{row.title} has no 8 bits for keys and values"
    if below.prefill_with is not None:
        return "two engines hand over keys and values as f16"
    return [Variant("KV cache in 8 bits", replace(below, kv_type=kv_type, flash_attention=True))]


def _student(models: Models, below: Setup) -> list[Variant] | str:
    if models.student is None:
        return "no student was given (--student); edge convert --keep-layers makes one"
    kv_type = None if below.kv_type == "f32" else below.kv_type
    found = _on_engines(models, models.student, replace(below, draft=None, kv_type=kv_type), with_below=True)
    kind = models.student.quantisation
    return [Variant(f"fewer layers, {kind}, {one.title}", one.setup) for one in found] or f"no engine here runs {kind}"


STEPS = (
    Step("threads", "lossless", _threads, is_about_speed=True),
    Step("attention", "lossless", _flash, is_about_speed=True),
    Step("engine", "lossless", _engine, is_about_speed=True),
    Step("floats", "lossless", _in_floats, is_about_speed=True),
    Step("two-engines", "lossless", _two_engines, is_about_speed=True),
    Step("prefix", "lossless", _switch("prefixes are reused", reuses=True), worth=_NO_WORSE),
    Step("disk", "lossless", _switch("KV cache on the disk", disk=True), worth=_NO_WORSE),
    Step("read-ahead", "lossless", _switch("read-ahead while typing", read_ahead=True), worth=_NO_WORSE),
    Step("speculation", "lossless", _switch("guesses from the text", speculates=True), worth=_NO_WORSE),
    Step("draft", "lossless", _draft),
    Step("int4", "lossy", _packed),
    Step("kv-type", "lossy", _kv_type),
    Step("layers", "lossy", _student),
)
