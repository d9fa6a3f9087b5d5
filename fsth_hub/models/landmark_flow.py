"""Where in a portrait to look for what a frame shows, from the landmarks of both and nothing learned.

Far from the face each pixel goes with the landmarks near it (`smooth_flow`). Inside, the flow is exact: interpolated
over a triangulation of the face's points, so that lids and lips lie where the landmarks have them. Eyes and mouth are
openings with a flow of their own: an iris moves behind the lids and stays round, upper teeth keep to the skull and
lower ones to the jaw, and nothing is taken from beyond the portrait's own lids and lips.

Flows lead back from the frame to the portrait, in normalized coordinates (half sides of the frame, the units of
`grid_sample`), and are always float32: bfloat16 has too few digits for coordinates. Nothing here has a gradient.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F

from .landmark_layout import JAW, LEFT_EYE, LEFT_IRIS, RIGHT_EYE, RIGHT_IRIS
from .lids import shut_lids
from .openings import EYES, MOUTH, Opening
from .rims import with_rim_points
from .triangulation import EXACTNESS, TRIANGLES, add_vertices, interpolate, skull_map


# Widths in normalized coordinates, the best of a sweep over pairs of frames: how near a landmark must be to move a
# pixel, and how far from all landmarks a pixel still moves with a head that moves little. A figure that is cut out of
# its background takes no background along, and its hair and shoulders follow from further away.
SOFTMAX_WIDTH = 0.06
FADE_WIDTH, FIGURE_FADE_WIDTH = 0.18, 0.5
# How high the top of the head lies above the eyes, in the distance from them down to the chin.
CROWN_HEIGHT = 0.7

IRIS_RADIUS, IRIS_REACH = 0.25, 0.5  # in widths of the eye: what moves as one, and what moves along in part
# What a portrait's mouth hides is dark, the further behind the lips the darker: how far, in widths of the mouth, until
# e-fold, and how little is seen in the end.
CAVITY_DEPTH, CAVITY_SHADE = 0.03, 0.9
PARTED = 0.05  # in widths of the mouth: how far apart lips are that do not touch
# Lids that meet do so in a line of lashes, which a portrait with open eyes does not show: how dark, half how wide and
# from which opening on, in widths of the eye.
LASH_SHADE, LASH_WIDTH, LASH_OPENING = 0.7, 0.03, 0.12


def pixel_grid(height: int, width: int, device) -> torch.Tensor:
    """Pixel centres in normalized coordinates, x then y: height x width x 2, which are kept and not to be changed."""
    return _pixel_grid(int(height), int(width), torch.device(device))  # of a map that is traced they are tensors


@lru_cache(maxsize=16)
def _pixel_grid(height: int, width: int, device: torch.device) -> torch.Tensor:
    ys = (torch.arange(height, device=device, dtype=torch.float32) * 2 + 1) / height - 1
    xs = (torch.arange(width, device=device, dtype=torch.float32) * 2 + 1) / width - 1
    return torch.stack([xs.expand(height, width), ys[:, None].expand(height, width)], dim=-1)


def warp(maps, flow, grid, mode: str = "bilinear"):
    """Sample `maps` (B x C x H x W) at `grid + flow` (flow B x h x w x 2), the border repeated: B x C x h x w."""
    sampled = F.grid_sample(maps.float(), grid + flow, mode, padding_mode="border", align_corners=False)
    return sampled.to(maps.dtype)


def resize_flow(flow, height: int, width: int):
    """B x h x w x 2 to B x height x width x 2; normalized coordinates do not change with the resolution."""
    if flow.shape[1:3] == (height, width):
        return flow
    resized = F.interpolate(flow.permute(0, 3, 1, 2), (height, width), mode="bilinear", align_corners=False)
    return resized.permute(0, 2, 3, 1)


def smooth_flow(driving, source, image_size: int, grid, fade_width=FADE_WIDTH) -> torch.Tensor:
    """
    Backward flow from driving to source points: each pixel moves with the points near it, less the further it is
    from all of them.

    Args:
        driving, source (`torch.Tensor` of shape `(batch, n, 2)`): pixels; points that are NaN in either are ignored.
        image_size (`int`): side of the frame in pixels.
        grid (`torch.Tensor` of shape `(h, w, 2)`): where to compute the flow, of [`pixel_grid`].
        fade_width (`float`, or `torch.Tensor` of shape `(batch,)`, *optional*): how far from all points, see above.

    Returns:
        `torch.Tensor` of shape `(batch, h, w, 2)`: in normalized coordinates.
    """
    driving, source = (points.float() * 2 / image_size - 1 for points in (driving, source))
    known = torch.isfinite(driving + source).all(dim=-1)  # B x n
    driving, source = (torch.where(known[..., None], points, 0.0) for points in (driving, source))
    # |g - d|^2 by its expansion: the pairwise differences would be 78 times the memory. |g|^2, which a pixel's points
    # have in common, is nothing to the softmax.
    flat = grid.reshape(1, -1, 2)  # 1 x hw x 2
    lengths = (driving**2).sum(-1).masked_fill(~known, torch.inf)  # B x n; what is unknown is infinitely far away
    nearness = torch.baddbmm(-lengths[:, None], flat.expand(len(driving), -1, -1), driving.mT, alpha=2)  # B x hw x n
    weights = torch.softmax(nearness / (2 * SOFTMAX_WIDTH**2), dim=-1)
    nearest = ((flat**2).sum(-1, keepdim=True) - nearness.amax(dim=-1, keepdim=True)).clamp(min=0)  # B x hw x 1
    # A head that moves further takes more of its surroundings along: a fade narrower than the movement would fold the
    # flow over itself and show the face twice, where it is and where it was.
    displacement = source - driving  # B x n x 2
    movement = displacement.sum(dim=1) / known.sum(dim=1, keepdim=True)  # B x 2
    fade_squared = torch.as_tensor(fade_width, device=grid.device) ** 2 + (movement**2).sum(dim=-1)  # B
    fade = torch.exp(-nearest / (2 * fade_squared[:, None, None]))
    return (weights @ displacement * fade).unflatten(1, grid.shape[:2])  # B x h x w x 2


def with_crown(driving, source) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Add the top of the head, which no landmark marks: without it forehead and hair stay where they were and the face is
    drawn away from under them. In the driving frame it is the jaw mirrored above the eyes; in the portrait it lies
    where the skull takes it.

    Args:
        driving, source (`torch.Tensor` of shape `(batch, 78, 2)`): pixels.

    Returns:
        Both with 15 points more, `(batch, 93, 2)`.
    """
    right, left = driving[:, RIGHT_EYE].mean(dim=1), driving[:, LEFT_EYE].mean(dim=1)  # B x 2
    along = F.normalize(left - right, dim=-1)
    down = torch.stack([-along[:, 1], along[:, 0]], dim=-1)[:, None]  # B x 1 x 2
    jaw = driving[:, JAW[1:-1]]  # B x 15 x 2
    below_eyes = ((jaw - (left + right)[:, None] / 2) * down).sum(dim=-1, keepdim=True)
    crown = jaw - (1 + CROWN_HEIGHT) * below_eyes * down

    middle, middle_source, matrix = skull_map(driving, source)
    crown_source = (crown - middle) @ matrix + middle_source
    return torch.cat([driving, crown], dim=1), torch.cat([source, crown_source], dim=1)


