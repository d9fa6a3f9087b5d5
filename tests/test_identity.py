"""Identities: made by the pipeline, saved, loaded, driven, and by the command line."""

import copy
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file

from fsth_hub import FsthIdentity, FsthPipeline
from fsth_hub.cli import loading as cli_loading
from fsth_hub.finetuning.loop import METHODS, PixelLoss
from fsth_hub.finetuning.lora import LORA_CONFIG_NAME, LORA_WEIGHTS_NAME
from fsth_hub.models.errors import FsthError, FsthNotFoundError, NoFaceError
from fsth_hub.pipelines import identity
from fsth_hub.pipelines.identity import CONFIG_NAME, WEIGHTS_NAME, fingerprint
from testing_utils.command_line import assert_one_line_error, read, run
from testing_utils.paths import DRIVER, PORTRAIT, ROOT
from testing_utils.pipelines import (
    ScaledDetector,
    arrays,
    clip,
    frames_of,
    make_pipeline,
    negative,
    picture,
    tuned,
    tuned_once,
)


pytestmark = [pytest.mark.filterwarnings("ignore:Portrait"), pytest.mark.usefixtures("steps_that_show")]


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """An identity of each method, who shows; copy them."""
    folder = tmp_path_factory.mktemp("identities")
    for method in METHODS:
        tuned_once(make_pipeline(), method).save_pretrained(folder / method)
    return folder


@pytest.fixture
def saved(folders, tmp_path) -> Path:
    return Path(shutil.copytree(folders / "full", tmp_path / "ada"))


@pytest.fixture
def saved_lora(folders, tmp_path) -> Path:
    return Path(shutil.copytree(folders / "lora", tmp_path / "ada"))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("source_skips", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_identity_draws_the_same_bits(dtype, source_skips, method, tmp_path):
    pipe = make_pipeline(source_skips=source_skips).to(dtype=dtype)
    made = tuned(pipe, picture(), negative(picture(9)), method=method)
    made.save_pretrained(tmp_path / "ada")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ada"]
    files = {CONFIG_NAME, WEIGHTS_NAME} | ({LORA_CONFIG_NAME, LORA_WEIGHTS_NAME} if method == "lora" else set())
    assert {path.name for path in (tmp_path / "ada").iterdir()} == files
    loaded = pipe.load_identity(tmp_path / "ada")
    drawn = [frames_of(pipe, person) for person in (made, loaded, [picture(), negative(picture(9))])]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])  # tuning has done something
    for name in ("base_model", "fingerprint", "steps", "num_portraits", "boxes", "history", "method"):
        assert getattr(made, name) == getattr(loaded, name)
    assert (made.steps, made.num_portraits, made.base_model) == (2, 2, "unnamed")
    assert loaded.method == method
    assert loaded.tuned_generator(pipe.generator).dtype == loaded.adain_parameters.dtype == dtype


@pytest.mark.parametrize("method", METHODS)
def test_two_identities_share_a_pipeline(pipe, method):
    before = frames_of(pipe, picture())
    persons = [tuned(pipe, picture(), method=method), tuned(pipe, negative(picture()), method=method)]
    first, second = (frames_of(pipe, person) for person in persons)
    assert not np.array_equal(first, second)
    assert np.array_equal(frames_of(pipe, persons[0]), first)
    assert np.array_equal(frames_of(pipe, picture()), before)


def test_loras_draw_at_the_same_time(pipe):
    persons = [tuned_once(pipe, "lora"), tuned(pipe, negative(picture()), method="lora")]
    alone = [frames_of(pipe, person) for person in persons]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda person: frames_of(pipe, person), persons * 3))
    assert all(np.array_equal(drawn, alone[index % 2]) for index, drawn in enumerate(together))


