"""The page under hostile requests, and under many jobs: what it answers, whose files it gives, what it keeps.

    python tests/fuzz/page.py --jobs 200

The page runs in this process with a tiny pipeline. A request fails if the server breaks (status 500, or a failure that
is not the visitor's fault), answers with what is another's, or no longer answers afterwards.
"""

import argparse
import os
import resource
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit


TESTS = Path(__file__).parents[1]
if __name__ == "__main__":
    sys.path[0] = str(TESTS)  # and not this folder

import httpx  # noqa: E402
import numpy as np  # noqa: E402
from gradio_client import Client, handle_file  # noqa: E402
from PIL import Image  # noqa: E402

import fsth_hub  # noqa: E402
from fsth_hub.demo import LAUNCH_OPTIONS, create_demo, page  # noqa: E402
from testing_utils.clips import make_clip  # noqa: E402
from testing_utils.memory import resident  # noqa: E402
from testing_utils.pipelines import make_pipeline, picture  # noqa: E402


SECRET = "nobody is to read this"
BROKEN = "Something broke"
# What Gradio itself (6.31) answers with a plain 500, before anything of this page's is called.
GRADIOS_OWN = ("broken JSON", "function -1", "function 1000000000")
VALUES = (None, "x", 1e308, True, [], {}, [[]], {"path": "/etc/passwd"}, [{"image": None, "caption": 1}], "\x00" * 10)
TRICKS = (
    "{secret}", "/etc/passwd", "../../../../etc/passwd", "..%2f..%2f..%2fetc%2fpasswd", "/proc/self/environ",
    "file:///etc/passwd", "//etc/passwd", "/dev/zero", "{cache}/../secret.txt", "{cache}", "C:\\Windows\\win.ini",
    "/etc/passwd%00.png", "http://127.0.0.1:1/x",
)  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """To a request: its name, the status (0 where the connection was closed), and the text."""

    name: str
    status: int
    text: str


class HostilePage:
    """The page as it runs, with what visitors need to send: a portrait, a clip, and a secret that is nobody's."""

    def __init__(self, folder: Path, url: str, demo):
        self.folder, self.url, self.demo = folder, url, demo
        self.cache, self.secret = folder / "cache", folder / "secret.txt"
        self.portrait, self.clip = folder / "anna.png", folder / "nod.mp4"
        self.secret.write_text(SECRET)
        Image.fromarray(picture(0)).save(self.portrait)
        make_clip(self.clip, [picture(4 * step) for step in range(3)], sound="aac")

    def ask(self, name: str, method: str, path: str, **options) -> Answer:
        try:
            answer = httpx.request(method, self.url + path, timeout=60, **options)
            return Answer(name, answer.status_code, answer.text)
        except httpx.HTTPError as error:
            return Answer(name, 0, repr(error))

    def call(self, name: str, endpoint: str, data: object, session: str = "mallory") -> Answer:
        """Call an endpoint as programs do, and wait for what comes of it."""
        body = {"data": data, "session_hash": session}
        started = self.ask(name, "POST", f"gradio_api/call/{endpoint}", json=body)
        try:
            event = httpx.Response(started.status, text=started.text).json()["event_id"]
        except (ValueError, KeyError, TypeError):
            return started
        return self.ask(name, "GET", f"gradio_api/call/{endpoint}/{event}")

    def client(self) -> Client:
        return Client(self.url, verbose=False, download_files=str(self.folder / "downloads"))

    def animate(self, client: Client) -> tuple:
        portraits = [{"image": handle_file(self.portrait), "caption": None}]
        return client.predict(portraits=portraits, driving=handle_file(self.clip), max_frames=2, api_name="/animate")


