"""A real browser without a window: Debian's chromium, driven by its own chromedriver."""

import json
import shutil
from pathlib import Path

import pytest

from bptt._src.report import flow_page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
]
WIDTH, HEIGHT = 1280, 900


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        missing = "chromium" if program is None else "chromedriver"
        pytest.skip(f"{missing} is not installed (Debian: apt-get install chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


class Opened:
    """A page in the browser, opened from disk, and what a reader does with it."""

    def __init__(self, chrome, path):
        self.chrome, self.path = chrome, path

    def open(self, address="", *, width=WIDTH, height=HEIGHT, dark=False):
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.command("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        self.command("Emulation.setEmulatedMedia", features=[scheme, still])
        self.chrome.get("about:blank")
        for kind in ("browser", "performance"):
            self.chrome.get_log(kind)  # forgets what was before
        self.chrome.get(self.path.as_uri() + address)
        self.settle()
        return self

    def command(self, name, **options):
        return self.chrome.execute_cdp_cmd(name, options)

    def run(self, script, *arguments):
        return self.chrome.execute_script(script, *arguments)

    def settle(self):
        """Wait until what was changed is drawn."""
        self.chrome.execute_async_script(
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))"
        )

    def find(self, selector):
        return self.chrome.find_element("css selector", selector)

    def all(self, selector):
        return self.chrome.find_elements("css selector", selector)

    def text(self, selector):
        return self.run("return document.querySelector(arguments[0]).textContent", selector)

    def word(self, n, run=0):
        return self.find(f"#text{run} [data-word='{n}']")

    def chosen(self, run=0):
        return int(self.find(f"#text{run} .word.chosen").get_attribute("data-word"))

    def readout(self):
        return self.text("#texts .readout")

    def point(self, element, x=0, y=0):
        from selenium.webdriver import ActionChains

        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        ActionChains(self.chrome, 0).move_to_element_with_offset(element, x, y).perform()
        self.settle()

    def click(self, element):
        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()
        self.settle()

    def press(self, element, *keys):
        self.run("arguments[0].focus()", element)
        for key in keys:
            self.chrome.switch_to.active_element.send_keys(key)
        self.settle()

    def slide(self, value):
        """Move the slider as a hand does: its value changes, and it says so."""
        self.run(
            "const s = document.getElementById('reach'); s.value = arguments[0];"
            "s.dispatchEvent(new Event('input', {bubbles: true}))",
            value,
        )
        self.settle()

    def select(self, name, value):
        self.click(self.find(f"#{name} option[value='{value}']"))

    def background(self, element):
        return element.value_of_css_property("background-color")

    def complaints(self):
        return [entry["message"] for entry in self.chrome.get_log("browser")]

    def requests(self):
        """The addresses of all that was asked for since the page was opened."""
        said = [json.loads(e["message"])["message"] for e in self.chrome.get_log("performance")]
        return [
            m["params"]["request"]["url"]
            for m in said
            if m["method"] == "Network.requestWillBeSent"
        ]

    def pixel(self, selector, x, y):
        """A colour of a canvas, at a place in CSS pixels from its corner."""
        return self.run(
            "const c = document.querySelector(arguments[0]); const k = c.width / c.clientWidth;"
            "const [x, y] = [arguments[1] * k, arguments[2] * k];"
            "return [...c.getContext('2d').getImageData(x, y, 1, 1).data]",
            selector,
            x,
            y,
        )

    def cell(self, t, s):
        """The middle of the entry of loss t and step s, from the canvas's corner.

        By the frame around the row that is looked at, of a flow in which every loss is followed.
        """
        x, y, wide, high = self.run(
            "const r = document.querySelector('.frame .row');"
            "return ['x', 'y', 'width', 'height'].map((a) => Number(r.getAttribute(a)))"
        )
        said = self.text(".map .readout .loss")
        now = int("".join(filter(str.isdigit, said)))
        return x + (s + 0.5) * wide / (now + 1), y + (t - now + 0.5) * high


@pytest.fixture
def opened(browser, tmp_path):
    """Write the page of some flows and open it."""

    def write_and_open(*flows, address="", **options):
        path = Path(tmp_path) / "flow.html"
        flow_page.write(path, *flows)
        return Opened(browser, path).open(address, **options)

    return write_and_open


@pytest.fixture
def opened_audit(browser, tmp_path):
    """Write the page of an audit and open it."""

    def write_and_open(report, address="", **options):
        path = Path(tmp_path) / "audit.html"
        report.save_html(path)
        return Opened(browser, path).open(address, **options)

    return write_and_open


@pytest.fixture
def opened_site(browser):
    """Open a page of the documentation as `make docs` has built it."""
    site = Path(__file__).parents[2] / "site"
    return lambda page, **options: Opened(browser, site / page).open(**options)


@pytest.fixture
def opened_playground(browser):
    """Open the page to play with as it lies in the documentation."""
    path = Path(__file__).parents[2] / "docs" / "playground" / "index.html"
    return lambda **options: Opened(browser, path).open(**options)
