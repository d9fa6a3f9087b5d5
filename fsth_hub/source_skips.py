"""Source skips: how the generator looks at the portraits while it draws a frame.

A generator that sees a person through an embedding alone must learn faces by heart, which takes as many videos as the
paper had. Here the portraits' features are warped to the driving landmarks and given to its decoder instead:
a backward flow interpolated from the landmarks (no learning), a small network that refines it and tells how far each
portrait can be trusted where, and a softmax over the portraits that fuses them.

Flows are in half sides of the frame (the units of `grid_sample`) and always float32: bfloat16 has too few digits for
coordinates.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers.utils import ModelOutput

from .configuration_fsth import FsthConfig
from .landmark_layout import JAW, LEFT_EYE, RIGHT_EYE, RIGID


# Widths in half sides of the frame, the best of a sweep over pairs of frames: how near a landmark must be to move a
# pixel, and how far from all landmarks a pixel still moves with a head that moves little.
SOFTMAX_WIDTH = 0.06
FADE_WIDTH = 0.18
# How high the top of the head lies above the eyes, in the distance from them down to the chin.
CROWN_HEIGHT = 0.7
# Half sides in the refiner's unit of flow. Without it its input would drown among features twenty times as large, and
# as Adam moves every weight by the rate in each step, one step would shift its output by several pixels.
FLOW_UNIT = 0.05


# How much further apart two faces must be, in half sides, for a portrait to count 1/e as much. The mean of portraits
# that are warped from different poses has ghosts (training/LOG.md): that of eight is worse than the first of them.
LIKENESS_WIDTH = 0.002
# Portraits that are fused for a frame, those most like it: of 32 they have over 90 % of the weight on average.
MAX_FUSED = 4


@dataclass
class FsthSources(ModelOutput):
    """What the generator keeps of a person's portraits.

    Args:
        images (`torch.Tensor` of shape `(batch, num_portraits, 3, height, width)`): portraits in [-1, 1].
        landmark_images (`torch.Tensor` of the same shape): their landmark drawings in [-1, 1].
        landmarks (`torch.Tensor` of shape `(batch, num_portraits, 78, 2)`): pixels, x then y, NaN where absent.
        features (`tuple` of `torch.Tensor`):
            Feature maps at 1/2, 1/4 and 1/8 of the resolution, each `(batch, num_portraits, channels, h, w)`.
    """

    images: torch.Tensor | None = None
    landmark_images: torch.Tensor | None = None
    landmarks: torch.Tensor | None = None
    features: tuple[torch.Tensor, ...] | None = None

    def map(self, function) -> "FsthSources":
        """Apply `function` to every tensor, for instance to repeat a person along the batch."""
        features = tuple(function(feature) for feature in self.features)
        return FsthSources(function(self.images), function(self.landmark_images), function(self.landmarks), features)


@dataclass
class FusedSources(ModelOutput):
    """The portraits as one, warped to the driving landmarks: the image and its features, shapes as above without K."""

    images: torch.Tensor | None = None
    features: tuple[torch.Tensor, ...] | None = None


def pixel_grid(height: int, width: int, device) -> torch.Tensor:
    """Pixel centres in half sides, x then y: height x width x 2."""
    ys = (torch.arange(height, device=device, dtype=torch.float32) * 2 + 1) / height - 1
    xs = (torch.arange(width, device=device, dtype=torch.float32) * 2 + 1) / width - 1
    return torch.stack([xs.expand(height, width), ys[:, None].expand(height, width)], dim=-1)


def landmark_flow(driving, source, image_size: int, grid) -> torch.Tensor:
    """
    Backward flow from driving to source points: each pixel moves with the points near it, less the further it is
    from all of them.

    Args:
        driving, source (`torch.Tensor` of shape `(batch, n, 2)`): pixels; points that are NaN in either are ignored.
        image_size (`int`): side of the frame in pixels.
        grid (`torch.Tensor` of shape `(h, w, 2)`): where to compute the flow, of [`pixel_grid`].

    Returns:
        `torch.Tensor` of shape `(batch, h, w, 2)`: in half sides.
    """
    driving, source = (points.float() * 2 / image_size - 1 for points in (driving, source))
    known = torch.isfinite(driving + source).all(dim=-1)  # B x n
    driving, source = (torch.where(known[..., None], points, 0.0) for points in (driving, source))
    # |g - d|^2 by its expansion: the pairwise differences would be 78 times the memory
    grid = grid.reshape(1, -1, 2)  # 1 x hw x 2
    squared = (grid**2).sum(-1, keepdim=True) - 2 * grid @ driving.mT + (driving**2).sum(-1)[:, None]  # B x hw x n
    squared = squared.clamp(min=0).masked_fill(~known[:, None], torch.inf)
    weights = torch.softmax(-squared / (2 * SOFTMAX_WIDTH**2), dim=-1)
    # A head that moves further takes more of its surroundings along: a fade narrower than the movement would fold the
    # flow over itself and show the face twice, where it is and where it was.
    displacement = source - driving  # B x n x 2
    movement = displacement.sum(dim=1) / known.sum(dim=1, keepdim=True)  # B x 2
    fade_squared = FADE_WIDTH**2 + (movement**2).sum(dim=-1)[:, None, None]
    fade = torch.exp(-squared.amin(dim=-1, keepdim=True) / (2 * fade_squared))  # B x hw x 1
    return weights @ displacement * fade  # B x hw x 2


def with_crown(driving, source) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Add the top of the head, which no landmark marks: without it forehead and hair stay where they were and the face is
    drawn away from under them. In the driving frame it is the jaw mirrored above the eyes; in the portrait it lies
    where the points that do not move on the skull take it (the affine map that fits them best).

    Args:
        driving, source (`torch.Tensor` of shape `(batch, 78, 2)`): pixels.

    Returns:
        Both with 15 points more, `(batch, 93, 2)`.
    """
    right, left = driving[:, RIGHT_EYE].mean(dim=1), driving[:, LEFT_EYE].mean(dim=1)  # B x 2
    along = F.normalize(left - right, dim=-1)
    down = torch.stack([-along[:, 1], along[:, 0]], dim=-1)[:, None]  # B x 1 x 2
    jaw = driving[:, JAW[1:-1]]  # B x 15 x 2
    below_eyes = ((jaw - (left + right)[:, None] / 2) * down).sum(dim=-1, keepdim=True)
    crown = jaw - (1 + CROWN_HEIGHT) * below_eyes * down

    skull, skull_source = driving[:, RIGID], source[:, RIGID]
    middle, middle_source = skull.mean(dim=1, keepdim=True), skull_source.mean(dim=1, keepdim=True)
    a, b = skull - middle, skull_source - middle_source  # B x 21 x 2
    affine = torch.linalg.solve(a.mT @ a, a.mT @ b)  # B x 2 x 2
    crown_source = (crown - middle) @ affine + middle_source
    return torch.cat([driving, crown], dim=1), torch.cat([source, crown_source], dim=1)


