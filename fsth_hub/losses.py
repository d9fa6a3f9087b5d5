"""Losses of arXiv 1905.08233 v2 (section 3.3), each a function of plain tensors.

generator      L = L_CNT + L_ADV + w_match L_MCH      L_ADV = -D(fake) + w_fm L_FM
discriminator  L_DSC = max(0, 1 + D(fake)) + max(0, 1 - D(real))
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F


# Weights of v2. They were set for Caffe networks, whose input is 0..255 minus a mean; see `feature_networks` for how
# the content weights carry over to networks with another input scale. (v1 had 0.01, 0.002, 10 and 80.)
VGG_WEIGHT = 0.15
FACE_WEIGHT = 0.025
FEATURE_MATCHING_WEIGHT = 10.0
MATCH_WEIGHT = 10.0


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
