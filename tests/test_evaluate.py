"""The paper's evaluation, end to end on tiny shards and tiny networks."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fsth_hub.finetuning import loop
from fsth_hub.finetuning.feature_networks import LPIPS
from fsth_hub.pipelines.pipeline_fsth import FsthPipeline
from testing_utils.clips import make_clip
from testing_utils.networks import SIZE
from testing_utils.pipelines import NO_FACE, StubDetector, make_pipeline, picture
from testing_utils.shards import grey, landmarks, write_shards
from training import evaluate
from training.data.dataset import read_index
from training.evaluation.expression import close_up
from training.evaluation.reenactment import (
    held_out_frames,
    one_clip_per_person,
    picked_frames,
    source_frames,
    warped_portrait,
)
from training.evaluation.report import BEGIN, DRIVER, END, UNMOVED, WARP


STEP = 20  # of brightness from frame to frame, and so 5 pixels to the right for the detector
INTEROCULAR = 10  # pixels, of the tests' landmarks


class StubIdentity:
    """Takes faces that are equally bright for one person's: the angle is the brightness."""

    def __init__(self, path):
        pass

    def __call__(self, image, points):
        angle = np.pi / 2 * image.mean() / 255
        return np.array([np.cos(angle), np.sin(angle)])


@pytest.fixture(scope="module")
def load():
    """The pipeline of a folder, read once: it takes seconds."""
    return functools.cache(FsthPipeline.from_pretrained)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def run(tmp_path, model, load, monkeypatch):
    """Runs the script with these options, and returns its folder."""
    torch.manual_seed(0)
    weights, channels = {}, 3
    for level, (index, *_) in enumerate(LPIPS.LAYERS):
        size = {0: 11, 3: 5}.get(index, 3)
        weights[f"features.{index}.weight"] = torch.randn(4, channels, size, size)
        weights[f"features.{index}.bias"] = torch.zeros(4)
        weights[f"lin{level}.weight"] = torch.rand(1, 4, 1, 1)
        channels = 4
    save_file(weights, tmp_path / "alexnet.safetensors")
    (tmp_path / "arcface.onnx").write_bytes(b"stands for a network")
    shards = write_shards(
        tmp_path / "val",
        {
            # of ann the longer clip: five frames for portraits, five to draw
            "ann/1.mp4": [grey(0)] * 4,
            "ann/2.mp4": [grey(STEP * index) for index in range(10)],
            "bob/1.mp4": [grey(STEP * index) for index in range(6)],
        },
    )
    monkeypatch.setattr(evaluate.FsthPipeline, "from_pretrained", load)
    monkeypatch.setattr(evaluate, "get_detector", StubDetector)
    monkeypatch.setattr(evaluate, "IdentityNetwork", StubIdentity)

    def run(*options, **values) -> Path:
        values = {
            "lpips": tmp_path / "alexnet.safetensors", "identity_network": tmp_path / "arcface.onnx",
            "model": f"tiny={model}", "output_dir": tmp_path / "run", "dtype": "float32", "num_frames": 3,
        } | values  # fmt: skip
        evaluate.main([str(shards), *options, *(f"--{name}={value}" for name, value in values.items())])
        return values["output_dir"]

    return run


def results_of(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text())


