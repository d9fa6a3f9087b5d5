"""Losses of arXiv 1905.08233 v2 (section 3.3): functions of plain tensors, and the terms that training adds up.

generator      L = L_CNT + L_ADV + w_match L_MCH      L_ADV = -D(fake) + w_fm L_FM
discriminator  L_DSC = max(0, 1 + D(fake)) + max(0, 1 - D(real))
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ..models.errors import FsthError
from ..models.landmark_layout import LEFT_EYE, OUTER_LIPS, RIGHT_EYE
from .feature_networks import FaceFeatures, VGGFeatures, crop_around, load_weights, lpips_distance


PARTS = (OUTER_LIPS, RIGHT_EYE, LEFT_EYE)
PART_MARGIN, PART_SIZE = 1.6, 64  # of what a part's points span; pixels


def content_loss(fake_features: Sequence[torch.Tensor], real_features: Sequence[torch.Tensor]) -> torch.Tensor:
    """L_CNT of one network: the mean absolute difference of each of its maps, summed over the maps."""
    return sum(F.l1_loss(fake.float(), real.float()) for fake, real in zip(fake_features, real_features, strict=True))


def hinge(real_scores: torch.Tensor, fake_scores: torch.Tensor) -> torch.Tensor:
    """The hinge loss of each pair of unbounded scores, both of one shape."""
    return F.relu(1 - real_scores) + F.relu(1 + fake_scores)


def discriminator_loss(real_scores: torch.Tensor, fake_scores: torch.Tensor) -> torch.Tensor:
    """L_DSC, the hinge loss on unbounded scores (B): a sigmoid before it would stop the discriminator's learning."""
    return hinge(real_scores.float(), fake_scores.float()).mean()


def adversarial_loss(fake_scores: torch.Tensor) -> torch.Tensor:
    """The first term of L_ADV: minus the mean score (B)."""
    return -fake_scores.float().mean()


def feature_matching_loss(
    fake_features: Sequence[torch.Tensor], real_features: Sequence[torch.Tensor]
) -> torch.Tensor:
    """L_FM: mean absolute difference of the discriminator's maps, averaged over them; real maps get no gradient."""
    real_features = [real.detach() for real in real_features]
    return content_loss(fake_features, real_features) / len(real_features)


def match_loss(frame_embeddings: torch.Tensor, identity_embedding: torch.Tensor) -> torch.Tensor:
    """
    L_MCH: mean absolute difference between embeddings (B x K x N) and the discriminator's person vectors W_i (B x N),
    which get no gradient: the embedder must learn to stand in for W_i, not W_i for the embedder.
    """
    return (frame_embeddings.float() - identity_embedding.detach().float()[:, None]).abs().mean()


@dataclass(frozen=True)
class LossTerm:
    """
    A term of the generator's loss. A new one is an entry of [`CONTENT_TERMS`] or [`ADVERSARIAL_TERMS`]: the training
    loops compute and log what stands there, and meta_train.py has a flag `--NAME_weight` for each.

    Args:
        name (`str`): in logs and flags.
        weight (`float`): off at 0.
        value (`Callable`): from a [`Comparison`] or a [`Judgement`] to the unweighted term, a scalar.
        about (`str`): the flag's help.
        scale (`str`, *optional*):
            `"backbone"` or `"face_network"`, by whose `loss_scale` the weight is multiplied, see `feature_networks`.
        last_maps (`bool`, *optional*, defaults to `False`): whether it needs the backbone's last activations too.
    """

    name: str
    weight: float
    value: Callable[["Comparison | Judgement"], torch.Tensor]
    about: str
    scale: str | None = None
    last_maps: bool = False


