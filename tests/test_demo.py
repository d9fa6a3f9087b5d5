"""The page's handlers and limits, in this process and over Gradio's own client."""

import itertools
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import httpx
import numpy as np
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from fsth_hub.demo import LAUNCH_OPTIONS, create_demo, inputs, page
from fsth_hub.demo.clip_portraits import take_frames
from fsth_hub.demo.inputs import Seen, choose_face, look_at_picture, open_limited, show_faces
from fsth_hub.demo.jobs import Countdown, JobStopped, Worker
from fsth_hub.demo.people import Kept
from fsth_hub.demo.shipped import OPENING, PAIRS, PORTRAITS, clip_of, portrait_path
from fsth_hub.demo.studio import BUNDLED, Studio
from fsth_hub.demo.tabs import Page, live_tab
from fsth_hub.demo.tabs.animate_tab import expected_time, motion_pictures
from fsth_hub.demo.tabs.animator import CLIP_NAME, FINE_TUNED, SIDE_BY_SIDE_NAME, Animator, Settings, describe
from fsth_hub.demo.tabs.inspect_tab import card
from fsth_hub.demo.tabs.live_tab import Live, from_jpeg, to_jpeg, write_recording
from fsth_hub.demo.uploads import FileSet
from fsth_hub.landmarks.pose import MEAN_FACE, Pose
from fsth_hub.landmarks.regions import REGIONS
from fsth_hub.landmarks.smoothing import DEFAULT_SMOOTHING
from fsth_hub.media.reading import open_clip
from fsth_hub.models.cropping import CropBox
from fsth_hub.models.errors import FsthError
from fsth_hub.models.landmark_layout import RIGHT_EYE, eye_opening
from fsth_hub.pipelines import parallel
from fsth_hub.pipelines.driving import DrivingMotion
from fsth_hub.pipelines.pipeline_output import FsthReport
from fsth_hub.provenance.credentials import Origin
from fsth_hub.provenance.inspection import OriginReport, inspect
from fsth_hub.provenance.watermark import add_watermark
from testing_utils.clips import make_clip
from testing_utils.demo import animate_arguments, left_over
from testing_utils.faces import face
from testing_utils.networks import SIZE
from testing_utils.paths import DRIVER, PORTRAIT, ROOT
from testing_utils.pipelines import NO_FACE, make_pipeline, picture, tuned_once


