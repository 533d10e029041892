from __future__ import annotations

import gc
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.widgets import Input, OptionList, Static

from edge.conversation import ConversationStore, Node
from edge.errors import ModelNotFoundError
from edge.types import Message, Sampling
from edge_chat import pages
from edge_chat.app import ChatApp
from edge_chat.commands import Completion
from edge_chat.keys import Keymap
from edge_chat.markup.document import render
from edge_chat.markup.lines import Run
from edge_chat.markup.tables import Table
from edge_chat.palette import last_used, palette_choices
from edge_chat.parameters import PARAMETERS
from edge_chat.screens.dialogs import AskText, Confirm, EditText, ReadPage
from edge_chat.screens.parameters import ParameterEditor
from edge_chat.screens.picker import Picker
from edge_chat.screens.wide import WideTable
from edge_chat.table import REGISTRY
from tests.chat_app import enter, eventually, fake_app, say, settle, texts


def complaint(app: ChatApp) -> str:
    line = app.chat_screen.query_one("#complaint")
    return str(line.render()) if line.display else ""


async def test_parameters_are_checked_in_place_and_saved() -> None:
    app = fake_app()
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        await pilot.press("f4")
        await eventually(pilot, lambda: isinstance(app.screen, ParameterEditor) and app.focused)
        editor = app.screen
        note = editor.query_one("#parameter-note", Static)
        await pilot.press("backspace", "backspace", "backspace", *"9x")
        await eventually(pilot, lambda: editor.errors)
        await pilot.press("down", "enter")
        await pilot.pause()
        assert app.screen is editor, "a wrong value keeps the dialog open"
        assert editor.chosen == "temperature", "and is gone to"
        assert "not a number" in str(note.render())
        await pilot.press("backspace", "enter")
        await settle(pilot)
        assert app.chat_screen.controller.sampling.temperature == 9.0
        assert app.chat_screen.controller.sampling.top_k == app.settings.sampling.top_k


async def test_a_value_stays_with_its_parameter_when_keys_arrive_together() -> None:
    app = fake_app()
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        await pilot.press("f4")
        await eventually(pilot, lambda: isinstance(app.screen, ParameterEditor) and app.focused)
        editor = app.screen
        assert isinstance(editor, ParameterEditor)
        listed = editor.query_one(OptionList)
        with editor.prevent(OptionList.OptionHighlighted):  # the list tells later what is highlighted, as does the field
            listed.highlighted = 1
            editor._show_chosen()
            listed.highlighted = 4
        await pilot.pause()
        editor._show_chosen()
        await eventually(pilot, lambda: editor.query_one(Input).value == "1")
        await pilot.pause()
        assert not editor.errors
        await pilot.press("ctrl+s")
        await settle(pilot)
        assert app.chat_screen.controller.sampling == app.chat_screen.controller.default_sampling


async def test_parameters_can_be_put_back_and_given_up() -> None:
    app = fake_app()
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        await say(pilot, "/set temperature 1.5")
        await say(pilot, "/set top_k=7")
        assert app.chat_screen.controller.sampling.top_k == 7
        await pilot.press("f4")
        await eventually(pilot, lambda: isinstance(app.screen, ParameterEditor) and app.focused)
        await pilot.press("ctrl+r", "escape")
        await settle(pilot)
        assert app.chat_screen.controller.sampling.temperature == 1.5, "Esc changes nothing"
        await pilot.press("f4")
        await eventually(pilot, lambda: isinstance(app.screen, ParameterEditor) and app.focused)
        await pilot.press("ctrl+r", "ctrl+s")
        await settle(pilot)
        assert app.chat_screen.controller.sampling == app.chat_screen.controller.default_sampling


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("/set temprature 1", "Did you mean temperature"),
        ("/set top_p 3", "out of range"),
        ("/set seed x", "not a whole number"),
    ],
)
async def test_bad_parameters_are_refused_by_the_command(command: str, message: str) -> None:
    app = fake_app()
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        await say(pilot, command)
        assert message in complaint(app) and app.chat_screen.composer.text == command


