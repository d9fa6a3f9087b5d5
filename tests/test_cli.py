import gc
import json
import os
import shlex
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fsth_hub import FsthError, FsthTunedPerson
from fsth_hub.cli import loading as cli_loading
from fsth_hub.cli import main as cli
from fsth_hub.hub.model_card import CONSENT
from fsth_hub.landmarks import get_detector
from fsth_hub.media.reading import open_clip
from fsth_hub.media.writing import write_clip
from fsth_hub.models.cropping import crop_box
from fsth_hub.pipelines.pipeline_fsth import FsthPipeline
from fsth_hub.provenance.inspection import inspect
from testing_utils.command_line import assert_one_line_error, read, run
from testing_utils.paths import DRIVER, PORTRAIT
from testing_utils.pipelines import make_pipeline


@pytest.fixture
def no_loading(monkeypatch):
    """The model must not be loaded: an error that can be known before has to come before."""

    def load(*_, **__):
        raise AssertionError("The model was loaded.")

    monkeypatch.setattr(cli_loading, "load_pipeline", load)


def test_animate_writes_clip_and_report(tmp_path):
    output, report_path = tmp_path / "out.mp4", tmp_path / "report.json"
    result = run(
        "animate", PORTRAIT, PORTRAIT, "--driving", DRIVER, "--output", output, "--frames", 3, "--json", report_path,
        "--dtype", "float32", "--device", "cpu",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{output}: 3 frames at 25 fps, 256 x 256 pixels, with sound, ")
    assert result.stdout.count("\n") == 1
    with av.open(str(output)) as container:
        assert container.streams.audio
        assert "AI-generated" in container.metadata["comment"]
    assert read(output).shape == (3, 256, 256, 3)

    report = json.loads(report_path.read_text())
    assert (report["num_frames"], report["fps"], report["sound"], report["frames_without_face"]) == (3, 25, True, [])
    assert len(report["portrait_boxes"]) == 2 and set(report["seconds"]) == {"embed", "landmarks", "frames"}
    assert (report["device"], report["dtype"]) == ("cpu", "float32") and "seed" not in report
    assert (report["model"], report["motion"], report["output"]) == ("bundled", "relative", str(output))
    assert (report["size"], report["max_size"], report["size_asked"]) == (256, 256, None)
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
    assert report["driving_box"] == [0, 0, 256, 0] and report["portrait_boxes"] == [[0, 0, 256, 0]]
    assert "3 frames" in result.stderr
    made = read(tmp_path / "out.mp4")
    assert made.shape == clip.shape
    difference = np.abs(made.astype(float) - clip).mean()
    assert difference < 10 < np.abs(made[:, ::-1].astype(float) - clip).mean()


def test_animate_takes_the_pipelines_options(tmp_path, model):
    """Without motion and mark the frames are alike; side by side is the photograph, the driver and the result."""
    output, beside = tmp_path / "out.mp4", tmp_path / "beside.mp4"
    options = ["--motion-strength", 0, "--smoothing", 0.2, "--paste-back", "--no-watermark", "--no-credentials"]
    options += ["--side-by-side", beside, "--model", model, "--frames", 3, "--device", "cpu", "--json", "-"]
    result = run("animate", PORTRAIT, "--driving", DRIVER, "--output", output, *options)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [report[name] for name in ("motion_strength", "smoothing", "paste_back")] == [0, 0.2, True]
    assert not report["watermark"] and not report["credentials"] and report["side_by_side"] == str(beside)
    frames, wide = read(output).astype(int), read(beside).astype(int)
    assert frames.shape == (3, 512, 512, 3) and np.abs(frames - frames[0]).mean() < 1
    assert wide.shape == (3, 512, 3 * 512, 3) and open_clip(beside).audio_from
    assert np.abs(wide[:, :, 1024:] - frames).mean() < 4
    assert np.abs(wide[:, :, :512] - np.asarray(Image.open(PORTRAIT).convert("RGB"))).mean() < 4
    assert inspect(beside).credentials == inspect(output).credentials == "none"


def test_side_by_side_shows_the_head_and_is_signed(tmp_path, model):
    output, beside = tmp_path / "out.gif", tmp_path / "beside.mp4"
    options = ["--side-by-side", beside, "--model", model, "--frames", 3, "--device", "cpu", "--motion-strength", 0]
    result = run("animate", PORTRAIT, "--driving", DRIVER, "--output", output, *options)
    assert result.exit_code == 0, result.output
    frames, wide = read(output), read(beside)
    size = frames.shape[1]
    assert wide.shape == (3, size, 3 * size, 3)
    assert inspect(output).credentials == inspect(beside).credentials == "valid"

    result = run("inspect", beside)
    assert result.exit_code == 0 and "AI-generated" in result.stdout and result.stdout.count("\n") == 1
    report = json.loads(run("inspect", beside, "--json").stdout)
    assert report["credentials"] == "valid" and report["ingredients"] == ["portrait", "driving clip"]
    assert report["summary"] == result.stdout.strip()


def test_size_is_what_was_asked_for_or_what_the_portrait_has(tmp_path, model):
    """The astronaut's head is 220 pixels wide; the tiny model sees 64."""
    output, beside = tmp_path / "out.mp4", tmp_path / "beside.mp4"
    options = ["--side-by-side", beside, "--model", model, "--frames", 2, "--device", "cpu", "--json", "-"]
    options += ["--motion-strength", 0, "--no-watermark", "--no-credentials"]

    def animate(*arguments):
        result = run("animate", PORTRAIT, "--driving", DRIVER, "--output", output, *arguments, *options)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout), result.stderr

    report, words = animate("--size", 98)
    assert (report["size"], report["size_asked"]) == (98, 98) and "98 x 98 pixels, with sound" in words
    frames, wide = read(output).astype(int), read(beside).astype(int)
    assert frames.shape == (2, 98, 98, 3) and wide.shape == (2, 98, 3 * 98, 3)
    assert np.abs(wide[:, :, 196:] - frames).mean() < 4  # and the portrait beside it is cut out alike
    difference = np.abs(wide[:, :, :98] - frames).mean()
    assert difference < 0.5 * np.abs(wide[:, :, 97::-1] - frames).mean()

    report, words = animate("--size", 1000)
    largest = report["max_size"]
    assert (report["size"], report["size_asked"]) == (largest, 1000) and 200 < largest < 240
    assert f"{largest} x {largest} pixels (the portrait has no more), with sound" in words
    assert read(output).shape == (2, largest, largest, 3) and read(beside).shape == (2, largest, 3 * largest, 3)

    report, words = animate("--size", 98, "--paste-back")
    assert report["size"] == 98 and "the head 98 x 98 pixels, with sound" in words
    assert read(output).shape == (2, 512, 512, 3) and read(beside).shape == (2, 512, 3 * 512, 3)
    assert animate("--paste-back")[0]["size"] == largest


