"""The Core ML backend beyond the contract: held to the converters' own runner, and to what coremltools can and cannot do."""

from __future__ import annotations

import gc
import json
import platform
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra [convert]")
pytest.importorskip("coremltools", reason="needs the extra [convert]")

import edge.backends.coreml.backend
from edge.backends.base import open_backend
from edge.backends.coreml import engine as coreml_engine
from edge.backends.coreml.backend import CoreMLBackend
from edge.backends.coreml.engine import Share, open_functions, placement_text, read_placement
from edge.backends.coreml.sequence import CoreMLSequence
from edge.errors import BackendError, BackendUnavailableError, ModelFileError, UsageError
from edge.formats.coreml import METADATA_KEY, PackageInfo, read_info, read_package
from edge.types import Sampling
from edge_convert.coreml.runner import PackageRunner, load_functions
from tests.checkpoints import add_tokens
from tests.contract.coreml import coreml_plan, open_coreml, write_package
from tests.shared import made_once
from tests.standins import coremltools_predict
from tests.standins.coremltools_predict import make_coremltools

KINDS = ["coreml", "coreml-explicit", "gemma3"]
PackageOf = Callable[[str], Path]


@pytest.fixture(scope="module")
def package_of(coreml_package: PackageOf, tmp_path_factory: pytest.TempPathFactory) -> PackageOf:
    """The packages of the contract, and one with a sliding window whose chunks do not divide its context."""

    def path_of(kind: str) -> Path:
        if kind != "gemma3":
            return coreml_package(kind)
        folder = made_once(
            tmp_path_factory, "contract/gemma3", lambda path: write_package(path, context=96, chunk=20, kind="gemma3")
        )
        return folder / "package" / "model.mlpackage"

    return path_of


@pytest.fixture
def open_one(package_of: PackageOf, plan_for: Any, tmp_path: Path) -> Callable[..., CoreMLBackend]:
    """Opens the backend on a package, with changes to the plan and options."""

    def opened(kind: str = "coreml", plan: dict[str, Any] | None = None, **options: Any) -> CoreMLBackend:
        path = package_of(kind)
        changes = {"n_ctx": read_package(path).info.context} | (plan or {})
        return open_coreml(coreml_plan(plan_for, path, **changes), tmp_path / "cache", **options)

    return opened


def sequence_on(package: Path, cache_dir: Path, coremltools: Any = None) -> CoreMLSequence:
    found = read_package(package)
    functions = open_functions(coremltools or make_coremltools(), found, "CPU_ONLY", cache_dir, found.sha256())
    return CoreMLSequence(functions, found.info)


# -- against the converters, and Apple


