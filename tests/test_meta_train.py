"""Meta-training, end to end on tiny shards and tiny networks."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from accelerate import tracking
from PIL import Image
from safetensors.torch import load_file, save_file

from fsth_hub.models.errors import FsthError
from testing_utils.hub_server import ANN_READS
from testing_utils.meta_training import checkpoints, log_of, weights_of
from testing_utils.networks import NETWORKS, SIZE, tiny_config
from testing_utils.paths import ROOT


def test_two_steps_leave_a_model_a_checkpoint_a_log_and_samples(train, shards, vgg):
    folder = train(
        validation_shards=shards,
        sample_every=1,
        mixed_precision="bf16",
        parts_weight=0.15,
        pixel_weight=10,
        window=SIZE // 2,
    )
    assert checkpoints(folder) == ["checkpoint-0000002"]
    log = log_of(folder)
    terms = {"vgg", "parts", "pixel", "adversarial", "feature_matching", "match", "discriminator"}
    assert [entry["step"] for entry in log] == [1, 2] and terms < log[0].keys()
    assert all(np.isfinite(list(entry.values())).all() for entry in log)
    for name, network in NETWORKS.items():
        model, info = network.from_pretrained(folder / "model" / name, output_loading_info=True)
        assert not info["missing_keys"] and model.config.image_size == SIZE
        assert model.config.num_identities == 0  # the training videos' vectors stay behind
        assert {tensor.dtype for tensor in weights_of(folder / "model", name).values()} == {torch.float16}
    # portrait, drawing, warp, result, truth beside each other, eight episodes below each other
    with Image.open(folder / "sample-0000002.jpg") as sample:
        assert sample.size == (5 * SIZE, 8 * SIZE)
    validation = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in validation] == [1, 2] and all(entry["vgg"] > 0 for entry in validation)


def test_paper_networks_train_too(train, shards, monkeypatch):
    monkeypatch.setattr(tiny_config, "paper", tiny_config, raising=False)
    folder = train(max_steps=1, validation_shards=shards, preset="paper")
    assert (folder / "sample-0000001.jpg").exists()
    names = weights_of(folder / "model", "generator").keys()
    assert not any("source_skips" in name for name in names) and any("attention" in name for name in names)


def test_all_three_learn_and_the_average_lags_behind(train, pretrained, tmp_path):
    moved = {}
    for decay in (0.0, 0.9):
        folder = train(
            pretrained=pretrained, output_dir=tmp_path / str(decay), max_steps=3, ema_decay=decay, generator_lr=1e-3
        )
        for name in NETWORKS:
            before, after = weights_of(pretrained, name), weights_of(folder / "model", name)
            changes = [(after[key] - before[key]).abs().mean() for key in before if key.endswith("original")]
            moved[name, decay] = torch.stack(changes).mean().item()
    for name in ("embedder", "generator"):
        assert 0 < moved[name, 0.9] < 0.95 * moved[name, 0.0]
    assert moved["discriminator", 0.9] == pytest.approx(moved["discriminator", 0.0], rel=0.05)
    assert moved["discriminator", 0.9] > 1e-4


def test_pretrained_networks_go_on_from_where_they_were(train, pretrained):
    folder = train(pretrained=pretrained, max_steps=1, generator_lr=0, discriminator_lr=0)
    for name in NETWORKS:
        before, after = weights_of(pretrained, name), weights_of(folder / "model", name)
        assert before.keys() == after.keys()
        for key in before:
            if not key.endswith(("_u", "_v")):
                assert torch.equal(before[key].half(), after[key])


def test_generators_gradients_do_not_reach_the_discriminator(train, pretrained, tmp_path):
    """Its first update is made on frames drawn before any update, so the generator's loss must not matter to it."""
    after = []
    for weight in (0.0, 1e6):
        folder = train(
            pretrained=pretrained, output_dir=tmp_path / str(weight), max_steps=1, discriminator_steps=1,
            adversarial_weight=weight, feature_matching_weight=weight, generator_lr=1e-6,
        )  # fmt: skip
        after.append(weights_of(folder / "model", "discriminator"))
    before = weights_of(pretrained, "discriminator")
    assert all(torch.equal(after[0][key], after[1][key]) for key in before)
    assert any(not torch.equal(before[key].half(), after[0][key]) for key in before if key.endswith("original"))


def test_adversarial_terms_begin_when_they_are_told_to(train):
    log = log_of(train(adversarial_start=1))
    assert "adversarial" not in log[0] and "discriminator" not in log[0]
    assert "adversarial" in log[1] and "discriminator" in log[1]


def test_old_checkpoints_go(train):
    folder = train(max_steps=3, save_every=1, keep_checkpoints=2)
    assert checkpoints(folder) == ["checkpoint-0000002", "checkpoint-0000003"]


def test_another_run_is_not_written_over(train):
    train(max_steps=1)
    with pytest.raises(FsthError, match="--resume"):
        train(max_steps=1)


