"""What drives a person: a clip reduced to its face's landmarks, and the landmarks of a portrait that follows them."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Self

import numpy as np

from ..checks import check_number
from ..landmarks import FaceTracker, LandmarkDetector, adapt_shots, close_blinks, pick_reference, smooth_shots
from ..landmarks.expression import CROP_SIDE, RESTING_LANDMARKS, RESTING_POSE, Expression
from ..landmarks.keyframes import MAX_FRAMES, Keyframe, interpolate
from ..landmarks.looping import close_loop
from ..landmarks.motion import MotionMode
from ..landmarks.pose import MEAN_FACE
from ..landmarks.regions import REGIONS, Change, check_regions, keep_regions, mix_regions
from ..media import expression_files, motion_files
from ..media.containers import ClipFile
from ..media.frames import FPS_RANGE
from ..media.live_link import read_live_link
from ..media.motion_files import MotionFile, file_of, refuse_pickle
from ..media.mouth_cues import read_cues
from ..media.reading import Clip
from ..media.sound import read_sound
from ..models.cropping import CropBox, crop_box, to_crop, whole_frame
from ..models.errors import FsthError, NoFaceError
from ..models.landmark_drawing import rasterize_landmarks


CUES_HEAD = "motion:talk"  # whose head, brows and eyes go with a mouth that was made of cues
MEAN_LANDMARKS = RESTING_POSE.project(MEAN_FACE).astype(np.float32)


@dataclass
class DrivingMotion:
    """What drives, as the generator needs it: no pictures, only where the landmarks are.

    ```python
    motion = pipe.read_driving("nod.mp4")
    motion.save("nod.motion.safetensors", name="Nod", loop=True)
    pipe("portrait.jpg", DrivingMotion.load("nod.motion.safetensors").looped(seconds=6))
    ```

    Args:
        landmarks (`list`): for each frame 78 x 2 pixels of the crop, or `None` where the face is gone.
        fps (`float`): frames per second.
        box (`CropBox`): the crop, fixed for the whole clip, pixels of the clip.
        audio_from (`Path`, `bytes` or file object, *optional*): the file that holds the clip's sound.
        size (`int`, *optional*, defaults to 256): side of the crop that the landmarks are given in, pixels.
        reference (`np.ndarray` of shape `(78, 2)`, *optional*):
            The face that counts as unmoved; by default that of the frame most like the portrait.
        face (`str`, *optional*, defaults to `"driver"`):
            `"resting"` where the proportions are nobody's, but those of the resting face.
        origin (`str`, *optional*, defaults to `"clip"`):
            What it was made of: `"clip"`, `"keyframes"`, `"arkit"` or `"cues"`. Clips alone are smoothed.
        loop (`bool`, *optional*, defaults to `False`): Whether the first frame follows on the last.
        name, licence (`str`, *optional*): What its file says.
        shots (`tuple`): Of each shot the first frame and the one after its last; empty where all is one.
        file (`Path`, `bytes` or file object, *optional*): What it was read from, for the result's credentials.
    """

    landmarks: list[np.ndarray | None]
    fps: float
    box: CropBox
    audio_from: ClipFile | None = None
    size: int = CROP_SIDE
    reference: np.ndarray | None = field(default=None, repr=False)
    face: motion_files.Face = "driver"
    origin: motion_files.Made = "clip"
    loop: bool = False
    name: str | None = None
    licence: str | None = None
    shots: tuple[tuple[int, int], ...] = ()
    file: ClipFile | None = field(default=None, repr=False)

    @property
    def missing(self) -> list[int]:
        """The frames in which no face was found; the last pose is held there."""
        return [index for index, points in enumerate(self.landmarks) if points is None]

    @property
    def title(self) -> str:
        """What it is called where a result's origin is told: nobody's name."""
        return "driving clip" if self.face == "driver" and self.origin == "clip" else "motion"

    @property
    def seconds(self) -> float:
        return len(self.landmarks) / self.fps

    def drawings(self) -> Iterator[np.ndarray]:
        """The landmarks of each frame as a picture, size x size x 3 uint8; black where the face is gone."""
        nothing = np.zeros((self.size, self.size, 3), np.uint8)
        return (nothing if p is None else rasterize_landmarks(p, self.size) for p in self.landmarks)

    # Made up

    @classmethod
    def from_expressions(
        cls, expressions: Iterable[Expression], fps: float = 25.0, origin: str = "keyframes", loop: bool = False
    ) -> Self:
        """A motion of one expression for each frame."""
        landmarks = [expression.landmarks() for expression in expressions]
        return cls(
            landmarks,
            fps,
            CropBox(0, 0, CROP_SIDE),
            reference=RESTING_LANDMARKS,
            face="resting",
            origin=origin,
            loop=loop,
        )

    @classmethod
    def from_keyframes(cls, keyframes: Sequence[Keyframe], fps: float = 25.0, loop: bool = False) -> Self:
        """
        A motion that goes from expression to expression, eased in and out.

        ```python
        DrivingMotion.from_keyframes([(0, Expression()), (0.8, Expression(smile=1))], loop=True)
        ```

        Args:
            keyframes: Pairs of a time in seconds, which goes forward, and an [`Expression`].
            fps (`float`, *optional*, defaults to 25): Frames per second.
            loop (`bool`, *optional*, defaults to `False`):
                The motion can be repeated: it goes on from the last keyframe to the first.
        """
        check_number("fps", fps, *FPS_RANGE)
        return cls.from_expressions(interpolate(keyframes, fps, loop), fps, loop=loop)

    # Files

    @classmethod
    def load(cls, source: str | os.PathLike) -> Self:
        """
        Read a motion from a file; no clip, which [`~FsthPipeline.read_driving`] follows.

        Args:
            source: `"motion:nod"` and others that come with the package ([`list_motions`]); a `.motion.safetensors`
                of [`~DrivingMotion.save`]; `.expressions.json` (keyframes); a `.csv` of Live Link Face; or mouth
                cues: Rhubarb's `.json` and `.tsv`, or timed Oculus visemes. Cues move the mouth; head, brows and eyes
                go with it as they do when somebody talks.

        Raises:
            FsthError: It cannot be read, or holds no motion. Pickles are never opened.
        """
        if not isinstance(source, str | os.PathLike):
            raise FsthError(f"A motion is read from a path, not {type(source)}.")
        refuse_pickle(source)
        path = file_of(source)
        return replace(cls._read(path), file=path)

    @classmethod
    def _read(cls, path: Path) -> Self:
        lower = path.name.lower()
        if lower.endswith(expression_files.SUFFIX):
            keyframes, fps, loop = expression_files.read_expressions(path)
            return cls.from_keyframes(keyframes, fps, loop)
        if lower.endswith(".csv"):
            expressions, fps = read_live_link(path)
            return cls.from_expressions(expressions, fps, "arkit")
        if lower.endswith((".json", ".tsv")):
            mouth = cls.from_expressions(*read_cues(path), "cues")
            spoken = cls.load(CUES_HEAD).looped(mouth.seconds).with_regions(mouth, "mouth")
            return replace(spoken, name=None, licence=None, origin="cues")
        return cls._of_file(motion_files.read_motion_file(path))

    @classmethod
    def _of_file(cls, file: MotionFile) -> Self:
        return cls(
            [None if np.isnan(points).all() else points for points in file.landmarks],
            float(file.fps),
            CropBox(0, 0, file.size),
            file.sound,
            file.size,
            file.reference,
            file.face,
            file.origin,
            file.loop,
            file.name,
            file.licence,
        )

    def save(
        self,
        path: str | os.PathLike,
        *,
        name: str | None = None,
        licence: str | None = None,
        loop: bool = False,
        keep_face_shape: bool = False,
        sound: bool = False,
    ) -> None:
        """
        Write the motion, without any picture: about 16 kB a second.

        By default the driver's face is taken out: each frame's change is moved onto a resting face, so that nobody's
        proportions are kept. How somebody moves may still be recognized.

        Args:
            path (`str` or `Path`): Its name ends in `.motion.safetensors`.
            name, licence (`str`, *optional*): For those who read it; at most 100 characters.
            loop (`bool`, *optional*, defaults to `False`): Make it one that can be repeated without a jump.
            keep_face_shape (`bool`, *optional*, defaults to `False`):
                Keep the landmarks as they are, for absolute motion, and with them the shape of the driver's face.
            sound (`bool`, *optional*, defaults to `False`): Keep the sound. A voice is personal.

        Raises:
            FsthError: It cannot be written, or has no sound to keep.
        """
        motion = self if keep_face_shape else self.on_resting_face()
        if loop:
            motion = motion.looped()
        if sound and motion.audio_from is None:
            raise FsthError("There is no sound to save, or none that can be repeated: leave sound out.")
        rate = Fraction(self.fps).limit_denominator(1001)  # broadcast rates are n / 1001
        file = MotionFile(
            landmarks=np.stack([np.full((78, 2), np.nan) if p is None else p for p in motion.landmarks]).astype("<f4"),
            reference=np.asarray(motion.unmoved(), "<f4"),
            fps=rate if abs(float(rate) - self.fps) < 1e-9 * self.fps else Fraction(self.fps),
            size=motion.size,
            loop=motion.loop,
            face=motion.face,
            origin=motion.origin,
            name=name or self.name,
            licence=licence or self.licence,
            sound=read_sound(motion.audio_from, motion.seconds) if sound else None,
        )
        motion_files.write_motion_file(path, file)

    # Changed

    def first(self, count: int | None) -> Self:
        """Its first so many frames; all for None."""
        landmarks = self.landmarks[:count]
        shots = ((start, min(stop, len(landmarks))) for start, stop in self.shots if start < len(landmarks))
        loop = self.loop and len(landmarks) == len(self.landmarks)
        return replace(self, landmarks=landmarks, shots=tuple(shots), loop=loop)

    def unmoved(self) -> np.ndarray:
        """The face that counts as unmoved where there is no portrait: the reference, or the frame most at rest."""
        if self.reference is not None:
            return self.reference
        smooth = smooth_shots(self.landmarks, self.fps, shots=self.shots)
        return smooth[pick_reference(MEAN_LANDMARKS, smooth)]

    def on_resting_face(self) -> Self:
        """The same motion of the resting face: the driver's proportions are left out."""
        if self.face == "resting":
            return self
        reference = self.reference if self.shots else self.unmoved()  # each shot has its own
        moved = adapt_shots(RESTING_LANDMARKS, self.landmarks, self.shots, reference=reference, limited=False)
        seen = zip(self.landmarks, moved, strict=True)
        landmarks = [None if points is None else resting for points, resting in seen]
        return replace(
            self,
            landmarks=landmarks,
            reference=RESTING_LANDMARKS,
            face="resting",
            size=CROP_SIDE,
            box=CropBox(0, 0, CROP_SIDE),
        )

    def looped(self, seconds: float | None = None) -> Self:
        """
        A motion that can be repeated, or one repeated (or cut) to a length.

        Where it does not end as it begins, the two frames most like each other become its seam; where none are alike
        it runs forwards and back. What is repeated loses its sound.

        Args:
            seconds (`float`, *optional*): The length; by default one round.
        """
        count = None
        if seconds is not None:
            check_number("seconds", seconds, 0, MAX_FRAMES / self.fps)
            count = max(1, round(seconds * self.fps))
            if count <= len(self.landmarks):
                return replace(self.first(count), loop=False)
        once = self.landmarks if self.loop else close_loop(self.landmarks, self.fps)
        count = len(once) if count is None else count
        landmarks = [once[index % len(once)] for index in range(count)]
        audio_from = self.audio_from if self.loop and count == len(once) else None
        return replace(self, landmarks=landmarks, shots=(), loop=count % len(once) == 0, audio_from=audio_from)

    def with_regions(self, other: Self, *regions: str) -> Self:
        """
        This motion with some regions' movement taken from another one, both on the resting face.

        Args:
            other ([`DrivingMotion`]): One that can be repeated is; of any other the last frame is held.
            regions (`str`): Of "head", "brows", "eyes", "gaze" and "mouth".
        """
        regions = check_regions(regions)
        mine, others = self.on_resting_face(), other.on_resting_face()
        landmarks, last = [], None
        for index, points in enumerate(mine.landmarks):
            at = round(index * others.fps / mine.fps)
            at = at % len(others.landmarks) if others.loop else min(at, len(others.landmarks) - 1)
            if others.landmarks[at] is not None:
                last = Change.of(others.landmarks[at], others.reference)
            if points is not None:
                own = Change.of(points, mine.reference)
                points = mix_regions(RESTING_LANDMARKS, own, last, regions)
            landmarks.append(points)
        made = mine.origin if others.origin != "clip" else "clip"
        return replace(mine, landmarks=landmarks, reference=RESTING_LANDMARKS, origin=made)

    def resized(self, size: int) -> Self:
        """The same in pixels of a crop of another side."""
        if size == self.size:
            return self
        scale = np.float32(size / self.size)
        landmarks = [None if points is None else points * scale for points in self.landmarks]
        reference = None if self.reference is None else self.reference * scale
        return replace(self, landmarks=landmarks, reference=reference, size=size)


