"""Meta-training that is interrupted, taken in parts or shared by processes comes to the same as when it is not."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from testing_utils.meta_training import ON_CPU, checkpoints, flags, log_of, weights_of
from testing_utils.networks import NETWORKS, SIZE
from testing_utils.paths import ROOT
from testing_utils.shards import NUM_FRAMES, write_shards
from testing_utils.steady import STEADY
from training import meta_train


@pytest.fixture(autouse=True)
def one_thread():
    """As the processes to compare with have: sums in another order differ in their last bits, and that grows."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# What resuming could start anew: warm-up, schedule, number of portraits, average, the discriminator's start, log line.
LONG = {"max_steps": 4, "save_every": 3, "log_every": 2, "warmup_steps": 3, "lr_schedule": "cosine", "ema_decay": 0.5}
LONG |= {"vary_sources": True, "adversarial_start": 1, "generator_lr": 3e-3, "discriminator_lr": 3e-3}
CLOCKS = {"images_per_second", "minutes"}


@pytest.fixture
def steady(monkeypatch):
    for replacement in STEADY:
        monkeypatch.setattr(*replacement)


def assert_same_run(folder: Path, expected: Path, **tolerance):
    logs = [
        [{k: v for k, v in entry.items() if k not in CLOCKS} for entry in log_of(run)] for run in (folder, expected)
    ]
    assert len(logs[0]) == len(logs[1]) > 0
    for entry, other in zip(*logs, strict=True):
        assert entry == pytest.approx(other, rel=1e-5, abs=2e-4)
    last = checkpoints(expected)[-1]
    files = sorted(path.name for path in (expected / last).glob("*.safetensors"))
    assert files == [
        f"{name}.safetensors"
        for name in ("average", "discriminator", "discriminator_optimizer", "generator_optimizer", "learner")
    ]
    for name in files:
        tensors, others = (load_file(run / last / name) for run in (folder, expected))
        assert tensors.keys() == others.keys()
        for key in tensors:
            torch.testing.assert_close(tensors[key], others[key], **tolerance)


KILLED = """
import os, signal, sys
sys.path[:0] = [root := sys.argv.pop(1), root + "/tests"]
from testing_utils.steady import STEADY
from training import checkpoints, meta_train

for replacement in STEADY:
    setattr(*replacement)
save_file, saves = checkpoints.save_file, []

def killing(*args):
    saves.append(args)
    if len(saves) == 4:  # the second optimiser of the second checkpoint
        os.kill(os.getpid(), signal.SIGKILL)
    save_file(*args)

checkpoints.save_file = killing
meta_train.main(sys.argv[1:])
"""