def test_lora_is_small_in_memory_and_on_disk(pipe, tmp_path):
    made = tuned(pipe, method="lora")
    made.save_pretrained(tmp_path / "lora")
    assert made.generator is None  # the pipeline's weights are shared
    assert load_file(tmp_path / "lora" / WEIGHTS_NAME).keys() == {"adain_parameters", "crops", "crop_landmarks"}
    tensors = load_file(tmp_path / "lora" / LORA_WEIGHTS_NAME)
    assert all(tensor.dtype == torch.float16 for tensor in tensors.values())


def test_identity_of_lora_is_a_folder_of_peft(pipe, saved_lora):
    made = pipe.load_identity(saved_lora)
    generator = PeftModel.from_pretrained(copy.deepcopy(pipe.generator).eval(), saved_lora)
    points = made.landmarks
    frame, other = (
        pipe.generate_frame(g, made, points).astype(int) for g in (made.tuned_generator(), generator.get_base_model())
    )
    assert (
        np.abs(frame - other).max() <= 1
        and np.abs(frame - pipe.generate_frame(pipe.generator_for(), made, points)).max() > 1
    )


@pytest.mark.parametrize("method", METHODS)
def test_identity_is_read_without_a_model(pipe, method, tmp_path):
    made = tuned(pipe, method=method)
    made.save_pretrained(tmp_path / "ada")
    read = FsthIdentity.from_pretrained(tmp_path / "ada")
    assert type(read) is FsthIdentity and read.name == "ada"
    for name in ("method", "base_model", "fingerprint", "steps", "boxes", "history", "num_portraits"):
        assert getattr(read, name) == getattr(made, name)
    read.save_pretrained(tmp_path / "again")
    for file in (tmp_path / "ada").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()
    assert np.array_equal(frames_of(pipe, pipe.bind(read)), frames_of(pipe, made))


def test_cards_and_identities_need_no_pipeline():
    program = "import sys, fsth_hub.pipelines.identity, fsth_hub.hub.model_card; print([*sys.modules])"
    told = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "fsth_hub.pipelines.identity" in told and "pipeline_fsth" not in told


def test_lora_keeps_to_the_model_that_was_tuned(pipe):
    other = make_pipeline()
    with torch.no_grad():
        other.generator.head.bias += 0.1
    made = tuned(pipe, method="lora")
    assert np.array_equal(frames_of(other, made), frames_of(pipe, made))


def test_crops_are_tuned_like_portraits(pipe):
    crops, landmarks, boxes = pipe.read_portraits(picture())
    from_crops = pipe.fine_tune_crops(crops, landmarks, steps=2, content=PixelLoss())
    made = tuned(pipe)
    assert np.array_equal(frames_of(pipe, from_crops), frames_of(pipe, made))
    assert made.boxes == boxes and from_crops.boxes == []
    assert np.array_equal(made.crops[0], crops[0]) and np.allclose(made.landmarks, landmarks[0])


def test_callback_gets_pictures_and_can_stop(pipe):
    calls = []
    tuned(pipe, callback=lambda *args: calls.append(args))
    assert [call[:2] for call in calls] == [(1, 2), (2, 2)]
    assert calls[0][2] is None and calls[1][2].dtype == np.uint8 and calls[1][2].shape == (pipe.size, pipe.size, 3)

    class Stopped(Exception):
        pass

    def stop(*_):
        raise Stopped

    with pytest.raises(Stopped):
        tuned(pipe, callback=stop)


def test_learning_rate_is_the_callers(pipe):
    slow, again, fast = (tuned(pipe, learning_rate=rate).adain_parameters for rate in (1e-4, 1e-4, 1e-2))
    assert torch.equal(slow, again) and not torch.allclose(slow, fast, atol=1e-3)
    with pytest.raises(FsthError, match="learning_rate must be a number above 0"):
        tuned(pipe, learning_rate=0)


def test_progress_bar_counts_steps(pipe, capfd):
    pipe.set_progress_bar_config(disable=False)
    tuned(pipe)
    pipe.set_progress_bar_config(disable=True)
    assert "2/2" in capfd.readouterr().err


