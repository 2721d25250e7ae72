"""The page for everybody: by keyboard alone, on a phone, by day and by night; no jumps, nothing from elsewhere."""

from __future__ import annotations

import re

import pytest
from browsers import DESKTOP, PHONE, Visitor
from browsing.browser import Browser

pytestmark = pytest.mark.browser

NEW_NAME = "Bruvak"


def tab_to(visitor: Visitor, wanted: str) -> None:
    """Press Tab until the element with this selector has the focus; every stop on the way has to show its focus."""
    from selenium.webdriver.common.keys import Keys

    for _ in range(60):
        visitor.press(Keys.TAB)
        if visitor.script("return document.activeElement === document.body"):
            continue
        stop = visitor.focused()
        assert stop["shows"] and stop["inside"], stop
        assert visitor.driver.switch_to.active_element.accessible_name, stop
        if visitor.script("return document.activeElement.matches(arguments[0])", wanted):
            return
    raise AssertionError(f"Tab never comes to {wanted}.")


def test_everything_by_keyboard_alone(visitor: Visitor) -> None:
    from selenium.webdriver.common.keys import Keys

    visitor.open()
    visitor.press(Keys.TAB)
    assert visitor.focused()["text"] == "To the question" and visitor.focused()["inside"]
    visitor.press(Keys.ENTER)
    tab_to(visitor, ".example")
    visitor.press(Keys.ENTER)
    old = visitor.answer(1)

    tab_to(visitor, "#correct-button")
    visitor.press(Keys.ENTER)
    visitor.until(lambda: visitor.focused()["id"] == "right-answer")
    visitor.press(Keys.ESCAPE)
    visitor.until(lambda: visitor.focused()["id"] == "correct-button" and not visitor.sees("#correction-form"))
    visitor.press(Keys.ENTER)
    visitor.press(NEW_NAME, Keys.ENTER)
    visitor.until(lambda: visitor.sees("#evidence") and visitor.focused()["id"] == "evidence")
    tab_to(visitor, "#evidence .chip")
    visitor.press(Keys.ENTER)
    assert visitor.answer(2) == NEW_NAME

    tab_to(visitor, "[name=heat]")
    visitor.press(Keys.ARROW_RIGHT)
    visitor.until(lambda: visitor.sees("#heat"))
    tab_to(visitor, "#history-list button")
    visitor.press(Keys.ENTER)
    visitor.until(lambda: visitor.focused()["text"] == "Redo" and "undone" in visitor.text("#history-list .edit"))
    visitor.script("document.getElementById('prompt').focus()")
    visitor.press(Keys.ENTER)
    assert visitor.answer(3) == old
    assert old in visitor.find("#live").get_attribute("textContent")


def test_the_whole_path_on_a_phone(visitor: Visitor) -> None:
    visitor.open(PHONE)
    checks = [fits(visitor)]
    visitor.click(".example:nth-child(1)")
    visitor.answer(1)
    checks.append(fits(visitor))
    visitor.click("label:has([value=attention])")
    visitor.until(lambda: visitor.sees("#heat"))
    visitor.click("#heat-details summary")
    checks.append(fits(visitor))
    visitor.click("#heat-details summary")
    visitor.click("label:has([value=off])")
    visitor.click("#correct-button")
    visitor.click("#correction-form summary")
    checks.append(fits(visitor))
    visitor.write("#right-answer", NEW_NAME)
    visitor.click("#correct")
    visitor.until(lambda: visitor.sees("#evidence") and visitor.sees("#history-list .edit"))
    checks.append(fits(visitor))
    visitor.click("#evidence .chip")
    assert visitor.answer(2) == NEW_NAME
    visitor.click("label:has([value=attention])")
    visitor.until(lambda: visitor.sees("#heat") and visitor.sees(".fired-edit img"))
    checks.append(fits(visitor))
    visitor.click("label:has([value=active])")
    visitor.until(lambda: visitor.count("#history-list .edit") == 1)
    visitor.script("document.activeElement.blur(), scrollTo(0, 0)")
    visitor.shot("phone", whole=True)
    visitor.click("#check-button")
    visitor.until(lambda: visitor.text("#check-summary") == "1 holds.")
    visitor.click("#history-list summary")
    visitor.until(lambda: visitor.sees(".stored-evidence"))
    checks.append(fits(visitor))
    visitor.click("label:has([value=all])")
    visitor.click("#history-list .edit button")
    visitor.until(lambda: "undone" in visitor.text("#history-list .edit"))
    assert checks == [[]] * len(checks)


