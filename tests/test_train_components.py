"""Training of the facial components: the crops it learns from, and the script."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from fsth_hub.models.errors import FsthError
from fsth_hub.models.facial_components import FsthComponentsConfig, FsthFacialComponents
from testing_utils.meta_training import checkpoints, flags, log_of
from training import train_components
from training.data.component_dataset import ComponentCrops, is_plausible, list_stills


TINY = {
    "mouth_size": 32, "eye_size": 32, "mouth_channels": (8, 8, 16), "eye_channels": (8, 8, 8),
    "num_middle_blocks": 1, "discriminator_channels": 8,
}  # fmt: skip


def test_stills_that_are_held_out_wrong_or_small_are_not_trained_on(stills):
    training, held_out = ({path.stem for path, _ in list_stills(stills, flag)} for flag in (False, True))
    assert held_out == {"00000", "00050", "00100"}
    assert len(training) == 101 - 3 - 2 and not training & {"00000", "00007", "00008", "00050", "00100"}
    assert not is_plausible(np.full((78, 2), np.nan))


def test_crops_are_counted_once_for_a_mouth_and_once_for_each_eye(face_clips, stills):
    mouths, eyes = (ComponentCrops(network, 32, face_clips, stills) for network in ("mouth", "eye"))
    assert len(mouths.images) == 20 + 96 and len(eyes.images) == 2 * len(mouths.images)
    assert [len(clip) for clip in mouths.clips] == [10, 10] and [len(clip) for clip in eyes.clips] == [10] * 4
    assert mouths.clip_shares.sum() == pytest.approx(1) == eyes.clip_shares.sum()
    assert mouths.images.shape[-1] == 44  # with a margin


def test_a_face_that_rests_is_warped_to_itself(face_clips):
    crops = ComponentCrops("mouth", 32, face_clips)
    crops.images[:] = crops.images[0]
    batch = crops.batch(np.random.default_rng(0), 6, 0.0, augment=False)
    error = (batch["warped"] - batch["images"]).abs().amax(dim=1)
    assert error[batch["masks"].amax(dim=1) == 0].max() < 0.01
    assert error.mean() < 0.01  # the rim of an opening is left to the lips
    assert torch.allclose(batch["portraits"], batch["images"])
    assert torch.equal(batch["masks"], batch["portrait_masks"])


@pytest.mark.parametrize("network", ["mouth", "eye"])
def test_a_still_is_its_own_target_and_what_its_expression_hides_is_gone(face_clips, stills, network):
    """The clips' change of expression, here made up, closes the still's mouth; its inside must not come back."""
    crops = ComponentCrops(network, 32, face_clips, stills)
    upper, lower = ([61, 62, 63], [67, 66, 65]) if network == "mouth" else ([37, 38], [41, 40])
    for clip in crops.clips:  # half of each clip is closed
        shut = crops.points[clip[5:]]
        middle = (shut[:, upper, 1] + shut[:, lower, 1]) / 2
        shut[:, upper, 1] = shut[:, lower, 1] = middle
        crops.points[clip[5:]] = shut
        crops.openings[clip[5:]] = 0
    rng = np.random.default_rng(0)
    batch = crops.batch(rng, 12, 1.0, augment=False)
    kept = (crops.images.shape[-1] - crops.size) // 2
    originals = crops.images[crops.stills][..., kept:-kept, kept:-kept].float() / 127.5 - 1
    for image in batch["images"]:
        assert (originals - image).abs().flatten(1).amax(dim=1).min() < 1e-4  # the picture itself
    inside, outside = batch["masks"][:, :1] > 0.9, batch["masks"].amax(dim=1, keepdim=True) == 0
    assert inside.any()
    error = (batch["warped"] - batch["images"]).abs().mean(dim=1, keepdim=True)
    assert error[inside].mean() > 3 * error[outside].mean()


def test_batches_depend_on_their_seed_alone(face_clips, stills):
    crops = ComponentCrops("eye", 32, face_clips, stills)
    first, again, other = (crops.batch(np.random.default_rng(seed), 4, 0.5) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["images"], other["images"])
    for name in ("warped", "portraits", "images"):
        assert first[name].shape == (4, 3, 32, 32) and first[name].abs().max() <= 1


@pytest.fixture
def train(face_clips, stills, vgg_with_heads, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(train_components, "FsthComponentsConfig", partial(FsthComponentsConfig, **TINY))

    def train(name: str = "run", **options):
        AcceleratorState._reset_state(reset_partial_state=True)
        defaults = {
            "stills": stills,
            "vgg": vgg_with_heads,
            "output_dir": tmp_path / name,
            "max_steps": 4,
            "save_every": 2,
        }
        defaults |= {"mouth_batch_size": 4, "eye_batch_size": 2, "adversarial_start": 2, "log_every": 1}
        defaults |= {"mixed_precision": "no", "validation_shards": face_clips}
        train_components.main([str(face_clips)] + flags(defaults | options))
        return tmp_path / name

    return train


def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(train, monkeypatch):
    whole = train("whole")
    entries = log_of(whole)
    assert "mouth_adversarial" not in entries[1] and "eye_adversarial" in entries[2]
    assert min(entry["eye_discriminator"] for entry in entries) > 0  # which learn before they are heard
    validation = [json.loads(line) for line in (whole / "validation.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in validation] == [2, 4] and validation[0]["mouth_lpips_warped"] > 0
    assert (whole / "mouth-0000004.jpg").exists() and (whole / "eye-0000002.jpg").exists()

    saved = train_components.save_model

    def killed(*arguments):
        saved(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(train_components, "save_model", killed)
    with pytest.raises(KeyboardInterrupt):
        train("parts")
    monkeypatch.setattr(train_components, "save_model", saved)
    with pytest.raises(FsthError, match="--resume"):
        train("parts")
    parts = train("parts", resume=True)
    assert checkpoints(parts) == checkpoints(whole)
    assert [entry["step"] for entry in log_of(parts)] == [1, 2, 3, 4]
    for name in ("facial_components", "component_discriminators"):
        ours, theirs = (load_file(folder / "model" / name / "model.safetensors") for folder in (parts, whole))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    loaded = FsthFacialComponents.from_pretrained(whole / "model" / "facial_components")
    assert loaded.mouth.head.weight.abs().max() > 0


def test_one_network_can_be_trained_alone_from_what_there_is(train):
    first = train("first")
    second = train("second", pretrained=first / "model", eye_batch_size=0, max_steps=1, adversarial_start=0)
    before, after = (load_file(run / "model" / "facial_components" / "model.safetensors") for run in (first, second))
    changed = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"mouth"}


def test_patches_at_an_opening_count_most():
    openings = torch.zeros(1, 1, 16, 16)
    openings[..., :8] = 1
    fine, coarse = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2)
    fine[..., :2] = 1
    coarse[..., 1:] = 1
    within = 1.05 / (1.05 + 0.05)
    assert train_components.mean_loss(torch.neg, openings, [fine]).item() == pytest.approx(-within)
    assert train_components.mean_loss(torch.neg, openings, [fine, coarse]).item() == pytest.approx(-0.5)
    # told apart within, and not around
    loss = train_components.mean_loss(train_components.hinge, openings, [2 * fine], [-2 * fine])
    assert loss.item() == pytest.approx(2 * (1 - within))


def test_what_is_not_where_it_was_asked_for_costs():
    masks = torch.zeros(1, 2, 8, 8)
    masks[..., 2:6, 2:6] = 1
    found = 20 * (2 * masks[..., ::2, ::2] - 1)  # logits, at half the resolution
    assert train_components.segmentation_loss(found, masks).item() < 1e-6
    closed = found.clone()
    closed[:, 0] = -20
    assert train_components.segmentation_loss(closed, masks).item() == pytest.approx(20 * (4 / 16) / 2, rel=1e-3)


def test_what_crops_show_is_learned_from_real_ones():
    masks = torch.zeros(1, 2, 8, 8)
    masks[..., 2:6, 2:6] = 1
    found = 20 * (2 * masks[..., ::2, ::2] - 1)

    def judge(network, activations, *condition):
        assert all(len(part) == 2 for part in condition)
        return [torch.zeros(2, 1, 4, 4)], torch.cat([found, -found])

    losses = train_components.ComponentLosses(None, None, judge, None, 0)
    crops = train_components.JudgedCrops([], (torch.zeros(1, 3, 8, 8), masks))
    terms = losses.of_discriminator("mouth", crops)
    assert terms["segmentation_of_real"].item() < 1e-6
    assert terms["discriminator"].item() == pytest.approx(2)  # undecided


@pytest.mark.parametrize("heard", ["adversarial", "segmentation"])
def test_generators_hear_their_discriminators_which_learn_nothing_from_it(train, heard):
    options = {"max_steps": 1, "adversarial_start": 0, "learning_rate": 1e-2, "fall": False}
    options |= {"adversarial_weight": 0, "segmentation_weight": 0}
    runs = [train(f"run{weight}", **options | {f"{heard}_weight": weight}) for weight in (0, 10)]
    for name, same in (("facial_components", False), ("component_discriminators", True)):
        deaf, hearing = (load_file(run / "model" / name / "model.safetensors") for run in runs)
        assert all(torch.equal(deaf[key], hearing[key]) for key in deaf) == same


def test_components_learn_what_the_warp_lacks(train, monkeypatch):
    """Open mouths are red inside, which no portrait shows."""
    batch_of = ComponentCrops.batch

    def red_mouths(*arguments, **options):
        batch = batch_of(*arguments, **options)
        red = torch.tensor([0.6, -0.8, -0.8]).view(1, 3, 1, 1)
        return batch | {"images": torch.where(batch["masks"][:, :1] > 0.5, red, batch["warped"])}

    monkeypatch.setattr(ComponentCrops, "batch", red_mouths)
    options = {"max_steps": 90, "save_every": 90, "adversarial_start": 1000, "eye_batch_size": 0}
    run = train("learning", **options, learning_rate=3e-3, ema_decay=0.8, mouth_batch_size=8)
    entries = log_of(run)
    assert entries[-1]["mouth_pixel"] < 0.7 * entries[0]["mouth_pixel"]
    assert entries[-1]["mouth_segmentation_of_real"] < 0.6 * entries[0]["mouth_segmentation_of_real"]
    validation = json.loads((run / "validation.jsonl").read_text())
    assert validation["mouth_pixel"] < 0.8 * validation["mouth_pixel_warped"]
