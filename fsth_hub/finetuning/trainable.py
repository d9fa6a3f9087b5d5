"""Copies of networks that can be trained: in full, or by LoRA."""

import copy

import torch
from torch import nn

from ..device import default_dtype
from .lora import Network, add_lora, start_lora


BETAS = (0.5, 0.999)  # of Adam


def trainable_copy(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).float().to(memory_format=torch.channels_last).train().requires_grad_(True)


def tunable_copy(network: Network, method: str, seed: int) -> Network:
    """A float32 copy in training mode, of which only what the method tunes takes gradients."""
    if method == "lora":
        tuned = add_lora(network).train()
        start_lora(tuned, torch.Generator().manual_seed(seed))
        return tuned
    tuned = trainable_copy(network)
    if getattr(network.config, "source_skips", False):
        tuned.source_skips.requires_grad_(False)
    return tuned


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 where the device is made for it."""
    dtype = default_dtype(device)
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
