import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fsth_hub import cli
from fsth_hub.cropping import crop_box
from fsth_hub.landmarks import get_detector
from fsth_hub.pipeline_fsth import FsthPipeline
from fsth_hub.video import open_clip, write_clip


EXAMPLES = Path(cli.__file__).parent / "examples"
PORTRAIT, DRIVER = EXAMPLES / "astronaut.jpg", EXAMPLES / "driver.mp4"


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def assert_one_line_error(result, *words):
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("fsth: error: ") and result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


def read(path):
    return np.stack(list(open_clip(path)))  # N x H x W x 3


@pytest.fixture
def no_loading(monkeypatch):
    """The model must not be loaded: an error that can be known before has to come before."""

    def load(*_):
        raise AssertionError("The model was loaded.")

    monkeypatch.setattr(cli, "load_pipeline", load)


def test_animate_writes_clip_and_report(tmp_path):
    output, report_path = tmp_path / "out.mp4", tmp_path / "report.json"
    result = run(
        "animate", PORTRAIT, PORTRAIT, "--driving", DRIVER, "--output", output, "--frames", 3, "--json", report_path,
        "--dtype", "float32", "--device", "cpu", "--seed", 7,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{output}: 3 frames at 25 fps, with sound, ") and result.stdout.count("\n") == 1
    with av.open(str(output)) as container:
        assert container.streams.audio
        assert "AI-generated" in container.metadata["comment"]
    assert read(output).shape == (3, 256, 256, 3)

    report = json.loads(report_path.read_text())
    assert (report["frames"], report["fps"], report["sound"], report["frames_without_face"]) == (3, 25, True, [])
    assert len(report["portrait_boxes"]) == 2 and set(report["seconds"]) == {"embed", "landmarks", "frames"}
    assert (report["device"], report["dtype"], report["seed"]) == ("cpu", "float32", 7)
    assert (report["model"], report["motion"], report["output"]) == ("bundled", "relative", str(output))
    assert "torch" in report["versions"]


def test_own_first_frame_drives_to_the_same_clip(tmp_path):
    """A head crop driven absolutely by the clip that it begins must come out like the clip, and report to stdout."""
    clip = read(DRIVER)[:3]
    Image.fromarray(clip[0]).save(tmp_path / "first.png")
    result = run(
        "animate", tmp_path / "first.png", "--driving", DRIVER, "--output", tmp_path / "out.mp4",
        "--motion", "absolute", "--no-crop", "--frames", 3, "--json", "-",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["driving_box"] == [0, 0, 256] and report["portrait_boxes"] == [[0, 0, 256]]
    assert "3 frames" in result.stderr
    made = read(tmp_path / "out.mp4")
    assert made.shape == clip.shape
    difference = np.abs(made.astype(float) - clip).mean()
    assert difference < 10 < np.abs(made[:, ::-1].astype(float) - clip).mean()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"portrait": "missing.jpg"}, ["no file", "missing.jpg"]),
        ({"--driving": "missing.mp4"}, ["no file", "missing.mp4"]),
        ({"--output": "out.avi"}, ["out.avi", ".mp4"]),
        ({"--output": "nowhere/out.mp4"}, ["nowhere", "no folder"]),
        ({"--output": "folder.mp4"}, ["folder.mp4", "is a folder"]),
        ({"--output": "driver.mp4"}, ["driver.mp4", "another name"]),
        ({"--json": "report.txt"}, ["report.txt", ".json"]),
        ({"--detector": "crystal-ball"}, ["crystal-ball", "mediapipe"]),
    ],
)
def test_what_cannot_work_fails_before_the_model_is_loaded(tmp_path, monkeypatch, no_loading, changed, words):
    monkeypatch.chdir(tmp_path)
    Path("driver.mp4").write_bytes(DRIVER.read_bytes())
    Path("folder.mp4").mkdir()
    before = sorted(tmp_path.iterdir())
    arguments = {"portrait": PORTRAIT, "--driving": "driver.mp4", "--output": "out.mp4"} | changed
    portrait = arguments.pop("portrait")
    result = run("animate", portrait, *[word for pair in arguments.items() for word in pair])
    assert_one_line_error(result, *words)
    assert sorted(tmp_path.iterdir()) == before


def test_folder_that_cannot_be_written(no_loading):
    folder = Path("/proc")  # where not even root may write
    if not folder.is_dir():
        pytest.skip("needs /proc")
    result = run("animate", PORTRAIT, "--driving", DRIVER, "--output", folder / "out.mp4")
    assert_one_line_error(result, "/proc", "cannot be written")


