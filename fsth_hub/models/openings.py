"""Eyes and inner mouth as openings: rims that meet in two corners, and what lies between them."""

from dataclasses import dataclass

import torch

from .landmark_layout import LEFT_IRIS, RIGHT_IRIS
from .rims import INNER_MOUTH, LEFT_LIDS, RIGHT_LIDS, along


# The upper rim from corner to corner and the lower one; of eyes the centre of the iris too.
EYES = ((*map(along, RIGHT_LIDS), RIGHT_IRIS[0]), (*map(along, LEFT_LIDS), LEFT_IRIS[0]))
MOUTH = tuple(map(along, INNER_MOUTH))
RIM = 0.02  # in widths of an opening: how far within the portrait's rim to stay, which is not the opening's own


@dataclass
class Opening:
    """An eye or the inner mouth of each face of a batch, in coordinates of its own: x from corner to corner is 0 to 1,
    y is as long and points down.

    Args:
        points (`torch.Tensor` of shape `(batch, n, 2)`): pixels, of [`with_rim_points`].
        upper, lower (`list[int]`): the points of its rims, from corner to corner.
    """

    points: torch.Tensor
    upper: list[int]
    lower: list[int]

    def __post_init__(self):
        self.corner = self.points[:, self.upper[0], None]  # B x 1 x 2
        along = self.points[:, self.upper[-1], None] - self.corner
        self.width = along.norm(dim=-1, keepdim=True).clamp(min=1)  # B x 1 x 1, pixels
        along = along / self.width
        down = torch.stack([-along[..., 1], along[..., 0]], dim=-1)
        self.axes = torch.cat([along, down], dim=1)  # B x 2 x 2

    def to_local(self, places) -> torch.Tensor:
        """Pixels (B x n x 2) in the opening's coordinates."""
        return (places - self.corner) @ self.axes.mT / self.width

    def to_pixels(self, local) -> torch.Tensor:
        return local * self.width @ self.axes + self.corner

    def rims(self, x) -> tuple[torch.Tensor, torch.Tensor]:
        """y of the upper and the lower rim at each x (B x n); the rims touch where they cross."""
        upper, lower = (self._rim(x, indices) for indices in (self.upper, self.lower))
        middle = (upper + lower) / 2
        return torch.minimum(upper, middle), torch.maximum(lower, middle)

    def height(self, x) -> torch.Tensor:
        upper, lower = self.rims(x)
        return lower - upper

    def _rim(self, x, indices: list[int]) -> torch.Tensor:
        knots = self.to_local(self.points[:, indices])  # B x k x 2
        # a foreshortened rim may run backwards, where it is no function of x
        xs = knots[..., 0] + 1e-3 * torch.arange(len(indices), device=x.device)
        xs, ys = torch.cummax(xs, dim=1).values, knots[..., 1]
        steps = (xs[:, 1:] - xs[:, :-1]).clamp(min=1e-3)
        slopes = (ys[:, 1:] - ys[:, :-1]) / steps  # B x (k - 1)
        run = (x[..., None] - xs[:, None, :-1]).clamp(min=0).minimum(steps[:, None])  # B x n x (k - 1)
        return ys[:, :1] + (slopes[:, None] * run).sum(dim=-1)

    def within(self, local, edge) -> tuple[torch.Tensor, torch.Tensor]:
        """Whether points (B x n x 2, local) lie within, or so many pixels (B x n) beyond the rim, and how deep between
        upper (0) and lower rim (1)."""
        x, y = local.unbind(dim=-1)
        upper, lower = self.rims(x)
        depth = (y - upper) / (lower - upper).clamp(min=1e-4)
        edge = (edge / self.width[..., 0]).minimum((lower - upper) / 2)
        return (x > 0) & (x < 1) & (y > upper - edge) & (y < lower + edge), depth.clamp(0, 1)

    def clamp(self, local, rim: float = RIM) -> torch.Tensor:
        """The nearest points (B x n x 2, local) in height that lie within, off the rim if there is room."""
        x = local[..., 0].clamp(0, 1)
        upper, lower = self.rims(x)
        rim = ((lower - upper) / 2).clamp(max=rim)
        return torch.stack([x, local[..., 1].maximum(upper + rim).minimum(lower - rim)], dim=-1)