def test_size_below_the_models(tmp_path, model):
    arguments = ["--driving", DRIVER, "--output", tmp_path / "out.mp4", "--model", model, "--device", "cpu"]
    result = run("animate", PORTRAIT, *arguments, "--size", 62)
    assert_one_line_error(result, "even number from 64 to 1024", "62")
    assert list(tmp_path.iterdir()) == []


def test_inspect_answers_whatever_it_finds(tmp_path):
    result = run("inspect", PORTRAIT)
    assert result.exit_code == 0 and "no credentials" in result.stdout
    (tmp_path / "notes.mp4").write_text("no video")
    assert_one_line_error(run("inspect", tmp_path / "notes.mp4"), "notes.mp4", "neither a picture nor a clip")
    assert_one_line_error(run("inspect", tmp_path / "gone.mp4"), "gone.mp4")


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
        ({"--side-by-side": "beside.avi"}, ["beside.avi", ".mp4"]),
        ({"--side-by-side": "out.mp4"}, ["out.mp4", "another name"]),
        ({"--motion": "absolute", "--motion-strength": 0.5}, ["--motion-strength", "relative"]),
        ({"--detector": "crystal-ball"}, ["crystal-ball", "mediapipe"]),
        ({"--size": 511}, ["--size", "even", "1024", "511"]),
        ({"--size": 2048}, ["--size", "even", "1024", "2048"]),
        ({"--size": 0}, ["--size", "even", "1024", "not 0"]),
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