@dataclass
class PortraitFlow:
    """Where in a portrait to look for what a frame shows.

    Args:
        flow (`torch.Tensor` of shape `(batch, size, size, 2)`): in normalized coordinates.
        exactness (`torch.Tensor` of shape `(batch, size, size, 1)`): 1 at lids and lips, 0 outside the face.
        shade (`torch.Tensor` of shape `(batch, size, size, 1)`):
            How much of what is found there is seen: 1 but in a mouth further open than the portrait's, where it falls
            towards 0 the further a place lay behind the lips, and along lids that meet and do not in the portrait.
    """

    flow: torch.Tensor
    exactness: torch.Tensor
    shade: torch.Tensor


class _Field:
    """A [`PortraitFlow`] in the making: every pixel of a batch of frames, one after another."""

    def __init__(self, batch: int, size: int, device: torch.device):
        self.batch, self.size = batch, size
        self.flow = torch.zeros(2, batch * size * size, device=device)  # x and y
        self.exactness, self.shade = torch.zeros_like(self.flow[0]), torch.ones_like(self.flow[0])

    def put(self, cells, places, targets, exactness) -> None:
        """Have some pixels (numbers, m) at these places look elsewhere (both m x 2, pixels)."""
        self.flow[:, cells] = (targets - places).T * (2 / self.size)
        self.exactness[cells] = exactness

    def around(self, opening: Opening) -> tuple[torch.Tensor, ...]:
        """Of the places around each opening (N x n x 2, pixels) their numbers, which are its own, which of these lie
        within, and how deep."""
        pixels, own = opening.pixels(self.size)
        frames = torch.arange(len(pixels), device=pixels.device)[:, None] % self.batch
        cells = (frames * self.size + pixels[..., 1]) * self.size + pixels[..., 0]  # N x n
        places = pixels + 0.5
        # what a rim cuts through is the opening's where no triangle has it: no pixel may be left over in between
        edge = torch.where(self.exactness[cells] > 0, 0.0, 0.5)
        within, depth = opening.within(opening.to_local(places), edge)
        return places, cells, own, own & within, depth

    def to_portrait_flow(self) -> PortraitFlow:
        flow, exactness, shade = (
            part.view(-1, self.batch, self.size, self.size).movedim(0, -1)
            for part in (self.flow, self.exactness, self.shade)
        )
        # softened, for the edge of a dark mouth would be a staircase
        shade = F.pad(shade.permute(0, 3, 1, 2), (1, 1, 1, 1), "replicate")
        shade = (shade[..., :-2] + shade[..., 1:-1] + shade[..., 2:]) / 3
        shade = (shade[..., :-2, :] + shade[..., 1:-1, :] + shade[..., 2:, :]) / 3  # B x 1 x size x size
        return PortraitFlow(flow=flow, exactness=exactness, shade=shade.permute(0, 2, 3, 1))


