"""Headless Chromium against the real app."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from testing_utils.paths import ROOT


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
]
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@contextmanager
def running_app(folder: Path) -> Iterator[str]:
    """The app as a visitor finds it, with its uploads under `folder`; gives its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = os.environ | {"GRADIO_TEMP_DIR": str(folder / "uploads"), "TMPDIR": str(folder)}
    environment |= {"OMP_DISPLAY_ENV": "verbose"}  # tells the log how threads wait
    with open(folder / "app.log", "w") as log:
        app = subprocess.Popen(
            [sys.executable, ROOT / "app.py", "--port", str(port)], cwd=ROOT, env=environment, stdout=log, stderr=log
        )
        try:
            url, deadline = f"http://127.0.0.1:{port}/", time.monotonic() + 120
            while not _answers(url):
                assert app.poll() is None and time.monotonic() < deadline, (folder / "app.log").read_text()
                time.sleep(0.2)
            yield url
        finally:
            app.terminate()
            app.wait(20)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


class Visitor:
    """One visitor's browser window, with the journeys that the tests have in common."""

    def __init__(self, browser, url: str, viewport: dict = DESKTOP, **options):
        self.context = browser.new_context(permissions=["camera", "microphone"], viewport=viewport, **options)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.jobs: list[str] = []  # what was sent to the queue
        self.page.on("request", self._note)
        self.page.goto(url)
        self.page.wait_for_selector("#portraits input[type=file]", state="attached")

    def _note(self, request) -> None:
        self.requests.append(request.url)
        if "/queue/join" in request.url:
            self.jobs.append(request.post_data)

    def add_portraits(self, *files: Path, wait: bool = True) -> None:
        self.page.locator("#portraits input[type=file]").first.set_input_files(list(files))
        if wait:
            self.page.locator("#portrait-faces img").nth(len(files) - 1).wait_for()

    def add_clip(self, file: Path, wait: bool = True) -> None:
        self.page.locator("#driving input[type=file]").first.set_input_files(file)
        if wait:
            self.page.locator("#driving-faces img").first.wait_for()

    def add_motion(self, file: Path) -> None:
        self.page.locator("#motion-from-file").get_by_role("button", name="A motion from a file").click()
        self.page.locator("#motion-file input[type=file]").set_input_files(file)
        self.page.locator("#motion-file").get_by_text(file.name.partition(".")[0]).first.wait_for()

    def limit_frames(self, count: int) -> None:
        self.page.get_by_role("button", name="Options").click()
        self.page.locator("#max-frames input").fill(str(count))
        self.page.locator("#max-frames input").blur()

    def animate(self) -> str:
        """Animate and wait; gives the address of the clip, which can be played."""
        self.page.locator("#animate").click()
        return self.result()

    def result(self) -> str:
        video = self.page.locator("#result video")
        video.wait_for(timeout=60_000)
        self.page.wait_for_function("document.querySelector('#result video')?.readyState >= 2")
        return video.evaluate("video => video.currentSrc")

    def foreign_requests(self, url: str) -> list[str]:
        """All that did not go to the app."""
        return [r for r in self.requests if not r.startswith((url, "data:", "blob:"))]

    def close(self) -> None:
        self.context.close()