async def test_sampling_reaches_the_model() -> None:
    app = fake_app()
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        await say(pilot, "/set max_tokens 5")
        await say(pilot, "hello")
        assert texts(app)[1] == "Fake: You s"


async def test_themes_are_previewed_kept_and_given_up() -> None:
    app = fake_app()
    async with app.run_test(size=(120, 40)) as pilot:
        await settle(pilot)
        before = app.theme
        await enter(pilot, "/theme")
        await eventually(pilot, lambda: isinstance(app.screen, Picker))
        await pilot.press(*"nord")
        await eventually(pilot, lambda: app.theme == "nord")
        await pilot.press("escape")
        await settle(pilot)
        assert app.theme == before
        await say(pilot, "/theme light")
        assert app.theme == "edge-light"
        assert 'theme = "edge-light"' in app.settings.paths.config_file.read_text()
        await say(pilot, "/theme nrod")
        assert "Did you mean nord" in complaint(app)


async def test_every_theme_can_show_code() -> None:
    app = fake_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "hello")
        for name in sorted(app.available_themes):
            app.theme = name
            await pilot.pause()
        assert app.return_code is None


async def test_a_picker_gives_back_what_is_typed_where_that_is_allowed() -> None:
    app = fake_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        given: list[str | None] = []
        app.push_screen(Picker("T", [Completion("a", "alpha"), Completion("b", "beta")], free_text=True), given.append)
        await pilot.pause()
        await pilot.press(*"hf:owner/repo", "enter")
        app.push_screen(Picker("T", [Completion("a", "alpha"), Completion("b", "beta")], current="b"), given.append)
        await pilot.pause()
        await pilot.press("enter")
        app.push_screen(Picker("T", [Completion("a", "alpha"), Completion("b", "beta")]), given.append)
        await pilot.pause()
        await pilot.press("down", "enter")
        app.push_screen(Picker("T", [Completion("a", "alpha")]), given.append)
        await pilot.pause()
        await pilot.press(*"zzz", "enter", "escape")
        assert given == ["hf:owner/repo", "b", "b", None]


@pytest.mark.parametrize("is_late", [False, True])
async def test_a_list_is_scrolled_no_further_than_needed_whenever_its_lines_come(is_late: bool) -> None:
    choices = [Completion(f"m{n}", f"model {n}") for n in range(10)]
    app = fake_app()
    async with app.run_test(size=(40, 12)) as pilot:
        await settle(pilot)
        picker = Picker("T", [], current="m5")
        app.push_screen(picker)
        await picker.mounted.wait()
        if is_late:
            await pilot.pause()
        picker.set_choices(choices)
        await pilot.pause()
        listed = picker.query_one(OptionList)
        assert (listed.highlighted, listed.scroll_offset.y) == (5, 0)
        await pilot.press("end", *["down"] * 4)
        assert (listed.highlighted, listed.scroll_offset.y) == (9, 10 - listed.size.height)


async def test_pages_open_and_close() -> None:
    app = fake_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "hello")
        for command in ("/help", "/keys", "/stats", "/context", "/help regenerate", "/help /model"):
            await enter(pilot, command)
            await eventually(pilot, lambda: isinstance(app.screen, ReadPage))
            await pilot.press("down", "space", "b", "escape")
            await settle(pilot)
            assert app.screen is app.chat_screen, command


DIALOGS: dict[str, Callable[[], Screen[Any]]] = {
    "page": lambda: ReadPage("Title", "Text"),
    "question": lambda: Confirm("Delete?", "Delete"),
    "line": lambda: AskText("Title", "value"),
    "text": lambda: EditText("Title", "value"),
    "list": lambda: Picker("Title", [Completion("a", "a")]),
    "parameters": lambda: ParameterEditor(Sampling(), Sampling()),
    "table": lambda: WideTable(Table(((Run("a"),),), (), ("left",))),
}


async def test_esc_that_comes_with_the_key_that_opens_a_dialog_closes_it() -> None:
    app = fake_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        for kind, make in DIALOGS.items():
            dialog = make()
            app.push_screen(dialog)
            await dialog.run_action("screen.dismiss(None)")
            await eventually(pilot, lambda: app.screen is app.chat_screen)
            await settle(pilot)
            assert app.breakdown is None, kind


