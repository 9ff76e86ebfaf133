"""The pages in a real browser: clicks, keys, undo, saving, a phone's width, and what axe-core finds.

Needs Chromium with its driver and the extra `browser` (selenium, axe-core); skipped, visibly, where one is missing.
"""
import re
import shutil
import threading
from pathlib import Path

import pytest

from tests.finished_runs import make_run
from vitrea.engine.finished import read_finished
from vitrea.engine.star import read_star
from vitrea.jobs.report import write_report
from vitrea.jobs.select import Rules
from vitrea.jobs.select_run import serve

webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium: pip install 'vitrea[browser]'")
axe = pytest.importorskip("axe_selenium_python", reason="no axe-core: pip install 'vitrea[browser]'")

Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys

SIZES = (40, 7, 0, 90, 12)
PHONE = (390, 800)


@pytest.fixture(scope="module")
def browser():
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("no chromium with chromedriver; apt-get install chromium chromium-driver")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for each in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(each)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(service=Service(driver), options=options)
    yield found
    found.quit()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("browser") / "run", SIZES)


@pytest.fixture
def report(browser, folder):
    browser.set_window_size(1200, 900)
    browser.get(write_report(folder).as_uri())
    return browser


@pytest.fixture
def selection(browser, folder, tmp_path):
    """(browser on the page, folder that it saves to)."""
    server = serve(read_finished(folder), Rules(), tmp_path / "chosen")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    browser.set_window_size(1200, 900)
    browser.get(server.address)
    yield browser, tmp_path / "chosen"
    browser.get("about:blank")
    browser.switch_to.alert.accept() if _asked(browser) else None
    server.shutdown()
    server.server_close()
    thread.join()


def _asked(browser):
    from selenium.common.exceptions import NoAlertPresentException

    try:
        return browser.switch_to.alert
    except NoAlertPresentException:
        return None


def press(browser, *keys):
    """Send keys to what has the focus."""
    webdriver.ActionChains(browser).send_keys(*keys).perform()


def one(browser, selector):
    return browser.find_element("css selector", selector)


def tile(browser, number):
    return one(browser, f'#gallery .tile[data-number="{number}"]')


def shown(browser):
    """Numbers of the tiles in their order on the page."""
    found = browser.find_elements("css selector", "#gallery .tile")
    return [int(each.get_attribute("data-number")) for each in found if each.is_displayed()]


def focused(browser):
    return browser.switch_to.active_element.get_attribute("data-number")


def violations(browser):
    """Sentences of axe-core about the page as it is now: WCAG 2.2 A, AA and its good practice."""
    script = next(Path(axe.__file__).parent.rglob("axe.min.js"))
    browser.execute_script(script.read_text(encoding="utf-8"))
    found = browser.execute_async_script("axe.run(document, {}).then(arguments[arguments.length - 1])")
    return [f"{each['id']}: {each['nodes'][0]['html']}" for each in found["violations"]]


def complaints(browser):
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def test_the_report_draws_its_plots_without_a_complaint(report):
    assert len(report.find_elements("css selector", "figure svg[role=img]")) >= 7
    assert complaints(report) == []
    assert all("NaN" not in path.get_attribute("d") for path in report.find_elements("css selector", "figure path"))


def test_the_report_is_accessible(report):
    assert violations(report) == []
    tile(report, 4).click()
    assert violations(report) == []


def test_a_class_opens_by_click_and_by_keys_and_gives_the_focus_back(report):
    tile(report, 1).click()
    assert one(report, "#one h2").text == "Class 1"
    assert "40 (26.8 %)" in one(report, "#one .facts").text
    assert "32.0 Å" in one(report, "#one .facts").text
    press(report, Keys.ARROW_LEFT)
    assert one(report, "#one h2").text == "Class 4"
    press(report, Keys.ESCAPE)
    assert not one(report, "#one").is_displayed()
    assert focused(report) == "4"
    press(report, Keys.ARROW_RIGHT, Keys.ENTER)
    assert one(report, "#one h2").text == "Class 1"


