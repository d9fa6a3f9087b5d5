"""Meta-training as its tests run it: the real script, on tiny networks."""

import json
import os
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from testing_utils.networks import SIZE
from training import meta_train


ON_CPU = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


def train_tiny(shards: Path, **options) -> Path:
    """Runs the script with these options on top of short ones, and returns its folder."""
    AcceleratorState._reset_state(reset_partial_state=True)  # a process has one accelerator, a script one process
    defaults = {"image_size": SIZE, "batch_size": 2, "num_sources": 2, "num_workers": 0, "max_steps": 2}
    defaults |= {"log_every": 1, "mixed_precision": "no", "warmup_steps": 0}
    meta_train.main([str(shards), *flags(defaults | options)])
    return options["output_dir"]


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
