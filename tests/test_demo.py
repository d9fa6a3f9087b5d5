"""The page's handlers and limits, in this process and over Gradio's own client."""

import shutil
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from test_pipeline import NO_FACE, SIZE, make_pipeline, picture
from test_video import make_clip

from fsth_hub.demo import LAUNCH_OPTIONS, create_demo, inputs
from fsth_hub.demo.animate_tab import Animator
from fsth_hub.demo.inputs import Seen, choose_face, look_at_picture, open_limited, show_faces
from fsth_hub.demo.jobs import Countdown, JobStopped, Worker
from fsth_hub.demo.live_tab import Live, write_recording
from fsth_hub.demo.studio import DRIVER, PORTRAIT, Studio
from fsth_hub.errors import FsthError
from fsth_hub.pipeline_fsth import FsthPipeline
from fsth_hub.video import open_clip


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Gradio's cache, and where the handlers make their clips."""
    with pytest.MonkeyPatch.context() as patch:
        cache, workplace = tmp_path_factory.mktemp("cache"), tmp_path_factory.mktemp("work")
        patch.setenv("GRADIO_TEMP_DIR", str(cache))
        patch.setattr(tempfile, "tempdir", str(workplace))
        yield cache, workplace


@pytest.fixture(scope="module")
def url(folders):
    demo = create_demo(FsthPipeline.from_pretrained())
    url = demo.launch(prevent_thread_lock=True, quiet=True, **LAUNCH_OPTIONS)[1]
    yield url
    demo.close()


@pytest.fixture
def client(url, tmp_path):
    return Client(url, verbose=False, download_files=tmp_path)


@pytest.fixture
def studio():
    """A studio with a tiny pipeline, whose detector sees a face wherever the first pixel says."""
    pipe = make_pipeline()
    studio = Studio((pipe,))
    studio._detector = pipe.detector
    return studio


@pytest.fixture
def files(tmp_path):
    """A portrait and a clip that the tiny pipeline can read."""
    portrait, clip = tmp_path / "anna.png", tmp_path / "driver.mp4"
    Image.fromarray(picture(0)).save(portrait)
    make_clip(clip, [picture(shift) for shift in (0, 4, 8, 12, 16)])
    return str(portrait), str(clip)


def left_over(workplace):
    """What handlers have not cleaned up (Gradio's client works in the same folder)."""
    return [path for path in workplace.glob("fsth-*") if not path.name.startswith("fsth-examples")]


def arguments(portrait=PORTRAIT, driving=DRIVER, max_frames=3):
    return {
        "portraits": [{"image": handle_file(portrait), "caption": None}],
        "driving": handle_file(driving),
        "max_frames": max_frames,
        "api_name": "/animate",
    }


def test_page_keeps_to_itself():
    """Every part has a name to be found by; nothing is reported, kept or offered beyond the page's own endpoints."""
    demo = create_demo(make_pipeline())
    parts = [part for part in demo.get_config_file()["components"] if part["type"] in ("gallery", "video", "image")]
    assert len(parts) == 11 and all(part["props"]["elem_id"] and part["props"]["label"] for part in parts)
    public = {event["api_name"] for event in demo.config["dependencies"] if event["api_visibility"] == "public"}
    person = {"fine_tune", "cancel_person", "try_person", "save_person", "person_card", "publish_person"}
    assert public == {"animate", "cancel"} | person | {"load_person", "load_person_file"}
    assert not demo.analytics_enabled and sum(demo.delete_cache) < 3600
    assert not LAUNCH_OPTIONS["run_history"] and not LAUNCH_OPTIONS["mcp_server"]


def test_heavy_events_share_one_place():
    """Whatever runs a network waits for one another, also in the queue that visitors see."""
    demo = create_demo(make_pipeline())
    heavy = [
        fn for fn in demo.fns.values() if getattr(fn.fn, "__name__", "") in ("animate", "step", "fine_tune", "try_out")
    ]
    assert len(heavy) == 4 and all((fn.concurrency_id, fn.concurrency_limit) == ("heavy", 1) for fn in heavy)


def test_animates_for_programs(client, folders):
    cache, workplace = folders
    result, preview, progress, details = client.predict(**arguments())
    clip = open_clip(result["video"] if isinstance(result, dict) else result)
    assert len(list(clip)) == 3 and (clip.width, clip.height) == (256, 256) and clip.has_audio
    assert preview is None and "3 frames at 25 per second" in details
    assert list(cache.rglob("talking_head.mp4")) and left_over(workplace) == []