def test_a_face_is_chosen_in_portraits_alone(tmp_path, no_loading):
    arguments = ["--driving", DRIVER, "--output", tmp_path / "out.mp4"]
    assert_one_line_error(run("animate", "--identity", "ada", "--face", 1, *arguments), "--face", "--identity")
    assert run("animate", PORTRAIT, "--seed", 1, *arguments).exit_code == 2  # nothing is random


@pytest.mark.parametrize("damaged", [False, True])
def test_the_driver_is_followed_while_the_model_is_loaded(tmp_path, model, monkeypatch, damaged):
    found, load = threading.Event(), cli_loading.load_pipeline
    detector = get_detector()
    detect = detector.detect

    def see(image):
        found.set()
        return detect(image)

    def load_late(*arguments, **options):
        assert found.wait(20)
        if damaged:
            raise FsthError("The model is damaged.")
        return load(*arguments, **options)

    monkeypatch.setattr(detector, "detect", see)
    monkeypatch.setattr(cli, "get_detector", lambda _: detector)
    monkeypatch.setattr(cli_loading, "load_pipeline", load_late)
    output = tmp_path / "out.mp4"
    result = run("animate", PORTRAIT, "--driving", DRIVER, "--output", output, "--frames", 3, "--model", model)
    if damaged:
        assert_one_line_error(result, "The model is damaged.")
        assert not [thread for thread in threading.enumerate() if "fsth-driving" in thread.name]
    else:
        assert result.exit_code == 0 and len(read(output)) == 3


def test_folder_that_cannot_be_written(no_loading):
    folder = Path("/proc")  # where not even root may write
    if not folder.is_dir():
        pytest.skip("needs /proc")
    result = run("animate", PORTRAIT, "--driving", DRIVER, "--output", folder / "out.mp4")
    assert_one_line_error(result, "/proc", "cannot be written")


def test_unknown_device():
    with pytest.raises(cli.FsthError, match="abacus"):
        cli_loading.load_pipeline(None, "abacus", "auto")


def test_loading_leaves_out_the_discriminator_unless_asked_and_the_collector_as_it_was(monkeypatch):
    given = []

    def load(*_, **options):
        given.append(options)
        assert not gc.isenabled()
        raise cli.FsthError("enough")

    monkeypatch.setattr(FsthPipeline, "from_pretrained", load)
    for options in ({}, {"discriminator": True}):
        with pytest.raises(cli.FsthError, match="enough"):
            cli_loading.load_pipeline(None, "cpu", "float32", **options)
        assert gc.isenabled() and gc.get_freeze_count() == 0
    assert given[0]["discriminator"] is None and "discriminator" not in given[1]


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

    monkeypatch.setattr(FsthPipeline, "generate_frames", interrupted)
    result = run("animate", PORTRAIT, "--driving", DRIVER, "--output", tmp_path / "out.mp4", "--frames", 2)
    assert result.exit_code == 130
    assert list(tmp_path.iterdir()) == []


def test_usage_error(no_loading):
    assert run("animate", PORTRAIT, "--driving", DRIVER, "--output", "out.mp4", "--motion", "wild").exit_code == 2
    assert run("animate", PORTRAIT).exit_code == 2
    assert run("animate", PORTRAIT, "--driving", DRIVER, "--output", "out.mp4", "--motion-strength", 3).exit_code == 2


# Publishing a person.


