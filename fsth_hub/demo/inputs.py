"""What a visitor gave: checked, and shown as the networks will see it, before anything is started.

Each picture's faces are shown as crops with their landmarks; where there are several, a click chooses.
"""

from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import gradio as gr
import numpy as np

from ..media.reading import Clip, open_clip
from ..models.cropping import crop_box, crop_image, to_crop
from ..models.errors import FsthError
from ..models.image_loading import load_image
from ..models.landmark_drawing import rasterize_landmarks
from .studio import Studio


MAX_PORTRAITS = 16  # more than eight hardly help
MAX_SECONDS = 60
MAX_CLIP_PIXELS = 3840 * 2160
LOOK_AT_FRAMES = 25  # of a clip, for one that shows a face
CROP_SIZE = 256

Portraits = list[tuple[str, str | None]] | None  # what a gallery gives: files and captions


@dataclass(frozen=True)
class Seen:
    """The faces of one portrait, or of the first frame of a clip that shows any.

    Args:
        path: The file.
        crops: For each face, the largest first, its crop with landmarks drawn over it, 256 x 256 x 3 uint8.
        chosen: Which of them to take.
    """

    path: str
    crops: tuple[np.ndarray, ...]
    chosen: int = 0


def look_at_picture(studio: Studio, path: str) -> Seen:
    """The faces of a photograph, or none; raises `FsthError` where it cannot be read."""
    image, faces, _ = studio.upright(load_image(path))
    return Seen(path, tuple(_crop(image, face.points) for face in faces))


def look_at_first_frame(studio: Studio, path: str) -> Seen:
    """The faces of the first frame that shows any, or none; raises `FsthError` where the clip cannot be used."""
    for image in islice(open_limited(path), LOOK_AT_FRAMES):
        if faces := studio.faces(image):
            return Seen(path, tuple(_crop(image, face.points) for face in faces))
    return Seen(path, ())


def open_limited(path: str, max_frames: int | None = None) -> Clip:
    """Open a clip within the page's limits: not above 4K, and no more than its first minute is read."""
    clip = open_clip(existing(path))
    if clip.width * clip.height > MAX_CLIP_PIXELS:
        raise FsthError(
            f"{Path(path).name} is {clip.width} x {clip.height} pixels: give a clip of 3840 x 2160 (4K) or smaller."
        )
    limit = round(MAX_SECONDS * clip.fps)
    return replace(clip, max_frames=min(limit, max_frames) if max_frames else limit)


def checked_portraits(portraits: Portraits) -> list[str]:
    """The files of a gallery; raises `FsthError` where there are none or too many."""
    paths = [path for path, _ in portraits or []]
    if not paths:
        raise FsthError("Add at least one portrait first.")
    if len(paths) > MAX_PORTRAITS:
        raise FsthError(f"These are {len(paths)} portraits: keep the best {MAX_PORTRAITS}; more do not help.")
    return [existing(path) for path in paths]


def chosen_faces(paths: list[str], seen: list[Seen]) -> list[int]:
    """Which face of each file the visitor chose; the largest where there was no choice."""
    choices = {sight.path: sight.chosen for sight in seen}
    return [choices.get(path, 0) for path in paths]


def existing(path: str) -> str:
    """The path of an upload; raises `FsthError` where it has been deleted."""
    if not Path(path).is_file():
        raise FsthError(f"{Path(path).name} has been deleted, as all uploads are within the hour: add it again.")
    return path


def _crop(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    box = crop_box(points)
    crop = crop_image(image, box, CROP_SIZE)
    lines = rasterize_landmarks(to_crop(points, box, CROP_SIZE), CROP_SIZE)
    opaque = lines.max(axis=2, keepdims=True) / 255  # the lines' soft edges are those of a drawing on black
    return (crop * (1 - opaque) + lines).clip(0, 255).astype(np.uint8)


def show_faces(seen: list[Seen], name: str, everybody: bool = False) -> dict:
    """The gallery of all faces; those not chosen are dimmed, unless everybody's are used. `name` is what a picture is
    called: Portrait, Clip."""
    faces = []
    for number, sight in enumerate(seen, start=1):
        for index, crop in enumerate(sight.crops):
            title = f"{name} {number}" if len(seen) > 1 else name
            face = f"Face {index + 1}" if len(seen) == 1 else f"{title}, face {index + 1}"  # there is little room
            if len(sight.crops) == 1:
                faces.append((crop, title))
            elif everybody or index == sight.chosen:
                faces.append((crop, f"{face}: used"))
            else:
                faces.append((crop // 4 + 160, f"{face}: click to use"))
    return gr.update(value=faces, visible=bool(faces), selected_index=None)


def choose_face(seen: list[Seen], index: int) -> list[Seen]:
    """Take the face that was clicked: `index` counts all faces as `show_faces` lists them."""
    places = [(number, face) for number, sight in enumerate(seen) for face in range(len(sight.crops))]
    number, face = places[index]
    return [replace(sight, chosen=face) if place == number else sight for place, sight in enumerate(seen)]


def faces_gallery(label: str, elem_id: str) -> gr.Gallery:
    return gr.Gallery(
        label=label,
        type="numpy",
        format="jpeg",
        columns=3,
        fit_columns=False,
        height="auto",
        object_fit="contain",
        allow_preview=False,
        interactive=False,
        buttons=[],
        visible=False,
        elem_id=elem_id,
        elem_classes="faces",
    )


def note(text: str) -> dict:
    """A line of text for the visitor, or none."""
    return gr.update(value=text, visible=bool(text))
