"""A person as the pipeline knows them from one or more portraits, without fine-tuning."""

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from ..models.cropping import CropBox, crop_box, crop_image, to_crop, whole_frame
from ..models.errors import FsthError, NoFaceError
from ..models.facial_components import ComponentSources, FsthFacialComponents
from ..models.image_processing_fsth import Picture, list_pictures, load_image, normalize
from ..models.modeling_fsth import FsthGenerator, FsthPreTrainedModel, is_hooked
from ..models.source_skips import FsthSources
from .caching import Cache, weights_state


if TYPE_CHECKING:
    from ..media.compositing import Compositor

DEFAULT_SIZE, MAX_SIZE = 512, 1024  # of frames, pixels
MAX_COMPONENT_PORTRAITS = 64  # whose mouths and eyes the facial components choose from

Portrait = Picture


def for_inference(network: FsthPreTrainedModel) -> FsthPreTrainedModel:
    """A network itself where it is ready, or else a copy: in training mode every pass would change it, and in another
    memory layout it would compute other last bits. One that is offloaded has to be used itself."""
    if is_hooked(network):
        return network.eval()
    maps = (parameter for parameter in network.parameters() if parameter.dim() == 4)
    if not network.training and all(map_.is_contiguous(memory_format=torch.channels_last) for map_ in maps):
        return network
    return network.fold_spectral_norm().to(memory_format=torch.channels_last)


@dataclass
class FsthPerson:
    """What a person's portraits come to, computed once. It need not lie where the pipeline does.

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
    _compositors: Cache = field(init=False, repr=False, compare=False, default_factory=Cache)
    _component_sources: Cache = field(init=False, repr=False, compare=False, default_factory=Cache)
    _converted: Cache = field(init=False, repr=False, compare=False, default_factory=Cache)

    @property
    def own_weights(self) -> tuple:
        """What the person's own generator is made of; empty where the pipeline's draws them."""
        return () if self.generator is None else (self.generator,)

    def tuned_generator(self, generator: FsthGenerator) -> FsthGenerator:
        """What draws this person: their own generator if there is one, or the pipeline's, which is given."""
        return self.generator or generator

    @property
    def max_size(self) -> int:
        """The largest frames that the first portrait has the pixels for: their side in pixels, an even number."""
        return len(self.crops[0]) // 2 * 2

    def inputs(self, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, FsthSources | None]:
        """The AdaIN parameters and the sources where and as a generator takes them; those last asked for are kept."""
        parameters, sources = self.adain_parameters, self.sources

        def convert():
            if sources is None:
                return parameters.to(device, dtype), None
            # what is measured in float32 stays so: half precision has no sub-pixels
            exact = {name: getattr(sources, name).to(device) for name in ("landmarks", "cavities", "light")}
            return parameters.to(device, dtype), replace(sources.map(lambda tensor: tensor.to(device, dtype)), **exact)

        return self._converted.get(self, (device, dtype, weights_state(parameters, sources)), convert)

    def compositor(self, size: int) -> "Compositor":
        """What puts frames of this size together; the last one is kept."""
        from ..media.compositing import Compositor  # here, so that a person can be looked at without OpenCV

        def make():
            return Compositor(self.crops, self.sources.mattes[0, :, 0].float().cpu().numpy(), size)  # T x H x W

        return self._compositors.get(self, (size, weights_state(self.sources.mattes)), make)

    def component_sources(self, components: FsthFacialComponents) -> ComponentSources:
        """What the facial components see of the portraits; kept."""

        def make():
            spread = np.linspace(0, len(self.crops) - 1, min(len(self.crops), MAX_COMPONENT_PORTRAITS))
            numbers = spread.round().astype(int).tolist()
            side = self.sources.images.shape[-1]
            images = [normalize(torch.from_numpy(self.crops[n].copy()).permute(2, 0, 1)) for n in numbers]
            landmarks = [self.sources.landmarks[0, n].float().cpu() * (len(self.crops[n]) / side) for n in numbers]
            return components.encode_portraits(images, landmarks)

        sizes = components.config.mouth_size, components.config.eye_size
        return self._component_sources.get(self, (sizes, weights_state(self.sources.landmarks)), make)


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
        embedder, generator = for_inference(self.embedder), self.generator_for()
        place = {"device": self._device_of(embedder), "dtype": embedder.dtype}
        embedding = embedder(images.to(**place), drawings.to(**place)).embedding
        return FsthPerson(
            adain_parameters=generator.project(embedding.to(self._device_of(generator), generator.dtype)),
            sources=self.encode_sources(generator, images, drawings, points, mattes),
            landmarks=points[0, 0].cpu().numpy(),
            boxes=boxes or [],
            crops=crops,
        )

    def prepare_portraits(self, crops: Sequence[np.ndarray], landmarks: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """Head crops (pictures), their drawings, landmarks and mattes as networks take them, 1 x K x ..., float32."""
        from ..media.matting import cut_out

        mattes = np.stack([cut_out(*pair) for pair in zip(crops, landmarks, strict=True)])[:, None]  # K x 1 x h x w
        mattes = F.interpolate(torch.from_numpy(mattes), (self.size, self.size), mode="bilinear", antialias=True)
        inputs = self.image_processor.preprocess(list(crops), list(landmarks), return_landmarks=True)
        device = self._execution_device
        return [
            inputs["images"][0].to(device, memory_format=torch.channels_last)[None],  # 1 x K x 3 x 256 x 256
            inputs["landmark_images"][0].to(device, memory_format=torch.channels_last)[None],
            inputs["landmarks"].to(device),  # 1 x K x 78 x 2
            mattes.to(device)[None],  # 1 x K x 1 x 256 x 256
        ]

    @torch.no_grad()
    def encode_sources(
        self, generator: FsthGenerator, images, landmark_images, landmarks, mattes
    ) -> FsthSources | None:
        """What a generator, this pipeline's or a tuned one, keeps of portraits; `None` without source skips."""
        if not generator.config.source_skips:
            return None
        generator = for_inference(generator)
        device, dtype = self._device_of(generator), generator.dtype
        images, landmark_images, mattes = (part.to(device, dtype) for part in (images, landmark_images, mattes))
        return generator.encode_sources(images, landmark_images, landmarks.to(device), mattes)

    def generator_for(self, person: FsthPerson | None = None) -> FsthGenerator:
        """
        What draws a person, for [`~FsthPipeline.draw_frame`]: on the pipeline's device and in its precision, with
        spectral norm folded and a LoRA merged. It is kept, and made anew once weights, device or precision change.

        Args:
            person ([`FsthPerson`], *optional*): By default whoever was not fine-tuned.

        Returns:
            [`FsthGenerator`]: Not to be changed; the pipeline's own where that is offloaded.
        """
        own = person is not None and bool(person.own_weights)
        if not own and is_hooked(self.generator):
            return for_inference(self.generator)
        place = {"device": self._device_of(self.generator), "dtype": self.generator.dtype}

        def make():
            generator = person.tuned_generator(self.generator) if own else self.generator
            if (generator.device, generator.dtype) != tuple(place.values()):
                generator = copy.deepcopy(generator).to(**place)
            return generator.fold_spectral_norm().requires_grad_(False).to(memory_format=torch.channels_last)

        owner, weights = (person, person.own_weights) if own else (self.generator, (self.generator,))
        return self._generators.get(owner, (*place.values(), weights_state(*weights)), make)

    def _device_of(self, network: FsthPreTrainedModel) -> torch.device:
        """Where a network computes, which is not where it lies if it is offloaded."""
        return self._execution_device if is_hooked(network) else network.device
