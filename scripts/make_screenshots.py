"""Make the pictures of the demo's page: each tab on a desktop and on a phone, with the package's paintings alone.

python scripts/make_screenshots.py    # needs Playwright and Chromium
"""

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from testing_utils.browser import ARGUMENTS, CHROMIUM, DESKTOP, PHONE, Visitor, running_app  # noqa: E402


TABS = {
    "animate": "Animate",
    "expression": "Expression",
    "person": "Your person",
    "live": "Live",
    "check": "Check a file",
}
STEPS = 10  # few: it is the page that is shown
PORTRAIT, CHIP = 3, "#chip-smile"


def save(visitor: Visitor, name: str) -> None:
    visitor.page.wait_for_timeout(800)  # what fades in has come
    picture = Image.open(io.BytesIO(visitor.page.screenshot(full_page=True))).convert("RGB")
    picture.save(ROOT / "docs" / f"demo-{name}.jpg", quality=80)


def main():
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=ARGUMENTS)
        with running_app(Path(folder)) as url:
            for device, viewport, scheme in (("desktop", DESKTOP, "light"), ("phone", PHONE, "dark")):
                visitor = Visitor(browser, url, viewport, color_scheme=scheme)
                page = visitor.page
                page.locator("#shipped-portraits button").nth(PORTRAIT).click()
                clip = Path(folder, "talking_head.mp4")
                clip.write_bytes(page.request.get(visitor.result()).body())
                page.locator("#portrait-faces img").wait_for()
                save(visitor, f"animate-{device}")
                page.get_by_role("tab", name=TABS["expression"]).click()
                picture = page.locator("#expression-picture img")
                picture.wait_for()
                before = picture.get_attribute("src")
                page.locator(CHIP).click()
                page.wait_for_function(
                    "old => document.querySelector('#expression-picture img')?.src != old", arg=before
                )
                save(visitor, f"expression-{device}")
                page.get_by_role("tab", name=TABS["person"]).click()
                page.locator("#person-options button").click()
                page.locator("#steps input").first.fill(str(STEPS))
                page.locator("#fine-tune").click()
                page.locator("#person-kept").wait_for(timeout=600_000)
                save(visitor, f"person-{device}")
                page.get_by_role("tab", name=TABS["live"]).click()
                save(visitor, f"live-{device}")
                page.get_by_role("tab", name=TABS["check"]).click()
                page.locator("#check-file input[type=file]").first.set_input_files(clip)
                page.locator("#origin .card").wait_for()
                save(visitor, f"check-{device}")
                visitor.close()
        browser.close()


if __name__ == "__main__":
    main()
