"""Parser for Markdown as language models write it: GitHub's, with formulas, footnotes and task lists.

Formulas are taken before the escape rule of Markdown, which would eat their backslashes and stars.
"""

from __future__ import annotations

import re

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

__all__ = ["make_parser"]

_CLOSERS = {"$$": "$$", "\\(": "\\)", "\\[": "\\]", "$": "$"}
_ENVIRONMENT = re.compile(r"\\begin\{((?:equation|align|alignat|gather|multline|eqnarray|aligned|gathered)\*?)\}")
_MAX_FORMULA = 4000
_FOOTNOTE = re.compile(r"\[\^([^\s\[\]^]{1,40})\]")
_TASK = re.compile(r"\[([ xX])\](?=\s)")
_WORDS = re.compile(r"[^\W\d_]{2,} +[^\W\d_]{2,}")
_BRACED = re.compile(r"\\[A-Za-z]+\*?(?:\{[^{}]*\})?")


def make_parser() -> MarkdownIt:
    """Return the parser.

    HTML is text, because otherwise it would not be shown. Line ends are kept, because models mean them. Only text with a scheme
    is a link: "setup.py" is not one, although .py is a top-level domain.

    Besides those of markdown-it there are tokens of these types: "math_inline" (content: LaTeX without its delimiters; markup:
    the opening one), "math_block" (likewise; info: the text behind it; meta["source"]: all of it; no content if it is not
    complete), "footnote_ref" and "footnote_open" (info: the label). A list item that is a task has meta["task"]: "x" or " ".
    """
    parser = MarkdownIt("gfm-like").disable(["html_block", "html_inline"])
    if parser.linkify is not None:
        parser.linkify.set({"fuzzy_link": False, "fuzzy_email": False, "fuzzy_ip": False})
    interrupts = ["paragraph", "reference", "blockquote", "list"]
    parser.block.ruler.before("fence", "math_block", _math_block, {"alt": interrupts})
    parser.block.ruler.before("reference", "footnote", _footnote_block, {"alt": ["paragraph"]})
    parser.inline.ruler.before("escape", "math_inline", _math_inline)
    parser.inline.ruler.before("link", "footnote_ref", _footnote_ref)
    parser.core.ruler.after("block", "ragged_rows", _ragged_rows)
    parser.core.ruler.push("tasks", _tasks)
    parser.core.ruler.push("keep_line_ends", _keep_line_ends)
    return parser


def _keep_line_ends(state: StateCore) -> None:
    for token in state.tokens:
        for child in token.children or ():
            if child.type == "softbreak":
                child.type = "hardbreak"


def _tasks(state: StateCore) -> None:
    """Take "[x]" out of the first paragraph of list items, into their meta."""
    tokens = state.tokens
    for item, paragraph, text in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if item.type != "list_item_open" or paragraph.type != "paragraph_open" or not text.children:
            continue
        first = text.children[0]
        match = _TASK.match(first.content) if first.type == "text" else None
        if match:
            first.content = first.content[match.end() :].lstrip()
            item.meta = {"task": match[1].lower()}


def _ragged_rows(state: StateCore) -> None:
    """Add the cells of a row beyond those of the head, which GitHub's Markdown drops."""
    lines: list[str] = []
    out: list[Token] = []
    n_cells, row = 0, 0
    for token in state.tokens:
        if token.type == "tr_open":
            n_cells, row = 0, token.map[0] if token.map else 0
        n_cells += token.type in ("td_open", "th_open")
        if token.type == "tr_close":
            lines = lines or state.src.split("\n")
            for text in _cells(lines[row])[n_cells:]:
                inline = Token("inline", "", 0, content=text, children=[], map=[row, row + 1], level=token.level + 2)
                out += [
                    Token("td_open", "td", 1, level=token.level + 1),
                    inline,
                    Token("td_close", "td", -1, level=token.level + 1),
                ]
        out.append(token)
    state.tokens = out


def _cells(line: str) -> list[str]:
    """Split a line of a table at its bars."""
    line = line.strip().lstrip("> ").strip()
    cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)]
    return cells[not cells[0] : len(cells) - (not cells[-1])]


def _math_inline(state: StateInline, silent: bool) -> bool:
    """Take `$…$`, `$$…$$`, `\\(…\\)` and `\\[…\\]` inside a text."""
    start = state.pos
    opener = next((o for o in _CLOSERS if state.src.startswith(o, start)), "")
    if not opener:
        return False
    begin = start + len(opener)
    closer = _CLOSERS[opener]
    end = state.src.find(closer, begin, state.posMax)
    while opener == "$" and end > 0 and state.src[end - 1] == "\\":
        end = state.src.find(closer, end + 1, state.posMax)
    if end < 0:
        return False
    content = state.src[begin:end]
    before = state.src[start - 1] if start else " "
    after = state.src[end + len(closer)] if end + len(closer) < len(state.src) else " "
    if not _is_formula(content, opener, before, after):
        return False
    if not silent:
        token = state.push("math_inline", "math", 0)
        token.content, token.markup = content, opener
    state.pos = end + len(closer)
    return True


