"""Nothing at hand: what moves by itself, and what a click gives, on a desktop and on a phone."""

import re
import time

import httpx
import pytest
from PIL import Image

from fsth_hub.demo.shipped import FIRST_MOTION, PORTRAITS
from fsth_hub.media.motion_files import SHIPPED
from fsth_hub.media.reading import open_clip
from fsth_hub.pipelines.driving import DrivingMotion
from testing_utils.browser import DESKTOP, PHONE
from testing_utils.paths import DRIVER, PORTRAIT


TALK = SHIPPED.index("talk")
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
each_device = pytest.mark.parametrize("device", [DESKTOP, PHONE], ids=["desktop", "phone"])


def moving(page, video: str) -> None:
    page.wait_for_function("selector => document.querySelector(selector)?.currentTime > 0.1", arg=video)


def on_one_screen(page, *selectors: str) -> None:
    """Wait until all of these are, once the page has scrolled there."""
    page.wait_for_function(
        """selectors => selectors.every(selector => {
            const box = document.querySelector(selector)?.getBoundingClientRect()
            return box?.height && box.top >= 0 && box.bottom <= innerHeight
        })""",
        arg=selectors,
    )


@each_device
def test_it_moves_before_anybody_clicks(visit, device):
    """Muted, over and over, and with no job: nothing of what a visitor could ask for is asked."""
    visitor = visit(viewport=device)
    video = "#opening video" if device == DESKTOP else "#opening-on-phone video"
    moving(visitor.page, video)
    state = visitor.page.locator(video).evaluate("v => [v.muted, v.loop, v.paused]")
    assert state == [True, True, False] and visitor.jobs == []
    assert visitor.page.locator(".opening video:visible").count() == 1


def test_it_stands_still_for_those_who_prefer_that(visit):
    page = visit(reduced_motion="reduce").page
    page.wait_for_function(
        """(video => video?.readyState >= 3 && video.paused && performance.now() > 1500)(
            document.querySelector('#opening video'))"""
    )


@each_device
def test_a_click_shows_a_pair_at_once(visit, device):
    """Both ways round, without a wait; on a phone the button and the result are then on the screen."""
    visitor = visit(viewport=device)
    page = visitor.page
    moving(page, ".opening video" if device == DESKTOP else "#opening-on-phone video")
    page.locator("#shipped-portraits button").nth(1).click()  # whatever is slow the first time
    source = visitor.result()
    seconds = []
    for number in (2, 3, 1):  # the best of three: other programs may hold the cores
        button = page.locator("#shipped-portraits button").nth(number)
        started = time.monotonic()
        button.evaluate("button => button.click()")  # Playwright's own would wait until nothing scrolls any more
        page.wait_for_function(
            "before => (document.querySelector('#result video')?.currentSrc ?? before) != before", arg=source
        )
        source = visitor.result()
        seconds.append(time.monotonic() - started)
    assert min(seconds) < 3  # generating it anew would take longer
    if device == PHONE:
        page.wait_for_function("scrollY > 0")
        on_one_screen(page, "#animate", "#result")
    # the clip is that of the first motion, and the motion's file can be had
    clip = open_clip(httpx.get(visitor.result()).content)
    motion = DrivingMotion.load(f"motion:{FIRST_MOTION}")
    assert clip.frame_count == len(motion.landmarks)
    page.locator("#motions").get_by_text("✓").wait_for()
    with page.expect_download() as download:
        page.locator("#save-motion").click()
    assert download.value.suggested_filename == f"{FIRST_MOTION}.motion.safetensors"
    assert page.locator("#side-by-side video").count() == 0


