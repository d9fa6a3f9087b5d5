"""What visitors do, in a real browser against the real app with the bundled model."""

import re
import time
from pathlib import Path

import httpx
import pytest
from PIL import Image, ImageOps

from fsth_hub.media.motion_files import SHIPPED
from fsth_hub.media.reading import open_clip
from testing_utils.browser import PHONE
from testing_utils.paths import DRIVER, PORTRAIT


TALK = SHIPPED.index("talk")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    astronaut = Image.open(PORTRAIT)
    ImageOps.mirror(astronaut).save(folder / "mirrored.png")
    Image.new("RGB", (300, 300), "grey").save(folder / "wall.png")
    (folder / "notes.mp4").write_text("this is no video")
    (folder / "letter.png").write_text("this is no picture")
    two = Image.new("RGB", (1024, 512))
    two.paste(astronaut, (0, 0))
    two.paste(ImageOps.mirror(astronaut).resize((400, 400)), (560, 60))
    two.save(folder / "couple.png")
    return {path.stem: path for path in folder.iterdir()}


def test_two_portraits_and_a_clip(visit, url, files, tmp_path):
    visitor = visit()
    visitor.add_portraits(PORTRAIT, files["mirrored"])
    visitor.add_clip(DRIVER)
    visitor.limit_frames(3)
    visitor.page.locator("#size").get_by_label("1024 x 1024").check()
    source = visitor.animate()
    (tmp_path / "result.mp4").write_bytes(httpx.get(source).content)
    clip = open_clip(tmp_path / "result.mp4")
    assert len(list(clip)) == 3 and clip.audio_from
    visitor.page.locator("#details-panel button").first.click()
    details = visitor.page.locator("#details").inner_text()
    assert "3 frames at 25 per second" in details and "256 x 256 pixels (the portrait has no more)" in details
    assert visitor.foreign_requests(url) == [] and len(visitor.requests) > 10


def test_one_of_several_faces(visit, files):
    visitor = visit()
    visitor.add_portraits(files["couple"], wait=False)
    faces = visitor.page.locator("#portrait-faces")
    faces.get_by_text("face 2: click to use").wait_for()
    assert "click the one" in visitor.page.locator("#portrait-notes").inner_text()
    faces.locator("button:has(img)").nth(1).click()
    faces.get_by_text("face 2: used").wait_for()
    assert faces.get_by_text("face 1: click to use").count() == 1


def test_wrong_files(visit, files):
    visitor = visit()
    visitor.add_portraits(files["wall"], wait=False)
    notes = visitor.page.locator("#portrait-notes")
    notes.get_by_text("No face was found in portrait 1 (wall.png)").wait_for()
    visitor.add_clip(files["notes"], wait=False)
    visitor.page.locator("#driving-notes").get_by_text("notes.mp4 is not a video that can be read").wait_for()
    visitor.page.locator("#animate").click()
    visitor.page.get_by_text("notes.mp4 is not a video").nth(1).wait_for()  # and a second time, as an answer
    visitor.page.locator("#animate:enabled").wait_for()


def test_a_file_that_is_no_picture(visit, files):
    visitor = visit()
    visitor.add_portraits(files["letter"], wait=False)
    visitor.page.locator("#portrait-notes").get_by_text("letter.png is not a picture that can be read").wait_for()


def test_cancel(visit, long_motion):
    """And Animate again as soon as the page offers it."""
    visitor = visit()
    page = visitor.page
    visitor.add_portraits(PORTRAIT)
    visitor.add_motion(long_motion)
    page.locator("#animate").click()
    page.locator("#preview img").wait_for(timeout=60_000)
    assert page.locator("#progress progress").get_attribute("value")
    visitor.limit_frames(2)
    page.locator("#cancel").click()
    page.locator("#animate:enabled").click()
    assert visitor.result()
    assert page.locator("#progress progress").count() == 0


