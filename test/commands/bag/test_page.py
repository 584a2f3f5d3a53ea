# SPDX-License-Identifier: AGPL-3.0-only
"""The page in a browser: it works without errors, at every width, in both colours."""

from __future__ import annotations

import shutil

import pytest

pytest.importorskip("rosbags")
pytest.importorskip("mcap")
pytest.importorskip("jinja2")
pytest.importorskip("tqdm")
pytest.importorskip("onnxruntime")
pytest.importorskip("selenium")

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from support_bags import small_plan

from fusion_ros.commands import main
from fusion_ros.commands.bag import charts
from fusion_ros.commands.bag.make_bag import make_bag


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    plan = small_plan(folder / "drive", seconds=1, thermal={"drop": 0.2})
    make_bag(plan)
    arguments = [str(plan.output), "--out", str(folder / "out"), "--backend", "null"]
    more = ["--samples", "4", "--methods", "baffm", "cfi"]
    assert main.main(["evaluate_bag", *arguments, *more]) == 0
    return folder / "out" / "index.html"


@pytest.fixture(scope="module")
def browser():
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs chromium and chromedriver: apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    for each in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(each)
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()


def show(browser, page, width, theme):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(page.as_uri())


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_the_page_fits_and_says_its_verdict_without_an_error(browser, page, width, theme):
    show(browser, page, width, theme)
    assert browser.get_log("browser") == []
    verdict = browser.find_element(By.ID, "verdict").text
    for part in ("No network ran", "Set tolerance", "Mend first"):
        assert part in verdict
    script = "return document.documentElement.scrollWidth"
    assert browser.execute_script(script) <= width
    colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    levels = [int(each) for each in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    assert (max(levels) < 80) == (theme == "dark")
    pictures = "return [...document.querySelectorAll('img[data-frame]')].map(i => i.naturalWidth)"
    widths = browser.execute_script(pictures)
    assert len(widths) == 9
    assert min(widths) > 0


def test_the_player_moves_by_slider_buttons_and_keys(browser, page):
    show(browser, page, 1400, "light")

    def state():
        return browser.execute_script(
            "return [document.getElementById('clock').textContent,"
            "document.getElementById('name').textContent,"
            "document.getElementById('above').src.length]"
        )

    first = state()
    body = browser.find_element(By.TAG_NAME, "body")
    body.send_keys(Keys.ARROW_RIGHT)
    second = state()
    assert second[0] != first[0]
    body.send_keys(Keys.ARROW_LEFT)
    assert state() == first
    body.send_keys("1")
    assert state()[1] == "thermal"
    body.send_keys("2")
    assert state()[1] == "RGB"
    browser.find_element(By.CSS_SELECTOR, "[data-view=cfi]").click()
    assert state()[1] == "cfi"
    browser.find_element(By.ID, "time").send_keys(Keys.END)
    assert state()[0] not in (first[0], second[0])
    mix = browser.find_element(By.ID, "mix")
    mix.send_keys(Keys.HOME)
    assert state()[1] == "thermal"
    browser.find_element(By.ID, "theme").click()
    assert browser.execute_script("return document.documentElement.dataset.theme") == "dark"
    assert browser.get_log("browser") == []


def test_charts_of_nothing_or_of_one_value_are_no_error():
    assert charts.lines([], {"a": []}, "s", "ms") == ""
    assert charts.histogram([0, 1], [0], "ms", "pairs") == ""
    assert "<svg" in charts.lines([1.0, 2.0], {"a": [3.0, 3.0]}, "s", "ms")
    assert "<circle" in charts.lines([1.0], {"a": [3.0], "b": [None]}, "s", "ms")
