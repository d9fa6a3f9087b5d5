"""A portrait as two layers: the figure, which moves, over a background plate, which stays.

A matte says how much of each pixel is the figure. The figure is kept premultiplied, as what the portrait has beyond
its share of the plate (`image - (1 - matte) * plate`): put back unmoved it gives the portrait exactly, whatever the
matte, and where the matte is 1 everywhere there is no plate. Pictures are RGB in [-1, 1], mattes 0 to 1.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F


SEEN = 0.1  # of the figure, above which a pixel says nothing of the background
MARGIN = 0.02  # of the side: how far around the figure its colours, and its shadow, reach
# How far beside a hole its texture is taken from, of the side, and its largest deviation: what stands out more, such
# as letters, is no texture, and would be seen twice.
DETAIL_STEPS, MAX_DETAIL = (0.1, 0.2, 0.35), 0.12
# Mean difference of two portraits where both show background: below the first they were taken before the same one and
# can fill each other's holes, below the second by a camera that moves at one place.
SAME_BACKGROUND, SAME_SCENE = 0.08, 0.25


def blur(maps, radius: int):
    """Two box filters after each other; B x C x H x W."""
    width = 2 * radius + 1
    for _ in range(2):  # along the rows and then the columns: a square of that width would take as many times longer
        maps = F.avg_pool2d(F.pad(maps, (radius,) * 4, mode="replicate"), (1, width), 1)
        maps = F.avg_pool2d(maps, (width, 1), 1)
    return maps


def fill(images, known):
    """
    Continue pictures smoothly into their holes: each level of an image pyramid is filled from the next smaller one.

    Args:
        images (`torch.Tensor` of shape `(batch, 3, height, width)`): what is not known in them does not matter.
        known (`torch.Tensor` of shape `(batch, 1, height, width)`): 0 to 1.
    """
    if min(images.shape[-2:]) <= 2:
        mean = (images * known).mean(dim=(2, 3), keepdim=True) / known.mean(dim=(2, 3), keepdim=True).clamp(min=1e-6)
        return images * known + mean * (1 - known)
    weight = F.avg_pool2d(known, 2, ceil_mode=True)
    smaller = F.avg_pool2d(images * known, 2, ceil_mode=True) / weight.clamp(min=1e-6)
    smaller = fill(smaller, (4 * weight).clamp(max=1))
    filled = F.interpolate(smaller, images.shape[-2:], mode="bilinear", align_corners=False)
    return images * known + filled * (1 - known)


def borrow_detail(images, known):
    """
    Fine texture for the holes of pictures (shapes as in [`fill`]), taken from beside them: without it a wall, a canvas
    or leaves would be smooth where the figure was, and be seen as a halo when it moves away.
    """
    size = images.shape[-1]
    radius = max(1, round(MARGIN * size))
    smooth = blur(images * known, radius) / blur(known, radius).clamp(min=1e-6)
    texture = images - smooth
    deviation = blur(texture.square().amax(dim=1, keepdim=True) * known, radius).sqrt()
    texture, known = texture.clamp(-MAX_DETAIL, MAX_DETAIL), known * (deviation < MAX_DETAIL)
    detail, found = torch.zeros_like(images), torch.zeros_like(known)
    for step in DETAIL_STEPS:
        for shift in ((0, step), (0, -step), (step, 0), (-step, 0)):
            shift = [round(part * size) for part in shift]
            there = torch.roll(known, shift, dims=(2, 3)) * (1 - found)
            detail = detail + torch.roll(texture, shift, dims=(2, 3)) * there
            found = found + there
    return detail


@torch.no_grad()
def background_plates(images, mattes, wanted: Sequence[int] | None = None) -> torch.Tensor:
    """
    What is behind the figure of each portrait: taken from the person's other portraits where these were taken before
    the same background and show it, continued from around the figure elsewhere. Portraits that were taken at another
    place than the first one get that one's, so that it stays the same whichever of them counts most.

    Args:
        images (`torch.Tensor` of shape `(batch, num_portraits, 3, height, width)`): a person's portraits.
        mattes (`torch.Tensor` of shape `(batch, num_portraits, 1, height, width)`): their mattes.
        wanted (`Sequence[int]`, *optional*): of which portraits; by default of all.

    Returns:
        `torch.Tensor` of shape `(batch, len(wanted), 3, height, width)`.
    """
    images, num_portraits, width = images.float(), images.shape[1], images.shape[-1]
    radius = max(1, round(MARGIN * width))
    mattes = mattes.float().flatten(0, 1)  # BK x 1 x H x W
    # of a matte that is not clean the background is not 0
    lowest = mattes.amin(dim=(1, 2, 3), keepdim=True)
    figure = (mattes - lowest > SEEN * (1 - lowest)).float()
    figure = F.max_pool2d(figure, 2 * radius + 1, 1, radius)
    known = (1 - blur(figure, max(1, radius // 2))).unflatten(0, images.shape[:2])  # B x K x 1 x H x W

    def is_alike(one: int, other: int, bound: float):
        both = known[:, one] * known[:, other]
        difference = (images[:, one] - images[:, other]).abs() * both
        return (difference.mean(dim=(1, 2, 3)) < bound * both.mean(dim=(1, 2, 3)))[
            :, None, None, None
        ]  # B x 1 x 1 x 1

    def plate(index: int):
        total, weight = torch.zeros_like(images[:, 0]), torch.zeros_like(known[:, 0])
        for other in range(num_portraits):
            if other != index:
                share = known[:, other] * is_alike(index, other, SAME_BACKGROUND)
                total, weight = total + images[:, other] * share, weight + share
        own, seen = known[:, index], weight.clamp(max=1)
        filled = fill(images[:, index], own) + borrow_detail(images[:, index], own)
        behind = total / weight.clamp(min=1e-6) * seen + filled.clamp(-1, 1) * (1 - seen)
        return images[:, index] * own + behind * (1 - own)

    first = plate(0)
    return torch.stack(
        [
            first if index == 0 else torch.where(is_alike(0, index, SAME_SCENE), plate(index), first)
            for index in (range(num_portraits) if wanted is None else wanted)
        ],
        dim=1,
    )
