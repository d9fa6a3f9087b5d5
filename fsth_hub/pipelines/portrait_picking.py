"""Portraits out of a clip of the person: the clip is read twice, and no picture is kept that is not picked."""

import io
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from ..landmarks import Face, FaceTracker, LandmarkDetector
from ..landmarks.portrait_picking import Look, mouth_opens, pick_frames
from ..media.containers import ClipFile, is_file, rereadable
from ..media.reading import Clip, holds_clip, open_clip
from ..models.cropping import CropBox, crop_box, whole_frame
from ..models.errors import FsthError, FsthWarning, NoFaceError
from ..models.image_loading import Picture, list_pictures
from ..models.landmark_layout import FACE


MAX_LOOKS = 300  # frames that are looked at, evenly over a clip
# A head that fills the common square otherwise gets one of its own: ratio of sizes, and margin as part of the side.
OTHER_SIZE, MARGIN = 1.5, 0.05
LARGE = 0.6  # of the person's face: smaller ones are taken for passers-by


@dataclass(frozen=True, eq=False)
class PickedPortrait:
    """
    A frame of a clip that was picked as a portrait; goes wherever a portrait does.

    Args:
        image (`PIL.Image.Image`): The whole frame.
        time (`float`): When it is shown, in seconds.
        why (`str`): What it is there for, such as "widest open mouth".
        landmarks (`np.ndarray` of shape `(78, 2)`): Of the person's face, pixels of the frame.
        box ([`CropBox`]):
            The square around the head. It is the same for all of a clip, wherever the head fits into it, so that the
            background stays where it is.
        clip (path, bytes or file object, *optional*): The file that the frame is from.
    """

    image: Image.Image
    time: float
    why: str
    landmarks: np.ndarray
    box: CropBox
    clip: ClipFile | None = None


Portrait = Picture | Clip | PickedPortrait


def list_portraits(portraits: Portrait | Iterable[Portrait]) -> list[Portrait]:
    """Portraits as a list, as `list_pictures` gives it, but what holds a clip as a [`Clip`]."""
    if isinstance(portraits, Clip | PickedPortrait) or is_file(portraits):
        portraits = [portraits]
    elif isinstance(portraits, Image.Image | np.ndarray | torch.Tensor) or not isinstance(portraits, Iterable):
        return list_pictures(portraits)
    return [part for portrait in portraits for part in _opened(portrait)]


def _opened(portrait: Portrait) -> list[Portrait]:
    if isinstance(portrait, Clip | PickedPortrait):
        return [portrait]
    if not is_file(portrait) or isinstance(portrait, io.TextIOBase):
        return list_pictures([portrait])
    if hasattr(portrait, "read"):
        portrait = rereadable(portrait)
    return [open_clip(portrait, allow_still=True)] if holds_clip(portrait) else list_pictures(portrait)


def pick_from_clips(
    portraits: Sequence[Portrait], indices: int | Sequence[int], pick: Callable[[Clip, int], list[PickedPortrait]]
) -> tuple[list[Picture | PickedPortrait], int | list[int]]:
    """
    Portraits of which none is a clip any more, and which face of each: the frames that `pick` gives for a clip and the
    number of a face stand in its place.
    """
    if not any(isinstance(portrait, Clip) for portrait in portraits):
        return list(portraits), indices
    each = [indices] * len(portraits) if isinstance(indices, int) else list(indices)
    check_indices(portraits, each)
    parts = [
        pick(portrait, index) if isinstance(portrait, Clip) else [portrait]
        for portrait, index in zip(portraits, each, strict=True)
    ]
    repeated = [index for part, index in zip(parts, each, strict=True) for _ in part]
    return [portrait for part in parts for portrait in part], repeated


def check_indices(portraits: Sequence, indices: Sequence[int]) -> None:
    """Refuse (`FsthError`) numbers of faces that are not one for each portrait."""
    if len(indices) != len(portraits):
        raise FsthError(f"There are {len(portraits)} portraits but face indices for {len(indices)}.")


def photograph_of(portrait: Picture | PickedPortrait) -> Picture:
    """The whole picture of a portrait."""
    return portrait.image if isinstance(portrait, PickedPortrait) else portrait


def files_of(portraits: Sequence[Picture | PickedPortrait]) -> list:
    """What portraits came from, each clip once: what Content Credentials tell."""
    sources = [one.clip if isinstance(one, PickedPortrait) else one for one in portraits]
    seen: set[int] = set()
    return [
        source
        for one, source in zip(portraits, sources, strict=True)
        if not (isinstance(one, PickedPortrait) and id(source) in seen) and not seen.add(id(source))
    ]