def landmark_likeness(driving, source, image_size: int) -> torch.Tensor:
    """
    How alike two faces are in place, pose and expression: 0 for equal ones, the lower the less. Place counts because
    hair, shoulders and background are as they were when the head was there.

    Args:
        driving, source (`torch.Tensor` of shape `(..., 78, 2)`): pixels; points that are NaN in either are ignored.
        image_size (`int`): side of the frame in pixels.

    Returns:
        `torch.Tensor` of shape `(...)`: minus the mean distance of the points, in `LIKENESS_WIDTH`.
    """
    distance = (driving - source).float().square().sum(dim=-1).sqrt()  # ... x 78
    return -distance.nanmean(dim=-1) * 2 / image_size / LIKENESS_WIDTH


def warp(maps, flow, grid, mode: str = "bilinear"):
    """Sample `maps` (B x C x H x W) at `grid + flow` (flow B x h x w x 2), the border repeated: B x C x h x w."""
    sampled = F.grid_sample(maps.float(), grid + flow, mode, padding_mode="border", align_corners=False)
    return sampled.to(maps.dtype)


def resize_flow(flow, height: int, width: int):
    """B x h x w x 2 to B x height x width x 2; half sides do not change with the resolution."""
    resized = F.interpolate(flow.permute(0, 3, 1, 2), (height, width), mode="bilinear", align_corners=False)
    return resized.permute(0, 2, 3, 1)


