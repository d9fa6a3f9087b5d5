"""Identities: made by the pipeline, saved, loaded, driven, and by the command line."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_cli import DRIVER, PORTRAIT, assert_one_line_error, read, run
from test_pipeline import ScaledDetector, arrays, clip, make_pipeline, picture

from fsth_hub import FsthIdentity, cli_loading, identity, identity_mixin
from fsth_hub.errors import FsthError, NoFaceError
from fsth_hub.finetuning import KINDS, PixelLoss
from fsth_hub.identity import CONFIG_NAME, WEIGHTS_NAME, fingerprint
from fsth_hub.pipeline_fsth import FsthPipeline


pytestmark = pytest.mark.filterwarnings("ignore:Portrait")


def negative(image: np.ndarray) -> np.ndarray:
    """Another picture with the same face: the first pixel says where it is."""
    image = image.copy()
    image[1:] = 255 - image[1:]
    return image


@pytest.fixture(autouse=True)
def steps_that_show(monkeypatch):
    """Rates at which two steps of tiny networks change a frame, and the last of them is the best."""
    monkeypatch.setitem(identity_mixin.fine_tune.__kwdefaults__, "generator_lr", 5e-3)
    scores = iter(range(10_000, 0, -1))
    evaluate = identity_mixin.fine_tune.__globals__["evaluate"]
    monkeypatch.setitem(
        identity_mixin.fine_tune.__globals__, "evaluate", lambda *args: (next(scores), evaluate(*args)[1])
    )


def tuned(pipe: FsthPipeline, *portraits, **options) -> FsthIdentity:
    return pipe.fine_tune(list(portraits) or picture(), **{"steps": 2, "content": PixelLoss()} | options)


def frames(pipe: FsthPipeline, person) -> np.ndarray:
    return arrays(pipe(person, clip(0, 20)).frames[0])


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


@pytest.fixture
def saved(pipe, tmp_path) -> Path:
    tuned(pipe, picture(), negative(picture(9))).save_pretrained(tmp_path / "ada")
    return tmp_path / "ada"


@pytest.fixture
def saved_adapter(pipe, tmp_path) -> Path:
    tuned(pipe, kind="adapter").save_pretrained(tmp_path / "ada")
    return tmp_path / "ada"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source_skips", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_identity_draws_the_same_bits(dtype, source_skips, kind, tmp_path):
    pipe = make_pipeline(source_skips=source_skips).to(dtype=dtype)
    made = tuned(pipe, picture(), negative(picture(9)), kind=kind)
    made.save_pretrained(tmp_path / "ada")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ada"]
    assert {path.name for path in (tmp_path / "ada").iterdir()} == {CONFIG_NAME, WEIGHTS_NAME}
    loaded = FsthIdentity.from_pretrained(tmp_path / "ada", pipe)
    drawn = [frames(pipe, person) for person in (made, loaded, [picture(), negative(picture(9))])]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])  # tuning has done something
    for name in ("base_model", "fingerprint", "steps", "num_portraits", "boxes", "history", "kind"):
        assert getattr(made, name) == getattr(loaded, name)
    assert (made.steps, made.num_portraits, made.base_model) == (2, 2, "unnamed")
    assert loaded.kind == kind
    assert loaded.tuned_generator(pipe.generator).dtype == loaded.adain_parameters.dtype == dtype


@pytest.mark.parametrize("kind", KINDS)
def test_two_identities_share_a_pipeline(pipe, kind):
    before = frames(pipe, picture())
    persons = [tuned(pipe, picture(), kind=kind), tuned(pipe, negative(picture()), kind=kind)]
    first, second = (frames(pipe, person) for person in persons)
    assert not np.array_equal(first, second)
    assert np.array_equal(frames(pipe, persons[0]), first)
    assert np.array_equal(frames(pipe, picture()), before)


def test_adapters_draw_at_the_same_time(pipe):
    persons = [tuned(pipe, kind="adapter"), tuned(pipe, negative(picture()), kind="adapter")]
    alone = [frames(pipe, person) for person in persons]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda person: frames(pipe, person), persons * 3))
    assert all(np.array_equal(drawn, alone[index % 2]) for index, drawn in enumerate(together))


def test_adapter_is_small_in_memory_and_on_disk(pipe, saved, tmp_path):
    made = tuned(pipe, kind="adapter")
    made.save_pretrained(tmp_path / "adapter")
    assert made.generator is None  # the pipeline's weights are shared
    tensors = load_file(tmp_path / "adapter" / WEIGHTS_NAME)
    kept = {name for name in tensors if not name.startswith("adapter.")}
    assert kept == {"adain_parameters", "crops", "crop_landmarks"}
    assert all(tensors[name].dtype == torch.float16 for name in tensors.keys() - kept)


def test_adapter_keeps_to_the_model_that_was_tuned(pipe):
    other = make_pipeline()
    with torch.no_grad():
        other.generator.head.bias += 0.1
    made = tuned(pipe, kind="adapter")
    assert np.array_equal(frames(other, made), frames(pipe, made))


def test_crops_are_tuned_like_portraits(pipe):
    crops, landmarks, boxes = pipe.read_portraits(picture())
    from_crops = pipe.fine_tune_crops(crops, landmarks, steps=2, content=PixelLoss())
    made = tuned(pipe)
    assert np.array_equal(frames(pipe, from_crops), frames(pipe, made))
    assert made.boxes == boxes and from_crops.boxes == []
    assert np.array_equal(made.crops[0], crops[0]) and np.allclose(made.landmarks, landmarks[0])


def test_callback_gets_pictures_and_can_cancel(pipe):
    calls = []
    tuned(pipe, callback=lambda *args: calls.append(args))
    assert [call[:2] for call in calls] == [(1, 2), (2, 2)]
    assert calls[0][2] is None and calls[1][2].dtype == np.uint8 and calls[1][2].shape == (pipe.size, pipe.size, 3)
    with pytest.raises(FsthError, match="cancelled"):
        tuned(pipe, callback=lambda *_: False)


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
    monkeypatch.setattr(pipe, "_detector", ScaledDetector())


def large(shift: int = 0, side: int = 512) -> np.ndarray:
    return picture(shift, side, side)


def square_frames(pipe: FsthPipeline, person) -> np.ndarray:
    return arrays(pipe(person, clip(0, 20), crop=False).frames[0])


@pytest.mark.parametrize("kind", KINDS)
def test_large_crops_are_kept_and_draw_the_same_frames(pipe, any_size, kind, tmp_path):
    made = tuned(pipe, large(), negative(large(9)), kind=kind, crop=False)
    assert made.crops.shape == (2, 512, 512, 3) and made.max_size == 512
    made.save_pretrained(tmp_path / "ada")
    loaded = FsthIdentity.from_pretrained(tmp_path / "ada", pipe)
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
    loaded = FsthIdentity.from_pretrained(tmp_path / "ada", pipe)
    assert loaded.max_size == pipe.size and square_frames(pipe, loaded).shape == (2, pipe.size, pipe.size, 3)


# Folders.


def test_identity_of_another_model_is_refused(saved):
    other = make_pipeline()
    with torch.no_grad():
        other.generator.head.bias += 0.1
    other.model_name = "other"
    with pytest.raises(FsthError, match=r"another model \('unnamed'\) than the one that is loaded \('other'\)"):
        FsthIdentity.from_pretrained(saved, other)
    with pytest.raises(FsthError, match="another model"):  # one whose weights would not even fit
        FsthIdentity.from_pretrained(saved, make_pipeline(source_skips=False))


def test_precision_does_not_matter(saved):
    half = make_pipeline().to(dtype=torch.bfloat16)
    assert fingerprint(half.generator) == fingerprint(make_pipeline().generator)
    difference = frames(half, FsthIdentity.from_pretrained(saved, half)).astype(int)
    single = make_pipeline()
    difference -= frames(single, FsthIdentity.from_pretrained(saved, single))
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


@pytest.mark.parametrize(
    "damage, message",
    [
        (shutil.rmtree, "There is no folder"),
        (lambda folder: (folder / WEIGHTS_NAME).unlink(), "holds no identity"),
        (lambda folder: (folder / CONFIG_NAME).unlink(), "holds no identity"),
        (lambda folder: truncate(folder / WEIGHTS_NAME), "damaged"),
        (lambda folder: truncate(folder / CONFIG_NAME), "damaged"),
        (lambda folder: (folder / CONFIG_NAME).write_text("[]"), "damaged"),
        (forget_the_model, "damaged"),
        (drop("generator.head.bias"), "do not fit"),
        (drop("crops"), "do not fit"),
        (reshape, "do not fit"),
    ],
)
def test_damaged_identities_are_one_sentence(pipe, saved, damage, message):
    damage(saved)
    with pytest.raises(FsthError, match=message):
        FsthIdentity.from_pretrained(saved, pipe)


def change_tensor(name: str, change):
    def damage(folder: Path):
        tensors = load_file(folder / WEIGHTS_NAME)
        save_file(tensors | {name: change(tensors.get(name)).contiguous()}, folder / WEIGHTS_NAME)

    return damage


def change_kind(kind):
    def damage(folder: Path):
        config = json.loads((folder / CONFIG_NAME).read_text())
        (folder / CONFIG_NAME).write_text(json.dumps(config | {"kind": kind}))

    return damage


@pytest.mark.parametrize(
    "damage, message",
    [
        (drop("adapter.head.lora_A"), "do not fit"),
        (drop("adain_parameters"), "do not fit"),
        (change_tensor("adapter.head.lora_A", lambda a: a[:1]), "do not fit"),  # of another rank than the others
        (change_tensor("adapter.encoder.0.conv1.lora_A", lambda a: a[:1]), "do not fit"),
        (change_tensor("adapter.encoder.0.conv1.lora_A", lambda a: a[0, 0, 0, 0]), "do not fit"),
        (change_tensor("adapter.head.lora_B", lambda b: b[:-1]), "do not fit"),
        (change_tensor("adapter.tail.lora_A", lambda _: torch.zeros(1)), "do not fit"),
        (change_tensor("adapter.head.lora_A", lambda a: a.to(torch.int32)), "do not fit"),
        (change_kind("full"), "do not fit"),
        (change_kind("half"), "damaged"),
        (change_kind(["adapter"]), "damaged"),
    ],
)
def test_damaged_adapters_are_one_sentence(pipe, saved_adapter, damage, message):
    damage(saved_adapter)
    with pytest.raises(FsthError, match=message):
        FsthIdentity.from_pretrained(saved_adapter, pipe)


def test_saving_again_replaces_and_saves_whole_or_not_at_all(pipe, saved, monkeypatch):
    other = tuned(pipe, negative(picture()))
    before = frames(pipe, FsthIdentity.from_pretrained(saved, pipe))

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(identity, "save_file", interrupted)
        other.save_pretrained(saved)
    assert np.array_equal(frames(pipe, FsthIdentity.from_pretrained(saved, pipe)), before)
    other.save_pretrained(saved)
    assert np.array_equal(frames(pipe, FsthIdentity.from_pretrained(saved, pipe)), frames(pipe, other))
    assert [path.name for path in saved.parent.iterdir()] == ["ada"]


def test_other_files_are_not_replaced(pipe, tmp_path):
    made = tuned(pipe)
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
    def load(*_):
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
    assert_one_line_error(run("animate", PORTRAIT, "--identity", tmp_path, *arguments), "either")
    assert_one_line_error(run("animate", "--identity", tmp_path / "nobody", *arguments), "nobody")


def test_what_cannot_be_tuned_fails_before_the_model_is_loaded(no_loading, tmp_path, vgg):
    output = ["--output", tmp_path / "ada"]
    assert_one_line_error(run("fine-tune", tmp_path / "missing.jpg", *output), "missing.jpg")
    assert_one_line_error(run("fine-tune", PORTRAIT, *output, "--vgg", PORTRAIT), "content loss", "astronaut.jpg")
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    assert_one_line_error(run("fine-tune", PORTRAIT, "--output", tmp_path, "--vgg", vgg), "something else")
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]