@each_device
def test_other_pairs_start_at_a_click(visit, device, capsys):
    """And the face is seen to move within seconds; on a phone beside the button that cancels."""
    visitor = visit(viewport=device)
    page = visitor.page
    visitor.add_portraits(PORTRAIT)
    started = time.monotonic()
    page.locator("#motions button").nth(TALK).click()  # the longest of them: it must not end before it is cancelled
    page.locator("#preview img").wait_for(timeout=60_000)
    seconds = time.monotonic() - started
    with capsys.disabled():
        print(f"\nfrom a click to the first new frame: {seconds:.1f} s")
    page.locator("#expected").get_by_text("about").wait_for()
    if device == PHONE:
        on_one_screen(page, "#cancel", "#preview")
    page.locator("#cancel").click()
    page.locator("#result-notes").get_by_text("Cancelled").wait_for()
    assert page.locator("#portraits img").count() == 1  # one's own stays


def test_expression_by_hand(visit, tmp_path):
    """Chips and sliders to a picture, a strip, a motion and a clip."""
    visitor = visit()
    page = visitor.page

    def picture():
        return page.locator("#expression-picture img").get_attribute("src")

    def new_picture(old):
        page.wait_for_function("old => document.querySelector('#expression-picture img')?.src != old", arg=old)

    page.get_by_role("tab", name="Expression").click()
    page.locator("#expression-picture img").wait_for(timeout=60_000)  # of the first of the package's portraits
    page.locator("#add-to-strip").click()
    page.locator("#strip img").nth(0).wait_for()
    before = picture()
    page.locator("#chip-wink").click()
    new_picture(before)
    assert page.locator("#control-eye_left").is_visible()  # each eye its own
    assert page.locator("#control-eye_left input[type=number]").input_value() == "-1"
    before = picture()
    page.locator("#control-smile input[type=range]").fill("1")
    new_picture(before)
    page.locator("#add-to-strip").click()
    page.locator("#strip img").nth(1).wait_for()
    for _ in range(20):  # until the file is there a click gives nothing
        try:
            with page.expect_download(timeout=2000) as download:
                page.locator("#save-expressions").click()
            break
        except playwright.TimeoutError:
            pass
    download.value.save_as(tmp_path / "wink.motion.safetensors")
    assert len(DrivingMotion.load(tmp_path / "wink.motion.safetensors").landmarks) == 40
    page.locator("#save-picture").click()
    with page.expect_download() as download:
        page.locator("#saved-picture a").first.click(timeout=60_000)
    download.value.save_as(tmp_path / "wink.png")
    assert Image.open(tmp_path / "wink.png").height == 768


def test_a_clip_becomes_portraits(visit):
    """Eight frames, captioned, of which each can be removed."""
    visitor = visit()
    visitor.add_portraits(DRIVER, wait=False)
    frames = visitor.page.locator("#portraits").get_by_text(re.compile(r"\d s: "))
    frames.nth(7).wait_for(timeout=60_000)
    assert frames.count() == 8
    visitor.page.locator("#portrait-faces img").nth(7).wait_for(timeout=30_000)
    visitor.page.locator("#portraits").get_by_label("Delete image").first.click()
    visitor.page.locator("#portrait-faces img").nth(7).wait_for(state="detached")
    assert frames.count() == 7


def test_from_a_result_to_its_expression(visit):
    page = visit().page
    page.locator("#shipped-portraits button").nth(len(PORTRAITS) - 1).click()
    page.locator("#result video").wait_for()
    page.locator("#change-expression").click()
    page.locator("#expression-picture img").wait_for(timeout=60_000)
    page.get_by_role("tab", name="Animate").click()
    page.locator("#own-portrait").click()
    page.locator("#portraits img").wait_for(state="detached")


def test_expression_on_a_phone(visit):
    """Nothing is wider than the screen, and the picture stays while the sliders go by."""
    page = visit(viewport=PHONE).page
    page.get_by_role("tab", name="Expression").click()
    page.locator("#expression-picture img").wait_for(timeout=60_000)
    wide = page.evaluate(
        "[...document.querySelectorAll('*')].filter(e => e.getBoundingClientRect().right > 390)"
        ".map(e => e.id || e.className)"
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], wide
    page.locator("#control-pucker").scroll_into_view_if_needed()
    on_one_screen(page, "#expression-picture", "#control-pucker")