def test_says_what_is_wrong(client, folders, tmp_path):
    wall = tmp_path / "wall.png"
    Image.new("RGB", (200, 200), "grey").save(wall)
    with pytest.raises(AppError, match="No face was found in wall.png"):
        client.predict(**arguments(portrait=wall))
    with pytest.raises(AppError, match="Add at least one portrait"):
        client.predict(**arguments() | {"portraits": None})
    with pytest.raises(AppError, match="Add a driving clip"):
        client.predict(**arguments() | {"driving": None})
    text = tmp_path / "notes.mp4"
    text.write_text("no video")
    with pytest.raises(AppError, match="notes.mp4 is not a video that can be read"):
        client.predict(**arguments(driving=text))
    with pytest.raises(AppError, match="not in the list of choices"):
        client.predict(**arguments() | {"model": "mine"})
    assert left_over(folders[1]) == []


def test_cancelling_leaves_nothing(client, folders):
    job = client.submit(**arguments(max_frames=None))
    while not any(outputs[1] for outputs in job.outputs()):
        time.sleep(0.05)
        assert not job.done()
    assert left_over(folders[1])
    job.cancel()
    end = time.monotonic() + 10
    while left_over(folders[1]) and time.monotonic() < end:
        time.sleep(0.1)
    assert left_over(folders[1]) == []
    client.predict(**arguments(max_frames=2))  # and the next one gets its turn


def test_other_files_stay_private(url):
    for path in (ROOT / "app.py", ROOT / "pyproject.toml", "/etc/passwd"):
        assert httpx.get(f"{url}gradio_api/file={path}").status_code == 403


def test_one_job_at_a_time_and_only_its_owner_stops_it():
    worker, running, order = Worker(), threading.Event(), []

    def endless(job):
        running.set()
        while True:
            job.report("still here")
            time.sleep(0.01)

    def short(job):
        order.append("short")
        return 7

    long_one = worker.stream("anna", endless)
    assert next(long_one) == "still here"
    waiting = threading.Thread(target=lambda: order.append(_drain(worker.stream("bob", short))[1]))
    waiting.start()
    worker.stop("bob's sister")
    assert next(long_one) == "still here" and order == []
    worker.stop("anna")
    with pytest.raises(JobStopped):
        _drain(long_one)
    waiting.join(5)
    assert order == ["short", 7]


def test_a_closed_stream_ends_its_work():
    worker, ended = Worker(), threading.Event()

    def work(job):
        try:
            while True:
                job.report(None)
        finally:
            ended.set()

    stream = worker.stream("anna", work)
    next(stream)
    stream.close()
    assert ended.is_set()


def _drain(stream):
    reports = []
    while True:
        try:
            reports.append(next(stream))
        except StopIteration as end:
            return reports, end.value


def test_time_left(monkeypatch):
    clock = iter([0.0, 10.0])
    monkeypatch.setattr("fsth_hub.demo.jobs.time.monotonic", lambda: next(clock))
    countdown = Countdown("Drawing", 30)
    assert "frame 10 of 30, about 20 s left" in countdown(10)


def test_handler_needs_no_page(studio, files):
    """A plain generator: previews and progress first, the clip last."""
    portrait, clip = files
    outputs = list(Animator(studio).animate([(portrait, None)], clip, [], [], max_frames=4))
    assert [bool(output[0]) for output in outputs] == [False] * (len(outputs) - 1) + [True]
    assert any(output[1] is not None for output in outputs) and "Drawing: frame" in outputs[-2][2]
    assert "relative motion" in outputs[-1][3] and "4 frames" in outputs[-1][3]


def test_example_is_drawn_once(studio, monkeypatch):
    """The second visitor who takes the example gets what was drawn for the first; own files are never kept."""
    calls = []

    def draw(self, portraits, driving, faces, settings, output_path, job):
        calls.append(settings)
        shutil.copy(DRIVER, output_path)
        return {"frames": 1, "fps": 25, "seconds": {}, "frames_without_face": []}

    monkeypatch.setattr(Animator, "_draw", draw)
    animator = Animator(studio)
    for motion in ("relative", "relative", "absolute"):
        *_, last = animator.animate([(str(PORTRAIT), None)], str(DRIVER), [], [], motion)
    assert len(calls) == 2 and last[0]
    for _ in range(2):
        list(animator.animate([(str(ROOT / "docs/astronaut.jpg"), None)], str(DRIVER), [], []))
    assert len(calls) == 4


