"""LoRA (arXiv 2106.09685) of convolutions, the generator's and the facial components': low-rank updates, all that is
kept of tuning.

They are trained beside plain weights, spectral norm folded in, and merged into them for inference, so that a frame
costs what it did. Their tensors are float16, two for each convolution, under the names that PEFT gives them in its
files: `base_model.model.NAME.lora_A.weight` of shape `(rank, in_channels, height, width)` and
`base_model.model.NAME.lora_B.weight` of shape `(out_channels, rank, 1, 1)`.
"""

import copy
import json
import math
import re
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ..models.modeling_fsth import FsthPreTrainedModel
from .names import LORA_CONFIG_NAME, LORA_WEIGHTS_NAME


Lora = dict[str, torch.Tensor]
Network = TypeVar("Network", bound=FsthPreTrainedModel)

RANK = 8  # 0.7 MB for the bundled generator, in proportion to the rank; other ranks were not compared
PREFIX = "base_model.model."  # of a tensor's name in the file
TENSOR_NAME = re.compile(rf"{re.escape(PREFIX)}(?P<module>.+)\.lora_(?P<part>[AB])\.weight")
VARIANTS = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern")  # of LoRA, that PEFT knows


def add_lora(network: Network, rank: int = RANK) -> Network:
    """
    A float32 copy with plain weights, spectral norm folded in, and beside each convolution outside the source skips,
    whether it started from noise or from zero, a low-rank update, which alone is trainable.
    """
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds, which most who generate need not wait

    tuned = copy.deepcopy(network).float().fold_spectral_norm()
    names = [name for name, module in tuned.named_modules() if isinstance(module, nn.Conv2d)]
    names = [name for name in names if not name.startswith("source_skips.")]
    # alpha = rank: the update is B A itself, and the tensors tell all
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=pattern_of(names)), tuned)
    return tuned.to(memory_format=torch.channels_last)


def pattern_of(names: list[str]) -> str:
    """An expression for these modules alone: in PEFT's lists names are endings, and `head` is the refiner's too."""
    return "|".join(re.escape(name) for name in sorted(names))


def start_lora(tuned: Network, rng: torch.Generator) -> None:
    """Initialize A as PEFT does, but by `rng` (of the CPU), so that every device starts alike; B stays zero."""
    for name, tensor in lora_parameters(tuned).items():
        if ".lora_A." in name:
            tensor.data.copy_(nn.init.kaiming_uniform_(torch.empty(tensor.shape), a=math.sqrt(5), generator=rng))


def lora_parameters(tuned: Network) -> dict[str, nn.Parameter]:
    """What is trained of a network of [`add_lora`], by the names of PEFT's files."""
    own = ".default.weight"  # how a live tensor's name ends
    named = tuned.named_parameters()
    return {f"{PREFIX}{name.removesuffix(own)}.weight": tensor for name, tensor in named if name.endswith(own)}


def get_lora(tuned: Network) -> Lora:
    """What is kept of a network of [`add_lora`] once it is trained."""
    # the updates are small and of one scale: they need float16's digits rather than bfloat16's range
    tensors = lora_parameters(tuned).items()
    return {name: tensor.detach().to("cpu", torch.float16).contiguous() for name, tensor in tensors}


def merge(network: Network, lora: Lora) -> Network:
    """
    A copy of the network for inference, in its precision, with plain weights to which the updates have been added.

    The only way from LoRA to a network, after tuning and after loading, so that frames agree bit for bit.
    """
    from peft.tuners.lora import LoraLayer

    tuned = add_lora(network, rank_of(lora))
    for name, tensor in lora_parameters(tuned).items():
        tensor.data.copy_(lora[name])
    for name, module in list(tuned.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            tuned.set_submodule(name, module.get_base_layer())
    return tuned.requires_grad_(False).to(network.dtype, memory_format=torch.channels_last)


def rank_of(lora: Lora) -> int:
    return next(len(tensor) for name, tensor in lora.items() if ".lora_A." in name)


def save_lora(lora: Lora, folder: Path, base_model: str) -> None:
    """Write the two files of `PeftModel.save_pretrained`, for `PeftModel.from_pretrained(network, folder)`."""
    folder.mkdir(exist_ok=True)
    names = {TENSOR_NAME.fullmatch(name)["module"] for name in lora}
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": rank_of(lora),
        "lora_alpha": rank_of(lora),
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": pattern_of(list(names)),
    }
    (folder / LORA_CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")
    save_file(
        {name: tensor.contiguous() for name, tensor in lora.items()}, folder / LORA_WEIGHTS_NAME, {"format": "pt"}
    )


def load_lora(folder: Path) -> Lora:
    """
    Read what [`save_lora`] has written, and nothing of the configuration but what the tensors must agree with: PEFT
    would import modules that it names.

    Raises:
        OSError, ValueError, SafetensorError: a file is missing, is damaged, or holds something else.
    """
    config, lora = json.loads((folder / LORA_CONFIG_NAME).read_text()), load_file(folder / LORA_WEIGHTS_NAME)
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in lora.items():
        found = TENSOR_NAME.fullmatch(name)
        if found is None or tensor.ndim != 4 or not tensor.is_floating_point():
            raise ValueError(f"{name} is no part of a low-rank update of a convolution")
        pairs.setdefault(found["module"], {})[found["part"]] = tensor
    ranks = {len(pair["A"]) if pair.keys() == {"A", "B"} else 0 for pair in pairs.values()}
    ranks |= {pair["B"].shape[1] for pair in pairs.values() if "B" in pair}
    if len(ranks) != 1 or 0 in ranks:
        raise ValueError("the updates are not of one rank")
    if not isinstance(config, dict) or any(config.get(key) for key in VARIANTS):
        raise ValueError("the configuration is of another variant of LoRA")
    if [config.get(key) for key in ("peft_type", "r", "lora_alpha")] != ["LORA", *ranks, *ranks]:
        raise ValueError("the configuration does not agree with the tensors")
    # copies, for the same reason as in `FsthPreTrainedModel.from_pretrained`
    return {name: tensor.clone() for name, tensor in lora.items()}