def _is_formula(content: str, opener: str, before: str, after: str) -> bool:
    """Return whether the text between two delimiters is a formula and not "$5 or $6", "$HOME/$USER" or "\\[sic\\]"."""
    if not content.strip() or len(content) > _MAX_FORMULA or "`" in content:
        return False
    if opener in ("\\(", "\\["):
        is_word = content.strip().isalpha() and len(content.strip()) > 1
        return not is_word and not _WORDS.fullmatch(content.strip()) and (after not in "([" or opener == "\\(")
    if _WORDS.search(_BRACED.sub("", content)):
        return False
    if opener == "$$":
        return True
    if content[0].isdigit() and sum(map(content.count, "([")) != sum(map(content.count, ")]")):
        return False
    if content[0].isspace() or content[-1].isspace() or before.isalnum() or before in "$\\" or after.isdigit() or after == "$":
        return False
    # A letter may follow, as in "the $n$th", but "$HOME/$USER" are two variables of a shell.
    return not (after.isalpha() or after in "_{(") or len(content) <= 3 or "\\" in content or "^" in content


def _math_block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Take a displayed formula that begins a line: `$$…$$`, `\\[…\\]` or an equation environment."""
    if state.is_code_block(start):
        return False
    position = state.bMarks[start] + state.tShift[start]
    first = state.src[position : state.eMarks[start]]
    opener = next((o for o in ("$$", "\\[") if first.startswith(o)), "")
    environment = _ENVIRONMENT.match(first)
    if not opener and environment is None:
        return False
    closer = _CLOSERS[opener] if opener else f"\\end{{{environment[1] if environment else ''}}}"
    lines: list[str] = []
    line, is_open = start, False
    text = first[len(opener) :]
    while True:
        found = text.find(closer)
        if found >= 0:
            if text[found + len(closer) :].strip(" .,;"):
                return False  # more text follows: the formula is inside a paragraph
            lines.append(text[: found + (0 if opener else len(closer))])
            break
        lines.append(text)
        line += 1
        if line >= end and (not opener or not lines[0].strip() or opener == "\\["):
            is_open = True  # the rest is still being generated, or was forgotten
            break
        if line >= end or state.isEmpty(line) or state.sCount[line] < state.blkIndent:
            return False
        text = state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]]
    content = "\n".join(lines).strip()
    if not content or (opener == "\\[" and not _is_formula(content, opener, " ", " ")):
        return False
    if not silent:
        token = state.push("math_block", "math", 0)
        token.block = True
        token.content, token.markup, token.map = "" if is_open else content, opener, [start, min(line + 1, end)]
        token.info = text[text.find(closer) + len(closer) :].strip() if not is_open else ""
        token.meta = {"source": "\n".join([opener + lines[0], *lines[1:]]) + ("" if is_open or not opener else closer)}
    state.line = min(line + 1, end)
    return True


def _footnote_ref(state: StateInline, silent: bool) -> bool:
    match = _FOOTNOTE.match(state.src, state.pos)
    if match is None or state.src[match.end() : match.end() + 1] == "(":
        return False
    if not silent:
        token = state.push("footnote_ref", "", 0)
        token.info = match[1]
    state.pos = match.end()
    return True


def _footnote_block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Take "[^1]: text" and the lines of its paragraph. markdown-it would take some for addresses of links."""
    position = state.bMarks[start] + state.tShift[start]
    match = _FOOTNOTE.match(state.src, position, state.eMarks[start])
    if state.is_code_block(start) or match is None or not state.src.startswith(":", match.end()):
        return False
    if silent:
        return True
    line = start + 1
    while line < end and not state.isEmpty(line) and not _starts_footnote(state, line):
        line += 1
    text = state.getLines(start, line, state.blkIndent, False)[match.end() - position + 1 :]
    state.line = line
    token = state.push("footnote_open", "", 1)
    token.info, token.map = match[1], [start, line]
    token = state.push("inline", "", 0)
    token.content, token.map, token.children = text.strip(), [start, line], []
    state.push("footnote_close", "", -1)
    return True


def _starts_footnote(state: StateBlock, line: int) -> bool:
    match = _FOOTNOTE.match(state.src, state.bMarks[line] + state.tShift[line], state.eMarks[line])
    return match is not None and state.src.startswith(":", match.end())