class ZeroConv2d(nn.Conv2d):
    """A convolution that starts at zero, so that what it adds to a good first guess starts at nothing."""


class ConvBlock(nn.Sequential):
    """Convolution, group norm, ReLU: keeps the scale of activations from layer to layer, whatever the start."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, stride, padding=1), nn.GroupNorm(8, out_channels), nn.ReLU()
        )


class SkipFusion(nn.Module):
    """What the encoder and the warped portraits have to say to the decoder at one resolution."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = ConvBlock(in_channels, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 1)

    def forward(self, encoded, warped):
        return self.conv2(self.conv1(torch.cat([encoded, warped], dim=1)))


class FlowRefiner(nn.Module):
    """A U-Net over what the landmark flow made of a portrait: its residual flow, confidence and visibility."""

    def __init__(self, in_channels: int, base_channels: int):
        super().__init__()
        channels = [base_channels, 2 * base_channels, 4 * base_channels, 4 * base_channels]
        self.stem = ConvBlock(in_channels, channels[0])
        self.down = nn.ModuleList(
            nn.Sequential(ConvBlock(i, o, stride=2), ConvBlock(o, o))
            for i, o in zip(channels[:-1], channels[1:], strict=True)
        )
        self.up = nn.ModuleList(ConvBlock(i + o, o) for i, o in zip(channels[:0:-1], channels[-2::-1], strict=True))
        self.head = ZeroConv2d(channels[0], 4, 3, padding=1)

    def forward(self, x):
        skips = [self.stem(x)]  # B x 32 x 64 x 64
        for block in self.down:
            skips.append(block(skips[-1]))  # B x 64 x 32 x 32, B x 128 x 16 x 16, B x 128 x 8 x 8
        x = skips.pop()
        for block in self.up:
            skip = skips.pop()
            x = block(torch.cat([F.interpolate(x, skip.shape[-2:]), skip], dim=1))
        return self.head(x)  # B x 4 x 64 x 64


