"""Facial components: small networks for what no portrait shows, the inside of a mouth and lids over an eye.

The flow of the landmarks opens a mouth but finds no teeth behind closed lips, and closes an eye but finds no lid. Each
component works on an aligned crop (`aligned_crops.py`): it sees the crop of the composed frame, that of the portrait
most like it, and where lips, inner mouth, lids and iris are in both, and adds what is missing. They are trained
adversarially with discriminators of their own, as the facial components of GFPGAN (arXiv 2101.04061) are.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn

# the latter for diffusers, which finds out how to load a component by its base class in the component's own module
from transformers import PreTrainedConfig, PreTrainedModel  # noqa: F401
from transformers.utils import ModelOutput

from .aligned_crops import PARTS, align, blend_mask, part_masks, sample_crops, similarity, to_aligned
from .blocks import ConvBlock, ZeroConv2d, spectral_norm
from .modeling_fsth import FsthPreTrainedModel


NUM_MASKS = 2
# Of the pixels between lids and iris those that count as the white of the eye, the brightest; how many there must be.
WHITEST, MIN_WHITES = 0.3, 20
# How much bluer and greener teeth and lids may be than that, and than all that is around: skin is not of one colour.
WHITER, MOTTLED = 1.02, 1.1


@strict
class FsthComponentsConfig(PreTrainedConfig):
    r"""
    Configuration of [`FsthFacialComponents`] and [`FsthComponentDiscriminators`].

    Args:
        networks (`list[str]`, *optional*): which there are, of `"mouth"` and `"eye"`; by default both.
        mouth_size, eye_size (`int`, *optional*, default to 96 and 64): side of the aligned crops, a multiple of 8.
        mouth_channels, eye_channels (`list[int]`, *optional*): at 1/2, 1/4 and 1/8 of the crop; multiples of 8.
        num_middle_blocks (`int`, *optional*, defaults to 3): convolutions at the lowest resolution.
        discriminator_channels (`int`, *optional*, defaults to 48):
            At the first stage and in the segmentation head, twice as many at the other stages.
        activation_channels (`list[int]`, *optional*): of the stages that discriminators judge; by default of VGG16.
    """

    model_type = "fsth_components"

    networks: list[str] | tuple[str, ...] = ("mouth", "eye")
    mouth_size: int = 96
    eye_size: int = 64
    mouth_channels: list[int] | tuple[int, ...] = (48, 96, 160)
    eye_channels: list[int] | tuple[int, ...] = (32, 64, 128)
    num_middle_blocks: int = 3
    discriminator_channels: int = 48
    activation_channels: list[int] | tuple[int, ...] = (64, 128, 256, 512)

    def validate_networks(self):
        unknown = sorted(set(self.networks) - {part.network for part in PARTS.values()})
        if unknown or not self.networks:
            raise ValueError(f"networks must name 'mouth', 'eye' or both, not {list(self.networks)}.")

    def channels_of(self, network: str) -> list[int] | tuple[int, ...]:
        return self.mouth_channels if network == "mouth" else self.eye_channels

    def size_of(self, network: str) -> int:
        return self.mouth_size if network == "mouth" else self.eye_size


@dataclass
class ComponentSources(ModelOutput):
    """What the components keep of a person's T portraits, by part.

    Args:
        crops (`dict` of `torch.Tensor` of shape `(T, 3, size, size)`): aligned crops in [-1, 1].
        points (`dict` of `torch.Tensor` of shape `(T, 78, 2)`): landmarks, normalized coordinates of the crops.
        masks (`dict` of `torch.Tensor` of shape `(T, 2, size, size)`): of [`part_masks`].
        whites (`torch.Tensor` of shape `(3,)`): the white of the eyes, light from 0 to 2; NaN where it is not seen.
    """

    crops: dict[str, torch.Tensor] | None = None
    points: dict[str, torch.Tensor] | None = None
    masks: dict[str, torch.Tensor] | None = None
    whites: torch.Tensor | None = None


@dataclass
class FsthComponentsOutput(ModelOutput):
    """
    Args:
        residuals (`dict` of `torch.Tensor` of shape `(batch, 3, size, size)`):
            By part, of those that there is a network for, what to add to the crop, [-1, 1] being the range of a
            picture, blended out towards the border.
        alignments (`dict` of `torch.Tensor` of shape `(batch, 2, 3)`): where the crops lie, see [`align`].
    """

    residuals: dict[str, torch.Tensor] | None = None
    alignments: dict[str, torch.Tensor] | None = None

    def split(self) -> list["FsthComponentsOutput"]:
        """One for each frame of the batch, on the processor, where frames are put together."""
        parts = [{name: tensor.cpu().split(1) for name, tensor in values.items()} for values in self.values()]
        count = len(next(iter(parts[0].values())))
        return [
            FsthComponentsOutput(*({name: tensors[index] for name, tensors in part.items()} for part in parts))
            for index in range(count)
        ]


class ComponentGenerator(nn.Module):
    """A U-Net over a crop, whose output starts at zero."""

    def __init__(self, channels: list[int] | tuple[int, ...], num_middle_blocks: int):
        super().__init__()
        inputs = 4 * (3 + 3 + 2 * NUM_MASKS)
        self.stem = nn.Sequential(ConvBlock(inputs, channels[0]), ConvBlock(channels[0], channels[0]))
        self.down = nn.ModuleList(
            nn.Sequential(ConvBlock(i, o, stride=2), ConvBlock(o, o))
            for i, o in zip(channels[:-1], channels[1:], strict=True)
        )
        self.middle = nn.Sequential(*(ConvBlock(channels[-1], channels[-1]) for _ in range(num_middle_blocks)))
        self.up = nn.ModuleList(
            nn.Sequential(ConvBlock(i + o, o), ConvBlock(o, o))
            for i, o in zip(channels[:0:-1], channels[-2::-1], strict=True)
        )
        self.head = ZeroConv2d(channels[0], 12, 3, padding=1)

    def forward(self, x):
        skips = [self.stem(F.pixel_unshuffle(x, 2))]  # B x 48 x 48 x 48
        for block in self.down:
            skips.append(block(skips[-1]))  # B x 96 x 24 x 24, B x 160 x 12 x 12
        x = self.middle(skips.pop())
        for block in self.up:
            skip = skips.pop()
            x = block(torch.cat([F.interpolate(x, skip.shape[-2:]), skip], dim=1))
        return F.pixel_shuffle(self.head(x), 2)  # B x 3 x 96 x 96


class FsthFacialComponents(FsthPreTrainedModel):
    """The generators of mouth and eyes."""

    config_class = FsthComponentsConfig

    def __init__(self, config: FsthComponentsConfig):
        super().__init__(config)
        for network in config.networks:  # `mouth`, `eye`
            generator = ComponentGenerator(config.channels_of(network), config.num_middle_blocks)
            self.add_module(network, generator)
        self.post_init()

    def generate(self, network: str, warped, portraits, masks, portrait_masks) -> torch.Tensor:
        """
        What to add to crops.

        Args:
            network (`str`): `"mouth"` or `"eye"`.
            warped, portraits (`torch.Tensor` of shape `(batch, 3, size, size)`):
                Aligned crops of the composed frame and of a portrait, in [-1, 1].
            masks, portrait_masks (`torch.Tensor` of shape `(batch, 2, size, size)`): of [`part_masks`], for both.

        Returns:
            `torch.Tensor` of shape `(batch, 3, size, size)`.
        """
        x = torch.cat([warped, portraits, masks, portrait_masks], dim=1).to(self.dtype)  # B x 10 x 96 x 96
        x = x.contiguous(memory_format=torch.channels_last)
        return getattr(self, network)(x) * blend_mask(x.shape[-1], x.device)

    def encode_portraits(self, images, landmarks) -> ComponentSources:
        """
        Args:
            images (`list` of `torch.Tensor` of shape `(3, height, width)`): T head crops of any size, in [-1, 1].
            landmarks (`list` of `torch.Tensor` of shape `(78, 2)`): pixels of the crops.
        """
        crops, points = {name: [] for name in PARTS}, {name: [] for name in PARTS}
        for image, own in zip(images, landmarks, strict=True):
            for name, part in PARTS.items():
                frame_size = image.shape[-1]
                alignment = align(own[None], part, frame_size)
                crops[name].append(sample_crops(image[None], alignment, self.config.size_of(part.network)))
                points[name].append(to_aligned(own[None], alignment, part, frame_size))
        crops = {name: torch.cat(values) for name, values in crops.items()}
        points = {name: torch.cat(values) for name, values in points.items()}
        masks = {name: part_masks(points[name], part, crops[name].shape[-1]) for name, part in PARTS.items()}
        return ComponentSources(crops=crops, points=points, masks=masks, whites=eye_whites(crops, masks))

    def forward(self, frames, landmarks, sources: ComponentSources) -> FsthComponentsOutput:
        """
        Args:
            frames (`torch.Tensor` of shape `(batch, 3, height, width)`):
                Composed frames of one person, without the generator's residual, in [-1, 1].
            landmarks (`torch.Tensor` of shape `(batch, 78, 2)`): pixels of the frames.
            sources ([`ComponentSources`]): of [`~FsthFacialComponents.encode_portraits`].
        """
        residuals, alignments = {}, {}
        for network in self.config.networks:
            size = self.config.size_of(network)
            inputs = []
            names = [name for name, part in PARTS.items() if part.network == network]
            for name in names:
                part = PARTS[name]
                alignments[name] = align(landmarks, part, frames.shape[-1])
                points = to_aligned(landmarks, alignments[name], part, frames.shape[-1])
                own = sources.points[name].to(points.device)
                chosen = similarity(points[:, None], own[None], part).argmax(dim=1)  # B
                masks = part_masks(points, part, size)
                crops = sample_crops(frames, alignments[name], size)
                shown = (kept[name][chosen].to(crops) for kept in (sources.crops, sources.masks))
                inputs.append((crops, masks, *shown))
            crops, masks, portraits, portrait_masks = (torch.cat(tensors) for tensors in zip(*inputs, strict=True))
            generated = self.generate(network, crops, portraits, masks, portrait_masks).float()
            inner = masks[:, :1]
            lit = inner if network == "mouth" else 1 - inner  # teeth, or lids
            generated = limit_blue(generated, crops, sources.whites.to(crops), lit)
            residuals |= dict(zip(names, generated.chunk(len(names)), strict=True))
        return FsthComponentsOutput(residuals=residuals, alignments=alignments)


def eye_whites(crops: dict[str, torch.Tensor], masks: dict[str, torch.Tensor]) -> torch.Tensor:
    """The white of the eyes in crops with these masks (of [`ComponentSources`]), of the eye in which it is brighter:
    it has the colour of the light that falls on the face. Light from 0 to 2, `(3,)`; NaN where hardly any of it is
    seen."""
    whites = torch.full((3,), torch.nan)
    for name, part in PARTS.items():
        if part.network != "eye":
            continue
        opening, iris = masks[name].unbind(dim=1)  # T x 64 x 64
        colours = crops[name].float().movedim(1, -1)[(opening > 0.99) & (iris < 0.01)] + 1  # n x 3
        if len(colours) < MIN_WHITES:
            continue
        brightest = colours.mean(dim=1).topk(int(WHITEST * len(colours))).indices
        colour = colours[brightest].median(dim=0).values
        if not colour.mean() <= whites.mean():
            whites = colour
    return whites


def limit_blue(residuals: torch.Tensor, crops: torch.Tensor, whites: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """
    Teeth and lids in the light of the face: under old varnish the networks make them bluer than all else there is.

    Args:
        residuals, crops (`torch.Tensor` of shape `(batch, 3, size, size)`):
            What is added to crops of mouths or eyes in [-1, 1].
        whites (`torch.Tensor` of shape `(3,)`): of [`eye_whites`]; with NaN nothing changes.
        mask (`torch.Tensor` of shape `(batch, 1, size, size)`): where, 0 to 1.

    Returns:
        `torch.Tensor` of shape `(batch, 3, size, size)`: residuals that make, where the mask is, something as bright
        as before and no bluer or greener than the white of the eyes or the crop on the mean, unless the crops are so
        themselves.
    """
    made = (crops + residuals + 1).clamp(min=0)
    red = made[:, :1]
    limits = (WHITER * whites[1:] / whites[0].clamp(min=1e-3)).nan_to_num(torch.inf)[:, None, None]
    around = (crops + 1).mean(dim=(2, 3), keepdim=True)  # B x 3 x 1 x 1
    limits = limits.maximum(MOTTLED * around[:, 1:] / around[:, :1].clamp(min=1e-3))
    allowed = red.clamp(min=1e-3) * limits  # nothing times no limit would be NaN
    limited = torch.cat([red, made[:, 1:].minimum(allowed.maximum(crops[:, 1:] + 1))], dim=1)
    brightness = made.mean(dim=1, keepdim=True) / limited.mean(dim=1, keepdim=True).clamp(min=1e-3)
    limited = limited * brightness.clamp(max=2)
    return residuals + mask * (limited - made)


class StageDiscriminator(nn.Module):
    """Scores patches of one stage's activations, conditioned on what the generator was given."""

    def __init__(self, in_channels: int, channels: int, stage: int):
        super().__init__()
        # scores are at 1/4 of the crop's resolution, or at the stage's own if that is lower
        halves = [stage < 1, stage < 2]
        widths = [in_channels + 3 + NUM_MASKS, channels, channels]
        self.blocks = nn.ModuleList(
            spectral_norm(nn.Conv2d(i, o, 4 if half else 3, stride=2 if half else 1, padding=1))
            for i, o, half in zip(widths[:-1], widths[1:], halves, strict=True)
        )
        self.head = spectral_norm(nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, activations, condition):
        condition = F.interpolate(condition, activations.shape[-2:], mode="area")
        x = torch.cat([activations, condition], dim=1).contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            x = F.leaky_relu(block(x), 0.2)
        return self.head(x)


