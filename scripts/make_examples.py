"""Make what the page shows before anybody has given it anything: portraits, motions' pictures, and clips.

    python scripts/make_examples.py                     # again when the bundled model or a motion changes
    python scripts/make_examples.py --portraits FOLDER  # from larger pictures of the same names

Clips are generated, marked and signed as every result of the page is.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from fsth_hub.demo.shipped import OPENING, OPENING_PORTRAIT, PAIRS, PORTRAITS, THUMBNAILS, clip_of, portrait_path
from fsth_hub.device import default_device, default_dtype
from fsth_hub.landmarks.expression import Expression
from fsth_hub.media.motion_files import SHIPPED
from fsth_hub.media.writing import write_clip
from fsth_hub.models.landmark_drawing import rasterize_landmarks
from fsth_hub.pipelines.driving import DrivingMotion
from fsth_hub.pipelines.pipeline_fsth import FsthPipeline
from fsth_hub.provenance.credentials import OUTPUT_METADATA, Origin, sign
from fsth_hub.provenance.watermark import add_watermark


LARGEST = 768  # pixels of a portrait's longer side
SIDE, RATE = 160, 12.5  # of a motion's moving picture: pixels, pictures per second
FACE_BOX = (32, 42, 128, 138)  # what is kept of it: the face, wherever it goes
HEIGHT = 256  # of the opening's three pictures
# What the page opens with: each within four seconds, and the last leads into the first.
KEYFRAMES = (
    (0.0, Expression()),
    (0.7, Expression(yaw=-13, gaze_x=-0.5, pitch=-2)),
    (1.0, Expression(yaw=-13, gaze_x=-0.5, pitch=-2)),
    (1.6, Expression(yaw=2, smile=0.7, pitch=3)),
    (1.75, Expression(yaw=4, smile=0.7, pitch=3, eye_left=-1, eye_right=-1)),
    (1.9, Expression(yaw=6, smile=0.75, pitch=2)),
    (2.5, Expression(yaw=12, smile=0.8, mouth=0.45, brow_left=0.6, brow_right=0.6, gaze_x=0.3)),
    (2.9, Expression(yaw=12, smile=0.8, mouth=0.2, brow_left=0.4, brow_right=0.4)),
    (3.4, Expression(yaw=3, smile=0.4, roll=4)),
    (4.0, Expression()),
)


def make_portraits(folder: Path) -> None:
    for portrait in PORTRAITS:
        picture = Image.open(folder / f"{portrait.name}.jpg").convert("RGB")
        picture.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
        portrait_path(portrait.name).parent.mkdir(exist_ok=True)
        picture.save(portrait_path(portrait.name), quality=85)


def make_thumbnails() -> None:
    """A small moving picture of each motion's landmarks."""
    THUMBNAILS.mkdir(exist_ok=True)
    for name in SHIPPED:
        motion = DrivingMotion.load(f"motion:{name}").resized(SIDE)
        step = round(motion.fps / RATE)
        drawings = (rasterize_landmarks(points, SIDE) for points in motion.landmarks[::step])
        pictures = [Image.fromarray(drawing).crop(FACE_BOX) for drawing in drawings]
        options = {"duration": round(1000 / RATE), "loop": 0, "quality": 50, "method": 6}
        pictures[0].save(THUMBNAILS / f"{name}.webp", save_all=True, append_images=pictures[1:], **options)


def make_opening(pipe: FsthPipeline) -> None:
    """Portrait, landmarks, and the portrait moving, beside each other."""
    path = portrait_path(OPENING_PORTRAIT)
    motion = DrivingMotion.from_keyframes(KEYFRAMES, loop=True)
    person = pipe.embed(path)
    portrait = np.asarray(Image.fromarray(person.crops[0]).resize((HEIGHT, HEIGHT), Image.Resampling.LANCZOS))

    def rows():
        points = (rasterize_landmarks(points, HEIGHT) for points in motion.resized(HEIGHT).landmarks)
        for drawing, frame in zip(points, pipe.drive(person, motion, size=HEIGHT), strict=True):
            yield np.hstack([portrait, drawing, add_watermark(frame)])

    origin = Origin.of(pipe.model_name, person, [path], ("motion", None))
    write_clip(OPENING, rows(), motion.fps, metadata=OUTPUT_METADATA, finish=partial(sign, origin=origin))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--portraits", type=Path, metavar="FOLDER", help="reduce these pictures first")
    args = parser.parse_args()
    if args.portraits:
        make_portraits(args.portraits)
    make_thumbnails()
    device = default_device()
    pipe = FsthPipeline.from_pretrained(dtype=default_dtype(device)).to(device)
    make_opening(pipe)
    for portrait, motion in PAIRS:
        path = clip_of(portrait, motion)
        path.parent.mkdir(exist_ok=True)
        pipe(portrait_path(portrait), f"motion:{motion}", output_path=path)


if __name__ == "__main__":
    main()