@pytest.fixture
def sent(monkeypatch) -> list[tuple]:
    """What reached the hub: repositories made, identities pushed."""
    calls = []

    def create_repository(repo_id, *, private=True):
        calls.append(("create", repo_id, private))
        return f"ann/{repo_id.rpartition('/')[2]}"

    def push_to_hub(identity, repo_id, *, consent=False, private=True, revision=None, photographs=()):
        assert consent is True
        calls.append(("push", repo_id, private, revision, list(photographs), identity.num_portraits))
        if repo_id.endswith("unreachable"):
            raise cli.FsthError("The upload broke off: the connection failed.")
        return f"https://hub/{repo_id}/commit/0123"

    monkeypatch.setattr(import_module("fsth_hub.hub.client"), "create_repository", create_repository)
    monkeypatch.setattr(FsthTunedPerson, "push_to_hub", push_to_hub)
    return calls


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_pipeline().save_pretrained(folder)
    return folder


def tune(folder, model, vgg, *arguments):
    options = ["--steps", 1, "--vgg", vgg, "--device", "cpu", "--dtype", "float32"]
    return run("fine-tune", PORTRAIT, "--output", folder, "--model", model, *options, *arguments)


def test_fine_tune_publishes_and_says_where(tmp_path, sent, model, vgg):
    arguments = ["--push-to-hub", "ada", "--i-have-consent", "--include-photograph", PORTRAIT, "--public"]
    result = tune(tmp_path / "ada", model, vgg, *arguments)
    assert result.exit_code == 0, result.output
    made, published = result.stdout.splitlines()
    assert made.startswith(f"{tmp_path / 'ada'}: 1 portrait") and published == "https://hub/ann/ada"
    assert sent == [("create", "ada", False), ("push", "ann/ada", False, None, [PORTRAIT], 1)]


def test_fine_tuned_person_is_animated_at_any_size(tmp_path, model, vgg):
    assert tune(tmp_path / "ada", model, vgg).exit_code == 0
    output, beside = tmp_path / "out.mp4", tmp_path / "beside.mp4"
    arguments = ["--identity", tmp_path / "ada", "--driving", DRIVER, "--output", output, "--side-by-side", beside]
    result = run("animate", *arguments, "--model", model, "--size", 150, "--frames", 2, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert read(output).shape == (2, 150, 150, 3) and read(beside).shape == (2, 150, 450, 3)
    assert "150 x 150 pixels, with sound" in result.stdout


def test_upload_that_fails_leaves_the_person_and_says_how_to_try_again(tmp_path, sent, model, vgg):
    folder = tmp_path / "ada's"
    result = tune(folder, model, vgg, "--push-to-hub", "unreachable", "--i-have-consent")
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert "the connection failed; the identity is in" in result.stderr and str(folder) in result.stderr
    again = shlex.split(result.stderr.partition("try again with: ")[2])
    assert again == ["fsth", "publish", str(folder), "ann/unreachable", "--i-have-consent", "--model", str(model)]
    sent.clear()
    result = run(*again[1:3], "ada", *again[4:], "--revision", "next", "--include-photograph", PORTRAIT)
    assert result.exit_code == 0, result.output
    assert result.stdout == "https://hub/ada\n"
    assert sent == [("push", "ada", True, "next", [PORTRAIT], 1)]


def test_nothing_is_loaded_or_sent_that_may_not_be_published(tmp_path, sent, no_loading):
    folder, wall = tmp_path / "ada", tmp_path / "wall.txt"
    folder.mkdir()
    wall.write_text("not a picture")
    (folder / "identity.json").write_text("{}")
    tuning = ["fine-tune", PORTRAIT, "--output", tmp_path / "new"]
    for command in ([*tuning, "--push-to-hub", "ann/ada"], ["publish", folder, "ann/ada"]):
        assert_one_line_error(run(*command), "--i-have-consent", CONSENT)
        command.append("--i-have-consent")
        assert_one_line_error(run(*command, "--include-photograph", tmp_path / "missing.jpg"), "missing.jpg")
        assert_one_line_error(run(*command, "--include-photograph", wall), "wall.txt", "not a picture")
    assert_one_line_error(run(*tuning, "--include-photograph", PORTRAIT), "--push-to-hub")
    assert_one_line_error(run("publish", tmp_path / "nobody", "ann/ada", "--i-have-consent"), "nobody")
    assert_one_line_error(run("publish", folder, "ann/ada", "--i-have-consent"), "holds no identity")
    assert sent == [] and not (tmp_path / "new").exists()


def test_hub_is_asked_before_the_model_is_loaded(tmp_path, sent, no_loading, monkeypatch, vgg):
    def refuse(*_, **__):
        raise cli.FsthError("'ada' cannot be published to: it needs a login.")

    monkeypatch.setattr(import_module("fsth_hub.hub.client"), "create_repository", refuse)
    assert_one_line_error(tune(tmp_path / "new", tmp_path, vgg, "--push-to-hub", "ada", "--i-have-consent"), "login")
    assert sent == [] and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "arguments, method, rate", [([], "full", None), (["--method", "lora", "--learning-rate", "1e-3"], "lora", 1e-3)]
)
def test_method_and_rate_are_what_the_pipeline_is_asked_for(tmp_path, vgg, monkeypatch, arguments, method, rate):
    def fine_tune(portraits, **kwargs):
        raise cli.FsthError(f"asked for {kwargs['method']} at {kwargs['learning_rate']}")

    pipe = SimpleNamespace(fine_tune=fine_tune, set_progress_bar_config=lambda **_: None)
    monkeypatch.setattr(cli_loading, "load_pipeline", lambda *_, **__: pipe)
    assert_one_line_error(tune(tmp_path / "ada", tmp_path, vgg, *arguments), f"asked for {method} at {rate}")


