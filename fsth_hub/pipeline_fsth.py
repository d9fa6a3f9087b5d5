"""Portraits and a driving clip in, a talking head out: embed a person once, then drive them with many clips."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image

from .caching import Cache
from .cropping import CropBox, crop_box, to_crop, whole_frame
from .errors import FsthError, NoFaceError
from .identity_mixin import FsthIdentityMixin
from .image_processing_fsth import FsthImageProcessor
from .landmarks import LandmarkDetector, MotionAdapter, get_detector, pick_reference, smooth_clip, track_clip
from .landmarks.motion import MotionMode
from .landmarks.smoothing import DEFAULT_SMOOTHING
from .modeling_fsth import FsthDiscriminator, FsthEmbedder, FsthGenerator
from .paste_back import paste_back as ready_canvas
from .person import DEFAULT_SIZE, MAX_SIZE, FsthPerson, FsthPersonMixin, Portrait
from .pretrained import FsthPretrainedMixin
from .provenance import OUTPUT_METADATA, Origin, add_mark, check_credentials, sign
from .video import Clip, open_clip, write_clip


NUM_KEPT_GENERATORS = 4  # ready to draw: the pipeline's own, and people's

Driving = str | Path | np.ndarray | Sequence[np.ndarray | Image.Image]


@dataclass
class DrivingMotion:
    """A driving clip as the generator needs it: no pictures, only where the landmarks are.

    Args:
        landmarks (`list`): for each frame 78 x 2 pixels of the crop, or `None` where the face is gone.
        fps (`float`): frames per second.
        box (`CropBox`): the crop, fixed for the whole clip, pixels of the clip.
        audio_path (`Path`, *optional*): the file that holds the clip's sound.
    """

    landmarks: list[np.ndarray | None]
    fps: float
    box: CropBox
    audio_path: Path | None = None

    @property
    def missing(self) -> list[int]:
        """The frames in which no face was found; the last pose is held there."""
        return [index for index, points in enumerate(self.landmarks) if points is None]


@dataclass
class FsthPipelineOutput(BaseOutput):
    """
    Args:
        frames (`list[PIL.Image.Image]`, *optional*): the clip; `None` if it was streamed to `output_path`.
        fps (`float`): frames per second.
        audio_path (`Path`, *optional*): the file that holds the driver's sound.
        report (`dict`): number of frames, crop boxes, seconds per stage, and the frames without a face.
        origin ([`Origin`], *optional*): what the Content Credentials of a saved clip tell; `None` for none.
        driving ([`DrivingMotion`], *optional*): what drove it.
    """

    frames: list[Image.Image] | None
    fps: float
    audio_path: Path | None
    report: dict = field(default_factory=dict)
    origin: Origin | None = None
    driving: DrivingMotion | None = None

    def save(self, path: str | Path) -> int:
        """Write the clip as mp4, with the driver's sound, or gif; returns the number of frames."""
        if self.frames is None:
            raise FsthError("The clip has already been written, to the `output_path` that was given.")
        finish = None if self.origin is None else partial(sign, origin=self.origin)
        return write_clip(path, self.frames, self.fps, self.audio_path, OUTPUT_METADATA, finish)