# What the pipeline says of a clip, as far as the page shows it.
REPORT = FsthReport(
    num_frames=1,
    fps=25,
    size=400,
    max_size=400,
    portrait_boxes=(CropBox(0, 0, 400),),
    driving_box=CropBox(0, 0, 400),
    frames_without_face=(),
    shots=((0, 2),),
    sound=False,
    watermark=True,
    credentials=True,
    engine="torch",
    seconds={},
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Gradio's cache, and where the handlers make their clips."""
    with pytest.MonkeyPatch.context() as patch:
        cache, workplace = tmp_path_factory.mktemp("cache"), tmp_path_factory.mktemp("work")
        patch.setenv("GRADIO_TEMP_DIR", str(cache))
        patch.setattr(tempfile, "tempdir", str(workplace))
        yield cache, workplace


@pytest.fixture(scope="module")
def url(bundled, folders):
    demo = create_demo(bundled)
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


def test_page_keeps_to_itself():
    """Every part has a name to be found by; nothing is reported, kept or offered beyond the page's own endpoints."""
    demo = create_demo(make_pipeline())
    parts = [part for part in demo.get_config_file()["components"] if part["type"] in ("gallery", "video", "image")]
    assert len(parts) == 17 and all(part["props"]["elem_id"] and part["props"]["label"] for part in parts)
    public = {event["api_name"] for event in demo.config["dependencies"] if event["api_visibility"] == "public"}
    person = {"fine_tune", "cancel_person", "try_person", "save_person", "person_card", "publish_person"}
    assert public == {"animate", "cancel", "express", "inspect"} | person | {"load_person", "load_person_file"}
    assert not demo.analytics_enabled and sum(demo.delete_cache) < 3600
    assert not LAUNCH_OPTIONS["run_history"] and not LAUNCH_OPTIONS["mcp_server"]


def test_a_new_tab_is_one_function(monkeypatch):
    given = []

    def new_tab(shared: Page) -> None:
        given.append(shared)
        page.gr.Markdown("New", elem_id="new")

    monkeypatch.setitem(page.TABS, "new", ("New", new_tab))
    demo = create_demo(make_pipeline())
    demo.studio.ready.result()
    assert [*given[0].tabs] == ["animate", "expression", "person", "live", "check", "new"] and given[
        0
    ].studio is demo.studio
    assert given[0].tabs["new"].children[0].elem_id == "new" and given[0].animation is not None


def test_heavy_events_share_one_place_and_jobs_wait_in_the_workers_line():
    """All jobs come to the line, which alone knows how long each takes."""
    fns = create_demo(make_pipeline()).fns.values()
    heavy, jobs = ("preview", "step"), ("animate", "make_clip", "fine_tune", "try_out", "load_file", "load_from_hub")
    named = [(getattr(fn.fn, "__name__", ""), fn) for fn in fns]
    heavy = [(fn.concurrency_id, fn.concurrency_limit) for name, fn in named if name in heavy]
    assert len(heavy) > 2 and set(heavy) == {("heavy", 1)}
    in_line = [(name, fn.concurrency_limit) for name, fn in named if name in jobs]
    assert {*in_line} == {(name, None) for name in jobs}


@pytest.mark.parametrize("prefix", ["", "live-"])
def test_strength_and_regions_are_for_relative_motion(prefix):
    """On the Animate tab and on Live."""
    demo = create_demo(make_pipeline())
    parts = {part.elem_id: part for part in demo.blocks.values()}
    controls = [parts[f"{prefix}motion-strength"], parts[f"{prefix}regions"]]
    (changed,) = (fn for fn in demo.fns.values() if (parts[f"{prefix}motion"]._id, "change") in fn.targets)
    assert changed.outputs == controls
    for motion in ("absolute", "relative"):
        assert [update["interactive"] for update in changed.fn(motion)] == [motion == "relative"] * 2


def test_animates_for_programs(client, folders):
    cache, workplace = folders
    result, beside, preview, progress, details, motion, notes = client.predict(**animate_arguments())
    for path, width in ((result, 256), (beside, 768)):
        clip = open_clip(path)
        assert len(list(clip)) == 3 and (clip.width, clip.height) == (width, 256) and clip.audio_from
        html, report = client.predict(handle_file(path), api_name="/inspect")
        assert "Generated here, unchanged" in html and report["credentials"] == "valid"
    assert preview is None and "3 frames at 25 per second" in details and notes == ""
    assert len(DrivingMotion.load(motion).landmarks) == 3
    assert "256 x 256 pixels (the portrait has no more)" in details
    assert list(cache.rglob("talking_head.mp4")) and left_over(workplace) == []


def test_programs_of_before_still_work(client):
    """They may give arguments by position: a new one comes last."""
    parameters = client.view_api(return_format="dict")["named_endpoints"]["/animate"]["parameters"]
    assert [parameter["parameter_name"] for parameter in parameters] == [
        "portraits", "driving", "motion", "max_frames", "model", "motion_strength", "smoothing", "paste_back",
        "watermark", "person", "size", "regions", "movement", "motion_file", "faces", "driving_faces",
    ]  # fmt: skip
    assert [parameter["parameter_default"] for parameter in parameters[-6:]][::5] == [512, "all"]


def test_says_what_is_wrong(client, folders, tmp_path):
    wall = tmp_path / "wall.png"
    Image.new("RGB", (200, 200), "grey").save(wall)
    with pytest.raises(AppError, match="No face was found in wall.png"):
        client.predict(**animate_arguments(portrait=wall))
    with pytest.raises(AppError, match="Add at least one portrait"):
        client.predict(**animate_arguments() | {"portraits": None})
    with pytest.raises(AppError, match="Add a driving clip"):
        client.predict(**animate_arguments() | {"driving": None})
    text = tmp_path / "notes.mp4"
    text.write_text("no video")
    with pytest.raises(AppError, match="notes.mp4 is not a video that can be read"):
        client.predict(**animate_arguments(driving=text))
    with pytest.raises(AppError, match="notes.mp4 is neither a picture nor a clip"):
        client.predict(handle_file(text), api_name="/inspect")
    with pytest.raises(AppError, match="greater than maximum value 2"):
        client.predict(**animate_arguments() | {"motion_strength": 7})
    with pytest.raises(AppError, match="not in the list of choices"):
        client.predict(**animate_arguments() | {"model": "mine"})
    with pytest.raises(AppError, match="not in the list of choices"):
        client.predict(**animate_arguments() | {"size": 300})
    with pytest.raises(AppError, match="Give one thing that drives"):
        client.predict(**animate_arguments() | {"movement": "nod"})
    with pytest.raises(AppError, match="Give at least one region"):
        client.predict(**animate_arguments() | {"regions": []})
    assert left_over(folders[1]) == []


def test_cancelling_leaves_nothing(client, folders):
    job = client.submit(**animate_arguments(max_frames=None))
    while not any(outputs[2] for outputs in job.outputs()):
        time.sleep(0.05)
        assert not job.done()
    assert left_over(folders[1])
    job.cancel()
    end = time.monotonic() + 10
    while left_over(folders[1]) and time.monotonic() < end:
        time.sleep(0.1)
    assert left_over(folders[1]) == []
    client.predict(**animate_arguments(max_frames=2))  # and the next one gets its turn


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


def test_stop_returns_when_the_work_has_ended():
    """The next Animate must not find the cancelled one at work; what has not begun never does."""
    worker, ended, begun = Worker(), threading.Event(), []

    def work(job):
        try:
            while True:
                job.report(None)
                time.sleep(0.01)
        finally:
            time.sleep(0.3)
            ended.set()

    streams = worker.stream("anna", work), worker.stream("anna", begun.append)
    next(streams[0])
    waiting = threading.Thread(target=lambda: pytest.raises(JobStopped, _drain, streams[1]))
    waiting.start()
    while len(worker._line) < 2:
        time.sleep(0.01)
    worker.stop("anna")
    assert ended.is_set()
    with pytest.raises(JobStopped):
        _drain(streams[0])
    waiting.join(5)
    assert not waiting.is_alive() and begun == []
    assert _drain(worker.stream("anna", lambda job: 7)) == ([], 7)


def test_the_line_says_how_long_the_others_take(monkeypatch):
    """Those before, as far as they are known, and what is left of the one that runs; by the clock, and as it moves."""
    now, steps = [0.0], queue.SimpleQueue()
    monkeypatch.setattr("fsth_hub.demo.jobs.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr("fsth_hub.demo.jobs.LINE_SECONDS", 0)
    worker = Worker()

    def work(job):
        job.report("at work")
        while (seconds := steps.get(timeout=60)) is not None:
            job.expect(seconds)
            job.report("at work")

    def in_line(name, expected):
        return worker.stream(name, work, expected, lambda bar: re.search('status">(.*)</p>', bar)[1])

    anna, bob, carl, dora = in_line("anna", 40), in_line("bob", 150), in_line("carl", None), in_line("dora", 5)
    assert next(anna) == "at work"
    assert next(bob) == "One before you: about 40 s"
    assert next(carl) == "Two before you: about 3 min"
    assert next(dora) == "Three before you"  # how long carl's takes nobody knows
    now[0] = 10.0
    assert next(bob) == "One before you: about 30 s"
    steps.put(90.0)
    assert next(anna) == "at work"
    assert next(carl) == "Two before you: about 4 min"
    now[0] = 200.0  # longer than it should
    assert next(bob) == "One before you"
    steps.put(None)
    assert _drain(anna) == ([], None)
    assert next(bob) == "at work"
    assert next(carl) == "One before you: about 2 min"
    carl.close()
    assert next(dora) == "One before you: about 2 min"
    for stream in (bob, dora):
        steps.put(None)
        assert _drain(stream)[1] is None


def test_the_line_has_an_end(monkeypatch):
    monkeypatch.setattr("fsth_hub.demo.jobs.MAX_WAITING", 1)
    worker, go_on = Worker(), threading.Event()
    streams = [worker.stream(None, lambda job: job.report(1) or go_on.wait(60), None, str) for _ in range(3)]
    assert next(streams[0]) == 1 and "One before you" in next(streams[1])
    with pytest.raises(FsthError, match="1 requests wait in line already"):
        next(streams[2])
    go_on.set()
    assert [_drain(stream)[1] for stream in streams[:2]] == [True, True]


def test_something_short_waits_for_the_job_that_runs_alone():
    worker, go_on, order = Worker(), threading.Event(), []
    anna = worker.stream("anna", lambda job: job.report("at work") or go_on.wait(60))
    bob = worker.stream("bob", lambda job: order.append("bob"), None, str)
    assert next(anna) == "at work" and "One before you" in next(bob)
    short = worker.submit(order.append, "picture")
    go_on.set()
    _drain(anna)
    _drain(bob)
    assert short.done() and order == ["picture", "bob"]


def test_uploads_are_deleted(folders, files, monkeypatch):
    """As the page says, only sooner."""
    monkeypatch.setattr(page, "DELETE_CACHE", (1, 1))
    demo = create_demo(make_pipeline())
    url = demo.launch(prevent_thread_lock=True, quiet=True, **LAUNCH_OPTIONS)[1]
    with open(files[0], "rb") as file:
        (upload,) = map(Path, httpx.post(f"{url}gradio_api/upload", files={"files": file}).json())
    assert upload.is_relative_to(folders[0]) and upload.name == "anna.png"
    _wait_until(lambda: not upload.exists())
    demo.close()


def test_cleaning_survives_files_that_come_meanwhile():
    demo = create_demo(make_pipeline())
    made = [block.temp_files for block in demo.blocks.values() if hasattr(block, "temp_files")]
    assert len(made) > 9 and list(map(id, demo.temp_file_sets)) == list(map(id, [demo.upload_file_set, *made]))
    for files in demo.temp_file_sets:
        files.update("ab")
        walk = iter(files)
        next(walk)
        files.add("c")
        next(walk)
        files -= set("ab")
        assert "c" in files and "a" not in files


def test_a_folder_named_as_an_upload_does_not_end_the_cleaning(tmp_path):
    files = FileSet([str(tmp_path), str(tmp_path / "a.png")])
    assert list(files) == [str(tmp_path / "a.png")]


def _wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


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


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"credentials": "valid", "signed_here": True}, ["✔", "Generated here", "by <b>", "this page", "5 May 2026"]),
        ({"credentials": "valid", "signer": "Eve"}, ["✔", "Signed, and unchanged", "&quot;Eve&quot;", "Nobody known"]),
        ({"credentials": "changed"}, ["✖", "Changed after it was signed", "It said: AI-generated by"]),
        ({"credentials": "invalid"}, ["✖", "damaged", "do not rely on"]),
        (
            {"credentials": "none", "comment": "AI"},
            ["!", "It says that it is AI-generated", "not signed", "can write"],
        ),
        ({"credentials": "unchecked", "comment": "AI"}, ["!", "A signature cannot be checked here"]),
        ({"credentials": "none", "ai_generated": False}, ["?", "Nothing is known", "does not tell"]),
        ({"credentials": "unchecked", "ai_generated": False}, ["?", "cannot be checked", "does not say"]),
    ],
)
def test_origin_in_plain_words(fields, words):
    """Nothing a stranger wrote is taken for HTML."""
    known = {"software": "<b>", "model": "m", "created": "2026-05-05T10:00:00Z"}
    html = card(OriginReport("<i>.mp4", **{"ai_generated": True} | known | fields))
    assert "<b>" not in html and "&lt;i&gt;.mp4" in html
    for part in words:
        assert part.replace("<b>", "&lt;b&gt;") in html


