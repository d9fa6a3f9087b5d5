"""A person as the pipeline knows them from one or more portraits, without fine-tuning."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from .cropping import CropBox, crop_box, crop_image, to_crop, whole_frame
from .errors import FsthError, NoFaceError
from .facial_components import ComponentSources, FsthFacialComponents
from .image_processing_fsth import Picture, list_pictures, load_image, normalize
from .modeling_fsth import FsthGenerator
from .source_skips import FsthSources


if TYPE_CHECKING:
    from .media.compositing import Compositor

DEFAULT_SIZE, MAX_SIZE = 512, 1024  # of frames, pixels
MAX_COMPONENT_PORTRAITS = 64  # whose mouths and eyes the facial components choose from

Portrait = Picture


@dataclass
class FsthPerson:
    """What a person's portraits come to, computed once.

    Args:
        adain_parameters (`torch.Tensor` of shape `(1, num_parameters)`): the generator's, for this person.
        sources (`FsthSources`, *optional*): the portraits' feature pyramids; with source skips only.
        landmarks (`np.ndarray` of shape `(78, 2)`): of the first portrait, pixels of its crop.
        boxes (`list[CropBox]`): where in each portrait the head was cut out, pixels of the portrait.
        crops (`Sequence[np.ndarray]`): the head crops, each S x S x 3 uint8 RGB, as large as they were cut out.
        generator ([`FsthGenerator`], *optional*): tuned to this person; by default the pipeline's own draws them.
    """

    adain_parameters: torch.Tensor
    sources: FsthSources | None
    landmarks: np.ndarray
    boxes: list[CropBox]
    crops: Sequence[np.ndarray]
    generator: FsthGenerator | None = None

    def tuned_generator(self, generator: FsthGenerator) -> FsthGenerator:
        """What draws this person: their own generator if there is one, or the pipeline's, which is given."""
        return self.generator or generator

    @property
    def max_size(self) -> int:
        """The largest frames that the first portrait has the pixels for: their side in pixels, an even number."""
        return len(self.crops[0]) // 2 * 2

    def compositor(self, size: int) -> "Compositor":
        """What puts frames of this size together; the last one is kept."""
        from .media.compositing import Compositor  # here, so that a person can be looked at without OpenCV

        kept = self.__dict__.get("_compositor")
        if kept is None or kept.size != size:
            mattes = self.sources.mattes[0, :, 0].float().cpu().numpy()  # T x H x W
            kept = self.__dict__["_compositor"] = Compositor(self.crops, mattes, size)
        return kept

    def component_sources(self, components: FsthFacialComponents) -> ComponentSources:
        """What the facial components see of the portraits; kept."""
        kept = self.__dict__.get("_component_sources")
        if kept is None:
            spread = np.linspace(0, len(self.crops) - 1, min(len(self.crops), MAX_COMPONENT_PORTRAITS))
            numbers = spread.round().astype(int).tolist()
            side = self.sources.images.shape[-1]
            images = [normalize(torch.from_numpy(self.crops[n].copy()).permute(2, 0, 1)) for n in numbers]
            landmarks = [self.sources.landmarks[0, n].float().cpu() * (len(self.crops[n]) / side) for n in numbers]
            kept = self.__dict__["_component_sources"] = components.encode_portraits(images, landmarks)
        return kept


class FsthPersonMixin:
    """How a pipeline gets to know a person from portraits, at a glance."""

    def embed(
        self, portraits: Portrait | Sequence[Portrait], face_index: int | Sequence[int] = 0, crop: bool = True
    ) -> FsthPerson:
        """
        Learn a person from one or more portraits (section 3.4 without fine-tuning).

        Args:
            portraits: A picture or several of one person, each all that [`load_image`] takes.
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
        """
        Cut the heads out of portraits: the crops, their landmarks, and the squares, as `embed_crops` takes them. Crops
        are as large as the heads, but no smaller than what the networks see, and 1024 pixels at most.
        """
        portraits = list_pictures(portraits)
        if not portraits:
            raise FsthError("Give at least one portrait.")
        indices = [face_index] * len(portraits) if isinstance(face_index, int) else face_index
        if len(indices) != len(portraits):
            raise FsthError(f"There are {len(portraits)} portraits but face indices for {len(indices)}.")
        crops, landmarks, boxes = [], [], []
        for number, (portrait, face_index) in enumerate(zip(portraits, indices, strict=True), start=1):
            name = Path(portrait).name if isinstance(portrait, str | os.PathLike) else f"portrait {number}"
            image = load_image(portrait, f"Portrait {number}")
            faces = self.detector.detect(image)
            if not faces:
                raise NoFaceError(f"No face was found in {name}; use a picture in which the face is seen clearly.")
            if not 0 <= face_index < len(faces):
                raise FsthError(f"Face {face_index} was asked for, but {name} shows {len(faces)}, counted from 0.")
            points = faces[face_index].points
            box = crop_box(points) if crop else whole_frame(*image.shape[1::-1], name)
            side = min(max(round(box.side), self.size), MAX_SIZE)
            crops.append(crop_image(image, box, side))
            landmarks.append(to_crop(points, box, side))
            boxes.append(box)
        return crops, landmarks, boxes

    @torch.no_grad()
    def embed_crops(
        self, crops: Sequence[np.ndarray], landmarks: Sequence[np.ndarray], boxes: list[CropBox] | None = None
    ) -> FsthPerson:
        """
        The same for head crops whose landmarks are known.

        Args:
            crops: Each S x S x 3 uint8 RGB of any size S.
            landmarks: For each crop 78 x 2, pixels of the crop.
            boxes (`list[CropBox]`, *optional*): Where the crops come from.
        """
        images, drawings, points, mattes = self.prepare_portraits(crops, landmarks)
        embedding = self.embedder(self._to_dtype(images), self._to_dtype(drawings)).embedding
        return FsthPerson(
            adain_parameters=self.generator.project(embedding),
            sources=self.encode_sources(self.generator, images, drawings, points, mattes),
            landmarks=points[0, 0].cpu().numpy(),
            boxes=boxes or [],
            crops=crops,
        )

    def prepare_portraits(self, crops: Sequence[np.ndarray], landmarks: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """Head crops (pictures), their drawings, landmarks and mattes as networks take them, 1 x K x ..., float32."""
        from .media.matting import cut_out

        mattes = np.stack([cut_out(*pair) for pair in zip(crops, landmarks, strict=True)])[:, None]  # K x 1 x h x w
        mattes = F.interpolate(torch.from_numpy(mattes), (self.size, self.size), mode="bilinear", antialias=True)
        inputs = self.image_processor.preprocess(list(crops), list(landmarks), return_landmarks=True)
        return [
            inputs["images"][0].to(self.device, memory_format=torch.channels_last)[None],  # 1 x K x 3 x 256 x 256
            inputs["landmark_images"][0].to(self.device, memory_format=torch.channels_last)[None],
            inputs["landmarks"].to(self.device),  # 1 x K x 78 x 2
            mattes.to(self.device)[None],  # 1 x K x 1 x 256 x 256
        ]

    @torch.no_grad()
    def encode_sources(
        self, generator: FsthGenerator, images, landmark_images, landmarks, mattes
    ) -> FsthSources | None:
        """What a generator, this pipeline's or a tuned one, keeps of portraits; `None` without source skips."""
        if not generator.config.source_skips:
            return None
        pictures = (self._to_dtype(pictures) for pictures in (images, landmark_images))
        return generator.encode_sources(*pictures, landmarks, self._to_dtype(mattes))