class SegmentationHead(nn.Module):
    """Finds in crops what [`part_masks`] draws from landmarks, by the activations of all stages."""

    def __init__(self, activation_channels: list[int] | tuple[int, ...], channels: int):
        super().__init__()
        self.stages = nn.ModuleList(nn.Conv2d(count, channels, 1) for count in activation_channels)
        self.block = nn.Conv2d(channels, channels, 3, padding=1)
        self.head = nn.Conv2d(channels, NUM_MASKS, 3, padding=1)

    def forward(self, activations):
        size = [side // 2 for side in activations[0].shape[-2:]]
        total = 0.0
        for stage, maps in zip(self.stages, activations, strict=True):
            maps = F.adaptive_avg_pool2d(maps, size) if maps.shape[-1] > size[-1] else maps
            total = total + F.interpolate(stage(maps), size, mode="bilinear")
        return self.head(F.relu(self.block(F.relu(total))))  # B x 2 x 48 x 48


class ComponentDiscriminator(nn.Module):
    """
    Tells real crops from generated ones by what a frozen network, which has learned to see, makes of them: each of its
    stages is judged by itself (projected GAN, arXiv 2111.01007). One that has to learn to see too takes far longer to
    tell teeth from a soft band (training/LOG.md, entries 26 and 27). It finds openings, lips and irises too, so that
    generators can be held to what was asked for: lips may look real and yet close a mouth (entry 28).
    """

    def __init__(self, activation_channels: list[int] | tuple[int, ...], channels: int):
        super().__init__()
        self.stages = nn.ModuleList(
            StageDiscriminator(count, channels * min(stage + 1, 2), stage)
            for stage, count in enumerate(activation_channels)
        )
        self.segmentation = SegmentationHead(activation_channels, channels)

    def forward(self, activations, condition):
        # of one size, whichever stage they are of
        sizes = [maps.float().square().mean(dim=(1, 2, 3), keepdim=True).sqrt() for maps in activations]
        activations = [maps / size.clamp(min=1e-6) for maps, size in zip(activations, sizes, strict=True)]
        scores = [judge(maps, condition) for judge, maps in zip(self.stages, activations, strict=True)]
        return scores, self.segmentation(activations)


class FsthComponentDiscriminators(FsthPreTrainedModel):
    """The discriminators of mouth and eyes, for training alone."""

    config_class = FsthComponentsConfig

    def __init__(self, config: FsthComponentsConfig):
        super().__init__(config)
        for network in config.networks:
            self.add_module(network, ComponentDiscriminator(config.activation_channels, config.discriminator_channels))
        self.post_init()

    def forward(self, network: str, activations, warped, masks) -> tuple[list[torch.Tensor], torch.Tensor]:
        """
        Args:
            network (`str`): `"mouth"` or `"eye"`.
            activations (`Sequence` of `torch.Tensor` of shape `(batch, channels, h, w)`):
                What the frozen network makes of real or generated crops, one of each of its stages, the first as large
                as the crops and each of the others half as large.
            warped (`torch.Tensor` of shape `(batch, 3, height, width)`): the warped crops, in [-1, 1].
            masks (`torch.Tensor` of shape `(batch, 2, height, width)`): of [`part_masks`].

        Returns:
            Unbounded scores of patches, of each stage (`list` of `torch.Tensor` of shape `(batch, 1, h, w)`), and the
            logits of the masks that the crops themselves show, at half their resolution (`torch.Tensor` of shape
            `(batch, 2, height // 2, width // 2)`).
        """
        return getattr(self, network)(activations, torch.cat([warped, masks], dim=1))
