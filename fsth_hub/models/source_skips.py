"""Source skips: how the generator looks at the portraits while it generates a frame.

A generator that sees a person through an embedding alone must learn faces by heart, which takes as many videos as the
paper had. Here the portraits' features are warped to the driving landmarks and given to its decoder instead:
a backward flow that the landmarks give (`landmark_flow.py`), a small network that says how what is around the face
goes with it (`head_motion.py`) and how far each portrait can be trusted where, and a softmax over the portraits that
fuses them. What is seen of the portraits is warped in layers (`layers.py`), the figure over a background that stays.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers.utils import ModelOutput

from .blocks import ConvBlock
from .configuration_fsth import FsthConfig
from .flow_refiner import FlowRefiner
from .head_motion import head_motions
from .landmark_flow import (
    FADE_WIDTH,
    FIGURE_FADE_WIDTH,
    PortraitFlow,
    pixel_grid,
    portrait_flow,
    resize_flow,
    warp,
)
from .landmark_layout import EYES, FACE, JAW, NOSE_BRIDGE, OUTER_LIPS
from .layers import background_plates, blur


# Half sides in the unit of the flow that the refiner is given, which would drown among features twenty times as large.
FLOW_UNIT = 0.05


# How much less alike two faces must be, in half sides, for a portrait to count 1/e as much. The mean of portraits that
# are warped from different poses has ghosts, and the narrower the choice, the more it flickers (training/LOG.md, 18).
SIMILARITY_WIDTH = 0.003
# What they are compared by: all but mouth and chin, or each syllable would take another portrait.
UPPER_FACE = np.r_[JAW[:3], JAW[-3:], 17:48]
PLACE_SHARE, EYES_SHARE = 0.1, 0.5  # of their place, and of the eyes' shape, beside the shape of all
MAX_FUSED = 3  # portraits for a frame, those most like it: more make it softer, fewer have it flicker
OUTSIDE_FACE = 4.0  # times as much similarity counts there, for hair and background lie at other places in each
CAVITY_LIGHT = 0.25  # in a mouth, of that on the lips
CHEEKS = ([31, 35], [2, 14])  # halfway between the nose's wings and the jaw


@dataclass
class FsthSources(ModelOutput):
    """What the generator keeps of a person's portraits.

    Args:
        images (`torch.Tensor` of shape `(batch, num_portraits, 3, height, width)`): portraits in [-1, 1].
        landmark_images (`torch.Tensor` of the same shape): their landmark drawings in [-1, 1].
        landmarks (`torch.Tensor` of shape `(batch, num_portraits, 78, 2)`): pixels, x then y, NaN where absent.
        mattes (`torch.Tensor` of shape `(batch, num_portraits, 1, height, width)`): how much is the figure, 0 to 1.
        plates (`torch.Tensor` of the shape of `images`): what is behind the figure.
        cavities (`torch.Tensor` of shape `(batch, num_portraits, 3, 1, 1)`): the colour inside a mouth, in [-1, 1].
        light (`torch.Tensor` of shape `(batch, num_portraits, 3, 1, 1)`): the skin's colour over its mean.
        features (`tuple` of `torch.Tensor`):
            Feature maps at 1/2, 1/4 and 1/8 of what the networks work on, `(batch, num_portraits, channels, h, w)`.
    """

    images: torch.Tensor | None = None
    landmark_images: torch.Tensor | None = None
    landmarks: torch.Tensor | None = None
    mattes: torch.Tensor | None = None
    plates: torch.Tensor | None = None
    cavities: torch.Tensor | None = None
    light: torch.Tensor | None = None
    features: tuple[torch.Tensor, ...] | None = None

    def map(self, function) -> "FsthSources":
        """Apply `function` to every tensor, for instance to repeat a person along the batch."""
        mapped = {name: function(value) for name, value in self.items() if name != "features"}
        return FsthSources(**mapped, features=tuple(function(feature) for feature in self.features))


@dataclass
class ChosenSources:
    """The K portraits most like each frame of a batch.

    Args:
        sources ([`FsthSources`]): theirs, along the batch: `(batch * K, ...)`.
        known ([`PortraitFlow`]): where the landmarks say to look in each, `(batch * K, ...)`.
        motions (`torch.Tensor` of shape `(batch * K, NUM_MOTIONS, h, w, 2)`): of [`head_motions`].
        similarity (`torch.Tensor` of shape `(batch, K)`): of [`landmark_similarity`].
        chosen (`torch.Tensor` of shape `(batch, K)`): which portraits.
    """

    sources: FsthSources
    known: PortraitFlow
    motions: torch.Tensor
    similarity: torch.Tensor
    chosen: torch.Tensor


@dataclass
class Composition(ModelOutput):
    """How a frame is put together from the portraits, for whoever has these at a higher resolution.

    Args:
        chosen (`torch.Tensor` of shape `(batch, k)`): which portraits.
        cavities (`torch.Tensor` of shape `(batch, k, 3, 1, 1)`): the colour inside their mouths, in [-1, 1].
        flow (`torch.Tensor` of shape `(batch, k, height, width, 2)`): where to look in each, normalized coordinates.
        shares (`torch.Tensor` of shape `(batch, k, 1, h, w)`): how much each counts; they sum to 1.
        shade (`torch.Tensor` of shape `(batch, k, 1, height, width)`): 0 where a mouth's cavity is seen instead.
        residual (`torch.Tensor` of shape `(batch, 3, h, w)`): what the decoder adds in the end, `h` its resolution.
    """

    chosen: torch.Tensor | None = None
    cavities: torch.Tensor | None = None
    flow: torch.Tensor | None = None
    shares: torch.Tensor | None = None
    shade: torch.Tensor | None = None
    residual: torch.Tensor | None = None

    def split(self) -> list["Composition"]:
        """One for each frame of the batch, on the processor, where frames are put together."""
        parts = zip(*(tensor.cpu().split(1) for tensor in self.values()), strict=True)
        return [Composition(**dict(zip(self, part, strict=True))) for part in parts]


@dataclass
class FusedSources(ModelOutput):
    """The portraits as one, warped to the driving landmarks.

    Args:
        images (`torch.Tensor` of shape `(batch, 3, height, width)`): the frame they give, in [-1, 1].
        features (`tuple` of `torch.Tensor`): as in [`FsthSources`], without the dimension of portraits.
        gain (`torch.Tensor` of shape `(batch, 3, h, w)`, at the networks' resolution):
            By what to multiply the decoder's residual: 1 where the figure is and around it, 0 in the background, which
            is not the decoder's to change, and the light of the face in a mouth.
        composition ([`Composition`]): without the residual.
    """

    images: torch.Tensor | None = None
    features: tuple[torch.Tensor, ...] | None = None
    gain: torch.Tensor | None = None
    composition: Composition | None = None


def landmark_similarity(driving, source, image_size: int) -> torch.Tensor:
    """
    How alike two faces are in pose and eyes, and a little in place: 0 for equal ones, the lower the less.

    Pose and eyes are in the shape of the landmarks, whatever their place, size and tilt (Procrustes). Place counts
    because hair, shoulders and background are as they were when the head was there.

    Args:
        driving, source (`torch.Tensor` of shape `(..., 78, 2)`): pixels.
        image_size (`int`): side of the frame in pixels.

    Returns:
        `torch.Tensor` of shape `(...)`: minus the mean distance of the points once they are aligned, with that of the
        eyes once more by `EYES_SHARE` and as they lie by `PLACE_SHARE`, in `SIMILARITY_WIDTH`.
    """

    def distance(a, b, points):
        return (a - b)[..., points, :].norm(dim=-1).mean(dim=-1)

    driving, source = (points.float() * 2 / image_size for points in (driving, source))  # ... x 78 x 2
    a, b = (points - points[..., UPPER_FACE, :].mean(dim=-2, keepdim=True) for points in (driving, source))
    # the turn and scale that take b nearest to a: multiplication by a complex number
    turned = torch.stack([-b[..., 1], b[..., 0]], dim=-1)
    along, across = ((a * axis)[..., UPPER_FACE, :].sum(dim=(-2, -1), keepdim=True) for axis in (b, turned))
    aligned = (along * b + across * turned) / b[..., UPPER_FACE, :].square().sum(dim=(-2, -1), keepdim=True)
    shape = distance(a, aligned, UPPER_FACE) + EYES_SHARE * distance(a, aligned, EYES.ravel())
    return -(shape + PLACE_SHARE * distance(driving, source, FACE)) / SIMILARITY_WIDTH


def reduce(images, size: int):
    """Square pictures (B x C x H x W) reduced to `size`, if they are larger."""
    return F.interpolate(images, (size, size), mode="area") if images.shape[-1] > size else images


def enlarge(images, size: int):
    """Square pictures (B x C x h x w) enlarged to `size`, if they are smaller."""
    return F.interpolate(images, (size, size), mode="bicubic") if images.shape[-1] < size else images


class SkipFusion(nn.Module):
    """What the encoder and the warped portraits have to say to the decoder at one resolution."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = ConvBlock(in_channels, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 1)

    def forward(self, encoded, warped):
        return self.conv2(self.conv1(torch.cat([encoded, warped], dim=1)))


class SourceSkips(nn.Module):
    """Encodes portraits once, then warps and fuses them for each driving frame."""

    def __init__(self, config: FsthConfig):
        super().__init__()
        self.config = config
        channels = config.channels(3)  # of the maps at 1/2, 1/4 and 1/8 of the resolution
        self.encoder = nn.ModuleList(
            nn.Sequential(ConvBlock(i, o, stride=2), ConvBlock(o, o))
            for i, o in zip([6] + channels[:-1], channels, strict=True)
        )
        # driving drawing, warped drawing, warped portrait, flow, warped features, all at 1/4 of the resolution
        self.refiner = FlowRefiner(3 + 3 + 3 + 2 + channels[1], config.base_channels)

    def encode(self, images, landmark_images, landmarks, mattes=None) -> FsthSources:
        """
        Args:
            images (`torch.Tensor` of shape `(batch, num_portraits, 3, height, width)`): portraits in [-1, 1].
            landmark_images (`torch.Tensor` of the same shape): their landmark drawings in [-1, 1].
            landmarks (`torch.Tensor` of shape `(batch, num_portraits, 78, 2)`): pixels, x then y, NaN where absent.
            mattes (`torch.Tensor` of shape `(batch, num_portraits, 1, height, width)`, *optional*):
                How much of each pixel is the figure, 0 to 1; by default all, and the background goes with the head.
        """
        shape = images.shape[:2]
        features = self.encode_features(images.flatten(0, 1), landmark_images.flatten(0, 1))
        if mattes is None:
            mattes = torch.ones_like(images[:, :, :1])
        return FsthSources(
            images=images,
            landmark_images=landmark_images,
            landmarks=landmarks,
            mattes=mattes,
            plates=background_plates(images, mattes).to(images.dtype),
            cavities=cavity_colours(images, landmarks),
            light=skin_light(images, landmarks),
            features=tuple(maps.unflatten(0, shape) for maps in features),
        )

    def encode_features(self, images, landmark_images) -> tuple[torch.Tensor, ...]:
        """The feature maps of single portraits (both arguments B x 3 x H x W, in [-1, 1])."""
        x = torch.cat([landmark_images, images], dim=1)  # B x 6 x 256 x 256
        x = reduce(x, self.config.working_size)
        features = []
        for block in self.encoder:
            x = block(x)
            features.append(x)  # B x 32 x 128 x 128 ... B x 128 x 32 x 32
        return tuple(features)

    def choose(self, sources: FsthSources, landmarks, size: int) -> ChosenSources:
        """
        The portraits most like each frame, and where the landmarks say to look in them.

        Args:
            sources ([`FsthSources`]): of [`~SourceSkips.encode`]; of one person for all frames, or of one for each.
            landmarks (`torch.Tensor` of shape `(batch, 78, 2)`): of the frames, pixels.
            size (`int`): side of the frames in pixels.
        """
        similarity = landmark_similarity(landmarks[:, None], sources.landmarks, size)  # B x T
        similarity, chosen = similarity.topk(min(MAX_FUSED, similarity.shape[1]))  # B x K
        batch, num_portraits = similarity.shape
        rows = torch.arange(batch, device=chosen.device)[:, None]

        def of_frames(tensor):
            tensor = tensor.expand(batch, *tensor.shape[1:])  # B x T x ..., no copy
            return (tensor[rows, chosen] if tensor.shape[1] > 1 else tensor).flatten(0, 1)

        flat = sources.map(of_frames)
        known, motions = self.look(flat, landmarks.repeat_interleave(num_portraits, dim=0), size)
        return ChosenSources(flat, known, motions, similarity, chosen)

    @torch.compiler.disable  # which pixels a triangle holds is data: compiling would break it into a hundred pieces
    def look(self, sources: FsthSources, landmarks, size: int) -> tuple[PortraitFlow, torch.Tensor]:
        """Where the landmarks say to look in one portrait each (`sources` without that dimension) of a batch, and how
        what is around the face can go with it ([`head_motions`], at 1/4 of the networks' resolution)."""
        quarter = self.config.working_size // 4
        with torch.autocast(landmarks.device.type, enabled=False):
            known = portrait_flow(landmarks, sources.landmarks, size, fade_width(sources.mattes))
            flow = resize_flow(known.flow, quarter, quarter)
            return known, head_motions(landmarks, sources.landmarks, flow, size)

    def refine(self, sources: FsthSources, landmark_images, flow, motions):
        """
        What the landmarks do not tell of where in one portrait each of a batch to look.

        Args:
            sources ([`FsthSources`]): of [`~SourceSkips.encode`], without the dimension of portraits.
            landmark_images (`torch.Tensor` of shape `(batch, 3, height, width)`): drawings of the frames, in [-1, 1].
            flow (`torch.Tensor` of shape `(batch, height, width, 2)`): the landmarks', of [`~SourceSkips.look`].
            motions (`torch.Tensor` of shape `(batch, NUM_MOTIONS, h, w, 2)`): of the same.

        Returns:
            What the flow lacks around the face (`(batch, h, w, 2)`, normalized coordinates, at 1/4 of the networks'
            resolution), and the logits of confidence and of visibility there (both `(batch, 1, h, w)`).
        """
        return self.refiner(self.refiner_input(sources, landmark_images, flow), motions)

    def refiner_input(self, sources: FsthSources, landmark_images, flow) -> torch.Tensor:
        """What the refiner sees of `flow` (`(batch, height, width, 2)`), of [`~SourceSkips.refine`]'s arguments."""
        quarter = self.config.working_size // 4
        grid = pixel_grid(quarter, quarter, flow.device)
        flow = resize_flow(flow, quarter, quarter)  # B x 64 x 64 x 2
        pictures = torch.cat([sources.images, sources.landmark_images], dim=1)
        small = reduce(pictures, quarter)  # B x 6 x 64 x 64
        warped = warp(torch.cat([small, sources.features[1]], dim=1), flow, grid)
        drawing = reduce(landmark_images, quarter)
        flow_input = (flow / FLOW_UNIT).permute(0, 3, 1, 2).to(warped.dtype)
        return torch.cat([drawing, warped, flow_input], dim=1)  # B x (11 + channels) x 64 x 64

    def forward(self, sources: FsthSources, landmark_images, landmarks) -> FusedSources:
        return self.fuse(self.choose(sources, landmarks, landmark_images.shape[-1]), landmark_images)

    def fuse(self, chosen: ChosenSources, landmark_images) -> FusedSources:
        """Warp portraits, of [`~SourceSkips.choose`], to the frames with these drawings, and make one of them."""
        flat, known, similarity, size = chosen.sources, chosen.known, chosen.similarity, landmark_images.shape[-1]
        batch, num_portraits = similarity.shape
        landmark_images = landmark_images.repeat_interleave(num_portraits, dim=0)  # BK x ...
        residual_flow, confidence, visibility = self.refine(flat, landmark_images, known.flow, chosen.motions)
        residual_flow = resize_flow(residual_flow, size, size)
        flow = known.flow + residual_flow * (1 - known.exactness)  # BK x 256 x 256 x 2
        # portraits are trusted until training says otherwise
        visibility = torch.sigmoid(visibility + 2)
        face = reduce((known.exactness > 0).float().permute(0, 3, 1, 2), confidence.shape[-1])
        weight = face + OUTSIDE_FACE * (1 - face)
        confidence = confidence + similarity.flatten()[:, None, None, None] * weight  # BK x 1 x 64 x 64
        shares = torch.softmax(confidence.unflatten(0, (batch, num_portraits)), dim=1)  # B x K x 1 x 64 x 64

        def sample(maps, mode="bilinear"):
            height, width = maps.shape[-2:]
            return warp(maps, resize_flow(flow, height, width), pixel_grid(height, width, maps.device), mode)

        def fuse(maps):
            if num_portraits == 1:
                return maps
            height, width = maps.shape[-2:]
            weights = F.interpolate(shares.flatten(0, 1), (height, width), mode="bilinear").to(maps.dtype)
            return (maps * weights).unflatten(0, (batch, num_portraits)).sum(dim=1)

        def warp_features(maps):
            return sample(maps) * F.interpolate(visibility, maps.shape[-2:], mode="bilinear").to(maps.dtype)

        # what is seen is sampled bicubically: bilinear sampling blurs, and costs 4 % in LPIPS
        shade = known.shade.permute(0, 3, 1, 2)  # BK x 1 x 256 x 256
        mattes = sample(flat.mattes.float())
        figures = sample(flat.images.float() - (1 - flat.mattes.float()) * flat.plates.float(), mode="bicubic")
        images = shade * figures + (1 - shade) * flat.cavities + (1 - mattes) * flat.plates
        composition = Composition(
            chosen=chosen.chosen,
            cavities=flat.cavities.unflatten(0, (batch, num_portraits)),
            flow=flow.unflatten(0, (batch, num_portraits)),
            shares=shares,
            shade=shade.unflatten(0, (batch, num_portraits)),
        )
        return FusedSources(
            images=fuse(images).to(flat.images.dtype),
            features=tuple(fuse(warp_features(maps)) for maps in flat.features),
            gain=fuse(reduce(margin(mattes) * (shade + (1 - shade) * flat.light), self.config.working_size)),
            composition=composition,
        )


def margin(mattes):
    """Mattes (B x 1 x H x W) grown by a margin in which the figure's edge, and its hair, may be generated."""
    small = F.max_pool2d(F.avg_pool2d(mattes, 4), 5, 1, 2)  # B x 1 x 64 x 64
    return F.interpolate(blur(small, 1), mattes.shape[-2:], mode="bilinear")


def fade_width(mattes) -> torch.Tensor:
    """How far from the landmarks a portrait moves (B): by how much of its matte (B x 1 x H x W) is background."""
    background = 1 - F.avg_pool2d(mattes.float(), 8).flatten(1).amin(dim=1)
    return FADE_WIDTH + (FIGURE_FADE_WIDTH - FADE_WIDTH) * background


def colours_at(images, points) -> torch.Tensor:
    """Light, 0 to 2, in pictures (B x K x 3 x H x W in [-1, 1]) at points (B x K x n x 2, pixels): B x K x 3 x n."""
    places = points.float() * 2 / images.shape[-1] - 1
    colours = F.grid_sample(
        images.flatten(0, 1).float(), places.flatten(0, 1)[:, None], padding_mode="border", align_corners=False
    )  # BK x 3 x 1 x n
    return colours[:, :, 0].unflatten(0, images.shape[:2]) + 1


@torch.no_grad()
def cavity_colours(images, landmarks) -> torch.Tensor:
    """The colour inside the mouths of portraits (B x K x 3 x H x W in [-1, 1]): that of the lips, in the dark."""
    lips = colours_at(images, landmarks[..., OUTER_LIPS, :]).mean(dim=-1)  # B x K x 3
    return (lips * CAVITY_LIGHT - 1)[..., None, None]


@torch.no_grad()
def skin_light(images, landmarks) -> torch.Tensor:
    """
    The colour of the skin on nose and cheeks over its mean: what the decoder, in doubt, makes grey in a mouth takes
    the light of the face by it. Shapes as in [`cavity_colours`]; 1 in a greyscale photograph.
    """
    cheeks = (landmarks[..., CHEEKS[0], :] + landmarks[..., CHEEKS[1], :]) / 2  # B x K x 2 x 2
    points = torch.cat([landmarks[..., NOSE_BRIDGE[1:], :], cheeks], dim=-2)  # B x K x 5 x 2
    skin = colours_at(images, points).median(dim=-1).values  # B x K x 3
    return (skin / skin.mean(dim=-1, keepdim=True).clamp(min=0.05))[..., None, None]