def test_unknown_device():
    with pytest.raises(cli.FsthError, match="abacus"):
        cli.load_pipeline(None, "abacus", "auto")


def test_no_face(tmp_path):
    Image.new("RGB", (300, 300), "grey").save(tmp_path / "wall.png")
    result = run("animate", tmp_path / "wall.png", "--driving", DRIVER, "--output", tmp_path / "out.mp4")
    assert_one_line_error(result, "No face", "wall.png")
    result = run("landmarks", tmp_path / "wall.png", "--output", tmp_path / "out.png")
    assert_one_line_error(result, "No face", "wall.png")
    write_clip(tmp_path / "wall.mp4", np.full((2, 64, 64, 3), 90, np.uint8), 25)
    result = run("landmarks", tmp_path / "wall.mp4", "--output", tmp_path / "out.mp4")
    assert_one_line_error(result, "No face", "wall.mp4")
    assert {path.name for path in tmp_path.iterdir()} == {"wall.png", "wall.mp4"}


def test_interrupt_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(FsthPipeline, "draw_frame", interrupted)
    result = run("animate", PORTRAIT, "--driving", DRIVER, "--output", tmp_path / "out.mp4", "--frames", 2)
    assert result.exit_code == 130
    assert list(tmp_path.iterdir()) == []


def test_usage_error(no_loading):
    assert run("animate", PORTRAIT, "--driving", DRIVER, "--output", "out.mp4", "--motion", "wild").exit_code == 2
    assert run("animate", PORTRAIT).exit_code == 2


def test_landmarks_over_picture(tmp_path):
    result = run("landmarks", PORTRAIT, "--output", tmp_path / "drawn.png")
    assert result.exit_code == 0, result.output
    before, after = np.asarray(Image.open(PORTRAIT)), np.asarray(Image.open(tmp_path / "drawn.png"))
    assert after.shape == before.shape
    points = get_detector().detect(before)[0].points
    box = crop_box(points)
    changed = np.argwhere((before != after).any(axis=2))[:, ::-1]  # N x 2, x then y
    assert (changed >= np.floor([box.left, box.top])).all()
    assert (changed <= np.ceil([box.left + box.side, box.top + box.side])).all()
    # The drawing lies on the points: each has a changed pixel beside it.
    distances = np.linalg.norm(points[:68, None] - (changed + 0.5), axis=2).min(axis=1)
    assert distances.max() < 1.5


def test_landmarks_over_clip(tmp_path):
    clip = read(DRIVER)[:3]
    write_clip(tmp_path / "short.mp4", clip, 25)
    result = run("landmarks", tmp_path / "short.mp4", "--output", tmp_path / "drawn.mp4")
    assert result.exit_code == 0, result.output
    drawn = read(tmp_path / "drawn.mp4")
    assert drawn.shape == clip.shape
    changed = np.abs(drawn.astype(int) - clip).max(axis=3) > 60
    assert (0.005 < changed.mean(axis=(1, 2))).all() and (changed.mean(axis=(1, 2)) < 0.1).all()


def test_landmarks_face_that_is_not_there(tmp_path):
    result = run("landmarks", PORTRAIT, "--output", tmp_path / "drawn.png", "--face", 3)
    assert_one_line_error(result, "Face 3", "astronaut.jpg")


def test_info():
    result = run("info", "--device", "cpu", "--dtype", "float32")
    assert result.exit_code == 0, result.output
    rows = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert rows["device"] == "cpu" and rows["dtype"] == "float32"
    assert 1 < float(rows["generator"].split()[0]) < 40
    assert float(rows["checkpoint"].split()[0]) < 45


def test_as_a_command(tmp_path):
    """Help comes without PyTorch; an error is one line, and nothing that libraries say."""
    code = "import sys; from fsth_hub.cli import app; app(['--help'], standalone_mode=False); print(list(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "animate" in result.stdout and "'torch'" not in result.stdout and "'numpy'" not in result.stdout

    command = Path(sys.executable).with_name("fsth")
    wall = tmp_path / "wall.png"
    Image.new("RGB", (64, 64)).save(wall)
    result = subprocess.run(
        [command, "landmarks", wall, "--output", tmp_path / "out.png"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("fsth: error: No face") and result.stderr.count("\n") == 1
