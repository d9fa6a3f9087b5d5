"""How what is around a face can go with it.

Under an affine camera each point of a rigid head moves as one affine map says, and besides by its depth times one
vector that is the same for all (plane and parallax; Koenderink and van Doorn 1991). Neck and shoulders go along in
part, and the rest stays. So a place answers to the movement of the head in its own way, but linearly: a network that
says how each place does (`flow_refiner.py`) has only to see what a place is, hair or shoulder, and never how far a
head moved. It learns that from far fewer people than flow itself, and what it says moves nothing where no head moves.
"""

import torch

from .landmark_flow import pixel_grid
from .landmark_layout import RIGID
from .triangulation import skull_map


NOSE, CHIN = (30, 33), (8,)  # the nose's tip and base: nothing on the skull lies further in front of its plane
NUM_POSES = 8
NUM_MOTIONS = 3 + 2 * NUM_POSES
MAX_FLOW = 0.6  # normalized coordinates: further an affine map is not followed, far away from the face that gave it


@torch.no_grad()
def head_motions(driving, source, flow, image_size: int) -> torch.Tensor:
    """
    What moves a place in one way or another, as the change of a flow.

    Args:
        driving, source (`torch.Tensor` of shape `(batch, 78, 2)`): pixels.
        flow (`torch.Tensor` of shape `(batch, height, width, 2)`): to be changed, in normalized coordinates.
        image_size (`int`): side of the frame in pixels.

    Returns:
        `torch.Tensor` of shape `(batch, NUM_MOTIONS, height, width, 2)`: in normalized coordinates. What leads from
        `flow` to the flow of the skull's affine map, to that of its similarity and to none; then, for each of the
        numbers of [`head_pose`], so much to the right, and so much down.
    """
    driving, source = (points.float() * 2 / image_size - 1 for points in (driving, source))
    middle, middle_source, affine = skull = skull_map(driving, source)
    similarity, pose = head_pose(driving, source, skull)
    offset = pixel_grid(*flow.shape[1:3], flow.device).flatten(0, 1) - middle  # B x hw x 2

    def flow_of(matrix):
        moved = offset @ matrix + (middle_source - middle) - offset
        return moved.clamp(-MAX_FLOW, MAX_FLOW).view_as(flow)

    places = torch.stack([flow_of(affine) - flow, flow_of(similarity) - flow, -flow], dim=1)  # B x 3 x h x w x 2
    both = torch.eye(2, device=flow.device) * pose[..., None, None]  # B x 8 x 2 x 2
    constant = both.flatten(1, 2)[:, :, None, None].expand(-1, -1, *flow.shape[1:])  # B x 16 x h x w x 2
    return torch.cat([places, constant], dim=1)  # B x 19 x h x w x 2


def head_pose(driving, source, skull: tuple) -> tuple[torch.Tensor, torch.Tensor]:
    """
    How a head moved from a frame to a portrait, by the points that do not move on the skull.

    Args:
        driving, source (`torch.Tensor` of shape `(batch, 78, 2)`): normalized coordinates.
        skull (`tuple`): of [`skull_map`].

    Returns:
        The similarity that fits it best, a matrix to be multiplied from the right (`(batch, 2, 2)`), and as numbers
        (`(batch, NUM_POSES)`): the shift, to the right and down; the turn, radians; the logarithm of the scale; and
        how far nose and chin are from where the skull's affine map has them, by which turning and nodding are seen,
        and the jaw.
    """
    middle, middle_source, affine = skull
    a, b = driving[:, RIGID] - middle, source[:, RIGID] - middle_source  # B x 21 x 2
    turned = torch.stack([-a[..., 1], a[..., 0]], dim=-1)
    # the turn and scale that take a nearest to b: multiplication by a complex number
    along, across = ((axis * b).sum(dim=(1, 2)) / a.square().sum(dim=(1, 2)) for axis in (a, turned))  # B
    matrix = torch.stack([along, across, -across, along], dim=-1).unflatten(-1, (2, 2))
    scale = torch.log(torch.hypot(along, across).clamp(min=1e-2))
    parallax = [
        (source[:, points] - (driving[:, points] - middle) @ affine - middle_source).mean(dim=1)  # B x 2
        for points in (NOSE, CHIN)
    ]
    shift, turn = (middle_source - middle)[:, 0], torch.atan2(across, along)
    return matrix, torch.cat([shift, turn[:, None], scale[:, None], *parallax], dim=-1)
