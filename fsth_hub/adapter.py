"""Low-rank updates (LoRA, arXiv 2106.09685) of the generator's convolutions: all that fine-tuning then has to keep.

They are trained beside plain weights, spectral norm folded in, and merged into them for drawing, so that a frame
costs what it did. An adapter is a dictionary of float16 tensors, two for each convolution: `NAME.lora_A` of shape
`(rank, in_channels, height, width)` and `NAME.lora_B` of shape `(out_channels, rank, 1, 1)`.
"""

import copy
import math

import torch
from torch import nn

from .modeling_fsth import FsthGenerator


Adapter = dict[str, torch.Tensor]

RANK = 8  # 0.7 MB for the bundled generator, in proportion to the rank; other ranks were not compared
LORA_SUFFIX = ".default.weight"  # what PEFT adds to a tensor's name


def add_lora(generator: FsthGenerator, rank: int = RANK) -> FsthGenerator:
    """
    A float32 copy with plain weights, spectral norm folded in, and beside each convolution outside the source skips,
    whether it started from noise or from zero, a low-rank update, which alone is trainable.
    """
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds, which most who draw need not wait

    tuned = copy.deepcopy(generator).float().fold_spectral_norm()
    names = [name for name, module in tuned.named_modules() if isinstance(module, nn.Conv2d)]
    # by a pattern, for names count as endings, and `head` is the refiner's too
    resting = r"source_skips\..*" if generator.config.source_skips else None
    # alpha = rank: the update is B A itself, and the tensors tell all
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=names, exclude_modules=resting)
    inject_adapter_in_model(config, tuned)
    return tuned.to(memory_format=torch.channels_last)


def start_lora(tuned: FsthGenerator, rng: torch.Generator) -> None:
    """Draw A as PEFT does, but by `rng` (of the CPU), so that every device starts alike; B stays zero."""
    for name, tensor in lora_parameters(tuned).items():
        if name.endswith("lora_A"):
            tensor.data.copy_(nn.init.kaiming_uniform_(torch.empty(tensor.shape), a=math.sqrt(5), generator=rng))


def lora_parameters(tuned: FsthGenerator) -> dict[str, nn.Parameter]:
    """What is trained of a generator of [`add_lora`], by the names that an adapter gives it."""
    named = tuned.named_parameters()
    return {name.removesuffix(LORA_SUFFIX): tensor for name, tensor in named if name.endswith(LORA_SUFFIX)}


def get_adapter(tuned: FsthGenerator) -> Adapter:
    """What is kept of a generator of [`add_lora`] once it is trained."""
    # the updates are small and of one scale: they need float16's digits rather than bfloat16's range
    tensors = lora_parameters(tuned).items()
    return {name: tensor.detach().to("cpu", torch.float16).contiguous() for name, tensor in tensors}


def merge(generator: FsthGenerator, adapter: Adapter) -> FsthGenerator:
    """
    A copy of the generator for inference, in its precision, with plain weights to which an adapter has been added.

    The only way from an adapter to a generator, after tuning and after loading, so that frames agree bit for bit.
    """
    from peft.tuners.lora import LoraLayer

    tuned = add_lora(generator, rank_of(adapter))
    for name, tensor in lora_parameters(tuned).items():
        tensor.data.copy_(adapter[name])
    for name, module in list(tuned.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            tuned.set_submodule(name, module.get_base_layer())
    return tuned.requires_grad_(False).to(generator.dtype, memory_format=torch.channels_last)


def rank_of(adapter: Adapter) -> int:
    """The rank that the tensors have, or should have if none tells."""
    updates = [tensor for name, tensor in adapter.items() if name.endswith("lora_A")]
    return next((len(update) for update in updates if update.dim() == 4 and len(update)), RANK)