def test_time_left(monkeypatch):
    clock = iter([0.0, 10.0])
    # the module's own name: servers of other tests go by the real clock
    monkeypatch.setattr("fsth_hub.demo.jobs.time", SimpleNamespace(monotonic=lambda: next(clock)))
    countdown = Countdown("Drawing", 30)
    assert "frame 10 of 30, about 20 s left" in countdown(10)


def test_handler_needs_no_page(studio, files):
    """A plain generator: previews and progress first, the clips last."""
    portrait, clip = files
    outputs = list(Animator(studio).animate([(portrait, None)], clip, [], [], max_frames=4))
    assert [bool(output[0]) and bool(output[1]) for output in outputs] == [False] * (len(outputs) - 1) + [True]
    assert isinstance(outputs[-3].preview, np.ndarray) and "Drawing: frame 4" in outputs[-3].progress
    assert "side by side: frame 1" in outputs[-2].progress
    assert outputs[-2].preview is outputs[-3].preview  # it stays; an update would be a component more of the session's
    assert "relative motion" in outputs[-1].details and "4 frames" in outputs[-1].details


def test_options_reach_the_pipeline(studio, files, monkeypatch):
    """Each as it is named; absolute motion has no strength; what is shown beside the result says them all."""
    pipe = studio.ready.result()
    calls = []
    monkeypatch.setattr(type(pipe), "__call__", lambda self, *args, **options: calls.append(options) or stop())
    portrait, clip = files

    def stop():
        raise FsthError("enough")

    def options_of(*options):
        with pytest.raises(gr.Error, match="enough"):
            list(Animator(studio).animate([(portrait, None)], clip, [], [], *options))
        names = ("motion", "motion_strength", "smoothing", "paste_back", "watermark", "size", "regions")
        return [calls[-1].get(name) for name in names]

    assert options_of() == ["relative", 1, DEFAULT_SMOOTHING, False, True, None, REGIONS]
    chosen = ("relative", None, None, 0.5, 0.2, True, False, "portraits", 1024, ["eyes", "mouth"])
    assert options_of(*chosen) == ["relative", 0.5, 0.2, True, False, 1024, ("eyes", "mouth")]
    assert options_of("absolute", None, None, 0.5) == ["absolute", None, DEFAULT_SMOOTHING, False, True, None, None]
    report = replace(REPORT, frames_without_face=(1,))
    words = describe(Settings("relative", None, "tiny", 0.5, 0.2, True, False, 1024, ("eyes", "mouth")), report)
    for part in (
        "strength 0.5 of eyes, mouth alone",
        "smoothing 0.2 s",
        "pasted back",
        "model tiny",
        "the head 400 x 400 pixels (the portrait has no more)",
        "without a visible mark, signed",
        "In 1 frames",
    ):
        assert part in words
    assert "strength" not in describe(Settings("absolute", motion_strength=0.5), report)
    for size, fields in ((256, {"size": 256}), (512, {"size": 256, "max_size": 600}), (512, {"size": 512})):
        words = describe(Settings(size=size), replace(REPORT, **{"max_size": 600} | fields))
        assert f", {fields['size']} x {fields['size']} pixels, relative motion" in words