def test_bad_portraits_are_refused_before_tuning(pipe):
    with pytest.raises(NoFaceError):
        tuned(pipe, picture(255))
    with pytest.raises(FsthError, match="1 to 64"):
        tuned(pipe, *[picture()] * 65)


# Crops of any size.


@pytest.fixture
def any_size(monkeypatch, pipe):
    monkeypatch.setattr(pipe, "detector", ScaledDetector())


def large(shift: int = 0, side: int = 512) -> np.ndarray:
    return picture(shift, side, side)


def square_frames(pipe: FsthPipeline, person) -> np.ndarray:
    return arrays(pipe(person, clip(0, 20), crop=False).frames[0])


@pytest.mark.parametrize("method", METHODS)
def test_large_crops_are_kept_and_draw_the_same_frames(pipe, any_size, method, tmp_path):
    made = tuned(pipe, large(), negative(large(9)), method=method, crop=False)
    assert made.crops.shape == (2, 512, 512, 3) and made.max_size == 512
    made.save_pretrained(tmp_path / "ada")
    loaded = pipe.load_identity(tmp_path / "ada")
    assert np.array_equal(loaded.crops, made.crops)
    drawn = square_frames(pipe, made)
    assert drawn.shape[1] == 512 and np.array_equal(square_frames(pipe, loaded), drawn)


@pytest.mark.parametrize("sides, kept", [((300, 512, 100), 300), ((1024, 200), 512), ((64, 512), 64)])
def test_crops_of_different_sizes_are_kept_at_one(pipe, any_size, sides, kept):
    portraits = [large(4 * number, side) for number, side in enumerate(sides)]
    made = tuned(pipe, *portraits, crop=False)
    assert made.crops.shape == (len(sides), kept, kept, 3)
    for points, portrait in zip(made.crop_landmarks, portraits, strict=True):
        expected = pipe.detector.points(portrait) * kept / len(portrait)
        assert np.allclose(points, expected, atol=1e-2)
    assert square_frames(pipe, made).shape == (2, kept, kept, 3)


def test_identities_with_crops_of_the_networks_size_still_load(pipe, any_size, tmp_path):
    """As they were written before frames had any other."""
    tuned(pipe, large(), crop=False).save_pretrained(tmp_path / "ada")
    small = Image.fromarray(large()).resize((pipe.size, pipe.size), Image.Resampling.BICUBIC)
    old = {"crops": torch.from_numpy(np.array(small))[None]}
    old["crop_landmarks"] = torch.from_numpy(pipe.detector.points(large()) * np.float32(pipe.size / 512))[None]
    tensors = load_file(tmp_path / "ada" / WEIGHTS_NAME)
    save_file(tensors | old, tmp_path / "ada" / WEIGHTS_NAME)
    loaded = pipe.load_identity(tmp_path / "ada")
    assert loaded.max_size == pipe.size and square_frames(pipe, loaded).shape == (2, pipe.size, pipe.size, 3)


# Folders.


def test_identity_of_another_model_is_refused(saved):
    other = make_pipeline()
    with torch.no_grad():
        other.generator.head.bias += 0.1
    other.model_name = "other"
    with pytest.raises(FsthError, match=r"another model \('unnamed'\) than the one that is loaded \('other'\)"):
        other.load_identity(saved)
    with pytest.raises(FsthError, match="another model"):  # one whose weights would not even fit
        make_pipeline(source_skips=False).load_identity(saved)


def test_precision_does_not_matter(saved):
    half = make_pipeline().to(dtype=torch.bfloat16)
    assert fingerprint(half.generator) == fingerprint(make_pipeline().generator)
    difference = frames_of(half, half.load_identity(saved)).astype(int)
    single = make_pipeline()
    difference -= frames_of(single, single.load_identity(saved))
    assert np.abs(difference).mean() < 3


