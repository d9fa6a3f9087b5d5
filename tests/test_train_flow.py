"""Teaching the flow refiner from optical flow."""

import itertools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

from fsth_hub.models.landmark_flow import face_flow
from fsth_hub.models.landmark_layout import FACE
from fsth_hub.models.modeling_fsth import FsthGenerator
from testing_utils.networks import SIZE
from testing_utils.shards import landmarks, write_shards
from training import train_flow
from training.train_flow import main, measure_residual_flow


def texture(seed: int) -> np.ndarray:
    """A smooth random picture, 2 SIZE wide, to cut frames from."""
    noise = np.random.default_rng(seed).integers(0, 256, (SIZE // 4, SIZE // 2, 3), np.uint8)
    return np.asarray(Image.fromarray(noise).resize((2 * SIZE, SIZE), Image.Resampling.BICUBIC))


def after(count: int, function, other):
    """`function` for so many calls, and then `other`."""
    calls = itertools.count()
    return lambda *args: (function if next(calls) < count else other)(*args)


def to_tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1).float() / 127.5 - 1


def test_what_the_landmarks_do_not_tell_is_measured():
    """The picture moves by 3 pixels and the landmarks stay: all of the movement is missing in their flow."""
    wide = texture(0)
    portrait, frame = (to_tensor(wide[:, left : left + SIZE]) for left in (20, 23))
    points = torch.from_numpy(landmarks())
    matte = torch.ones(1, SIZE, SIZE)
    residual, weight = measure_residual_flow(frame, portrait, points, points, matte, matte, SIZE // 4)
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
    _, weight = measure_residual_flow(frame, portrait, points, points, matte, torch.ones_like(matte), SIZE // 4)
    assert weight[: SIZE // 8].max() == 0 < weight[SIZE // 8 :].max()


def test_what_the_landmarks_tell_is_not_missing():
    wide = texture(0)
    portrait, frame = (to_tensor(wide[:, left : left + SIZE]) for left in (20, 23))
    points = torch.from_numpy(landmarks())
    matte = torch.ones(1, SIZE, SIZE)
    moved = points + torch.tensor([3.0, 0.0])
    residual, weight = measure_residual_flow(frame, portrait, points, moved, matte, matte, SIZE // 4)
    x, y = (points[FACE].mean(dim=0) / 4).int().tolist()
    top = int(points[FACE, 1].min() / 4) - 1  # the forehead, where the exact flow ends
    assert weight[top, x] > 0.1 and residual[top, x].abs().max() < 0.5 * 2 / SIZE
    assert residual[y, x].abs().max() < 0.5 * 2 / SIZE


def test_what_is_learned_is_saved_on_the_way(pretrained, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    shards = write_shards(tmp_path / "shards", {"ann/1.mp4": [texture(1)[:, :SIZE]] * 3})

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_flow.FlowLearner, "forward", after(2, train_flow.FlowLearner.forward, killed))
    options = {"pretrained": pretrained, "output_dir": tmp_path / "model", "image_size": SIZE, "batch_size": 2}
    options |= {"max_steps": 4, "log_every": 1, "num_workers": 0, "mixed_precision": "no"}
    with pytest.raises(KeyboardInterrupt):
        main([str(shards)] + [text for name, value in options.items() for text in (f"--{name}", str(value))])
    FsthGenerator.from_pretrained(tmp_path / "model" / "generator")


def test_refiner_learns_and_all_else_stays(pretrained, tmp_path, capsys, monkeypatch):
    """Everything moves along with the head, which the landmarks' flow, fading away from it, does not say."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    wide = texture(1)
    # frame i of `write_shards` has its landmarks i pixels to the right
    clips = {"ann/1.mp4": [wide[:, 20 - index : 20 - index + SIZE] for index in range(9)]}
    shards = write_shards(tmp_path / "shards", clips)
    options = {"pretrained": pretrained, "output_dir": tmp_path / "model", "validation_shards": shards}
    options |= {"image_size": SIZE, "batch_size": 8, "max_steps": 60, "log_every": 60, "learning_rate": 3e-3}
    options |= {"num_workers": 0, "mixed_precision": "no"}
    main([str(shards)] + [text for name, value in options.items() for text in (f"--{name}", str(value))])
    line = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert line["step"] == 60 and line["validation"] < 0.7
    for name in ("embedder", "discriminator"):
        before, after = (load_file(folder / name / "model.safetensors") for folder in (pretrained, tmp_path / "model"))
        assert all(torch.equal(before[key].half(), after[key]) for key in before)
    before, after = (
        load_file(folder / "generator" / "model.safetensors") for folder in (pretrained, tmp_path / "model")
    )
    changed = {key.rpartition(".")[0] for key in before if not torch.equal(before[key].half(), after[key])}
    assert changed and all(name.startswith("source_skips.refiner.") for name in changed)
