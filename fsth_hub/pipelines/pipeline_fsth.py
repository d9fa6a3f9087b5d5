"""Portraits and a driving clip in, a talking head out: embed a person once, then drive them with many clips."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from ..checks import check_choice, check_flags, check_number
from ..landmarks import LandmarkDetector, MotionAdapter, get_detector, pick_reference, smooth_clip, track_clip
from ..landmarks.motion import MotionMode, check_motion
from ..landmarks.smoothing import DEFAULT_SMOOTHING, check_smoothing
from ..media.containers import ClipFile
from ..media.frames import FPS_RANGE, Frames
from ..media.paste_back import PasteBack
from ..media.reading import Clip, open_clip
from ..media.writing import check_output_path, write_clip
from ..models.cropping import crop_box, to_crop, whole_frame
from ..models.errors import FsthError, NoFaceError
from ..models.facial_components import FsthComponentsOutput, FsthFacialComponents
from ..models.image_processing_fsth import FsthImageProcessor, list_pictures, normalize
from ..models.modeling_fsth import FsthDiscriminator, FsthEmbedder, FsthGenerator
from ..provenance.credentials import OUTPUT_METADATA, Origin, check_credentials, sign
from ..provenance.watermark import add_watermark as add_mark
from .caching import Cache
from .identity_mixin import FsthIdentityMixin
from .person import DEFAULT_SIZE, MAX_SIZE, FsthPerson, FsthPersonMixin, Portrait
from .pipeline_output import OUTPUT_TYPES, DrivingMotion, FsthPipelineOutput, FsthReport, as_output_type
from .pretrained import FsthPretrainedMixin


NUM_KEPT_GENERATORS = 4  # ready to draw: the pipeline's own, and people's

Driving = ClipFile | Frames | Clip


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
        facial_components ([`FsthFacialComponents`], *optional*): mouths and eyes; with source skips only.
        detector ([`LandmarkDetector`], *optional*):
            What finds landmarks, such as that of `get_detector(name)`; by default the one that works offline. It is
            not saved with the pipeline.
    """

    model_cpu_offload_seq = "embedder->generator->facial_components"
    _optional_components = ["discriminator", "facial_components", "detector"]

    def __init__(
        self,
        embedder: FsthEmbedder,
        generator: FsthGenerator,
        image_processor: FsthImageProcessor,
        discriminator: FsthDiscriminator | None = None,
        facial_components: FsthFacialComponents | None = None,
        detector: LandmarkDetector | None = None,
    ):
        super().__init__()
        self.register_modules(
            embedder=embedder,
            generator=generator,
            image_processor=image_processor,
            discriminator=discriminator,
            facial_components=facial_components,
        )
        self.register_to_config(detector=(None, None))  # a component that is not saved
        self.detector = get_detector() if detector is None else detector
        self.size = generator.config.image_size
        self._generators = Cache(NUM_KEPT_GENERATORS)

    def read_driving(
        self,
        driving: Driving,
        face_index: int = 0,
        crop: bool = True,
        num_frames: int | None = None,
        fps: float | None = None,
    ) -> DrivingMotion:
        """
        Follow the face of a driving clip, holding one frame at a time.

        Args:
            driving: A video (path, bytes, file object), frames (array N x H x W x 3, tensor N x C x H x W, a list or
                any other iterable of pictures) or a clip, as [`open_clip`] takes them.
            face_index (`int`, *optional*, defaults to 0): Which face, counted from the largest in the first frame.
            crop (`bool`, *optional*, defaults to `True`): `False` if the clip is a square head crop already.
            num_frames (`int`, *optional*): Read no more than so many frames.
            fps (`float`, *optional*):
                Frames per second to take of a file or clip; by default its own, or a whole part of it that is not
                above 32. For frames, the rate at which they were taken, by default 25.

        Raises:
            FsthError: The clip cannot be read; [`NoFaceError`] where no frame has a face.
        """
        check_number("face_index", face_index, 0, whole=True)
        clip = open_clip(driving, fps=fps, max_frames=num_frames)
        box = None if crop else whole_frame(clip.width, clip.height, clip.name)
        faces = []
        with self.progress_bar(total=clip.frame_count or 0) as progress:
            for face in track_clip(clip, self.detector, face_index):
                faces.append(None if face is None else face.points)
                progress.update()
        found = [points for points in faces if points is not None]
        if not found:
            raise NoFaceError(f"No face was found in {clip.name}; use a clip in which the face is seen clearly.")
        box = box or crop_box(np.stack(found))
        landmarks = [None if points is None else to_crop(points, box, self.size) for points in faces]
        return DrivingMotion(landmarks, clip.fps, box, clip.audio_from)

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
            raise FsthError(f"reference_frame={reference_frame} is no frame of the driving clip, or shows no face.")
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
        self.check_size(size)
        if not self.generator.config.source_skips:
            return self.size
        return min(size or max(DEFAULT_SIZE, self.size), person.max_size)

    def check_size(self, size: int | None) -> None:
        """Refuse (`FsthError`) a size of frames that this model does not draw."""
        if size is None:
            return
        check_number("size", size, self.size, MAX_SIZE, even=True)
        if not self.generator.config.source_skips and size != self.size:
            raise FsthError(
                f"size must be left out: this model draws frames of {self.size} x {self.size} pixels alone, since it "
                "does not look at the portrait's own pixels (source_skips)."
            )

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
        retouch = None
        if self.facial_components is not None:
            landmarks = torch.from_numpy(points * np.float32(size / self.size))[None]
            retouch = partial(self._retouch, person=person, landmarks=landmarks)
        return person.compositor(size)(output.composition, retouch)

    def _retouch(self, frame: np.ndarray, person: FsthPerson, landmarks: torch.Tensor) -> FsthComponentsOutput:
        """What the facial components add to a frame (size x size x 3 float32, 0 to 255) at 1 x 78 x 2 landmarks."""
        device = self._device_of(self.facial_components)
        images = normalize(torch.from_numpy(frame).permute(2, 0, 1)[None].to(device))
        sources = person.component_sources(self.facial_components)
        return self.facial_components(images, landmarks.to(device), sources)

    def check_inputs(
        self,
        portraits,
        driving,
        motion,
        face_index,
        driving_face_index,
        num_frames,
        fps,
        reference_frame,
        motion_strength,
        smoothing,
        size,
        paste_back,
        output_path,
        output_type,
        callback_on_frame_end,
        **flags,
    ) -> None:
        """Refuse (`FsthError`) arguments of [`~FsthPipeline.__call__`] that cannot work, before any work is done."""
        check_motion(motion, motion_strength)
        check_smoothing(smoothing)
        check_flags(paste_back=paste_back, **flags)
        check_choice("output_type", output_type, OUTPUT_TYPES)
        for index in [face_index] if np.ndim(face_index) == 0 else face_index:
            check_number("face_index", index, 0, whole=True)
        check_number("driving_face_index", driving_face_index, 0, whole=True)
        if num_frames is not None:
            check_number("num_frames", num_frames, 1, whole=True)
        if fps is not None:
            check_number("fps", fps, *FPS_RANGE)
        if reference_frame is not None:
            check_number("reference_frame", reference_frame, 0, whole=True)
        self.check_size(size)
        if isinstance(portraits, FsthPerson) and face_index != 0:
            raise FsthError("face_index chooses a face of portraits: leave it out where a person is given.")
        if isinstance(portraits, FsthPerson) and paste_back:
            raise FsthError(
                "paste_back needs the photograph, which a person or identity does not hold: give the portraits, or "
                "put the frames of `drive` into it with `PasteBack(photograph, box)`."
            )
        if isinstance(driving, DrivingMotion) and (fps is not None or driving_face_index != 0):
            raise FsthError(
                "fps and driving_face_index are for clips, not for motion that was read: give them to `read_driving`."
            )
        if output_path is not None:
            check_output_path(output_path)
            if output_type != "pil":
                raise FsthError("output_type is for frames that are returned: leave it out, or output_path.")
        if callback_on_frame_end is not None and not callable(callback_on_frame_end):
            raise FsthError(f"callback_on_frame_end must be a function, not {type(callback_on_frame_end)}.")

    def __call__(
        self,
        portraits: Portrait | Sequence[Portrait] | FsthPerson,
        driving: Driving | DrivingMotion,
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
        output_path: str | os.PathLike | None = None,
        output_type: Literal["pil", "np", "pt"] = "pil",
        mark: bool = True,
        credentials: bool = True,
        callback_on_frame_end: Callable[["FsthPipeline", int, int, np.ndarray], None] | None = None,
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
                as in [`~FsthPipeline.embed`] and [`~FsthPipeline.read_driving`]; of a [`DrivingMotion`] the first
                `num_frames` frames are taken, at its own rate.
            output_path (`str` or `Path`, *optional*):
                Stream the clip into this .mp4 or .gif instead of keeping its frames, whatever its length.
            output_type (`str`, *optional*, defaults to `"pil"`):
                The kind of frames that are returned: `"pil"`, `"np"` or `"pt"`; see [`FsthPipelineOutput`].
            mark (`bool`, *optional*, defaults to `True`): Draw "AI-generated" into a corner of every frame.
            credentials (`bool`, *optional*, defaults to `True`):
                Sign the written clip with Content Credentials ([`sign`]), where c2pa-python is installed.
            callback_on_frame_end (`Callable`, *optional*):
                Called at the end of each frame with this pipeline, the frame's index, the number of frames, and the
                frame itself (H x W x 3 uint8 RGB, as it will be returned or written). What it raises ends the call
                and is passed on; no file is left behind.
            return_dict (`bool`, *optional*, defaults to `True`):
                An [`FsthPipelineOutput`], or else a tuple of all its fields in order.

        Raises:
            FsthError: An input cannot be used; the message says which, and what to do.
        """
        # 1. Check inputs: what can be known to fail fails before any work
        self.check_inputs(
            portraits,
            driving,
            motion,
            face_index,
            driving_face_index,
            num_frames,
            fps,
            reference_frame,
            motion_strength,
            smoothing,
            size,
            paste_back,
            output_path,
            output_type,
            callback_on_frame_end,
            crop=crop,
            mark=mark,
            credentials=credentials,
            return_dict=return_dict,
        )
        signed = credentials and check_credentials()
        pictures = None if isinstance(portraits, FsthPerson) else list_pictures(portraits)
        if isinstance(driving, DrivingMotion):
            clip, driving_file = None, driving.audio_from
        else:
            clip = open_clip(driving, fps=fps, max_frames=num_frames)
            driving_file = clip.file
        seconds, started = {}, time.perf_counter()

        def stage(name: str):
            nonlocal started
            seconds[name] = round(time.perf_counter() - started, 3)
            started = time.perf_counter()

        # 2. Embed the person
        person = portraits if pictures is None else self.embed(pictures, face_index, crop)
        canvas = PasteBack(pictures[0], person.boxes[0]) if paste_back else None
        if canvas is not None and size is None and self.generator.config.source_skips:
            size = int(np.clip(canvas.box.side, self.size, MAX_SIZE)) // 2 * 2
        size = self.output_size(person, size)
        stage("embed")

        # 3. Follow the driver's face
        if clip is None:
            driving_motion = replace(driving, landmarks=driving.landmarks[:num_frames])
        else:
            driving_motion = self.read_driving(clip, driving_face_index, crop)
        total = len(driving_motion.landmarks)
        stage("landmarks")

        # 4. Generate frame by frame
        def generate_frames():
            drawn = self.drive(person, driving_motion, motion, reference_frame, motion_strength, smoothing, size)
            with self.progress_bar(total=total) as progress:
                for index, frame in enumerate(drawn if canvas is None else map(canvas, drawn)):
                    frame = add_mark(frame) if mark else frame
                    if callback_on_frame_end is not None:
                        callback_on_frame_end(self, index, total, frame)
                    yield frame
                    progress.update()

        origin = Origin.of(self.model_name, person, pictures, driving_file) if signed else None
        fps, audio_from = driving_motion.fps, driving_motion.audio_from
        if output_path is None:
            frames = as_output_type([Image.fromarray(frame) for frame in generate_frames()], output_type)
        else:
            frames, finish = None, partial(sign, origin=origin) if signed else None
            write_clip(output_path, generate_frames(), fps, audio_from, OUTPUT_METADATA, finish)
        stage("frames")

        # 5. Say how it came about
        report = FsthReport(
            num_frames=total,
            fps=fps,
            size=size,
            max_size=person.max_size,
            portrait_boxes=tuple(person.boxes),
            driving_box=driving_motion.box,
            frames_without_face=tuple(driving_motion.missing),
            sound=audio_from is not None,
            mark=mark,
            credentials=signed,
            seconds=seconds,
        )
        output = FsthPipelineOutput(frames, fps, audio_from, report, origin, driving_motion)
        return output if return_dict else output.to_tuple()


# Where `DiffusionPipeline.from_pretrained` looks for the class that a folder names.
diffusers.FsthPipeline = FsthPipeline