class FsthPipeline(FsthPersonMixin, FsthIdentityMixin, FsthPretrainedMixin, DiffusionPipeline):
    """
    Few-shot talking heads (arXiv 1905.08233): one or more portraits of a person, driven by somebody else's clip.

    ```python
    pipe = FsthPipeline.from_pretrained()
    pipe("portrait.jpg", "driver.mp4").save("result.mp4")
    ```

    Args:
        embedder ([`FsthEmbedder`]): portraits to AdaIN parameters.
        generator ([`FsthGenerator`]): landmark drawings to frames.
        image_processor ([`FsthImageProcessor`]): crops pictures and draws landmarks.
        discriminator ([`FsthDiscriminator`], *optional*): used by fine-tuning only.
        detector ([`LandmarkDetector`], *optional*):
            What finds landmarks, such as that of `get_detector(name)`; by default the one that works offline. It is
            not saved with the pipeline.
    """

    model_cpu_offload_seq = "embedder->generator"
    _optional_components = ["discriminator", "detector"]

    def __init__(
        self,
        embedder: FsthEmbedder,
        generator: FsthGenerator,
        image_processor: FsthImageProcessor,
        discriminator: FsthDiscriminator | None = None,
        detector: LandmarkDetector | None = None,
    ):
        super().__init__()
        self.register_modules(
            embedder=embedder, generator=generator, image_processor=image_processor, discriminator=discriminator
        )
        self.register_to_config(detector=(None, None))  # a component that is not saved
        self.detector = get_detector() if detector is None else detector
        self.size = generator.config.image_size
        self._generators = Cache(NUM_KEPT_GENERATORS)

    def read_driving(
        self,
        driving: Driving | Clip,
        face_index: int = 0,
        crop: bool = True,
        num_frames: int | None = None,
        fps: float | None = None,
    ) -> DrivingMotion:
        """
        Follow the face of a driving clip, holding one frame at a time.

        Args:
            driving: A video file, or its frames (N x H x W x 3 uint8 RGB, or a list of pictures).
            face_index (`int`, *optional*, defaults to 0): Which face, counted from the largest in the first frame.
            crop (`bool`, *optional*, defaults to `True`): `False` if the clip is a square head crop already.
            num_frames (`int`, *optional*): Read no more than so many frames.
            fps (`float`, *optional*): Frames per second; by default the clip's own.

        Raises:
            FsthError: The clip cannot be read; [`NoFaceError`] where no frame has a face.
        """
        clip = driving if isinstance(driving, Clip) else open_clip(driving, fps=fps, max_frames=num_frames)
        name = Path(driving).name if isinstance(driving, (str, Path)) else "the driving clip"
        box = None if crop else whole_frame(clip.width, clip.height, name)
        faces = []
        with self.progress_bar(total=clip.frame_count or 0) as progress:
            for face in track_clip(clip, self.detector, face_index):
                faces.append(None if face is None else face.points)
                progress.update()
        found = [points for points in faces if points is not None]
        if not found:
            raise NoFaceError(f"No face was found in {name}; use a clip in which the face is seen clearly.")
        box = box or crop_box(np.stack(found))
        landmarks = [None if points is None else to_crop(points, box, self.size) for points in faces]
        return DrivingMotion(landmarks, clip.fps, box, clip.audio_path)

    def drive(
        self,
        person: FsthPerson,
        driving: DrivingMotion,
        motion: MotionMode = "relative",
        reference_frame: int | None = None,
        motion_strength: float = 1.0,
        smoothing: float = DEFAULT_SMOOTHING,
        size: int | None = None,
    ) -> Iterator[np.ndarray]:
        """
        Draw the person frame by frame as the driver moves; each frame is size x size x 3 uint8 RGB, without a mark.

        Args:
            person ([`FsthPerson`]): of [`~FsthPipeline.embed`] or [`~FsthPipeline.fine_tune`].
            driving ([`DrivingMotion`]): of [`~FsthPipeline.read_driving`].
            motion (`str`, *optional*, defaults to `"relative"`):
                `"relative"` moves the portrait by the change of the driver from a reference frame; `"absolute"` takes
                over the driver's landmarks, and with them the shape of the driver's face (the paper's way).
            reference_frame (`int`, *optional*):
                The driver's frame that counts as the portrait's own pose; by default the one most like the portrait.
            motion_strength (`float`, *optional*, defaults to 1):
                How much of the driver's change to take over, 0 (the portrait stays still) to 2; relative motion only.
            smoothing (`float`, *optional*, defaults to 0.05):
                Seconds, 0 to 1, over which the detector's tremble is averaged out while the driver's head rests; 0
                takes the landmarks as they were found. What moves is smoothed less, and nothing lags.
            size (`int`, *optional*): as in [`~FsthPipeline.output_size`].
        """
        size = self.output_size(person, size)
        landmarks = smooth_clip(driving.landmarks, driving.fps, smoothing)
        if reference_frame is None:
            reference_frame = pick_reference(person.landmarks, landmarks)
        elif not 0 <= reference_frame < len(landmarks) or landmarks[reference_frame] is None:
            raise FsthError(f"Frame {reference_frame} of the driving clip does not exist or shows no face.")
        adapt = MotionAdapter(person.landmarks, landmarks[reference_frame], motion, motion_strength)
        generator = self.generator_for(person)
        try:
            for points in landmarks:
                yield self.draw_frame(generator, person, adapt(points), size)
        finally:
            self.maybe_free_model_hooks()

    def output_size(self, person: FsthPerson, size: int | None = None) -> int:
        """
        The side of a person's frames in pixels: what is asked for, or what the first portrait has, if that is less.

        Args:
            person ([`FsthPerson`]): of [`~FsthPipeline.embed`].
            size (`int`, *optional*):
                From the size that the networks see (256) to 1024, an even number; by default 512. Flow and residual
                are generated at 256, and the portrait's own pixels put where they lead.

        Raises:
            FsthError: Another size, or a model without source skips, which has no pixels of the portrait to take.
        """
        if not self.generator.config.source_skips:
            if size not in (None, self.size):
                raise FsthError(
                    f"This model draws frames of {self.size} x {self.size} pixels alone: it does not look at the "
                    "portrait's own pixels (source_skips). Leave the size out."
                )
            return self.size
        if size is not None and (not self.size <= size <= MAX_SIZE or size % 2):
            raise FsthError(f"The size must be an even number from {self.size} to {MAX_SIZE}, not {size}.")
        return min(size or max(DEFAULT_SIZE, self.size), person.max_size)

    @torch.no_grad()
    def draw_frame(
        self, generator: FsthGenerator, person: FsthPerson, points: np.ndarray, size: int | None = None
    ) -> np.ndarray:
        """
        Draw one frame, for callers with landmarks of their own.

        Args:
            generator ([`FsthGenerator`]): of [`~FsthPipeline.generator_for`].
            person ([`FsthPerson`]): of [`~FsthPipeline.embed`].
            points (`np.ndarray` of shape `(78, 2)`): pixels of a frame of 256 x 256, NaN where absent.
            size (`int`, *optional*): as in [`~FsthPipeline.output_size`].

        Returns:
            `np.ndarray` of shape `(size, size, 3)`: uint8 RGB.
        """
        size = self.output_size(person, size)
        device, dtype = self._device_of(generator), generator.dtype
        adain_parameters, sources = person.inputs(device, dtype)
        drawing = self.image_processor.draw(points).to(device, dtype, memory_format=torch.channels_last)
        # points stay in float32: half precision has no sub-pixels
        output = generator(drawing, adain_parameters, torch.from_numpy(points)[None].to(device), sources)
        if output.composition is None:
            return self.image_processor.postprocess(output.images)[0]
        return person.compositor(size)(output.composition)

    def __call__(
        self,
        portraits: Portrait | Sequence[Portrait] | FsthPerson,
        driving: Driving | Clip | DrivingMotion,
        *,
        motion: MotionMode = "relative",
        crop: bool = True,
        face_index: int | Sequence[int] = 0,
        driving_face_index: int = 0,
        num_frames: int | None = None,
        fps: float | None = None,
        reference_frame: int | None = None,
        motion_strength: float = 1.0,
        smoothing: float = DEFAULT_SMOOTHING,
        size: int | None = None,
        paste_back: bool = False,
        output_path: str | Path | None = None,
        mark: bool = True,
        credentials: bool = True,
        callback: Callable[[int, int, np.ndarray], None] | None = None,
        return_dict: bool = True,
    ) -> FsthPipelineOutput | tuple:
        """
        Animate a person.

        Args:
            portraits: Pictures of one person, or an [`FsthPerson`], such as an [`FsthIdentity`].
            driving: A clip or its frames, or a [`DrivingMotion`] of [`~FsthPipeline.read_driving`].
            motion, reference_frame, motion_strength, smoothing: as in [`~FsthPipeline.drive`].
            size (`int`, *optional*):
                Side of the frames in pixels, even, 256 to 1024, but never more than the first portrait has; by default
                512, or with `paste_back` as many as the head has in the photograph.
            paste_back (`bool`, *optional*, defaults to `False`):
                Put the moving head back into the first portrait, reduced to fit 1920 x 1080 or 1080 x 1920 pixels.
            crop, face_index, driving_face_index, num_frames, fps:
                as in [`~FsthPipeline.embed`] and [`~FsthPipeline.read_driving`].
            output_path (`str` or `Path`, *optional*):
                Stream the clip into this .mp4 or .gif instead of keeping its frames, whatever its length.
            mark (`bool`, *optional*, defaults to `True`): Draw "AI-generated" into a corner of every frame.
            credentials (`bool`, *optional*, defaults to `True`):
                Sign the written clip with Content Credentials ([`sign`]), where c2pa-python is installed.
            callback (`Callable`, *optional*): Called after each frame with its index, the number of frames, the frame.
            return_dict (`bool`, *optional*, defaults to `True`): an [`FsthPipelineOutput`] or a plain tuple.

        Raises:
            FsthError: An input cannot be used; the message says which, and what to do.
        """
        seconds, started = {}, time.perf_counter()

        def stage(name: str):
            nonlocal started
            seconds[name] = round(time.perf_counter() - started, 3)
            started = time.perf_counter()

        signed = credentials and check_credentials()
        person = portraits if isinstance(portraits, FsthPerson) else self.embed(portraits, face_index, crop)
        canvas = ready_canvas(portraits, person) if paste_back else None
        wanted = size
        if canvas is not None and size is None and self.generator.config.source_skips:
            wanted = int(np.clip(canvas.box.side, self.size, MAX_SIZE)) // 2 * 2
        side = self.output_size(person, wanted)
        stage("embed")
        driver_file = driving if isinstance(driving, (str, Path)) else getattr(driving, "audio_path", None)
        if not isinstance(driving, DrivingMotion):
            driving = self.read_driving(driving, driving_face_index, crop, num_frames, fps)
        stage("landmarks")
        origin = Origin.of(self.model_name, person, portraits, driver_file) if signed else None

        def frames_with_progress():
            with self.progress_bar(total=len(driving.landmarks)) as progress:
                drawn = self.drive(person, driving, motion, reference_frame, motion_strength, smoothing, side)
                for index, frame in enumerate(drawn if canvas is None else map(canvas, drawn)):
                    frame = add_mark(frame) if mark else frame
                    if callback is not None:
                        callback(index, len(driving.landmarks), frame)
                    yield frame
                    progress.update()

        frames = None
        if output_path is None:
            frames = [Image.fromarray(frame) for frame in frames_with_progress()]
        else:
            finish = partial(sign, origin=origin) if signed else None
            write_clip(output_path, frames_with_progress(), driving.fps, driving.audio_path, OUTPUT_METADATA, finish)
        stage("frames")
        report = {
            "frames": len(driving.landmarks),
            "fps": driving.fps,
            "size": side,
            "max_size": person.max_size,
            "portrait_boxes": [list(box) for box in person.boxes],
            "driving_box": list(driving.box),
            "frames_without_face": driving.missing,
            "sound": driving.audio_path is not None,
            "mark": mark,
            "credentials": signed,
            "seconds": seconds,
        }
        # `to_tuple` would leave out what is None, and the rest would move up
        output = (frames, driving.fps, driving.audio_path, report)
        return FsthPipelineOutput(*output, origin, driving) if return_dict else output


# Where `DiffusionPipeline.from_pretrained` looks for the class that a folder names.
diffusers.FsthPipeline = FsthPipeline
