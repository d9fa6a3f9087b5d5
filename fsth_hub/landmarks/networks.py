"""MediaPipe's networks, on OpenCV's DNN module, or on OpenVINO where it is installed (the extra `fast`): the same
numbers, to a ten thousandth of a pixel of a patch, in half of the time."""

import logging
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from ..openvino_library import core, is_installed, load_openvino


NUM_THREADS = 2  # at most: more gain nothing with networks as small as these

logger = logging.getLogger(__name__)


class OpenCVNetwork:
    """
    A network that looks at one patch at a time. Threads that share one take turns.

    Args:
        path (`Path`): a TFLite file; its input is 1 x size x size x 3, 0 to 1.
        outputs (`tuple[str, ...]`): names of those that are wanted.
    """

    def __init__(self, path: Path, outputs: tuple[str, ...]):
        self._turn = threading.Lock()  # a network of OpenCV keeps its input until it is run
        self._outputs = outputs
        # OpenCV's new engine returns only the first output of a network that has several.
        self._network = cv2.dnn.readNetFromTFLite(str(path), engine=cv2.dnn.ENGINE_CLASSIC)

    def __call__(self, patches: Sequence[np.ndarray]) -> list[np.ndarray]:
        """
        Args:
            patches (`Sequence[np.ndarray]`): N of size x size x 3, uint8, RGB.

        Returns:
            The outputs, each N x its length, float32.
        """
        rows = []
        for patch in patches:
            with self._turn:
                self._network.setInput(cv2.dnn.blobFromImage(patch, 1 / 255))
                rows.append([output.reshape(-1) for output in self._network.forward(self._outputs)])
        return [np.stack(column) for column in zip(*rows, strict=True)]


class OpenVinoNetwork:
    """
    The same on OpenVINO, which is quicker with several patches at once.

    Args:
        path, outputs: as of [`OpenCVNetwork`].
        batch_size (`int`): how many patches it is mostly given; another number takes as long as the next multiple.
    """

    def __init__(self, path: Path, outputs: tuple[str, ...], batch_size: int):
        self._outputs = outputs
        self._request = compiled(path, batch_size, min(NUM_THREADS, cv2.getNumThreads())).create_infer_request()
        self._batch_size, *self._shape = self._request.get_input_tensor().shape  # batch_size, size, size, 3
        self._turn = threading.Lock()  # a request keeps its input until it is run

    def __call__(self, patches: Sequence[np.ndarray]) -> list[np.ndarray]:
        """As of [`OpenCVNetwork`]."""
        found = []
        for start in range(0, len(patches), self._batch_size):
            some = patches[start : start + self._batch_size]
            batch = np.zeros((self._batch_size, *self._shape), np.float32)
            batch[: len(some)] = np.stack(some) * np.float32(1 / 255)
            with self._turn:
                results = self._request.infer([load_openvino().Tensor(batch, shared_memory=True)])
                outputs = [results[name].reshape(self._batch_size, -1)[: len(some)].copy() for name in self._outputs]
            found.append(outputs)
        return [np.concatenate(column) for column in zip(*found, strict=True)]


@cache
def compiled(path: Path, batch_size: int, num_threads: int):
    """A model for so many patches at once. It takes half a second, and all detectors of a process share it."""
    model = core().read_model(path)
    model.reshape([batch_size, *model.inputs[0].shape[1:]])
    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": num_threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # to cores that other programs may be busy on
    }
    return core().compile_model(model, "CPU", options)


def load_network(path: Path, outputs: tuple[str, ...], batch_size: int) -> OpenCVNetwork | OpenVinoNetwork:
    """A network on what computes it quickest here; arguments as of [`OpenVinoNetwork`]."""
    if is_installed():
        try:
            return OpenVinoNetwork(path, outputs, batch_size)
        except Exception:  # whatever a library that is not ours raises, on a processor that it does not know
            logger.debug("OpenVINO cannot read %s; OpenCV computes it.", path.name, exc_info=True)
    return OpenCVNetwork(path, outputs)