def test_size_is_drawn_as_chosen(studio, tmp_path, files):
    """All of a head of 660 pixels or a part of it; side by side no higher than a screen takes."""
    photograph, pipe = tmp_path / "large.png", studio.ready.result()
    Image.fromarray(picture(0, 800, 800)).save(photograph)
    large, points = Pose(np.eye(3), 1.35, np.array([400.0, 400.0])).project(MEAN_FACE), pipe.detector.points
    pipe.detector.points = lambda image: points(image) if len(image) == SIZE else large.astype(np.float32)
    head = round(inputs.crop_box(large).side) // 2 * 2
    assert 600 < head < 720
    for size, expected in ((256, 256), (512, 512), (1024, head)):
        animation = Animator(studio).animate([(str(photograph), None)], files[1], [], [], max_frames=2, size=size)
        for output in animation:
            if output[0]:
                result, beside = open_clip(output[0]), open_clip(output[1])
                assert (result.width, result.height) == (expected, expected)
                assert (beside.width, beside.height) == (3 * expected, expected)
        more = " (the portrait has no more)" if size > head else ""
        assert f"{expected} x {expected} pixels{more}, relative motion" in output.details


def test_model_of_one_size_takes_the_default(tmp_path, files):
    studio = Studio((make_pipeline(source_skips=False),))
    animate = Animator(studio).animate
    *_, (result, _, _, _, details, *_) = animate([(files[0], None)], files[1], [], [], max_frames=2)
    assert result and f"{SIZE} x {SIZE} pixels" in details
    with pytest.raises(gr.Error, match="generates frames of 64 x 64 pixels alone"):
        list(animate([(files[0], None)], files[1], [], [], max_frames=2, size=1024))