def pick_portraits(
    clip: Clip, detector: LandmarkDetector, shots: int, face_index: int, crop: bool, progress: Callable[[], object]
) -> list[PickedPortrait]:
    """As [`FsthPipeline.pick_portraits`]; `progress` is called after each frame that was looked through."""
    seen, cuts = _look_through(clip, detector, face_index, progress)
    start, stop = max(cuts, key=lambda shot: sum(shot[0] <= one.order < shot[1] for one in seen))
    seen = [one for one in seen if start <= one.order < stop]
    picks = pick_frames([one.look for one in seen], shots)
    _tell(clip, [one.look for one in seen], len(picks), shots, len(cuts) > 1)

    pictures = dict.fromkeys(seen[pick.index].frame for pick in picks)
    for frame, image in enumerate(islice(clip, max(pictures) + 1)):
        if frame in pictures:
            pictures[frame] = Image.fromarray(image)
    found = [seen[pick.index].look.points for pick in picks]
    common = crop_box(np.stack(found)) if crop else whole_frame(clip.width, clip.height, clip.name)
    portraits = []
    for pick, points in zip(picks, found, strict=True):
        one = seen[pick.index]
        box = common if not crop or _fits(points, common) else crop_box(points)
        portraits.append(PickedPortrait(pictures[one.frame], one.look.time, pick.why, points, box, clip.file))
    return portraits


class _Seen(NamedTuple):
    """A frame that shows the face: its number in the clip and among those that the tracker got, and a look at it."""

    frame: int
    order: int
    look: Look


def _look_through(
    clip: Clip, detector: LandmarkDetector, face_index: int, progress: Callable[[], object]
) -> tuple[list[_Seen], tuple[tuple[int, int], ...]]:
    """At most `MAX_LOOKS` frames that show the face, and the clip's shots, as the tracker counts frames."""
    count = clip.frame_count or sum(1 for _ in clip)
    step = math.ceil(count / MAX_LOOKS)
    track, seen, before, order = FaceTracker(detector, face_index), [], None, 0
    for frame, image in enumerate(clip):
        progress()
        if frame % step > 1:
            continue
        face = track(image)
        # of a long clip in pairs of neighbours, the second of which tells how fast the face moves
        if face is not None and (step == 1 or frame % step == 1):
            if not seen and face_index == 0:
                _tell_of_others(clip, face, detector.detect(image))
            seen.append(_Seen(frame, order, Look.at(image, face.points, frame / clip.fps, before)))
        before = None if face is None else face.points
        order += 1
    if not seen:
        raise NoFaceError(f"No face was found in {clip.name}; use a clip in which the face is seen clearly.")
    return seen, track.shots


def _fits(points: np.ndarray, box: CropBox) -> bool:
    """Whether a face (78 x 2, pixels) lies within a square and is about as large as those that it was made for."""
    inside = (points[FACE] - (box.left, box.top)) / box.side
    ratio = crop_box(points).side / box.side
    return bool((np.abs(inside - 0.5) < 0.5 - MARGIN).all()) and 1 / OTHER_SIZE < ratio < OTHER_SIZE


def _tell_of_others(clip: Clip, face: Face, faces: list[Face]) -> None:
    people = sum(other.size > LARGE * face.size for other in faces)
    if people > 1:
        _warn(
            f"{_name(clip)} shows {people} people: the portraits are of the one with the largest face; choose another "
            "by its number, counted from 0 (--face, face_index)."
        )


def _tell(clip: Clip, looks: list[Look], count: int, shots: int, is_cut: bool) -> None:
    """Warn of what the portraits of a clip (a look at each frame of the shot they are from) lack."""
    name = clip.name
    if is_cut:
        start, end = (f"{int(look.time) // 60}:{int(look.time) % 60:02}" for look in (looks[0], looks[-1]))
        _warn(f"{_name(clip)} changes shots: portraits were taken from {start} to {end}.")
    if count < shots:
        taken = f"{count} {'was' if count == 1 else 'were'}"
        _warn(f"Only {count} frame{'s' * (count > 1)} of {name} show the face clearly; {taken} taken.")
    if not mouth_opens(looks):
        _warn(f"The mouth is never open in {name}: teeth will be made up.")


def _name(clip: Clip) -> str:
    return clip.name.replace("the clip", "The clip", 1) if clip.file is None else clip.name


def _warn(sentence: str) -> None:
    warnings.warn(sentence, FsthWarning, stacklevel=5)
