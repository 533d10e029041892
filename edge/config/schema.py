"""The structs that `load_settings` fills, with the names, types and defaults of all settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edge.errors import ConfigError, UsageError
from edge.files import absolute_path
from edge.names import NAMESPACE_PATTERN, Accelerator, KVType
from edge.types import Sampling

__all__ = [
    "PATH_VARIABLES",
    "TABLES",
    "ChatSettings",
    "DocsSettings",
    "EngineSettings",
    "EscalationSettings",
    "GovernorSettings",
    "HubSettings",
    "KVSettings",
    "Paths",
    "ServerSettings",
    "Settings",
    "VoiceSettings",
    "default_path",
    "default_paths",
]

APP_NAME = "edge-assistant"
"""Folder below the user's configuration, data and cache directories."""

PATH_VARIABLES = {
    "paths.data_dir": "EDGE_DATA_DIR",
    "paths.cache_dir": "EDGE_CACHE_DIR",
    "paths.models_dir": "EDGE_MODELS_DIR",
    "paths.config_file": "EDGE_CONFIG",
}
"""Paths with a variable of their own; every other setting has EDGE_ and its name."""


class Paths(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The directories of edge. All absolute; none is made before something is written there.

    Attributes:
        data_dir: conversations, collections of documents, and crash reports.
        cache_dir: files that can be recomputed: KV blocks, the canary's verdict.
        models_dir: models; `models` below data_dir unless set.
        config_file: the settings file. Not a setting of the file itself: EDGE_CONFIG names it.
    """

    data_dir: Path
    cache_dir: Path
    models_dir: Path
    config_file: Path

    @property
    def catalog_file(self) -> Path:
        """The user's own models by name, beside the settings file."""
        return self.config_file.with_name("catalog.toml")

    @property
    def prompts_dir(self) -> Path:
        """Folder of the user's roles, beside the settings file."""
        return self.config_file.with_name("prompts")

    @property
    def themes_dir(self) -> Path:
        """Folder of the user's themes for the chat, beside the settings file."""
        return self.config_file.with_name("themes")

    @property
    def kv_dir(self) -> Path:
        """Folder of the KV blocks."""
        return self.cache_dir / "kv"

    @property
    def conversations_file(self) -> Path:
        """File of the conversations, which the chat app and `edge run --continue` share."""
        return self.data_dir / "conversations.db"

    @property
    def documents_dir(self) -> Path:
        """Folder of the collections of documents, each a folder."""
        return self.data_dir / "documents"


def default_paths(environ: Mapping[str, str] | None = None) -> Paths:
    """Return the directories before any settings file is read: EDGE_*_DIR and EDGE_CONFIG, else the platform's (XDG) ones.

    Args:
        environ: instead of the process's own, for the EDGE_ variables; XDG_* are always the process's own.

    Raises:
        ConfigError: as `default_path`.
    """
    return Paths(
        data_dir=default_path("paths.data_dir", environ),
        cache_dir=default_path("paths.cache_dir", environ),
        models_dir=default_path("paths.models_dir", environ),
        config_file=default_path("paths.config_file", environ),
    )


def default_path(key: str, environ: Mapping[str, str] | None = None) -> Path:
    """Return one of `default_paths`. The home directory is only needed for one that no variable names.

    Args:
        key: of PATH_VARIABLES.
        environ: as for `default_paths`.

    Raises:
        ConfigError: the variable's path cannot be used, or no variable is set and there is no home directory.
    """
    environ = os.environ if environ is None else environ
    variable = PATH_VARIABLES[key]
    if text := environ.get(variable, ""):
        try:
            return absolute_path(text)
        except UsageError as error:
            raise ConfigError(f"{variable}: {error.message}", error.hint) from None
    if key == "paths.models_dir":
        return default_path("paths.data_dir", environ) / "models"
    import platformdirs

    find = {
        "paths.data_dir": platformdirs.user_data_path,
        "paths.cache_dir": platformdirs.user_cache_path,
        "paths.config_file": platformdirs.user_config_path,
    }[key]
    try:
        folder = find(APP_NAME)
    except RuntimeError:
        folder = Path("~")
    if not folder.is_absolute():  # some versions of platformdirs leave "~" there
        raise ConfigError(
            f"Your home directory is unknown, so there is no place for {key}.",
            f"Set HOME, or give {', '.join(PATH_VARIABLES.values())} paths that begin with /.",
        )
    return folder / "config.toml" if key == "paths.config_file" else folder


class ChatSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The terminal chat.

    Attributes:
        theme: name of a theme; None lets the app choose.
        keys: action -> key, replacing the app's own binding: {"quit": "ctrl+q"}.
        plain: no box drawing, spinners or colour-only signals, for screen readers and bare terminals.
        paste_chars: a pasted text of more characters than this becomes an attachment.
        attachment_bytes: larger files are refused as attachments.
        history: sent messages are stored for Up and Down in later sessions.
        window_title: the window's title is that of the conversation, with a dot while a reply is generated.
        read_ahead: prefill a message while it is being written, unless the device runs on battery.
        notify: a bell, or a notice of the desktop, when a long reply is done while another window has the focus.
    """

    theme: str | None = None
    keys: dict[str, str] = {}
    plain: bool = False
    paste_chars: Annotated[int, msgspec.Meta(ge=1)] = 2000
    attachment_bytes: Annotated[int, msgspec.Meta(ge=1)] = 262_144
    history: bool = True
    window_title: bool = True
    read_ahead: bool = True
    notify: bool = True


class KVSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The KV cache on the disk, which saves prefill.

    Attributes:
        enabled: use it. Otherwise conversations are prefilled again after a restart.
        budget_gb: the most it may take of the disk, in GB (10^9 bytes).
        min_free_gb: space that it leaves free on the disk, in GB.
        max_age_days: delete what was not used for so many days; None never does.
        model_budget_gb: the most that the blocks of one model may take, in GB; None is as much as the whole.
        model_budgets_gb: the same for models by name; 0 stores nothing of that model.
        max_writes_gb_per_day: the most that is written on a day, in GB, to spare a flash disk; None sets no limit.
        encrypt: encrypt its blocks, which are authenticated either way.
        exact: reuse only what gives the very bits of a run without any cache; slower, see docs/kv.md.
        across_engines: use what another engine has prefilled with the same model file, where both keep keys and values alike.
            Numbers of two engines differ in their last bits.
        read_timeout_ms: longest wait of a reply for the disk, each time it is asked; then its prompt is computed. 0 waits.
        answers: give the same answer at once to an exact repeat of a request at temperature 0.
        namespace: share stored prompts only with programs that have the same name here; "" is the usual place.
    """

    enabled: bool = True
    budget_gb: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 4.0
    min_free_gb: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 2.0
    max_age_days: Annotated[float, msgspec.Meta(ge=0, le=36500)] | None = None
    model_budget_gb: Annotated[float, msgspec.Meta(ge=0, le=1e9)] | None = None
    model_budgets_gb: dict[str, Annotated[float, msgspec.Meta(ge=0, le=1e9)]] = {}
    max_writes_gb_per_day: Annotated[float, msgspec.Meta(ge=0, le=1e9)] | None = None
    encrypt: bool = False
    exact: bool = False
    across_engines: bool = True
    read_timeout_ms: Annotated[int, msgspec.Meta(ge=0, le=600_000)] = 2000
    answers: bool = False
    namespace: Annotated[str, msgspec.Meta(pattern=NAMESPACE_PATTERN)] = ""


class GovernorSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Throttling while the device is hot, low on battery or short of memory. See `edge.engine.governor`.

    Attributes:
        enabled: throttle at all.
        hot_c: temperature that counts as hot, in degrees Celsius; None is 3 below where the system slows the processor down.
        battery_percent: the level that counts as low while no charger is connected; 0 never does.
        memory_percent: share of memory that counts as too little when no more is available; 0 never does.
        stall_percent: share of time in which programs waited for memory that counts as short of it, where little is available;
            0 never does.
        hold_s: the least time between two changes, and the time without trouble before one is taken back, in seconds.
    """

    enabled: bool = True
    hot_c: Annotated[float, msgspec.Meta(ge=0, le=150)] | None = None
    battery_percent: Annotated[int, msgspec.Meta(ge=0, le=100)] = 20
    memory_percent: Annotated[float, msgspec.Meta(ge=0, le=50)] = 5.0
    stall_percent: Annotated[float, msgspec.Meta(ge=0, le=100)] = 10.0
    hold_s: Annotated[float, msgspec.Meta(ge=1)] = 15.0


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How replies are decoded. See `edge.engine.rounds` and `edge.engine.drafting`.

    Attributes:
        parallel: replies side by side, each in a sequence of the KV cache; more wait for one to end. None lets the plan choose.
        max_gap_ms: longest gap between two tokens of a reply while a prompt is prefilled beside it, in milliseconds.
        speculate: guess tokens where a reply repeats its prompt, and verify several in one pass; see docs/latency.md.
        draft: name of a smaller model with the same vocabulary, which guesses tokens where nothing repeats; None uses none.
        prefill_with: name of an engine that prefills long prompts for the one that decodes; None is the one that decodes, or
            another one where `edge tune` measured that turns take less time so; "off" is always the one that decodes.
        adapt_threads: decode with fewer threads while other programs use the cores; see docs/builds.md.
        lora: LoRA adapters of the model, each FILE or FILE:SCALE; see docs/adapters.md.
        max_waiting: replies that may wait while others run; one more is refused as busy. None sets no limit.
        measure: before the first chat with a model of up to 1 GB, compare the engines that can run it, for at most a minute.
    """

    parallel: Annotated[int, msgspec.Meta(ge=1, le=255)] | None = None
    max_gap_ms: Annotated[float, msgspec.Meta(ge=1)] = 150.0
    speculate: bool = True
    draft: str | None = None
    prefill_with: str | None = None
    adapt_threads: bool = True
    lora: tuple[str, ...] = ()
    max_waiting: Annotated[int, msgspec.Meta(ge=0, le=100_000)] | None = None
    measure: bool = True


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The local server, `edge serve`; see docs/serve.md.

    Attributes:
        host: address to listen on. Any other than this machine's own needs keys_file.
        port: port to listen on; 0 takes a free one.
        socket: Unix socket to listen on instead of host and port.
        keys_file: file of the keys that clients must send, one a line: a name, a blank, the key. None asks for none.
        allowed_hosts: names by which clients may address the server, besides localhost and IP addresses.
        allowed_origins: origins of web pages that may use the server, such as "https://app.example.org".
        max_waiting: requests that may wait for a model while others are answered; one more is refused as busy.
        max_requests_each: requests of one client, as its key names it, that may run or wait at the same time; one more is
            refused as busy. None sets no limit.
        timeout_s: longest time for one request, in seconds.
        grace_s: time that running replies have to end when the server is stopped, in seconds.
        memory_gb: memory that all loaded models may take together, in GB (10^9 bytes); None is what is available.
        idle_s: unload a model that was not used for so long, in seconds; None keeps it until another one needs its memory.
        docs: collections of documents that clients may have searched for them; no others.
        otel: send traces of requests to an OpenTelemetry collector, as the variables OTEL_* say.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8033
    socket: Path | None = None
    keys_file: Path | None = None
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    max_waiting: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 32
    max_requests_each: Annotated[int, msgspec.Meta(ge=1, le=100_000)] | None = 16
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=86_400)] = 600.0
    grace_s: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 10.0
    memory_gb: Annotated[float, msgspec.Meta(gt=0, le=1e6)] | None = None
    idle_s: Annotated[float, msgspec.Meta(gt=0, le=1e9)] | None = None
    docs: tuple[str, ...] = ()
    otel: bool = False


class VoiceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Speech in and out; see docs/voice.md. A stage is named as `edge_voice.registry` lists it, or is "module:function".

    Attributes:
        input, output: the microphone and the loudspeaker, by part of the name or by number; None is the system's choice.
        microphone, speaker, vad, endpoint: stages by name.
        recogniser: stage by name; None chooses by the language.
        voice: stage by name; None is the best one that this device computes faster than it is spoken.
        voice_name: who speaks, of a voice that has several, such as "am_puck" of Kokoro; None is its own choice.
        echo: stage by name; None is the canceller where it is installed, else half-duplex. With headphones there is no echo.
        language: that is spoken, as a code such as "de"; None finds it out, which takes Whisper.
        speed: of the voice; 1 is its usual pace.
        hands_free: listen all the time; otherwise while a key is pressed once and until the utterance ends.
        wake_word: listen for this word before anything else: a stage, "module:function"; docs/voice.md says why none ships.
        pause_ms: silence after which the endpoint model is asked, in milliseconds.
        longest_pause_ms: silence that ends an utterance whatever the endpoint model says, in milliseconds.
        read_ahead: prefill what has been said so far, while the user speaks.
        keep_audio: folder in which what was said is kept as WAV files; None keeps nothing.
    """

    input: str | None = None
    output: str | None = None
    microphone: str = "portaudio"
    speaker: str = "portaudio"
    vad: str = "silero"
    endpoint: str = "smart-turn"
    recogniser: str | None = None
    voice: str | None = None
    voice_name: str | None = None
    echo: str | None = None
    language: str | None = "en"
    speed: Annotated[float, msgspec.Meta(ge=0.5, le=2)] = 1.0
    hands_free: bool = False
    wake_word: str | None = None
    pause_ms: Annotated[int, msgspec.Meta(ge=64, le=5000)] = 200
    longest_pause_ms: Annotated[int, msgspec.Meta(ge=200, le=10_000)] = 1500
    read_ahead: bool = True
    keep_audio: Path | None = None


class DocsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Answers from documents; see docs/documents.md.

    Attributes:
        answers: give an earlier answer over a collection again to a question that means the same, marked as such.
        answer_similarity: how near the two questions have to be, as a cosine.
    """

    answers: bool = False
    answer_similarity: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.92


class EscalationSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A next tier, which answers what the first model should not answer alone; see docs/tiers.md. Off while `to` is not set.

    Attributes:
        to: catalogue name, path or reference of a larger model on this device, or openai:URL of a server with OpenAI's
            protocol, with #MODEL at its end or not. The server's key is no setting: EDGE_REMOTE_KEY, or key_file.
        consent: "ask" asks each time before text leaves this device, and where nobody can be asked nothing is sent; "always"
            agrees to all of it.
        key_file: file with the server's key, which only its owner may read.
        max_entropy: send a question on if the first answer's tokens have a mean entropy above this, in nats; None: never.
        min_agreement: send a question on if the first answer has less in common with a second one, from 0 to 1.
        min_tokens: send on questions of at least so many tokens.
        patterns: send on questions in which one of these regular expressions is found.
        probe_tokens: tokens of the first answer whose entropy is measured, and which are held back until then.
        silence_s: longest time that a server may say nothing, in seconds.
    """

    to: str | None = None
    consent: Literal["ask", "always"] = "ask"
    key_file: Path | None = None
    max_entropy: Annotated[float, msgspec.Meta(ge=0, le=100)] | None = 1.5
    min_agreement: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    min_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    patterns: tuple[str, ...] = ()
    probe_tokens: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 32
    silence_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 60.0


class HubSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The hub that models are downloaded from. The token is not a setting: HF_TOKEN or `hf auth login`.

    Attributes:
        endpoint: address of the hub; None is the hub's own. HF_ENDPOINT is read too.
        offline: never use the network. HF_HUB_OFFLINE is read too.
    """

    endpoint: str | None = None
    offline: bool = False


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings. None means: edge decides, and the placement receipt says how.

    Attributes:
        model: catalogue name, path, or hf:, ollama: or pypi: reference.
        backend: name of the engine.
        require: the accelerator to run on; edge fails rather than use another.
        context: context window, in tokens.
        threads: CPU threads of one step.
        gpu_layers: layers computed by the accelerator; -1 is all of them.
        kv_type_k, kv_type_v: types of keys and values.
        system: system prompt; "" leaves it to the model's template, "none" is none at all.
        window: fate of old messages when the context window is full.
        sampling: how tokens are chosen.
        chat: the terminal chat.
        paths: directories.
        hub: source of models.
        kv: the KV cache on the disk.
        governor: throttling.
        engine: how replies are decoded.
        server: the local server.
        voice: speech in and out.
        escalation: the next tier.
        docs: answers from documents.
        sources: dotted key -> origin: "command line", the variable's name, "file:line" or "default". Not a setting.
    """

    model: str = "smollm2-135m"
    backend: str | None = None
    require: Accelerator | None = None
    context: Annotated[int, msgspec.Meta(ge=1)] | None = None
    threads: Annotated[int, msgspec.Meta(ge=1)] | None = None
    gpu_layers: Annotated[int, msgspec.Meta(ge=-1)] | None = None
    kv_type_k: KVType | None = None
    kv_type_v: KVType | None = None
    system: str = ""
    window: Literal["drop", "summarise", "refuse"] = "drop"
    sampling: Sampling = msgspec.field(default_factory=Sampling)
    chat: ChatSettings = msgspec.field(default_factory=ChatSettings)
    paths: Paths = msgspec.field(default_factory=default_paths)
    hub: HubSettings = msgspec.field(default_factory=HubSettings)
    kv: KVSettings = msgspec.field(default_factory=KVSettings)
    governor: GovernorSettings = msgspec.field(default_factory=GovernorSettings)
    engine: EngineSettings = msgspec.field(default_factory=EngineSettings)
    server: ServerSettings = msgspec.field(default_factory=ServerSettings)
    voice: VoiceSettings = msgspec.field(default_factory=VoiceSettings)
    escalation: EscalationSettings = msgspec.field(default_factory=EscalationSettings)
    docs: DocsSettings = msgspec.field(default_factory=DocsSettings)
    sources: dict[str, str] = {}


TABLES: dict[str, type] = {
    "sampling": Sampling,
    "chat": ChatSettings,
    "paths": Paths,
    "hub": HubSettings,
    "kv": KVSettings,
    "governor": GovernorSettings,
    "engine": EngineSettings,
    "server": ServerSettings,
    "voice": VoiceSettings,
    "escalation": EscalationSettings,
    "docs": DocsSettings,
}
