"""Pretrained networks whose activations losses and metrics compare (paper section 3.3), read from safetensors.

The paper uses Caffe's VGG19 and VGGFace, which see 0..255 minus a mean. Activations of a ReLU network scale with its
input, so a loss weight w set for Caffe's becomes w * 255 * std, about 57 w, for a network fed with normalised images.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
from torch import nn

from ..models.image_processing_fsth import denormalize


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CAFFE_TO_NORMALISED = 255 * sum(IMAGENET_STD) / 3
CAFFE_MEAN = (103.939, 116.779, 123.68)
FACE_SIZE = 224
FACE_MARGIN = 1.3
FACE_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)


def load_weights(path_or_repo: str | Path) -> dict[str, torch.Tensor]:
    """Weights in float32 from a safetensors file, or from `model.safetensors` of a hub repository."""
    path = Path(path_or_repo)
    if not path.is_file():
        path = hf_hub_download(str(path_or_repo), "model.safetensors")
    return {name: weight.float() for name, weight in load_file(path).items()}


def channel_values(values) -> torch.Tensor:
    return torch.tensor(values).view(1, 3, 1, 1)


def lpips_distance(
    features: Sequence[torch.Tensor],
    others: Sequence[torch.Tensor],
    heads: Iterable[torch.Tensor],
    per_picture: bool = False,
) -> torch.Tensor:
    """
    LPIPS (arXiv 1801.03924, v0.1) between pictures whose activations are given.

    Args:
        features, others (`Sequence` of `torch.Tensor`): of each level B x C x H x W, of either picture.
        heads (`Iterable` of `torch.Tensor`): of each level 1 x C x 1 x 1, the weights of its channels.
        per_picture (`bool`, *optional*, defaults to `False`): whether to give B distances instead of their mean.
    """
    total = 0.0
    for head, a, b in zip(heads, features, others, strict=True):
        a, b = (F.normalize(maps.float(), dim=1) for maps in (a, b))
        weighted = F.conv2d((a - b) ** 2, head)  # B x 1 x H x W
        total = total + (weighted.mean(dim=(1, 2, 3)) if per_picture else weighted.mean())
    return total


class VGGFeatures(nn.Module):
    """First and last activation of each stage of a VGG16 or VGG19 trained on ImageNet, which has five, or as many of
    them as there are weights for.

    Args:
        weights (`Mapping[str, torch.Tensor]`): `features.N.weight` and `.bias`, numbered as in torchvision, and
            optionally the heads `lin0.weight` ... `lin4.weight` of LPIPS (arXiv 1801.03924), on the last activations.
    """

    loss_scale = CAFFE_TO_NORMALISED

    def __init__(self, weights: Mapping[str, torch.Tensor]):
        super().__init__()
        indices = sorted(int(name.split(".")[1]) for name in weights if name.startswith("features") and "bias" in name)
        # a gap of three between two convolutions is ReLU, max pooling: a new stage
        self.stages = nn.ModuleList()
        for index in indices:
            out_channels, in_channels = weights[f"features.{index}.weight"].shape[:2]
            layer = nn.Conv2d(in_channels, out_channels, 3, padding=1)
            layer.load_state_dict({name: weights[f"features.{index}.{name}"] for name in ("weight", "bias")})
            if index == 0 or index - 2 not in indices:
                self.stages.append(nn.ModuleList())
            self.stages[-1].append(layer)
        self.heads = nn.ParameterList(weights[name] for name in sorted(weights) if name.startswith("lin"))
        self.register_buffer("mean", channel_values(IMAGENET_MEAN))
        self.register_buffer("std", channel_values(IMAGENET_STD))
        self.requires_grad_(False)

    def forward(self, images, last: bool = False) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """
        Args:
            images (`torch.Tensor` of shape `(batch, 3, height, width)`): in [-1, 1].
            last (`bool`, *optional*, defaults to `False`): whether the last activations are wanted too.

        Returns:
            The first activations of the stages (relu1_1, relu2_1, ...), and the last ones or an empty list.
        """
        x = ((images + 1) / 2 - self.mean) / self.std
        firsts, lasts = [], []
        for number, stage in enumerate(self.stages):
            if number > 0:
                x = F.max_pool2d(x, 2)
            for position, layer in enumerate(stage):
                x = F.relu(layer(x))
                if position == 0:
                    firsts.append(x)
                    if number + 1 == len(self.stages) and not last:
                        return firsts, lasts
            if last:
                lasts.append(x)
        return firsts, lasts


class LPIPS(nn.Module):
    """Learned perceptual distance (arXiv 1801.03924, v0.1) on AlexNet, as it is reported.

    Args:
        weights (`Mapping[str, torch.Tensor]`): `features.N.weight` and `.bias` of AlexNet, numbered as in
            torchvision, and the heads `lin0.weight` ... `lin4.weight`.
    """

    # index in torchvision's `features`, stride, padding, and whether max pooling comes before
    LAYERS = ((0, 4, 2, False), (3, 1, 2, True), (6, 1, 1, True), (8, 1, 1, False), (10, 1, 1, False))

    def __init__(self, weights: Mapping[str, torch.Tensor]):
        super().__init__()
        self.layers = nn.ModuleList()
        for index, stride, padding, _ in self.LAYERS:
            weight, bias = weights[f"features.{index}.weight"], weights[f"features.{index}.bias"]
            out_channels, in_channels, size, _ = weight.shape
            layer = nn.Conv2d(in_channels, out_channels, size, stride, padding)
            layer.load_state_dict({"weight": weight, "bias": bias})
            self.layers.append(layer)
        self.heads = nn.ParameterList(weights[f"lin{level}.weight"] for level in range(len(self.LAYERS)))
        self.register_buffer("mean", channel_values(IMAGENET_MEAN))
        self.register_buffer("std", channel_values(IMAGENET_STD))
        self.requires_grad_(False)

    def features(self, images) -> list[torch.Tensor]:
        x = ((images + 1) / 2 - self.mean) / self.std
        activations = []
        for layer, (*_, pool) in zip(self.layers, self.LAYERS, strict=True):
            x = F.relu(layer(F.max_pool2d(x, 3, 2) if pool else x))
            activations.append(x)
        return activations

    @torch.no_grad()
    def forward(self, images, truth) -> torch.Tensor:
        """images, truth: B x 3 x H x W in [-1, 1]; returns B distances, 0 for equal pictures."""
        return lpips_distance(self.features(images), self.features(truth), self.heads, per_picture=True)


class FaceFeatures(nn.Module):
    """Last activation at each resolution of a MobileNetV1 trained to tell people apart, on the face alone.

    Its ReLU6 bounds every activation, whatever the scale of the input, so VGGFace's weight does not carry over: with
    `loss_scale` the term weighs a quarter of the ImageNet one on the warped portraits that training starts from, as
    VGGFace's does in the authors' later code.

    Args:
        weights (`Mapping[str, torch.Tensor]`): `layers.N.weight` and `.bias`, batch norm folded, TensorFlow padding.
    """

    loss_scale = 200.0

    def __init__(self, weights: Mapping[str, torch.Tensor]):
        super().__init__()
        self.strides = [2] + [stride for depthwise in FACE_STRIDES for stride in (depthwise, 1)]
        self.layers = nn.ModuleList()
        for index, stride in enumerate(self.strides):
            weight, bias = weights[f"layers.{index}.weight"], weights[f"layers.{index}.bias"]
            out_channels, group_channels, size, _ = weight.shape
            groups = out_channels if index % 2 else 1  # odd layers are depthwise
            layer = nn.Conv2d(group_channels * groups, out_channels, size, stride, groups=groups)
            layer.load_state_dict({"weight": weight, "bias": bias})
            self.layers.append(layer)
        self.register_buffer("mean", channel_values(CAFFE_MEAN))
        self.requires_grad_(False)

    def forward(self, images, landmarks) -> list[torch.Tensor]:
        """images: B x 3 x H x W in [-1, 1]; landmarks: B x 78 x 2, pixels, which say where the face is."""
        face = crop_around(images, landmarks[:, :68], FACE_MARGIN, FACE_SIZE)
        x = denormalize(face) - self.mean
        taps = []
        for index, (layer, stride) in enumerate(zip(self.layers, self.strides, strict=True)):
            padding = layer.kernel_size[0] // 2
            # TensorFlow pads a strided layer at the bottom and right only
            x = F.pad(x, (0, 1, 0, 1)) if stride == 2 else F.pad(x, (padding,) * 4)
            x = F.relu6(layer(x))
            if index + 1 == len(self.layers) or self.strides[index + 1] == 2:
                taps.append(x)
        return taps


def crop_around(images: torch.Tensor, points: torch.Tensor, margin: float, size: int) -> torch.Tensor:
    """
    The square around some landmarks of each frame, differentiably.

    Args:
        images (`torch.Tensor` of shape `(batch, 3, height, width)`): square frames.
        points (`torch.Tensor` of shape `(batch, n, 2)`): pixels, x then y.
        margin (`float`): side of the square, in sizes of what the points span.
        size (`int`): side of the result in pixels.

    Returns:
        `torch.Tensor` of shape `(batch, 3, size, size)`: float32; beyond the frame its border is repeated.
    """
    points = points.float() * 2 / images.shape[-1] - 1  # half sides of the frame
    low, high = points.amin(dim=1), points.amax(dim=1)  # B x 2
    theta = torch.zeros(len(images), 2, 3, device=images.device)
    theta[:, 0, 0] = theta[:, 1, 1] = (high - low).amax(dim=1) / 2 * margin
    theta[:, :, 2] = (low + high) / 2
    grid = F.affine_grid(theta, [len(images), 3, size, size], align_corners=False)
    return F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
