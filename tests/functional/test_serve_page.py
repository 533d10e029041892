"""The page at `/` in a real browser: what it draws, and that nothing a model writes becomes more than text.

EDGE_TEST_PICTURES=FOLDER keeps pictures of it, to be looked at after a change.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from tests.serving import Serving, serving, wait_until

playwright = pytest.importorskip("playwright.sync_api", reason="The browser is driven by the package playwright")
expect = playwright.expect
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="There is no Chromium: apt-get install chromium-headless-shell"),
]
WAIT_MS = 60_000
PICTURES = os.environ.get("EDGE_TEST_PICTURES")  # now: conftest.py removes it for each test

EVERYTHING = """# A title with `code`

Some *slanted*, **bold**, ***both***, ~~struck~~, snake_case_name and 2 * 3 * 4 = 24.
A second line, with a [link](https://example.org/a_b_c), <https://example.org/x?y=1> and `` a ` b ``.

1. First
2. Second with **bold**
   - nested one
   - nested two
     - deeper
3. Third

   A paragraph of the third.

- another list
- with \\*stars\\*

| Name | Size |
|:-----|-----:|
| smollm2-135m | 104 MB |
| a \\| b | `code` |

```python
def f(n):  # <b>, **stars** and a line that is much too long for any telephone, whichever way it is held by its owner

    return n
```

> A quote
> - with a list

---
The end: 5 < 6.
"""
EVIL = """<script>window.hacked = 1</script><img src=x onerror="window.hacked = 2">

[a](javascript:window.hacked=3) [b]( JaVaScRiPt:window.hacked=4) [c](data:text/html,<script>alert(1)</script>)
[d](//evil.example)
![picture](https://evil.example/pixel.png) [e](https://evil.example/"onmouseover="window.hacked=5) [f](vbscript:x)

| <b>cell</b> | `<i>` |
|---|---|
| [g](file:///etc/passwd) | <svg/onload=alert(1)> |

```<iframe src="https://evil.example">
</code></pre><style>body { display: none }</style>
```
"""
SAMPLES = [
    EVERYTHING,
    "plain",
    "a\nb\n\nc",
    "## two\ntext\n###### six",
    "- a\n- b\n\n  c\n- d",
    "- a\n    - b\n    - c\n- d",
    "* a\n* b\n\ntext",
    "3. three\n4. four",
    "~~~\ncode\n```\n~~~\ntext",
    "    \n\n***bold slanted*** _under_ __strong__ a_b_c",
    "text\n- list\n- more\n> quote",
    "| a | b |\n|---|---|\n| c | d |\n\ntext | with a pipe",
    "a `code` b ``co`de`` c",
    "**bold *and* not** *x* ** y **",
    "1 * 2 * 3, \\_no\\_, ~~a~~",
    "***\n\n- - -\n\n___",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as driver:
        sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        opened = driver.chromium.launch(executable_path=BROWSER, args=sandbox)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    texts = {"everything": EVERYTHING, "evil": EVIL, "endless": (EVERYTHING + "\n\n") * 40}
    names = ("tiny", "a-model-with-a-very-long-name-0.6b-instruct-q4_k_m", *(f"model-{n}" for n in range(20)))
    script = lambda text: texts.get(text, f"You said {text}")  # noqa: E731
    with serving(models=names, script=script, n_ctx=50_000, delay_s=1e-4) as running:
        wait_until(lambda: running.ask("GET", "/health")[0] == 200)
        yield running


@pytest.fixture
def page(browser: playwright.Browser, server: Serving) -> Iterator[playwright.Page]:
    """The page of the server, and afterwards a check that it asked nobody else and that its script did not fail."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme="light")
    opened = context.new_page()
    opened.set_default_timeout(WAIT_MS)
    errors: list[str] = []
    asked: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda message: errors.append(message.text) if "Content Security" in message.text else None)
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(server.url)
    expect(opened.locator("#state")).to_have_class("soft ok", timeout=WAIT_MS)
    yield opened
    assert errors == []
    assert [url for url in asked if not url.startswith((server.url, "data:,"))] == []
    context.close()


def ask(page: playwright.Page, text: str) -> None:
    page.fill("#text", text)
    page.press("#text", "Enter")


def about(page: playwright.Page, n: int) -> playwright.Locator:
    """Return what stands under an answer."""
    return page.locator(".about").nth(n)


def add_embedder(route: playwright.Route) -> None:
    """Answer with the server's state, and a model for embeddings before the others."""
    response = route.fetch()
    state = response.json()
    embedder = {
        "id": "all-minilm-l6-v2",
        "task": "embeddings",
        "status": "loaded",
        "context_window": 256,
        "memory_bytes": 68_740_752,
    }
    route.fulfill(response=response, json={**state, "models": [embedder, *state["models"]]})


def picture(page: playwright.Page, name: str) -> None:
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / f"page-{name}.png", full_page=True)


def skeleton(html: str) -> str:
    """Return the elements and texts of HTML in one form for both renderers, without attributes."""
    html = re.sub(r"</?(thead|tbody|div)[^>]*>", "", html).replace("\n</code></pre>", "</code></pre>")
    html = html.replace("<em><strong>", "<strong><em>").replace("</strong></em>", "</em></strong>")
    html = re.sub(r"<([a-z0-9]+)( [^>]*?)? ?/?>", r"<\1>", html).replace("&quot;", '"')
    return re.sub(r"\s*(</?(?!code|em|strong|s>|a>|br)[a-z0-9]+>)\s*", r"\1", html)


def test_markdown_is_drawn_as_another_renderer_draws_it(page: playwright.Page) -> None:
    oracle = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    draw = "(text) => { const box = document.createElement('div'); markdown(box, text); return box.innerHTML; }"
    for sample in SAMPLES:
        expected = re.sub(r"<li>\s*<p>((?:(?!<p>).)*?)</p>(?!\s*<p>)", r"<li>\1", oracle.render(sample), flags=re.DOTALL)
        expected = re.sub(r"<(/?)h(\d)", lambda found: f"<{found[1]}h{min(6, int(found[2]) + 2)}", expected)
        drawn, wanted = skeleton(page.evaluate(draw, sample)), skeleton(expected)
        assert drawn.split("<") == wanted.split("<"), sample


def test_markdown_that_grows_is_drawn_as_the_whole(page: playwright.Page) -> None:
    script = """(text) => {
        const growing = document.createElement("div"), found = [];
        for (let n = 1; n <= text.length; n += 1) {
            const fresh = document.createElement("div");
            markdown(growing, text.slice(0, n));
            markdown(fresh, text.slice(0, n));
            if (growing.innerHTML !== fresh.innerHTML) found.push(n);
        }
        return found;
    }"""
    assert page.evaluate(script, EVERYTHING) == []


def test_what_a_model_writes_stays_text(page: playwright.Page) -> None:
    ask(page, "evil")
    expect(about(page, 0)).to_contain_text("tokens", timeout=WAIT_MS)
    answer = page.locator(".answer .text")
    assert page.evaluate("window.hacked") is None
    assert answer.locator("script, img, svg, iframe, style, b, i").count() == 0
    links = answer.locator("a").evaluate_all("all => all.map(one => [one.protocol, one.rel, one.target])")
    assert links and all(link == ["https:", "noopener noreferrer nofollow", "_blank"] for link in links)
    expect(answer).to_contain_text("<script>window.hacked = 1</script>")
    picture(page, "evil")


def test_a_chat_streams_stops_fails_and_begins_again(page: playwright.Page, server: Serving) -> None:
    expect(page.locator("#talk")).to_have_text("Enter sends, Shift+Enter begins a new line.")
    ask(page, "everything")
    expect(about(page, 0)).to_contain_text(re.compile(r"^\d+ tokens · [\d.]+ tokens/s"), timeout=WAIT_MS)
    assert page.locator(".answer h3, .answer table, .answer pre, .answer ol ul").count() == 5
    page.select_option("#model", "model-3")
    ask(page, "endless")
    expect(page.locator(".answer").nth(1).locator("pre").nth(1)).to_be_visible(timeout=WAIT_MS)
    expect(page.locator("#replies")).to_contain_text("generating", timeout=WAIT_MS)
    expect(page.locator("#replies")).to_contain_text("model-3")
    picture(page, "streaming")
    page.click("#send")
    expect(about(page, 1)).to_have_text("Stopped.")
    wait_until(lambda: not server.service.replies)
    ask(page, "x" * 60_000)
    expect(about(page, 2)).to_have_class("about bad", timeout=WAIT_MS)
    expect(about(page, 2)).to_contain_text("context window")
    assert len(page.input_value("#text")) == 60_000, "the question is not lost"
    picture(page, "error")
    ask(page, "once more")
    expect(page.locator(".answer .text").nth(3)).to_have_text("You said once more", timeout=WAIT_MS)
    page.reload()
    expect(page.locator(".answer")).to_have_count(0)
    ask(page, "hello")
    expect(about(page, 0)).to_contain_text("tokens", timeout=WAIT_MS)
    page.click("#fresh")
    expect(page.locator(".answer")).to_have_count(0)


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 360), ("dark", 360)])
def test_everything_fits_and_can_be_read(browser: playwright.Browser, server: Serving, scheme: str, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 740}, color_scheme=scheme)
    page = context.new_page()
    page.route("**/status", add_embedder)
    page.goto(server.url)
    expect(page.locator("#list tr")).to_have_count(24, timeout=WAIT_MS)
    assert page.evaluate("document.querySelector('#list').scrollWidth - document.querySelector('#list').clientWidth") <= 0, (
        "a column is cut off"
    )
    expect(page.locator("#list td").first).to_have_text("all-minilm-l6-v2embeddings")
    picture(page, f"empty-{scheme}-{width}")
    ask(page, "everything")
    expect(about(page, 0)).to_contain_text("tokens", timeout=WAIT_MS)
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, "the page scrolls sideways"
    assert page.evaluate("document.querySelector('#send').getBoundingClientRect().bottom <= innerHeight")
    page.evaluate("document.getElementById('talk').scrollTop = 0")
    picture(page, f"answer-{scheme}-{width}")
    script = """(name) => {
        const light = (color) => {
            const parts = color.match(/[\\d.]+/g).map((one) => one / 255);
            const [r, g, b] = parts.map((c) => c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
            return .2126 * r + .7152 * g + .0722 * b + .05;
        };
        const one = document.querySelector(name);
        let behind = one;
        while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
        const pair = [getComputedStyle(one).color, getComputedStyle(behind).backgroundColor].map(light).sort();
        return Math.max(...pair) / Math.min(...pair);
    }"""
    for name in (".user", ".answer .text", ".answer pre code", ".answer a", ".about", "#state", ".cards span", "th", "#send"):
        assert page.evaluate(script, name) >= 4.5, f"{name} has too little contrast"
    context.close()


def test_a_key_is_asked_for_and_a_server_that_ends_is_noticed(browser: playwright.Browser, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a" * 32)
    page = browser.new_page()
    with serving(server={"keys_file": tmp_path / "keys"}) as server:
        page.goto(server.url)
        expect(page.locator("#state")).to_have_text("asks for a key", timeout=WAIT_MS)
        picture(page, "key")
        page.fill("#key", "wrong")
        page.press("#key", "Enter")
        expect(page.locator("#state")).to_have_text("does not know this key", timeout=WAIT_MS)
        page.fill("#key", "a" * 32)
        page.press("#key", "Tab")
        expect(page.locator("#state")).to_contain_text("ok", timeout=WAIT_MS)
        ask(page, "hello")
        expect(page.locator(".answer .text")).to_contain_text("You said: hello", timeout=WAIT_MS)
    expect(page.locator("#state")).to_have_text("not reachable", timeout=WAIT_MS)
    ask(page, "more")
    expect(about(page, 1)).to_have_text("The server is not reachable.", timeout=WAIT_MS)
    picture(page, "gone")
    page.close()