def test_order_size_and_filter(report):
    from selenium.webdriver.support.ui import Select

    assert shown(report) == [4, 1, 5, 2, 3]
    Select(one(report, "#sort")).select_by_value("resolution")
    assert shown(report) == [5, 4, 2, 1, 3]
    Select(one(report, "#sort")).select_by_value("number")
    assert shown(report) == [1, 2, 4, 5, 3], "empty classes stay last"
    before = tile(report, 1).size["width"]
    report.execute_script("const zoom = document.getElementById('zoom');"
                          "zoom.value = 320; zoom.dispatchEvent(new Event('input'))")
    assert tile(report, 1).size["width"] > 1.5 * before
    one(report, "#least").clear()
    one(report, "#least").send_keys("9")
    assert shown(report) == [1, 4, 5]


def test_the_report_fits_a_phone(report):
    report.set_window_size(*PHONE)
    width = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    found, window = report.execute_script(width)
    assert found <= window, "nothing reaches beyond the window"
    tile(report, 4).click()
    found, window = report.execute_script(width)
    assert found <= window
    assert violations(report) == []


def test_values_stand_in_a_table(report):
    details = one(report, "[data-plots=convergence] details")
    details.find_element("tag name", "summary").click()
    cells = [cell.text for cell in details.find_elements("css selector", "tbody tr:last-child *")]
    assert cells == ["5", "−950,000"]


def test_the_flow_between_classes_dries_up_along_the_slider(report):
    flow = one(report, "figure.flow")
    slider, words = flow.find_element("css selector", "input"), flow.find_element("css selector", "figcaption")
    assert words.text.startswith("Iteration 5: the moves shown are of 11 particles, the largest of 10 from class 1")
    last = thickest(flow)
    slider.send_keys(Keys.HOME)
    assert words.text.startswith("Iteration 1: the moves shown are of 55 particles")
    assert slider.get_attribute("aria-valuetext") == "iteration 1"
    assert thickest(flow) == pytest.approx(5 * last, rel=0.01), "one scale for all iterations"
    flow.find_element("css selector", "summary").click()
    cells = flow.find_elements("css selector", "tbody tr:first-child td")
    assert [cell.text for cell in cells] == ["1", "1", "2", "50"]


def thickest(flow):
    """Height of the widest ribbon where it begins."""
    paths = [path.get_attribute("d") for path in flow.find_elements("css selector", "path")]
    ends = [[float(value) for value in re.findall(r"[-\d.]+", path)] for path in paths]
    return max(numbers[-1] - numbers[1] for numbers in ends)


def test_classes_are_kept_rejected_and_saved(selection):
    page, folder = selection
    assert one(page, "#count").text == "4 of 5 classes, 149 of 149 particles (100.0 %)"
    one(page, "#none").click()
    assert one(page, "#count").text == "0 of 5 classes, 0 of 149 particles (0.0 %)"
    tile(page, 4).click()
    tile(page, 2).click()
    tile(page, 3).click()   # empty: nothing to keep
    assert one(page, "#count").text == "2 of 5 classes, 97 of 149 particles (65.1 %)"
    assert tile(page, 4).get_attribute("aria-pressed") == "true"
    assert tile(page, 1).get_attribute("aria-pressed") == "false"
    one(page, "#save").click()
    wait_for(page, "Saved: 97 particles")
    numbers = read_star(folder / "selected.star")["particles"]["rlnClassNumber"].tolist()
    assert sorted(numbers) == ["2"] * 7 + ["4"] * 90
    assert len(read_star(folder / "rejected.star")["particles"]["rlnClassNumber"]) == 52
    assert complaints(page) == []


def test_keys_keep_reject_and_take_back(selection):
    page, _ = selection
    one(page, "#none").click()
    page.execute_script("document.querySelector('#gallery .tile').focus()")
    press(page, "k", Keys.ARROW_RIGHT, "k", Keys.ARROW_RIGHT, "k", "x")
    pressed = [number for number in shown(page) if tile(page, number).get_attribute("aria-pressed") == "true"]
    assert pressed == [4, 1]
    press(page, "u")
    assert tile(page, 5).get_attribute("aria-pressed") == "true"
    press(page, "u", "u", "u")
    assert one(page, "#count").text.startswith("0 of 5 classes")
    one(page, "#undo").click()   # of Reject all
    assert not one(page, "#undo").is_enabled()
    page.execute_script("document.querySelector('#gallery .tile').focus()")
    press(page, "i")
    assert one(page, "#one h2").text == "Class 4"


def test_the_selection_page_is_accessible_also_on_a_phone(selection):
    page, _ = selection
    assert violations(page) == []
    page.set_window_size(*PHONE)
    assert violations(page) == []


def wait_for(page, words):
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(page, 10).until(lambda browser: words in one(browser, "#told").text)
