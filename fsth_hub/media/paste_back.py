"""The moving head put back into the photograph that it came from."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from ..models.cropping import FACE_HEIGHT, CropBox, crop_image
from ..models.errors import FsthError
from ..models.image_loading import Picture, load_image


MAX_SIZE = (1920, 1080)  # pixels, the longer and the shorter side: what every player and H.264 encoder takes
# Of the crop's side: the photograph alone is seen at its border, the generated head alone from here inwards. A wider
# one would show the top of a moving head twice, and a narrower one an edge where the shoulders follow it.
FEATHER = 0.05
# Of the crop's side: so far above its lower border the body is led back to where the photograph goes on with it, and
# its smoothing. At the other borders is background, and pulling that would dent the head.
JOIN = 0.25
BETWEEN = 0.2  # of the squares' sides: over so much one person's square fades into a neighbour's
FLOW_BLUR = 0.025
# Of the pictures that the flow is computed between, pixels: it is blurred after, so that a larger frame's own would
# look the same and take up to sixteen times as long.
FLOW_SIZE = 256


class PasteBack:
    """Puts generated frames into a photograph, one at a time.

    The border of the square stays the photograph's own, and the frame comes in softly, so that no edge is seen. A head
    that moves takes its shoulders along; towards the lower border they are led back (by the optical flow from the
    photograph to the frame), so that collars and necklaces go on unbroken. Where the square reaches the photograph's
    border or beyond it, the frame goes up to that border.

    Args:
        photograph: The picture of which the portrait was cut, all that `load_image` takes. What is larger than 1920 x
            1080 (or 1080 x 1920) is reduced to fit, and what lies or stands on its head is set upright; an odd last
            row or column is left out, since H.264 needs even sizes.
        box: Where the head was cut out (`FsthPerson.boxes`), pixels of the photograph.

    Raises:
        FsthError: The picture cannot be read, or the square lies outside it.
    """

    def __init__(self, photograph: Picture, box: CropBox):
        image = np.rot90(load_image(photograph), box.turn)
        height, width = image.shape[:2]
        scale = min(1.0, MAX_SIZE[0] / max(width, height), MAX_SIZE[1] / min(width, height))
        if scale < 1:
            size = [max(2, 2 * round(scale * length / 2)) for length in (width, height)]
            image = np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.LANCZOS))
        else:
            image = image[: max(1, height - height % 2), : max(1, width - width % 2)]
        self.photograph = np.ascontiguousarray(image)
        self.box = CropBox(scale * box.left, scale * box.top, scale * box.side)
        self.still: np.ndarray | None = None
        columns, self.across, x_share = _span(self.box.left, self.box.side, image.shape[1])
        rows, self.down, y_share = _span(self.box.top, self.box.side, image.shape[0])
        if not (x_share.size and y_share.size):
            raise FsthError("The head's square lies outside the photograph: give the photograph it was cut from.")
        self.region = rows, columns
        self.share = (y_share[:, None] * x_share)[..., None]  # h x w x 1: how much of the generated frame is seen
        self.kept = image[self.region] * (1 - self.share)

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """Put one frame (S x S x 3 uint8, the whole square) into the photograph: H x W x 3 uint8."""
        result = self.photograph.copy()
        result[self.region] = np.rint(self.kept + self.share * self.patch(frame)).astype(np.uint8)
        return result

    def patch(self, frame: np.ndarray) -> np.ndarray:
        """A frame (S x S x 3 uint8) as it lies in the region of the photograph: h x w x 3 uint8."""
        height, width = self.share.shape[:2]
        side = frame.shape[0]
        window = (side * self.across[0], side * self.down[0], side * self.across[1], side * self.down[1])
        if self.box.top + self.box.side < len(self.photograph):
            frame = self._join(frame)
        return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS, box=window))

    def _join(self, frame: np.ndarray) -> np.ndarray:
        """Lead what the frame moved near its lower border back to where it is in the photograph."""
        import cv2  # here, so that pictures can be cropped and rasterized without it

        side = len(frame)
        small = min(side, FLOW_SIZE)
        if self.still is None or len(self.still) != small:
            self.still = cv2.cvtColor(crop_image(self.photograph, self.box, small), cv2.COLOR_RGB2GRAY)
        moved = cv2.cvtColor(cv2.resize(frame, (small, small), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
        optical_flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        flow = optical_flow.calc(self.still, moved, None)  # s x s x 2, pixels of the small pictures
        flow = cv2.GaussianBlur(flow, (0, 0), FLOW_BLUR * small)
        top = side - int(np.ceil(JOIN * side))  # above it nothing is led back
        y, x = np.mgrid[top:side, :side].astype(np.float32)
        share = (1 - _smoothstep(((side - 0.5 - y) / side - FEATHER) / (JOIN - FEATHER))) * (side / small)
        flow = cv2.resize(flow, (side, side))[top:]
        x, y = x + share * flow[..., 0], y + share * flow[..., 1]
        joined = frame.copy()
        joined[top:] = cv2.remap(frame, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        return joined


class GroupPasteBack:
    """Puts the frames of several people into their photograph, each where the own face is the nearest.

    People stand close to each other: a head's square holds the shoulder, or the face, of whoever is beside it.

    Args:
        photograph: As in [`PasteBack`].
        boxes: Where each head was cut out, pixels of the photograph.
    """

    def __init__(self, photograph: Picture, boxes: Sequence[CropBox]):
        self.heads = [PasteBack(photograph, box) for box in boxes]
        self.shares = [head.share * self._owned(head)[..., None] for head in self.heads]

    def _owned(self, head: PasteBack) -> np.ndarray:
        """How much of each pixel of a head's region is that head's, 0 to 1; of all heads it comes to 1 at most."""
        y, x = (np.arange(part.start, part.stop) + 0.5 for part in head.region)

        def distance(box: CropBox) -> np.ndarray:  # from the middle of the face, in sides of its square
            across, down = x - box.left - box.side / 2, y - box.top - FACE_HEIGHT * box.side
            return np.hypot(across, down[:, None]) / box.side

        own, owned = distance(head.box), np.ones((len(y), len(x)), np.float32)
        for other in self.heads:
            if other is not head:
                owned *= _smoothstep((distance(other.box) - own) / BETWEEN + 0.5)
        return owned

    def __call__(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """Put a frame of each (S x S x 3 uint8, the whole square) into the photograph: H x W x 3 uint8."""
        photograph = self.heads[0].photograph
        result = photograph.astype(np.float32)
        for head, share, frame in zip(self.heads, self.shares, frames, strict=True):
            result[head.region] += share * (head.patch(frame) - photograph[head.region].astype(np.float32))
        return np.rint(result.clip(0, 255)).astype(np.uint8)


def _span(start: float, side: float, limit: int) -> tuple[slice, tuple[float, float], np.ndarray]:
    """Along one axis the whole pixels that the square covers, which part of it they show, and the mask there.

    Args:
        start: Where the square begins, pixels of the canvas.
        side: Its length, pixels.
        limit: The canvas' length, pixels.

    Returns:
        The pixels; their first and last edge within the square, 0 to 1; for each how much of the square is seen.
    """
    low, high = max(0, int(np.ceil(start))), max(0, min(limit, int(np.floor(start + side))))
    place = (np.arange(low, high) + 0.5 - start) / side
    share = np.ones(len(place), np.float32)
    if start > 0:
        share *= _smoothstep(place / FEATHER)
    if start + side < limit:
        share *= _smoothstep((1 - place) / FEATHER)
    return slice(low, high), ((low - start) / side, (high - start) / side), share


def _smoothstep(x: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, and no kink between: a kink is seen as a line."""
    x = x.clip(0, 1)
    return (x * x * (3 - 2 * x)).astype(np.float32)
