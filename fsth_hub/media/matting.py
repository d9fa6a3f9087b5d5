"""Which part of a portrait is the person, and which the background."""

import threading
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from ..models.landmark_layout import FACE


MODEL = Path(__file__).parent / "weights" / "selfie_segmentation.tflite"
SIZE = 256  # of the network's input and of the matte, pixels
# Between these the network is in doubt; what it is less sure of than the first is background.
DOUBT = (0.1, 0.9)
# Width of the border between figure and background in pixels, up to which a matte is clean, and from which it is
# worth nothing: people before a room have 1 to 4, drawings that fade into the paper 7 to 11.
CLEAN_WIDTH, USELESS_WIDTH = 5.0, 9.0


_ONE_AT_A_TIME = threading.Lock()  # a network of OpenCV keeps its input until it is run


@cache
def _network() -> cv2.dnn.Net:
    return cv2.dnn.readNetFromTFLite(str(MODEL), engine=cv2.dnn.ENGINE_CLASSIC)


def cut_out(crop: np.ndarray, points: np.ndarray) -> np.ndarray:
    """
    The matte of a head crop (MediaPipe's selfie segmentation). The face is always figure; where the network cannot
    tell the figure's border, the more of the background is counted to the figure the less it can.

    Args:
        crop: S x S x 3 uint8, RGB.
        points: 78 x 2, pixels of the crop.

    Returns:
        256 x 256 float32, 0 (background) to 1 (figure).
    """
    small = cv2.resize(crop, (SIZE, SIZE), interpolation=cv2.INTER_AREA if len(crop) > SIZE else cv2.INTER_LINEAR)
    with _ONE_AT_A_TIME:
        network = _network()
        network.setInput(cv2.dnn.blobFromImage(small, 1 / 255, (SIZE, SIZE)))
        figure = network.forward().reshape(SIZE, SIZE)
    matte = np.clip((figure - DOUBT[0]) / (DOUBT[1] - DOUBT[0]), 0, 1)
    length = sum(np.abs(slope).sum() for slope in np.gradient(matte))
    width = 4 * (figure * (1 - figure)).sum() / max(length, 1)
    clean = np.clip((USELESS_WIDTH - width) / (USELESS_WIDTH - CLEAN_WIDTH), 0, 1)

    face = np.zeros((SIZE, SIZE), np.float32)
    outline = cv2.convexHull(np.round(points[FACE] * (SIZE / len(crop))).astype(np.int32))
    cv2.fillConvexPoly(face, outline, 1.0)
    matte = np.maximum(matte, cv2.GaussianBlur(face, (0, 0), 1))
    return (1 - clean * (1 - matte)).astype(np.float32)
