"""`edge devices` and `edge doctor` on machines that are not this one."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import edge.backends.llamacpp.canary
from edge.config import load_settings
from edge.conversation import ConversationStore
from edge.device import Apple, Cpu, DeviceProfile, Engine, Gpu, Host, Jetson, Memory, Power, Thermal
from edge.device.sensors import Readings
from edge.errors import BackendUnavailableError, EdgeError, ModelNotFoundError, ModelTooLargeError
from edge.formats.artifact import Artifact
from edge.plan import Choice, MemoryEstimate, Plan
from edge.plan.advice import advice
from edge.plan.receipt import Safety
from edge_cli.app import App
from edge_cli.devices import device_rows

GB = 1 << 30

LAPTOP = DeviceProfile(
    name="Dell XPS 13",
    kind="computer",
    host=Host("Linux 6.8", "3.11.7", "", ""),
    cpu=Cpu("Core i7", "x86_64", 8, 0, 4, 0, 1.0, 4, 0, 8, None, (), ("avx2", "fma")),
    memory=Memory(16 * GB, 10 * GB, 16 * GB, "", 0, 0),
    gpus=(),
    jetson=None,
    apple=None,
    power=Power("mains", 80, False, ""),
    thermal=Thermal("nominal", 45.0, "x86_pkg_temp"),
    engines=(Engine("llamacpp", "llama-cpp-python", "0.3.36", ("cpu",)), Engine("coreml", "coremltools", "", ())),
)

JETSON = dataclasses.replace(
    LAPTOP,
    name="NVIDIA Jetson Orin Nano",
    kind="jetson",
    gpus=(Gpu("Orin", "cuda", 8 * GB, 6 * GB, True, "8.7", "12.6"),),
    jetson=Jetson("NVIDIA Jetson Orin Nano", "tegra234", "36.4.3", "6.2", "15W", ((0, "15W"), (1, "25W"), (2, "MAXN"))),
    thermal=Thermal("throttled", 99.0, "tj-thermal"),
)

MAC = dataclasses.replace(
    LAPTOP,
    name="Apple M3 Pro",
    kind="mac",
    cpu=dataclasses.replace(LAPTOP.cpu, name="Apple M3 Pro", architecture="aarch64", n_efficiency=6),
    gpus=(Gpu("Apple M3 Pro", "metal", 27 * GB, 20 * GB, True, "", ""),),
    apple=Apple("Apple M3 Pro", "Mac15,6", "15.5", True),
    power=Power("battery", 40, True, ""),
    engines=(Engine("llamacpp", "llama-cpp-python", "0.3.36", ("metal", "cpu")),),
)

CONTAINER = dataclasses.replace(
    LAPTOP,
    host=Host("Linux 6.8", "3.11.7", "docker", "KVM"),
    cpu=dataclasses.replace(LAPTOP.cpu, usable_logical=2, limits=("the cgroup pays for 1.5 of 8 CPUs",)),
    memory=Memory(2 * GB, GB, 16 * GB, "the cgroup's memory limit", 0, 0),
)


SILENT = Readings()


def make_plan(total_bytes: int = GB, gpu_layers: int = 0) -> Plan:
    return Plan(
        backend="llamacpp",
        accelerator="cpu",
        artifact=Artifact(Path("/models/m.gguf"), "gguf", "m", GB // 2),
        n_ctx=2048,
        n_seq=4,
        n_threads=4,
        n_threads_batch=4,
        n_ubatch=512,
        gpu_layers=gpu_layers,
        kv_type_k="f16",
        kv_type_v="f16",
        flash_attention=False,
        use_mmap=True,
        use_extra_buffers=True,
        memory=MemoryEstimate(GB // 2, GB // 4, GB // 4, total_bytes, 10 * GB),
        choices=(Choice("context", "2,048 tokens", "you asked for it"),),
    )


@pytest.fixture(autouse=True)
def safe_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The canary has tests of its own; here its verdict is given."""
    monkeypatch.setattr(edge.backends.llamacpp.canary, "load_safety", lambda cache_dir: Safety(True, ""))


