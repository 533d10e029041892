"""LaTeX commands and the Unicode characters that they stand for. Data, no code.

Kinds decide the spacing: "ord" letters and other symbols, "op" large operators and function names, "bin" and "rel" between two
operands, "open" and "close" brackets, "punct" punctuation.
"""

from __future__ import annotations

__all__ = [
    "ACCENTS",
    "ALPHABETS",
    "ALPHABET_HOLES",
    "FUNCTIONS",
    "IGNORED",
    "LIMITS",
    "SPACES",
    "SUBSCRIPTS",
    "SUPERSCRIPTS",
    "SYMBOLS",
    "VULGAR",
]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _table(kind: str, text: str) -> dict[str, tuple[str, str]]:
    words = text.split()
    return {name: (character, kind) for name, character in zip(words[::2], words[1::2], strict=True)}


_ORD = """
alpha α beta β gamma γ delta δ epsilon ϵ varepsilon ε zeta ζ eta η theta θ vartheta ϑ iota ι kappa κ varkappa ϰ lambda λ mu μ
nu ν xi ξ omicron ο pi π varpi ϖ rho ρ varrho ϱ sigma σ varsigma ς tau τ upsilon υ phi ϕ varphi φ chi χ psi ψ omega ω
Gamma Γ Delta Δ Theta Θ Lambda Λ Xi Ξ Pi Π Sigma Σ Upsilon Υ Phi Φ Psi Ψ Omega Ω
infty ∞ partial ∂ nabla ∇ forall ∀ exists ∃ nexists ∄ emptyset ∅ varnothing ∅ aleph ℵ beth ℶ hbar ℏ hslash ℏ ell ℓ wp ℘
Re ℜ Im ℑ
imath ı jmath ȷ prime ′ backprime ‵ angle ∠ measuredangle ∡ triangle △ square □ Box □ blacksquare ■ qed ∎ diamond ⋄ Diamond ◇
neg ¬ lnot ¬ top ⊤ bot ⊥ surd √ degree ° celsius ℃ dots … ldots … cdots ⋯ vdots ⋮ ddots ⋱ dotsc … dotsb ⋯ dotsm ⋯
complement ∁ sharp ♯ flat ♭ natural ♮ clubsuit ♣ diamondsuit ♢ heartsuit ♡ spadesuit ♠ checkmark ✓ dagger † ddagger ‡
pounds £ euro € yen ¥ copyright © mho ℧ eth ð Finv Ⅎ Game ⅁ Bbbk 𝕜 lhd ⊲ rhd ⊳ S § P ¶ AA Å aa å ss ß o ø O Ø ae æ AE Æ
oe œ OE Œ
"""

_BIN = """
pm ± mp ∓ times × div ÷ cdot · ast ∗ star ⋆ circ ∘ bullet ∙ cap ∩ cup ∪ uplus ⊎ sqcap ⊓ sqcup ⊔ vee ∨ lor ∨ wedge ∧ land ∧
setminus ∖ smallsetminus ∖ wr ≀ oplus ⊕ ominus ⊖ otimes ⊗ oslash ⊘ odot ⊙ amalg ⨿ ltimes ⋉ rtimes ⋊ bigtriangleup △
bigtriangledown ▽ boxplus ⊞ boxminus ⊟ boxtimes ⊠ boxdot ⊡ dotplus ∔ veebar ⊻ barwedge ⊼ Cap ⋒ Cup ⋓
"""

