"""Generated frames that show on a card what a person looks like when driven."""

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from PIL import Image

from ..landmarks.pose import Pose
from ..models.facial_components import FsthFacialComponents
from ..models.folding import fold
from ..models.image_processing_fsth import FsthImageProcessor
from ..models.landmark_layout import INNER_LIPS, JAW, OUTER_LIPS
from ..models.modeling_fsth import FsthGenerator
from .names import DEFAULT_SIZE
from .person import FsthPerson


# The preview's poses: a turn in radians, as far as one portrait can well be followed, and the way of the lower lip in
# hundredths of the distance between the eyes, the jaw going along with it.
TURN, OPENING, JAW_SHARE = 0.25, 12, 0.8
LOWER_LIPS = np.r_[OUTER_LIPS[7:], INNER_LIPS[5:]]
LOWER_LIPS_SHARES = np.array([0.5, 1, 1, 1, 0.5, 1, 1, 1])  # less near the corners
CHIN = JAW[3:-3]
CHIN_SHARES = JAW_SHARE * np.sin(np.linspace(0, np.pi, len(CHIN)))


def preview_landmarks(points: np.ndarray) -> list[np.ndarray]:
    """
    A portrait's landmarks (78 x 2, pixels) in four poses: its own, turned to the picture's left and to its right, and
    with the mouth opened.
    """
    pose = Pose.of(points)
    upright = pose.lift(points)  # 78 x 3
    turned = []
    for angle in (TURN, -TURN):
        cos, sin = np.cos(angle), np.sin(angle)
        turn = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
        turned.append(replace(pose, rotation=turn @ pose.rotation).project(upright))
    opened = upright.copy()
    opened[LOWER_LIPS, 1] += OPENING * LOWER_LIPS_SHARES
    opened[CHIN, 1] += OPENING * CHIN_SHARES
    return [np.asarray(moved, np.float32) for moved in (points, *turned, pose.project(opened))]


@torch.no_grad()
def generate_preview(
    person: FsthPerson, generator: FsthGenerator, components: FsthFacialComponents | None = None
) -> Image.Image:
    """
    Four frames side by side that the generator makes of a person, as large as the first portrait has them; no
    photograph is among them.

    Args:
        person ([`FsthPerson`]): whose.
        generator ([`FsthGenerator`]): the person's, or the pipeline's.
        components ([`FsthFacialComponents`], *optional*): the same; with source skips only.
    """
    generator = fold(generator)  # to the last bit the frames that the pipeline generates
    adain_parameters, sources = person.inputs(generator.device, generator.dtype)
    processor = FsthImageProcessor(size=generator.config.image_size)
    side, frames = min(DEFAULT_SIZE, person.max_size), []
    for points in preview_landmarks(person.landmarks):
        drawing = processor.rasterize(points).to(generator.device, generator.dtype, memory_format=torch.channels_last)
        points = torch.from_numpy(points)[None]  # 1 x 78 x 2
        output = generator(drawing, adain_parameters, points.to(generator.device), sources)
        if output.composition is None:
            frames += processor.postprocess(output.images)
            continue
        retouch = None
        if components is not None:
            landmarks = points * (side / generator.config.image_size)
            retouch = partial(person.retouch, landmarks=landmarks, components=components)
        frames += person.compositor(side)(output.composition, retouch)
    return Image.fromarray(np.concatenate(frames, axis=1))
