"""Markdown of a reply: for text that is still arriving, with code blocks to copy, and without dropping any character."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from pygments.token import Token as Token_  # type: ignore[import-untyped]
from textual.app import ComposeResult
from textual.content import Content
from textual.highlight import HighlightTheme, highlight
from textual.message import Message
from textual.style import Style
from textual.widgets import Label, Markdown, Static
from textual.widgets.markdown import MarkdownFence

from edge_chat import format as fmt

__all__ = ["CodeFence", "ReplyMarkdown"]


def make_parser() -> MarkdownIt:
    """Return a parser for Markdown as language models write it.

    HTML is shown as text, because textual would drop it. Line ends are kept, because models mean them. Only text with a
    scheme is a link: "setup.py" is not one, although .py is a top-level domain.
    """
    parser = MarkdownIt("gfm-like").disable(["html_block", "html_inline"])
    if parser.linkify is not None:
        parser.linkify.set({"fuzzy_link": False, "fuzzy_email": False, "fuzzy_ip": False})
    parser.core.ruler.push("keep_line_ends", _keep_line_ends)
    return parser


def _keep_line_ends(state: StateCore) -> None:
    for token in state.tokens:
        for child in token.children or ():
            if child.type == "softbreak":
                child.type = "hardbreak"


class _CodeColors(HighlightTheme):
    """Textual's colours for code, without underlined functions."""

    STYLES: dict[Any, str] = {  # noqa: RUF012 (as in the base)
        **HighlightTheme.STYLES,
        Token_.Name.Function: "$text-warning",
        Token_.Name.Function.Magic: "$text-warning",
    }


class _FenceHead(Static):
    """Language of a code block, and "copy" to click on."""


class CodeFence(MarkdownFence):
    """A code block with its language and a copy button."""

    @dataclass
    class CopyRequested(Message):
        """Copy was clicked."""

        code: str

    def __init__(self, markdown: Markdown, token: Token, code: str) -> None:
        # "```python title=x.py" names the language with its first word.
        token.info = token.info.split(maxsplit=1)[0] if token.info.strip() else ""
        super().__init__(markdown, token, code)

    @classmethod
    def highlight(cls, code: str, language: str, ansi: bool = False, dark: bool = False) -> Content:
        """Return highlighted code; its colours come from the theme, whether dark or light."""
        return highlight(code, language=language or None, theme=_CodeColors)

    def compose(self) -> ComposeResult:
        yield _FenceHead(self._head())
        yield Label(self._highlighted_code, id="code-content", expand=True, markup=False)

    def set_content(self, content: Content) -> None:
        """Show other code and its language, which also changes while the first line is still arriving."""
        for head in self.query(_FenceHead):
            head.update(self._head())
        super().set_content(content)

    def action_copy(self) -> None:
        self.post_message(self.CopyRequested(self.code))

    def _head(self) -> Content:
        language = self.lexer or "text"
        if self.app.has_class("-plain"):
            return Content(f"Code, {language}:")
        copy = Style.from_meta({"@click": "copy"}) + Style(underline=True)
        return Content.assemble(language, "  ", ("copy", copy))


class ReplyMarkdown(Markdown):
    """A reply: `extend` while it is being generated, `finish` when it is complete."""

    BLOCKS: dict[str, Any] = {**Markdown.BLOCKS, "fence": CodeFence, "code_block": CodeFence}  # noqa: RUF012 (as in the base)

    def __init__(self, text: str = "", *, bullets: bool = True) -> None:
        self._shown = fmt.clean(text)
        if not bullets:
            self.BULLETS = ["- "]
        super().__init__(self._shown, parser_factory=make_parser, open_links=False)

    @property
    def codes(self) -> list[str]:
        """Return the code blocks in order."""
        return [fence.code for fence in self.query(CodeFence)]

    async def extend(self, text: str) -> None:
        """Show more of the text. `text` is all of it so far."""
        text = fmt.clean(text)
        if text.startswith(self._shown):
            new = text[len(self._shown) :]
            self._shown = text
            if new:
                await self.append(new)
        else:
            await self.finish(text)

    async def finish(self, text: str) -> None:
        """Show the complete text, parsed as a whole.

        A later line can change the meaning of an earlier one, and blocks that came in parts keep their intermediate look
        (Textualize/textual#6518).
        """
        self._shown = fmt.clean(text)
        await self.update(self._shown)

    async def on_markdown_link_clicked(self, event: Markdown.LinkClicked) -> None:  # type: ignore[override]
        """Copy the address, and open it if there is a desktop; a text browser would take over this terminal.

        A model wrote the address, perhaps following a document, so only web and mail addresses are opened: never a file, a
        program, or text that the opener would take for an option.
        """
        event.prevent_default()
        event.stop()
        address = fmt.clean(event.href)
        is_safe = is_web_address(address)
        if is_safe and has_desktop():
            self.app.open_url(address)
        self.app.copy_to_clipboard(address)
        why = "" if is_safe else " It was not opened: only http, https and mailto addresses are."
        self.notify(f"Copied {address}.{why}", markup=False)


def is_web_address(address: str) -> bool:
    """Return whether an address is safe to open, whoever wrote it."""
    return re.match(r"(https?://|mailto:)[^\s-]", address, re.IGNORECASE) is not None


def has_desktop(environ: Iterable[str] | None = None, platform: str = sys.platform) -> bool:
    """Return whether a browser would open in a window of its own, given the names of the environment variables."""
    import os

    names = set(os.environ if environ is None else environ)
    if "SSH_CONNECTION" in names:
        return False
    return platform in ("darwin", "win32") or bool(names & {"DISPLAY", "WAYLAND_DISPLAY"})
