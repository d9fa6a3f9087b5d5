"""What is generated and compared in the evaluation (arXiv 1905.08233, section 4), and by what.

Pictures are S x S x 3 uint8 RGB, landmarks 78 x 2 float32 pixels of them.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fsth_hub.finetuning.feature_networks import LPIPS
from fsth_hub.finetuning.losses import ContentLoss
from fsth_hub.landmarks import LandmarkDetector, MotionAdapter, pick_reference
from fsth_hub.landmarks.portrait_picking import Look, pick_frames
from fsth_hub.models.image_processing_fsth import normalize, to_pixels
from fsth_hub.models.landmark_flow import pixel_grid, resize_flow, smooth_flow, warp
from fsth_hub.models.modeling_fsth import FsthGenerator
from fsth_hub.models.source_skips import landmark_similarity
from fsth_hub.pipelines.identity import FsthIdentity
from fsth_hub.pipelines.pipeline_fsth import FsthPipeline
from training.data.dataset import ClipRecord
from training.evaluation.background import Background
from training.evaluation.expression import CROPS, delivered, extreme_frames, eye_openings
from training.evaluation.flicker import Flicker, liveliest_run
from training.evaluation.metrics import IdentityNetwork, expression_distance, keypoint_distance, pose_distance, ssim


NUM_DRIVERS = 2  # for each person in cross-reenactment
FRAMES_SHOWN = 2  # of each person in a grid
LPIPS_BATCH = 8

Generate = Callable[[np.ndarray], np.ndarray]  # landmarks to a frame


def one_clip_per_person(clips: list[ClipRecord]) -> list[ClipRecord]:
    """Of each person the clip with the most frames, the first of them; in the order of the people's names."""
    longest = {}
    for clip in clips:
        if clip.identity not in longest or len(clip.frames) > len(longest[clip.identity].frames):
            longest[clip.identity] = clip
    return [longest[identity] for identity in sorted(longest)]


def source_frames(num_frames: int, shots: int) -> list[int] | None:
    """`shots` frames spread over the first half of a clip, or None where that has too few."""
    half = num_frames - num_frames // 2
    return spread(0, half, shots) if shots <= half else None


def picked_frames(clip: ClipRecord, shots: int) -> list[int] | None:
    """The same as [`~FsthPipeline.pick_portraits`] picks them, of frames that do not follow each other closely enough
    to tell how fast they move; fewer where fewer are clear.
    """
    half = len(clip.frames) - len(clip.frames) // 2
    if shots > half:
        return None
    looks = [Look.at(np.asarray(clip.image(i)), clip.landmarks[i], clip.times[i]) for i in range(half)]
    return [pick.index for pick in pick_frames(looks, shots)]


