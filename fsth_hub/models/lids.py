"""Lids that shut: detectors leave a slit between them, and what lies behind it would be seen."""

import torch

from .landmark_layout import EYES, LOWER_LIDS, UPPER_LIDS, eye_opening


SHUT = 0.12  # in widths of the eye: what detectors leave open of a shut one


def shut_lids(driving, source) -> torch.Tensor:
    """
    The frame's landmarks with eyes that are shut where the detector saw hardly any opening, and others in proportion
    to how far they have closed since the portrait: a slit between the lids would show the eye behind them.

    Args:
        driving, source (`torch.Tensor` of shape `(batch, 78, 2)`): pixels.
    """
    seen, own = eye_opening(driving, EYES), eye_opening(source, EYES)  # B x 2
    way = ((own - seen) / (own - SHUT).clamp(min=1e-3)).clamp(0, 1) * (own > 1.5 * SHUT)
    share = (SHUT * way**2 / seen.clamp(min=1e-3)).clamp(max=1)  # from the upper to the lower lid
    upper, lower, moved = driving[:, UPPER_LIDS], driving[:, LOWER_LIDS], driving.clone()  # B x 2 x 2 x 2
    moved[:, UPPER_LIDS] = torch.lerp(upper, lower, share[:, :, None, None])
    return moved