_REL = """
leq ≤ le ≤ leqslant ⩽ geq ≥ ge ≥ geqslant ⩾ neq ≠ ne ≠ equiv ≡ approx ≈ approxeq ≊ cong ≅ sim ∼ simeq ≃ propto ∝ ll ≪ gg ≫
lll ⋘ ggg ⋙ lesssim ≲ gtrsim ≳ prec ≺ succ ≻ preceq ⪯ succeq ⪰ subset ⊂ supset ⊃ subseteq ⊆ supseteq ⊇ subsetneq ⊊ supsetneq ⊋
sqsubset ⊏ sqsupset ⊐ sqsubseteq ⊑ sqsupseteq ⊒ in ∈ ni ∋ notin ∉ owns ∋ vdash ⊢ dashv ⊣ models ⊨ vDash ⊨ Vdash ⊩ perp ⊥
parallel ∥ nparallel ∦ mid ∣ nmid ∤ asymp ≍ doteq ≐ coloneqq ≔ triangleq ≜ bowtie ⋈ smile ⌣ frown ⌢ therefore ∴ because ∵
to → rightarrow → longrightarrow ⟶ leftarrow ← gets ← longleftarrow ⟵ leftrightarrow ↔ longleftrightarrow ⟷ Rightarrow ⇒
Longrightarrow ⟹ implies ⟹ Leftarrow ⇐ Longleftarrow ⟸ impliedby ⟸ Leftrightarrow ⇔ Longleftrightarrow ⟺ iff ⟺ mapsto ↦
longmapsto ⟼ hookrightarrow ↪ hookleftarrow ↩ uparrow ↑ downarrow ↓ updownarrow ↕ Uparrow ⇑ Downarrow ⇓ Updownarrow ⇕
nearrow ↗ searrow ↘ swarrow ↙ nwarrow ↖ rightharpoonup ⇀ rightharpoondown ⇁ leftharpoonup ↼ leftharpoondown ↽
rightleftharpoons ⇌ leftrightharpoons ⇋ rightsquigarrow ⇝ leadsto ⇝ twoheadrightarrow ↠ rightrightarrows ⇉ nrightarrow ↛
nsubseteq ⊈ nleq ≰ ngeq ≱ nless ≮ ngtr ≯ lt < gt >
"""

_OP = """
sum ∑ prod ∏ coprod ∐ int ∫ iint ∬ iiint ∭ oint ∮ oiint ∯ bigcup ⋃ bigcap ⋂ bigvee ⋁ bigwedge ⋀ bigoplus ⨁ bigotimes ⨂ bigodot ⨀
biguplus ⨄ bigsqcup ⨆
"""

_BRACKETS = """
lbrace { rbrace } lbrack [ rbrack ] langle ⟨ rangle ⟩ lfloor ⌊ rfloor ⌋ lceil ⌈ rceil ⌉ lvert | rvert | lVert ‖ rVert ‖
ulcorner ⌜ urcorner ⌝ llcorner ⌞ lrcorner ⌟
"""

SYMBOLS: dict[str, tuple[str, str]] = {
    **_table("ord", _ORD),
    **_table("bin", _BIN),
    **_table("rel", _REL),
    **_table("op", _OP),
    **{
        n: (c, "open" if c in "{[⟨⌊⌈⌜⌞" else "close" if c in "}]⟩⌋⌉⌝⌟" else "ord")
        for n, (c, _) in _table("", _BRACKETS).items()
    },
    "{": ("{", "open"),
    "}": ("}", "close"),
    "|": ("‖", "ord"),
    "Vert": ("‖", "ord"),
    "vert": ("|", "ord"),
    "backslash": ("\\", "ord"),
    "%": ("%", "ord"),
    "$": ("$", "ord"),
    "#": ("#", "ord"),
    "&": ("&", "ord"),
    "_": ("_", "ord"),
    "colon": (":", "punct"),
    "bmod": ("mod", "bin"),
}
"""Command name without its backslash -> (character, kind)."""

FUNCTIONS = _words(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh coth log ln lg exp det dim ker deg arg gcd hom Pr "
    "lim limsup liminf max min sup inf argmax argmin sgn tr rank"
)
"""Commands that print their own name upright, as a function."""

LIMITS = frozenset("∑∏∐∫∬∭∮∯⋃⋂⋁⋀⨁⨂⨀⨄⨆") | {
    "lim",
    "limsup",
    "liminf",
    "max",
    "min",
    "sup",
    "inf",
    "argmax",
    "argmin",
    "det",
    "Pr",
    "gcd",
}
"""Operators whose limits stand below and above them in a displayed formula."""

