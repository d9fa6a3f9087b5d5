"""Meta-training as its tests run it: the real script, on tiny networks."""

import json
import os
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from test_modeling import SIZE, tiny_config

from training import meta_train


ON_CPU = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def train(shards, vgg, tmp_path, monkeypatch):
    """Runs the script with these options, on tiny networks, and returns its folder."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(meta_train, "FsthConfig", tiny_config)
    output_dir = tmp_path / "run"

    def train(shards=shards, **options) -> Path:
        AcceleratorState._reset_state(reset_partial_state=True)  # a process has one accelerator, a script one process
        defaults = {"output_dir": output_dir, "vgg": vgg, "image_size": SIZE, "batch_size": 2, "num_sources": 2}
        defaults |= {"num_workers": 0, "max_steps": 2, "log_every": 1, "mixed_precision": "no", "warmup_steps": 0}
        arguments = [str(shards)]
        meta_train.main(arguments + flags(defaults | options))
        return (defaults | options)["output_dir"]

    return train


def flags(options: dict) -> list[str]:
    switches = {True: "--{}", False: "--no-{}"}
    return [
        switches[value].format(name) if isinstance(value, bool) else f"--{name}={value}"
        for name, value in options.items()
    ]


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights_of(folder: Path, network: str) -> dict[str, torch.Tensor]:
    return load_file(folder / network / "model.safetensors")


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint*"))
