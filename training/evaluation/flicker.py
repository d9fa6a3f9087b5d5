"""Whether generated frames flicker: what changes from one to the next beyond what moves in the true ones.

Pictures are S x S x 3 uint8 RGB, landmarks 78 x 2 pixels.
"""

from itertools import pairwise

import cv2
import numpy as np
import torch

from fsth_hub.models.landmark_layout import FACE
from training.evaluation.background import optical_flow, to_grey
from training.evaluation.expression import CROPS


NUM_SUCCESSIVE = 12  # frames
# How far flow there and back may miss, squared: a share of both flows' squares, and square pixels.
MISS_SHARE, MISS = 0.01, 0.5
MIN_SEEN = 0.1  # of a crop that must be seen in both frames


def liveliest_run(landmarks: np.ndarray) -> list[int]:
    """
    The successive frames in which the face moves most, of N x 78 x 2: what flickers, flow and lids and the choice of
    a portrait, changes with the landmarks, and at rest there is least of it. The two largest steps of a run do not
    count, or a cut would attract it, or a slip of the detector and the way back.
    """
    steps = np.linalg.norm(np.diff(landmarks[:, FACE], axis=0), axis=2).mean(axis=1)  # N - 1
    if len(landmarks) <= NUM_SUCCESSIVE:
        return list(range(len(landmarks)))
    runs = np.lib.stride_tricks.sliding_window_view(steps, NUM_SUCCESSIVE - 1)
    start = int(np.sort(runs, axis=1)[:, :-2].sum(axis=1).argmax())
    return list(range(start, start + NUM_SUCCESSIVE))


def pull_back(following: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """What the flow finds in the next frame, where it lies in this one: S x S x channels float32."""
    places = np.indices(flow.shape[:2], np.float32)[::-1].transpose(1, 2, 0) + flow
    return cv2.remap(np.float32(following), places, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


class Flicker:
    """
    The warping error (Lai et al., "Learning Blind Video Temporal Consistency", arXiv 1808.00449): each frame is
    compared with the next one pulled back by the optical flow of the true frames, where the flow there and back agrees
    (the criterion of Ruder et al., arXiv 1604.08610, without that of motion boundaries). Its root, in grey levels.
    What moves otherwise than the truth counts as what flickers does: frames that are all the same are not steady.

    Args:
        frames: of the true clip, successive ones of its shard, which may be some tenths of a second apart.
        landmarks: of each frame.
    """

    def __init__(self, frames: list[np.ndarray], landmarks: np.ndarray):
        self.landmarks = torch.from_numpy(landmarks[:-1])
        self.flows, self.seen = [], []  # of each frame but the last, S x S x 2 and S x S float32
        for pair in pairwise([to_grey(frame) for frame in frames]):
            there, back = optical_flow(*pair), optical_flow(*pair[::-1])
            back = pull_back(back, there)
            squares = (there**2).sum(axis=2) + (back**2).sum(axis=2)
            self.flows.append(there)
            self.seen.append(np.float32(((there + back) ** 2).sum(axis=2) <= MISS_SHARE * squares + MISS))
        self.true = self.warping_error(frames)

    def warping_error(self, frames: list[np.ndarray]) -> dict[str, float | None]:
        """Of each of [`CROPS`], 0 to 255; `None` where nothing is seen in two frames."""
        if not self.flows:
            return dict.fromkeys(CROPS)
        maps = []
        for (frame, following), flow, seen in zip(pairwise(frames), self.flows, self.seen, strict=True):
            squares = ((pull_back(following, flow) - frame) ** 2).mean(axis=2)
            maps.append(np.stack([seen * squares / 255**2, seen]))
        maps, errors = torch.from_numpy(np.stack(maps)).float(), {}  # N - 1 x 2 x S x S
        for part, crop in CROPS.items():
            error, seen = crop(maps, self.landmarks).mean(dim=(2, 3)).T  # N - 1 each, twice as many of the eyes
            told = seen > MIN_SEEN
            # sharp enlarging may fall below 0
            errors[part] = 255 * (error[told] / seen[told]).mean().clamp(min=0).sqrt().item() if told.any() else None
        return errors

    def excess(self, fake: list[np.ndarray]) -> dict[str, float | None]:
        """The error of generated frames less that of the true ones, as `PART_flicker`: 0 where they are as steady,
        less where they are steadier, as what is blurred is.
        """
        errors = self.warping_error(fake)
        return {f"{p}_flicker": None if error is None else error - self.true[p] for p, error in errors.items()}