async def test_the_palette_offers_the_same_commands() -> None:
    app = fake_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "hello")
        await pilot.press("ctrl+p", *"new conversation")
        await eventually(pilot, lambda: isinstance(app.screen, Picker))
        await pilot.press("enter")
        await settle(pilot)
        assert texts(app) == []
        await pilot.press("ctrl+p", *"import from", "enter")
        await eventually(pilot, lambda: app.chat_screen.composer.text == "/import ")


async def test_the_palette_begins_with_what_was_used_last() -> None:
    app = fake_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "/theme light")
        await say(pilot, "/set top_k 7")
        await pilot.press("ctrl+p")
        await eventually(pilot, lambda: isinstance(app.screen, Picker))
        listed = app.screen.query_one(OptionList)
        assert [listed.get_option_at_index(n).id for n in range(3)] == ["set", "theme", "talk"]
        lines = [str(listed.get_option_at_index(n).prompt) for n in range(listed.option_count)]
        assert all("\n" not in line for line in lines) and len({len(line) for line in lines if "Ctrl" in line}) == 1
        await pilot.press("escape")


def test_commands_used_last() -> None:
    typed = ["hello", "/exit", "/theme nord", "/nosuch", "//theme", "/set top_k 1"]
    assert last_used(REGISTRY, ["model", "theme"], typed) == ["model", "theme", "quit", "set"]
    lines = palette_choices(REGISTRY, Keymap(REGISTRY, {"model": "f7"}), ["quit", "palette"])
    assert lines[0].value == "quit" and lines[0].aside == "Ctrl+Q"
    assert len(lines) == len(REGISTRY.slash_commands()) == len({line.value for line in lines})
    assert next(line for line in lines if line.value == "model").aside == "F7"


LOW = {"conversations": "ctrl+o", "commands": "ctrl+p", "help": "f1", "model": "f3", "parameters": "f4"}


@pytest.mark.parametrize("what", [*LOW, "/theme", "/delete", "/title", "/system", "/keys"])
async def test_everything_can_be_used_on_a_terminal_of_40_by_12(what: str) -> None:
    """Lists have lines, buttons and fields are whole, and the keys are there."""
    store = ConversationStore(None)
    for title in ("Whales", "Rye", "Paris"):
        store.append(store.create(title=title).id, Message("user", title), parent=None)
    app = fake_app(store=store, conversation=store.list()[0].id)
    async with app.run_test(size=(40, 12)) as pilot:
        await settle(pilot)
        if what in LOW:
            await pilot.press(LOW[what])
        else:
            await enter(pilot, what)
        await eventually(pilot, lambda: app.screen is not app.chat_screen or app.chat_screen.sidebar.display)
        await pilot.pause()
        for listed in app.screen.query(OptionList):
            if listed.display:
                assert listed.content_region.height >= 5, listed
        for page in app.screen.query(VerticalScroll):
            assert page.content_region.height >= 5 or page.id == "transcript"
        for part in app.screen.query("Button, Input, TextArea, .dialog-keys, #sidebar-keys"):
            if part.display:
                assert part.region.height >= 1 and app.screen.region.contains_region(part.region), part
                assert not part.content_region.width or part.content_region.height >= 1, part


async def test_every_button_of_an_error_is_on_a_narrow_screen() -> None:
    def fail(model: str, **options: object) -> object:
        raise ModelNotFoundError("There is no model.", "Choose another.")

    app = fake_app(loader=fail)
    async with app.run_test(size=(40, 24)) as pilot:
        await settle(pilot)
        buttons = [button.region for button in app.screen.query(".error-actions Button")]
        assert len(buttons) == 3 and all(app.chat_screen.transcript.region.contains_region(region) for region in buttons)