@contextmanager
def hostile_page(keep_seconds: int | None = None) -> Iterator[HostilePage]:
    """Serve the page from folders of its own; uploads are deleted after so many seconds, by default as ever."""
    usual, temporary, gradio = page.DELETE_CACHE, tempfile.tempdir, os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="hostile-") as name:
        folder = Path(name).resolve()
        for part in ("cache", "work", "downloads"):
            (folder / part).mkdir()
        os.environ["GRADIO_TEMP_DIR"], tempfile.tempdir = str(folder / "cache"), str(folder / "work")
        if keep_seconds is not None:
            page.DELETE_CACHE = (1, keep_seconds)
        try:
            pipe = make_pipeline()
            demo = create_demo(pipe)
            demo.studio._detector = pipe.detector
            url = demo.launch(prevent_thread_lock=True, quiet=True, **LAUNCH_OPTIONS)[1]
            try:
                yield HostilePage(folder, url, demo)
            finally:
                demo.close()
        finally:
            page.DELETE_CACHE, tempfile.tempdir = usual, temporary
            os.environ.pop("GRADIO_TEMP_DIR") if gradio is None else os.environ.update(GRADIO_TEMP_DIR=gradio)


def requests(site: HostilePage) -> Iterator[Callable[[], Answer]]:
    """The hostile requests, one after the other."""
    names = {"secret": site.secret, "cache": site.cache}
    for trick in TRICKS:
        path = trick.format(**names)
        yield lambda p=path: site.ask(f"file={p}", "GET", f"gradio_api/file={quote(p, safe='/%:')}")
        given = {"path": path, "meta": {"_type": "gradio.FileData"}}
        yield lambda p=path, g=given: site.call(f"inspect {p}", "inspect", [g])
    for path in ("gradio_api/proxy=http://127.0.0.1:1/", "static/../../etc/passwd", "assets/..%2f..%2fsecret.txt"):
        yield lambda p=path: site.ask(p, "GET", p)
    data = b"\x89PNG\r\n\x1a\n" + bytes(66 * 2**20)
    yield lambda: site.ask("oversized upload", "POST", "gradio_api/upload", files={"files": ("a.png", data)})
    for name in ("../../escaped.png", "a" * 300 + ".png", "/etc/cron.d/x", "con", "\x00.png", "..", "ä 😀\n.png"):
        options = {"files": {"files": (name, b"x")}}
        yield lambda n=name, o=options: site.ask(f"upload {n[:20]!r}", "POST", "gradio_api/upload", **o)
    yield lambda: site.ask("upload of nothing", "POST", "gradio_api/upload", content=b"")
    broken = {"content-type": "multipart/form-data; boundary=x"}
    yield lambda: site.ask("broken upload", "POST", "gradio_api/upload", content=b"--x\r\n" * 9, headers=broken)
    url = {"path": None, "url": "http://127.0.0.1:1/a.png", "meta": {"_type": "gradio.FileData"}}
    yield lambda: site.call("address of this machine", "inspect", [url])
    for name, endpoint in site.client().view_api(return_format="dict")["named_endpoints"].items():
        count = len(endpoint["parameters"])
        for value in VALUES:
            yield lambda n=name, v=value, c=count: site.call(f"{n} {v!r:.30}", n.strip("/"), [v] * c)
        for odd in ([], [None] * (count + 3), None, "x", {"a": 1}):
            yield lambda n=name, o=odd: site.call(f"{n} data={o!r:.30}", n.strip("/"), o)
    for body in (b"", b"[", b"[" * 100_000, b'{"data": [NaN]}', b"\xff" * 100):
        yield lambda b=body: site.ask("broken JSON", "POST", "gradio_api/call/inspect", content=b)
    for index in (-1, 10**9, "x", None):
        body = {"fn_index": index, "data": [], "session_hash": "m"}
        yield lambda b=body: site.ask(f"function {b['fn_index']}", "POST", "gradio_api/queue/join", json=b)


