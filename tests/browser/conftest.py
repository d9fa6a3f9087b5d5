"""One app and one browser for all of these tests: both take long to start.

They need Chromium (`apt-get install chromium`) and Playwright, which is in the `dev` extra.
"""

import io
from pathlib import Path

import pytest
from PIL import Image

from fsth_hub.media.reading import open_clip
from fsth_hub.pipelines.driving import DrivingMotion
from testing_utils.browser import ARGUMENTS, CHROMIUM, Visitor, running_app
from testing_utils.paths import DRIVER


@pytest.fixture(scope="package")
def browser(tmp_path_factory):
    """Chromium with a camera that sees the example's clip."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if not CHROMIUM:
        pytest.skip("there is no Chromium on this machine (apt-get install chromium)")
    camera = tmp_path_factory.mktemp("camera") / "camera.mjpeg"
    camera.write_bytes(b"".join(map(jpeg, list(open_clip(DRIVER))[::4])))
    arguments = [*ARGUMENTS, f"--use-file-for-fake-video-capture={camera}"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=arguments)
        yield browser
        browser.close()


def jpeg(frame) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).resize((320, 320)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@pytest.fixture(scope="package")
def app_folder(tmp_path_factory) -> Path:
    """Where the app has its log, its uploads, and folders for clips that are being made."""
    return tmp_path_factory.mktemp("app")


@pytest.fixture(scope="package")
def url(browser, app_folder):
    """Of the real app with the bundled model, once there is a browser to visit it with."""
    with running_app(app_folder) as url:
        yield url


@pytest.fixture
def visit(browser, url):
    visitors = []

    def visit(**options) -> Visitor:
        visitors.append(Visitor(browser, url, **options))
        return visitors[-1]

    yield visit
    for visitor in visitors:
        visitor.close()


@pytest.fixture(scope="package")
def long_motion(tmp_path_factory) -> Path:
    """A minute of it, 1,500 frames: no machine is done with them before a visitor cancels."""
    path = tmp_path_factory.mktemp("motion") / "minute.motion.safetensors"
    DrivingMotion.load("motion:nod").looped(60).save(path)
    return path
