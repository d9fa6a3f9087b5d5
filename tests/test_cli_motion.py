"""`fsth motion`, `fsth express`, and motions in `fsth animate`."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsth_hub.cli import loading as cli_loading
from fsth_hub.landmarks.expression import CONTROLS
from fsth_hub.media.motion_files import SHIPPED
from fsth_hub.media.reading import open_clip
from fsth_hub.pipelines.driving import DrivingMotion
from fsth_hub.provenance.inspection import inspect
from testing_utils.command_line import assert_one_line_error, read, run
from testing_utils.networks import SIZE
from testing_utils.paths import DRIVER, PORTRAIT
from testing_utils.pipelines import make_pipeline


@pytest.fixture
def no_loading(monkeypatch):
    monkeypatch.setattr(cli_loading, "load_pipeline", lambda *_: pytest.fail("The model was loaded."))


@pytest.fixture
def model(monkeypatch):
    """Tiny networks in place of the bundled ones, with the real detector."""
    monkeypatch.setattr(cli_loading, "load_pipeline", lambda *_: make_pipeline())


def test_shipped_motions_are_listed(no_loading):
    result = run("motion", "list")
    assert result.exit_code == 0 and len(result.stdout.splitlines()) == 8
    assert all(f"motion:{name} " in result.stdout for name in SHIPPED)


def test_a_clip_is_saved_shown_and_drives(tmp_path, no_loading):
    output = tmp_path / "hello.motion.safetensors"
    result = run("motion", "save", DRIVER, "--output", output, "--name", "Hello", "--loop", "--sound")
    assert_one_line_error(result, "no sound to save")  # what is repeated has none
    result = run("motion", "save", DRIVER, "--output", output, "--name", "Hello", "--loop")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{output}: ") and "can be repeated, nobody's proportions" in result.stdout
    motion = DrivingMotion.load(output)
    assert (motion.name, motion.fps, motion.loop, motion.face, motion.origin) == ("Hello", 25, True, "resting", "clip")
    assert 50 <= len(motion.landmarks) <= 198

    result = run("motion", "show", output, "--output", tmp_path / "drawn.mp4")
    assert result.exit_code == 0 and result.stdout.startswith("Hello: ") and "made of clip" in result.stdout
    frames = read(tmp_path / "drawn.mp4")
    assert frames.shape == (len(motion.landmarks), 256, 256, 3) and 1 < frames.mean() < 30


def test_keyframes_are_saved_as_a_motion(tmp_path, no_loading):
    source = tmp_path / "x.expressions.json"
    content = {
        "format": "fsth_hub.expressions",
        "version": 1,
        "loop": True,
        "keyframes": [{"t": 0}, {"t": 1, "yaw": 9}],
    }
    source.write_text(json.dumps(content))
    result = run("motion", "save", source, "--output", tmp_path / "x.motion.safetensors")
    assert result.exit_code == 0 and "2.0 s at 25 fps, can be repeated" in result.stdout


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["save", "missing.mp4", "--output", "a.motion.safetensors"], ["no file missing.mp4"]),
        (["save", DRIVER, "--output", "a.safetensors"], ["must end in .motion.safetensors"]),
        (["save", DRIVER, "--output", "a.mp4"], ["must end in .safetensors"]),
        (["save", DRIVER, "--output", "no/a.motion.safetensors"], ["no folder"]),
        (["show", "motion:wink"], ["There is no motion 'wink'; there are: talk"]),
        (["show", "motion:nod", "--output", "a.png"], [".mp4 or .gif"]),
        (["show", "a.pkl"], ["a.pkl is a pickle"]),
    ],
    ids=str,
)
def test_motion_commands_refuse_in_one_line(tmp_path, monkeypatch, no_loading, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert_one_line_error(run("motion", *arguments), *words)
    assert list(tmp_path.iterdir()) == []


def test_a_motion_is_animated_to_any_length(tmp_path, model):
    output, beside = tmp_path / "a.mp4", tmp_path / "beside.mp4"
    voice = ["--sound", DRIVER, "--side-by-side", beside, "--regions", "head, mouth", "--json", "-"]
    result = run("animate", PORTRAIT, "--driving", "motion:blink", "--seconds", 3.2, "--output", output, *voice)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["num_frames"], report["sound"], report["driving"]) == (80, True, "motion:blink")
    assert report["regions"] == ["head", "mouth"]
    assert open_clip(output).audio_from and open_clip(beside).audio_from
    wide = read(beside)
    height = wide.shape[1]
    drawing = wide[:, :, height : 2 * height]
    assert len(wide) == 80 and 1 < drawing.mean() < 40 and np.abs(wide[20].astype(int) - wide[0]).max() > 50


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"--driving": "motion:wink"}, ["There is no motion 'wink'"]),
        ({"--driving": "a.pkl"}, ["a.pkl is a pickle, which may run code"]),
        ({"--driving": "missing.csv"}, ["There is no file missing.csv"]),
        ({"--driving": str(DRIVER), "--seconds": 6}, ["--seconds is for motions", "--frames"]),
        ({"--seconds": -1}, ["seconds must be a number"]),
        ({"--regions": "eyes,teeth"}, ["There is no region 'teeth'"]),
        ({"--regions": ""}, ["There is no region ''"]),
        ({"--sound": "missing.wav"}, ["no file missing.wav"]),
    ],
    ids=str,
)
def test_animate_refuses_before_the_model_is_loaded(tmp_path, monkeypatch, no_loading, changed, words):
    monkeypatch.chdir(tmp_path)
    arguments = {"--driving": "motion:nod", "--output": "out.mp4"} | changed
    result = run("animate", PORTRAIT, *[word for pair in arguments.items() for word in pair])
    assert_one_line_error(result, *words)
    assert list(tmp_path.iterdir()) == []


def test_express_writes_a_signed_picture(tmp_path, model):
    path = tmp_path / "a.png"
    result = run("express", PORTRAIT, "--set", "smile=0.6", "--set", "yaw = -8", "--output", path, "--paste-back")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{path}: 512 x 512 pixels\n" and Image.open(path).size == Image.open(PORTRAIT).size
    assert (inspect(path).credentials, inspect(path).ingredients) == ("valid", ("portrait",))
    again = tmp_path / "b.png"
    result = run("express", PORTRAIT, "--set", "smile=0", "--output", again, "--size", SIZE, "--no-watermark")
    assert result.exit_code == 0 and Image.open(again).size == (SIZE, SIZE)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([PORTRAIT, "--output", "a.png"], ["Give at least one --set", *CONTROLS]),
        ([PORTRAIT, "--set", "smile", "--output", "a.png"], ["--set takes a name and a number"]),
        ([PORTRAIT, "--set", "smile=3", "--output", "a.png"], ["smile is from -0.4 to 1, not 3."]),
        ([PORTRAIT, "--set", "smlie=1", "--output", "a.png"], ["There is no control 'smlie'; did you mean smile?"]),
        ([PORTRAIT, "--set", "smile=1", "--output", "a.jpg"], ["must end in .png"]),
        (["missing.jpg", "--set", "smile=1", "--output", "a.png"], ["no file missing.jpg"]),
        (["--set", "smile=1", "--output", "a.png"], ["Give either portraits or the --identity"]),
        (["--identity", "x", "--paste-back", "--set", "smile=1", "--output", "a.png"], ["--paste-back"]),
        ([PORTRAIT, "--set", "smile=1", "--size", 3, "--output", "a.png"], ["--size"]),
    ],
    ids=str,
)
def test_express_refuses_in_one_line(tmp_path, monkeypatch, no_loading, arguments, words):
    monkeypatch.chdir(tmp_path)
    result = run("express", *arguments)
    assert_one_line_error(result, *words)
    assert list(Path(tmp_path).iterdir()) == []
