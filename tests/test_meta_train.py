"""Meta-training, end to end on tiny shards and tiny networks."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file, save_file
from shards import NETWORKS, ROOT
from test_modeling import SIZE, tiny_config

from training import meta_train


@pytest.fixture
def train(shards, vgg, tmp_path, monkeypatch):
    """Runs the script with these options, on tiny networks, and returns its folder."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(meta_train, "FsthConfig", tiny_config)
    output_dir = tmp_path / "run"

    def train(**options) -> Path:
        AcceleratorState._reset_state(reset_partial_state=True)  # a process has one accelerator, a script one process
        defaults = {"output_dir": output_dir, "vgg": vgg, "image_size": SIZE, "batch_size": 2, "num_sources": 2}
        defaults |= {"num_workers": 0, "max_steps": 2, "log_every": 1, "mixed_precision": "no", "warmup_steps": 0}
        arguments = [str(shards)]
        for name, value in (defaults | options).items():
            arguments += [f"--{name}"] if value is True else [f"--{name}", str(value)]
        meta_train.main(arguments)
        return (defaults | options)["output_dir"]

    return train


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights_of(folder: Path, network: str) -> dict[str, torch.Tensor]:
    return load_file(folder / network / "model.safetensors")


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint*"))


def test_two_steps_leave_a_model_a_checkpoint_a_log_and_samples(train, shards, vgg):
    folder = train(
        validation_shards=shards,
        sample_every=1,
        mixed_precision="bf16",
        parts_weight=0.15,
        pixel_weight=10,
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
    monkeypatch.setattr(meta_train, "FsthConfig", lambda **kwargs: tiny_config(**kwargs | {"source_skips": False}))
    folder = train(max_steps=1, validation_shards=shards, vary_sources=True)
    assert (folder / "sample-0000001.jpg").exists()
    assert not any("source_skips" in name for name in weights_of(folder / "model", "generator"))


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
    log = log_of(train(adversarial_start=1, warmup_steps=2))
    assert "adversarial" not in log[0] and "discriminator" not in log[0]
    assert "adversarial" in log[1] and "discriminator" in log[1]


def test_resume_goes_on_and_old_checkpoints_go(train):
    folder = train(max_steps=3, save_every=1, keep_checkpoints=2)
    assert checkpoints(folder) == ["checkpoint-0000002", "checkpoint-0000003"]
    train(max_steps=5, save_every=1, keep_checkpoints=2, resume=True)
    assert [entry["step"] for entry in log_of(folder)] == [1, 2, 3, 4, 5]
    assert checkpoints(folder) == ["checkpoint-0000004", "checkpoint-0000005"]


def test_resume_brings_back_weights_and_average(train):
    options = {"ema_decay": 1.0, "adversarial_start": 2, "discriminator_steps": 1}  # the first step's weights for ever
    folder = train(max_steps=3, generator_lr=1e-3, **options)
    before = {name: weights_of(folder / "model", name) for name in NETWORKS}
    learner = load_file(folder / "checkpoint-0000003" / "model.safetensors")
    train(max_steps=4, generator_lr=0, discriminator_lr=0, resume=True, **options)
    resumed = load_file(folder / "checkpoint-0000004" / "model.safetensors")
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


def test_two_processes_train_one_model(shards, vgg, pretrained, tmp_path):
    folder = tmp_path / "run"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, ROOT / "training" / "meta_train.py", shards, "--output_dir", folder, "--vgg", vgg]
    command += ["--pretrained", pretrained, "--validation_shards", shards]
    for name, value in {"image_size": SIZE, "batch_size": 2, "num_sources": 2, "max_steps": 2, "log_every": 1}.items():
        command += [f"--{name}", str(value)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command += ["--num_workers", "0", "--mixed_precision", "no", "--vary_sources"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [entry["step"] for entry in log_of(folder)] == [1, 2]  # written by one of them
    assert checkpoints(folder) == ["checkpoint-0000002"] and (folder / "sample-0000002.jpg").exists()


def test_loss_that_is_not_finite_stops_and_leaves_the_checkpoint_alone(train, vgg, tmp_path):
    def fingerprint():
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path: hashlib.sha256(path.read_bytes()).digest() for path in files}

    folder = train(max_steps=1)
    before = fingerprint()
    poisoned = tmp_path / "poisoned.safetensors"
    save_file(load_file(vgg) | {"features.0.bias": torch.full((2,), torch.nan)}, poisoned)
    with pytest.raises(SystemExit, match=r"not finite at step 2: .*'vgg': nan"):
        train(max_steps=2, resume=True, vgg=poisoned)
    assert fingerprint() == before


def test_meta_training_needs_no_package_for_pictures_and_clips():
    blocked = ("diffusers", "av", "gradio", "cv2", "face_alignment", "imageio", "pillow_heif", "skimage", "typer")
    program = f"import sys; sys.modules.update(dict.fromkeys({blocked})); import training.meta_train"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
