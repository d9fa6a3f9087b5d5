"""Eyes that shut, rehearsed while a generator is tuned to portraits whose eyes are open.

What no portrait shows is forgotten first (training/LOG.md, entry 17). So that it goes on closing eyes as it did, the
tuned generator is kept to what the one that it comes from adds around eyes that are shut (learning without forgetting;
Li and Hoiem, arXiv 1606.09282).
"""

import copy
from itertools import islice

import torch
import torch.nn.functional as F

from ..models.aligned_crops import PARTS, align, sample_crops
from ..models.landmark_layout import LOWER_LIDS, UPPER_LIDS
from ..models.modeling_fsth import FsthGenerator
from .episodes import rasterize


MAX_REHEARSED = 8  # portraits
LEAST_SHUT = 0.5  # of the way from as the lids are to where they meet
CROP_SIZE = 32  # pixels, of the residual around an eye
WEIGHT = 20.0  # of the mean absolute difference there, beside the content loss


class Rehearsal:
    """
    Portraits of one person that shut their eyes, and what a generator with source skips makes of them.

    Args:
        generator ([`FsthGenerator`]): before it is tuned; it stays as it is.
        adain_parameters (`torch.Tensor` of shape `(1, sum(adain_sizes))`): the person's, before they are tuned.
        images, landmarks, mattes: of the portraits, as of [`EpisodeSampler`].
        seed (`int`): of which portrait it is and how far its eyes are shut.
    """

    def __init__(
        self,
        generator: FsthGenerator,
        adain_parameters: torch.Tensor,
        images: torch.Tensor,
        landmarks: torch.Tensor,
        mattes: torch.Tensor,
        seed: int,
    ):
        self.generator = copy.deepcopy(generator).float().eval()
        self.adain_parameters, self.size, self.examples = adain_parameters, images.shape[-1], []
        self.rng = torch.Generator().manual_seed(seed)
        for image, points, matte in islice(zip(images, landmarks, mattes, strict=True), MAX_REHEARSED):
            parts = image[None], rasterize(points[None], self.size), points[None], matte[None]
            with torch.no_grad():  # for both generators, since fine-tuning leaves source skips as they are
                sources = self.generator.encode_sources(*(part[None] for part in parts))
            self.examples.append((points[None], sources))

    def term(self, generator: FsthGenerator, adain_parameters: torch.Tensor) -> torch.Tensor:
        """How far the tuned generator has come from the other around the eyes of one portrait, weighted."""
        index = int(torch.randint(len(self.examples), (), generator=self.rng))
        share = LEAST_SHUT + (1 - LEAST_SHUT) * torch.rand((), generator=self.rng).item()
        points, sources = self.examples[index]
        shut = points.clone()
        shut[:, UPPER_LIDS] = torch.lerp(points[:, UPPER_LIDS], points[:, LOWER_LIDS], share)
        inputs = rasterize(shut, self.size), shut, sources
        with torch.no_grad():
            before = self._eyes(self.generator, self.adain_parameters, *inputs)
        return WEIGHT * F.l1_loss(self._eyes(generator, adain_parameters, *inputs), before)

    def _eyes(self, generator, adain_parameters, drawing, points, sources) -> torch.Tensor:
        """What a generator adds around both eyes, 2 x 3 x S x S."""
        output = generator(drawing, adain_parameters, points, sources, return_images=False)
        residual = output.composition.residual  # 1 x 3 x 128 x 128
        eyes = [part for part in PARTS.values() if part.network == "eye"]
        return torch.cat([sample_crops(residual, align(points, part, self.size), CROP_SIZE) for part in eyes])
