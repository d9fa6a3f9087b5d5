"""The Space: what is assembled, how it is pushed, and (slow) that it runs where nothing else is installed."""

import base64
import importlib.util
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from huggingface_hub import SpaceCard
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from fsth_hub.media.reading import open_clip
from testing_utils.demo import animate_arguments
from testing_utils.hub_server import ANN_READS, ENDPOINT


ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "space" / "assemble.py"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"space_{name}", ROOT / "space" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


space = load("assemble")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The Space's folder; not to be changed."""
    folder = tmp_path_factory.mktemp("assembled") / "space"
    space.assemble(folder)
    return folder


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    """A folder whose files may be replaced, though not written into."""
    return shutil.copytree(folder, tmp_path / "copy", copy_function=os.link)


def replace(path: Path, content: str | bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_holds_the_package_and_nothing_else(folder):
    names = {path.name for path in folder.iterdir()}
    assert names == {*space.FILES, "requirements.txt", ".gitattributes"}
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "fsth_hub"]
    tracked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split()
    files = {path.relative_to(folder).as_posix() for path in (folder / "fsth_hub").rglob("*") if path.is_file()}
    assert files == set(tracked) or not tracked  # a checkout without git
    assert (folder / "fsth_hub" / "checkpoints" / "small" / "generator" / "model.safetensors").is_file()


def test_requirements_are_the_package_s(folder):
    """All that pyproject.toml asks for, one version each, which it allows and the tests ran with."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for extra in ("credentials", "fast") for line in project["optional-dependencies"][extra]]
    wanted = [*project["dependencies"], *extras]
    wanted = {canonicalize_name(each.name): each.specifier for each in map(Requirement, wanted)}
    given = [Requirement(line) for line in (folder / "requirements.txt").read_text().splitlines()]
    assert {each.name for each in given} == wanted.keys()
    constraints = (ROOT / "constraints.txt").read_text().lower().replace("_", "-").splitlines()
    for each in given:
        version = str(each.specifier).removeprefix("==")
        assert version in wanted[each.name] and f"{each.name}=={version}" in constraints
    assert next(each for each in given if each.name == "gradio").extras == {"oauth"}


def test_front_matter_agrees_with_the_project(folder):
    card = SpaceCard.load(folder / "README.md").data
    assert f"gradio[oauth]=={card.sdk_version}" in (folder / "requirements.txt").read_text().splitlines()
    assert card.hf_oauth and card.hf_oauth_scopes == ["contribute-repos"]


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("README.md", lambda text: text.replace("sdk_version: 6", "sdk_version: 5"), "sdk_version of README.md"),
        ("README.md", lambda text: text.replace('"3.11"', '"3.10"'), "python_version of README.md"),
        ("README.md", lambda text: text.replace("app_file: app.py", "app_file: main.py"), "app_file of README.md"),
        ("README.md", lambda text: text.replace("cpu-basic", "cpu-tiny"), "suggested_hardware of README.md"),
        ("README.md", lambda text: text.replace("indigo", "violet"), "colorFrom of README.md"),
        ("README.md", lambda text: text.replace("A portrait moves", 9 * "A portrait moves"), "short_description of"),
        ("README.md", lambda text: text.replace("title:", "title: ["), "front matter of README.md cannot be read"),
        ("README.md", lambda _: "# No front matter\n", "title of README.md"),
        ("packages.txt", lambda text: "# what OpenCV needs\n" + text, "packages.txt names"),
        (".gitattributes", lambda text: text.replace("*.onnx", "*.npy"), "face_detection_yunet_2023mar.onnx is large"),
        ("fsth_hub/notes.txt", lambda _: 11 * 2**20 * "-", "notes.txt is large"),
        ("runs/log.jsonl", lambda _: "{}", "runs should not be there"),
    ],
)  # fmt: skip
def test_check_finds_what_would_not_run(copy, name, change, problem):
    path = copy / name
    path.parent.mkdir(exist_ok=True)
    replace(path, change(path.read_text() if path.exists() else ""))
    assert [found for found in space.check(copy) if problem in found], space.check(copy)


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    done = subprocess.run([sys.executable, SCRIPT, tmp_path], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("assemble.py: error:") and "not an empty" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_pushes_exactly_the_folder(hub, tmp_path):
    hub.add("spaces/ann/heads", {"old.py": b"of an earlier version"}, private=False)
    command = [sys.executable, SCRIPT, tmp_path / "one", "--push", "ann/heads"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files = hub.repositories["spaces/ann/heads"].files()
    assert (
        done.stdout.strip() == f"{ENDPOINT}/spaces/ann/heads/commit/{hub.repositories['spaces/ann/heads'].sha('main')}"
    )
    written = [path for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert files == {path.relative_to(tmp_path / "one").as_posix(): path.read_bytes() for path in written}
    card = SpaceCard(files["README.md"].decode()).data
    assert card["thumbnail"] == f"{ENDPOINT}/spaces/ann/heads/resolve/main/thumbnail.jpg"


def test_new_space_is_private(hub, folder):
    space.push(folder, "ann/heads")
    assert hub.repositories["spaces/ann/heads"].private


def test_says_why_it_was_not_pushed(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", ANN_READS)
    with pytest.raises(space.FsthError, match="'ann/heads' was not changed: this login may not write") as caught:
        space.push(folder, "ann/heads")
    assert ANN_READS not in str(caught.value) and not hub.repositories


def test_secrets_become_files(tmp_path, monkeypatch):
    """Texts become files that nobody else may read; names of files stay, and unset stays unset."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "")  # to be restored after the test
    app = load("app")
    app.read_secrets()
    assert "FSTH_C2PA_CERT" not in os.environ
    monkeypatch.setenv("FSTH_C2PA_CERT", "/etc/ssl/mine.pem")
    monkeypatch.setenv("FSTH_C2PA_KEY", "-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----\n")
    app.read_secrets()
    assert os.environ["FSTH_C2PA_CERT"] == "/etc/ssl/mine.pem"
    path = Path(os.environ["FSTH_C2PA_KEY"])
    assert "abc" in path.read_text() and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert Path(os.environ["GRADIO_TEMP_DIR"]).is_relative_to(path.parent)