@torch.no_grad()
def face_flow(driving, source, size: int) -> PortraitFlow:
    """
    The flow within the face, over its triangulation and in its openings; 0 outside.

    Args:
        driving, source (`torch.Tensor` of shape `(batch, 78, 2)`): pixels; irises may be NaN.
        size (`int`): side of the frame in pixels.
    """
    driving, source = driving.float(), source.float()
    field, skull = _Field(len(driving), size, driving.device), skull_map(driving, source)
    triangles = TRIANGLES.to(driving.device)
    corners, corners_source = (points[:, triangles] for points in add_vertices(driving, source, skull))
    exactness = EXACTNESS.to(driving.device)[triangles].expand(len(driving), -1, -1)[..., None]
    values = torch.cat([corners_source, exactness], dim=-1)  # B x t x 3 x 3
    cells, places, values = interpolate(corners, values, size)
    field.put(cells, places, values[:2].T, values[2])
    driving, source = with_rim_points(driving), with_rim_points(source)
    move_eyes(field, driving, source)
    move_mouth(field, driving, source, skull)
    return field.to_portrait_flow()


def move_eyes(field: _Field, driving, source) -> None:
    """Irises, and the white around them; landmarks are of [`with_rim_points`]."""
    eyes, own = (Opening(torch.cat([points[:, lids] for lids in EYES])) for points in (driving, source))  # 2B
    irises = RIGHT_IRIS[:1], LEFT_IRIS[:1]
    centre, own_centre = (torch.cat([points[:, iris] for iris in irises]) for points in (driving, source))
    places, cells, seen, within, _ = field.around(eyes)
    local, centre = eyes.to_local(places), eyes.to_local(centre)  # 2B x n x 2, 2B x 1 x 2
    gaze = (own.to_local(own_centre) - centre).nan_to_num()
    distance = (local - centre).norm(dim=-1, keepdim=True).nan_to_num(torch.inf)
    share = ((IRIS_REACH - distance) / (IRIS_REACH - IRIS_RADIUS)).clamp(0, 1)
    targets = own.to_pixels(own.clamp(local + gaze * share * share * (3 - 2 * share)))
    # one eye after the other, for in a profile they overlap
    for inside, *parts in zip(*(part.chunk(2) for part in (within, cells, places, targets)), strict=True):
        field.put(*(part[inside] for part in parts), 1.0)
    field.shade.scatter_reduce_(0, cells[seen], lash_line(eyes, own, local)[seen], "amin")