def held_out_frames(num_frames: int, count: int) -> list[int]:
    """At most `count` frames spread over the second half of a clip, whatever the number of portraits.

    Halves, and not every other frame: with 32 portraits each frame would have a neighbour among them that shows the
    same, and nothing would be left to generate.
    """
    half = num_frames - num_frames // 2
    return spread(half, num_frames, min(count, num_frames // 2))


def spread(start: int, stop: int, count: int) -> list[int]:
    return np.linspace(start, stop - 1, count).round().astype(int).tolist()


def frames_shown(num_frames: int) -> list[int]:
    """Of so many generated frames those for a grid."""
    return [(2 * number + 1) * num_frames // (2 * FRAMES_SHOWN) for number in range(FRAMES_SHOWN)]


def to_tensor(images: list[np.ndarray]) -> torch.Tensor:
    return normalize(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))  # N x 3 x S x S


@dataclass
class Instruments:
    lpips: LPIPS
    identity: IdentityNetwork
    detector: LandmarkDetector

    def find(self, image: np.ndarray) -> np.ndarray | None:
        """The landmarks that the detector sees, of the largest face; None where it sees no face."""
        faces = self.detector.detect(image)
        return faces[0].points if faces else None

    def look(self, images: list[np.ndarray], expected) -> list[np.ndarray]:
        """The landmarks that the detector sees, or those that are expected where it sees no face."""
        found = [self.find(image) for image in images]
        return [own if points is None else points for points, own in zip(found, expected, strict=True)]

    def embeddings(self, images, landmarks) -> np.ndarray:
        return np.stack([self.identity(*pair) for pair in zip(images, landmarks, strict=True)])  # N x 192

    def perceptual_distance(self, images, truth) -> float:
        """Mean LPIPS of N x 3 x H x W in [-1, 1]."""
        pairs = zip(images.split(LPIPS_BATCH), truth.split(LPIPS_BATCH), strict=True)
        return torch.cat([self.lpips(*pair) for pair in pairs]).mean().item()

    def faces(self, fake: list[np.ndarray], targets) -> tuple[list, np.ndarray]:
        """Landmarks seen in generated frames (None: no face), and the identity there. Where no face is seen, it is
        measured where one was to be generated, so that nobody gains by faces that cannot be found.
        """
        found = [self.find(frame) for frame in fake]
        points = [target if points is None else points for points, target in zip(found, targets, strict=True)]
        return found, self.embeddings(fake, points)

    def expression(self, task, found: list, extremes: list[np.ndarray]) -> dict:
        """What of a task's expressions arrives, in frames whose landmarks were found and in those generated for it."""
        found = [*found, *(self.find(frame) for frame in extremes)]
        return delivered([*task.targets, *task.extras[: len(extremes)]], found, task.rest)


# What is to be generated: `targets` holds the landmarks of the frames that are compared with `real` ones, `extras`
# those of more frames: with closed eyes and open mouths, for the measure of the expression alone, and then, of a
# person's own clip, what lacks to successive ones for that of flicker.


class SelfReenactment:
    """The second half of a person's own clip, to be generated from its landmarks."""

    name, real_title = "self", "truth"

    def __init__(self, clip: ClipRecord, num_frames: int, instruments: Instruments):
        chosen = held_out_frames(len(clip.frames), num_frames)
        self.instruments = instruments
        self.real = [np.asarray(clip.image(index)) for index in chosen]
        self.shown = frames_shown(len(chosen))
        self.targets = clip.landmarks[chosen]
        self.landmarks = instruments.look(self.real, self.targets)
        self.identity = instruments.embeddings(self.real, self.landmarks)
        half = len(clip.frames) - len(clip.frames) // 2
        extremes = sorted({half + index for index in extreme_frames(clip.landmarks[half:])} - {*chosen})
        self.successive = [half + index for index in liveliest_run(clip.landmarks[half:])]
        self.generated = [*chosen, *extremes, *sorted({*self.successive} - {*chosen, *extremes})]
        self.num_extremes = len(extremes)
        self.extras = clip.landmarks[self.generated[len(chosen) :]]
        self.rest = float(np.median(eye_openings(clip.landmarks[half:])))
        self.background = Background(self.real, self.targets)
        true = [np.asarray(clip.image(index)) for index in self.successive]
        self.flicker = Flicker(true, clip.landmarks[self.successive])

    def measure(self, fake: list[np.ndarray], extras: list[np.ndarray]) -> dict:
        """Means over the frames; `akd` over those that show a face, None where none does."""
        found, identity = self.instruments.faces(fake, self.targets)
        pictures, targets = (to_tensor(fake), to_tensor(self.real)), torch.from_numpy(self.targets)
        expression = self.instruments.expression(self, found, extras[: self.num_extremes])
        frames = dict(zip(self.generated, [*fake, *extras], strict=True))
        return count_faces(found) | {
            "lpips": self.instruments.perceptual_distance(*pictures),
            **{
                f"{part}_lpips": self.instruments.perceptual_distance(*(crop(images, targets) for images in pictures))
                for part, crop in CROPS.items()
            },
            "ssim": float(np.mean([ssim(*pair) for pair in zip(fake, self.real, strict=True)])),
            "csim": float((identity * self.identity).sum(axis=1).mean()),
            "akd": mean_of_seen(keypoint_distance, found, self.landmarks),
            **expression,
            **self.flicker.excess([frames[index] for index in self.successive]),
            "swim": self.background.swim(fake),
        }


class CrossReenactment:
    """Frames of other people's clips, to be followed by a person's portrait in relative motion, as in
    [`~FsthPipeline.drive`].
    """

    name, real_title = "cross", "driver"

    def __init__(self, clip: ClipRecord, drivers: list[ClipRecord], num_frames: int, instruments: Instruments):
        self.instruments = instruments
        portrait, own = np.asarray(clip.image(0)), clip.landmarks[0]
        self.portrait = instruments.look([portrait], [own])[0]
        self.identity = instruments.identity(portrait, self.portrait)
        self.real, self.targets, self.landmarks, self.references, self.extras = [], [], [], [], []
        openings = []
        for driver in drivers:
            index = pick_reference(own, list(driver.landmarks))
            adapt = MotionAdapter(own, driver.landmarks[index])
            chosen = spread(0, len(driver.frames), min(max(1, num_frames // len(drivers)), len(driver.frames)))
            images = [np.asarray(driver.image(frame)) for frame in (index, *chosen)]
            reference, *seen = instruments.look(images, driver.landmarks[[index, *chosen]])
            self.real += images[1:]
            asked = np.stack([adapt(points) for points in driver.landmarks])
            self.targets += list(asked[chosen])
            self.extras += list(asked[sorted({*extreme_frames(asked)} - {*chosen})])
            self.landmarks += seen
            self.references += [reference] * len(chosen)
            openings += eye_openings(asked).tolist()
        self.rest = float(np.median(openings))
        self.shown = frames_shown(len(self.targets))

    def measure(self, fake: list[np.ndarray], extras: list[np.ndarray]) -> dict:
        """Means over the frames; `csim` to the portrait, the distances over those that show a face."""
        found, identity = self.instruments.faces(fake, self.targets)
        against = [self.portrait] * len(fake), self.landmarks, self.references
        return count_faces(found) | {
            "csim": float((identity @ self.identity).mean()),
            "pose": mean_of_seen(pose_distance, found, *against),
            "expression": mean_of_seen(expression_distance, found, *against),
            **self.instruments.expression(self, found, extras),
        }


def count_faces(found: list) -> dict:
    return {"frames": len(found), "frames_without_face": sum(points is None for points in found)}


def mean_of_seen(distance: Callable, found: list, *against) -> float | None:
    distances = [distance(*values) for values in zip(found, *against, strict=True) if values[0] is not None]
    return float(np.mean(distances)) if distances else None


# Who generates: each takes T portraits and their landmarks, and returns what generates a frame, and what it cost: the
# seconds it took to prepare, and the megabytes of an identity.


def unmoved_portrait(crops: list[np.ndarray], landmarks: np.ndarray) -> tuple[Generate, dict]:
    return lambda points: crops[0], {}


def warped_portrait(crops: list[np.ndarray], landmarks: np.ndarray) -> tuple[Generate, dict]:
    """The portrait most like the frame, warped by the 78 landmarks; nothing is learned."""
    size = crops[0].shape[0]
    small, full = pixel_grid(size // 4, size // 4, "cpu"), pixel_grid(size, size, "cpu")
    images, sources = to_tensor(crops), torch.from_numpy(landmarks)

    def generate(points):
        driving = torch.from_numpy(points)[None]
        best = landmark_similarity(driving.expand_as(sources), sources, size).argmax()
        flow = smooth_flow(driving, sources[best][None], size, small)
        warped = warp(images[best][None], resize_flow(flow, size, size), full)[0]
        return to_pixels(warped).permute(1, 2, 0).numpy()

    return generate, {}


def feed_forward(pipe: FsthPipeline, fused: FsthGenerator):
    def prepare(crops, landmarks) -> tuple[Generate, dict]:
        person, seconds = timed(pipe.embed_crops, crops, landmarks)
        return lambda points: pipe.generate_frame(fused, person, points), {"seconds": {"embed": seconds}}

    return prepare


def fine_tuned(pipe: FsthPipeline, method: str, content: ContentLoss, steps: int | None):
    def prepare(crops, landmarks) -> tuple[Generate, dict]:
        options = {"method": method, "content": content, "steps": steps, "seed": 0}
        person, seconds = timed(pipe.fine_tune_crops, crops, landmarks, **options)
        fused = pipe.generator_for(person)
        costs = {"seconds": {"fine_tune": seconds}, "megabytes": saved_megabytes(person)}
        return lambda points: pipe.generate_frame(fused, person, points), costs

    return prepare


def saved_megabytes(identity: FsthIdentity) -> float:
    with tempfile.TemporaryDirectory() as folder:
        identity.save_pretrained(folder)
        return sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e6


def timed(function, *args, **kwargs):
    started = time.perf_counter()
    result = function(*args, **kwargs)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - started
