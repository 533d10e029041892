from __future__ import annotations

import pytest
from textual.app import App, ComposeResult
from textual.geometry import Offset
from textual.selection import Selection

from edge_chat.widgets.markdown import ReplyMarkdown, has_desktop, is_web_address

TEXT = """\
# Title

A paragraph with **bold** text
and a second line.

1. one
2. two
   - inner

```python title=x.py
print("hi")

print("there")
```

| a | b |
| - | - |
| 1 | 2 |

<div>not <b>lost</b></div>

See setup.py, a@b.c and https://example.org now.

~~~
no language
~~~
"""


class Shown(App[None]):
    def __init__(self, text: str = "") -> None:
        super().__init__()
        self.text = text
        self.copied: list[str] = []

    def on_reply_markdown_copy_requested(self, event: ReplyMarkdown.CopyRequested) -> None:
        self.copied.append(event.code)

    def compose(self) -> ComposeResult:
        yield ReplyMarkdown(self.text)

    @property
    def markdown(self) -> ReplyMarkdown:
        return self.query_one(ReplyMarkdown)

    def lines(self) -> list[str]:
        """Return the text on the screen, without the margins."""
        return [line.text.strip() for line in self.screen._compositor.render_strips()]


async def test_a_streamed_text_ends_up_as_the_whole_one() -> None:
    whole = Shown(TEXT)
    async with whole.run_test(size=(80, 60)) as pilot:
        await pilot.pause()
        expected = whole.lines()
    for step in (1, 7, 100):
        streamed = Shown()
        async with streamed.run_test(size=(80, 60)) as pilot:
            for end in range(step, len(TEXT) + step, step):
                await streamed.markdown.extend(TEXT[:end])
            await streamed.markdown.finish(TEXT)
            await pilot.pause()
            assert streamed.lines() == expected


async def test_nothing_of_a_reply_is_lost_on_the_way() -> None:
    app = Shown()
    async with app.run_test(size=(80, 60)) as pilot:
        for end in range(1, len(TEXT) + 1, 3):
            await app.markdown.extend(TEXT[:end])
        await app.markdown.extend(TEXT)
        await pilot.pause()
        shown = "\n".join(app.lines())
        for part in (
            "Title",
            "bold",
            "and a second line.",
            "inner",
            'print("there")',
            "<div>not <b>lost</b></div>",
            "no language",
        ):
            assert part in shown, part


async def test_code_that_was_streamed_stays_when_it_is_drawn_again() -> None:
    """Textualize/textual#6518."""
    text = "Example:\n\n```python\nprint(1)\nprint(2)\n```\n"
    app = Shown()
    async with app.run_test(size=(80, 20)) as pilot:
        for end in range(1, len(text) + 1):
            await app.markdown.extend(text[:end])
        await app.markdown.finish(text)
        assert app.markdown.codes == ["print(1)\nprint(2)"]
        app.theme = "textual-light"
        await pilot.pause()
        assert any("print(2)" in line for line in app.lines())


async def test_line_ends_stay_line_ends() -> None:
    app = Shown("Roses are red\nViolets are blue")
    async with app.run_test(size=(80, 20)) as pilot:
        await pilot.pause()
        assert [line for line in app.lines() if line][:2] == ["Roses are red", "Violets are blue"]


async def test_only_addresses_are_links() -> None:
    app = Shown("setup.py a@b.c example.org https://example.org")
    async with app.run_test(size=(80, 20)) as pilot:
        await pilot.pause()
        links = [run for line in app.markdown.lines_at(80) for run in line.runs if run.link]
        assert [(run.text, run.link) for run in links] == [("https://example.org", "https://example.org")]


async def test_the_first_word_names_the_language() -> None:
    app = Shown("```Python title=x.py hl=1\nx = 1\n```\n\n```\ny\n```\n\n```no-such-language\nz\n```")
    async with app.run_test(size=(80, 30)) as pilot:
        await pilot.pause()
        heads = [line.split() for line in app.lines() if line.endswith("copy")]
        assert heads == [["Python", "copy"], ["text", "copy"], ["no-such-language", "copy"]]
        assert app.markdown.codes == ["x = 1", "y", "z"]


async def test_a_click_on_copy_copies_that_block() -> None:
    app = Shown("```\none\n```\n\n```\ntwo\n```")
    async with app.run_test(size=(40, 20)) as pilot:
        y = next(y for y, line in enumerate(app.markdown.lines_at(40)) if "two" in line.text) - 1
        await pilot.click(ReplyMarkdown, offset=(38, y))
        await pilot.pause()
        assert app.copied == ["two"]


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("one two three four five six", 10, "one two three four five six"),
        ("- one two three four\n- five", 10, "• one two three four\n• five"),
        ("> one two three four", 10, "one two three four"),
        ("```py\nif a:\n\treturn b + c + d\n```", 14, "if a:\n\treturn b + c + d"),
        ("a $x^2$ b", 40, "a $x^2$ b"),
        ("\\[ \\frac{a}{b} \\]", 40, "\\[ \\frac{a}{b} \\]"),
    ],
)
async def test_a_selection_copies_what_was_written(text: str, width: int, expected: str) -> None:
    app = Shown(text)
    async with app.run_test(size=(width, 20)) as pilot:
        await pilot.pause()
        assert app.markdown.get_selection(Selection(None, None)) == (expected, "\n")


async def test_a_part_of_a_line_can_be_selected() -> None:
    app = Shown("one **two** three $x^2$ four")
    async with app.run_test(size=(80, 20)) as pilot:
        await pilot.pause()
        selected = app.markdown.get_selection(Selection(Offset(4, 0), Offset(11, 0)))
        assert selected == ("two thr", "\n")
        assert app.markdown.get_selection(Selection(Offset(4, 0), Offset(15, 0))) == ("two three x", "\n")


@pytest.mark.parametrize(
    "text", ["", "\n", "```", "```python", "| a |", "- ", "1.", "> ", "#", "[x](", "\x1b[31m", "a\u2028b", "***", "![](x)"]
)
async def test_beginnings_do_no_harm(text: str) -> None:
    app = Shown()
    async with app.run_test(size=(80, 20)) as pilot:
        await app.markdown.extend(text)
        await app.markdown.extend(text + "\nmore")
        await app.markdown.finish(text + "\nmore\n\nthe end")
        await pilot.pause()
        assert any("the end" in line for line in app.lines())
        assert not any("\x1b" in line for line in app.lines())


async def test_a_text_that_is_not_longer_replaces_what_was_shown() -> None:
    app = Shown()
    async with app.run_test(size=(80, 20)) as pilot:
        await app.markdown.extend("one way")
        await app.markdown.extend("another way")
        await pilot.pause()
        assert [line for line in app.lines() if line] == ["another way"]


def test_desktops() -> None:
    assert has_desktop(["DISPLAY"], "linux")
    assert has_desktop(["WAYLAND_DISPLAY"], "linux")
    assert not has_desktop([], "linux")
    assert not has_desktop(["DISPLAY", "SSH_CONNECTION"], "linux")
    assert has_desktop([], "darwin")


@pytest.mark.parametrize("address", ["https://a.b/c", "HTTP://a.b", "mailto:a@b.c"])
def test_addresses_that_are_opened(address: str) -> None:
    assert is_web_address(address)


@pytest.mark.parametrize("address", ["file:///etc/passwd", "javascript:alert(1)", "-option", "https://-x", "x", "", "ssh://a"])
def test_addresses_that_are_only_copied(address: str) -> None:
    assert not is_web_address(address)