def doctor_app(profile: DeviceProfile = LAPTOP, plan: Plan | EdgeError | None = None, readings: Readings = SILENT) -> App:
    def make(**_: object) -> Plan:
        if isinstance(plan, EdgeError):
            raise plan
        return plan or make_plan()

    return App(plan=make, probe=lambda: profile, sense=lambda: readings)


@pytest.mark.parametrize("profile", [LAPTOP, JETSON, MAC, CONTAINER], ids=lambda profile: profile.name)
def test_devices_as_json_come_back(call: Any, profile: DeviceProfile) -> None:
    result = call("devices", "--json", app=App(probe=lambda: profile))
    assert DeviceProfile.from_dict(json.loads(result.out)) == profile


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        (LAPTOP, ["Core i7, x86_64: 4 cores, 8 threads", "none that an engine can use", "mains, 80 %"]),
        (JETSON, ["JetPack 6.2", "Jetson Linux 36.4.3", "8.6 GB shared with the processor", "throttled, 99 °C"]),
        (MAC, ["macOS 15.5, with a Neural Engine", "10 cores (4 fast, 6 efficient)", "battery, 40 %, saving power"]),
        (CONTAINER, ["in docker", "the cgroup pays for 1.5 of 8 CPUs", "the cgroup's memory limit (the machine has 17.2 GB)"]),
    ],
    ids=lambda value: value.name if isinstance(value, DeviceProfile) else "",
)
def test_devices_say_what_matters(call: Any, profile: DeviceProfile, said: list[str]) -> None:
    out = call("devices", app=App(probe=lambda: profile)).out
    for text in said:
        assert text in out
    assert all(value for _, value in device_rows(profile))


def test_this_machine_is_found_out(call: Any) -> None:
    found = json.loads(call("devices", "--json").out)
    assert found["cpu"]["n_logical"] >= 1
    assert found["memory"]["total_bytes"] > 0


def test_doctor_in_order(call: Any, own_home: Path) -> None:
    result = call("doctor", app=doctor_app())
    assert (result.code, result.err) == (0, "")
    assert "Everything is in order." in result.out
    assert "you asked for it" in result.out
    report = json.loads(call("doctor", "--json", app=doctor_app()).out)
    assert report["is_ok"] is True
    assert report["advice"] == advice(LAPTOP, make_plan())
    assert report["plan"]["n_ctx"] == 2048
    assert {check["state"] for check in report["checks"]} <= {"ok", "note"}
    assert not (own_home / "data").exists()


def test_doctor_says_what_would_make_it_faster(call: Any) -> None:
    said = advice(JETSON, make_plan())
    assert said
    out = call("doctor", app=doctor_app(JETSON)).out
    assert all(text in out for text in said)


