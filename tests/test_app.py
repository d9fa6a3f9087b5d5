import importlib.util
import tempfile
import time
from pathlib import Path

import gradio as gr
import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from fsth_hub.pipeline_fsth import FsthPipeline
from fsth_hub.video import open_clip


ROOT = Path(__file__).parents[1]
PORTRAIT, DRIVER = ROOT / "fsth_hub/examples/astronaut.jpg", ROOT / "fsth_hub/examples/driver.mp4"


@pytest.fixture(scope="module")
def app():
    specification = importlib.util.spec_from_file_location("fsth_app", ROOT / "app.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Gradio's cache, and where the handlers make their clips."""
    with pytest.MonkeyPatch.context() as patch:
        cache, workplace = tmp_path_factory.mktemp("cache"), tmp_path_factory.mktemp("work")
        patch.setenv("GRADIO_TEMP_DIR", str(cache))
        patch.setattr(tempfile, "tempdir", str(workplace))
        yield cache, workplace


@pytest.fixture(scope="module")
def url(app, folders):
    demo = app.create_demo(FsthPipeline.from_pretrained())
    url = demo.launch(prevent_thread_lock=True, quiet=True, **app.LAUNCH_OPTIONS)[1]
    yield url
    demo.close()


@pytest.fixture
def client(url, tmp_path):
    return Client(url, verbose=False, download_files=tmp_path)


def left_over(workplace):
    """What handlers have not cleaned up (Gradio's client works in the same folder)."""
    return list(workplace.glob("fsth-*"))


def inputs(portrait=PORTRAIT, driving=DRIVER, max_frames=3):
    return {
        "portraits": [{"image": handle_file(portrait), "caption": None}],
        "driving": handle_file(driving),
        "motion": "relative",
        "max_frames": max_frames,
        "api_name": "/animate",
    }


def test_page_keeps_to_itself(app, folders):
    """Every part has a name to be found by; no analytics; uploads are deleted."""
    demo = app.create_demo(_Silent())
    config = demo.get_config_file()
    parts = [part["props"] for part in config["components"] if part["type"] in ("gallery", "video", "image", "button")]
    assert len(parts) == 6 and all(part["elem_id"] for part in parts)
    assert not demo.analytics_enabled and demo.delete_cache == (3600, 3600)
    public = [event["api_name"] for event in config["dependencies"] if event["api_visibility"] == "public"]
    assert public.count("animate") == 1 and public.count("cancel") == 1


class _Silent:
    """A pipeline that is never asked for anything."""

    def set_progress_bar_config(self, **_):
        pass


def test_animates(client, folders):
    cache, workplace = folders
    preview, result = client.predict(**inputs())
    assert not preview["visible"] and result["visible"]
    clip = open_clip(result["value"]["video"] if isinstance(result["value"], dict) else result["value"])
    assert len(list(clip)) == 3 and (clip.width, clip.height) == (256, 256) and clip.has_audio
    assert list(cache.rglob("talking_head.mp4")) and left_over(workplace) == []


def test_says_what_is_wrong(client, folders, tmp_path):
    wall = tmp_path / "wall.png"
    Image.new("RGB", (200, 200), "grey").save(wall)
    with pytest.raises(AppError, match="No face was found in wall.png"):
        client.predict(**inputs(portrait=wall))
    with pytest.raises(AppError, match="Add at least one portrait"):
        client.predict(**inputs() | {"portraits": None})
    with pytest.raises(AppError, match="Add a driving clip"):
        client.predict(**inputs() | {"driving": None})
    assert left_over(folders[1]) == []


def test_cancelling_leaves_nothing(client, folders):
    job = client.submit(**inputs(max_frames=None))
    while not job.outputs():
        time.sleep(0.05)
        assert not job.done()
    assert left_over(folders[1])
    job.cancel()
    end = time.monotonic() + 10
    while left_over(folders[1]) and time.monotonic() < end:
        time.sleep(0.1)
    assert left_over(folders[1]) == []
    client.predict(**inputs(max_frames=2))  # and the next one gets its turn


def test_other_files_stay_private(url):
    for path in (ROOT / "app.py", ROOT / "pyproject.toml", "/etc/passwd"):
        assert httpx.get(f"{url}gradio_api/file={path}").status_code == 403


def test_handler_needs_no_page(app, folders):
    """The handler is a plain generator: the last value is the clip, those before are previews."""
    animator = app.Animator(FsthPipeline.from_pretrained())
    updates = animator.animate([(str(PORTRAIT), None)], str(DRIVER), "absolute", 4, progress=gr.Progress())
    previews = []
    for preview, result in updates:
        if result["visible"]:
            assert len(list(open_clip(result["value"]))) == 4
        else:
            previews.append(preview)
    assert [update["label"] for update in previews] == ["Drawing frame 1 of 4", "Drawing frame 4 of 4"]
    assert previews[0]["value"].shape == (256, 256, 3)