async def test_plain_mode_says_in_words_what_is_drawn_otherwise() -> None:
    store = ConversationStore(None)
    app = fake_app(store=store)
    async with app.run_test(size=(100, 40)) as pilot:
        await settle(pilot)
        await say(pilot, "hello")
        await say(pilot, "/regenerate")
        await say(pilot, "/plain")
        heads = [str(view.query_one(".head").render()) for view in app.chat_screen.transcript.views]
        assert heads == ["You:", "Fake:  branch 2 of 2"]
        strips = [strip.text for strip in app.screen._compositor.render_strips()]
        assert not any(0x2500 <= ord(char) <= 0x25FF for line in strips for char in line), "box drawing"
        assert any("Code, python:" in line for line in strips)
        assert not app.chat_screen.composer.input.cursor_blink
        await say(pilot, "/plain")
        assert str(app.chat_screen.transcript.views[0].query_one(".head").render()) == "You"


async def test_ctrl_c_copies_stops_and_quits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_chat.app._INTERRUPT_TWICE_S", 600.0)  # a busy machine may take longer for two keys
    app = fake_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await pilot.press(*"mark me")
        app.chat_screen.composer.input.select_all()
        await pilot.press("ctrl+c")
        assert app.clipboard == "mark me" and app.return_code is None
        app.chat_screen.composer.load("")
        await pilot.press("ctrl+c")
        await pilot.pause()
        assert app.return_code is None
        await pilot.press("ctrl+c")
        await eventually(pilot, lambda: app.return_code is not None)
    assert app.return_value == 0


@pytest.mark.parametrize("way", ["ctrl+q", "/quit"])
async def test_ways_out(way: str) -> None:
    app = fake_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        if way.startswith("/"):
            await enter(pilot, way)
        else:
            await pilot.press("f1")
            await eventually(pilot, lambda: isinstance(app.screen, ReadPage))
            await pilot.press(way)
        await eventually(pilot, lambda: app.return_code is not None)
    assert app.return_value == 0


async def test_a_bug_in_a_command_is_logged_and_does_not_end_the_chat(no_bugs: list[BaseException]) -> None:
    app = fake_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)

        async def broken() -> None:
            raise RuntimeError("a bug")

        app.chat_screen.run_guarded(broken)
        await eventually(pilot, lambda: complaint(app))
        assert "a bug" in complaint(app)
        await say(pilot, "still here")
        assert texts(app)[0] == "You: still here"
    log = app.settings.paths.data_dir / "chat-errors.log"
    assert "RuntimeError: a bug" in log.read_text() and log.stat().st_mode & 0o077 == 0
    no_bugs.clear()


async def test_work_whose_turn_never_comes_leaves_nothing_behind() -> None:
    """As when the app is left at the very moment at which a draft would be saved."""
    begun: list[str] = []

    async def work(name: str) -> None:
        begun.append(name)

    app = fake_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            app.chat_screen.run_guarded(work, "beside the screen")
            app.workers.cancel_all()
            app.chat_screen.controller.start(work, "beside the conversation")
            for task in app.chat_screen.controller._tasks:
                task.cancel()
            await settle(pilot)
            gc.collect()
        assert [str(warning.message) for warning in caught] == []
        assert begun == []


def test_help_covers_every_command() -> None:
    text = pages.help_page(REGISTRY, lambda name: REGISTRY[name].keys)
    for command in REGISTRY.slash_commands():
        assert f"`/{command.name}" in text, command.name


def test_help_shows_the_keys_that_do_what_a_command_does() -> None:
    lines = pages.help_page(REGISTRY, lambda name: REGISTRY[name].keys).splitlines()
    assert any("`/quit`" in line and "Ctrl+Q" in line for line in lines)
    assert any("`/branch`" in line and "Left or Right" in line for line in lines)
    about = pages.command_help(REGISTRY["branch"], lambda name: REGISTRY[name].keys, "message")
    assert "Keys: Left or Right on a selected message." in about


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_parameters_are_explained_in_full(size: tuple[int, int]) -> None:
    app = fake_app()
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        await pilot.press("f4")
        await eventually(pilot, lambda: isinstance(app.screen, ParameterEditor) and app.focused)
        shown = app.screen.query_one("#parameter-note", Static)
        for number, parameter in enumerate(PARAMETERS.values()):
            app.screen.query_one(OptionList).highlighted = number
            await eventually(pilot, lambda parameter=parameter: parameter.help[1:] in str(shown.render()))  # type: ignore[misc]
            lines = shown.render_lines(shown.size.region)
            text = " ".join(" ".join(line.text for line in lines).split())
            assert parameter.help[1:] in text and "The default is" in text, "the end of it is cut off"