def test_a_command_in_an_advice_has_a_line_of_its_own_on_a_terminal(
    call: Any, terminal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    call("doctor", app=doctor_app(JETSON))
    assert "      sudo nvpmodel -m 2\n" in screen.written()


def findings(call: Any, app: App, code: int) -> dict[str, dict[str, str]]:
    result = call("doctor", "--json", app=app)
    assert (result.code, result.err) == (code, "")
    report = json.loads(result.out)
    assert report["is_ok"] is (code == 0)
    text = call("doctor", app=app)
    assert text.code == code
    for check in report["checks"]:
        assert check["text"] in text.out
    return {check["what"]: check for check in report["checks"]}


def test_doctor_without_the_default_model(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    app = doctor_app(plan=ModelNotFoundError("smollm2-135m is not on this device.", "Pull it."))
    assert findings(call, app, 0)["model"]["state"] == "note"
    monkeypatch.setenv("EDGE_HUB_OFFLINE", "1")
    assert findings(call, app, 1)["model"]["state"] == "broken"
    monkeypatch.setenv("EDGE_HUB_OFFLINE", "0")
    monkeypatch.setenv("EDGE_MODEL", "/not/there.gguf")
    assert findings(call, app, 1)["model"]["state"] == "broken"


def test_doctor_with_an_adapter_that_is_missing(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.catalog.resolve", lambda *_, **__: None)  # the model itself is here
    app = doctor_app(plan=ModelNotFoundError("There is no adapter nope.gguf.", "Give another."))
    found = findings(call, app, 1)["model"]
    assert (found["state"], found["text"], found["hint"]) == ("broken", "There is no adapter nope.gguf.", "Give another.")
    monkeypatch.setenv("EDGE_ENGINE_LORA", '["hf:owner/adapter"]')
    assert findings(call, app, 0)["model"]["state"] == "note"  # downloaded when it is used


def test_doctor_with_a_model_that_does_not_fit(call: Any) -> None:
    found = findings(call, doctor_app(plan=ModelTooLargeError("It takes 90 GB.", "Use a smaller one.")), 1)
    assert (found["model"]["text"], found["model"]["hint"]) == ("It takes 90 GB.", "Use a smaller one.")


def test_doctor_without_an_engine(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(cache_dir: Path) -> Safety:
        raise BackendUnavailableError("llama.cpp is not installed.", "Install it.")

    monkeypatch.setattr(edge.backends.llamacpp.canary, "load_safety", fail)
    assert findings(call, doctor_app(LAPTOP), 1)["canary"]["state"] == "broken"
    profile = dataclasses.replace(LAPTOP, engines=(Engine("llamacpp", "llama-cpp-python", "", ()),))
    found = findings(call, doctor_app(profile), 1)
    assert found["engine"]["state"] == "broken"
    assert "canary" not in found, "there is nothing to try"


def test_engines_that_are_not_there_say_what_installs_them(call: Any) -> None:
    absent = tuple(Engine(name, package, "", ()) for name, package in (("onnx", "onnxruntime"), ("coreml", "coremltools")))
    profile = dataclasses.replace(LAPTOP, engines=(LAPTOP.engines[0], *absent))
    checks = json.loads(call("doctor", "--json", app=doctor_app(profile)).out)["checks"]
    notes = {check["text"]: check["hint"] for check in checks if check["what"] == "engine" and check["state"] == "note"}
    assert list(notes) == ["onnxruntime is not installed, so no ONNX model can be run"], "Core ML would be of no use here"
    assert "[onnx]" in notes[next(iter(notes))]
    assert "onnxruntime not installed. Install it: pip" in call("devices", app=App(probe=lambda: profile)).out
    profile = dataclasses.replace(MAC, engines=(*MAC.engines, Engine("coreml", "coremltools", "9.0", ())))
    assert "coremltools 9.0, which only converts models" in call("devices", app=App(probe=lambda: profile)).out


def test_doctor_tells_what_the_canary_turned_off(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge.backends.llamacpp.canary, "load_safety", lambda cache_dir: Safety(False, "AMX is off."))
    found = findings(call, doctor_app(), 0)
    assert (found["canary"]["state"], found["canary"]["text"]) == ("note", "AMX is off.")


def test_doctor_reports_names_that_do_not_exist(call: Any, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own_home / "config.toml").write_text('backend = "lamacpp"\n[chat.keys]\nquit-nwo = "ctrl+x"\n')
    monkeypatch.setenv("EDGE_CHAT_THEME", "edge-drak")
    result = call("doctor", "--json", app=doctor_app())
    assert result.code == 1
    broken = {check["text"]: check["hint"] for check in json.loads(result.out)["checks"] if check["state"] == "broken"}
    assert broken[f"{own_home / 'config.toml'}:1: backend: There is no backend 'lamacpp'."] == "Did you mean llamacpp?"
    assert broken["EDGE_CHAT_THEME: chat.theme: There is no theme 'edge-drak'."] == "Did you mean edge-dark?"
    assert any("quit-nwo" in text and "Did you mean 'quit-now'?" in hint for text, hint in broken.items())


def test_doctor_with_broken_settings_looks_at_the_rest(call: Any, own_home: Path) -> None:
    (own_home / "config.toml").write_text("modle = 1\n")
    found = findings(call, doctor_app(), 1)
    assert "modle" in found["settings"]["text"]
    assert found["engine"]["state"] == "ok"


def test_doctor_finds_what_cannot_be_written(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGE_DATA_DIR", str(tmp_path / "file" / "below"))
    found = findings(call, doctor_app(), 1)
    assert found["data directory"]["state"] == "broken"
    assert found["cache directory"]["state"] == "ok"


def test_doctor_finds_a_full_disk(call: Any, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own_home / "data").mkdir()
    (own_home / "models").mkdir()

    def full(prefix: str, dir: Path) -> tuple[int, str]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkstemp", full)
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(100, 90, 10))
    found = findings(call, doctor_app(), 1)
    assert "No space left" in found["data directory"]["text"]
    assert found["disk space"]["state"] == "note"


def test_doctor_finds_a_failed_disk_cache(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert findings(call, doctor_app(), 0)["disk cache"]["text"] == "nothing is stored yet"
    path = load_settings().paths.kv_dir
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("a file in the way")
    found = findings(call, doctor_app(), 0)["disk cache"]
    assert found["state"] == "note" and found["text"].startswith("off: ") and "Replies work without it" in found["hint"]
    monkeypatch.setenv("EDGE_KV_ENABLED", "false")
    assert findings(call, doctor_app(), 0)["disk cache"]["text"] == "off (kv.enabled)"


@dataclasses.dataclass
class Usage:
    total: int
    used: int
    free: int


def test_doctor_looks_at_the_conversations(call: Any) -> None:
    settings = load_settings()
    settings.paths.data_dir.mkdir(parents=True)
    with ConversationStore(settings.paths.conversations_file) as store:
        store.create(title="one")
    assert "1 in " in findings(call, doctor_app(), 0)["conversations"]["text"]
    data = bytearray(settings.paths.conversations_file.read_bytes())
    data[:16] = b"not a database!!"
    settings.paths.conversations_file.write_bytes(data)
    assert findings(call, doctor_app(), 1)["conversations"]["state"] == "broken"


@pytest.mark.parametrize(
    ("readings", "state", "text"),
    [
        (Readings(), "ok", "none: no sensor readings"),
        (
            Readings(hottest_c=51.0, headroom_c=48.0, battery_percent=80, total_bytes=8 * GB, available_bytes=4 * GB),
            "ok",
            "none: 51 °C, battery at 80 %, 4.3 GB of memory available",
        ),
        (
            Readings(hottest_c=97.0, headroom_c=2.0),
            "note",
            "hot: 3 of 4 threads (97 °C, 2 below where the system slows the processor down)",
        ),
        (Readings(battery_percent=9, is_on_battery=True), "note", "low battery: 1 of 4 threads (battery at 9 %)"),
    ],
)
def test_doctor_reports_throttling(call: Any, readings: Readings, state: str, text: str) -> None:
    result = call("doctor", "--json", app=doctor_app(plan=make_plan(), readings=readings))
    check = next(check for check in json.loads(result.out)["checks"] if check["what"] == "throttling")
    assert (check["state"], check["text"]) == (state, text)


def test_doctor_reports_that_throttling_is_off(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_GOVERNOR_ENABLED", "false")
    hot = Readings(hottest_c=97.0, headroom_c=2.0)
    out = call("doctor", app=doctor_app(plan=make_plan(), readings=hot)).out
    assert "does not throttle the engine" in out
    assert "hot" not in out.replace("hot device", "")
