"""A page on the disk in a real browser, headless. Import it after `pytest.importorskip("selenium")`."""

import json
import shutil
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


def start():
    """With the logs of its console and its network."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    # --no-sandbox: Chromium's does not work for root, which CI is
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--force-device-scale-factor=1"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))


class Page:
    """A page of ours in the browser."""

    def __init__(self, driver, page, address=""):
        self.driver = driver
        driver.set_window_size(1440, 1000)
        self.set_scheme("light")
        driver.get("about:blank")  # else only the fragment would change, and the page would not be loaded
        driver.get_log("performance"), driver.get_log("browser")
        driver.get(Path(page).resolve().as_uri() + address)
        self.wait_for(".cell[aria-current]")  # the maps are unpacked after the page has loaded

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        (element,) = self.all(selector)
        return element

    def text(self, selector):
        return " ".join(self.one(selector).text.split())

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def press(self, *keys):
        ActionChains(self.driver).send_keys(*keys).perform()

    @property
    def address(self):
        return self.run("return location.hash")

    def weights(self, level):
        """Token -> weight, as listed for a level."""
        listed = self.all(f'.level[data-level="{level}"] .targets li')
        return {int(item.get_attribute("data-token")): float(item.text.split()[-1]) for item in listed}

    def wait_for(self, selector):
        return WebDriverWait(self.driver, 5).until(lambda driver: driver.find_element(By.CSS_SELECTOR, selector))

    def set_scheme(self, scheme):
        """Colours: "light" or "dark"."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def pixel(self, canvas, x, y):
        script = "return [...arguments[0].getContext('2d').getImageData(...arguments[1], 1, 1).data]"
        return self.run(script, canvas, [int(x), int(y)])

    def check_quiet(self):
        """No errors, and no request but for the file itself."""
        assert self.driver.get_log("browser") == []
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        requests = [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]
        assert [url for url in requests if url.startswith("file:")], "requests are seen at all"
        assert not [url for url in requests if not url.startswith(("file:", "data:"))]
