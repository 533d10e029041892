"""`edge run` with a fake model: what goes in, what comes out, and on which stream."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from edge.assistant import Assistant, DiskCache
from edge.backends.fake import FakeBackend
from edge.config import load_settings
from edge.conversation import ConversationStore
from edge.engine.governor import Limits
from edge.errors import StorageError
from edge.kv.options import StoreOptions
from edge.kv.store import BlockStore
from edge.types import Tool
from edge.units import quoted
from edge_cli.app import App
from edge_cli.completers import complete_role
from edge_cli.prompt import read_prompt
from tests.throttle import QuickSensors, SetGovernor
from tests.unit.bench.fakes import write_gguf


def echo(message: str) -> str:
    return f"<{message}>"


@pytest.fixture
def app(fake_app: Callable[..., App]) -> App:
    return fake_app(script=echo)


def test_the_answer_and_nothing_else_goes_to_stdout(call: Any, app: App) -> None:
    result = call("run", "hello", "there", app=app)
    assert (result.code, result.out, result.err) == (0, "<hello there>\n", "")


def test_stdin_is_the_prompt(call: Any, app: App) -> None:
    assert call("run", stdin=b"from a pipe\n", app=app).out == "<from a pipe>\n"
    assert call("run", "-", stdin=b"from a pipe\n", app=app).out == "<from a pipe>\n"


def test_a_prompt_with_stdin_takes_it_along(call: Any, app: App) -> None:
    result = call("run", "Summarise", stdin="größe\n".encode(), app=app)
    assert result.code == 0
    assert "Summarise" in result.out
    assert "größe" in result.out
    assert "stdin" in result.out


def test_what_is_attached_and_empty_is_said(call: Any, app: App, tmp_path: Path) -> None:
    (tmp_path / "none.txt").touch()
    result = call("run", "-f", "-", "-f", str(tmp_path / "none.txt"), "hi", stdin=b"", app=app)
    assert (result.code, "stdin is empty." in result.err, "none.txt is empty." in result.err) == (0, True, True)


def test_an_empty_stdin_adds_nothing(call: Any, app: App) -> None:
    assert call("run", "hi", stdin=b"", app=app).out == "<hi>\n"
    assert call("run", "hi", "--no-stdin", stdin=b"never read", app=app).out == "<hi>\n"


def test_files_are_attached(call: Any, app: App, tmp_path: Path) -> None:
    notes = tmp_path / "notes.md"
    notes.write_text("milk")
    out = call("run", "-f", str(notes), "List", app=app).out
    assert "notes.md" in out
    assert "milk" in out
    assert str(tmp_path) not in out


def test_a_minus_as_a_file_is_stdin(call: Any, app: App, tmp_path: Path) -> None:
    notes = tmp_path / "notes.md"
    notes.write_text("milk")
    result = call("run", "-f", str(notes), "-f", "-", "List", stdin=b"from a pipe", app=app)
    assert result.code == 0
    assert [result.out.index(text) for text in ("notes.md", "milk", "stdin", "from a pipe", "List")] == sorted(
        result.out.index(text) for text in ("notes.md", "milk", "stdin", "from a pipe", "List")
    )
    assert result.out.count("from a pipe") == 1


@pytest.mark.parametrize("arguments", [["-f", "-", "-"], ["-f", "-", "-f", "-", "x"]])
def test_stdin_is_read_once(call: Any, app: App, arguments: list[str]) -> None:
    result = call("run", *arguments, stdin=b"text", app=app)
    assert (result.code, result.out) == (2, "")
    assert "twice" in result.err


def test_short_options(call: Any, fake_app: Callable[..., App]) -> None:
    loads: list[dict[str, Any]] = []
    assert call("run", "-m", "other", "-t", "0.5", "-n", "7", "hi", app=fake_app(loads)).code == 0
    sampling = loads[0]["settings"].sampling
    assert (sampling.temperature, sampling.max_tokens) == (0.5, 7)


@pytest.mark.parametrize("words", [["smollm2-135m"], ["gemma3-270m", "what", "is", "it"], ["hf:a/b", "hi"], ["./x.gguf"]])
def test_the_name_of_a_model_in_front_of_the_question_is_noticed(call: Any, app: App, words: list[str]) -> None:
    result = call("run", *words, app=app)
    assert (result.code, result.out) == (0, f"<{' '.join(words)}>\n")
    question = " ".join(words[1:]) or "your question"
    assert f"edge run -m {words[0]} {quoted(question)}" in result.err


@pytest.mark.parametrize(
    "words", [["hello"], ["what is smollm2-135m"], ["is", "smollm2-135m", "good"], ["smollm2-135m is good"]]
)
def test_a_question_about_a_model_is_a_question(call: Any, app: App, words: list[str]) -> None:
    assert call("run", *words, app=app).err == ""


def test_a_loop_is_stopped_unless_a_setting_allows_it(call: Any, fake_app: Callable[..., App]) -> None:
    app = fake_app(script=lambda _: "And then I went home again. " * 60, n_ctx=16384)
    result = call("run", "go", app=app)
    assert result.code == 0 and len(result.out) < 1000 and "only repeats itself" in result.err
    assert len(call("run", "-s", "sampling.max_repeats=0", "go", app=app).out) > 1500


def test_an_answer_has_a_limit_unless_one_is_set(
    call: Any, fake_app: Callable[..., App], own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def limit(*arguments: str) -> int | None:
        loads: list[dict[str, Any]] = []
        assert call("run", *arguments, "hi", app=fake_app(loads)).code == 0
        found: int | None = loads[0]["settings"].sampling.max_tokens
        return found

    assert limit() == 2048
    assert limit("-n", "auto") is None
    assert limit("-n", "9") == 9
    monkeypatch.setenv("EDGE_SAMPLING_MAX_TOKENS", "7")
    assert limit() == 7


def test_an_answer_that_was_cut_says_so(call: Any, fake_app: Callable[..., App], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_cli.asking.MAX_TOKENS", 5)
    result = call("run", "hi", app=fake_app(script=lambda _: "word " * 50))
    assert result.code == 0
    assert "limited to 5 tokens" in result.err
    assert "--max-tokens" in result.err
    shown = json.loads(call("run", "--json", "hi", app=fake_app(script=lambda _: "word " * 50)).out)
    assert shown["finish_reason"] == "length"
    assert any("limited to 5 tokens" in notice for notice in shown["notices"])


CODE = "Here it is:\n\n```python\nprint(1)\n```\n\nAnd:\n\n~~~\nsecond\n~~~\n"


def test_only_the_code(call: Any, fake_app: Callable[..., App]) -> None:
    result = call("run", "-x", "hi", app=fake_app(script=lambda _: CODE))
    assert (result.code, result.out) == (0, "print(1)\n")
    assert "first of 2" in result.err


def test_an_answer_without_code_is_not_taken_for_code(call: Any, fake_app: Callable[..., App]) -> None:
    result = call("run", "--extract", "hi", app=fake_app(script=lambda _: "No code, sorry."))
    assert (result.code, result.out) == (1, "")
    assert "No code, sorry." in result.err
    assert "no code block" in result.err


def test_code_that_was_cut_is_printed_and_said(call: Any, fake_app: Callable[..., App]) -> None:
    result = call("run", "-x", "hi", app=fake_app(script=lambda _: "```\nopen\x1b[2J"))
    assert (result.code, result.out) == (0, "open\n")


@pytest.mark.parametrize("other", ["--json", "--jsonl", "--raw"])
def test_extract_excludes_the_other_forms(call: Any, app: App, other: str) -> None:
    assert call("run", "-x", other, "hi", app=app).code == 2


@pytest.mark.parametrize("stdin", [None, b"", b" \n\n"])
def test_nothing_to_say_is_a_usage_error_with_an_example(call: Any, app: App, stdin: bytes | None) -> None:
    result = call("run", stdin=stdin, app=app)
    assert (result.code, result.out) == (2, "")
    assert 'edge run "What is the capital of France?"' in result.err


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_files_of_notepad_and_powershell_are_text(call: Any, app: App, tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes("one\r\ntwo é\r\n".encode(encoding))
    read = read_prompt(["x"], [path], use_stdin=False, is_chatty=False)[1]
    assert [attachment.text for attachment in read] == ["one\ntwo é\n"]
    assert call("run", stdin=path.read_bytes(), app=app).code == 0


def test_what_is_not_text_is_refused(call: Any, app: App, tmp_path: Path) -> None:
    result = call("run", stdin=b"\xff\xfe", app=app)
    assert (result.code, result.out) == (2, "")
    assert "stdin is not UTF-8 text" in result.err
    binary = tmp_path / "b"
    binary.write_bytes(b"a\0b")
    assert "not UTF-8 text" in call("run", "x", "-f", str(binary), app=app).err
    result = call("run", "x", "-f", str(tmp_path / "missing"), app=app)
    assert result.code == 2
    assert "No such file" in result.err


def test_options_reach_the_settings(call: Any, fake_app: Callable[..., App]) -> None:
    loads: list[dict[str, Any]] = []
    arguments = shlex.split("-m other --context 100 --threads 1 --kv-type q8_0 --gpu-layers -1 --require cpu --backend fake")
    arguments += shlex.split(
        "--parallel 6 --temperature 0 --top-p 0.5 --top-k 3 --min-p 0.1 --seed 4 --max-tokens 5 --stop a --stop b"
    )
    arguments += shlex.split("--system 'Be brief' -s sampling.repeat_penalty=1.2 --set window=refuse")
    assert call("run", *arguments, "hi", app=fake_app(loads)).code == 0
    settings = loads[0]["settings"]
    expected = {
        "model": "other",
        "context": 100,
        "threads": 1,
        "kv_type_k": "q8_0",
        "kv_type_v": "q8_0",
        "gpu_layers": -1,
        "require": "cpu",
        "backend": "fake",
        "system": "Be brief",
        "window": "refuse",
    }
    assert {name: getattr(settings, name) for name in expected} == expected
    sampling = settings.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.0, 0.5, 3, 0.1)
    assert (sampling.seed, sampling.max_tokens, sampling.stop) == (4, 5, ("a", "b"))
    assert sampling.repeat_penalty == 1.2
    assert settings.engine.parallel == 6
    assert loads[0]["store"] is None


def test_a_role_is_the_system_prompt(call: Any, fake_app: Callable[..., App], own_home: Path) -> None:
    (own_home / "prompts").mkdir()
    (own_home / "prompts" / "brief.md").write_text("Be brief.\n")
    loads: list[dict[str, Any]] = []
    app = fake_app(loads)
    assert call("run", "--role", "brief", "hi", app=app).code == 0
    assert loads[0]["settings"].system == "Be brief."
    assert call("run", "-c", "first", app=app).code == 0
    assert call("run", "-c", "--role", "brief", "second", app=app).code == 0
    with ConversationStore(load_settings().paths.conversations_file) as store:
        assert store.list()[0].system == "Be brief."
    result = call("run", "--role", "breif", "hi", app=app)
    assert result.code == 2 and "Did you mean brief?" in result.err
    result = call("run", "--role", "brief", "--system", "x", "hi", app=app)
    assert result.code == 2 and "--role and --system exclude each other" in result.err
    assert [item.value for item in complete_role(click.Context(click.Command("x")), None, "b")] == ["brief"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--temperature", "hot"], '--temperature cannot be "hot"'),
        (["--kv-type", "q9"], '--kv-type cannot be "q9"'),
        (["-s", "kv_type_v=q9"], '--set kv_type_v cannot be "q9"'),
        (["--top-p", "2"], "from 0 to 1"),
        (["--context", "0"], "1 or more"),
        (["--kv-type", "q3"], "q4_0"),
        (["--max-tokens", "0"], "at least one token"),
        (["--stop", ""], "empty"),
        (["-s", "sampling.temprature=1"], "Did you mean sampling.temperature?"),
        (["-s", "context"], "KEY=VALUE"),
        (["--json", "--jsonl"], "exclude each other"),
        (["--continue", "--conversation", "x"], "exclude each other"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_loaded(
    call: Any, fake_app: Callable[..., App], arguments: list[str], said: str
) -> None:
    loads: list[dict[str, Any]] = []
    result = call("run", *arguments, "hi", app=fake_app(loads))
    assert (result.code, result.out, loads) == (2, "", [])
    assert said in result.err


def test_json_is_one_object(call: Any, app: App) -> None:
    result = call("run", "--json", "hi", app=app)
    assert result.err == ""
    answer = json.loads(result.out)
    assert (answer["text"], answer["finish_reason"]) == ("<hi>", "stop")
    assert answer["usage"]["n_generated"] > 0
    assert answer["usage"]["n_prompt"] == answer["usage"]["n_reused"] + answer["usage"]["n_computed"]
    assert answer["timing"]["total_ms"] >= answer["timing"]["first_token_ms"] > 0
    assert answer["conversation"] is None


def test_jsonl_is_an_object_a_piece(call: Any, app: App) -> None:
    lines = [json.loads(line) for line in call("run", "--jsonl", "hi", app=app).out.splitlines()]
    assert [line["type"] for line in lines] == ["text"] * (len(lines) - 1) + ["done"]
    assert "".join(line["text"] for line in lines[:-1]) == lines[-1]["text"] == "<hi>"


def test_stats_go_to_stderr(call: Any, app: App) -> None:
    result = call("run", "--stats", "hi", app=app)
    assert result.out == "<hi>\n"
    assert "tokens/s" in result.err
    assert "reused" in result.err


def test_throttling_is_in_the_result_and_in_the_stats(call: Any) -> None:
    def load(*, settings: Any, store: Any, on_progress: Any) -> Assistant:
        governor = SetGovernor()
        backend = FakeBackend(script=lambda _: "yes")
        assistant = Assistant(backend, store=store, governor=governor, sensors=QuickSensors())
        governor.set(assistant, Limits(2, 2, 0.0, 4096, False, "hot: 2 of 4 threads", "97 °C"))
        return assistant

    app = App(load=load)
    assert json.loads(call("run", "--json", "hi", app=app).out)["held_back"] == "hot: 2 of 4 threads"
    result = call("run", "--stats", "hi", app=app)
    assert (result.out, "throttled: hot: 2 of 4 threads" in result.err) == ("yes\n", True)
    assert "throttled" not in call("run", "hi", app=app).err


def test_control_characters_stay_out_of_plain_output_and_are_escaped_in_json(call: Any, fake_app: Callable[..., App]) -> None:
    app = fake_app(script=lambda _: "a\x1b[31mb\x07\tc\n")
    out = call("run", "hi", app=app).out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert out.endswith("b\tc\n")
    out = call("run", "--json", "hi", app=app).out
    assert "\x1b" not in out
    assert json.loads(out)["text"] == "a\x1b[31mb\x07\tc\n"


def test_continue_keeps_and_goes_on(call: Any, fake_app: Callable[..., App]) -> None:
    app = fake_app(script=echo)
    assert call("run", "--continue", "--system", "Be brief", "one", app=app).code == 0
    second = json.loads(call("run", "--continue", "--json", "two", app=app).out)
    third = call("run", "--conversation", second["conversation"], "three", app=app)
    assert third.out == "<three>\n"
    with ConversationStore(load_settings().paths.conversations_file) as store:
        (info,) = store.list()
        assert info.id == second["conversation"]
        assert info.system == "Be brief"
        assert [node.content for node in store.path(info.id)] == ["one", "<one>", "two", "<two>", "three", "<three>"]


def test_without_continue_nothing_is_kept(call: Any, app: App, own_home: Path) -> None:
    assert call("run", "hi", app=app).code == 0
    assert not (own_home / "data").exists()


def test_an_unknown_conversation_is_a_usage_error(call: Any, app: App) -> None:
    result = call("run", "--conversation", "nope", "hi", app=app)
    assert (result.code, result.out) == (2, "")
    assert "nope" in result.err


def test_reaching_the_longest_length_is_said_unless_it_was_asked_for_here(
    call: Any, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_SAMPLING_MAX_TOKENS", "3")
    result = call("run", "hello", app=app)
    assert result.out == "<he\n"
    assert "it is limited to 3 tokens (sampling.max_tokens" in result.err
    for asked in (("--max-tokens", "3"), ("-s", "sampling.max_tokens=3")):
        result = call("run", *asked, "hello", app=app)
        assert (result.out, result.err) == ("<he\n", "")


def test_a_failed_disk_cache_is_said_in_one_line(call: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    def load(*, settings: Any, store: Any, on_progress: Any) -> Assistant:
        blocks = BlockStore(tmp_path / "file" / "kv", StoreOptions(budget_bytes=1 << 30))
        return Assistant(FakeBackend(script=echo), store=store, disk=DiskCache(blocks, b"m" * 32))

    result = call("run", "hi", app=App(load=load))
    assert (result.code, result.out) == (0, "<hi>\n")
    (line,) = result.err.splitlines()
    assert line.startswith("The on-disk KV cache is off: ") and line.endswith("See edge doctor.")


def test_a_full_window_is_said(call: Any, fake_app: Callable[..., App]) -> None:
    app = fake_app(script=lambda message: "word " * 100, n_ctx=80)
    result = call("run", "--max-tokens", "1000", "hello", app=app)
    assert "the context window of 80 tokens is full" in result.err


def test_a_reply_that_could_not_be_kept_is_a_failure(call: Any, app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    append = ConversationStore.append

    def only_questions(self: ConversationStore, id: str, message: Any, **options: Any) -> Any:
        if message.role == "assistant":
            raise StorageError("The disk is full.")
        return append(self, id, message, **options)

    monkeypatch.setattr(ConversationStore, "append", only_questions)
    assert call("run", "hi", app=app).code == 0, "without a conversation nothing was to be kept"
    result = call("run", "--continue", "hi", app=app)
    assert (result.code, result.out) == (1, "<hi>\n")
    assert "could not be saved" in result.err


def test_progress_shows_on_a_terminal_only_and_is_gone_at_the_end(
    call: Any, app: App, terminal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TERM", raising=False)
    stderr = terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    result = call("run", "hi", app=app)
    assert result.out == "<hi>\n"
    written = stderr.written()
    assert "loading smollm2-135m" in written
    assert written.endswith("\r\x1b[K")


class BrokenPipe(io.TextIOBase):
    """A stdout whose reader leaves after a few characters."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        if len(self.text) > 3:
            raise BrokenPipeError
        self.text += text
        return len(text)


