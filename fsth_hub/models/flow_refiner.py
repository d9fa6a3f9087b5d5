"""The network that says how what is around a face goes with it."""

import torch
import torch.nn.functional as F
from torch import nn

from .blocks import ConvBlock, ZeroConv2d
from .head_motion import NUM_MOTIONS


class FlowRefiner(nn.Module):
    """A U-Net over what the landmarks' flow made of a portrait: how each place goes with the head, how far the
    portrait can be trusted there, and whether it is seen there at all."""

    def __init__(self, in_channels: int, base_channels: int):
        super().__init__()
        channels = [base_channels, 2 * base_channels, 4 * base_channels, 4 * base_channels]
        self.stem = ConvBlock(in_channels, channels[0])
        self.down = nn.ModuleList(
            nn.Sequential(ConvBlock(i, o, stride=2), ConvBlock(o, o))
            for i, o in zip(channels[:-1], channels[1:], strict=True)
        )
        self.up = nn.ModuleList(ConvBlock(i + o, o) for i, o in zip(channels[:0:-1], channels[-2::-1], strict=True))
        self.head = ZeroConv2d(channels[0], NUM_MOTIONS + 2, 3, padding=1)

    def forward(self, x, motions) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Args:
            x (`torch.Tensor` of shape `(batch, in_channels, h, w)`): of [`SourceSkips.refiner_input`].
            motions (`torch.Tensor` of shape `(batch, NUM_MOTIONS, h, w, 2)`): of [`head_motions`].

        Returns:
            As [`SourceSkips.refine`].
        """
        skips = [self.stem(x)]  # B x 32 x 64 x 64
        for block in self.down:
            skips.append(block(skips[-1]))  # B x 64 x 32 x 32, B x 128 x 16 x 16, B x 128 x 8 x 8
        x = skips.pop()
        for block in self.up:
            skip = skips.pop()
            x = block(torch.cat([F.interpolate(x, skip.shape[-2:]), skip], dim=1))
        x = self.head(x).float()  # B x 21 x 64 x 64
        residual_flow = (x[:, :NUM_MOTIONS, ..., None] * motions).sum(dim=1)  # B x 64 x 64 x 2
        return residual_flow, x[:, NUM_MOTIONS : NUM_MOTIONS + 1], x[:, NUM_MOTIONS + 1 :]