def test_model_is_known_by_name_and_not_by_path(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    assert FsthPipeline.from_pretrained(tmp_path / "model").model_name == "model"


def truncate(path: Path):
    path.write_bytes(path.read_bytes()[:-1000])


def drop(name: str):
    def change(folder: Path):
        tensors = load_file(folder / WEIGHTS_NAME)
        del tensors[name]
        save_file(tensors, folder / WEIGHTS_NAME)

    return change


def reshape(folder: Path):
    tensors = load_file(folder / WEIGHTS_NAME)
    tensors["crops"] = tensors["crops"][:, :-1]
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS_NAME)


def forget_the_model(folder: Path):
    config = json.loads((folder / CONFIG_NAME).read_text())
    del config["fingerprint"]
    (folder / CONFIG_NAME).write_text(json.dumps(config))


def change_config(**values):
    def damage(folder: Path):
        config = json.loads((folder / CONFIG_NAME).read_text())
        (folder / CONFIG_NAME).write_text(json.dumps(config | values))

    return damage


@pytest.mark.parametrize(
    "damage, message",
    [
        (shutil.rmtree, "There is no folder"),
        (lambda folder: (folder / WEIGHTS_NAME).unlink(), "holds no identity"),
        (lambda folder: (folder / CONFIG_NAME).unlink(), "holds no identity"),
        (lambda folder: truncate(folder / WEIGHTS_NAME), "damaged"),
        (lambda folder: truncate(folder / CONFIG_NAME), "damaged"),
        (lambda folder: (folder / CONFIG_NAME).write_text("[]"), "damaged"),
        (change_config(num_portraits=3), "one for each portrait"),
        (change_config(num_portraits="2"), "num_portraits is no int"),
        (change_config(steps=None), "steps is no int"),
        (change_config(boxes=[[1, 2]]), "damaged"),
        (change_config(history=[{"step": "one"}]), "history holds more than numbers"),
        (change_config(consent=["yes"]), "consent must be texts"),
        (forget_the_model, "damaged"),
        (drop("generator.head.bias"), "do not fit"),
        (drop("crops"), "damaged"),
        (reshape, "crops are not square"),
    ],
)
def test_damaged_identities_are_one_sentence(pipe, saved, damage, message):
    damage(saved)
    absent = message in ("There is no folder", "holds no identity")
    with pytest.raises(FsthNotFoundError if absent else FsthError, match=message) as caught:
        pipe.load_identity(saved)
    assert isinstance(caught.value, OSError) == absent and "\n" not in str(caught.value)


def change_tensor(name: str, change, file: str = LORA_WEIGHTS_NAME):
    def damage(folder: Path):
        tensors = load_file(folder / file)
        changed = {name: None if change is None else change(tensors.get(name)).contiguous()}
        save_file({n: tensor for n, tensor in (tensors | changed).items() if tensor is not None}, folder / file)

    return damage


def of(name: str) -> str:
    return f"base_model.model.{name}.weight"


@pytest.mark.parametrize(
    "damage, message",
    [
        (change_tensor(of("head.lora_A"), None), "not of one rank"),
        (change_tensor("adain_parameters", None, WEIGHTS_NAME), "damaged"),
        (change_tensor(of("head.lora_A"), lambda a: a[:1]), "not of one rank"),
        (change_tensor(of("encoder.0.conv1.lora_A"), lambda a: a[0, 0, 0, 0]), "no part of a low-rank update"),
        (change_tensor(of("head.lora_B"), lambda b: b[:-1]), "do not fit"),
        (change_tensor(of("tail.lora_A"), lambda _: torch.zeros(8, 8, 3, 3)), "not of one rank"),
        (change_tensor(of("head.lora_A"), lambda a: a.to(torch.int32)), "no part of a low-rank update"),
        (change_tensor("generator.head.bias", lambda _: torch.zeros(3), WEIGHTS_NAME), "other tensors"),
        (lambda folder: (folder / LORA_CONFIG_NAME).unlink(), "damaged"),
        (lambda folder: truncate(folder / LORA_WEIGHTS_NAME), "damaged"),
        (change_config(method="full"), "other tensors"),
        (change_config(method="half"), "method is not full or lora"),
        (change_config(method=["lora"]), "method is not full or lora"),
    ],
)
def test_damaged_loras_are_one_sentence(pipe, saved_lora, damage, message):
    damage(saved_lora)
    with pytest.raises(FsthError, match=message):
        pipe.load_identity(saved_lora)


