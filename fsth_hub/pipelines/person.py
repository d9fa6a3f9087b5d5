"""A person as the pipeline knows them from one or more portraits, without fine-tuning."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..models.cropping import CropBox
from ..models.facial_components import ComponentSources, FsthComponentsOutput, FsthFacialComponents
from ..models.image_processing_fsth import normalize
from ..models.modeling_fsth import FsthGenerator
from ..models.source_skips import FsthSources
from .caching import Cache, weights_state


if TYPE_CHECKING:
    from ..media.compositing import Compositor

MAX_COMPONENT_PORTRAITS = 64  # whose mouths and eyes the facial components choose from


@dataclass
class FsthPerson:
    """What a person's portraits come to, computed once. It need not lie where the pipeline does.

    Args:
        adain_parameters (`torch.Tensor` of shape `(1, num_parameters)`): the generator's, for this person.
        sources (`FsthSources`, *optional*): the portraits' feature pyramids; with source skips only.
        landmarks (`np.ndarray` of shape `(78, 2)`): of the first portrait, pixels of its crop.
        boxes (`list[CropBox]`): where in each portrait the head was cut out, pixels of the portrait.
        crops (`Sequence[np.ndarray]`): the head crops, each S x S x 3 uint8 RGB, as large as they were cut out.
        generator ([`FsthGenerator`], *optional*): tuned to this person; by default the pipeline's own generates them.
        components ([`FsthFacialComponents`], *optional*): the same of mouth and eyes.
    """

    adain_parameters: torch.Tensor
    sources: FsthSources | None
    landmarks: np.ndarray
    boxes: list[CropBox]
    crops: Sequence[np.ndarray]
    generator: FsthGenerator | None = None
    components: FsthFacialComponents | None = None
    _compositors: Cache = field(init=False, repr=False, compare=False, default_factory=Cache)
    _component_sources: Cache = field(init=False, repr=False, compare=False, default_factory=Cache)
    _converted: Cache = field(init=False, repr=False, compare=False, default_factory=Cache)

    @property
    def own_weights(self) -> tuple:
        """What the person's own generator is made of; empty where the pipeline's generates them."""
        return () if self.generator is None else (self.generator,)

    def tuned_generator(self, generator: FsthGenerator) -> FsthGenerator:
        """What generates this person: their own generator if there is one, or the pipeline's, which is given."""
        return self.generator or generator

    @property
    def own_component_weights(self) -> tuple:
        """What the person's own facial components are made of; empty where those of the pipeline do."""
        return () if self.components is None else (self.components,)

    def tuned_components(self, components: FsthFacialComponents) -> FsthFacialComponents:
        """The person's own facial components if there are any, or the pipeline's, which are given."""
        return self.components or components

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

    def retouch(
        self,
        frames: list[np.ndarray],
        landmarks: torch.Tensor,
        components: FsthFacialComponents,
        device: torch.device | None = None,
        compute: Callable | None = None,
    ) -> FsthComponentsOutput:
        """
        What facial components add to frames of this person.

        Args:
            frames (`list[np.ndarray]`): each size x size x 3 float32, 0 to 255, of [`~Compositor.compose`].
            landmarks (`torch.Tensor` of shape `(batch, 78, 2)`): pixels of the frames.
            components ([`FsthFacialComponents`]): the person's, or the pipeline's.
            device (`torch.device`, *optional*): where they compute, if they do not lie there.
            compute (`Callable`, *optional*): what is called in their place, such as what OpenVINO made of them.
        """
        device = components.device if device is None else device
        images = normalize(torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).to(device))
        return (compute or components)(images, landmarks.to(device), self.component_sources(components))
