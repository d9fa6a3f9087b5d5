"""Motions in files of their own: a face's landmarks, no pictures, as safetensors. Nothing is ever unpickled."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .. import __version__
from ..models.errors import FsthError, FsthNotFoundError
from ..models.landmark_layout import FACE, LEFT_IRIS, NUM_POINTS, RIGHT_IRIS, interocular
from ..saving import whole_file
from .frames import FPS_RANGE
from .texts import check_suffix


SUFFIX = ".motion.safetensors"
FORMAT, VERSION = "fsth_hub.motion", 1
MAX_BYTES, MAX_SOUND_BYTES = 64 * 2**20, 16 * 2**20
MAX_SIDE = 4096  # pixels, of the crop that the landmarks are given in
PICKLES = (".pkl", ".pickle", ".exp", ".pt", ".pth", ".joblib")

MOTIONS = Path(__file__).parents[1] / "motions"
SHIPPED = ("talk", "smile", "laugh", "nod", "shake", "look-around", "blink", "surprise")
SCHEME = "motion:"  # before the name of one of them
# How a motion is told from a clip: by its file's name. What is not saved here is made of text.
NAMES = (".safetensors", ".json", ".csv", ".tsv", *PICKLES)

Face = Literal["resting", "driver"]
Made = Literal["clip", "keyframes", "arkit", "cues"]


@dataclass(frozen=True, eq=False)
class MotionFile:
    """What a motion's file holds.

    Args:
        landmarks: N x 78 x 2 float32, pixels of a crop of `size`; a frame without a face is all NaN.
        reference: 78 x 2 float32, the face that counts as unmoved.
        fps: Frames per second, exactly.
        size: Side of the crop in pixels.
        loop: Whether the first frame follows on the last.
        face: Whose proportions these are: "resting" for nobody's, "driver" for those of the person filmed.
        origin: What it was made of.
        name: What people call it.
        licence: Of the motion, if it says so.
        sound: An m4a file.
    """

    landmarks: np.ndarray
    reference: np.ndarray
    fps: Fraction
    size: int
    loop: bool = False
    face: Face = "resting"
    origin: Made = "clip"
    name: str | None = None
    licence: str | None = None
    sound: bytes | None = None

    def check(self, name: str) -> None:
        """Refuse (`FsthError`) what no motion can be; `name` is the file's."""
        points = self.landmarks
        if points.ndim != 3 or points.shape[1:] != (NUM_POINTS, 2) or not len(points):
            raise _damaged(name, f"its landmarks are {' x '.join(map(str, points.shape))}")
        if self.reference.shape != (NUM_POINTS, 2):
            raise _damaged(name, "its reference is no face")
        faces = np.concatenate([self.reference[None], points])
        gone = np.isnan(faces).all(axis=(1, 2))
        faces = faces[~gone]
        if gone[0] or len(faces) < 2:
            raise _damaged(name, "it shows no face")
        for part in (FACE, RIGHT_IRIS, LEFT_IRIS):
            missing = np.isnan(faces[:, part]).reshape(len(faces), -1)
            if part is FACE and missing.any() or (missing.any(axis=1) != missing.all(axis=1)).any():
                raise _damaged(name, "a face is incomplete")
        if (np.abs(faces) > 100 * self.size).any() or (interocular(faces) < 1e-3 * self.size).any():
            raise _damaged(name, "a point lies where no face can be")  # infinity, too


@dataclass(frozen=True)
class ShippedMotion:
    """A motion that comes with the package.

    Args:
        name: For "motion:NAME".
        title: For people.
        seconds: Its length.
    """

    name: str
    title: str
    seconds: float


def list_motions() -> list[ShippedMotion]:
    """The motions that come with the package."""
    motions = []
    for name in SHIPPED:
        with safe_open(shipped_path(name), "np") as file:
            fields = file.metadata()
            seconds = file.get_slice("landmarks").get_shape()[0] / Fraction(fields["fps"])
        motions.append(ShippedMotion(name, fields["name"], float(seconds)))
    return motions


def shipped_path(name: str) -> Path:
    """Where a motion lies that comes with the package; `FsthError` where there is none of that name."""
    if name not in SHIPPED:
        raise FsthError(f"There is no motion '{name}'; there are: {', '.join(SHIPPED)}.")
    return MOTIONS / f"{name}{SUFFIX}"


def is_motion(source: object) -> bool:
    """Whether this names a motion, for [`~DrivingMotion.load`], and no clip."""
    if not isinstance(source, str | os.PathLike) or not isinstance(name := os.fspath(source), str):
        return False
    return name.startswith(SCHEME) or name.lower().endswith(NAMES)


def file_of(source: str | os.PathLike) -> Path:
    """The file that a motion's name stands for; `FsthError` for one that does not come with the package."""
    name = os.fspath(source)
    return shipped_path(name.removeprefix(SCHEME)) if name.startswith(SCHEME) else Path(source)


