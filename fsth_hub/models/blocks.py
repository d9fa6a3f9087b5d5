"""The blocks that embedder, generator and discriminator are built of (arXiv 1905.08233, section 3.2), and at the end
two that what is not the paper's is built of.

Shapes in comments are those of the paper preset.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize


NORM_EPS = 1e-4


class SpectralNorm(parametrizations._SpectralNorm):
    """PyTorch's; but `from_pretrained` builds networks on the meta device, where it would draw and iterate for seconds
    over nothing."""

    def __init__(self, weight: torch.Tensor, eps: float):
        if not weight.is_meta:
            super().__init__(weight, eps=eps)
            return
        nn.Module.__init__(self)
        self.dim, self.eps, self.n_power_iterations = 0, eps, 1
        self.register_buffer("_u", weight.new_empty(weight.shape[0]))
        self.register_buffer("_v", weight.new_empty(weight[0].numel()))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight if weight.is_meta else super().forward(weight)


def spectral_norm(layer: nn.Module) -> nn.Module:
    # An orthogonal start has all singular values equal, so dividing by the largest costs no signal; with PyTorch's
    # default start every normalised layer shrinks its input and six of them leave nothing.
    nn.init.orthogonal_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    parametrize.register_parametrization(layer, "weight", SpectralNorm(layer.weight, eps=1e-4))
    return layer


def conv(in_channels: int, out_channels: int, kernel_size: int = 3, bias: bool = True) -> nn.Module:
    return spectral_norm(nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias))


def instance_norm(x, scale, shift):
    """
    Instance norm, then `scale` x + `shift` (both B or 1 x C). Where gradients are wanted PyTorch's own copies maps in
    channels_last to and fro, which takes a quarter of a frame's time on a CPU; its group norm of one picture does not.
    """
    if len(x) == 1 and not torch.is_grad_enabled():
        return F.group_norm(x, x.shape[1], scale[0], shift[0], NORM_EPS)
    flat = x.permute(0, 2, 3, 1).flatten(1, 2)  # B x HW x C, a view of channels_last
    mean = flat.mean(dim=1, dtype=torch.float32)  # B x C
    variance = flat.float().square().mean(dim=1) - mean.square()
    scale = scale * (variance.clamp(min=0) + NORM_EPS).rsqrt()
    shift = shift - mean * scale
    return torch.addcmul(shift.to(x.dtype)[:, :, None, None], x, scale.to(x.dtype)[:, :, None, None])


class InstanceNorm(nn.InstanceNorm2d):
    def forward(self, x):
        return instance_norm(x, self.weight[None], self.bias[None])


class AdaptiveInstanceNorm(nn.Module):
    """Instance norm whose shift and scale come from the person (section 3.2)."""

    def __init__(self, num_channels: int):
        super().__init__()
        self.num_parameters = 2 * num_channels

    def forward(self, x, parameters):
        shift, scale = parameters.chunk(2, dim=1)  # B x C
        # 1 + scale, so that an untrained projection starts from plain instance norm instead of from a black frame
        return instance_norm(x, 1 + scale, shift)


class StemBlock(nn.Module):
    """First block of all three networks: no leading ReLU, no norm, half the resolution."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = conv(in_channels, out_channels)
        self.conv2 = conv(out_channels, out_channels)
        self.skip = conv(in_channels, out_channels, kernel_size=1)

    def forward(self, x):
        h = self.conv2(F.relu(self.conv1(x), inplace=True))
        return F.avg_pool2d(h, 2) + self.skip(F.avg_pool2d(x, 2))


class ResidualBlock(nn.Module):
    """BigGAN-style pre-activation block that keeps or halves the resolution."""

    def __init__(self, in_channels: int, out_channels: int, downsample: bool = True, instance_norm: bool = False):
        super().__init__()
        self.downsample = downsample
        self.norm1 = InstanceNorm(in_channels, affine=True) if instance_norm else nn.Identity()
        self.norm2 = InstanceNorm(out_channels, affine=True) if instance_norm else nn.Identity()
        self.conv1 = conv(in_channels, out_channels, bias=not instance_norm)
        self.conv2 = conv(out_channels, out_channels, bias=not instance_norm)
        self.skip = conv(in_channels, out_channels, kernel_size=1) if downsample else nn.Identity()

    def forward(self, x):
        h = self.conv1(F.relu(self.norm1(x)))
        h = self.conv2(F.relu(self.norm2(h), inplace=True))
        if self.downsample:
            # pooling commutes with a 1 x 1 convolution and is cheaper before it
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        return h + self.skip(x)


class AdaptiveResidualBlock(nn.Module):
    """The same block with adaptive norms, keeping or doubling the resolution."""

    def __init__(self, in_channels: int, out_channels: int, upsample: bool = True):
        super().__init__()
        self.upsample = upsample
        self.norm1 = AdaptiveInstanceNorm(in_channels)
        self.norm2 = AdaptiveInstanceNorm(out_channels)
        self.conv1 = conv(in_channels, out_channels, bias=False)
        self.conv2 = conv(out_channels, out_channels, bias=False)
        self.skip = conv(in_channels, out_channels, kernel_size=1) if upsample else nn.Identity()

    def forward(self, x, parameters1, parameters2):
        h, x = F.relu(self.norm1(x, parameters1), inplace=True), self.skip(x)
        if self.upsample:
            h, x = F.interpolate(h, scale_factor=2), F.interpolate(x, scale_factor=2)
        h = self.conv2(F.relu(self.norm2(self.conv1(h), parameters2), inplace=True))
        return h + x


class SelfAttention(nn.Module):
    """Self-attention of SAGAN (arXiv 1805.08318): queries and keys an eighth as wide, a learned gain from zero."""

    def __init__(self, num_channels: int):
        super().__init__()
        self.query = conv(num_channels, num_channels // 8, kernel_size=1)
        self.key = conv(num_channels, num_channels // 8, kernel_size=1)
        self.value = conv(num_channels, num_channels, kernel_size=1)
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        query, key, value = (layer(x).flatten(2).transpose(1, 2) for layer in (self.query, self.key, self.value))
        attended = F.scaled_dot_product_attention(query, key, value, scale=1.0)  # B x HW x C
        return x + self.gain * attended.transpose(1, 2).reshape(x.shape)


def downsampling_path(in_channels: int, channels: list[int], attention: bool, instance_norm: bool = False):
    """Stem, then one halving block per further entry of `channels`; attention follows the map at 1/8 resolution."""
    blocks = [StemBlock(in_channels, channels[0])]
    for level in range(1, len(channels)):
        block = ResidualBlock(channels[level - 1], channels[level], instance_norm=instance_norm)
        blocks.append(nn.Sequential(block, SelfAttention(channels[level])) if attention and level == 2 else block)
    return nn.ModuleList(blocks)


class ZeroConv2d(nn.Conv2d):
    """A convolution that starts at zero, so that what it adds to a good first guess starts at nothing."""


class ConvBlock(nn.Sequential):
    """Convolution, group norm, ReLU: keeps the scale of activations from layer to layer, whatever the start."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, stride, padding=1),
            nn.GroupNorm(8, out_channels),
            nn.ReLU(inplace=True),
        )
