"""Pages in a real Chromium, on a desk and on a phone, in the light and in the dark."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from browser import Browser, find_browser
from sample_folders import (
    HOSTILE,
    HOSTILE_SHOWN,
    metrics,
    outcomes,
    write_evaluation,
    write_json,
    write_lines,
    write_run,
    write_study,
)
from sparring.report.page import write_comparison_page, write_report

EXECUTABLE = find_browser()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium on this machine")]

LOW_CONTRAST = """
(() => {
  const channels = (text) => { const c = text.match(/[\\d.]+/g).map(Number); return c.length > 3 ? c : [...c, 1]; };
  const luminance = (c) => { const [r, g, b] = c.slice(0, 3).map((v) => {
    v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = (e) => { for (; e; e = e.parentElement) {
    const c = channels(getComputedStyle(e).backgroundColor); if (c[3] > 0) return c; } return [255, 255, 255, 1]; };
  const poor = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || e.tagName === "title") continue;
    const style = getComputedStyle(e);
    const a = luminance(channels(e.closest("svg") ? style.fill : style.color)), b = luminance(behind(e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.add(`${e.tagName}.${e.className.baseVal ?? e.className} ${ratio.toFixed(2)}`);
  }
  return [...poor];
})()
"""
"""Elements whose text has less contrast to what is behind it than WCAG 2.1 AA asks for (4.5 to 1)."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert EXECUTABLE is not None
    with Browser(EXECUTABLE) as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One page of each kind, with hostile texts, and long ones without a place to break."""
    root = tmp_path_factory.mktemp("pages")
    text = HOSTILE + "W" * 3000
    run, other = (write_run(root / name, text=text) for name in ("run", "other"))
    write_lines(run / "metrics.jsonl", metrics(80))
    write_lines(other / "test-after.jsonl", outcomes("clean", [0] * 8, text) + outcomes("x" * 150, [1]))
    study = write_study(root / "study", text=text)
    table = json.loads((study / "table.json").read_text())
    table["cells"] |= {f"arm-{n}": table["cells"]["saei"] for n in range(8)}  # wider than a phone
    write_json(study / "table.json", table)
    return {
        "run": write_report(run),
        "evaluation": write_report(write_evaluation(root / "evaluation", text=text)),
        "study": write_report(study),
        "comparison": write_comparison_page(run, other),
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("kind", ["run", "evaluation", "study", "comparison"])
def test_a_page_is_sound(browser: Browser, pages: dict[str, Path], kind: str, width: int, scheme: str) -> None:
    browser.open(pages[kind], width=width, scheme=scheme)
    browser.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
    assert browser.evaluate("getComputedStyle(document.body).maxWidth") == "none", "the style was not applied"
    assert browser.evaluate(LOW_CONTRAST) == []
    asked = [address for address in browser.requests if not address.startswith("data:")]
    assert browser.errors == [] and asked == [pages[kind].resolve().as_uri()]


def test_names_of_threats_stay_in_one_piece(browser: Browser, tmp_path: Path) -> None:
    names = ["gaussian_noise:3", "jpeg_compression:3", "misleading_hint:2"]
    for label, num in (("a", 120), ("b", 300)):
        rows = [row for name in names for row in outcomes(name, [int((n + len(label)) % 3 == 0) for n in range(num)])]
        write_lines(write_evaluation(tmp_path / label) / "outcomes.jsonl", rows)
    browser.open(write_comparison_page(tmp_path / "a", tmp_path / "b"), width=1280)
    lines = """[...document.querySelectorAll('section[aria-labelledby=test] tbody th')].map((th) => {
      const range = document.createRange(); range.selectNodeContents(th); return range.getClientRects().length; })"""
    assert browser.evaluate(lines) == [1, 1, 1]
    assert browser.evaluate("document.documentElement.scrollWidth") <= 1280


def test_hostile_text_arrives_as_text(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["evaluation"], width=1280)
    assert browser.evaluate("document.images.length") == 3
    assert browser.evaluate("document.scripts.length") == 0
    shown = browser.evaluate("document.querySelector('.response').textContent")
    assert shown.startswith(HOSTILE_SHOWN)


def test_the_policy_holds(browser: Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    """If escaping ever failed, the browser would still run nothing: the same page with a script put into it."""
    page = tmp_path / "broken.html"
    inserted = '<main id="content"><script>document.title = \'run\'</script><img src="http://127.0.0.1:9/x.png">'
    page.write_text(pages["run"].read_text().replace('<main id="content">', inserted, 1))
    browser.open(page, width=1280)
    assert browser.evaluate("document.title") != "run"
    assert any("Content Security Policy" in error for error in browser.errors)


def test_print_shows_what_is_folded(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["run"], width=1280)
    is_shown = "[...document.querySelectorAll('details dl, details figure')].map((e) => e.checkVisibility())"
    assert not any(browser.evaluate(is_shown))
    browser.call("Emulation.setEmulatedMedia", media="print")
    try:
        assert browser.evaluate(is_shown) and all(browser.evaluate(is_shown))
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")