class Comparison:
    """
    Generated frames and the real ones, and what networks see in both, each computed once for all terms.

    Args:
        fake, real (`torch.Tensor` of shape `(batch, 3, height, width)`): in [-1, 1].
        landmarks (`torch.Tensor` of shape `(batch, 78, 2)`): of the real frames, pixels.
        content ([`ContentLoss`]): whose networks look at them.
        window (`tuple`, *optional*): left, top and side in pixels of the square that the backbone sees.
    """

    def __init__(self, fake, real, landmarks, content: "ContentLoss", window: tuple[int, int, int] | None = None):
        self.fake, self.real, self.landmarks, self.content = fake, real, landmarks, content
        self.window = window or (0, 0, fake.shape[-1])

    def of_both(self, network: Callable) -> tuple:
        """What a network gives for generated and for real frames, these without gradients."""
        with torch.no_grad():
            real = network(self.real)
        return network(self.fake), real

    @cached_property
    def maps(self) -> tuple:
        """The backbone's (first, last) activations of the window, of generated and of real frames."""
        left, top, side = self.window
        return self.of_both(
            lambda images: self.content.backbone(
                images[:, :, top : top + side, left : left + side], last=self.content.last_maps
            )
        )

    def vgg(self) -> torch.Tensor:
        (fake, _), (real, _) = self.maps
        return content_loss(fake, real)

    def lpips(self) -> torch.Tensor:
        (_, fake), (_, real) = self.maps
        return lpips_distance(fake, real, self.content.backbone.heads)

    def face(self) -> torch.Tensor:
        return content_loss(*self.of_both(lambda images: self.content.face_network(images, self.landmarks)))

    def parts(self) -> torch.Tensor:
        def crops(images):
            return torch.cat([crop_around(images, self.landmarks[:, p], PART_MARGIN, PART_SIZE) for p in PARTS])

        (fake, _), (real, _) = self.of_both(lambda images: self.content.backbone(crops(images)))
        return content_loss(fake, real)

    def pixel(self) -> torch.Tensor:
        return content_loss([self.fake], [self.real])


@dataclass(frozen=True)
class Judgement:
    """
    What the discriminator makes of generated frames.

    Args:
        scores (`torch.Tensor` of shape `(batch,)`): of the generated frames.
        features, real_features (`Sequence` of `torch.Tensor`): its maps of the generated and of the real frames.
        frame_embeddings (`torch.Tensor` of shape `(batch, K, N)`, *optional*): of the embedder, for the match.
        person (`torch.Tensor` of shape `(batch, N)`, *optional*): the discriminator's vectors W_i, for the match.
    """

    scores: torch.Tensor
    features: Sequence[torch.Tensor]
    real_features: Sequence[torch.Tensor]
    frame_embeddings: torch.Tensor | None = None
    person: torch.Tensor | None = None

    def adversarial(self) -> torch.Tensor:
        return adversarial_loss(self.scores)

    def feature_matching(self) -> torch.Tensor:
        return feature_matching_loss(self.features, self.real_features)

    def match(self) -> torch.Tensor:
        return match_loss(self.frame_embeddings, self.person)


# Weights of v2. They were set for Caffe networks, whose input is 0..255 minus a mean; see `feature_networks` for how
# the content weights carry over to networks with another input scale. Mouth and eyes are what people look at and a
# fiftieth of the frame, so a term compares them enlarged; with the paper's thousands of people it is not needed. LPIPS
# sees fine texture where most of a frame is right already, which the paper's term hardly does.
CONTENT_TERMS = (
    LossTerm("vgg", 0.15, Comparison.vgg, "of the VGG term, for a Caffe-scaled VGG", scale="backbone"),
    LossTerm("lpips", 0.0, Comparison.lpips, "of LPIPS, for which VGG needs heads; not in the paper", last_maps=True),
    LossTerm("face", 0.025, Comparison.face, "of the face term, for a Caffe-scaled VGGFace", scale="face_network"),
    LossTerm(
        "parts",
        0.0,
        Comparison.parts,
        "of the VGG term on mouth and eyes enlarged; not in the paper",
        scale="backbone",
    ),
    LossTerm("pixel", 0.0, Comparison.pixel, "of the mean absolute difference of pixels; not in the paper"),
)
ADVERSARIAL_TERMS = (
    LossTerm("adversarial", 1.0, Judgement.adversarial, "of minus the discriminator's score; the paper's"),
    LossTerm("feature_matching", 10.0, Judgement.feature_matching, "of the discriminator's activations"),
    LossTerm("match", 10.0, Judgement.match, "of the embeddings' distance to the discriminator's person vectors"),
)


