"""Several people of one photograph, driven by one clip and put back into it."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..landmarks import LandmarkDetector, set_upright
from ..landmarks.group_tracking import Faces, GroupTracker, large_faces
from ..media.containers import ClipFile
from ..media.motion_files import is_motion
from ..media.paste_back import GroupPasteBack
from ..media.reading import Clip, open_clip
from ..media.sound import read_sound
from ..models.cropping import CropBox, crop_box, crop_image, to_crop
from ..models.errors import FsthError, NoFaceError
from ..models.image_loading import Picture, list_pictures, load_image
from ..models.source_skips import FsthSources
from ..provenance.credentials import Origin, check_credentials, printable
from .delivery import deliver
from .driving import DrivingMotion
from .engines import pick_engine
from .identity import FsthIdentity
from .names import MAX_SIZE
from .person import FsthPerson
from .pipeline_output import FsthPipelineOutput, FsthReport
from .portraits import choose_face


if TYPE_CHECKING:
    from .pipeline_fsth import FsthPipeline


def check_faces(name: str, faces: object) -> Faces:
    """ "all", or the numbers of faces as a list; `FsthError` for anything else."""
    if isinstance(faces, str) and faces == "all":
        return faces
    numbers = [faces] if isinstance(faces, int) else list(faces) if isinstance(faces, list | tuple) else None
    if not numbers or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in numbers):
        raise FsthError(f'{name} must be "all" or numbers of faces, such as [0, 2], not {faces!r}.')
    return numbers


def check_people(people: object) -> list[FsthPerson | None]:
    """A list of persons, and `None` between them; `FsthError` for anything else."""
    listed = list(people) if isinstance(people, list | tuple) else [people]
    for person in listed:
        if isinstance(person, FsthIdentity) and not isinstance(person, FsthPerson):
            raise FsthError(f"The identity '{person.name}' must be made ready first: pipe.bind(identity).")
        if not isinstance(person, FsthPerson | None):
            raise FsthError(f"people must be persons, of pipe.embed or pipe.load_identity, not {type(person)}.")
    return listed


def animate_group(
    pipe: "FsthPipeline",
    photograph: Picture,
    driving,
    faces: Faces,
    driving_faces: Faces,
    people: Sequence[FsthPerson | None],
    *,
    num_frames: int | None,
    fps: float | None,
    size: int | None,
    sound: ClipFile | None,
    watermark: bool,
    credentials: bool,
    output_path: str | os.PathLike | None,
    output_type: str,
    callback_on_frame_end: Callable | None,
    **motion,
) -> FsthPipelineOutput:
    """As [`FsthPipeline.animate_group`], whose arguments these are, checked; `motion` is for `drive`."""
    driving = DrivingMotion.load(driving) if is_motion(driving) else driving
    if isinstance(driving, DrivingMotion) and driving_faces != "all":
        raise FsthError("driving_faces are of a clip, and not of motion that was read: leave them out.")
    voice = None if sound is None else read_sound(sound)
    signed = credentials and check_credentials()
    pictures = list_pictures(photograph)
    if len(pictures) != 1:
        raise FsthError(f"Give one photograph of the group, not {len(pictures)}.")
    seconds, times = {}, [time.perf_counter()]

    def stage(name: str) -> None:
        times.append(time.perf_counter())
        seconds[name] = round(times[-1] - times[-2], 3)

    known, (people, canvas) = people, _embed(pipe, pictures[0], faces, people)
    sizes = [
        pipe.output_size(person, size or _head_size(pipe, head.box.side))
        for person, head in zip(people, canvas.heads, strict=True)
    ]
    stage("embed")
    if isinstance(driving, DrivingMotion):
        motions = [driving.first(num_frames).resized(pipe.size)]
    else:
        clip = open_clip(driving, fps=fps, max_frames=num_frames)
        with pipe.progress_bar(total=clip.frame_count or 0) as progress:
            motions = read_motions(clip, pipe.detector, driving_faces, pipe.size, progress.update)
    first, total = motions[0], len(motions[0].landmarks)
    audio_from = first.audio_from if voice is None else voice
    stage("landmarks")
    moving = [
        pipe.drive(person, motions[number % len(motions)], size=sizes[number], **motion)
        for number, person in enumerate(people)
    ]
    origin = Origin.of(pipe.model_name, people[0], pictures, (first.title, first.file)) if signed else None
    if signed:
        names = [printable(person.name) or "unnamed" for person in known if isinstance(person, FsthIdentity)]
        origin = replace(origin, identity=", ".join(names) or None)
    frames = deliver(
        pipe,
        map(canvas, zip(*moving, strict=True)),
        total,
        first.fps,
        audio_from,
        origin,
        watermark=watermark,
        callback=callback_on_frame_end,
        output_path=output_path,
        output_type=output_type,
    )
    stage("frames")
    report = FsthReport(
        num_frames=total,
        fps=first.fps,
        size=max(sizes),
        max_size=max(person.max_size for person in people),
        portrait_boxes=tuple(box for person in people for box in person.boxes),
        driving_box=first.box,
        frames_without_face=tuple(sorted({frame for one in motions for frame in one.missing})),
        shots=first.shots,
        sound=audio_from is not None,
        watermark=watermark,
        credentials=signed,
        engine=pick_engine(pipe.engine, pipe.generator),
        seconds=seconds,
    )
    return FsthPipelineOutput(frames, first.fps, audio_from, report, origin, first)


def _head_size(pipe: "FsthPipeline", side: float) -> int | None:
    """As many pixels as a head of such a side has in the photograph; None where the model generates one size alone."""
    return int(np.clip(side, pipe.size, MAX_SIZE)) // 2 * 2 if pipe.generator.config.source_skips else None


def _embed(
    pipe: "FsthPipeline", photograph: Picture, faces: Faces, known: Sequence[FsthPerson | None]
) -> tuple[list[FsthPerson], GroupPasteBack]:
    """The people of a photograph with these faces, as far as they are not known, and what puts them back into it."""
    name = Path(photograph).name if isinstance(photograph, str | os.PathLike) else "the photograph"
    image, found, _ = set_upright(load_image(photograph, "The photograph"), pipe.detector)
    numbers = (large_faces(found) if found else [0]) if faces == "all" else faces
    if len(set(numbers)) < len(numbers):
        raise FsthError(f"Each face can be named once, and not as in {', '.join(map(str, numbers))}.")
    if len(known) > len(numbers):
        raise FsthError(f"There are {len(known)} people for {len(numbers)} faces of {name}.")
    people = []
    for number, person in zip_longest(numbers, known):
        points = choose_face(found, number, name).points
        box = crop_box(points)
        side = min(max(round(box.side), pipe.size), MAX_SIZE)
        crop, landmarks = crop_image(image, box, side), to_crop(points, box, side)
        people.append(
            pipe.embed_crops([crop], [landmarks], [box]) if person is None else _in(pipe, person, crop, landmarks, box)
        )
    return people, GroupPasteBack(image, [person.boxes[0] for person in people])


def _in(pipe: "FsthPipeline", person: FsthPerson, crop: np.ndarray, landmarks: np.ndarray, box: CropBox) -> FsthPerson:
    """A person as a photograph shows them: it is the first of their portraits, from which motion is counted.

    Args:
        crop, landmarks, box: Their head in the photograph, S x S x 3 uint8; 78 x 2, pixels of it; where it was cut.
    """
    inputs = pipe.prepare_portraits([crop], [landmarks])
    seen = pipe.encode_sources(pipe.generator_for(person), *inputs)
    return replace(
        person,
        sources=None if seen is None else _joined(seen, person.sources),
        landmarks=inputs[2][0, 0].cpu().numpy(),
        boxes=[box],
        crops=[crop, *person.crops],
    )


def _joined(first: FsthSources, others: FsthSources) -> FsthSources:
    """The sources of more portraits of one person, those of the first in front."""

    def join(one: torch.Tensor, more: torch.Tensor) -> torch.Tensor:
        return torch.cat([one, more.to(one)], dim=1)  # batch x portraits x ...

    joined = {name: join(value, others[name]) for name, value in first.items() if name != "features"}
    return FsthSources(**joined, features=tuple(map(join, first.features, others.features)))


def read_motions(
    clip: Clip, detector: LandmarkDetector, faces: Faces, size: int, progress: Callable[[], object]
) -> list[DrivingMotion]:
    """
    Follow several faces of a clip in one pass, holding one frame at a time.

    Args:
        clip, faces: as in [`~FsthPipeline.animate_group`].
        detector ([`LandmarkDetector`]): what finds the faces.
        size (`int`): side of the crops that the landmarks are given in, pixels.
        progress (`Callable`): called after each frame.

    Raises:
        NoFaceError: No frame has a face, or the first that has one has too few.
    """
    track, rows = GroupTracker(detector, faces), []
    for found in map(track, clip):
        rows += [] if found is None else [found]
        progress()
    if not rows:
        raise NoFaceError(f"No face was found in {clip.name}; use a clip in which the face is seen clearly.")
    motions = []
    for one, tracker in zip(zip(*rows, strict=True), track.trackers, strict=True):
        seen = [*[None] * track.waited, *(None if face is None else face.points for face in one)]
        box = crop_box(np.stack([points for points in seen if points is not None]))
        landmarks = [None if points is None else to_crop(points, box, size) for points in seen]
        seen_by = {"shots": tracker.shots, "file": clip.file}
        motions.append(DrivingMotion(landmarks, clip.fps, box, clip.audio_from, size, **seen_by))
    return motions