def test_pasted_back_lies_beside_the_whole_photograph(studio, tmp_path, files):
    """The first picture side by side is what the result can be compared with: head with head, whole with whole."""
    wide = tmp_path / "wide.png"
    picture_of_face = picture(0)
    Image.fromarray(np.hstack([picture_of_face, np.full_like(picture_of_face, 200)])).save(wide)
    height, width = picture_of_face.shape[:2]
    animation = Animator(studio).animate([(str(wide), None)], files[1], [], [], max_frames=2, paste_back=True)
    for output in animation:
        if output[0]:
            result, beside = open_clip(output[0]), open_clip(output[1])
            assert (result.width, result.height) == (2 * width, height)
            assert (beside.width, beside.height) == (5 * height, height)


def test_example_is_drawn_once(studio, monkeypatch):
    """The second visitor who takes a pair gets what was drawn for the first; own files are never kept."""
    calls, painting = [], str(portrait_path("la_velata"))

    def generate(self, portraits, driver, faces, settings, own, folder, job):
        calls.append(settings)
        for name in (CLIP_NAME, SIDE_BY_SIDE_NAME):
            (folder / name).write_text(f"{name} drawn as {settings}")
        return replace(REPORT, seconds={"embed": 1, "landmarks": 0, "frames": 2}), "Beware."

    monkeypatch.setattr(Animator, "_generate", generate)

    def visit(*portraits, **options):
        portraits = [(str(portrait), None) for portrait in portraits or [painting]]
        for shown in Animator(studio).animate(portraits, None, [], [], movement="talk", **options):
            texts = [Path(path).read_text() for path in shown[:2] if path]
        return len(calls), texts, shown.details

    assert visit() == visit(model=studio.model_names[0]) and len(calls) == 1
    # other settings are drawn as they are, every time; own files too, and several portraits
    for count in (2, 3):
        drawn, texts, words = visit(watermark=False)
        assert (
            drawn == count and "watermark=False" in texts[0] and SIDE_BY_SIDE_NAME in texts[1] and "without" in words
        )
    assert "watermark=True" in visit()[1][0] and len(calls) == 3
    for portraits in ([PORTRAIT], [PORTRAIT], [painting, painting], [painting, painting]):
        visit(*portraits)
    assert len(calls) == 7


def test_shipped_pairs_need_no_work(monkeypatch):
    """What lies in the package is what these inputs give, marked and signed; nothing is generated for them."""
    pipe = make_pipeline()
    pipe.model_name = BUNDLED
    studio = Studio((pipe,))
    monkeypatch.setattr(Animator, "_generate", None)
    animator = Animator(studio)
    animator.take_shipped()
    assert {portrait for portrait, _ in PAIRS} == {portrait.name for portrait in PORTRAITS}
    for portrait, motion in PAIRS:
        portraits = [(studio.portrait(portrait), None)]
        (shown,) = animator.animate(portraits, None, [], [], movement=motion)
        assert Path(shown.result).read_bytes() == clip_of(portrait, motion).read_bytes()
        clip, driver = open_clip(shown.result), DrivingMotion.load(shown.motion)
        assert clip.frame_count == len(driver.landmarks) and f"{clip.frame_count} frames" in shown.details
        report = inspect(shown.result)
        assert report.ai_generated and report.credentials == "valid" and report.model == BUNDLED
    opening = inspect(OPENING)
    assert opening.ai_generated and opening.credentials == "valid" and OPENING.stat().st_size < 300_000


