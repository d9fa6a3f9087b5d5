"""Tiny pipelines, the detector that they see with, and pictures and clips in which it sees a face."""

import copy
from dataclasses import replace
from functools import cache

import numpy as np
from PIL import Image

from fsth_hub.finetuning.loop import PixelLoss
from fsth_hub.finetuning.lora import PREFIX
from fsth_hub.landmarks import Face
from fsth_hub.landmarks.pose import MEAN_FACE, Pose
from fsth_hub.models.image_processing_fsth import FsthImageProcessor
from fsth_hub.pipelines.identity import FsthTunedPerson
from fsth_hub.pipelines.pipeline_fsth import FsthPipeline
from testing_utils.networks import NETWORKS, SIZE, tiny


NO_FACE = 255


class StubDetector:
    """Sees a face wherever it is told to: a picture's first pixel says how far to the right it lies."""

    def __init__(self, num_faces: int = 1):
        self.num_faces = num_faces
        self.detected = self.tracked = 0

    def points(self, image: np.ndarray) -> np.ndarray:
        head = Pose(np.eye(3), 0.1, np.array([30.0 + image[0, 0, 0] / 4, 34.0]))
        return head.project(MEAN_FACE).astype(np.float32)

    def detect(self, image):
        self.detected += 1
        num_faces = 0 if image[0, 0, 0] == NO_FACE else self.num_faces
        return [Face(self.points(image) + 3 * index, 1.0) for index in range(num_faces)]

    def track(self, image, previous):
        self.tracked += 1
        return None if image[0, 0, 0] == NO_FACE else Face(self.points(image), 1.0)


class CrowdDetector(StubDetector):
    """Sees a face in each square of a row, whose first pixel says how far to the right it lies; the largest is in the
    middle of the row."""

    def faces(self, image: np.ndarray) -> list[Face]:
        count, found = image.shape[1] // SIZE, []
        for number in range(count):
            shift = image[0, number * SIZE, 0]
            if shift != NO_FACE:
                scale = 0.1 - 0.01 * abs(number - (count - 1) / 2)
                head = Pose(np.eye(3), scale, np.array([30.0 + number * SIZE + shift / 4, 34.0]))
                found.append(Face(head.project(MEAN_FACE).astype(np.float32), 1.0))
        return found

    def detect(self, image):
        self.detected += 1
        return sorted(self.faces(image), key=lambda face: -face.size)

    def track(self, image, previous):
        self.tracked += 1
        near = [face for face in self.faces(image) if face.distance(previous) < SIZE / 2]
        return min(near, key=previous.distance, default=None)


class ScaledDetector(StubDetector):
    """The same in pictures of any size."""

    def points(self, image: np.ndarray) -> np.ndarray:
        return super().points(image) * np.float32(image.shape[1] / SIZE)


def picture(shift: int = 0, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    """A smooth pattern with a face `shift / 4` pixels to the right; with `NO_FACE`, none."""
    image = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    image = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    image[0, 0] = shift
    if shift == NO_FACE:  # whichever way it is turned
        image[[0, -1, -1], [-1, 0, -1]] = shift
    return image


def row(*shifts: int) -> np.ndarray:
    """Pictures side by side, as a [`CrowdDetector`] sees them."""
    return np.hstack([picture(shift) for shift in shifts])


def clip(*shifts: int) -> list[np.ndarray]:
    return [picture(shift) for shift in shifts]


def make_pipeline(**kwargs) -> FsthPipeline:
    """A pipeline of tiny networks, always the same; `kwargs` are of their configuration."""
    networks = {name: tiny(network, **kwargs).train() for name, network in NETWORKS.items()}
    pipe = FsthPipeline(**networks, image_processor=FsthImageProcessor(size=SIZE))
    pipe.set_progress_bar_config(disable=True)
    pipe.detector = StubDetector()
    return pipe


def arrays(frames) -> np.ndarray:
    return np.stack([np.asarray(frame) for frame in frames])


def frames_of(pipe: FsthPipeline, person) -> np.ndarray:
    """Two frames of a person or of portraits, 2 x H x W x 3 uint8, as they are before a mark is put on them."""
    return arrays(pipe(person, clip(0, 20), watermark=False, credentials=False).frames[0])


def negative(image: np.ndarray) -> np.ndarray:
    """Another picture with the same face: the first pixel says where it is."""
    image = image.copy()
    image[1:] = 255 - image[1:]
    return image


def tuned(pipe: FsthPipeline, *portraits, **options) -> FsthTunedPerson:
    """Two steps of fine-tuning; they show in the frames with the fixture `steps_that_show`."""
    return pipe.fine_tune(list(portraits) or picture(), **{"steps": 2, "content": PixelLoss()} | options)


@cache
def _tuned_once(method: str) -> FsthTunedPerson:
    return make_pipeline().fine_tune(picture(), method=method, steps=1, content=PixelLoss())


def tuned_once(pipe: FsthPipeline, method: str) -> FsthTunedPerson:
    """A copy of who was tuned the first time, and changed so that it shows, for any pipeline of `make_pipeline`."""
    person = replace(copy.deepcopy(_tuned_once(method)), base_generator=pipe.generator)
    if method == "full":
        person.generator.head.bias.data += 0.2
    else:
        for part in "AB":
            person.weights[f"{PREFIX}head.lora_{part}.weight"] += 0.5
    return person
