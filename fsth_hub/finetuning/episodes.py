"""Episodes that teach fine-tuning something: frames to generate, and the pictures to generate them from.

A generator with source skips sees the portraits themselves, and to generate a portrait from itself teaches nothing. So
each frame comes from *other* pictures of the person: from other portraits where there are several, and from deformed
ones.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..models.image_processing_fsth import normalize
from ..models.landmark_drawing import rasterize_landmarks
from ..models.landmark_flow import pixel_grid
from ..models.landmark_layout import FACE


HELD_OUT_DEFORMATIONS = 4  # where portraits are too few to hold one out
MAX_SOURCES = 8  # that a step generates its frames from
# How an episode's frames are moved together, and a head in each of its own; lengths in normalized coordinates (a frame
# is 2 wide and high), angles in radians, uniform up to these.
MAX_SHIFT, MAX_ZOOM, MAX_ANGLE, MAX_COLOUR = 0.08, 0.08, 0.08, 0.04
HEAD_SHIFT, HEAD_ANGLE = 0.08, 0.12
HEAD_WARPS = ((4, 0.03), (8, 0.012))  # knots a side, standard deviation: like turning, and like an expression
HEAD_RADIUS = 0.75  # how far from its middle a head takes its surroundings along


@dataclass
class Episodes:
    """Frames to generate and the pictures to generate them from, as the networks take them."""

    images: torch.Tensor  # B x (1 + K) x 3 x H x W in [-1, 1], the frame to generate first
    landmark_images: torch.Tensor
    landmarks: torch.Tensor  # B x (1 + K) x 78 x 2, pixels
    mattes: torch.Tensor  # B x (1 + K) x 1 x H x W, 0 to 1


def rasterize(landmarks: torch.Tensor, size: int) -> torch.Tensor:
    """Landmark drawings of B x 78 x 2 points in pixels: B x 3 x size x size in [-1, 1]."""
    drawings = [torch.from_numpy(rasterize_landmarks(points, size).copy()) for points in landmarks.cpu().numpy()]
    return normalize(torch.stack(drawings).permute(0, 3, 1, 2).to(landmarks.device))


def deform(images, landmarks, mattes, heads: torch.Tensor, rng: torch.Generator) -> tuple[torch.Tensor, ...]:
    """
    Move, zoom, turn and tint the frames of each episode alike, and some heads within their frames, each in its way.

    Only the heads, because that is how clips are: behind a head that moves, the room stands still. A generator that
    was tuned on frames moved as a whole would move the room too.

    Args:
        images (`torch.Tensor` of shape `(batch, n, 3, height, width)`): square, in [-1, 1].
        landmarks (`torch.Tensor` of shape `(batch, n, 78, 2)`): pixels, NaN where absent.
        mattes (`torch.Tensor` of shape `(batch, n, 1, height, width)`): 0 to 1.
        heads (`torch.Tensor` of shape `(batch, n)`): bool, those to shift, turn and warp smoothly.
        rng (`torch.Generator`): of the CPU, so that every device makes the same.

    Returns:
        Pictures, landmarks and mattes, of the same shapes.
    """
    batch, count, _, size, _ = images.shape
    images, points = images.flatten(0, 1).float(), landmarks.flatten(0, 1).float() * 2 / size - 1
    device = images.device

    def uniform(limit: float, *shape: int) -> torch.Tensor:
        return (limit * (2 * torch.rand(shape, generator=rng) - 1)).to(device)

    def rotation(angle: torch.Tensor) -> torch.Tensor:
        return torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=-1).unflatten(-1, (2, 2))

    # Where a pixel of the result comes from: g(x) = M x + s + d(x). Half of the episodes stay where they are, for
    # resampling costs sharpness.
    moves = (torch.rand(batch, generator=rng) < 0.5).float().to(device)
    matrix = rotation(moves * uniform(MAX_ANGLE, batch)) * (1 + moves * uniform(MAX_ZOOM, batch))[:, None, None]
    matrix = matrix.repeat_interleave(count, dim=0)  # Bn x 2 x 2
    shift = (moves[:, None] * uniform(MAX_SHIFT, batch, 2)).repeat_interleave(count, dim=0)
    gain = (1 + moves[:, None] * uniform(MAX_COLOUR, batch, 3)).repeat_interleave(count, dim=0)
    inverse = torch.linalg.inv(matrix)
    grid = pixel_grid(size, size, device)
    middle = (points[:, FACE].mean(dim=1) - shift)[:, None] @ inverse.mT  # Bn x 1 x 2
    offset = grid - middle[:, None]  # Bn x H x W x 2
    turn = rotation(uniform(HEAD_ANGLE, batch * count)) - torch.eye(2, device=device)
    displacement = offset @ turn[:, None].mT + uniform(HEAD_SHIFT, batch * count, 2)[:, None, None]
    displacement = displacement.permute(0, 3, 1, 2)  # Bn x 2 x H x W
    for knots, deviation in HEAD_WARPS:
        warp = deviation * torch.randn(batch * count, 2, knots, knots, generator=rng).to(device)
        displacement = displacement + F.interpolate(warp, size, mode="bicubic", align_corners=True)
    window = torch.exp(-((offset.square().sum(dim=-1) / HEAD_RADIUS**2) ** 2))  # Bn x H x W
    displacement = displacement * (window * heads.flatten()[:, None, None])[:, None]

    sampling = grid @ matrix.mT[:, None] + shift[:, None, None] + displacement.permute(0, 2, 3, 1)
    moved = F.grid_sample(images, sampling, mode="bicubic", padding_mode="border", align_corners=False)
    moved = ((moved + 1) * gain[..., None, None] - 1).clamp(-1, 1)
    mattes = F.grid_sample(mattes.flatten(0, 1).float(), sampling, padding_mode="border", align_corners=False)
    # A landmark p goes where g(x) = p; d changes slowly, so x = M^-1 (p - s - d(x)) settles within a few rounds.
    start = points - shift[:, None]
    x = start @ inverse.mT
    for _ in range(8):
        places = x.nan_to_num()[:, None]  # Bn x 1 x 78 x 2
        d = F.grid_sample(displacement, places, padding_mode="border", align_corners=False)[:, :, 0].mT
        x = (start - d) @ inverse.mT  # Bn x 78 x 2
    return tuple(part.unflatten(0, (batch, count)) for part in (moved, (x + 1) * size / 2, mattes))


def make_episodes(images, landmarks, mattes, targets: list[int], rng: torch.Generator, own: bool = True) -> Episodes:
    """
    Episodes that teach something: a portrait generated from some of the person's, itself only with its head moved.

    Args:
        images (`torch.Tensor` of shape `(T, 3, height, width)`): the portraits, in [-1, 1].
        landmarks (`torch.Tensor` of shape `(T, 78, 2)`): pixels.
        mattes (`torch.Tensor` of shape `(T, 1, height, width)`): 0 to 1.
        targets (`list[int]`): the portrait to generate of each episode.
        rng (`torch.Generator`): of the CPU.
        own (`bool`, *optional*, defaults to `True`):
            Whether a portrait can be among its own sources. It stands for the portrait that is much like the frame,
            of which there often is one: tuned on the others alone, the generator blurs what it could take over.
    """
    total = len(images)
    count = int(torch.randint(1, min(total, MAX_SOURCES) + 1, (), generator=rng)) if own else total - 1  # K
    chosen = []
    for target in targets:
        sources = [index for index in range(total) if own or index != target]
        order = torch.randperm(len(sources), generator=rng)[:count].tolist()
        chosen.append([target] + [sources[position] for position in order])
    chosen = torch.tensor(chosen, device=images.device)  # B x (1 + K)
    heads = chosen == chosen[:, :1]
    heads[:, 0] = False
    images, landmarks, mattes = deform(images[chosen], landmarks[chosen], mattes[chosen], heads, rng)
    drawings = rasterize(landmarks.flatten(0, 1), images.shape[-1]).unflatten(0, chosen.shape)
    return Episodes(images, drawings, landmarks, mattes)


class EpisodeSampler:
    """
    Episodes of one person's portraits: those to learn from, every portrait as often, and those that are held out.

    Args:
        images (`torch.Tensor` of shape `(T, 3, height, width)`): the portraits, in [-1, 1].
        landmarks (`torch.Tensor` of shape `(T, 78, 2)`): pixels.
        mattes (`torch.Tensor` of shape `(T, 1, height, width)`): 0 to 1.
        seed (`int`): of their order and deformations.
    """

    def __init__(self, images: torch.Tensor, landmarks: torch.Tensor, mattes: torch.Tensor, seed: int):
        self.portraits, count = (images, landmarks, mattes), len(images)
        self.rng = torch.Generator().manual_seed(seed)
        self.queue: list[int] = []
        self.train = list(range(count))
        own = count < 3  # too few to hold one out
        self.kept = [index % count for index in range(HELD_OUT_DEFORMATIONS)]
        if not own:
            middle, last = count // 2, count // 2 + max(1, count // 8)
            self.kept, self.train = self.train[middle:last], self.train[:middle] + self.train[last:]
        held_rng = torch.Generator().manual_seed(seed + 1)
        self.held_out = [make_episodes(*self.portraits, [index], held_rng, own) for index in self.kept]

    def sample(self, batch_size: int) -> Episodes:
        while len(self.queue) < batch_size:
            order = torch.randperm(len(self.train), generator=self.rng).tolist()
            self.queue += [self.train[position] for position in order]
        targets, self.queue = self.queue[:batch_size], self.queue[batch_size:]
        return make_episodes(*self.portraits, targets, self.rng)