async def test_saving_names_the_whole_path(tmp_path: Path) -> None:
    app = fake_app(cwd=tmp_path)
    told: list[str] = []
    app.chat_screen.tell = told.append  # type: ignore[method-assign]
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "hi")
        await say(pilot, "/save md")
    assert told == [f"Saved the messages on the screen to {tmp_path / 'hi.md'}."]


async def test_short_messages_cover_neither_what_is_typed_nor_the_keys() -> None:
    app = fake_app()
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await settle(pilot)
        app.chat_screen.tell("Saved the messages to /a/path/that/is/rather/long/for/a/terminal/of/eighty/columns.md.")
        await eventually(pilot, lambda: app.screen.query("Toast"))
        await settle(pilot)
        toast = app.screen.query_one("Toast").region
        assert toast.height > 0 and not toast.overlaps(app.chat_screen.composer.region)
        assert not toast.overlaps(app.chat_screen.status.region)


def test_keys_covers_every_key() -> None:
    text = pages.keys(REGISTRY, lambda name: REGISTRY[name].keys)
    for command in REGISTRY:
        assert not command.keys or f"| `{command.name}` |" in text, command.name


def test_numbers_of_a_conversation() -> None:
    record = {
        "usage": {"n_prompt": 100, "n_reused": 50, "n_generated": 21},
        "timing": {"first_token_ms": 10, "decode_ms": 1000},
    }
    nodes = [Node(1, None, "user", "q"), Node(2, 1, "assistant", "a | b", record=record), Node(3, 2, "assistant", "no record")]
    text = pages.stats(nodes, 80)
    assert "1  a | b       21       0.01 s  20.0 tok/s  50/100" in "\n".join(line.text for line in render(text, 80))
    assert "1 answer, 21 tokens generated" in text and "50 (50 %)" in text
    assert "No answer" in pages.stats([nodes[0]], 80)


@pytest.mark.parametrize("width", [36, *range(60, 140, 13)])
def test_what_pages_quote_is_as_it_was_said_and_fills_the_line(width: int) -> None:
    said = "**Bold** `code` | x_1_y $a*b$ \\(x\\) [l](u) <b> & ~~s~~ # 日本語のとても長いテキスト " * 3
    record = {"usage": {"n_prompt": 100, "n_generated": 21}, "timing": {"first_token_ms": 10, "decode_ms": 1000}}
    nodes = [Node(n, None, "assistant", said, record=record) for n in (1, 2)]
    context = pages.context([(node, 1234) for node in nodes], width, system=said, n_system=7, n_ctx=9999, policy="drop")
    for page, n_rows in ((pages.stats(nodes, width), 2), (context, 3)):
        lines = [line.text for line in render(page, width)]
        assert all(cell_len(line) <= width for line in lines)
        if not any("─" in line for line in lines):
            continue  # there is room for records only
        quoted = [found[0][:-1].rstrip() for line in lines if (found := re.search(r"\*\*Bold.*?…", line))]
        assert len(quoted) == n_rows, "each on a line of its own"
        assert all(said.startswith(text) for text in quoted)
        assert max(map(cell_len, lines[-2 - n_rows :])) >= width - 2 or page is not context, "it gets what the figures leave"


def test_context_page() -> None:
    nodes = [(Node(1, None, "user", "question"), 10), (Node(2, 1, "assistant", "answer"), 30)]
    text = pages.context(nodes, 80, system="Be brief.", n_system=5, n_ctx=100, policy="drop")
    assert "| Tokens | From | Text |" in text and "| 5 | System prompt | Be brief&#46; |" in text
    assert "45 of 100 tokens (45 %)" in text and "System prompt" in text and "oldest messages" in text