def test_shipped_pictures_can_be_taken_wherever_the_package_is(studio):
    """Gradio gives files of the system's folder for temporary ones alone, and of where the app was started."""
    pictures = motion_pictures(studio, "nod")
    paths = [studio.portrait(portrait.name) for portrait in PORTRAITS] + [path for path, _ in pictures]
    assert all(Path(path).is_file() and Path(path).is_relative_to(tempfile.gettempdir()) for path in paths)
    assert [title for _, title in pictures if "✓" in title] == ["✓ Nod"] and len(pictures) == 8


def test_expected_time(studio, tmp_path, monkeypatch):
    """Of what was measured on this machine; nothing is guessed."""
    studio.ready.result()
    assert studio.pace.generating > 0
    studio.pace.starting, studio.pace.generating, studio.pace.following = 2, 0.5, 0.1

    def expect(clip=None, movement=None, max_frames=None):
        return expected_time(studio, clip, movement, None, max_frames)

    assert expect() == ("", False)
    # a motion is not followed, and is too short to be cut; a clip of four seconds too
    assert expect(movement="nod") == ("70 frames: about 37 s on this machine.", False)
    assert expect(str(DRIVER)) == ("100 frames: about 62 s on this machine.", False)
    make_clip(tmp_path / "long.mp4", [picture()] * 130)
    assert expect(str(tmp_path / "long.mp4")) == ("130 frames: about 80 s on this machine.", True)
    assert expect(str(DRIVER), max_frames=10) == ("10 frames: about 8 s on this machine.", False)
    expected = []  # by those who wait, too

    def stream(session, work, seconds, waiting):
        expected.append(seconds)
        yield waiting("<p>Two before you</p>")
        raise FsthError("enough")

    monkeypatch.setattr(studio.worker, "stream", stream)
    animation = Animator(studio).animate([(str(PORTRAIT), None)], str(DRIVER), [], [], max_frames=10)
    assert "Getting ready" in next(animation).progress and "Two before you" in next(animation).progress
    assert expected == [pytest.approx(8)]
    report = replace(REPORT, num_frames=10, seconds={"embed": 1, "landmarks": 0, "frames": 10})
    studio.pace.learn(report)
    assert expect(movement="nod")[0] == "70 frames: about 71 s on this machine." and studio.pace.following == 0.1
    studio.pace.generating = None
    assert expect(movement="nod") == ("", False)


def test_a_clip_among_the_portraits_becomes_frames(studio, files, tmp_path, monkeypatch):
    """In its place, each with what it is there for; the other portraits stay, and there are never too many."""
    portrait, clip = files
    asked, pipe = [], studio.ready.result()
    pick = pipe.pick_portraits
    monkeypatch.setattr(pipe, "pick_portraits", lambda clip, shots: asked.append(shots) or pick(clip, shots))
    assert list(take_frames(studio, [(portrait, None)])) == [(gr.skip(), gr.skip())]
    assert list(take_frames(studio, None)) == [(gr.skip(), gr.skip())]
    for gallery, words in take_frames(studio, [(portrait, "mine"), (clip, None), (portrait, None)]):
        if isinstance(gallery, list):
            frames = gallery[1:-1]
            assert gallery[0] == (portrait, "mine") and gallery[-1] == (portrait, None)
            assert 1 <= len(frames) <= 8 and all(" s: " in caption for _, caption in frames)
            assert all(Image.open(path).size == (SIZE, SIZE) for path, _ in frames)
            assert words["visible"]  # that fewer frames are clear, or that the mouth is never open
    list(take_frames(studio, [(portrait, None)] * 12 + [(clip, None)]))
    assert asked == [8, 4]
    make_clip(tmp_path / "wall.mp4", [np.full((SIZE, SIZE, 3), 255, np.uint8)] * 5)
    *_, (gallery, words) = take_frames(studio, [(str(tmp_path / "wall.mp4"), None)])
    assert gallery is None and "No face was found in wall.mp4" in words["value"]


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

    monkeypatch.setattr(Animator, "_generate", broken)
    with pytest.raises(gr.Error, match="not your fault"):
        list(Animator(studio).animate([(files[0], None)], files[1], [], []))
    assert "/secret/path" in capsys.readouterr().err


