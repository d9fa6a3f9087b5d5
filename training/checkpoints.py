"""What a training run leaves: checkpoints, whole or not there, whatever kills the process, nothing but safetensors and
JSON; and lines and pictures of how it goes."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn

from fsth_hub.models.configuration_fsth import FsthConfig
from fsth_hub.models.image_processing_fsth import to_pixels
from fsth_hub.models.modeling_fsth import FsthDiscriminator, FsthEmbedder, FsthGenerator


def last_checkpoint(run: Path) -> Path | None:
    checkpoints = sorted(run.glob("checkpoint-???????"))
    return checkpoints[-1] if checkpoints else None


def save_checkpoint(
    run: Path,
    step: int,
    networks: dict[str, nn.Module],
    optimizers: dict[str, torch.optim.Optimizer],
    progress: dict,
    keep: int,
):
    """All that resuming needs in `RUN/checkpoint-STEP`; of older ones only the last `keep` - 1 stay.

    Args:
        networks, optimizers (`dict`): by name; as they are, neither wrapped nor distributed.
        progress (`dict`): what else is to come back, as JSON.
        keep (`int`): number of checkpoints; 0 keeps all.
    """
    folder = run / f"checkpoint-{step:07d}"
    partial = empty_folder(folder.with_suffix(".partial"))
    for name, network in networks.items():
        save_model(network, str(partial / f"{name}.safetensors"))
    for name, optimizer in optimizers.items():
        state = optimizer.state_dict()["state"]
        tensors = {f"{index}.{key}": value.contiguous() for index in state for key, value in state[index].items()}
        save_file(tensors, partial / f"{name}.safetensors")
    (partial / "progress.json").write_text(json.dumps({"step": step, **progress}))
    replace_folder(partial, folder)
    for old in sorted(run.glob("checkpoint-???????"))[:-keep]:
        shutil.rmtree(old)


def load_checkpoint(
    folder: Path, networks: dict[str, nn.Module], optimizers: dict[str, torch.optim.Optimizer]
) -> dict:
    """Loads in place what `save_checkpoint` saved, and returns its `progress` with the step; RuntimeError if it does
    not fit. Learning rates and the like are not part of it: those of the optimisers stay."""
    for name, network in networks.items():
        load_model(network, folder / f"{name}.safetensors")
    for name, optimizer in optimizers.items():
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state = {}
        for key, value in load_file(folder / f"{name}.safetensors").items():
            index, key = key.split(".", 1)
            if key != "step":  # in its parameter's memory format: with another one the update would be slow
                value = torch.empty_like(parameters[int(index)]).copy_(value)
            state.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return json.loads((folder / "progress.json").read_text())


def save_networks(folder: Path, embedder: FsthEmbedder, generator: FsthGenerator, discriminator: FsthDiscriminator):
    """The networks for inference and fine-tuning, half precision, without the training videos' person vectors."""
    config = FsthConfig(**discriminator.config.to_diff_dict() | {"num_identities": 0})
    released = FsthDiscriminator(config)
    released.load_state_dict({k: v for k, v in discriminator.state_dict().items() if k != "identities.weight"})
    networks = {"embedder": embedder, "generator": generator, "discriminator": released}
    partial = empty_folder(folder.with_suffix(".partial"))
    for name, network in networks.items():
        half = {key: value.half() for key, value in network.state_dict().items()}
        network.save_pretrained(partial / name, state_dict=half, max_shard_size="15MB")
    replace_folder(partial, folder)


def empty_folder(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def replace_folder(new: Path, folder: Path):
    """Puts `new` in the place of `folder` without a moment in which that is half written."""
    old = folder.with_suffix(".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def rewind_log(path: Path, step: int):
    """Drops the lines after a step, which the resumed run will write again, and a last line that was cut off."""
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(kept))
        partial.replace(path)


def append_line(path: Path, entry: dict):
    with open(path, "a") as file:
        file.write(json.dumps(entry) + "\n")


def to_column(images: torch.Tensor) -> np.ndarray:
    """B x 3 x H x W in [-1, 1], one below the other: BH x W x 3 uint8."""
    return to_pixels(images).cpu().permute(0, 2, 3, 1).flatten(0, 1).numpy()
