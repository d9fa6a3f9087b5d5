"""Several people in one picture, on a desktop and on a phone."""

import httpx
import numpy as np
import pytest
from PIL import Image

from fsth_hub.demo.shipped import PORTRAITS, portrait_path
from fsth_hub.media.reading import open_clip
from fsth_hub.media.writing import write_clip
from testing_utils.browser import DESKTOP, PHONE
from testing_utils.paths import DRIVER


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two paintings as one picture, and a clip of two people."""
    folder = tmp_path_factory.mktemp("group")
    paintings = [Image.open(portrait_path(PORTRAITS[number].name)).resize((300, 400)) for number in (0, 3)]
    Image.fromarray(np.hstack(paintings)).save(folder / "couple.png")
    frames = list(open_clip(DRIVER))[:4]
    write_clip(folder / "two.mp4", [np.hstack([frame, frame[:, ::-1]]) for frame in frames], 25)
    return folder / "couple.png", folder / "two.mp4"


@pytest.mark.parametrize("device", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_everybody_in_a_picture_moves(visit, files, tmp_path, device):
    """Offered where there are several faces, and whose motion they take where the clip has several too."""
    picture, clip = files
    visitor = visit(viewport=device)
    page = visitor.page
    who, drivers = page.locator("#who-moves"), page.locator("#who-drives")
    visitor.add_portraits(picture, wait=False)
    who.wait_for()
    assert page.locator("#portrait-faces").get_by_text("Face 2: click to use").count() == 1
    visitor.add_clip(clip)
    assert not drivers.is_visible()
    who.get_by_label("Everybody in the picture").check()
    drivers.wait_for()
    page.locator("#portrait-faces").get_by_text("Face 2: used").wait_for()
    drivers.get_by_label("All as the one").check()
    visitor.limit_frames(2)
    page.locator("#expected").get_by_text("2 frames: about").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= device["width"]
    (tmp_path / "result.mp4").write_bytes(httpx.get(visitor.animate()).content)
    result = open_clip(tmp_path / "result.mp4")
    assert (result.width, result.height) == (600, 400)
    page.locator("#details-panel button").first.click()
    page.locator("#details").get_by_text("2 people, the largest head").wait_for()
    page.locator("#portrait-faces button:has(img)").first.click()  # one face again
    drivers.wait_for(state="hidden")
    assert who.get_by_label("The face that is clicked").is_checked()