def test_closing_the_tab_stops_the_work(visit, app_folder):
    """Nobody waits for a clip that nobody will see."""

    def folders(kept: bool):
        return {path for path in app_folder.glob("fsth-*") if path.name.startswith("fsth-examples-") == kept}

    (examples,) = folders(kept=True)  # a clip of the examples that is drawn to its end is kept here
    leaver = visit()
    leaver.page.locator("#shipped-portraits button").nth(1).click()
    leaver.result()  # which was generated beforehand
    before = set(examples.iterdir())
    leaver.page.locator("#motions button").nth(TALK).click()
    leaver.page.locator("#preview img").wait_for(timeout=60_000)
    assert folders(kept=False)
    leaver.close()
    deadline = time.monotonic() + 120
    while folders(kept=False):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert set(examples.iterdir()) == before


def test_two_visitors_see_only_their_own(visit, files):
    one, other = visit(), visit()
    for visitor, portrait in ((one, PORTRAIT), (other, files["mirrored"])):
        visitor.add_portraits(portrait)
        visitor.add_clip(DRIVER)
        visitor.limit_frames(2)
    one.page.locator("#animate").click()
    other.page.locator("#animate").click()
    sources = [visitor.result() for visitor in (one, other)]
    assert sources[0] != sources[1]
    for visitor, foreign in ((one, sources[1]), (other, sources[0])):
        assert foreign not in visitor.requests
    faces = [visitor.page.locator("#portrait-faces img").get_attribute("src") for visitor in (one, other)]
    assert faces[0] not in other.requests and faces[1] not in one.requests and faces[0] in one.requests


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone(visit, scheme):
    visitor = visit(viewport=PHONE, color_scheme=scheme)
    visitor.add_portraits(PORTRAIT)
    for tab in ("Live", "Animate", "Check a file"):
        visitor.page.get_by_role("tab", name=tab).click()
        width = visitor.page.evaluate("document.documentElement.scrollWidth")
        assert width <= PHONE["width"], tab
    background = visitor.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 128) == (scheme == "dark")


def test_keyboard(visit):
    """From the portraits to Animate by Tab alone, each stop with a name and a visible focus."""
    page = visit().page
    page.locator("#portraits button").first.focus()
    stops = []
    while "animate" not in stops and len(stops) < 45:
        page.keyboard.press("Tab")
        focused = page.evaluate_handle("document.activeElement")
        stops.append(focused.evaluate("e => e.closest('[id]').id"))
        assert focused.evaluate("e => e.ariaLabel || e.innerText || e.labels?.length"), stops
        assert focused.evaluate("e => getComputedStyle(e).outlineStyle") != "none", stops
    assert stops[-1] == "animate"


def test_live(visit, url):
    visitor = visit()
    visitor.add_portraits(PORTRAIT)
    page = visitor.page
    page.get_by_role("tab", name="Live").click()
    page.get_by_label("Keep a recording").check()
    page.locator("#camera").get_by_text("Click to Access Webcam").click()
    page.locator("#camera").get_by_text("Record").click()
    page.locator("#live-result img").wait_for(timeout=30_000)
    words = r"frames per second, \d+ ms from the camera.s picture, recorded: [1-9]"
    page.locator("#frame-rate").get_by_text(re.compile(words)).wait_for()
    page.locator("#live-options button").first.click()
    for region in ("Head", "Brows", "Eyes", "Gaze", "Mouth"):
        page.locator("#live-regions").get_by_label(region).uncheck()
    page.locator("#frame-rate").get_by_text("nothing moves").wait_for()  # it changes while the camera runs
    page.get_by_role("tab", name="Animate").click()  # leaving the tab stops the camera
    page.wait_for_function("!document.querySelector('#camera video')?.srcObject?.active")
    page.get_by_role("tab", name="Live").click()
    page.locator("#save-recording").click()
    page.locator("#recording video").wait_for()
    assert visitor.foreign_requests(url) == []


def test_waiting_threads_leave_the_cores_to_others(url, app_folder):
    assert "GOMP_SPINCOUNT = '0'" in (app_folder / "app.log").read_text()
