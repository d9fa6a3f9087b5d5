"""Measures of frames against the truth."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn


class LPIPS(nn.Module):
    """Learned perceptual distance (arXiv 1801.03924, v0.1) on AlexNet.

    Args:
        weights (`Mapping[str, torch.Tensor]`): `features.N.weight` and `.bias` of AlexNet, numbered as in
            torchvision, and the heads `lin0.weight` ... `lin4.weight`.
    """

    # index in torchvision's `features`, stride, padding, and whether max pooling comes before
    LAYERS = ((0, 4, 2, False), (3, 1, 2, True), (6, 1, 1, True), (8, 1, 1, False), (10, 1, 1, False))

    def __init__(self, weights: Mapping[str, torch.Tensor]):
        super().__init__()
        for name, tensor in weights.items():
            self.register_buffer(name.replace(".", "_"), tensor)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))

    def features(self, images):
        x = (images - self.shift) / self.scale
        for index, stride, padding, pool in self.LAYERS:
            if pool:
                x = F.max_pool2d(x, 3, 2)
            weight, bias = getattr(self, f"features_{index}_weight"), getattr(self, f"features_{index}_bias")
            x = F.relu(F.conv2d(x, weight, bias, stride, padding))
            yield x / (x.norm(dim=1, keepdim=True) + 1e-10)

    @torch.no_grad()
    def forward(self, images, truth) -> torch.Tensor:
        """images, truth: B x 3 x H x W in [-1, 1]; returns B distances, 0 for equal pictures."""
        pairs = zip(self.features(images), self.features(truth), strict=True)
        return sum(
            F.conv2d((a - b) ** 2, getattr(self, f"lin{level}_weight")).mean(dim=(1, 2, 3))
            for level, (a, b) in enumerate(pairs)
        )