def test_saving_again_replaces_and_saves_whole_or_not_at_all(pipe, saved, monkeypatch):
    other = tuned(pipe, negative(picture()))
    before = frames_of(pipe, pipe.load_identity(saved))

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(identity, "save_file", interrupted)
        other.save_pretrained(saved)
    assert np.array_equal(frames_of(pipe, pipe.load_identity(saved)), before)
    other.save_pretrained(saved)
    assert np.array_equal(frames_of(pipe, pipe.load_identity(saved)), frames_of(pipe, other))
    assert [path.name for path in saved.parent.iterdir()] == ["ada"]


def test_other_files_are_not_replaced(pipe, tmp_path):
    made = tuned_once(pipe, "lora")
    (tmp_path / "diary.txt").write_text("dear diary")
    for folder in (tmp_path, tmp_path / "diary.txt"):
        with pytest.raises(FsthError, match="something else"):
            made.save_pretrained(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["diary.txt"]
    if Path("/proc").is_dir():
        with pytest.raises(FsthError, match="/proc/ada cannot be written"):
            made.save_pretrained("/proc/ada")


# The command line.


@pytest.fixture
def no_loading(monkeypatch):
    def load(*_, **__):
        raise AssertionError("The model was loaded.")

    monkeypatch.setattr(cli_loading, "load_pipeline", load)


def test_fine_tune_and_animate(tmp_path, vgg):
    make_pipeline().save_pretrained(tmp_path / "model")
    folder, output = tmp_path / "ada", tmp_path / "out.mp4"
    result = run(
        "fine-tune", PORTRAIT, "--output", folder, "--model", tmp_path / "model", "--steps", 2, "--vgg", vgg,
        "--device", "cpu", "--dtype", "float32",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{folder}: 1 portrait, best after 2 of 2 steps\n"
    arguments = ["--driving", DRIVER, "--output", output, "--frames", 2, "--model", tmp_path / "model"]
    result = run("animate", "--identity", folder, *arguments)
    assert result.exit_code == 0, result.output
    assert len(read(output)) == 2
    # with the model in the package it does not go
    result = run("animate", "--identity", folder, *arguments[:-2])
    assert_one_line_error(result, "another model", "'model'", "'bundled'")


def test_animate_takes_portraits_or_an_identity(no_loading, tmp_path):
    arguments = ["--driving", DRIVER, "--output", tmp_path / "out.mp4"]
    assert_one_line_error(run("animate", *arguments), "portraits", "--identity")
    assert_one_line_error(run("animate", PORTRAIT, "--identity", tmp_path, *arguments), "add --paste-back")
    assert_one_line_error(run("animate", "--identity", tmp_path / "nobody", *arguments), "nobody")


def test_what_cannot_be_tuned_fails_before_the_model_is_loaded(no_loading, tmp_path, vgg):
    output = ["--output", tmp_path / "ada"]
    assert_one_line_error(run("fine-tune", tmp_path / "missing.jpg", *output), "missing.jpg")
    assert_one_line_error(run("fine-tune", PORTRAIT, *output, "--vgg", PORTRAIT), "content loss", "astronaut.jpg")
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    assert_one_line_error(run("fine-tune", PORTRAIT, "--output", tmp_path, "--vgg", vgg), "something else")
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]