def test_live(studio, files, monkeypatch):
    """Causal: before a face is seen the portrait rests; the first face is the reference; a reset takes a new one."""
    live, gallery, pipe = Live(studio), [(files[0], None)], studio.ready.result()
    drawn, generate_frame = [], pipe.generate_frame
    monkeypatch.setattr(pipe, "generate_frame", lambda *args: drawn.append(generate_frame(*args)) or drawn[-1])
    rest, words = live.step(picture(NO_FACE), gallery, [], False)
    assert "no face is seen" in words
    first, words = live.step(picture(0), gallery, [], True)
    moved, _ = live.step(picture(20), gallery, [], True)
    assert np.array_equal(first, rest) and not np.array_equal(moved, rest) and "no face" not in words
    assert np.array_equal(moved, add_watermark(drawn[-1])) and not np.array_equal(moved, drawn[-1])
    live.reset_pose(None)
    again, words = live.step(picture(20), gallery, [], False)
    assert np.array_equal(again, rest)
    assert re.search(r"\d frames per second, \d+ ms from the camera's picture, recorded", words)
    kept = live.session(None).recording[1][1]  # as JPEG: plain pixels would fill the memory
    assert isinstance(kept, bytes) and np.abs(from_jpeg(kept).astype(int) - moved).mean() < 3
    with pytest.raises(gr.Error, match="Add at least one portrait"):
        live.step(picture(0), [], [], False)


def test_live_regions_and_motion_can_change_while_it_runs(studio, files, monkeypatch):
    """What is not ticked stays as in the portrait; absolute takes the camera's landmarks; the reference stays."""
    live, gallery, pipe = Live(studio), [(files[0], None)], studio.ready.result()
    drawn, generate_frame = [], pipe.generate_frame
    monkeypatch.setattr(pipe, "generate_frame", lambda *args: drawn.append(args[2]) or generate_frame(*args))

    def step(shift, *how):
        live.step(picture(shift), gallery, [], False, *how)
        return drawn[-1]

    rest = step(0)
    # the stub's whole head moves sideways: no change of an expression
    assert np.allclose(step(40, "relative", 1, ["mouth", "eyes"]), rest, atol=0.05)
    head = step(40, "relative", 1, ["head"])
    assert head[:, 0].mean() - rest[:, 0].mean() > 1
    less = step(40, "relative", 0.1, list(REGIONS))
    assert rest[:, 0].mean() + 0.1 < less[:, 0].mean() < head[:, 0].mean() - 0.5
    assert np.allclose(step(40, "relative", 0, list(REGIONS)), rest, atol=0.05)
    session = live.session(None)
    camera = inputs.to_crop(session.face.points, session.box, pipe.size)
    assert np.allclose(step(40, "absolute", 1, list(REGIONS)), camera, atol=1.5)  # smoothed
    held = step(NO_FACE, "relative", 1, ["head"])
    assert np.array_equal(held, drawn[-2])  # while no face is seen, whatever is chosen
    assert np.allclose(step(40, "relative", 1, []), rest, atol=0.05)
    assert "nothing moves" in live.step(picture(40), gallery, [], False, "relative", 1, [])[1]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_live_moves_who_was_fine_tuned(studio, files, method, monkeypatch):
    """By their own generator, without portraits; one visitor's person is nobody else's."""
    live, pipe = Live(studio), studio.ready.result()
    anna, bob = (SimpleNamespace(session_hash=name) for name in ("anna", "bob"))
    person = tuned_once(pipe, method)
    person.name = "anna"
    studio.people.keep(anna, Kept(person, None))
    drawn, generate_frame = [], pipe.generate_frame
    monkeypatch.setattr(pipe, "generate_frame", lambda *args: drawn.append(args) or generate_frame(*args))

    def step(shift, who, request, portraits=None):
        how = "relative", 1.0, list(REGIONS), who
        return live.step(picture(shift), portraits, [], True, *how, request=request)[0]

    step(0, FINE_TUNED, anna), step(20, FINE_TUNED, anna)
    assert all(args[0] is pipe.generator_for(person) and args[1] is person for args in drawn)
    assert live.session(anna).origin.identity == "anna" and len(live.session(anna).recording) == 2
    step(0, "portraits", anna, [(files[0], None)])
    assert drawn[-1][0] is pipe.generator_for() and len(live.session(anna).recording) == 1
    with pytest.raises(gr.Error, match="no fine-tuned person of yours"):
        step(0, FINE_TUNED, bob)


def test_live_leaves_threads_to_the_browser(studio, files, monkeypatch):
    """A frame by itself has as many as one of two; whatever else runs has all of them again."""
    live, pipe, counts = Live(studio), studio.ready.result(), []
    monkeypatch.setattr(parallel, "num_workers", lambda *_: 2)
    generate_frame = pipe.generate_frame
    monkeypatch.setattr(
        pipe, "generate_frame", lambda *args: counts.append(torch.get_num_threads()) or generate_frame(*args)
    )
    before = torch.get_num_threads()
    try:
        studio.worker.submit(torch.set_num_threads, 4).result()
        live.step(picture(0), [(files[0], None)], [], False)
        assert counts == [2] and studio.worker.submit(torch.get_num_threads).result() == 4
    finally:
        torch.set_num_threads(before)


