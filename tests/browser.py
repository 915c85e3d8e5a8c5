"""Chromium for pages that are opened from a file, and what a person sees of them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium")
CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("NO BROWSER: the page was not opened; install the package chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that fails the test when it logs an error, throws, or asks for anything but a file."""
    opened, complaints = browser.new_page(viewport={"width": 1280, "height": 900}), []
    opened.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda request: None if request.url.startswith("file:") else complaints.append(request.url))
    yield opened
    opened.close()
    assert complaints == []


def brightness(page: Page, selector: str, style: str) -> float:
    page.wait_for_selector(selector)
    colour: str = page.eval_on_selector(selector, f"element => getComputedStyle(element).{style}")
    return float(np.mean([int(part) for part in re.findall(r"\d+", colour)[:3]]))


def collisions(page: Page) -> list[str]:
    """What a reader of the plots would stumble over: texts that cover one another or leave their plot."""
    page.wait_for_function("[...document.querySelectorAll('.js-plotly-plot')].every(plot => plot._fullLayout)")
    page.wait_for_timeout(200)  # a responsive plot is drawn once more at its final width
    found: list[str] = page.evaluate(_COLLISIONS)
    return found


_COLLISIONS = """() => [...document.querySelectorAll('.js-plotly-plot')].flatMap(plot => {
  const kinds = ['.xtick', '.ytick', '[class*=title]', '.legend', '.annotation', '.cbaxis'].map(kind => `${kind} text`);
  const around = plot.getBoundingClientRect();
  const texts = [...new Set(kinds.flatMap(kind => [...plot.querySelectorAll(kind)]))]
    .filter(text => text.textContent.trim())
    .map(text => ({ name: `${plot.id}: ${text.textContent}`, box: text.getBoundingClientRect() }))
    .filter(({ box }) => box.width > 0);
  const apart = (a, b) => a.right - 1 <= b.left || b.right - 1 <= a.left
    || a.bottom - 2 <= b.top || b.bottom - 2 <= a.top;
  const out = ({ box }) => box.left < around.left - 1 || box.right > around.right + 1
    || box.top < around.top - 1 || box.bottom > around.bottom + 1;
  return [
    ...texts.filter(out).map(({ name }) => `${name} leaves its plot`),
    ...texts.flatMap((one, i) => texts.slice(i + 1).filter(other => !apart(one.box, other.box))
      .map(other => `${one.name} covers ${other.name}`)),
  ];
})"""