@pytest.mark.parametrize(
    "command, base, revision, loaded",
    [
        ("publish", "ann/base", "0123", ("ann/base", "cpu", "bfloat16", "0123")),
        ("publish", "bundled", None, (None, "cpu", "bfloat16", None)),
        ("animate", "ann/base", "0123", ("ann/base", "auto", "auto", "0123", "auto")),
        ("animate", "tiny", None, (None, "auto", "auto", None, "auto")),
    ],
)
def test_a_person_brings_their_model(tmp_path, monkeypatch, sent, command, base, revision, loaded):
    """Loaded is what was tuned, of the same revision; and for publishing in the numbers of the file."""
    (tmp_path / "identity.json").write_text(json.dumps({"base_model": base, "base_revision": revision}))
    save_file({"adain_parameters": torch.zeros(1, 2, dtype=torch.bfloat16)}, tmp_path / "identity.safetensors")

    def load(*arguments):
        raise cli.FsthError(f"asked for {arguments}")

    monkeypatch.setattr(cli_loading, "load_pipeline", load)
    if command == "publish":
        result = run("publish", tmp_path, "ann/ada", "--i-have-consent")
    else:
        result = run("animate", "--identity", tmp_path, "--driving", DRIVER, "--output", tmp_path / "out.mp4")
    assert_one_line_error(result, f"asked for {loaded}")


def test_help_is_whole_at_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for command in ([], ["animate"], ["fine-tune"], ["publish"], ["landmarks"], ["inspect"], ["info"]):
        text = run(*command, "--help").output
        assert "…" not in text and max(map(len, text.splitlines())) <= 80
        if "--i-have-consent" in text:  # in the words that are published
            column = text[text.index("--i-have-consent") :].partition("--include")[0]
            assert CONSENT in " ".join(column.replace("│", " ").split())


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
    assert "M parameters" in rows["discriminator"]
    assert float(rows["checkpoint"].split()[0]) < 45


def test_as_a_command(tmp_path):
    """Help comes without PyTorch; an error is one line, and nothing that libraries say."""
    code = "import sys; from fsth_hub.cli.main import app; app(['--help'], standalone_mode=False); "
    code += "print(list(sys.modules))"
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
