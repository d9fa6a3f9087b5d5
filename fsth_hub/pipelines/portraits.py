"""Portraits on their way to the networks: heads cut out, mattes, and networks that are ready to look at them."""

import copy
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..landmarks import Face, LandmarkDetector, set_upright
from ..media.matting import cut_out
from ..media.paste_back import PasteBack
from ..models.cropping import CropBox, crop_box, crop_image, reaches_outside, share_outside, to_crop, whole_frame
from ..models.errors import FsthError, FsthWarning, NoFaceError
from ..models.image_loading import Picture, list_pictures, load_image
from ..models.modeling_fsth import FsthPreTrainedModel, is_hooked
from .names import DEFAULT_SIZE, MAX_SIZE
from .person import FsthPerson
from .portrait_picking import PickedPortrait, check_indices, photograph_of


if TYPE_CHECKING:
    from .pipeline_fsth import FsthPipeline


def cut_heads(
    portraits: Picture | Sequence[Picture | PickedPortrait],
    detector: LandmarkDetector,
    face_index: int | Sequence[int],
    crop: bool,
    min_side: int,
    paste_back: bool = False,
) -> tuple[list[np.ndarray], list[np.ndarray], list[CropBox]]:
    """
    Cut the heads out of portraits.

    Args:
        portraits, face_index, crop: as in [`~FsthPipeline.embed`], but no clips.
        detector ([`LandmarkDetector`]): what finds the faces.
        min_side (`int`): Crops are as large as the heads, but no smaller than so many pixels, and 1024 at most.
        paste_back (`bool`, *optional*, defaults to `False`):
            The frames go back into the photograph, so that nobody is to be warned of portraits that are cut closely.

    Returns:
        The crops (each S x S x 3 uint8 RGB), their landmarks (78 x 2, pixels of the crop), and the squares in the
        portraits.
    """
    portraits = list_pictures(portraits)
    if not portraits:
        raise FsthError("Give at least one portrait.")
    indices = [face_index] * len(portraits) if isinstance(face_index, int) else face_index
    check_indices(portraits, indices)
    crops, landmarks, boxes, outside = [], [], [], {}
    for number, (portrait, face_index) in enumerate(zip(portraits, indices, strict=True), start=1):
        source = portrait.clip if isinstance(portrait, PickedPortrait) else portrait
        name = Path(source).name if isinstance(source, str | os.PathLike) else f"portrait {number}"
        if isinstance(portrait, PickedPortrait):
            image, points, turn = np.asarray(portrait.image), portrait.landmarks, 0
        else:
            image, faces, turn = set_upright(load_image(portrait, f"Portrait {number}"), detector)
            points = choose_face(faces, face_index, name).points
        width, height = image.shape[1::-1]
        if crop:
            box = portrait.box if isinstance(portrait, PickedPortrait) else crop_box(points)
        else:
            box = whole_frame(width, height, name)
        if reaches_outside(box, width, height):
            outside[name] = share_outside(box, width, height)
        side = min(max(round(box.side), min_side), MAX_SIZE)
        crops.append(crop_image(image, box, side))
        landmarks.append(to_crop(points, box, side))
        boxes.append(box._replace(turn=turn))
    if outside and not paste_back:
        warn_of_close_cuts(outside)
    return crops, landmarks, boxes


def choose_face(faces: Sequence[Face], face_index: int, name: str) -> Face:
    """One of a picture's faces, the largest being the first; `FsthError` where there are too few."""
    if not faces:
        raise NoFaceError(f"No face was found in {name}; use a picture in which the face is seen clearly.")
    if not 0 <= face_index < len(faces):
        raise FsthError(f"Face {face_index} was asked for, but {name} shows {len(faces)}, counted from 0.")
    return faces[face_index]


def warn_of_close_cuts(outside: dict[str, float]) -> None:
    """Warn of portraits (by name) of whose crops so much lies beyond the photograph, 0 to 1, and is made up."""
    names, share = " and ".join(outside), max(outside.values())
    names = names.replace("portrait", "Portrait", 1) if names.startswith("portrait ") else names  # no file's name
    warnings.warn(
        f"{names} {'are' if len(outside) > 1 else 'is'} cut closely around the head, so that "
        f"{share:.0%} of the frame lies beyond the photograph and is made up; paste the head back into the photograph "
        "instead (--paste-back, paste_back=True), or take a picture with more around the head.",
        FsthWarning,
        stacklevel=4,
    )


def embed_pictures(
    pipe: "FsthPipeline",
    pictures: list[Picture | PickedPortrait],
    face_index: int | Sequence[int],
    crop: bool,
    paste_back: bool,
    size: int | None,
) -> tuple[FsthPerson, PasteBack | None, int | None]:
    """
    The person of pictures and, with `paste_back`, what puts their head back into the first one; the size of the frames
    then is by default that of the head there.
    """
    if not paste_back:
        return pipe.embed(pictures, face_index, crop), None, size
    heads = cut_heads(pictures, pipe.detector, face_index, crop, pipe.size, paste_back=True)
    person = pipe.embed_crops(*heads)
    canvas = PasteBack(photograph_of(pictures[0]), person.boxes[0])
    if size is None and pipe.generator.config.source_skips:
        size = int(np.clip(canvas.box.side, pipe.size, MAX_SIZE)) // 2 * 2
    return person, canvas, size


def cut_mattes(crops: Sequence[np.ndarray], landmarks: Sequence[np.ndarray], size: int) -> torch.Tensor:
    """How much of each head crop is figure, K x 1 x size x size float32, 0 to 1."""
    mattes = np.stack([cut_out(*pair) for pair in zip(crops, landmarks, strict=True)])[:, None]  # K x 1 x h x w
    return F.interpolate(torch.from_numpy(mattes), (size, size), mode="bilinear", antialias=True)


def to_one_size(crops: Sequence[np.ndarray], landmarks: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Head crops of any sizes, and their landmarks, at the size of the first one, at most `DEFAULT_SIZE`."""
    side = min(len(crops[0]), DEFAULT_SIZE)
    resized = [Image.fromarray(crop).resize((side, side), Image.Resampling.BICUBIC) for crop in crops]
    points = [points * (side / len(crop)) for points, crop in zip(landmarks, crops, strict=True)]
    return np.stack(resized), np.stack(points).astype(np.float32)


def settled(network: FsthPreTrainedModel, device: torch.device) -> FsthPreTrainedModel:
    """A network to start from: itself, or a copy where it is offloaded or where using it would change it."""
    moves = network.training or is_hooked(network)
    return copy.deepcopy(network).eval().to(device) if moves else network


def for_inference(network: FsthPreTrainedModel) -> FsthPreTrainedModel:
    """A network itself where it is ready, or else a copy: in training mode every pass would change it, and in another
    memory layout it would compute other last bits. One that is offloaded has to be used itself."""
    if is_hooked(network):
        return network.eval()
    maps = (parameter for parameter in network.parameters() if parameter.dim() == 4)
    if not network.training and all(map_.is_contiguous(memory_format=torch.channels_last) for map_ in maps):
        return network
    return network.fold_spectral_norm().to(memory_format=torch.channels_last)