def fits(visitor: Visitor) -> list[str]:
    """What is wrong on a small screen: wider than it, or too small for a finger (24 CSS pixels, WCAG 2.5.8)."""
    return visitor.script(
        """const wrong = document.documentElement.scrollWidth > innerWidth ? ["the page is too wide"] : [];
        for (const element of document.querySelectorAll("button, summary, input, textarea, .segments span")) {
          const box = element.getBoundingClientRect();
          if (!box.width || element.closest(".skip")) continue;
          const name = element.id || element.textContent;
          if (box.height < 24 || box.width < 24) wrong.push(`${name} is ${box.width} x ${box.height}`);
          if (box.left < 0 || box.right > innerWidth) wrong.push(`${name} sticks out`);
        }
        return wrong;"""
    )


CONTRAST = """
const channel = (value) => value <= 10.31475 ? value / 3294.6 : ((value / 255 + 0.055) / 1.055) ** 2.4;
const light = ([red, green, blue]) => 0.2126 * channel(red) + 0.7152 * channel(green) + 0.0722 * channel(blue);
const color = (text) => text.match(/[\\d.]+/g).map(Number);
const behind = (element) => {
  for (let each = element; each; each = each.parentElement) {
    const found = color(getComputedStyle(each).backgroundColor);
    if (found.length === 3 || found[3] === 1) return found;
  }
  return [255, 255, 255];
};
const low = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement, box = element.getBoundingClientRect();
  if (!walker.currentNode.data.trim() || !box.width || element.closest(":disabled, .for-readers, noscript")) continue;
  const [dim, bright] = [light(color(getComputedStyle(element).color)), light(behind(element))].sort((a, b) => a - b);
  const contrast = (bright + 0.05) / (dim + 0.05);
  if (contrast < 4.5) low.push(`${walker.currentNode.data.trim()}: ${contrast.toFixed(2)}`);
}
return [low, getComputedStyle(document.body).backgroundColor];
"""


def test_texts_stand_out_by_day_and_by_night(visitor: Visitor) -> None:
    backgrounds = []
    for dark in (False, True):
        visitor.open(dark=dark)
        visitor.click(".example:nth-child(1)")
        visitor.answer(1)
        visitor.correct(NEW_NAME if not dark else "Fenbax", note="By day")
        visitor.click("#evidence .chip")
        visitor.answer(2)
        if dark:
            visitor.script("scrollTo(0, 0)")
            visitor.shot("dark")
        visitor.click("#check-button")
        visitor.until(lambda: visitor.text("#check-summary") == "1 holds.")
        visitor.click("#history-list summary")
        visitor.until(lambda: visitor.sees(".stored-evidence"))
        assert visitor.script(CONTRAST)[0] == []
        visitor.click("#history-list .edit button")
        visitor.until(lambda: visitor.sees("#stale") and "undone" in visitor.text("#history-list .edit"))
        visitor.write("#prompt", "")
        visitor.click("#ask")
        low, background = visitor.script(CONTRAST)
        assert low == []
        backgrounds.append(background)
    assert backgrounds[0] != backgrounds[1]


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_nothing_jumps_while_it_loads(visitor: Visitor, size: tuple[int, int]) -> None:
    visitor.open(size)
    if not visitor.script("return PerformanceObserver.supportedEntryTypes.includes('layout-shift')"):
        visitor.browser.lacks("measure of what jumps")
    visitor.until(lambda: visitor.text("#model-name"))
    shift = visitor.driver.execute_async_script(
        """const done = arguments[0];
        let sum = 0;
        const seen = new PerformanceObserver((list) => list.getEntries().forEach((entry) => (sum += entry.value)));
        seen.observe({ type: "layout-shift", buffered: true });
        requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(() => done(sum), 100)));"""
    )
    assert shift < 0.005


def test_what_the_page_did_not_bring_is_not_run_and_not_reached(browser: Browser, page_server: str) -> None:
    visitor = Visitor(browser, f"{page_server}/")
    visitor.open()
    outcome = browser.driver.execute_async_script(
        """const done = arguments[0], found = {};
        window.ran = false;
        const text = "window.ran = true", script = document.createElement("script");
        try { document.body.innerHTML += `<script>${text}</script>`; } catch (error) { found.html = error.name; }
        try { script.textContent = text; } catch (error) { found.script = error.name; }
        document.body.append(script);
        found.ran = window.ran;
        fetch("http://localhost:1/").then(() => "reached", (error) => error.name).then((how) => {
          found.fetched = how;
          done(found);
        });"""
    )
    assert outcome == {"html": "TypeError", "script": "TypeError", "ran": False, "fetched": "TypeError"}
    # The console hears of it after the script does.
    visitor.until(lambda: any(re.search("Content.Security.Policy", line) for line in visitor.complaints()))
    assert not any("localhost:1" in url for url in visitor.requested())
