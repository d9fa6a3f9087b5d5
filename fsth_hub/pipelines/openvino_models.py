"""Modules of PyTorch as models of OpenVINO: converted once, kept on disk, and run by any number of threads.

On disk a model has the name of all that it was made from, so it is never out of date, and it is data: nothing of it is
code or a pickle. It can be deleted at any time.
"""

import hashlib
import logging
import os
import shutil
import tempfile
import threading
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from torch import nn

from ..device import default_dtype
from ..openvino_library import core, load_openvino, untold
from .parallel import total_threads


MAX_ERROR = 0.1  # of an output's largest value
MAX_KEPT = 512 * 2**20  # bytes on disk: ten people or so
MODEL_NAME = "model.xml"  # beside it lies model.bin, with the weights

logger = logging.getLogger(__name__)


def convert(module: nn.Module, inputs: tuple[torch.Tensor, ...], exact: bool) -> "OpenVinoModel":
    """
    A module for inputs of these shapes, on the processor.

    Args:
        module (`nn.Module`): `forward` takes tensors and returns a tuple of them.
        inputs (`tuple` of `torch.Tensor`): float32.
        exact (`bool`): Compute in float32, also where the processor is quicker in bfloat16.
    """
    folder = cache_folder() / name_of(module, inputs)
    model = read_model(folder)
    if model is not None:
        return compile_model(model, exact)
    model = trace(module, inputs)
    keep_model(model, folder)
    compiled = compile_model(read_model(folder) or model, exact)  # what was read computes other last bits
    try:
        with torch.no_grad():
            check_equal(module(*inputs), compiled(*inputs))
    except ValueError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return compiled


def check_equal(expected: tuple[torch.Tensor, ...], actual: tuple[torch.Tensor, ...]) -> None:
    """Refuse (`ValueError`) what differs by more than bfloat16 explains: libraries have errors, too."""
    for number, (one, other) in enumerate(zip(expected, actual, strict=True)):
        error = (one - other).abs().amax() / one.abs().amax().clamp(min=1e-6)
        if not error < MAX_ERROR:
            raise ValueError(f"output {number} differs by {error:.3f} of its range")


def compile_model(model, exact: bool) -> "OpenVinoModel":
    fastest = default_dtype(torch.device("cpu"))
    precision = "bf16" if fastest == torch.bfloat16 and not exact else "f32"
    options = {
        "INFERENCE_PRECISION_HINT": precision,
        # one frame after the other, while another thread does what is left to PyTorch
        "INFERENCE_NUM_THREADS": total_threads(),
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # to cores that other programs may be busy on
    }
    return OpenVinoModel(core().compile_model(model, "CPU", options))


class OpenVinoModel:
    """A compiled model as a function of tensors. Each thread has a request of its own."""

    def __init__(self, compiled):
        self._compiled, self._requests = compiled, threading.local()
        self._shapes = [tuple(output.shape) for output in compiled.outputs]

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        request = getattr(self._requests, "request", None)
        if request is None:
            request = self._requests.request = self._compiled.create_infer_request()
        outputs = [torch.empty(shape) for shape in self._shapes]
        inputs = [tensor.float().contiguous() for tensor in inputs]
        for tensors, place in ((inputs, request.set_input_tensor), (outputs, request.set_output_tensor)):
            for index, tensor in enumerate(tensors):
                place(index, load_openvino().Tensor(tensor.numpy(), shared_memory=True))
        request.infer()
        return tuple(outputs)


@torch.no_grad()
def trace(module: nn.Module, inputs: tuple[torch.Tensor, ...]):
    """The model that a module is for inputs of these shapes."""
    openvino = load_openvino()
    with untold():
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that sizes become constants, as is wanted
        traced = torch.jit.trace(module.eval(), inputs, check_trace=False)
        decoder = TorchScriptPythonDecoder(torch.jit.freeze(traced))
    # not `openvino.convert_model`, which reports what it does to its makers
    frontend = openvino.frontend.FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(decoder))
    for parameter, tensor in zip(model.get_parameters(), inputs, strict=True):
        parameter.set_element_type(openvino.Type.f32)
        parameter.set_partial_shape(openvino.PartialShape(list(tensor.shape)))
    model.validate_nodes_and_infer_types()
    return model


def cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path(os.path.expanduser("~"), ".cache")  # of a user without a home, too
    return Path(root, "fsth_hub", "openvino")


def name_of(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> str:
    """SHA-256 of all that a model is made from: weights, shapes, the code that converts them, and the processor on
    which it was found to be right."""
    digest = hashlib.sha256()
    shapes = [tuple(tensor.shape) for tensor in inputs]
    versions = torch.__version__, load_openvino().__version__, core().get_property("CPU", "FULL_DEVICE_NAME")
    digest.update(repr((type(module).__name__, shapes, versions)).encode())
    digest.update(code_digest())
    for name, tensor in sorted(module.state_dict().items()):
        data = tensor.detach().float().contiguous()
        digest.update(f"{name} {tuple(data.shape)}".encode())
        digest.update(data.numpy().data)
    return digest.hexdigest()


@cache
def code_digest() -> bytes:
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for path in [*sorted((here.parent / "models").glob("*.py")), here / "engines.py", Path(__file__)]:
        digest.update(path.read_bytes())
    return digest.digest()


def read_model(folder: Path):
    """What [`keep_model`] wrote, or `None`."""
    if not folder.is_dir():
        return None
    try:
        model = core().read_model(folder / MODEL_NAME)
        with suppress(OSError):  # where nothing can be written, it may still be read
            os.utime(folder)  # used last
        return model
    except (RuntimeError, OSError):
        logger.debug("%s is damaged and made anew.", folder)
        shutil.rmtree(folder, ignore_errors=True)
        return None


def keep_model(model, folder: Path) -> None:
    """Write a model, whole or not at all, and delete those that were not used for longest."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as temporary:
            whole = Path(temporary, "model")
            whole.mkdir()
            load_openvino().save_model(model, whole / MODEL_NAME, compress_to_fp16=False)
            whole.rename(folder)
        discard(folder.parent)
    except (OSError, RuntimeError):  # the disk is full or read-only, or another process was quicker
        logger.debug("The model was not kept in %s.", folder, exc_info=True)


def discard(root: Path) -> None:
    total = 0
    for folder in sorted(root.glob("[!.]*"), key=lambda folder: folder.stat().st_mtime, reverse=True):
        total += sum(path.stat().st_size for path in folder.iterdir())
        if total > MAX_KEPT:
            shutil.rmtree(folder, ignore_errors=True)