def test_live_frames_are_as_large_as_the_portrait_has(studio, files, tmp_path):
    """Up to 512 pixels, which cost little; a recording has the same."""
    photograph, pipe = tmp_path / "large.png", studio.ready.result()
    Image.fromarray(picture(0, 160, 160)).save(photograph)
    points = pipe.detector.points
    pipe.detector.points = lambda image: points(image) * np.float32(len(image) / SIZE)
    live, gallery = Live(studio), [(str(photograph), None)]
    side = round(inputs.crop_box(pipe.detector.points(picture(0, 160, 160))).side) // 2 * 2
    assert side > SIZE
    for shift in (0, 20):
        assert live.step(picture(shift), gallery, [], True)[0].shape == (side, side, 3)
    saving = live.save()  # which deletes the file when it is closed
    assert open_clip(next(saving)["value"], allow_still=True).width == side


def test_live_frames_can_be_saved_once(studio, files):
    live, gallery = Live(studio), [(files[0], None)]
    for shift in (0, 20):
        live.step(picture(shift), gallery, [], True)
    recording = live.session(None).recording
    assert len(recording) == 2
    live.session(None).recording = [(0.0, recording[0][1]), (0.5, recording[1][1])]  # drawn faster than a frame lasts
    saving = live.save()  # which deletes the file when it is closed
    clip = next(saving)["value"]
    assert open_clip(clip).width == SIZE
    report = inspect(clip)
    assert report.credentials == "valid" and report.ai_generated and report.model == studio.model_names[0]
    assert report.ingredients == ("portrait", "driving clip")
    with pytest.raises(gr.Error, match="Nothing was recorded"):
        list(live.save())


def test_live_is_smoothed(studio, files, monkeypatch):
    """A face that trembles, and then one that has gone and comes back elsewhere."""
    live, gallery, pipe = Live(studio), [(files[0], None)], studio.ready.result()
    drawn, generate_frame = [], pipe.generate_frame
    monkeypatch.setattr(pipe, "generate_frame", lambda *args: drawn.append(args[2]) or generate_frame(*args))
    clock = SimpleNamespace(monotonic=itertools.count(step=0.007).__next__)  # asked three times a frame
    monkeypatch.setattr(live_tab, "time", clock)
    for shift in (0, *(0, 1) * 5, NO_FACE, 20):
        live.step(picture(shift), gallery, [], False)
    trembling = np.ptp([points[:, 0].mean() for points in drawn[3:11]])
    back = drawn[-1][:, 0].mean() - drawn[0][:, 0].mean()
    assert 0 < trembling < 0.7 * back / 20
    live.reset_pose(None)
    live.step(picture(40), gallery, [], False)
    assert np.allclose(drawn[-1], drawn[0], atol=0.01)


def test_blinks_of_a_camera_are_led_to_their_end_once_one_was_seen(studio, files, monkeypatch):
    """In relative motion; absolute takes what is seen."""
    live, gallery, pipe = Live(studio), [(files[0], None)], studio.ready.result()
    live.step(picture(0), gallery, [], False)
    live.reset_pose(None)
    asked, generate_frame = [], pipe.generate_frame
    monkeypatch.setattr(pipe, "generate_frame", lambda *args: asked.append(args[2]) or generate_frame(*args))
    monkeypatch.setattr(pipe.detector, "points", lambda image: face(eyes=image[0, 0, 0] / 10, scale=0.1) - [98, 106])
    clock = SimpleNamespace(monotonic=itertools.count(step=0.0133).__next__)  # asked three times a frame
    monkeypatch.setattr(live_tab, "time", clock)

    def blink(motion):
        for eyes in (*[150] * 40, 110, *[60] * 4, 110, 150):
            live.step(picture(eyes), gallery, [], False, motion)
        return eye_opening(asked[-3], RIGHT_EYE) / eye_opening(asked[-10], RIGHT_EYE)

    first, second, absolute = blink("relative"), blink("relative"), blink("absolute")
    assert first > 0.3 and second < 0.1 and absolute > 0.3


def test_live_recording_keeps_its_timing(tmp_path):
    levels = [to_jpeg(np.full((64, 64, 3), 40 * index, np.uint8)) for index in range(3)]
    frames = list(zip((10, 10.4, 11.2), levels, strict=True))
    write_recording(tmp_path / "live.mp4", frames, Origin("tiny"))
    levels = [round(float(frame.mean()) / 40) for frame in open_clip(tmp_path / "live.mp4")]
    assert [levels.count(level) for level in range(3)] == [10, 20, 1]


def test_cameras_are_kept_apart_and_forgotten(studio, files):
    live, gallery = Live(studio), [(files[0], None)]
    anna, bob = (SimpleNamespace(session_hash=name) for name in ("anna", "bob"))
    live.step(picture(0), gallery, [], True, request=anna)
    live.step(picture(20), gallery, [], False, request=bob)
    assert len(live.session(anna).recording) == 1 and live.session(bob).recording == []
    live.forget(anna)
    assert list(live.sessions) == ["bob"]


def test_the_page_is_imported_without_pytorch():
    code = "import sys, fsth_hub.demo; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