SPACES = {
    ",": " ",
    ":": " ",
    ">": " ",
    ";": " ",
    " ": " ",
    "!": "",
    "quad": "  ",
    "qquad": "    ",
    "enspace": " ",
    "thinspace": " ",
}
"""Spacing commands."""

IGNORED = _words(
    "displaystyle textstyle scriptstyle limits nolimits nonumber notag big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl "
    "Biggr bigm Bigm middle strut mathstrut allowbreak nobreak centering relax"
)
"""Commands that change size or placement only."""

ACCENTS = {
    "hat": "\u0302",
    "widehat": "\u0302",
    "tilde": "\u0303",
    "widetilde": "\u0303",
    "bar": "\u0304",
    "overline": "\u0305",
    "breve": "\u0306",
    "dot": "\u0307",
    "ddot": "\u0308",
    "mathring": "\u030a",
    "check": "\u030c",
    "acute": "\u0301",
    "grave": "\u0300",
    "vec": "\u20d7",
    "overrightarrow": "\u20d7",
    "underline": "\u0332",
}
"""Accent command -> the combining character; `overline` and `underline` go on several letters."""

SUPERSCRIPTS = dict(
    zip(
        "0123456789+−-=()abcdefghijklmnoprstuvwxyzABDEGHIJKLMNOPRTUVWαβγδεθιφχ′″‴∘*†‡",
        "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻᴬᴮᴰᴱᴳᴴᴵᴶᴷᴸᴹᴺᴼᴾᴿᵀᵁⱽᵂᵅᵝᵞᵟᵋᶿᶥᵠᵡ′″‴°*†‡",
        strict=True,
    )
)
SUBSCRIPTS = dict(zip("0123456789+−-=()aehijklmnoprstuvxβγρφχ", "₀₁₂₃₄₅₆₇₈₉₊₋₋₌₍₎ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓᵦᵧᵨᵩᵪ", strict=True))

VULGAR = {
    (1, 2): "½",
    (1, 3): "⅓",
    (2, 3): "⅔",
    (1, 4): "¼",
    (3, 4): "¾",
    (1, 5): "⅕",
    (2, 5): "⅖",
    (3, 5): "⅗",
    (4, 5): "⅘",
    (1, 6): "⅙",
    (5, 6): "⅚",
    (1, 8): "⅛",
    (3, 8): "⅜",
    (5, 8): "⅝",
    (7, 8): "⅞",
}
"""(numerator, denominator) -> character."""

ALPHABETS: dict[str, tuple[str, ...]] = {
    "mathbb": ("𝔸", "𝕒", "𝟘"),
    "Bbb": ("𝔸", "𝕒", "𝟘"),
    "mathcal": ("𝒜", "𝒶", ""),
    "mathscr": ("𝒜", "𝒶", ""),
    "mathfrak": ("𝔄", "𝔞", ""),
    "mathbf": ("𝐀", "𝐚", "𝟎", "𝚨", "𝛂"),
    "boldsymbol": ("𝐀", "𝐚", "𝟎", "𝚨", "𝛂"),
    "bm": ("𝐀", "𝐚", "𝟎", "𝚨", "𝛂"),
    "mathsf": ("𝖠", "𝖺", "𝟢"),
    "mathtt": ("𝙰", "𝚊", "𝟶"),
}
"""Alphabet command -> its A, a, 0 and, where it has them, Α and α; the other characters follow them."""

ALPHABET_HOLES = dict(zip("𝔺𝔿𝕅𝕇𝕈𝕉𝕑𝒝𝒠𝒡𝒣𝒤𝒧𝒨𝒭𝒺𝒼𝓄𝔆𝔋𝔌𝔕𝔝", "ℂℍℕℙℚℝℤℬℰℱℋℐℒℳℛℯℊℴℭℌℑℜℨ", strict=True))
"""Code points that Unicode left empty, since the characters existed before -> those characters."""
