"""Portraits that are no frames of a clip, paintings and photographs with their mouths closed, driven by clips."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fsth_hub.landmarks import MotionAdapter, close_blinks, pick_reference, set_upright, smooth_clip
from fsth_hub.models.errors import FsthError
from fsth_hub.models.image_loading import load_image
from fsth_hub.pipelines.pipeline_fsth import FsthPipeline
from training.evaluation.expression import delivered, extreme_frames, eye_openings, mouth_openings
from training.evaluation.reenactment import Instruments, count_faces, spread


NUM_SPREAD = 12  # frames of each driver besides those of the extremes
DRIVER_FRAMES = 150
PICTURES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}


def list_pictures(source: Path) -> list[Path]:
    """The pictures of a folder by name, or those of a .txt file, a path in each line, relative to the file's folder.

    Raises:
        FsthError: There are none, one is not there, or two have the same name.
    """
    if source.suffix == ".txt":
        lines = source.read_text().splitlines()
        pictures = [source.parent / line.strip() for line in lines if line.strip()]
    elif source.is_dir():
        pictures = sorted(path for path in source.iterdir() if path.suffix.lower() in PICTURES)
    else:
        raise FsthError(f"{source} is neither a folder of pictures nor a .txt list of them.")
    absent = [path for path in pictures if not path.is_file()]
    if absent or not pictures:
        raise FsthError(f"There is no picture {absent[0]}." if absent else f"There are no pictures in {source}.")
    if len({path.name for path in pictures}) < len(pictures):
        raise FsthError(f"Pictures in {source} have the same name.")
    return pictures


def files_hash(paths: list[Path]) -> str:
    """Of files and their names, wherever they lie."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


class Motion(NamedTuple):
    """Landmarks of a clip's frames (78 x 2, pixels), `None` where there is no face: as [`~FsthPipeline.drive`] follows
    them, and as the detector sees them."""

    followed: list[np.ndarray | None]
    seen: list[np.ndarray | None]


def read_motion(pipe: FsthPipeline, driver: Path) -> Motion:
    driving = pipe.read_driving(driver, num_frames=DRIVER_FRAMES)
    followed = close_blinks(smooth_clip(driving.landmarks, driving.fps), driving.fps)
    return Motion(followed, list(driving.landmarks))


def read_portrait(pipe: FsthPipeline, path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """The head crop, as large as the networks see it, and its landmarks, or None where no face is found."""
    image, faces, _ = set_upright(load_image(path), pipe.detector)
    return pipe.image_processor.crop(image, faces[0].points)[:2] if faces else None


class PortraitReenactment:
    """The most closed eyes, the most open mouths and some frames between of each driver, in relative motion."""

    name, real_title = "portraits", None

    def __init__(self, portrait: np.ndarray, own: np.ndarray, motions: list[Motion], instruments: Instruments):
        self.instruments = instruments
        self.identity = instruments.identity(portrait, instruments.look([portrait], [own])[0])
        self.real, self.extras, self.targets, self.seen, wanted = [], [], [], [], []
        for motion in motions:
            adapt = MotionAdapter(own, motion.followed[pick_reference(own, motion.followed)])
            asked = np.stack([adapt(points) for points in motion.followed])
            between = spread(0, len(asked), min(NUM_SPREAD, len(asked)))
            chosen = sorted({*extreme_frames(asked), *between})
            self.targets += list(asked[chosen])
            self.seen += [None if motion.seen[index] is None else adapt(motion.seen[index]) for index in chosen]
            wanted.append(asked)
        self.rest = float(np.median(eye_openings(np.concatenate(wanted))))
        targets = np.stack(self.targets)
        self.shown = [int(mouth_openings(targets).argmax()), int(eye_openings(targets).argmin())]

    def measure(self, fake: list[np.ndarray], extras: list[np.ndarray]) -> dict:
        """`csim` to the portrait, mean over the frames, and what of the expression arrives."""
        found, identity = self.instruments.faces(fake, self.targets)
        csim = float((identity @ self.identity).mean())
        return count_faces(found) | {"csim": csim} | delivered(self.targets, found, self.rest)

    def measure_driver(self) -> dict:
        """What of the expression arrives in the driver's own frames: less than all where the detector does not see a
        shut eye as shut, and blinks are led to their end."""
        return count_faces(self.seen) | delivered(self.targets, self.seen, self.rest)