def test_coremltools_reads_the_same_of_a_package(coreml_package: PackageOf) -> None:
    """The protobuf reader against Apple's, and the fields against what the exporter wrote."""
    import coremltools as ct

    for kind in ("coreml", "coreml-explicit"):
        path = coreml_package(kind)
        metadata = dict(ct.utils.load_spec(str(path)).description.metadata.userDefined)
        ours, theirs = read_package(path).info, read_info(metadata, path.name)
        written = json.loads(metadata[METADATA_KEY])
        assert msgspec.to_builtins(ours) == msgspec.to_builtins(theirs) == written
        assert (ours.cache_shape, ours.stateful) == (theirs.cache_shape, kind == "coreml")
    assert {field.name for field in msgspec.structs.fields(PackageInfo)} == set(written)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_converters_runner(kind: str, package_of: PackageOf, tmp_path: Path) -> None:
    """Prompts in whole chunks, parts of chunks and single tokens, up to the last row of the cache."""
    package = package_of(kind)
    sequence, oracle = sequence_on(package, tmp_path), PackageRunner(load_functions(package, "evaluator"))
    info = read_package(package).info
    tokens = [int(token) for token in np.random.default_rng(5).integers(20, 256, info.context)]
    pieces = [info.chunk, 7, 1, info.chunk // 2, *([info.chunk] * 8)]
    start = 0
    for size in pieces:
        piece = tokens[start : start + min(size, info.context - start)]
        if not piece:
            break
        sequence.prefill(piece)
        start += len(piece)
        expected = oracle.feed(piece)
        # The runner leaves the last token of each piece as `decode` computed it, so bits may differ from the second piece on.
        np.testing.assert_allclose(sequence.newest_logits(), expected, rtol=0, atol=0.03 * expected.std())
    assert start == info.context, "the last rows were never reached"


def test_a_chunk_that_would_run_past_the_cache_begins_earlier(package_of: PackageOf, tmp_path: Path) -> None:
    package = package_of("gemma3")
    tokens = [int(token) for token in np.random.default_rng(6).integers(20, 256, 96)]
    given, imported = sequence_on(package, tmp_path), sequence_on(package, tmp_path)
    for start in range(0, 80, 20):
        given.prefill(tokens[start : start + 20])
    given.decode(tokens[80])
    imported.append_rows(given.tokens, given.read_rows(0, 81))  # the tokens it goes back to came with the rows
    for sequence in (given, imported):
        sequence.prefill(tokens[81:96])
    expected = PackageRunner(load_functions(package, "evaluator")).feed(tokens)
    for sequence in (given, imported):
        np.testing.assert_allclose(sequence.newest_logits(), expected, rtol=0, atol=0.03 * expected.std())


# -- the state


class Blurring:
    """A compute unit that rounds otherwise in `decode` than in `prefill`: the row that `decode` writes is a little off."""

    def __init__(self, coremltools: Any) -> None:
        self.real = coremltools.models.CompiledMLModel
        coremltools.models.CompiledMLModel = self.load
        self.is_decode = False

    def load(self, path: str, compute_units: Any, function_name: str) -> Any:
        model = self.real(path, compute_units=compute_units, function_name=function_name)
        if function_name == "decode":
            predict = model.predict

            def blurred(data: dict[str, Any], state: Any = None) -> dict[str, Any]:
                result: dict[str, Any] = predict(data, state)
                row = int(data["position"][0])
                if state is None:
                    result["new_rows"] *= 1.01
                else:
                    cache = state.read_state("kv_cache")
                    cache[:, :, row] *= 1.01
                    state.write_state("kv_cache", cache)
                return result

            model.predict = blurred
        return model


@pytest.mark.parametrize("kind", ["coreml", "coreml-explicit"])
def test_asking_for_logits_does_not_change_a_whole_chunk(kind: str, package_of: PackageOf, tmp_path: Path) -> None:
    coremltools = make_coremltools()
    Blurring(coremltools)
    sequence = sequence_on(package_of(kind), tmp_path, coremltools)
    tokens = list(range(50, 114))
    sequence.prefill(tokens[:20])
    sequence.prefill(tokens[20:32])
    read = sequence.read_rows(0, 32)
    first = sequence.newest_logits()
    np.testing.assert_array_equal(sequence.read_rows(0, 32), read)
    np.testing.assert_array_equal(sequence.newest_logits(), first)
    sequence.decode(tokens[32])
    assert (sequence.read_rows(0, 32) == read).all()
    sequence.truncate(31)
    sequence.decode(tokens[31])
    assert (sequence.read_rows(31, 32) != read[:, :, 31:]).any(), "this unit was meant to round otherwise"


def test_many_blocks_cost_one_transfer_of_the_state(
    open_one: Callable[..., CoreMLBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("read_state", "write_state"):
        real = getattr(coremltools_predict.MLState, name)
        monkeypatch.setattr(
            coremltools_predict.MLState, name, lambda *a, _real=real, _name=name: (calls.append(_name), _real(*a))[1]
        )
    with open_one() as backend:
        tokens = list(range(40, 240))
        backend.prefill(0, tokens)
        blocks = [backend.export_kv(0, start, start + 40) for start in range(0, 200, 40)]
        assert calls == ["read_state"]
        backend.rewind(0, 0)
        calls.clear()
        for block in blocks:
            backend.import_kv(0, block)
        assert calls == [], "nothing is there before, and nothing is written before it is needed"
        backend.decode([(0, 50)])
        assert calls == ["write_state"]
        backend.decode([(0, 51)])
        assert calls == ["write_state"]


def test_blocks_hold_the_cache_in_float16(open_one: Callable[..., CoreMLBackend]) -> None:
    with open_one() as backend:
        backend.prefill(0, list(range(60, 92)))
        layers, heads, width = 2, 2, 32
        assert len(backend.export_kv(0, 3, 32)) == 24 + 29 * (4 + 2 * layers * heads * width * 2)
        other = bytearray(backend.export_kv(0, 0, 32))
        other[24:28] = (10**6).to_bytes(4, "little")
        with pytest.raises(BackendError, match="another model"):
            backend.import_kv(1, bytes(other))
        assert backend.length(1) == 0


def test_sequences_that_are_emptied_free_their_states_but_for_one(
    open_one: Callable[..., CoreMLBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[CoreMLSequence] = weakref.WeakSet()

    class Counted(CoreMLSequence):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            alive.add(self)

    monkeypatch.setattr(edge.backends.coreml.backend, "CoreMLSequence", Counted)
    with open_one() as backend:
        for seq_id in range(4):
            backend.prefill(seq_id, [40 + seq_id, 50])
        assert len(alive) == 4
        for seq_id in range(4):
            backend.rewind(seq_id, 0)
        gc.collect()
        assert len(alive) == 1, "the next conversation begins on it"


# -- what goes wrong


def test_what_core_ml_raises_is_an_error_of_ours_and_changes_nothing(open_one: Callable[..., CoreMLBackend]) -> None:
    fails: list[str] = []

    def fault(function: str, outputs: dict[str, Any]) -> None:
        if function in fails:
            raise RuntimeError("Unable to compute the prediction using ML Program")

    with open_one(coremltools=make_coremltools(fault=fault)) as backend:
        backend.prefill(0, list(range(40, 50)))
        before = backend.logits(0)
        fails.append("decode")
        with pytest.raises(BackendError, match="Unable to compute the prediction"):
            backend.decode([(0, 40)])
        backend.prefill(1, [40, 41])
        with pytest.raises(BackendError, match="Unable to compute"):
            backend.logits(1)
        with pytest.raises(BackendError, match="Unable to compute"):
            backend.open_sampler(Sampling()).sample(1)
        fails[:] = ["prefill"]
        with pytest.raises(BackendError, match="Unable to compute"):
            backend.prefill(0, list(range(40, 60)))
        assert [backend.length(seq_id) for seq_id in range(2)] == [10, 2]
        fails.clear()
        backend.rewind(0, 0)
        backend.prefill(0, list(range(40, 50)))
        np.testing.assert_array_equal(backend.logits(0), before)
        assert backend.logits(1).shape == before.shape


def test_numbers_that_are_none_are_not_sampled_from(open_one: Callable[..., CoreMLBackend]) -> None:
    def fault(function: str, outputs: dict[str, Any]) -> None:
        if "logits" in outputs:
            outputs["logits"][:] = np.nan

    with open_one(coremltools=make_coremltools(fault=fault)) as backend:
        backend.prefill(0, [40, 41])
        with pytest.raises(BackendError, match="not numbers"):
            backend.open_sampler(Sampling(temperature=0)).sample(0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"n_ctx": 512}, r"512 tokens is asked for, and model.mlpackage is built for 256"), ({"kv_type_k": "q8_0"}, "q8_0")],
)
def test_what_a_package_cannot_do_is_refused(
    open_one: Callable[..., CoreMLBackend], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        open_one(plan=changes)


def test_a_smaller_context_than_the_package_has(open_one: Callable[..., CoreMLBackend]) -> None:
    with open_one(plan={"n_ctx": 100}) as backend:
        assert backend.n_ctx == 100
        assert backend.prefill(0, list(range(40, 140))) == 100


def test_a_tokenizer_of_another_model_is_refused(package_of: PackageOf, plan_for: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(package_of("coreml").parent, tmp_path / "copy", ignore=shutil.ignore_patterns("cache"))
    plan = coreml_plan(plan_for, folder / "model.mlpackage")
    add_tokens(folder, {"<picture>": True})
    with open_coreml(plan, tmp_path) as backend:
        assert backend.info.n_vocab == 601
        assert max(backend.tokenizer.tokenize("a <picture>")) < 601
        with pytest.raises(UsageError, match="'<picture>', which this model does not know"):
            backend.tokenizer.tokenize("a <picture>", parse_special=True)
        with pytest.raises(UsageError, match="no token 601"):
            backend.prefill(0, [601])
    add_tokens(folder, {f"<{n}>": True for n in range(256)})
    with pytest.raises(ModelFileError, match="858 tokens, the model 601"):
        open_coreml(plan, tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelFileError, match=r"tokenizer\.json is missing"):
        open_coreml(plan, tmp_path)


@pytest.mark.parametrize(
    ("system", "version", "message"),
    [("Linux", "", "run on a Mac only, and this is Linux"), ("Darwin", "14.7.1", "need macOS 15 or later.*14.7.1")],
)
def test_away_from_a_mac_it_says_so(
    package_of: PackageOf, plan_for: Any, monkeypatch: pytest.MonkeyPatch, system: str, version: str, message: str
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "mac_ver", lambda: (version, ("", "", ""), "arm64"))
    with pytest.raises(BackendUnavailableError, match=message) as caught:
        open_backend(coreml_plan(plan_for, package_of("coreml")))
    assert "GGUF" in caught.value.hint


# -- compiled models


def test_a_package_is_compiled_once_and_again_where_that_was_damaged(
    package_of: PackageOf, plan_for: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coremltools = make_coremltools()
    compiled: list[str] = []
    compile_model = coremltools.models.utils.compile_model
    coremltools.models.utils.compile_model = lambda *a: (compiled.append(a[0]), compile_model(*a))[1]
    plan = coreml_plan(plan_for, package_of("coreml"))

    def kept() -> list[Path]:
        return sorted(path for path in (tmp_path / "coreml").iterdir() if path.is_dir())

    for _ in range(2):
        open_coreml(plan, tmp_path, coremltools=coremltools).close()
    assert len(compiled) == 1
    (folder,) = kept()
    shutil.rmtree(folder / "package.mlpackage")
    open_coreml(plan, tmp_path, coremltools=coremltools).close()
    assert (len(compiled), kept()) == (2, [folder])
    for version in range(6):  # each version of the system compiles again, and old ones are deleted
        monkeypatch.setattr(coreml_engine, "os_identity", lambda version=version: f"Darwin {version}")
        open_coreml(plan, tmp_path, coremltools=coremltools).close()
    assert len(compiled) == 8
    assert len(kept()) == 4 and folder not in kept()


def test_what_does_not_compile_or_load_is_a_clear_error(package_of: PackageOf, plan_for: Any, tmp_path: Path) -> None:
    plan = coreml_plan(plan_for, package_of("coreml"))

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("Error compiling model: unsupported operation")

    coremltools = make_coremltools()
    coremltools.models.CompiledMLModel = refuse
    with pytest.raises(BackendError, match=r"does not load model.mlpackage on the Neural Engine: .*unsupported"):
        open_coreml(plan, tmp_path, coremltools=coremltools)
    coremltools.models.utils.compile_model = refuse
    with pytest.raises(ModelFileError, match=r"cannot compile model.mlpackage: .*unsupported"):
        open_coreml(plan, tmp_path / "other", coremltools=coremltools)
    assert list((tmp_path / "other" / "coreml").iterdir()) == [], "nothing half-made is left"


# -- the receipt


def test_the_compute_plan_becomes_shares(package_of: PackageOf, tmp_path: Path) -> None:
    package = read_package(package_of("coreml"))
    coremltools = make_coremltools(device_of=lambda operation: {"conv": "ane", "softmax": "gpu"}.get(operation, "cpu"))
    functions = open_functions(coremltools, package, "CPU_AND_NE", tmp_path, package.sha256())
    shares = read_placement(coremltools, functions, "CPU_AND_NE")
    by_device = {share.device: share for share in shares}
    assert set(by_device) == {"Neural Engine", "GPU", "CPU"}
    assert by_device["Neural Engine"].n_operations == 7 * 2 + 1, "seven matrices a layer and the head; constants do not count"
    assert by_device["GPU"].n_operations == 2
    assert sum(share.cost for share in shares) == pytest.approx(1)
    assert shares[0].device == max(shares, key=lambda share: share.cost).device
    text = placement_text((Share("Neural Engine", 1204, 0.966), Share("CPU", 26, 0.034)))
    assert text == "Neural Engine 97 % of the work (1,204 operations), CPU 3 % of the work (26 operations)"


def test_the_model_says_what_it_is_and_where_it_runs(open_one: Callable[..., CoreMLBackend]) -> None:
    from edge.backends.coreml.trial import Verdict

    with open_one(verdict=Verdict(is_good=True, placement=(Share("CPU", 80, 1.0),)), plan={"accelerator": "metal"}) as backend:
        info = backend.info
        assert info.details["compute units"] == "CPU_AND_GPU"
        assert info.details["placement"] == "CPU 100 % of the work (80 operations)"
        assert info.details["cache"] == "Core ML state"
        assert info.n_params == 372_480 and info.n_ctx_train == 512
        assert backend.kv_identity()["units"] == "CPU_AND_GPU"
