"""Where in a portrait to look for what a frame shows, from the landmarks of both and nothing learned.

Far from the face each pixel goes with the landmarks near it (`smooth_flow`). Inside, the flow is exact: interpolated
over a triangulation of the face's points, so that lids and lips lie where the landmarks have them. Eyes and mouth are
openings with a flow of their own: an iris moves behind the lids and stays round, upper teeth keep to the skull and
lower ones to the jaw, and nothing is taken from beyond the portrait's own lids and lips.

Flows lead back from the frame to the portrait, in normalized coordinates (half sides of the frame, the units of
`grid_sample`), and are always float32: bfloat16 has too few digits for coordinates. Nothing here has a gradient.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .landmark_layout import JAW, LEFT_EYE, RIGHT_EYE, RIGID
from .lids import shut_lids
from .openings import EYES, MOUTH, Opening
from .rims import EDGES, rim_points, split, with_rim_points


# Widths in normalized coordinates, the best of a sweep over pairs of frames: how near a landmark must be to move a
# pixel, and how far from all landmarks a pixel still moves with a head that moves little. A figure that is cut out of
# its background takes no background along, and its hair and shoulders follow from further away.
SOFTMAX_WIDTH = 0.06
FADE_WIDTH, FIGURE_FADE_WIDTH = 0.18, 0.5
# How high the top of the head lies above the eyes, in the distance from them down to the chin.
CROWN_HEIGHT = 0.7

# The triangulation of a mean face: the 68 points, seven of the forehead (68 to 74) and one of either cheek (75, 76),
# after them those between the points of a rim. No triangle spans an opening.
NUM_VERTICES = 77
BROWS = (17, 18, 20, 21, 22, 23, 25, 26)
CHEEKS = ((36, 31, 3, 2), (45, 35, 13, 14))
FOREHEAD_HEIGHT = 0.45  # above the brows, in distances between the eyes
TRIANGLES = torch.tensor(split([
    (0, 1, 36), (0, 17, 36), (0, 17, 68), (1, 2, 75), (1, 36, 75), (2, 3, 75), (3, 4, 48), (3, 48, 75), (4, 5, 48),
    (5, 6, 59), (5, 48, 59), (6, 7, 59), (7, 8, 57), (7, 57, 58), (7, 58, 59), (8, 9, 57), (9, 10, 55), (9, 55, 56),
    (9, 56, 57), (10, 11, 55), (11, 12, 54), (11, 54, 55), (12, 13, 54), (13, 14, 76), (13, 54, 76), (14, 15, 76),
    (15, 16, 45), (15, 45, 76), (16, 26, 45), (16, 26, 74), (17, 18, 36), (17, 18, 68), (18, 19, 37), (18, 19, 69),
    (18, 36, 37), (18, 68, 69), (19, 20, 37), (19, 20, 70), (19, 69, 70), (20, 21, 38), (20, 21, 70), (20, 37, 38),
    (21, 22, 27), (21, 22, 71), (21, 27, 39), (21, 38, 39), (21, 70, 71), (22, 23, 43), (22, 23, 72), (22, 27, 42),
    (22, 42, 43), (22, 71, 72), (23, 24, 44), (23, 24, 72), (23, 43, 44), (24, 25, 44), (24, 25, 73), (24, 72, 73),
    (25, 26, 45), (25, 26, 74), (25, 44, 45), (25, 73, 74), (27, 28, 39), (27, 28, 42), (28, 29, 39), (28, 29, 42),
    (29, 30, 31), (29, 30, 35), (29, 31, 40), (29, 35, 47), (29, 39, 40), (29, 42, 47), (30, 31, 32), (30, 32, 33),
    (30, 33, 34), (30, 34, 35), (31, 32, 49), (31, 40, 75), (31, 49, 75), (32, 33, 50), (32, 49, 50), (33, 34, 52),
    (33, 50, 51), (33, 51, 52), (34, 35, 53), (34, 52, 53), (35, 47, 76), (35, 53, 76), (36, 41, 75), (40, 41, 75),
    (45, 46, 76), (46, 47, 76), (48, 49, 60), (48, 49, 75), (48, 59, 60), (49, 50, 61), (49, 60, 61), (50, 51, 61),
    (51, 52, 63), (51, 61, 62), (51, 62, 63), (52, 53, 63), (53, 54, 64), (53, 54, 76), (53, 63, 64), (54, 55, 64),
    (55, 56, 65), (55, 64, 65), (56, 57, 65), (57, 58, 67), (57, 65, 66), (57, 66, 67), (58, 59, 67), (59, 60, 67),
], NUM_VERTICES))  # fmt: skip
# How exact the flow is at each vertex; in between it goes over into the smooth one.
EXACTNESS = torch.ones(NUM_VERTICES + len(EDGES))
EXACTNESS[JAW] = 0
EXACTNESS[68:NUM_VERTICES] = 0

IRIS_RADIUS, IRIS_REACH = 0.25, 0.5  # in widths of the eye: what moves as one, and what moves along in part
# What a portrait's mouth hides is dark, the further behind the lips the darker: how far, in widths of the mouth, until
# e-fold, and how little is seen in the end.
CAVITY_DEPTH, CAVITY_SHADE = 0.03, 0.9
PARTED = 0.05  # in widths of the mouth: how far apart lips are that do not touch
# Lids that meet do so in a line of lashes, which a portrait with open eyes does not show: how dark, half how wide and
# from which opening on, in widths of the eye.
LASH_SHADE, LASH_WIDTH, LASH_OPENING = 0.7, 0.03, 0.12


def pixel_grid(height: int, width: int, device) -> torch.Tensor:
    """Pixel centres in normalized coordinates, x then y: height x width x 2."""
    height, width = int(height), int(width)  # of a map that is traced they are tensors
    ys = (torch.arange(height, device=device, dtype=torch.float32) * 2 + 1) / height - 1
    xs = (torch.arange(width, device=device, dtype=torch.float32) * 2 + 1) / width - 1
    return torch.stack([xs.expand(height, width), ys[:, None].expand(height, width)], dim=-1)


def warp(maps, flow, grid, mode: str = "bilinear"):
    """Sample `maps` (B x C x H x W) at `grid + flow` (flow B x h x w x 2), the border repeated: B x C x h x w."""
    sampled = F.grid_sample(maps.float(), grid + flow, mode, padding_mode="border", align_corners=False)
    return sampled.to(maps.dtype)


def resize_flow(flow, height: int, width: int):
    """B x h x w x 2 to B x height x width x 2; normalized coordinates do not change with the resolution."""
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
    # |g - d|^2 by its expansion: the pairwise differences would be 78 times the memory
    flat = grid.reshape(1, -1, 2)  # 1 x hw x 2
    lengths = (driving**2).sum(-1).masked_fill(~known, torch.inf)  # B x n; what is unknown is infinitely far away
    squared = ((flat**2).sum(-1, keepdim=True) - 2 * flat @ driving.mT + lengths[:, None]).clamp(min=0)  # B x hw x n
    weights = torch.softmax(-squared / (2 * SOFTMAX_WIDTH**2), dim=-1)
    # A head that moves further takes more of its surroundings along: a fade narrower than the movement would fold the
    # flow over itself and show the face twice, where it is and where it was.
    displacement = source - driving  # B x n x 2
    movement = displacement.sum(dim=1) / known.sum(dim=1, keepdim=True)  # B x 2
    fade_squared = torch.as_tensor(fade_width, device=grid.device) ** 2 + (movement**2).sum(dim=-1)  # B
    fade = torch.exp(-squared.amin(dim=-1, keepdim=True) / (2 * fade_squared[:, None, None]))  # B x hw x 1
    return (weights @ displacement * fade).unflatten(1, grid.shape[:2])  # B x h x w x 2


def skull_map(driving, source) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The affine map from a frame to a portrait that fits the points which do not move on the skull best.

    Args:
        driving, source (`torch.Tensor` of shape `(batch, 78, 2)`): pixels.

    Returns:
        The points' middle in both (`(batch, 1, 2)`) and the matrix between (`(batch, 2, 2)`): points p of the frame go
        to `(p - middle) @ matrix + middle_source`.
    """
    skull, skull_source = driving[:, RIGID], source[:, RIGID]
    middle, middle_source = skull.mean(dim=1, keepdim=True), skull_source.mean(dim=1, keepdim=True)
    a, b = skull - middle, skull_source - middle_source  # B x 21 x 2
    return middle, middle_source, torch.linalg.solve(a.mT @ a, a.mT @ b)


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


