"""A person as the pipeline knows them from one or more portraits, without fine-tuning."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .cropping import CropBox, whole_frame
from .errors import FsthError, NoFaceError
from .image_processing_fsth import load_image
from .modeling_fsth import FsthGenerator
from .source_skips import FsthSources


Portrait = str | Path | Image.Image | np.ndarray


@dataclass
class FsthPerson:
    """What a person's portraits come to, computed once.

    Args:
        adain_parameters (`torch.Tensor` of shape `(1, num_parameters)`): the generator's, for this person.
        sources (`FsthSources`, *optional*): the portraits' feature pyramids; with source skips only.
        landmarks (`np.ndarray` of shape `(78, 2)`): of the first portrait, pixels of its crop.
        boxes (`list[CropBox]`): where in each portrait the head was cut out, pixels of the portrait.
        generator ([`FsthGenerator`], *optional*): tuned to this person; by default the pipeline's own draws them.
    """

    adain_parameters: torch.Tensor
    sources: FsthSources | None
    landmarks: np.ndarray
    boxes: list[CropBox]
    generator: FsthGenerator | None = None

    def tuned_generator(self, generator: FsthGenerator) -> FsthGenerator:
        """What draws this person: their own generator if there is one, or the pipeline's, which is given."""
        return self.generator or generator


class FsthPersonMixin:
    """How a pipeline gets to know a person from portraits, at a glance."""

    def embed(
        self, portraits: Portrait | Sequence[Portrait], face_index: int | Sequence[int] = 0, crop: bool = True
    ) -> FsthPerson:
        """
        Learn a person from one or more portraits (section 3.4 without fine-tuning).

        Args:
            portraits: A picture or several of one person: paths, PIL images, or H x W x 3 uint8 RGB arrays.
            face_index (`int` or `list[int]`, *optional*, defaults to 0):
                Which face of a picture, counted from the largest; one for all pictures, or one for each.
            crop (`bool`, *optional*, defaults to `True`): `False` if the pictures are square head crops already.

        Raises:
            FsthError: A picture cannot be read or has too few faces; [`NoFaceError`] where it has none.
        """
        return self.embed_crops(*self.read_portraits(portraits, face_index, crop))

    def read_portraits(
        self, portraits: Portrait | Sequence[Portrait], face_index: int | Sequence[int] = 0, crop: bool = True
    ) -> tuple[list[np.ndarray], list[np.ndarray], list[CropBox]]:
        """Cut the heads out of portraits: the crops, their landmarks, and the squares, as `embed_crops` takes them."""
        single_array = isinstance(portraits, np.ndarray) and portraits.ndim < 4
        if single_array or isinstance(portraits, (str, Path, Image.Image)):
            portraits = [portraits]
        if len(portraits) == 0:
            raise FsthError("Give at least one portrait.")
        indices = [face_index] * len(portraits) if isinstance(face_index, int) else face_index
        if len(indices) != len(portraits):
            raise FsthError(f"There are {len(portraits)} portraits but face indices for {len(indices)}.")
        crops, landmarks, boxes = [], [], []
        for number, (portrait, face_index) in enumerate(zip(portraits, indices, strict=True), start=1):
            name = Path(portrait).name if isinstance(portrait, (str, Path)) else f"portrait {number}"
            image = load_image(portrait)
            faces = self.detector.detect(image)
            if not faces:
                raise NoFaceError(f"No face was found in {name}; use a picture in which the face is seen clearly.")
            if not 0 <= face_index < len(faces):
                raise FsthError(f"Face {face_index} was asked for, but {name} shows {len(faces)}, counted from 0.")
            points = faces[face_index].points
            box = None if crop else whole_frame(*image.shape[1::-1], name)
            for values, value in zip(
                (crops, landmarks, boxes), self.image_processor.crop(image, points, box), strict=True
            ):
                values.append(value)
        return crops, landmarks, boxes

    @torch.no_grad()
    def embed_crops(
        self, crops: Sequence[np.ndarray], landmarks: Sequence[np.ndarray], boxes: list[CropBox] | None = None
    ) -> FsthPerson:
        """
        The same for head crops whose landmarks are known.

        Args:
            crops: Each 256 x 256 x 3 uint8 RGB.
            landmarks: For each crop 78 x 2, pixels of the crop.
            boxes (`list[CropBox]`, *optional*): Where the crops come from.
        """
        images, drawings, points = self.prepare_portraits(crops, landmarks)
        embedding = self.embedder(self._to_dtype(images), self._to_dtype(drawings)).embedding
        sources = self.encode_sources(self.generator, images, drawings, points)
        return FsthPerson(self.generator.project(embedding), sources, points[0, 0].cpu().numpy(), boxes or [])

    def prepare_portraits(self, crops: Sequence[np.ndarray], landmarks: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """Head crops (pictures), their drawings and landmarks as the networks take them, 1 x K x ..., float32."""
        inputs = self.image_processor.preprocess(list(crops), list(landmarks))
        return [
            inputs["pixel_values"].to(self.device, memory_format=torch.channels_last)[None],  # 1 x K x 3 x 256 x 256
            inputs["landmark_images"].to(self.device, memory_format=torch.channels_last)[None],
            inputs["landmarks"].to(self.device)[None],  # 1 x K x 78 x 2
        ]

    @torch.no_grad()
    def encode_sources(self, generator: FsthGenerator, images, landmark_images, landmarks) -> FsthSources | None:
        """What a generator, this pipeline's or a tuned one, keeps of portraits; `None` without source skips."""
        if not generator.config.source_skips:
            return None
        return generator.encode_sources(self._to_dtype(images), self._to_dtype(landmark_images), landmarks)