def move_mouth(field: _Field, driving, source, skull: tuple) -> None:
    """Teeth, and the dark behind them; landmarks are of [`with_rim_points`], `skull` of [`skull_map`]."""
    mouth, own = (Opening(points[:, MOUTH]) for points in (driving, source))
    places, cells, _, within, depth = field.around(mouth)
    middle, middle_source, matrix = skull
    # how the jaw has moved in the portrait's skull
    chin = source[:, 8, None] - ((driving[:, 8, None] - middle) @ matrix + middle_source)  # B x 1 x 2
    teeth = (places - middle) @ matrix + middle_source
    local = own.to_local(teeth + (depth * depth * (3 - 2 * depth))[..., None] * chin)
    height, own_height = mouth.height(mouth.to_local(places)[..., 0]), own.height(local[..., 0])  # B x n
    further = (height - own_height).clamp(min=0)
    # between lips that touch in the portrait lies nothing of it, however near to one of them
    between = depth.minimum(1 - depth) * further * (1 - own_height / PARTED).clamp(min=0)
    # no further behind the lips than the mouth is further open: towards its corners a jaw that closes moves too far
    behind = (local - own.clamp(local, rim=0)).norm(dim=-1).maximum(between).minimum(further)
    shade = 1 - CAVITY_SHADE * (1 - torch.exp(-behind / CAVITY_DEPTH))
    field.put(cells[within], places[within], own.to_pixels(own.clamp(local))[within], 1.0)
    field.shade[cells[within]] = shade[within]


def lash_line(eye: Opening, own: Opening, local) -> torch.Tensor:
    """
    How much is seen along the lids of an eye, the less the nearer they come to meet where they do not in the portrait.

    Args:
        eye, own ([`Opening`]): of the frame and of the portrait.
        local (`torch.Tensor` of shape `(batch, n, 2)`): places, in coordinates of the eye.

    Returns:
        `torch.Tensor` of shape `(batch, n)`: 0 to 1.
    """
    x, y = local.unbind(dim=-1)
    upper, lower = eye.rims(x)
    shut = (1 - (lower - upper) / LASH_OPENING).clamp(min=0)  # also towards the corners of an open eye
    shut = shut - (1 - own.height(x) / LASH_OPENING).clamp(min=0)
    width = eye.width[..., 0].reciprocal().clamp(min=LASH_WIDTH)  # a pixel at least
    line = torch.exp(-(((y - (upper + lower) / 2) / width) ** 2))
    return 1 - LASH_SHADE * shut.clamp(min=0) * line * ((x > 0) & (x < 1))


@torch.no_grad()
def portrait_flow(driving, source, size: int, fade_width=FADE_WIDTH) -> PortraitFlow:
    """
    Both flows as one: exact within the face, smooth outside.

    Args:
        driving, source (`torch.Tensor` of shape `(batch, 78, 2)`): pixels; irises may be NaN.
        size (`int`): side of the frame in pixels, a multiple of 4.
        fade_width (`float`, or `torch.Tensor` of shape `(batch,)`, *optional*): as in [`smooth_flow`].
    """
    driving = shut_lids(driving, source)
    grid = pixel_grid(size // 4, size // 4, driving.device)
    smooth = smooth_flow(*with_crown(driving.float(), source.float()), size, grid, fade_width)
    face = face_flow(driving, source, size)
    flow = torch.lerp(resize_flow(smooth, size, size), face.flow, face.exactness)
    return PortraitFlow(flow, face.exactness, face.shade)
