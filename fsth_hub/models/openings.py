"""Eyes and inner mouth as openings: rims that meet in two corners, and what lies between them."""

from functools import cached_property

import torch

from .rims import INNER_MOUTH, LEFT_LIDS, RIGHT_LIDS, along


# The points of the upper rim and of the lower one, each from corner to corner.
EYES = tuple(tuple(map(along, lids)) for lids in (RIGHT_LIDS, LEFT_LIDS))
MOUTH = tuple(map(along, INNER_MOUTH))
RIM = 0.02  # in widths of an opening: how far within the portrait's rim to stay, which is not the opening's own


class Opening:
    """An eye or the inner mouth of each face of a batch, in coordinates of its own: x from corner to corner is 0 to 1,
    y is as long and points down.

    Args:
        rims (`torch.Tensor` of shape `(batch, 2, k, 2)`):
            Pixels of the upper and of the lower rim, from corner to corner, of [`with_rim_points`].
    """

    def __init__(self, rims: torch.Tensor):
        self.outline = rims
        self.corner = rims[:, 0, :1]  # B x 1 x 2
        along = rims[:, 0, -1:] - self.corner
        self.width = along.norm(dim=-1, keepdim=True).clamp(min=1)  # B x 1 x 1, pixels
        along = along / self.width
        down = torch.stack([-along[..., 1], along[..., 0]], dim=-1)
        self.axes = torch.cat([along, down], dim=1)  # B x 2 x 2

    def to_local(self, places) -> torch.Tensor:
        """Pixels (B x n x 2) in the opening's coordinates."""
        return (places - self.corner) @ self.axes.mT / self.width

    def to_pixels(self, local) -> torch.Tensor:
        return local * self.width @ self.axes + self.corner

    @cached_property
    def _segments(self) -> tuple[torch.Tensor, ...]:
        """Where those of both rims begin, how long they are and how steep: B x 2 x 1 x k - 1; the rims' first y."""
        knots = self.to_local(self.outline.flatten(1, 2)).unflatten(1, self.outline.shape[1:3])  # B x 2 x k x 2
        xs, ys = knots[:, :, None].unbind(dim=-1)
        # a foreshortened rim may run backwards, where it is no function of x
        xs = torch.cummax(xs + 1e-3 * torch.arange(xs.shape[-1], device=xs.device), dim=-1).values
        steps = xs.diff(dim=-1).clamp(min=1e-3)
        return xs[..., :-1], steps, ys.diff(dim=-1) / steps, ys[..., 0]

    def rims(self, x) -> tuple[torch.Tensor, torch.Tensor]:
        """y of the upper and the lower rim at each x (B x n); the rims touch where they cross."""
        starts, steps, slopes, first = self._segments
        run = (x[:, None, :, None] - starts).clamp(min=0).minimum(steps)  # B x 2 x n x (k - 1)
        upper, lower = (first + (slopes * run).sum(dim=-1)).unbind(dim=1)
        middle = (upper + lower) / 2
        return torch.minimum(upper, middle), torch.maximum(lower, middle)

    def height(self, x) -> torch.Tensor:
        upper, lower = self.rims(x)
        return lower - upper

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

    def pixels(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The pixels of the rectangle around each opening, with all that a rim may cut through.

        Args:
            size (`int`): side of the frame in pixels.

        Returns:
            x then y, integers, `(batch, n, 2)`, and whether they belong to this opening, `(batch, n)`, for all have as
            many as the one with the largest rectangle.
        """
        points = self.outline.flatten(1, 2)
        low = (points.amin(dim=1, keepdim=True) - 0.5).floor().clamp(0, size - 1)  # B x 1 x 2
        high = (points.amax(dim=1, keepdim=True) + 0.5).floor().clamp(0, size - 1)
        width, height = ((high - low).amax(dim=(0, 1)) + 1).long().tolist()
        rows, columns = torch.arange(height, device=low.device), torch.arange(width, device=low.device)
        offsets = torch.stack([columns.repeat(height), rows.repeat_interleave(width)], dim=-1)  # n x 2
        pixels = low.long() + offsets
        return pixels.clamp(max=size - 1), (pixels <= high).all(dim=-1)