def refuse_pickle(path: str | os.PathLike) -> None:
    """Refuse (`FsthError`) a file that is a pickle by its name; what is in it is not looked at."""
    path = Path(path)
    if path.suffix.lower() in PICKLES:
        raise FsthError(
            f"{path.name} is a pickle, which may run code: fsth_hub never opens one. Make a motion from the clip "
            "itself."
        )


def write_motion_file(path: str | os.PathLike, motion: MotionFile) -> None:
    """Write a motion; its name must end in ".motion.safetensors".

    Raises:
        FsthError: It cannot be written, or is larger than could be read again.
    """
    check_suffix(path, SUFFIX)
    with whole_file(path) as unfinished:
        name = Path(path).name
        motion.check(name)
        tensors = {"landmarks": motion.landmarks, "reference": motion.reference}
        if motion.sound is not None:
            if len(motion.sound) > MAX_SOUND_BYTES:
                raise FsthError(f"The sound of {name} is larger than {MAX_SOUND_BYTES // 2**20} MB: leave it out.")
            tensors["sound"] = np.frombuffer(motion.sound, np.uint8)
        fields = {"format": FORMAT, "version": str(VERSION), "made_with": f"fsth_hub {__version__}"}
        fields |= {"fps": str(motion.fps), "size": str(motion.size), "loop": str(motion.loop).lower()}
        fields |= {"face": motion.face, "origin": motion.origin}
        words = {"name": motion.name, "licence": motion.licence}
        fields |= {key: _words(text) for key, text in words.items() if text}
        tensors = {key: np.ascontiguousarray(tensor) for key, tensor in tensors.items()}
        data = save(tensors, fields)
        if len(data) > MAX_BYTES:
            raise FsthError(f"{name} would be larger than {MAX_BYTES // 2**20} MB: save a shorter clip.")
        unfinished.write_bytes(data)


def read_motion_file(path: str | os.PathLike) -> MotionFile:
    """Read a motion.

    Raises:
        FsthError: The file is none, is damaged, or was made by a later version.
    """
    path = Path(path)
    refuse_pickle(path)
    if not path.is_file():
        raise FsthNotFoundError(f"There is no file {path}: check the path.")
    if path.stat().st_size > MAX_BYTES:
        raise FsthError(f"{path.name} is larger than {MAX_BYTES // 2**20} MB, which no motion is.")
    try:
        with safe_open(path, "np") as file:
            return _read(path.name, file.metadata() or {}, file)
    except (SafetensorError, OSError) as error:
        raise _damaged(path.name, "it is no safetensors file") from error


def _read(name: str, fields: dict[str, str], file) -> MotionFile:
    if fields.get("format") != FORMAT:
        raise FsthError(f"{name} is no motion: make one with fsth motion save.")
    version = _field(name, fields, "version", r"\d{1,6}", int)
    if version > VERSION:
        raise FsthError(f"{name} was made by a newer fsth_hub (motion version {version}): update.")
    expected = {"landmarks": "F32", "reference": "F32", "sound": "U8"}
    slices = {key: file.get_slice(key) for key in file.keys()}
    for key, part in slices.items():
        if expected.get(key) != part.get_dtype():
            raise _damaged(name, f"it holds a tensor '{_words(key)}' that does not belong there")
    if not {"landmarks", "reference"} <= set(slices):
        raise _damaged(name, "it holds no landmarks")
    sound = None
    if "sound" in slices:
        if np.prod(slices["sound"].get_shape()) > MAX_SOUND_BYTES:
            raise _damaged(name, "its sound is too large")
        sound = file.get_tensor("sound").tobytes()
    motion = MotionFile(
        landmarks=file.get_tensor("landmarks"),
        reference=file.get_tensor("reference"),
        fps=_field(name, fields, "fps", r"[1-9]\d{0,19}(/[1-9]\d{0,19})?", Fraction),
        size=_field(name, fields, "size", r"[1-9]\d{0,5}", int),
        loop=_field(name, fields, "loop", "true|false", "true".__eq__),
        face=_field(name, fields, "face", "|".join(get_args(Face)), str),
        origin=_field(name, fields, "origin", "|".join(get_args(Made)), str),
        name=_words(fields.get("name")),
        licence=_words(fields.get("licence")),
        sound=sound,
    )
    if not FPS_RANGE[0] <= motion.fps <= FPS_RANGE[1] or motion.size > MAX_SIDE:
        raise _damaged(name, "its rate or size is out of range")
    motion.check(name)
    return motion


def _field(name: str, fields: dict[str, str], key: str, pattern: str, convert: Callable):
    value = fields.get(key, "")
    if not re.fullmatch(pattern, value, re.ASCII):
        raise _damaged(name, f"its field '{key}' is {value[:40]!r}")
    return convert(value)


def _words(text: str | None) -> str | None:
    """A stranger's words, fit for one line: at most 100 characters; None where nothing is left."""
    return "".join(letter for letter in text or "" if letter.isprintable())[:100] or None


def _damaged(name: str, what: str) -> FsthError:
    return FsthError(f"{name} is no motion that can be used, for {what}: save the motion again.")