def with_weights(terms: Sequence[LossTerm], weights: Mapping[str, float]) -> tuple[LossTerm, ...]:
    """Some terms with other weights, by name; raises `FsthError` where there is no such term."""
    unknown = sorted(weights.keys() - {term.name for term in terms})
    if unknown:
        names = ", ".join(term.name for term in terms)
        raise FsthError(f"There is no loss term '{unknown[0]}': choose of {names}.")
    return tuple(replace(term, weight=weights.get(term.name, term.weight)) for term in terms)


def weigh(terms: Sequence[LossTerm], seen: "Comparison | Judgement") -> dict[str, torch.Tensor]:
    """The weighted terms by name, without those of weight 0."""
    return {term.name: term.weight * term.value(seen) for term in terms if term.weight}


class ContentLoss(nn.Module):
    """
    L_CNT over its networks, with the weights of v2 carried over to the scale of those in use.

    Args:
        backbone (`nn.Module`, *optional*):
            What compares frames: of images (B x 3 x H x W in [-1, 1]) and `last` it gives two lists of maps, such as
            [`VGGFeatures`]; for LPIPS it has `heads`. Without it there are only terms that need none.
        face_network (`nn.Module`, *optional*):
            The same of the face, such as [`FaceFeatures`], of images and landmarks; without it no such term.
        terms (`Sequence[LossTerm]`, *optional*): by default the paper's, [`CONTENT_TERMS`].

    Raises:
        FsthError: LPIPS is asked for, and the backbone has no heads for it.
    """

    def __init__(
        self,
        backbone: nn.Module | None = None,
        face_network: nn.Module | None = None,
        terms: Sequence[LossTerm] = CONTENT_TERMS,
    ):
        super().__init__()
        self.backbone, self.face_network = backbone, face_network
        scales = {None: 1} | {
            name: network.loss_scale
            for name, network in (("backbone", backbone), ("face_network", face_network))
            if network is not None
        }
        self.terms = tuple(replace(term, weight=term.weight * scales.get(term.scale, 0)) for term in terms)
        self.last_maps = any(term.last_maps and term.weight for term in self.terms)
        if self.last_maps and not len(getattr(backbone, "heads", ())):
            raise FsthError(
                "The backbone has no heads of LPIPS (lin0.weight ... lin4.weight): leave out the weight `lpips`, or "
                "give a VGG that has them."
            )

    @classmethod
    def load(
        cls, vgg: str | Path, face_network: str | Path | None = None, weights: Mapping[str, float] | None = None
    ) -> "ContentLoss":
        """
        Over networks of safetensors files or hub repositories.

        Args:
            vgg (`str` or `Path`): a VGG16 or VGG19 trained on ImageNet, [`VGGFeatures`].
            face_network (`str` or `Path`, *optional*): [`FaceFeatures`].
            weights (`Mapping[str, float]`, *optional*): of [`CONTENT_TERMS`] by name, where not the default ones.
        """
        terms = with_weights(CONTENT_TERMS, weights or {})
        face = FaceFeatures(load_weights(face_network)) if face_network else None
        return cls(VGGFeatures(load_weights(vgg)), face, terms)

    def forward(
        self,
        fake: torch.Tensor,
        real: torch.Tensor,
        landmarks: torch.Tensor,
        window: tuple[int, int, int] | None = None,
    ) -> dict[str, torch.Tensor]:
        """
        Args:
            fake, real (`torch.Tensor` of shape `(batch, 3, height, width)`): in [-1, 1].
            landmarks (`torch.Tensor` of shape `(batch, 78, 2)`): of the real frames, pixels.
            window (`tuple`, *optional*):
                Left, top and side in pixels of a square to compare in place of whole frames. With a new one at each
                step the VGG sees everything in the end, and at 144 of 256 pixels takes a third of the time.

        Returns:
            `dict[str, torch.Tensor]`: the weighted terms by name.
        """
        return weigh(self.terms, Comparison(fake, real, landmarks, self, window))