@pytest.mark.parametrize("num_frames", [2, 9, 10, 39, 64, 500])
def test_portraits_and_frames_to_draw_are_never_the_same(num_frames):
    drawn = held_out_frames(num_frames, 32)
    assert len(drawn) == len(set(drawn)) == min(32, num_frames // 2) and max(drawn) == num_frames - 1
    for shots in (1, 8, 32):
        sources = source_frames(num_frames, shots)
        if shots > num_frames - num_frames // 2:
            assert sources is None
            continue
        assert len(set(sources)) == shots and sources[0] == 0 and not set(sources) & set(drawn)
        gaps = np.diff(sources)
        assert max(sources) < min(drawn) and (len(gaps) == 0 or gaps.max() - gaps.min() <= 1)


def test_longest_clip_stands_for_a_person(shards, tmp_path):
    folder = write_shards(tmp_path / "more", {"zoe/1.mp4": [grey(0)] * 2, "ann/9.mp4": [grey(0)] * 3})
    clips = one_clip_per_person(read_index(folder) + read_index(shards))
    assert [(clip.identity, len(clip.frames)) for clip in clips] == [("ann", 6), ("bob", 6), ("zoe", 2)]


def test_warp_takes_the_portrait_most_like_the_frame():
    crops = [np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8) for seed in range(3)]
    faces = np.stack([landmarks()] * 3)
    faces[1, 60:68, 1] += 4  # mouths
    faces[2, 60:68, 1] -= 4
    draw, _ = warped_portrait(crops, faces)
    for crop, points in zip(crops, faces, strict=True):
        assert np.abs(draw(points).astype(int) - crop).max() <= 1
    moved = draw(faces[1] + np.float32(5))
    assert np.abs(moved.astype(int) - crops[1]).mean() > 5


def test_baselines_are_measured_as_by_hand(run):
    person = results_of(run("--shots", "1", "2"))["people"]["ann"]
    assert person["frames"] == 10 and set(person["self"]) == {"1", "2"}
    portrait = person["self"]["1"][UNMOVED]
    drawn = np.array([5, 7, 9])  # three of the second half; the portrait is the first frame, black
    assert (portrait["frames"], portrait["frames_without_face"]) == (3, 0)
    # the detector sees a face 5 pixels further right in each frame
    assert portrait["akd"] == pytest.approx(100 * (drawn * STEP / 4).mean() / INTEROCULAR, rel=0.02)
    assert portrait["csim"] == pytest.approx(np.cos(np.pi / 2 * drawn * STEP / 255).mean(), abs=0.01)
    assert portrait["ssim"] == pytest.approx(np.mean(0.01**2 / ((drawn * STEP / 255) ** 2 + 0.01**2)), abs=1e-4)
    # without portraits that have other faces the warp of a plain picture is that picture
    warped = person["self"]["1"][WARP]
    assert all(warped[key] == pytest.approx(portrait[key]) for key in ("lpips", "face_lpips", "ssim", "csim", "akd"))
    assert portrait["face_lpips"] != pytest.approx(portrait["lpips"])  # of another size, with other borders
    assert portrait["mouth_lpips"] > 0 and portrait["eyes_lpips"] > 0
    assert portrait["swim"] is None  # nothing can be seen to move on plain grey
    # the true frames get brighter one after the other, the portrait does not
    flicker = [portrait[f"{part}_flicker"] for part in ("face", "mouth", "eyes")]
    assert flicker == pytest.approx([-STEP] * 3, abs=1)
    assert UNMOVED not in person["self"]["2"]  # it is the same


def test_close_up_shows_the_face_and_nothing_else():
    points = torch.from_numpy(landmarks())[None]
    left, top = points[0, :68].amin(dim=0).floor().int().tolist()
    right, bottom = points[0, :68].amax(dim=0).ceil().int().tolist()
    reach = max(right - left, bottom - top) // 2 + 2  # of the square, from its middle, with what sampling blends in
    x, y = (left + right) // 2, (top + bottom) // 2
    images = torch.zeros(1, 3, SIZE, SIZE)
    around = torch.ones_like(images)
    around[:, :, max(y - reach, 0) : y + reach, max(x - reach, 0) : x + reach] = 0
    assert around.any() and torch.equal(close_up(around, points), close_up(images, points))
    images[:, :, top:bottom, left:right] = 1
    assert close_up(images, points).mean() > 0.5


