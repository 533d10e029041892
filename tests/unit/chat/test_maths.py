"""Formulas: shown in Unicode where that means the same, and as they were written where it does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_chat.markup.document import Document, render
from edge_chat.markup.lines import Run
from edge_chat.markup.maths import to_unicode
from edge_chat.markup.maths_block import to_lines
from edge_chat.markup.maths_symbols import ACCENTS, ALPHABETS, FUNCTIONS, SYMBOLS
from edge_chat.markup.render import Options

IN_LINE = {
    r"x^2 + y^2 = z^2": "x² + y² = z²",
    r"\frac{1}{2}": "½",
    r"\frac12": "½",
    r"\frac{a+b}{c}": "(a + b)/c",
    r"\frac{1}{2a}": "1/(2a)",
    r"\frac{n(n+1)}{2}": "n(n + 1)/2",
    r"\frac{a}{b}c": "(a/b)c",
    r"2\frac{3}{7}": "2(3/7)",
    r"\frac{\frac{a}{b}}{c}": "(a/b)/c",
    r"\frac{a}{\frac{b}{c}}": "a/(b/c)",
    r"\frac{-b \pm \sqrt{b^2-4ac}}{2a}": "(−b ± √(b² − 4ac))/(2a)",
    r"\frac{d^2y}{dx^2}": "d²y/dx²",
    r"\sqrt{\pi}": "√π",
    r"\sqrt{a+b}": "√(a + b)",
    r"\sqrt{2}\pi": "√(2)π",
    r"\sqrt[3]{x}": "∛x",
    r"\sqrt[n]{x}": "ⁿ√x",
    r"\sum_{i=1}^{n} i": "∑ᵢ₌₁ⁿ i",
    r"\int_0^\infty e^{-x^2}\,dx": "∫₀^∞ e^(−x²) dx",
    r"\lim_{x \to 0} f(x)": "lim_(x→0) f(x)",
    r"a^{b^c}": "a^(bᶜ)",
    r"{x^2}^3": "(x²)³",
    r"(x+1)^2": "(x + 1)²",
    r"\left(\frac{a}{b}\right)^2": "(a/b)²",
    r"x_{i+1} = x_i": "xᵢ₊₁ = xᵢ",
    r"W_{query}": "W_(query)",
    r"x^23": "x²3",
    r"\nabla_\theta J": "∇_(θ)J",
    r"\sum_\theta J_\theta": "∑_θ J_θ",
    r"\frac{1}{n}\sum x": "(1/n) ∑ x",
    r"\frac{Q}{\sqrt{d_k}}": "Q/√dₖ",
    r"\sqrt{x^2}": "√(x²)",
    r"x^*": "x*",
    r"f''(x)": "f″(x)",
    r"\alpha\beta \leq \Gamma": "αβ ≤ Γ",
    r"\mathbb{R} \in \mathcal{L}": "ℝ ∈ ℒ",
    r"\mathbf{x}^T \boldsymbol{\theta}": "𝐱ᵀ𝛉",
    r"\hat{y}": "ŷ",
    r"\overline{AB}": "A\u0305B\u0305",
    r"\cos^2\theta": "cos² θ",
    r"\log_2 n": "log₂ n",
    r"\text{Area} = \pi r^2": "Area = πr²",
    r"x*y*z": "x * y * z",
    r"\{1,2\}": "{1,2}",
    r"a\not=b": "a ≠ b",
    r"30^\circ": "30°",
    r"\begin{pmatrix} a & b \\ c & d \end{pmatrix}": "(a, b; c, d)",
    r"\boxed{42}": "[42]",
    r"-\frac{1}{2}": "−½",
    r"1{,}000{,}000": "1,000,000",
    r"5\%": "5%",
}


@pytest.mark.parametrize(("source", "expected"), IN_LINE.items())
def test_formulas_in_a_line(source: str, expected: str) -> None:
    assert to_unicode(source) == expected


@pytest.mark.parametrize(
    "source",
    [
        r"\foo{x}",
        "x^{",
        r"\frac{1}",
        r"\color{red} x",
        r"\cancel{x}",
        r"\vec{AB}",
        r"\underbrace{a}_{b}",
        "a & b",
        "x^2^3",
        "}",
        "",
        r"\hat" * 1000,
        r"\sqrt" * 600,
        "{x^" * 900 + "}" * 900,
        "x" * 5000,
        r"\mathcal{5}",
        r"\begin{tikzpicture}\end{tikzpicture}",
    ],
)
def test_what_cannot_be_shown_faithfully_is_left(source: str) -> None:
    assert to_unicode(source) is None and to_lines(source, 80) is None


DISPLAYED = {
    r"x = \frac{-b \pm \sqrt{b^2-4ac}}{2a}": """\
     −b ± √(b² − 4ac)
x = ──────────────────
            2a""",
    r"\sum_{i=1}^{n} i = \frac{n(n+1)}{2}": """\
 n       n(n + 1)
 ∑  i = ──────────
i=1         2""",
    r"\begin{pmatrix} a & 10 \\ c & d \end{pmatrix}^{-1}": """\
         −1
⎛ a  10 ⎞
⎝ c  d  ⎠""",
    r"f = \begin{cases} x & x > 0 \\ 0 & x = 0 \\ -x & \text{otherwise} \end{cases}": """\
    ⎧ x    x > 0
