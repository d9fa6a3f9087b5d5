"""Frames of any size from a person's own pixels: what the generator says of where they come from, applied to crops
that are larger than those it sees."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import repeat

import cv2
import numpy as np
import torch
from PIL import Image

from ..models.aligned_crops import blend_mask
from ..models.errors import FsthError
from ..models.facial_components import FsthComponentsOutput
from ..models.image_processing_fsth import denormalize, normalize
from ..models.layers import background_plates
from ..models.source_skips import Composition


MAX_DONORS = 8  # portraits that fill the hole behind a figure, besides the first one
MAX_LAYERS = 8  # portraits whose layers are kept; a frame takes four at most
MIN_SHARE = 0.02  # of a portrait anywhere in a frame, below which it is left out
# Of the side: how far at most a head goes on above the upper border that cuts it, its radius, and how soft hair ends.
CROWN, HEAD_RADIUS, SOFT = 0.12, 0.22, 0.02


class Compositor:
    """
    Puts frames together, one after another: the portraits' figures, sampled once and bicubically where the flow leads,
    over the background plate, and what generator and facial components add.

    Args:
        crops: T head crops, each S x S x 3 uint8 RGB of any size.
        mattes: For each, H x W float32, how much is the figure, 0 to 1.
        size: Side of the frames in pixels.
    """

    def __init__(self, crops: Sequence[np.ndarray], mattes: Sequence[np.ndarray], size: int):
        self.crops, self.mattes, self.size = crops, mattes, size
        self._layers: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._crown = round(CROWN * size)
        rows, columns = np.mgrid[:size, :size].astype(np.float32)
        self._places = np.dstack([columns, rows + self._crown])  # S x S x 2, pixels of a figure with its crown

    def __call__(
        self, composition: Composition, retouch: Callable[[list[np.ndarray]], FsthComponentsOutput] | None = None
    ) -> list[np.ndarray]:
        """
        Args:
            composition ([`Composition`]): of a batch of frames.
            retouch (`Callable`, *optional*):
                Given what the portraits give of these, each S x S x 3, what the components add to them.

        Returns:
            The frames in order, each S x S x 3 uint8 RGB.

        Raises:
            FsthError: What the networks gave is not finite.
        """
        parts = composition.split()
        frames = [self.compose(part) for part in parts]
        added = repeat(None, len(parts)) if retouch is None else retouch(frames).split()
        return [self.finish(*both, own) for *both, own in zip(frames, (p.residual for p in parts), added, strict=True)]

    def compose(self, composition: Composition) -> np.ndarray:
        """
        What the portraits give of one frame, of [`~Composition.split`].

        Returns:
            S x S x 3 float32 RGB, 0 to 255.
        """
        flows, shares, shades, cavities = (
            getattr(composition, name)[0].float().numpy() for name in ("flow", "shares", "shade", "cavities")
        )  # K x h x w x 2, K x 1 x h x w, K x 1 x h x w, K x 3 x 1 x 1
        _check_finite(shares)
        used = [number for number in range(len(shares)) if shares[number].max() >= MIN_SHARE]
        shares = shares / shares[used].sum(axis=0)
        total = None
        for number in used:
            figure, plate = self._layers_of(int(composition.chosen[0, number]))
            places = cv2.resize(flows[number], (self.size, self.size)) * (self.size / 2) + self._places
            frame = cv2.remap(figure, places, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)  # S x S x 4
            alpha = frame[..., 3].clip(0, 1)
            frame = frame[..., :3].copy()
            self._open_mouth(frame, shades[number, 0], cavities[number, :, 0, 0])
            frame += plate * (1 - alpha[..., None])
            if len(used) > 1:
                share = cv2.resize(shares[number, 0], (self.size, self.size))
                frame *= share[..., None]
            total = frame if total is None else total + frame
        return total

    def finish(self, frame: np.ndarray, residual: torch.Tensor, components: FsthComponentsOutput | None) -> np.ndarray:
        """
        Add what the networks generate.

        Args:
            frame: Of [`~Compositor.compose`].
            residual (`torch.Tensor` of shape `(1, 3, h, w)`): the generator's, [-1, 1] being the range of a picture.
            components ([`FsthComponentsOutput`], *optional*): what takes its place at mouth and eyes, of one frame.

        Returns:
            S x S x 3 uint8 RGB.
        """
        added = np.ascontiguousarray(residual[0].float().numpy().transpose(1, 2, 0))
        added = cv2.resize(added, (self.size, self.size), interpolation=cv2.INTER_CUBIC)
        for name in components.residuals if components is not None else ():
            self._paste(added, components.residuals[name], components.alignments[name])
        _check_finite(added)
        return cv2.add(frame, added * 127.5, dtype=cv2.CV_8U)  # 2 is the whole range of a picture

    def _paste(self, added: np.ndarray, residual: torch.Tensor, alignment: torch.Tensor) -> None:
        """Put a component's residual (1 x 3 x s x s) in the place of the generator's (S x S x 3) where it decides."""
        crop = residual[0].float().permute(1, 2, 0).numpy()
        size = len(crop)
        crop = np.dstack([crop, blend_mask(size).numpy()])  # s x s x 4
        matrix = alignment[0].double().numpy()
        corners = (matrix[:, :2] @ [[-1, -1, 1, 1], [-1, 1, -1, 1]] + matrix[:, 2:] + 1) * self.size / 2  # 2 x 4
        left, top = np.floor(corners.min(axis=1)).clip(0, self.size).astype(int)
        right, bottom = np.ceil(corners.max(axis=1)).clip(0, self.size).astype(int)
        if right <= left or bottom <= top:
            return
        # from the crop's pixels to the frame's, whose centres lie at halves
        scale = matrix[:, :2] * self.size / size
        origin = (matrix[:, 2] + 1) * self.size / 2 - scale @ np.full(2, size / 2 - 0.5) - 0.5 - [left, top]
        pasted = cv2.warpAffine(
            crop, np.column_stack([scale, origin]), (right - left, bottom - top), flags=cv2.INTER_CUBIC
        )
        region = added[top:bottom, left:right]
        region *= 1 - pasted[..., 3:].clip(0, 1)
        region += pasted[..., :3]

    def _open_mouth(self, frame: np.ndarray, shade: np.ndarray, cavity: np.ndarray) -> None:
        """Blend the colour of the cavity in where the mouth is open, and only there."""
        rows, columns = np.nonzero(shade < 1)
        if not len(rows):
            return
        scale = self.size / len(shade)
        top, left = (max(0, int((places.min() - 1) * scale)) for places in (rows, columns))
        bottom, right = (int((places.max() + 2) * scale) for places in (rows, columns))
        shade = cv2.resize(shade, (self.size, self.size))[top:bottom, left:right, None]
        region = frame[top:bottom, left:right]
        region *= shade
        region += (1 - shade) * denormalize(cavity)

    def _layers_of(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The premultiplied figure of a portrait with its matte, of [`with_crown`], and its plate (S x S x 3 float32,
        0 to 255)."""
        layers = self._layers.pop(index, None)  # several threads may draw the same person
        if layers is None:
            layers = self._make_layers(index)
        self._layers[index] = layers
        if len(self._layers) > MAX_LAYERS:
            self._layers.popitem(last=False)
        return layers

    def _make_layers(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        spread = np.linspace(0, len(self.crops) - 1, min(len(self.crops), MAX_DONORS)).round().astype(int)
        numbers = sorted({0, index, *spread.tolist()})
        images = torch.stack([torch.from_numpy(self._resized(number).copy()) for number in numbers])
        images = normalize(images.permute(0, 3, 1, 2))  # K x 3 x S x S
        mattes = np.stack([cv2.resize(self.mattes[number], (self.size, self.size)) for number in numbers])
        position = numbers.index(index)
        plate = background_plates(images[None], torch.from_numpy(mattes)[None, :, None], [position])[0, 0]
        plate = np.ascontiguousarray(denormalize(plate.permute(1, 2, 0).numpy()))
        matte = mattes[position, ..., None]
        figure = self._resized(index) - (1 - matte) * plate
        return with_crown(np.concatenate([figure, matte], axis=2).astype(np.float32), self._crown), plate

    def _resized(self, index: int) -> np.ndarray:
        crop = self.crops[index]
        if len(crop) == self.size:
            return crop
        return np.asarray(Image.fromarray(crop).resize((self.size, self.size), Image.Resampling.BICUBIC))


def with_crown(figure: np.ndarray, height: int) -> np.ndarray:
    """
    A figure with what lies above the border, for when the head comes down: where the border cuts it, it goes on as its
    own mirror image and is rounded off. Repeated, as the other borders are, hair would stand up in streaks.

    Args:
        figure: S x S x 4 float32, premultiplied RGB from 0 to 255 and a matte from 0 to 1.
        height: Of the crown in pixels, C.

    Returns:
        (C + S) x S x 4 float32.
    """
    size = len(figure)
    radius = HEAD_RADIUS * size
    columns = np.arange(size)
    outside = figure[0, :, 3] < 0.5
    left = columns - np.maximum.accumulate(np.where(outside, columns, -2 * size))
    right = np.minimum.accumulate(np.where(outside, columns, 3 * size)[::-1])[::-1] - columns
    half = np.minimum((left + right) / 2, radius)  # of what the border cuts, a chord of the head's circle
    from_middle = half - np.minimum(np.minimum(left, right), half)
    top = np.sqrt(radius**2 - from_middle**2) - np.sqrt(radius**2 - half**2)  # S, pixels above the border
    above = np.arange(height, 0, -1)[:, None]  # C x 1
    inside = ((top - above) / (top / 2).clip(1, SOFT * size)).clip(0, 1)  # C x S
    crown = cv2.copyMakeBorder(figure, height, 0, 0, 0, cv2.BORDER_REFLECT_101)
    crown[:height] *= inside[..., None]
    return crown


def _check_finite(values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise FsthError(
            "What the networks generate is not finite: fetch or make the model anew, for it is damaged, or load it in "
            "float32."
        )
