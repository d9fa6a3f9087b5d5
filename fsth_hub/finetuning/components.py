"""Facial components fine-tuned to a person's own mouth and eyes, beside the generator and without its help.

What they learn from is in the portraits: the crop of each from that of another one, or from its own with an expression
that is made up, so that what it hides is to be found again. A few portraits show few expressions, and a component
that forgot the others would open no mouth any more: where lips or lids are open as in no portrait, it is kept to what
it did before.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from ..models.aligned_crops import PARTS, Part, part_masks
from ..models.facial_components import FsthFacialComponents
from .component_crops import centre_of, cut_crops, deform_crops, open_part, part_openings, warp_crops
from .feature_networks import VGGFeatures, lpips_distance
from .trainable import BETAS, autocast, tunable_copy


LEARNING_RATES = {"full": 1e-4, "lora": 1e-3}  # training/LOG.md, Numbers that stood in the code
NUM_PAIRS, NUM_MADE_UP = 4, 2  # a step's crops of each network: with a truth, and with what the component did before
OTHER_SHARE = 0.5  # of the pairs whose source is another portrait, where there is one
MAX_OPENINGS = {"mouth": 0.45, "eye": 0.4}  # that are made up, see `part_openings`
NEAR = 0.1  # how unlike those of the portraits an opening is that no portrait teaches
PIXEL_WEIGHT, LPIPS_WEIGHT, KEEP_WEIGHT = 2.0, 4.0, 10.0
INSIDE_WEIGHT = 3.0  # of pixels within lips and lids, those around having 1
NUM_HELD_OUT = 8  # of each network


def pixel_loss(
    fake: torch.Tensor, images: torch.Tensor, masks: torch.Tensor, inside_weight: float = INSIDE_WEIGHT
) -> torch.Tensor:
    """
    Mean absolute difference of crops (B x 3 x S x S).

    Args:
        masks (`torch.Tensor` of shape `(batch, 2, S, S)`): of [`part_masks`].
        inside_weight (`float`, *optional*, defaults to 3): of pixels within lips and lids, those around having 1.
    """
    inside = masks.amax(dim=1, keepdim=True)
    return ((fake - images).abs() * (1 + (inside_weight - 1) * inside)).mean()


def perceptual_loss(vgg: VGGFeatures, fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """LPIPS of crops (B x 3 x S x S in [-1, 1])."""
    fake, real = (crops.contiguous(memory_format=torch.channels_last) for crops in (fake, real))
    with torch.no_grad():
        wanted = vgg(real, last=True)[1]
    return lpips_distance(vgg(fake, last=True)[1], wanted, vgg.heads)


class PersonCrops:
    """
    One person's mouths or eyes, and examples made of them.

    Args:
        network (`str`): `"mouth"` or `"eye"`.
        size (`int`): side in pixels of the crops that it sees.
        images (`Sequence` of `torch.Tensor` of shape `(3, height, width)`): head crops of T portraits, in [-1, 1].
        landmarks (`Sequence` of `torch.Tensor` of shape `(78, 2)`): their pixels.
    """

    def __init__(self, network: str, size: int, images: Sequence[torch.Tensor], landmarks: Sequence[torch.Tensor]):
        parts = [part for part in PARTS.values() if part.network == network]
        self.part: Part = parts[0]
        self.size, self.num_parts = size, len(parts)
        kept = [
            cut_crops(image[None], points.float()[None], part, size)
            for image, points in zip(images, landmarks, strict=True)
            for part in parts
        ]
        self.images, self.points = (torch.cat(column) for column in zip(*kept, strict=True))
        self.openings = part_openings(self.points.cpu().numpy(), self.part)  # N = T or 2 T

    def _made_up(self, rng: np.random.Generator, count: int) -> torch.Tensor:
        return torch.from_numpy(rng.uniform(0, MAX_OPENINGS[self.part.network], count)).float()

    def pairs(self, rng: np.random.Generator, targets: Sequence[int], count: int) -> dict[str, torch.Tensor]:
        """
        Crops and what to make them of.

        Args:
            targets (`Sequence[int]`): numbers of the portraits that may be the truth.

        Returns:
            `dict` of `torch.Tensor`: `warped`, `portraits` and `images` (the truth), each `(count, 3, size, size)` in
            [-1, 1]; `masks` and `portrait_masks`, each `(count, 2, size, size)`, see [`part_masks`].
        """
        chosen = np.array(targets)[rng.integers(len(targets), size=count)] * self.num_parts
        chosen = chosen + rng.integers(self.num_parts, size=count)
        images, points = self.images[chosen], self.points[chosen]
        sources, source_points = deform_crops(
            images, points, open_part(points, self._made_up(rng, count), self.part), self.part, self.size
        )
        for row, target in enumerate(chosen):
            own = target % self.num_parts  # the left eye is no source of the right one
            others = np.arange(own, len(self.images), self.num_parts)
            others = others[others != target]
            if len(others) and rng.random() < OTHER_SHARE:
                other = rng.choice(others)
                sources[row], source_points[row] = self.images[other], self.points[other]
        return self._examples(sources, source_points, points) | {"images": centre_of(images, self.size)}

    def made_up(self, rng: np.random.Generator, count: int) -> dict[str, torch.Tensor]:
        """Portraits driven to made-up openings: as [`~PersonCrops.pairs`], but with `news` (`(count,)`, how unlike the
        portraits' own they are, 0 to 1) in place of the truth, of which there is none."""
        chosen, openings = rng.integers(len(self.images), size=count), self._made_up(rng, count)
        points = self.points[chosen]
        news = np.abs(openings.numpy()[:, None] - self.openings).min(axis=1) / NEAR
        examples = self._examples(self.images[chosen], points, open_part(points, openings, self.part))
        return examples | {"news": torch.from_numpy(news).float().clamp(max=1).to(self.images.device)}

    def _examples(self, sources, source_points, points) -> dict[str, torch.Tensor]:
        return {
            "warped": warp_crops(sources, points, source_points, self.part, self.size),
            "portraits": centre_of(sources, self.size),
            "masks": part_masks(points, self.part, self.size),
            "portrait_masks": part_masks(source_points, self.part, self.size),
        }


class ComponentTuner:
    """
    A copy of facial components on its way to one person, and the best that it has been.

    Args:
        components ([`FsthFacialComponents`]): which stay as they are.
        method (`str`): `"full"` or `"lora"`.
        images, landmarks: of the portraits, as of [`PersonCrops`].
        targets, held_out (`Sequence[int]`): the portraits to learn from, and those to judge by.
        vgg ([`VGGFeatures`]): with heads of LPIPS.
        seed (`int`): of all that is sampled.
    """

    def __init__(
        self,
        components: FsthFacialComponents,
        method: str,
        images: Sequence[torch.Tensor],
        landmarks: Sequence[torch.Tensor],
        targets: Sequence[int],
        held_out: Sequence[int],
        vgg: VGGFeatures,
        seed: int,
    ):
        self.tuned, self.before = tunable_copy(components, method, seed), tunable_copy(components, "full", seed)
        self.before.eval().requires_grad_(False)
        self.targets, self.vgg, self.device = targets, vgg, components.device
        self.crops = {
            n: PersonCrops(n, components.config.size_of(n), images, landmarks) for n in components.config.networks
        }
        self.rng = np.random.default_rng(seed)
        tuned = [parameter for parameter in self.tuned.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(tuned, LEARNING_RATES[method], BETAS)
        rng = np.random.default_rng(seed + 1)
        self.held_out = {
            name: (crops.pairs(rng, held_out, NUM_HELD_OUT), crops.made_up(rng, NUM_HELD_OUT))
            for name, crops in self.crops.items()
        }
        self.best_score, self.best_step, self.best = math.inf, 0, None

    def terms(self, network: str, pairs: dict, made_up: dict) -> dict[str, torch.Tensor]:
        """The weighted loss terms of examples."""
        inputs = ("warped", "portraits", "masks", "portrait_masks")
        both = [torch.cat([pairs[name], made_up[name]]) for name in inputs]
        count = len(pairs["images"])
        with autocast(self.device):
            residual = self.tuned.generate(network, *both).float()
            with torch.no_grad():
                before = self.before.generate(network, *(part[count:] for part in both)).float()
            fake = both[0][:count] + residual[:count]
            lpips = perceptual_loss(self.vgg, fake, pairs["images"])
        kept = F.l1_loss(residual[count:], before, reduction="none").mean(dim=(1, 2, 3))
        return {
            f"{network}_pixel": PIXEL_WEIGHT * pixel_loss(fake, pairs["images"], pairs["masks"]),
            f"{network}_lpips": LPIPS_WEIGHT * lpips,
            f"{network}_keep": KEEP_WEIGHT * (kept * made_up["news"]).mean(),
        }

    def step(self) -> dict[str, float]:
        """One update; gives the loss terms."""
        terms = {}
        for network, crops in self.crops.items():
            examples = crops.pairs(self.rng, self.targets, NUM_PAIRS), crops.made_up(self.rng, NUM_MADE_UP)
            terms |= self.terms(network, *examples)
        sum(terms.values()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {name: term.item() for name, term in terms.items()}

    @torch.no_grad()
    def evaluate(self, step: int) -> float:
        """The loss on what is held out; the weights of the best step are kept."""
        terms = [self.terms(network, *examples) for network, examples in self.held_out.items()]
        score = sum(term.item() for each in terms for term in each.values())
        if self.best is None or score < self.best_score:
            weights = {name: tensor.clone() for name, tensor in self.tuned.state_dict().items()}
            self.best_score, self.best_step, self.best = score, step, weights
        return score

    def best_components(self) -> FsthFacialComponents:
        """The components as they were at their best, with their updates beside the weights if by LoRA."""
        self.tuned.load_state_dict(self.best)
        return self.tuned.eval().requires_grad_(False)