class SourceSkips(nn.Module):
    """Encodes portraits once, then warps and fuses them for each driving frame."""

    def __init__(self, config: FsthConfig):
        super().__init__()
        channels = config.channels(3)  # of the maps at 1/2, 1/4 and 1/8 of the resolution
        self.encoder = nn.ModuleList(
            nn.Sequential(ConvBlock(i, o, stride=2), ConvBlock(o, o))
            for i, o in zip([6] + channels[:-1], channels, strict=True)
        )
        # driving drawing, warped drawing, warped portrait, flow, warped features, all at 1/4 of the resolution
        self.refiner = FlowRefiner(3 + 3 + 3 + 2 + channels[1], config.base_channels)

    def encode(self, images, landmark_images, landmarks) -> FsthSources:
        """
        Args:
            images (`torch.Tensor` of shape `(batch, num_portraits, 3, height, width)`): portraits in [-1, 1].
            landmark_images (`torch.Tensor` of the same shape): their landmark drawings in [-1, 1].
            landmarks (`torch.Tensor` of shape `(batch, num_portraits, 78, 2)`): pixels, x then y, NaN where absent.
        """
        shape = images.shape[:2]
        x = torch.cat([landmark_images, images], dim=2).flatten(0, 1)  # BK x 6 x 256 x 256
        features = []
        for block in self.encoder:
            x = block(x)
            features.append(x.unflatten(0, shape))  # B x K x 32 x 128 x 128 ... B x K x 128 x 32 x 32
        return FsthSources(images, landmark_images, landmarks, tuple(features))

    def refine(self, sources: FsthSources, landmark_images, landmarks):
        """
        Where in one portrait each of a batch to look for what a frame shows, at 1/4 of its resolution.

        Args:
            sources ([`FsthSources`]): of [`~SourceSkips.encode`], without the dimension of portraits.
            landmark_images (`torch.Tensor` of shape `(batch, 3, height, width)`): drawings of the frames, in [-1, 1].
            landmarks (`torch.Tensor` of shape `(batch, 78, 2)`): of the frames, pixels.

        Returns:
            The flow that the landmarks give and what it lacks (both `(batch, h, w, 2)`, half sides), the logits of
            confidence and of visibility (both `(batch, 1, h, w)`).
        """
        size = landmark_images.shape[-1]
        grid = pixel_grid(size // 4, size // 4, landmarks.device)
        with torch.autocast(landmarks.device.type, enabled=False):
            flow = landmark_flow(*with_crown(landmarks, sources.landmarks), size, grid)
            flow = flow.unflatten(1, grid.shape[:2])  # B x 64 x 64 x 2
        pictures = torch.cat([sources.images, sources.landmark_images], dim=1)
        small = F.interpolate(pictures, scale_factor=0.25, mode="area")  # B x 6 x 64 x 64
        warped = warp(torch.cat([small, sources.features[1]], dim=1), flow, grid)
        drawing = F.interpolate(landmark_images, scale_factor=0.25, mode="area")
        flow_input = (flow / FLOW_UNIT).permute(0, 3, 1, 2).to(warped.dtype)
        refined = self.refiner(torch.cat([drawing, warped, flow_input], dim=1)).float()  # B x 4 x 64 x 64
        residual_flow = FLOW_UNIT * refined[:, :2].permute(0, 2, 3, 1)
        return flow, residual_flow, refined[:, 2:3], refined[:, 3:]

    def forward(self, sources: FsthSources, landmark_images, landmarks) -> FusedSources:
        likeness = landmark_likeness(landmarks[:, None], sources.landmarks, landmark_images.shape[-1])  # B x T
        if likeness.shape[1] > MAX_FUSED:
            likeness, chosen = likeness.topk(MAX_FUSED)  # B x K
            rows = torch.arange(len(chosen), device=chosen.device)[:, None]
            sources = sources.map(lambda tensor: tensor[rows, chosen])
        batch, num_portraits = likeness.shape
        flat = sources.map(lambda tensor: tensor.flatten(0, 1))
        landmark_images, landmarks = (
            tensor.repeat_interleave(num_portraits, dim=0) for tensor in (landmark_images, landmarks)
        )  # BK x ...
        flow, residual_flow, confidence, visibility = self.refine(flat, landmark_images, landmarks)
        flow = flow + residual_flow  # BK x 64 x 64 x 2
        # portraits are trusted until training says otherwise
        visibility = torch.sigmoid(visibility + 2)
        confidence = confidence + likeness.flatten()[:, None, None, None]  # BK x 1 x 64 x 64

        def fuse(maps, weights=None, mode="bilinear"):
            height, width = maps.shape[-2:]
            warped = warp(maps, resize_flow(flow, height, width), pixel_grid(height, width, maps.device), mode)
            if weights is not None:
                warped = warped * F.interpolate(weights, (height, width), mode="bilinear").to(warped.dtype)
            logits = F.interpolate(confidence, (height, width), mode="bilinear")
            shares = torch.softmax(logits.unflatten(0, (batch, num_portraits)), dim=1).to(warped.dtype)
            return (warped.unflatten(0, (batch, num_portraits)) * shares).sum(dim=1)

        # what is seen is sampled bicubically: bilinear sampling blurs, and costs 4 % in LPIPS
        images = fuse(flat.images, mode="bicubic")
        return FusedSources(images=images, features=tuple(fuse(maps, visibility) for maps in flat.features))