def test_everything_is_written(run, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"# Model\n{BEGIN}\n{END}\nend\n")
    folder = run("--shots", "1", "5", "--cross", write=readme)
    results = results_of(folder)
    ann, bob = results["people"]["ann"], results["people"]["bob"]
    assert list(ann["self"]["5"]) == [WARP, "tiny FF"] and bob["left_out"] == [5] and "5" not in bob["self"]
    assert list(bob["cross"]["1"]) == [UNMOVED, WARP, "tiny FF"] and list(bob["cross"]) == ["1"]
    portrait, drawn = bob["cross"]["1"][UNMOVED], bob["cross"]["1"]["tiny FF"]
    assert portrait["csim"] == pytest.approx(1) and portrait["pose"] == pytest.approx(0, abs=1e-3)
    assert 0 < drawn["csim"] < 1 and drawn["frames"] == 3 and drawn["seconds"]["generate"] > 0
    assert ann["self"]["5"]["tiny FF"]["seconds"]["embed"] > 0
    machine = results["settings"]["machine"]
    assert machine["torch"] == torch.__version__ and machine["dtype"] == "float32" and machine["hardware"]

    text = (folder / "evaluation.md").read_text()
    assert readme.read_text() == f"# Model\n{BEGIN}\n{text}{END}\nend\n"
    assert "Left out at T = 5, too few frames: bob (6 frames)." in text and "| 5 | tiny FF | 1 |" in text
    assert "python training/evaluate.py SHARDS/val --model tiny=" in text and str(tmp_path) not in text
    with Image.open(folder / "self-1.jpg") as grid:  # portrait, landmarks, warp, model, truth; two frames of two
        assert grid.width == 5 * SIZE and grid.height > 4 * SIZE
        truth = np.asarray(grid)[-SIZE // 2, -SIZE // 2]  # bob's last frame
        assert np.abs(truth.astype(int) - 5 * STEP).max() < 4
    with Image.open(folder / "cross-1.jpg") as grid:
        driver = np.asarray(grid)[-SIZE // 2, -SIZE // 2]  # bob's driver is ann, her last frame
        assert np.abs(driver.astype(int) - 9 * STEP).max() < 4


def test_frames_in_which_nobody_sees_a_face_are_counted(run, monkeypatch):
    monkeypatch.setattr(evaluate, "warped_portrait", lambda crops, points: (lambda p: grey(NO_FACE), {}))
    ann = results_of(run("--shots", "1", "--cross"))["people"]["ann"]
    own, other = ann["self"]["1"][WARP], ann["cross"]["1"][WARP]
    assert (own["frames_without_face"], own["akd"]) == (3, None) and 0 < own["csim"] < 1
    assert (other["frames_without_face"], other["pose"], other["expression"]) == (3, None, None)


def test_killed_run_goes_on_where_it_was(run, monkeypatch, tmp_path):
    def killed(crops, points):
        if np.mean(crops) > STEP:  # T = 2
            raise KeyboardInterrupt
        return (lambda points: crops[0]), {}

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "warped_portrait", killed)
        with pytest.raises(KeyboardInterrupt):
            run("--shots", "1", "2")
    before = results_of(tmp_path / "run")["people"]
    assert list(before) == ["ann"] and list(before["ann"]["self"]["1"]) == [UNMOVED, WARP, "tiny FF"]

    after = results_of(run("--shots", "1", "2"))["people"]
    assert after["ann"]["self"]["1"] == before["ann"]["self"]["1"]  # its times too
    assert "tiny FF" in after["ann"]["self"]["2"] and "tiny FF" in after["bob"]["self"]["2"]

    def refuse(crops, points):
        raise AssertionError("this was measured before")

    monkeypatch.setattr(evaluate, "warped_portrait", refuse)
    assert results_of(run("--shots", "1", "2"))["people"] == after


def test_other_settings_are_refused_and_other_models_are_added(run, model, tmp_path):
    folder = run("--shots", "1", "--people", "1")
    before = (folder / "evaluation.json").read_bytes()
    with pytest.raises(SystemExit, match=r"other settings \(data num_frames\): give another --output_dir"):
        run("--shots", "1", num_frames=2)
    other = tmp_path / "other"
    make_pipeline(num_residual_blocks=2).save_pretrained(other)
    with pytest.raises(SystemExit, match=r"other settings \(models tiny\)"):
        run("--shots", "1", model=f"tiny={other}")
    assert (folder / "evaluation.json").read_bytes() == before
    run("--shots", "1", "--people", "1", model=f"other={other}")
    results = results_of(folder)
    assert list(results["settings"]["models"]) == ["other", "tiny"]  # as in the last call
    assert list(results["people"]["ann"]["self"]["1"]) == [UNMOVED, WARP, "tiny FF", "other FF"]
    assert results["settings"]["models"]["tiny"] != results["settings"]["models"]["other"]


def test_portraits_are_driven_by_clips(run, model, tmp_path):
    folder, others = tmp_path / "paintings", tmp_path / "others"
    for path, names in ((folder, "abc"), (others, "d")):
        path.mkdir()
        for name in names:
            Image.fromarray(picture(NO_FACE if name == "b" else 40)).save(path / f"{name}.png")
    (tmp_path / "list.txt").write_text("others/d.png\n\n")
    driver, other_driver = tmp_path / "driver.mp4", tmp_path / "other.mp4"
    make_clip(driver, [grey(10 * index) for index in range(15)])
    make_clip(other_driver, [grey(0)])
    paintings, drive = ["--portraits", f"paintings={folder}"], ["--drivers", str(driver)]
    options = ["--shots", "1", "--people", "1", *drive, "--max_portraits", "2", *paintings]
    output = run(*options, "--portraits", f"list={tmp_path / 'list.txt'}")
    results = results_of(output)
    measured = results["portraits"]["paintings"]
    assert measured["left_out"] == ["b.png"] and list(measured["people"]) == ["a.png"]
    methods = measured["people"]["a.png"]["portraits"]["1"]
    assert list(methods) == [DRIVER, UNMOVED, WARP, "tiny FF"]
    assert list(results["portraits"]["list"]["people"]) == ["d.png"]
    assert len({m["frames"] for m in methods.values()}) == 1 and 12 <= methods[WARP]["frames"] <= 15
    assert methods[UNMOVED]["csim"] == pytest.approx(1) and 0 < methods["tiny FF"]["csim"] < 1
    assert (
        methods["tiny FF"]["mouth_slope"] is None and methods["tiny FF"]["blink"] is None
    )  # one face, always the same
    text = (output / "evaluation.md").read_text()
    assert "Portraits *paintings*: 1 pictures" in text and "No face was found in b.png." in text
    assert f"| 1 | {DRIVER} | 1 | – |" in text
    assert "--portraits paintings=paintings --portraits list=list.txt --drivers driver.mp4 --max_portraits 2" in text
    with Image.open(output / "paintings.jpg") as sheet:  # portrait, landmarks, warp, model; two frames of one picture
        assert sheet.width == 4 * SIZE and 2 * SIZE < sheet.height < 3 * SIZE

    # another model, and more pictures, are added; another driver would be another measurement
    more = ["--shots", "1", "--people", "1", *drive, *paintings]
    added = results_of(run(*more, model=f"again={model}"))["portraits"]["paintings"]["people"]
    assert list(added) == ["a.png", "c.png"] and added["a.png"]["portraits"]["1"].items() >= methods.items()
    assert "again FF" in added["a.png"]["portraits"]["1"] and "again FF" in added["c.png"]["portraits"]["1"]
    with pytest.raises(SystemExit, match=r"other settings \(portraits paintings\)"):
        run("--shots", "1", "--drivers", str(other_driver), *paintings)


def test_pictures_that_are_not_there_are_named(run, tmp_path):
    (tmp_path / "list.txt").write_text("absent.png\n")
    for source, message in ((tmp_path / "list.txt", "no picture .*absent.png"), (tmp_path, "no pictures in")):
        with pytest.raises(SystemExit, match=message):
            run("--shots", "1", "--portraits", f"group={source}", "--drivers", str(tmp_path / "list.txt"))
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:Portrait 1 seems to show another person")
def test_fine_tuned_people_are_limited_and_drawn_by_their_own_generator(run, vgg):
    options = {"vgg": vgg, "fine_tune_steps": 1, "people_fine_tuned": 1, "num_frames": 1}
    results = results_of(run("--shots", "1", "5", "--fine_tune", "full", **options))
    ann, bob = results["people"]["ann"]["self"], results["people"]["bob"]["self"]
    assert "tiny FT full" in ann["1"] and "tiny FT full" in ann["5"] and list(bob["1"])[-1] == "tiny FF"
    assert results["settings"]["fine_tuning"] == {"steps": 1}
    # another method is added to what is there
    folder = run("--shots", "1", "5", "--fine_tune", "full", "lora", **options)
    added = results_of(folder)["people"]["ann"]["self"]["1"]
    assert list(added) == [*ann["1"], "tiny FT lora"] and added["tiny FT full"] == ann["1"]["tiny FT full"]
    full, lora = (added[f"tiny FT {method}"] for method in ("full", "lora"))
    assert full["seconds"]["fine_tune"] > 0 and lora["seconds"]["fine_tune"] > 0
    assert 0 < lora["megabytes"] < full["megabytes"]
    text = (folder / "evaluation.md").read_text()
    assert "--fine_tune full lora" in text and "tiny FT lora minus tiny FF, T = 1" in text


@pytest.mark.filterwarnings("ignore:Portrait 1 seems to show another person")
def test_people_are_fine_tuned_by_the_VGG_of_the_package_unless_told_otherwise(run, vgg, vgg_with_heads, monkeypatch):
    for module in (loop, evaluate):
        monkeypatch.setattr(module, "BUNDLED_VGG", vgg_with_heads)  # in the place of one that is large
    options = {"shots": 1, "fine_tune": "full", "fine_tune_steps": 1, "people": 1, "num_frames": 1}
    results = results_of(run(**options))
    assert "tiny FT full" in results["people"]["ann"]["self"]["1"] and "--vgg" not in results["commands"][0]
    with pytest.raises(SystemExit, match="other settings .networks content loss"):
        run(vgg=vgg, **options)


def test_tables_can_be_made_again_without_measuring(run, tmp_path, capsys):
    folder = run("--shots", "1", "--people", "1")
    expected = (folder / "evaluation.md").read_text()
    (folder / "evaluation.md").unlink()
    (folder / "self-1.jpg").unlink()
    evaluate.main(["--render_only", "--output_dir", str(folder)])
    assert (folder / "evaluation.md").read_text() == expected and (folder / "self-1.jpg").exists()
    with pytest.raises(SystemExit, match="no evaluation.json"):
        evaluate.main(["--render_only", "--output_dir", str(tmp_path / "nowhere")])


def test_what_is_missing_is_said_before_anything_is_measured(run, tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text("no place")
    with pytest.raises(SystemExit, match="has no place for the tables"):
        run("--shots", "1", write=readme)
    for options, message in (
        (["--fine_tune", "half"], "invalid choice: 'half'"),
        (["--shots", "0"], "must be at least 1"),
        (["--model", "nameless"], "NAME=FOLDER_OR_ID"),
        (["--portraits", "nameless", "--drivers", "clip.mp4"], "NAME=FOLDER_OR_LIST"),
        (["--portraits", "name=folder"], "give --drivers"),
    ):
        with pytest.raises(SystemExit):
            run(*options)
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="absent"):
        run(lpips=tmp_path / "absent" / "alexnet.safetensors")
    assert not (tmp_path / "run").exists()


def test_portraits_can_be_picked_and_are_not_mixed_with_others(run):
    folder = run(shots=2, pick="picked")
    results = results_of(folder)
    assert results["settings"]["data"]["pick"] == "picked" and "--pick picked" in results["commands"][0]
    assert set(results["people"]["ann"]["self"]) == {"2"}
    with pytest.raises(SystemExit, match="other settings .*data pick"):
        run(shots=2)


def test_results_of_before_there_was_a_choice_go_on_evenly(run):
    folder = run(shots=1)
    results = results_of(folder)
    del results["settings"]["data"]["pick"]
    (folder / "evaluation.json").write_text(json.dumps(results))
    with pytest.raises(SystemExit, match="other settings .*data pick"):
        run(shots=1, pick="picked")
    run(shots=1)


def test_picked_portraits_are_of_the_first_half(shards):
    clip = read_index(shards)[0]
    assert picked_frames(clip, 2) == [1]  # the others are half and twice as bright
    assert picked_frames(clip, 4) is None
