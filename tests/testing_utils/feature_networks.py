"""Weights of feature networks that are tiny."""

import torch


def vgg_weights(depths):
    """Tiny VGG in torchvision's numbering: 2 channels, one convolution is followed by ReLU, a stage by pooling."""
    weights, index, channels = {}, 0, 3
    for depth in depths:
        for _ in range(depth):
            weights[f"features.{index}.weight"] = torch.randn(2, channels, 3, 3)
            weights[f"features.{index}.bias"] = torch.randn(2)
            index, channels = index + 2, 2
        index += 1
    return weights