def test_chosen_faces_reach_the_pipeline(studio, files, monkeypatch):
    portrait, clip = files
    pipe = studio.ready.result()
    pipe.detector.num_faces = 2
    pictures = [pipe.detector.points(picture(0)), pipe.detector.points(picture(0)) + 3]
    persons, embed = [], pipe.embed
    monkeypatch.setattr(pipe, "embed", lambda *args: persons.append(embed(*args)) or persons[-1])
    sight = look_at_picture(studio, portrait)
    assert len(sight.crops) == 2
    for chosen, points in enumerate(pictures):
        seen = choose_face([sight], chosen)
        list(Animator(studio).animate([(portrait, None)], clip, seen, [], max_frames=1))
        assert np.allclose(persons[-1].boxes[0].left, inputs.crop_box(points).left)


def test_faces_are_shown_and_chosen():
    crop = np.zeros((256, 256, 3), np.uint8)
    seen = [Seen("a.png", (crop,)), Seen("b.png", (crop, crop))]
    captions = [caption for _, caption in show_faces(choose_face(seen, 2), "Portrait")["value"]]
    assert captions == ["Portrait 1", "Portrait 2, face 1: click to use", "Portrait 2, face 2: used"]
    assert choose_face(seen, 2)[1].chosen == 1 and choose_face(seen, 0) == seen


def test_limits(tmp_path, studio, monkeypatch):
    with pytest.raises(FsthError, match="keep the best 16"):
        inputs.checked_portraits([(str(PORTRAIT), None)] * 17)
    with pytest.raises(FsthError, match="has been deleted"):
        inputs.checked_portraits([(str(tmp_path / "gone.png"), None)])
    monkeypatch.setattr(inputs, "MAX_CLIP_PIXELS", 1000)
    with pytest.raises(FsthError, match="256 x 256 pixels: give a clip of"):
        open_limited(str(DRIVER))
    monkeypatch.setattr(inputs, "MAX_CLIP_PIXELS", 256 * 256)
    monkeypatch.setattr(inputs, "MAX_SECONDS", 2)
    assert open_limited(str(DRIVER)).frame_count == 50 and open_limited(str(DRIVER), 7).frame_count == 7


def test_unknown_failures_are_told_kindly(studio, files, monkeypatch, capsys):
    def broken(*_, **__):
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(Animator, "_draw", broken)
    with pytest.raises(gr.Error, match="not your fault"):
        list(Animator(studio).animate([(files[0], None)], files[1], [], []))
    assert "/secret/path" in capsys.readouterr().err


def test_live(studio, files):
    """Causal: before a face is seen the portrait rests; the first face is the reference; a reset takes a new one."""
    live, gallery = Live(studio), [(files[0], None)]
    rest, words = live.step(picture(NO_FACE), gallery, [], False)
    assert "no face is seen" in words
    first, _ = live.step(picture(0), gallery, [], True)
    moved, _ = live.step(picture(20), gallery, [], True)
    assert np.array_equal(first, rest) and not np.array_equal(moved, rest)
    live.reset_pose(None)
    again, _ = live.step(picture(20), gallery, [], False)
    assert np.array_equal(again, rest) and len(live.session(None).recording) == 2
    live.session(None).recording = [(0.0, first), (0.5, moved)]  # this pipeline is faster than a frame lasts
    saving = live.save()
    clip = next(saving)["value"]
    assert open_clip(clip).width == SIZE
    with pytest.raises(gr.Error, match="Nothing was recorded"):
        list(live.save())
    with pytest.raises(gr.Error, match="Add at least one portrait"):
        live.step(picture(0), [], [], False)


def test_live_recording_keeps_its_timing(tmp_path):
    frames = [(10 + moment, np.full((64, 64, 3), 40 * index, np.uint8)) for index, moment in enumerate((0, 0.4, 1.2))]
    assert write_recording(tmp_path / "live.mp4", frames) == 31
    levels = [round(float(frame.mean()) / 40) for frame in open_clip(tmp_path / "live.mp4")]
    assert [levels.count(level) for level in range(3)] == [10, 20, 1]


def test_cameras_are_kept_apart_and_forgotten(studio, files):
    live, gallery = Live(studio), [(files[0], None)]
    anna, bob = (SimpleNamespace(session_hash=name) for name in ("anna", "bob"))
    live.step(picture(0), gallery, [], True, anna)
    live.step(picture(20), gallery, [], False, bob)
    assert len(live.session(anna).recording) == 1 and live.session(bob).recording == []
    live.forget(anna)
    assert list(live.sessions) == ["bob"]
