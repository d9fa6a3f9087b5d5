"""Losses of arXiv 1905.08233 v2 (section 3.3): functions of plain tensors, and the content loss over its networks.

generator      L = L_CNT + L_ADV + w_match L_MCH      L_ADV = -D(fake) + w_fm L_FM
discriminator  L_DSC = max(0, 1 + D(fake)) + max(0, 1 - D(real))
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from .feature_networks import FaceFeatures, VGGFeatures, crop_around, load_weights
from .landmark_layout import LEFT_EYE, OUTER_LIPS, RIGHT_EYE


# Weights of v2. They were set for Caffe networks, whose input is 0..255 minus a mean; see `feature_networks` for how
# the content weights carry over to networks with another input scale. (v1 had 0.01, 0.002, 10 and 80.)
VGG_WEIGHT = 0.15
FACE_WEIGHT = 0.025
FEATURE_MATCHING_WEIGHT = 10.0
MATCH_WEIGHT = 10.0
PARTS = (OUTER_LIPS, RIGHT_EYE, LEFT_EYE)
PART_MARGIN, PART_SIZE = 1.6, 64  # of what a part's points span; pixels


def content_loss(fake_features: Sequence[torch.Tensor], real_features: Sequence[torch.Tensor]) -> torch.Tensor:
    """L_CNT of one network: the mean absolute difference of each of its maps, summed over the maps."""
    return sum(F.l1_loss(fake.float(), real.float()) for fake, real in zip(fake_features, real_features, strict=True))


def discriminator_loss(real_scores: torch.Tensor, fake_scores: torch.Tensor) -> torch.Tensor:
    """L_DSC, the hinge loss on unbounded scores (B): a sigmoid before it would stop the discriminator's learning."""
    return F.relu(1 - real_scores.float()).mean() + F.relu(1 + fake_scores.float()).mean()


def adversarial_loss(fake_scores: torch.Tensor) -> torch.Tensor:
    """The first term of L_ADV: minus the mean score (B)."""
    return -fake_scores.float().mean()


def feature_matching_loss(
    fake_features: Sequence[torch.Tensor], real_features: Sequence[torch.Tensor]
) -> torch.Tensor:
    """L_FM: mean absolute difference of the discriminator's maps, averaged over them; real maps get no gradient."""
    real_features = [real.detach() for real in real_features]
    return content_loss(fake_features, real_features) / len(real_features)


def match_loss(frame_embeddings: torch.Tensor, person: torch.Tensor) -> torch.Tensor:
    """
    L_MCH: mean absolute difference between embeddings (B x K x N) and the discriminator's person vectors W_i (B x N),
    which get no gradient: the embedder must learn to stand in for W_i, not W_i for the embedder.
    """
    return (frame_embeddings.float() - person.detach().float()[:, None]).abs().mean()


class ContentLoss(nn.Module):
    """
    L_CNT over its networks, with the weights of v2 carried over to the scale of those in use.

    Mouth and eyes are what people look at and a fiftieth of the frame: with `parts_weight` they are enlarged and
    compared once more. (The paper has no such term; with hundreds of people instead of thousands it is needed.)

    Args:
        vgg (`str` or `Path`): safetensors file or hub repository of a VGG16 or VGG19 trained on ImageNet.
        face_network (`str` or `Path`, *optional*): the same of a [`FaceFeatures`]; without it that term is left out.
        vgg_weight, face_weight (`float`): of the paper's terms.
        parts_weight, pixel_weight, lpips_weight (`float`):
            Of the terms that the paper has not, off at 0. LPIPS needs its heads in the VGG's file; where most of a
            frame is right already it sees what is left, fine texture, which the paper's term hardly does.
    """

    def __init__(
        self,
        vgg: str | Path,
        face_network: str | Path | None = None,
        vgg_weight: float = VGG_WEIGHT,
        face_weight: float = FACE_WEIGHT,
        parts_weight: float = 0.0,
        pixel_weight: float = 0.0,
        lpips_weight: float = 0.0,
    ):
        super().__init__()
        self.vgg = VGGFeatures(load_weights(vgg))
        self.face = FaceFeatures(load_weights(face_network)) if face_network else None
        self.vgg_weight = vgg_weight * VGGFeatures.loss_scale
        self.face_weight = face_weight * FaceFeatures.loss_scale
        self.parts_weight = parts_weight * VGGFeatures.loss_scale
        self.lpips_weight = lpips_weight
        self.pixel_weight = pixel_weight
        if lpips_weight and not self.vgg.heads:
            raise ValueError(f"{vgg} has no heads of LPIPS (lin0.weight ... lin4.weight), which `lpips_weight` needs.")

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
        left, top, side = window or (0, 0, fake.shape[-1])

        def whole(images):
            return self.vgg(images[:, :, top : top + side, left : left + side], last=self.lpips_weight > 0)

        def face(images):
            return self.face(images, landmarks)

        def parts(images):
            return self.vgg(torch.cat([crop_around(images, landmarks[:, p], PART_MARGIN, PART_SIZE) for p in PARTS]))

        def features_of_both(network):
            with torch.no_grad():
                real_features = network(real)
            return network(fake), real_features

        (fake_firsts, fake_lasts), (real_firsts, real_lasts) = features_of_both(whole)
        terms = {"vgg": self.vgg_weight * content_loss(fake_firsts, real_firsts)}
        if self.lpips_weight:
            terms["lpips"] = self.lpips_weight * self.vgg.distance(fake_lasts, real_lasts)
        if self.face is not None:
            terms["face"] = self.face_weight * content_loss(*features_of_both(face))
        if self.parts_weight:
            (fake_firsts, _), (real_firsts, _) = features_of_both(parts)
            terms["parts"] = self.parts_weight * content_loss(fake_firsts, real_firsts)
        if self.pixel_weight:
            terms["pixel"] = self.pixel_weight * content_loss([fake], [real])
        return terms