def test_checkpoint_of_other_networks_is_refused(train, monkeypatch):
    train(max_steps=1)
    with pytest.raises(FsthError, match="does not fit"):
        train(max_steps=2, resume=True, source_skips=False)


def test_resume_brings_back_weights_and_average(train):
    options = {"ema_decay": 1.0, "adversarial_start": 2, "discriminator_steps": 1}  # the first step's weights for ever
    folder = train(max_steps=3, generator_lr=1e-3, **options)
    before = {name: weights_of(folder / "model", name) for name in NETWORKS}
    learner = load_file(folder / "checkpoint-0000003" / "learner.safetensors")
    train(max_steps=4, generator_lr=0, discriminator_lr=0, resume=True, **options)
    resumed = load_file(folder / "checkpoint-0000004" / "learner.safetensors")
    weights = [key for key in learner if key.endswith("original")]
    assert weights and all(torch.equal(resumed[key], learner[key]) for key in weights)
    for name in NETWORKS:
        after = weights_of(folder / "model", name)
        assert all(torch.equal(after[key], before[name][key]) for key in after if key.endswith("original"))
    average = before["generator"]["head.weight"]
    assert not torch.allclose(average.float(), learner["generator.head.weight"], atol=1e-4)


def test_time_limit_saves_and_stops(train):
    folder = train(max_steps=100, max_minutes=0)
    assert checkpoints(folder) == ["checkpoint-0000001"] and (folder / "model" / "generator").is_dir()


def test_loss_that_is_not_finite_stops_and_leaves_the_checkpoint_alone(train, vgg, tmp_path):
    def fingerprint():
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path: hashlib.sha256(path.read_bytes()).digest() for path in files}

    folder = train(max_steps=1)
    before = fingerprint()
    poisoned = tmp_path / "poisoned.safetensors"
    save_file(load_file(vgg) | {"features.0.bias": torch.full((2,), torch.nan)}, poisoned)
    with pytest.raises(FsthError, match=r"not finite at step 2: .*'vgg': nan"):
        train(max_steps=2, resume=True, vgg=poisoned)
    assert fingerprint() == before


def test_meta_training_needs_no_package_for_pictures_and_clips():
    blocked = ("diffusers", "av", "gradio", "cv2", "face_alignment", "imageio", "pillow_heif", "skimage", "typer")
    program = f"import sys; sys.modules.update(dict.fromkeys({blocked})); import training.meta_train"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_rates_rise_and_fall(train, tmp_path):
    options = {"max_steps": 4, "warmup_steps": 2, "generator_lr": 1.0, "adversarial_start": 9}
    rates = [
        [entry["learning_rate"] for entry in log_of(train(**options, lr_schedule=name, output_dir=tmp_path / name))]
        for name in ("constant", "cosine")
    ]
    assert rates[0] == [0.5, 1, 1, 1]
    assert rates[1] == pytest.approx([0.5, 1, 0.75, 0.25])


def test_trackers_see_losses_and_pictures(train, shards, monkeypatch):
    class Tracker(tracking.GeneralTracker):
        name, requires_logging_directory, seen = "tensorboard", True, []
        tracker = None

        def __init__(self, project, folder, **kwargs):
            super().__init__()

        def store_init_configuration(self, values):
            self.seen.append(values)

        def log(self, values, step, **kwargs):
            self.seen.append({"step": step, **values})

        def log_images(self, values, step, dataformats):
            self.seen.append({name: picture.shape for name, picture in values.items()})

    monkeypatch.setattr(tracking, "_available_trackers", [tracking.LoggerType.TENSORBOARD])
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Tracker)
    folder = train(max_steps=1, report_to="tensorboard", validation_shards=shards)
    flags, terms, validation, picture = Tracker.seen
    assert flags["max_steps"] == "1"
    assert terms == log_of(folder)[0] and {"vgg", "learning_rate", "images_per_second"} < terms.keys()
    assert validation["validation/vgg"] > 0 and picture == {"sample": (1, 8 * SIZE, 5 * SIZE, 3)}


def test_missing_tracker_is_named(train, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "_available_trackers", [])
    with pytest.raises(FsthError, match="--report_to wandb"):
        train(report_to="wandb")
    assert not (tmp_path / "run").exists()


def test_model_is_pushed_and_private(train, hub, capsys):
    train(max_steps=1, push_to_hub="ann/heads")
    repository = hub.repositories["ann/heads"]
    files = repository.files().keys()
    assert repository.private
    assert {f"{name}/{file}" for name in NETWORKS for file in ("config.json", "model.safetensors")} < files
    assert f"/ann/heads/commit/{repository.sha('main')}" in capsys.readouterr().out


@pytest.mark.parametrize("token, message", [(None, "hf auth login"), (ANN_READS, "may not write")])
def test_push_without_permission_is_refused_before_training(train, hub, tmp_path, monkeypatch, token, message):
    hub.add("ann/heads", {})
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(FsthError, match=message):
        train(push_to_hub="ann/heads")
    assert not (tmp_path / "run").exists()