# Slow: in an environment of its own, as on a Space.


@pytest.fixture(scope="module")
def python(folder, tmp_path_factory) -> Path:
    """Python with the Space's requirements and `spaces`, which every Space gets, and without this checkout."""
    venv = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    install = [venv / "bin" / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt"]
    subprocess.run([*install, "-r", folder / "requirements.txt", "spaces"], check=True)
    return venv / "bin" / "python"


@contextmanager
def running_space(python: Path, folder: Path, home: Path, script: str = "app.py", **variables: str):
    """The Space's app with the variables that a Space has; gives its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home), "HF_HUB_OFFLINE": "1"}
    environment |= {"SPACE_ID": "ann/heads", "SYSTEM": "spaces", "GRADIO_SERVER_PORT": str(port)}
    environment |= {"OAUTH_CLIENT_ID": "id", "OAUTH_CLIENT_SECRET": "secret", "OAUTH_SCOPES": "openid profile"}
    environment |= {"OPENID_PROVIDER_URL": ENDPOINT, "OMP_NUM_THREADS": "2"} | variables
    with open(home / "app.log", "w") as log:
        app = subprocess.Popen([python, script], cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            url, deadline = f"http://127.0.0.1:{port}/", time.monotonic() + 180
            while True:
                assert app.poll() is None and time.monotonic() < deadline, (home / "app.log").read_text()
                try:
                    if httpx.get(url).status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.2)
            yield url
        finally:
            app.terminate()
            app.wait(30)
            print((home / "app.log").read_text())


@pytest.mark.slow
def test_runs_as_a_space(python, folder, tmp_path):
    with running_space(python, folder, tmp_path) as url:
        client = Client(url, verbose=False, download_files=tmp_path / "downloads")
        result, *_ = client.predict(**animate_arguments())
        assert client.config["space_id"] is None  # or the page would ask other hosts for a header
        assert list(tmp_path.glob("fsth-space-*/uploads/*/*"))  # on the disk that is forgotten
    path = result["video"] if isinstance(result, dict) else result
    clip = open_clip(path)
    assert len(list(clip)) == 3 and (clip.width, clip.height) == (256, 256) and clip.audio_from
    # signed by the Space's own key, which it made on its first clip
    ask = f"from fsth_hub.provenance.inspection import inspect; print(inspect({path!r}))"
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    report = subprocess.run([python, "-c", ask], cwd=folder, env=environment, capture_output=True, text=True)
    assert "credentials='valid'" in report.stdout and "signed_here=True" in report.stdout, report


class ZeroGpu(BaseHTTPRequestHandler):
    """A stand-in for what lends GPUs to Spaces."""

    asked: list[tuple[str, dict]] = []

    def do_POST(self):
        address = urlsplit(self.path)
        self.asked.append((address.path, {name: value[0] for name, value in parse_qs(address.query).items()}))
        lent = {"idle": True, "nvidiaIndex": 0, "nvidiaUUID": "GPU-0", "allowToken": "allowed"}
        content = json.dumps(lent if address.path == "/schedule" else {}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


# `spaces` as on ZeroGPU, where there is no GPU to be made ready: what it replaces in PyTorch is missing without CUDA.
WITHOUT_GPU = """
import runpy, sys, torch
sys.path.insert(0, "")
if torch.version.cuda is None:
    torch.version.cuda, torch._C._cuda_init, torch.cuda._is_in_bad_fork = "13.0", None, bool
import spaces.zero.torch
spaces.zero.torch.init = spaces.zero.torch.move = lambda *_, **__: None
runpy.run_path("app.py", run_name="__main__")
"""


@pytest.mark.slow
def test_draws_in_zero_gpu_s_process(python, folder, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), ZeroGpu)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "cgroup").write_text("0::/space\n")
    (tmp_path / "without_gpu.py").write_text(WITHOUT_GPU)
    variables = {
        "SPACES_ZERO_GPU": "true",
        "SPACES_ZERO_DEVICE_API_URL": f"http://127.0.0.1:{server.server_port}",
        "ZEROGPU_PROC_SELF_CGROUP_PATH": str(tmp_path / "cgroup"),
    }
    visitor = f"a.{base64.urlsafe_b64encode(b'{}').decode()}.c"
    with running_space(python, folder, tmp_path, str(tmp_path / "without_gpu.py"), **variables) as url:
        client = Client(url, verbose=False, download_files=tmp_path / "downloads", headers={"x-ip-token": visitor})
        for frames in (3, 4):  # the second in the process that is there already
            outputs = client.submit(**animate_arguments(max_frames=frames))
            _, _, _, _, details, *_ = outputs.result(120)
            assert f"{frames} frames" in details and any(shown[2] for shown in outputs.outputs())
        job = client.submit(**animate_arguments(max_frames=None))
        while not any(outputs[2] for outputs in job.outputs()):
            time.sleep(0.05)
        job.cancel()
        wall = tmp_path / "wall.png"

        Image.new("RGB", (200, 200), "grey").save(wall)
        with pytest.raises(AppError, match="No face was found in wall.png"):
            client.predict(**animate_arguments(portrait=wall))
        assert "5 frames" in client.predict(**animate_arguments(max_frames=5))[4]
    server.shutdown()
    schedules = [query for path, query in ZeroGpu.asked if path == "/schedule"]
    assert len(schedules) == 5 and all(query.get("token") == visitor for query in schedules)
    assert len([path for path, _ in ZeroGpu.asked if path == "/release"]) == 5