def check_drive(driving: object, motion: MotionMode, regions: Iterable[str] | str | None) -> tuple[str, ...]:
    """The regions that move; `FsthError` for what cannot go together."""
    regions = REGIONS if regions is None else check_regions(regions)
    if motion == "absolute" and regions != REGIONS:
        raise FsthError("regions are for relative motion: leave them out where motion is 'absolute'.")
    if motion == "absolute" and isinstance(driving, DrivingMotion) and driving.face == "resting":
        raise FsthError(
            "motion must be 'relative' here: this motion holds no face that could be taken as it is (one that was "
            "saved with keep_face_shape does)."
        )
    return regions


def read_motion(
    clip: Clip, detector: LandmarkDetector, face_index: int, crop: bool, size: int, progress: Callable[[], object]
) -> DrivingMotion:
    """
    Follow the face of a clip, holding one frame at a time.

    Args:
        clip, face_index, crop: as in [`~FsthPipeline.read_driving`].
        detector ([`LandmarkDetector`]): what finds the face.
        size (`int`): side of the crop that the landmarks are given in, pixels.
        progress (`Callable`): called after each frame.

    Raises:
        NoFaceError: No frame has a face.
    """
    box = None if crop else whole_frame(clip.width, clip.height, clip.name)
    faces, track = [], FaceTracker(detector, face_index)
    for face in map(track, clip):
        faces.append(None if face is None else face.points)
        progress()
    found = [points for points in faces if points is not None]
    if not found:
        raise NoFaceError(f"No face was found in {clip.name}; use a clip in which the face is seen clearly.")
    box = box or crop_box(np.stack(found))
    landmarks = [None if points is None else to_crop(points, box, size) for points in faces]
    return DrivingMotion(landmarks, clip.fps, box, clip.audio_from, size, shots=track.shots, file=clip.file)


def adapt_motion(
    portrait: np.ndarray,
    driving: DrivingMotion,
    motion: MotionMode,
    reference_frame: int | None,
    motion_strength: float,
    smoothing: float,
    regions: Iterable[str] | str | None = None,
) -> Iterator[np.ndarray]:
    """
    The landmarks of a portrait (78 x 2, pixels of its crop) frame by frame as the driver moves, each 78 x 2.

    The other arguments are those of [`~FsthPipeline.drive`].

    Raises:
        FsthError: The reference frame shows no face, or there is no such frame.
    """
    regions = check_drive(driving, motion, regions)
    landmarks = driving.landmarks
    if driving.origin == "clip":
        landmarks = smooth_shots(landmarks, driving.fps, smoothing, driving.shots)
        if motion == "relative":
            shots = driving.shots or [(0, len(landmarks))]
            closed = (close_blinks(landmarks[start:stop], driving.fps) for start, stop in shots)
            landmarks = list(chain.from_iterable(closed))
    return adapt_shots(
        portrait,
        landmarks,
        driving.shots,
        reference_frame,
        motion,
        motion_strength,
        reference=driving.reference,
        change=None if regions == REGIONS else partial(keep_regions, regions=regions),
    )