f = ⎨ 0    x = 0
    ⎩ −x   otherwise""",
    r"\begin{aligned} a &= b + c \\ &= d \end{aligned}": "a = b + c\n  = d",
    r"\frac{a}{b}\frac{c}{d}": " a   c\n─── ───\n b   d",
    r"\boxed{x = 42}": "┌────────┐\n│ x = 42 │\n└────────┘",
    r"a = b \\ c = d": "a = b\nc = d",
}


@pytest.mark.parametrize(("source", "expected"), DISPLAYED.items())
def test_displayed_formulas(source: str, expected: str) -> None:
    lines = to_lines(source, 80)
    assert lines is not None and "\n".join(lines) == expected


def test_a_displayed_formula_that_is_too_wide_becomes_a_line_of_text() -> None:
    source = r"\frac{a+b+c+d+e+f+g}{h}"
    assert to_lines(source, 20) is None
    assert [line.text for line in render(f"$$ {source} $$", 20)] == ["  (a + b + c + d + e", "  + f + g)/h"]


NAMES = sorted(rf"\{name}" for name in [*SYMBOLS, *FUNCTIONS, *ACCENTS, *ALPHABETS])
PIECES = [
    *NAMES,
    *"abxy019+-=()[]|,.{}^_&' ",
    r"\frac",
    r"\sqrt",
    r"\left(",
    r"\right)",
    "\\\\",
    r"\begin{matrix}",
    r"\end{matrix}",
]


@given(st.lists(st.sampled_from(PIECES), max_size=16), st.integers(8, 100))
def test_any_source_is_shown_or_left(pieces: list[str], width: int) -> None:
    """Nothing raises, and the letters and digits of the source are in what is shown."""
    source = " ".join(pieces)
    shown = to_unicode(source)
    lines = to_lines(source, width)
    if shown is None:
        return
    import unicodedata

    plain = unicodedata.normalize("NFKD", shown)
    for letter in "xy019":
        assert plain.count(letter) >= pieces.count(letter)
    if lines is not None:
        drawn = unicodedata.normalize("NFKD", "".join(lines))
        for letter in "xy019":
            assert drawn.count(letter) >= pieces.count(letter)


def formulas(text: str) -> list[tuple[str, str]]:
    """Return (text, style) of the formulas of a rendered text."""
    return [(run.text, run.style) for line in render(text, 80) for run in line.runs if run.style in ("maths", "code-inline")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"a \(x*y*z\) b", [("x * y * z", "maths")]),
        (r"\[ a\,b \{1,2\} \]", [("a b{1,2}", "maths")]),
        (r"and \[ a^2 \] too", [("a²", "maths")]),
        (r"$a*b*c$", [("a * b * c", "maths")]),
        (r"the $n$th, $k$-means", [("n", "maths"), ("k", "maths")]),
        (r"$\foo{x*y*z}$", [(r"$\foo{x*y*z}$", "code-inline")]),
        (r"\(\foo_1 *x*\)", [(r"\(\foo_1 *x*\)", "code-inline")]),
        ("$$\n\\foo\n$$", [("$$", "code-inline"), (r"\foo", "code-inline"), ("$$", "code-inline")]),
        ("$$\nx = 1", [("$$", "code-inline"), ("x = 1", "code-inline")]),  # still being generated
        ("\\begin{align}\na &= b\n\\end{align}", [("a = b", "maths")]),
        ("- x\n  \\[\n  y^2\n  \\]", [("y²", "maths")]),
        ("> $$y^2$$", [("y²", "maths")]),
        ("| $x^2$ | b |\n|---|---|\n| 1 | \\(y\\) |", [("y", "maths")]),
    ],
)
def test_delimiters(text: str, expected: list[tuple[str, str]]) -> None:
    assert formulas(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "It costs $5 and $10.",
        "$5-$10, US$5, CA$10",
        "$HOME/$USER and $PATH:$HOME",
        "5$ and 10$",
        "$5 (or 6$)",
        "between $20 and $30, or $1,000 a month and $12k a year",
        "$ x $",
        "a $ b",
        "$$ is the pid",
        "echo $1 $2 $@",
    ],
)
def test_prices_and_variables_are_text(text: str) -> None:
    assert [line.text for line in render(text, 80)] == [text]


def test_escaped_brackets_stay_brackets() -> None:
    assert [line.text for line in render(r"\[sic\] \[link\](x) \(see below\) \$5 and \$6", 80)] == [
        "[sic] [link](x) (see below) $5 and $6"
    ]


def test_code_has_no_formulas() -> None:
    assert "$x^2$" in "".join(line.text for line in render("`$x^2$`\n\n```\n\\(y\\)\n```", 80))
    assert "\\(y\\)" in "".join(line.text for line in render("```\n\\(y\\)\n```", 80))


def test_a_selection_copies_the_source() -> None:
    runs: list[Run] = [run for line in render(r"a $x^2$ b", 80) for run in line.runs]
    assert [run.copied for run in runs if run.style == "maths"] == ["$x^2$"]


def test_formulas_stay_latex_where_the_terminal_has_only_ascii() -> None:
    document = Document(Options(is_ascii=True))
    document.set_text("# On \\(\\sqrt{2}\\)\n\na $x \\le y$ b\n\n- one\n  $$\n  \\sum_i i\n  $$\n\n| h |\n|---|\n| $\\pi$ |")
    shown = "\n".join(run.text for line in document.lines(60) for run in line.runs)
    for source in (r"\(\sqrt{2}\)", r"$x \le y$", r"\sum_i i", r"$\pi$"):
        assert source in shown
    assert not any(character in shown for character in "√≤∑π")