def test_resumed_runs_equal_the_unbroken_one(train, shards, vgg, pretrained, tmp_path, monkeypatch, steady):
    options = LONG | {"pretrained": pretrained}
    expected = train(**options, output_dir=tmp_path / "unbroken")

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(meta_train, "save_networks", stop)  # right after the checkpoint of step 3
        train(**options)
    assert_same_run(train(**options, resume=True), expected, rtol=1e-4, atol=2e-6)

    # with two loader workers, and killed while it saves, after a line that the resumed run writes again
    folder = tmp_path / "killed"
    options |= {"output_dir": folder, "num_workers": 2}
    fixed = {"vgg": vgg, "image_size": SIZE, "batch_size": 2, "num_sources": 2, "mixed_precision": "no"}
    command = [sys.executable, "-c", KILLED, ROOT, shards, *flags(fixed | options)]
    done = subprocess.run(command, env=ON_CPU, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert checkpoints(folder) == ["checkpoint-0000003", "checkpoint-0000004.partial"]
    assert [entry["step"] for entry in log_of(folder)] == [2, 4]
    train(**options, resume=True)
    assert checkpoints(folder) == ["checkpoint-0000003", "checkpoint-0000004"]
    assert_same_run(folder, expected, rtol=1e-4, atol=2e-6)


@pytest.fixture
def textured(tmp_path) -> Path:
    """Shards of smooth noise: where a picture is flat, norms divide by almost nothing and enlarge rounding errors."""
    noise = np.random.default_rng(0).integers(0, 256, (NUM_FRAMES, 8, 8, 3), np.uint8)
    frames = [np.asarray(Image.fromarray(coarse).resize((SIZE, SIZE))) for coarse in noise]
    return write_shards(tmp_path / "textured", dict.fromkeys(["ann/1.mp4", "ann/2.mp4", "bob/1.mp4"], frames))


def assert_same_update(pretrained: Path, folder: Path, other: Path):
    before = {f"{name}.{key}": value for name in NETWORKS for key, value in weights_of(pretrained, name).items()}
    weights, others = (
        load_file(run / "checkpoint-0000002" / "learner.safetensors")
        | {
            f"discriminator.{key}": value
            for key, value in load_file(run / "checkpoint-0000002" / "discriminator.safetensors").items()
        }
        for run in (folder, other)
    )
    moved = torch.stack([(weights[key] - before[key]).norm() for key in before])
    apart = torch.stack([(others[key] - weights[key]).norm() for key in before])
    assert moved.median() > 1e-3
    assert (apart / moved.clamp(min=1e-3)).max() < 1e-3


def test_accumulated_gradients_make_the_update_of_a_larger_batch(train, textured, pretrained, tmp_path, steady):
    options = {
        "shards": textured,
        "pretrained": pretrained,
        "generator_lr": 3e-3,
        "discriminator_lr": 3e-3,
        "num_sources": 3,
        "max_steps": 2,
    }
    for parts in (1, 2):
        train(**options, batch_size=4 // parts, gradient_accumulation_steps=parts, output_dir=tmp_path / str(parts))
    assert_same_update(pretrained, tmp_path / "1", tmp_path / "2")
    logs = [log_of(tmp_path / str(parts))[0] for parts in (1, 2)]
    assert all(logs[0][key] == pytest.approx(logs[1][key], abs=2e-4) for key in logs[0] if key not in CLOCKS)


RECORDING = """
import os, sys
sys.path[:0] = [root := sys.argv.pop(1), root + "/tests"]
from safetensors.torch import save_file
from testing_utils.steady import STEADY
from training import meta_train

rank = os.environ["RANK"]
for replacement in STEADY:
    setattr(*replacement)
draw, end = meta_train.sample_batches, meta_train.Accelerator.end_training

def drawing(*args):
    for keys in draw(*args):
        with open(f"keys-{rank}.txt", "a") as file:
            file.writelines(f"{tuple(key)}\\n" for key in keys)
        yield keys

def ending(accelerator):
    assert accelerator.num_processes == 2
    learner, discriminator = (accelerator.unwrap_model(model).state_dict() for model in accelerator._models)
    assert not learner.keys() & discriminator.keys()
    save_file({key: value.contiguous() for key, value in (learner | discriminator).items()}, f"{rank}.safetensors")
    end(accelerator)

meta_train.sample_batches, meta_train.Accelerator.end_training = drawing, ending
meta_train.main(sys.argv[1:])
"""


def test_two_processes_train_one_model(train, textured, vgg, pretrained, tmp_path, steady):
    """Each sees half of what one process with twice the batch sees, and all three end with the same weights."""
    options = {"image_size": SIZE, "num_sources": 2, "max_steps": 2, "log_every": 1, "generator_lr": 3e-3}
    options |= {"discriminator_lr": 3e-3, "vary_sources": True, "num_workers": 0, "pretrained": pretrained}
    program = tmp_path / "program.py"
    program.write_text(RECORDING)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", program, ROOT]
    fixed = {"output_dir": "run", "vgg": vgg, "validation_shards": textured, "batch_size": 1, "mixed_precision": "no"}
    command += [textured, *flags(fixed | options)]
    done = subprocess.run(command, env=ON_CPU, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run"
    assert [entry["step"] for entry in log_of(folder)] == [1, 2]  # written by one of them
    assert checkpoints(folder) == ["checkpoint-0000002"] and (folder / "sample-0000002.jpg").exists()

    keys = [(tmp_path / f"keys-{rank}.txt").read_text().splitlines() for rank in range(2)]
    assert len(keys[0]) == len(keys[1]) == 4 and not set(keys[0]) & set(keys[1])
    tensors = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    assert len(tensors[0]) > 50 and all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])

    alone = train(textured, **options, batch_size=2, output_dir=tmp_path / "alone")
    assert_same_update(pretrained, alone, folder)
    for entry, other in zip(log_of(folder), log_of(alone), strict=True):
        assert all(entry[key] == pytest.approx(other[key], abs=2e-4) for key in entry if key not in CLOCKS)