@pytest.mark.parametrize("option", [[], ["--jsonl"], ["--json"]])
def test_a_reader_that_leaves_ends_it_quietly(call: Any, app: App, option: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", BrokenPipe())
    result = call("run", *option, "a long enough message", app=app)
    assert (result.code, result.err) == (0, "")


def test_an_interrupt_keeps_what_was_said(call: Any, fake_app: Callable[..., App], monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupting(io.TextIOBase):
        """Ctrl-C after a few characters."""

        text = ""

        def write(self, text: str) -> int:
            self.text += text
            if len(self.text) > 5:
                raise KeyboardInterrupt
            return len(text)

    monkeypatch.setattr(sys, "stdout", Interrupting())
    result = call("run", "--continue", "hi", app=fake_app(script=lambda _: "word " * 200, delay_s=0.002))
    assert result.code == 130
    assert "Traceback" not in result.err
    with ConversationStore(load_settings().paths.conversations_file) as store:
        answer = store.path(store.list()[0].id)[-1]
    assert answer.role == "assistant"
    assert answer.status == "stopped"
    assert answer.content.startswith("word ")
    assert len(answer.content) < 1000


# -- answers that keep to something

ADA = '{"name": "Ada", "age": 36}'
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture
def schema_file(tmp_path: Path) -> str:
    path = tmp_path / "person.json"
    path.write_text(json.dumps(PERSON))
    return str(path)


def test_a_schema_makes_the_answer_json(call: Any, fake_app: Callable[..., App], schema_file: str) -> None:
    app = fake_app(script=lambda _: ADA)
    result = call("run", "--schema", schema_file, "Who is it?", app=app)
    assert (result.code, result.out, result.err) == (0, ADA + "\n", "")
    found = json.loads(call("run", "--json", "--schema", schema_file, "Who is it?", app=app).out)
    assert (found["text"], found["value"]) == (ADA, {"name": "Ada", "age": 36})
    assert "value" not in json.loads(call("run", "--json", "Who is it?", app=app).out)


def test_an_answer_that_is_cut_off_says_so_and_fails(call: Any, fake_app: Callable[..., App], schema_file: str) -> None:
    app = fake_app(script=lambda _: ADA)
    result = call("run", "--schema", schema_file, "-n", "15", "--json", "Who is it?", app=app)
    assert result.code == 1
    assert json.loads(result.out)["value"] is None
    assert "JSON of this reply is not complete" in result.err


def test_patterns_and_grammars(call: Any, app: App, tmp_path: Path) -> None:
    assert call("run", "--regex", "<[a-z]{5}>", "hello", app=app).out == "<hello>\n"
    (tmp_path / "a.lark").write_text('start: "<" /[a-z]+/ ">"')
    (tmp_path / "a.gbnf").write_text('root ::= "<" [a-z]+ ">"')
    for name in ("a.lark", "a.gbnf"):
        assert call("run", "--grammar", str(tmp_path / name), "hello", app=app).out == "<hello>\n"


def test_what_cannot_be_kept_is_refused(call: Any, app: App, tmp_path: Path, schema_file: str) -> None:
    (tmp_path / "not.json").write_text('{"not": {"minimum": 1}}')
    (tmp_path / "broken.json").write_text('{"type"')
    for arguments, says in (
        (("--schema", str(tmp_path / "not.json")), '"not" at #'),
        (("--schema", str(tmp_path / "broken.json")), "not JSON"),
        (("--schema", str(tmp_path / "none.json")), "cannot be read"),
        (("--schema", schema_file, "--regex", "a"), "--regex"),
        (("--schema", schema_file, "--extract"), "--extract"),
        (("--regex", "("), "unclosed"),
    ):
        result = call("run", *arguments, "hi", app=app)
        assert (result.code, result.out) == (2, ""), arguments
        assert says in result.err


QWEN = (Path(__file__).parents[2] / "fixtures" / "templates" / "qwen3.jinja").read_text("utf-8")


def test_thoughts_are_no_part_of_the_answer(call: Any, fake_app: Callable[..., App]) -> None:
    thinking = fake_app(script=lambda message: "<think>\nHm.\n</think>\n\nYes.", chat_template=QWEN)
    assert call("run", "Well?", app=thinking).out == "Yes.\n"
    found = json.loads(call("run", "--json", "Well?", app=thinking).out)
    assert (found["text"], found["reasoning"]) == ("Yes.", "Hm.")
    rows = [json.loads(line) for line in call("run", "--jsonl", "Well?", app=thinking).out.splitlines()]
    assert "".join(row["text"] for row in rows if row["type"] == "reasoning") == "Hm."
    assert call("run", "--max-thinking", "8", "--json", "Well?", app=thinking).code == 0


def test_a_model_is_asked_not_to_think(call: Any, fake_app: Callable[..., App]) -> None:
    direct = fake_app(script=lambda message: "<think>\n\n</think>\n\nYes.", chat_template=QWEN)
    assert call("run", "--no-think", "Well?", app=direct).out == "Yes.\n"


def test_a_draft_model_is_part_of_the_estimate(call: Any, tmp_path: Path) -> None:
    large, small = (str(write_gguf(tmp_path / f"{name}.gguf")) for name in ("large", "small"))
    words = ("run", "--estimate-only", "-m", large, "--context", "512")
    alone = json.loads(call(*words, "--json").out)
    both = json.loads(call(*words, "--json", "--draft", small).out)
    assert alone["draft"] is None
    assert both["draft"]["artifact"]["path"] == small
    assert both["memory"]["total_bytes"] == alone["memory"]["total_bytes"] + both["draft"]["memory"]["total_bytes"]
    assert "draft model" not in call(*words).out
    assert "draft model" in call(*words, "--draft", small).out
    refused = call(*words, "--draft", str(tmp_path / "gone.gguf"))
    assert refused.code == 3
    assert "gone.gguf" in refused.err


CALL = '<tool_call>\n{"name": "s__add", "arguments": {"a": 2}}\n</tool_call>'
TOOL_SCRIPT = {
    "Sum?": CALL,
    "<tool_response>\nfour\n</tool_response>": "It is four.",
    "<tool_response>\nThis call was not run, because nobody can be asked to allow it.\n</tool_response>": "I may not.",
    "<tool_response>\nThe user did not allow this call.\n</tool_response>": "As you like.",
}


def test_tools_of_servers_are_called_after_asking(
    call: Any, fake_app: Callable[..., App], monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = Tool("s__add", "Add", {"properties": {"a": {"type": "integer"}}}, function=lambda a: "four")

    @contextlib.contextmanager
    def toolbox(settings: Any) -> Any:
        yield lambda: ([tool], ["A server is not allowed yet."])

    app = fake_app(script=TOOL_SCRIPT, chat_template=QWEN, n_ctx=8192)
    assert call("run", "--tools", "Sum?", app=app).code == 2, "no server is named"
    monkeypatch.setattr("edge_mcp.toolbox.open_toolbox", toolbox)
    alone = call("run", "--tools", "--json", "Sum?", app=app)
    found = json.loads(alone.out)
    assert found["text"] == "I may not." and found["tool_calls"][0]["arguments"] == {"a": 2}
    assert "not allowed yet" in alone.err
    monkeypatch.setattr("edge_cli.output.is_terminal", lambda stream: stream is not sys.stdout)
    for answer, text in ((True, "It is four."), (False, "As you like.")):
        monkeypatch.setattr(click, "confirm", lambda *a, answer=answer, **k: answer)
        shown = call("run", "--tools", "Sum?", app=app)
        assert shown.out == f"{text}\n" and 's__add with {"a": 2}' in shown.err
