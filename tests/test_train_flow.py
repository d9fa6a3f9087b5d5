"""Teaching the flow refiner from optical flow."""

import itertools
import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from fsth_hub.models.landmark_flow import face_flow
from fsth_hub.models.landmark_layout import FACE
from fsth_hub.models.modeling_fsth import FsthGenerator
from testing_utils.networks import SIZE
from testing_utils.shards import landmarks, write_shards
from training import train_flow
from training.networks import load_networks
from training.train_flow import compute_trust, main, measure_residual_flow


def texture(seed: int) -> np.ndarray:
    """A smooth random picture, 2 SIZE wide, to cut frames from."""
    noise = np.random.default_rng(seed).integers(0, 256, (SIZE // 4, SIZE // 2, 3), np.uint8)
    return np.asarray(Image.fromarray(noise).resize((2 * SIZE, SIZE), Image.Resampling.BICUBIC))


def after(count: int, function, other):
    """`function` for so many calls, and then `other`."""
    calls = itertools.count()
    return lambda *args, **options: (function if next(calls) < count else other)(*args, **options)


def to_tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1).float() / 127.5 - 1


def test_what_the_landmarks_do_not_tell_is_measured():
    """The picture moves by 3 pixels and the landmarks stay: all of the movement is missing in their flow."""
    wide = texture(0)
    portrait, frame = (to_tensor(wide[:, left : left + SIZE]) for left in (20, 23))
    points = torch.from_numpy(landmarks())
    matte = torch.ones(1, SIZE, SIZE)
    _, residual, weight = measure_residual_flow(frame, portrait, points, points, matte, matte, SIZE // 4)
    assert residual.shape == (SIZE // 4, SIZE // 4, 2) and weight.shape == (SIZE // 4, SIZE // 4)
    exactness = F.avg_pool2d(face_flow(points[None], points[None], SIZE).exactness.permute(0, 3, 1, 2), 4)[0, 0]
    around, inner = exactness == 0, slice(4, -4)
    assert weight[inner, inner][around[inner, inner]].mean() > 0.9
    assert weight[exactness == 1].max() == 0  # where the flow is exact there is nothing to learn
    moved = residual[inner, inner][around[inner, inner]]
    assert moved[:, 0].median().item() == pytest.approx(3 * 2 / SIZE, rel=0.1)
    assert moved[:, 1].abs().median() < 0.2 * 2 / SIZE


def test_nothing_is_learned_from_the_background():
    wide = texture(0)
    portrait, frame = (to_tensor(wide[:, left : left + SIZE]) for left in (20, 23))
    points, matte = torch.from_numpy(landmarks()), torch.ones(1, SIZE, SIZE)
    matte[..., : SIZE // 2, :] = 0
    _, _, weight = measure_residual_flow(frame, portrait, points, points, matte, torch.ones_like(matte), SIZE // 4)
    assert weight[: SIZE // 8].max() == 0 < weight[SIZE // 8 :].max()


def test_what_the_landmarks_tell_is_not_missing():
    wide = texture(0)
    portrait, frame = (to_tensor(wide[:, left : left + SIZE]) for left in (20, 23))
    points = torch.from_numpy(landmarks())
    matte = torch.ones(1, SIZE, SIZE)
    moved = points + torch.tensor([3.0, 0.0])
    _, residual, weight = measure_residual_flow(frame, portrait, points, moved, matte, matte, SIZE // 4)
    x, y = (points[FACE].mean(dim=0) / 4).int().tolist()
    top = int(points[FACE, 1].min() / 4) - 1  # the forehead, where the exact flow ends
    assert weight[top, x] > 0.1 and residual[top, x].abs().max() < 0.5 * 2 / SIZE
    assert residual[y, x].abs().max() < 0.5 * 2 / SIZE


@pytest.fixture
def run(pretrained, tmp_path, monkeypatch):
    """Frames of which everything moves along with the head, which the landmarks' flow, fading away from it, does not
    say; and a function that trains on them."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    wide = texture(1)
    # frame i of `write_shards` has its landmarks i pixels to the right
    clips = {"ann/1.mp4": [wide[:, 20 - index : 20 - index + SIZE] for index in range(9)]}
    shards = write_shards(tmp_path / "shards", clips)

    def train(**changes):
        options = {"pretrained": pretrained, "output_dir": tmp_path / "run", "image_size": SIZE, "num_pairs": 6}
        options |= {"batch_size": 2, "max_steps": 4, "log_every": 1, "num_workers": 0, "mixed_precision": "no"}
        main(
            [str(shards)] + [text for name, value in (options | changes).items() for text in (f"--{name}", str(value))]
        )

    train.folder, train.shards = tmp_path / "run", shards
    return train


def weights_of(folder) -> dict[str, torch.Tensor]:
    return {name: tensor.half() for name, tensor in load_file(folder / "generator" / "model.safetensors").items()}


def test_what_is_learned_is_saved_on_the_way(run, pretrained, monkeypatch):
    def killed(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_flow.FlowLearner, "forward", after(2, train_flow.FlowLearner.forward, killed))
    with pytest.raises(KeyboardInterrupt):
        run(learning_rate=1)
    before, after_two = (weights_of(folder) for folder in (pretrained, run.folder / "model"))
    assert any(not torch.equal(before[name], after_two[name]) for name in before)


def test_where_nothing_helps_the_model_is_as_it_was(run, pretrained):
    run(validation_shards=run.shards, learning_rate=1e4, num_pairs=16)
    before, left = (weights_of(folder) for folder in (pretrained, run.folder / "model"))
    assert all(torch.equal(before[name], left[name]) for name in before)


def test_pairs_are_worked_out_once(run, pretrained, tmp_path, monkeypatch):
    measured = []
    monkeypatch.setattr(
        train_flow, "measure_residual_flow", lambda *args: measured.append(1) or measure_residual_flow(*args)
    )
    run(max_steps=1)
    assert len(measured) == 6
    run(max_steps=2, learning_rate=1e-3)
    assert len(measured) == 6
    run(max_steps=1, seed=1)  # other pairs
    assert len(measured) == 12
    other = tmp_path / "other"
    shutil.copytree(pretrained, other)
    file = other / "generator" / "model.safetensors"
    weights = load_file(file)
    weights["source_skips.encoder.0.0.0.weight"] *= 1.1
    save_file(weights, file, {"format": "pt"})
    run(max_steps=1, seed=1, pretrained=other)  # what its refiner sees is something else
    assert len(measured) == 18
    run(max_steps=1, seed=1, pretrained=other, image_size=2 * SIZE)
    assert len(measured) == 24


def test_pairs_that_were_not_all_saved_are_none(run, monkeypatch):
    def killed(tensors, file, metadata):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(train_flow, "save_file", killed)
        with pytest.raises(KeyboardInterrupt):
            run()
    run()
    FsthGenerator.from_pretrained(run.folder / "model" / "generator")


def test_weights_of_the_best_validation_are_kept(run, capsys):
    run(validation_shards=run.shards, max_steps=20, learning_rate=3e-3, num_pairs=16)
    file = run.folder / "model" / "generator" / "model.safetensors"
    best = load_file(file)
    lowest = min(json.loads(line)["validation"] for line in capsys.readouterr().out.strip().splitlines())
    run(validation_shards=run.shards, max_steps=1, learning_rate=0, pretrained=run.folder / "model")
    started = json.loads(capsys.readouterr().out.strip().splitlines()[0])
    assert started["validation"] == pytest.approx(lowest, abs=2e-3)  # half precision
    run(validation_shards=run.shards, max_steps=2, learning_rate=10, pretrained=run.folder / "model")
    after = load_file(file)
    assert all(torch.equal(best[name], after[name]) for name in best)


def test_refiner_learns_and_all_else_stays(run, pretrained, capsys):
    run(validation_shards=run.shards, batch_size=8, num_pairs=64, max_steps=60, log_every=60, learning_rate=3e-3)
    line = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert line["step"] == 60 and line["validation"] < 0.7
    trained = run.folder / "model"
    for name in ("embedder", "discriminator"):
        before, after = (load_file(folder / name / "model.safetensors") for folder in (pretrained, trained))
        assert all(torch.equal(before[key].half(), after[key]) for key in before)
    before, after = (load_file(folder / "generator" / "model.safetensors") for folder in (pretrained, trained))
    changed = {key.rpartition(".")[0] for key in before if not torch.equal(before[key].half(), after[key])}
    assert changed and all(name.startswith("source_skips.refiner.") for name in changed)


def test_what_the_decoder_goes_by_stays(run, pretrained, tmp_path):
    """Confidence and visibility are said by the same network, and nothing in the flow asks for them."""
    told = tmp_path / "told"
    shutil.copytree(pretrained, told)
    _, generator, _ = load_networks(told)
    nn.init.normal_(generator.source_skips.refiner.head.weight[-2:], generator=torch.Generator().manual_seed(0))
    generator.save_pretrained(told / "generator")
    run(pretrained=told, batch_size=8, num_pairs=64, max_steps=60, log_every=60, learning_rate=3e-3)
    seen = load_file(run.folder / "pairs-0.safetensors")["seen"]
    before, after = (
        compute_trust(load_networks(folder)[1].source_skips.refiner, seen) for folder in (told, run.folder / "model")
    )
    assert before.std() > 0.1
    assert (after - before).square().mean() < 0.1 * before.var()