def faults(site: HostilePage, answer: Answer) -> list[str]:
    """What is wrong with an answer."""
    is_broken = answer.status >= 500 and answer.name not in GRADIOS_OWN
    found = [f"status {answer.status}"] if is_broken else []
    found += ["breaks the page"] if BROKEN in answer.text else []
    found += ["a traceback"] if "Traceback (most" in answer.text else []
    found += ["gives what is another's"] if SECRET in answer.text or "root:x:0" in answer.text else []
    escaped = [path for path in site.folder.rglob("escaped.png") if not path.is_relative_to(site.cache)]
    return found + ["writes elsewhere"] * bool(escaped)


def is_alive(site: HostilePage) -> bool:
    return httpx.get(site.url, timeout=60).status_code == 200


def many_sessions(site: HostilePage, count: int) -> Answer:
    """So many tabs, each of which looks at a file at once; the last answer."""
    data = {"data": [None], "fn_index": None}
    index = next(fn["id"] for fn in site.demo.config["dependencies"] if fn["api_name"] == "inspect")
    for number in range(count):
        body = data | {"fn_index": index, "session_hash": f"tab{number}"}
        answer = site.ask(f"tab {number}", "POST", "gradio_api/queue/join", json=body)
    return answer


@contextmanager
def slow_uploads(site: HostilePage, count: int) -> Iterator[None]:
    """Uploads that have begun and do not go on."""
    address = urlsplit(site.url)
    head = "POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n"
    head += "Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
    opened = [socket.create_connection((address.hostname, address.port)) for _ in range(count)]
    for connection in opened:
        connection.sendall(head.encode())
    try:
        yield
    finally:
        for connection in opened:
            connection.close()


def soak(site: HostilePage, jobs: int, report: Callable[[int, float], None] | None = None) -> float:
    """Animate so often; by how many MB this process grows from the first fifth of them to the end, by a straight line
    through what it holds after each."""
    client, sizes = site.client(), []
    for number in range(1, jobs + 1):
        site.animate(client)
        sizes.append(resident())
        if report is not None and number % 20 == 0:
            report(number, sizes[-1])
    later = sizes[jobs // 5 :]
    return float(np.polyfit(np.arange(len(later)), later, 1)[0]) * len(later) if len(later) > 1 else 0.0


def files_left(site: HostilePage, seconds: float = 60) -> list[Path]:
    """What lies in the folders of the page after so many seconds, or sooner if there is nothing left, but for the
    page's own examples, and an empty file that Gradio (6.31) leaves of each file that is checked."""
    package = Path(fsth_hub.__file__).parent
    examples = {path.name for folder in ("examples", "motions") for path in (package / folder).rglob("*")}
    end, left = time.monotonic() + seconds, [site.cache]
    while left and time.monotonic() < end:
        time.sleep(0.2)
        left = [path for path in site.cache.rglob("*") if path.is_file() and path.name not in examples]
        with suppress(FileNotFoundError):  # deleted at this moment
            left = [path for path in left if path.stat().st_size > 0]
        left += [path for path in (site.folder / "work").glob("fsth-*") if not path.name.startswith("fsth-examples")]
    return left


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=200, help="of the soak")
    jobs, failed, count = parser.parse_args().jobs, 0, 0
    with hostile_page() as site:
        for request in requests(site):
            answer, count = request(), count + 1
            if wrong := faults(site, answer):
                failed += 1
                print(f"{answer.name}: {', '.join(wrong)}: {answer.text[:300]!r}", flush=True)
        with slow_uploads(site, 50):
            many_sessions(site, 200)
            print(f"{count} requests, {failed} failed; alive: {is_alive(site)}", flush=True)
    with hostile_page(keep_seconds=20) as site:
        started = time.monotonic()
        grown = soak(site, jobs, lambda number, size: print(f"job {number}: {size:.0f} MB", flush=True))
        seconds, peak = time.monotonic() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        left = files_left(site)
        print(
            f"{jobs} jobs in {seconds:.0f} s: {grown:+.0f} MB after the first fifth, {peak:.0f} MB at the most, "
            f"{len(left)} files left {left[:3]}"
        )
    return failed or bool(left)


if __name__ == "__main__":
    sys.exit(main())