def add_vertices(driving, source) -> tuple[torch.Tensor, torch.Tensor]:
    """The vertices of the triangulation in both frames: the 68 points, forehead, cheeks and rims, B x 109 x 2."""
    right, left = driving[:, RIGHT_EYE].mean(dim=1), driving[:, LEFT_EYE].mean(dim=1)  # B x 2
    up = torch.stack([(left - right)[:, 1], (right - left)[:, 0]], dim=-1)[:, None]  # B x 1 x 2
    brows = driving[:, BROWS]
    middle = (brows[:, 3:4] + brows[:, 4:5]) / 2
    brows = torch.cat([brows[:, :3], middle, brows[:, 5:]], dim=1)  # B x 7 x 2
    forehead = brows + FOREHEAD_HEIGHT * up
    cheeks = torch.stack([driving[:, corners].mean(dim=1) for corners in CHEEKS], dim=1)  # B x 2 x 2
    added = torch.cat([forehead, cheeks], dim=1)
    centre, centre_source, matrix = skull_map(driving, source)
    added_source = (added - centre) @ matrix + centre_source
    return (
        torch.cat([driving[:, :68], added, rim_points(driving)], dim=1),
        torch.cat([source[:, :68], added_source, rim_points(source)], dim=1),
    )


def list_pixels(points, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The pixels of the bounding boxes of groups of points, one after another: their sum is small where a mask of all
    pixels for each group would be large.

    Args:
        points (`torch.Tensor` of shape `(n, k, 2)`): pixels.
        size (`int`): side of the frame in pixels.

    Returns:
        To which group each pixel belongs and which one it is, x then y (`(m,)` and `(m, 2)`, integers).
    """
    low = (points.amin(dim=1) - 0.5).floor().clamp(0, size - 1).long()  # n x 2
    high = (points.amax(dim=1) + 0.5).floor().clamp(0, size - 1).long()
    width, height = (high - low + 1).unbind(dim=-1)  # n
    counts = width * height
    groups = torch.repeat_interleave(torch.arange(len(points), device=points.device), counts)  # m
    position = torch.arange(len(groups), device=points.device) - (counts.cumsum(0) - counts)[groups]
    pixels = torch.stack([position % width[groups], position // width[groups]], dim=-1) + low[groups]
    return groups, pixels


@torch.no_grad()
def face_flow(driving, source, size: int) -> PortraitFlow:
    """
    The flow within the face, over its triangulation and in its openings; 0 outside.

    Args:
        driving, source (`torch.Tensor` of shape `(batch, 78, 2)`): pixels; irises may be NaN.
        size (`int`): side of the frame in pixels.
    """
    driving, source = driving.float(), source.float()
    result = torch.tensor([0.0, 0, 0, 1], device=driving.device).repeat(len(driving), size, size, 1)

    def of(points, owners):
        # each pixel's face; a single one need not be copied for each
        return points if len(points) == 1 else points[owners]

    def put(faces, pixels, targets, exactness, shade):
        flow = (targets - pixels - 0.5) * (2 / size)
        result[faces, pixels[:, 1], pixels[:, 0]] = torch.cat([flow, exactness, shade], dim=-1)

    # the triangles: a pixel p = a + s (b - a) + t (c - a) lies at the same s and t in the portrait's triangle
    triangles = TRIANGLES.to(driving.device)
    corners, corners_source = (points[:, triangles].flatten(0, 1) for points in add_vertices(driving, source))
    exactness = EXACTNESS.to(driving.device)[triangles].repeat(len(driving), 1)[..., None]  # Bt x 3 x 1
    owners, pixels = list_pixels(corners, size)
    edges = corners[:, 1:] - corners[:, :1]  # Bt x 2 x 2
    inverse = torch.linalg.inv_ex(edges).inverse  # Bt x 2 x 2; what is degenerate holds no pixel
    # column by column, for a product of so many small matrices takes several times as long
    table = torch.cat([corners[:, 0] - 0.5, inverse.flatten(1)], dim=1)  # Bt x 6
    left, top, x_to_s, x_to_t, y_to_s, y_to_t = table.T.contiguous()[:, owners]  # m each
    x, y = pixels[:, 0] - left, pixels[:, 1] - top
    s, t = x * x_to_s + y * y_to_s, x * x_to_t + y * y_to_t
    inside = ((s >= 0) & (t >= 0) & (s + t <= 1)).nonzero()[:, 0]
    owners, pixels, s, t = owners[inside], pixels[inside], s[inside], t[inside]
    # where triangles share an edge or fold over each other, the first of them counts, on any number of threads
    order = torch.arange(len(owners), device=driving.device)
    cells = (owners // len(TRIANGLES) * size + pixels[:, 1]) * size + pixels[:, 0]
    first = order.new_full((len(driving) * size * size,), len(owners)).scatter_reduce(0, cells, order, "amin")
    alone = (first[cells] == order).nonzero()[:, 0]
    owners, pixels, s, t = owners[alone], pixels[alone], s[alone], t[alone]
    table = torch.cat([corners_source, exactness], dim=-1)  # Bt x 3 x 3
    table = torch.cat([table[:, :1], table[:, 1:] - table[:, :1]], dim=1)[owners]  # m x 3 x 3
    values = table[:, 0] + s[:, None] * table[:, 1] + t[:, None] * table[:, 2]
    put(owners // len(TRIANGLES), pixels, values[:, :2], values[:, 2:], torch.ones_like(values[:, 2:]))

    def find_within(opening, local, faces, pixels):
        # what a rim cuts through is the opening's where no triangle has it: no pixel may be left over in between
        taken = result[faces, pixels[:, 1], pixels[:, 0], 2:3] > 0  # m x 1
        return opening.within(local, torch.where(taken, 0.0, 0.5))

    driving, source = with_rim_points(driving), with_rim_points(source)
    ones = torch.ones(1, 1, device=driving.device)
    for upper, lower, iris in EYES:
        owners, pixels = list_pixels(driving[:, upper + lower], size)
        eye, own = (Opening(of(points, owners), upper, lower) for points in (driving, source))
        local = eye.to_local(pixels[:, None] + 0.5)  # m x 1 x 2
        centre = eye.to_local(of(driving, owners)[:, None, iris])
        gaze = (own.to_local(of(source, owners)[:, None, iris]) - centre).nan_to_num()
        distance = (local - centre).norm(dim=-1, keepdim=True).nan_to_num(torch.inf)
        share = ((IRIS_REACH - distance) / (IRIS_REACH - IRIS_RADIUS)).clamp(0, 1)
        target = own.to_pixels(own.clamp(local + gaze * share * share * (3 - 2 * share)))
        within = find_within(eye, local, owners, pixels)[0][:, 0]  # m
        count = int(within.sum())
        put(owners[within], pixels[within], target[within, 0], ones.expand(count, 1), ones.expand(count, 1))
        result[owners, pixels[:, 1], pixels[:, 0], 3] = lash_line(eye, own, local)[:, 0]

    owners, pixels = list_pixels(driving[:, MOUTH[0] + MOUTH[1]], size)
    mouth, own = (Opening(of(points, owners), *MOUTH) for points in (driving, source))
    places = pixels[:, None] + 0.5  # m x 1 x 2
    within, depth = find_within(mouth, mouth.to_local(places), owners, pixels)  # m x 1
    middle, middle_source, matrix = skull_map(driving, source)
    # how the jaw has moved in the portrait's skull
    chin = source[:, 8, None] - ((driving[:, 8, None] - middle) @ matrix + middle_source)  # B x 1 x 2
    teeth = (places - of(middle, owners)) @ of(matrix, owners) + of(middle_source, owners)
    local = own.to_local(teeth + (depth * depth * (3 - 2 * depth))[..., None] * of(chin, owners))
    seen = own.clamp(local)
    height, own_height = mouth.height(mouth.to_local(places)[..., 0]), own.height(local[..., 0])  # m x 1
    further = (height - own_height).clamp(min=0)
    # between lips that touch in the portrait lies nothing of it, however near to one of them
    between = depth.minimum(1 - depth) * further * (1 - own_height / PARTED).clamp(min=0)
    # no further behind the lips than the mouth is further open: towards its corners a jaw that closes moves too far
    behind = (local - own.clamp(local, rim=0)).norm(dim=-1).maximum(between).minimum(further)
    shade = 1 - CAVITY_SHADE * (1 - torch.exp(-behind / CAVITY_DEPTH))
    within = within[:, 0]
    exactness = ones.expand(int(within.sum()), 1)
    put(owners[within], pixels[within], own.to_pixels(seen)[within, 0], exactness, shade[within])
    # softened, for the edge of a dark mouth would be a staircase
    shade = F.avg_pool2d(result[..., 3][:, None], 3, 1, 1, count_include_pad=False)  # B x 1 x size x size
    return PortraitFlow(result[..., :2], result[..., 2:3], shade.permute(0, 2, 3, 1))


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
