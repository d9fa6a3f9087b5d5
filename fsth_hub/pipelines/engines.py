"""What computes the networks of a frame: PyTorch, or on processors OpenVINO, where it is installed."""

import copy
import logging
import threading
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import nn

from ..checks import check_choice
from ..models.errors import FsthError
from ..models.facial_components import FsthFacialComponents
from ..models.landmark_flow import PortraitFlow
from ..models.modeling_fsth import FsthGenerator, is_hooked
from ..models.source_skips import ChosenSources, Composition, FsthSources, FusedSources, SourceSkips
from ..openvino_library import is_installed


Engine = Literal["auto", "torch", "openvino"]
ENGINES = get_args(Engine)
SOURCES = ("images", "landmark_images", "mattes", "plates", "cavities", "light")  # that `fuse` looks at

logger = logging.getLogger(__name__)


def check_engine(engine: str) -> None:
    """Refuse (`FsthError`) what is no engine, or is not installed."""
    check_choice("engine", engine, ENGINES)
    if engine == "openvino" and not is_installed():
        raise FsthError("engine='openvino' needs OpenVINO: python -m pip install openvino.")


def can_convert(network: nn.Module) -> bool:
    """Whether OpenVINO can compute this network: on the processor, as it is, a generator with source skips only."""
    if not isinstance(network, FsthGenerator | FsthFacialComponents) or is_hooked(network):
        return False
    return network.device.type == "cpu" and network.compiler is None and getattr(network.config, "source_skips", True)


def pick_engine(engine: str, network: nn.Module) -> str:
    """
    What computes a network, `"torch"` or `"openvino"`.

    Raises:
        FsthError: OpenVINO was asked for by name and cannot.
    """
    if engine == "openvino" and not can_convert(network):
        raise FsthError(
            "engine='openvino' computes networks with source skips, on the processor and without offloading or "
            "torch.compile: take engine='auto'."
        )
    wanted = engine == "openvino" or engine == "auto" and is_quicker(network)
    return "openvino" if wanted and is_installed() and can_convert(network) else "torch"


def is_quicker(network: nn.Module) -> bool:
    """Whether OpenVINO gains by itself: not over bfloat16, of which PyTorch computes two frames at once, unless the
    processor has matrix instructions (AMX). Of 48 frames on an AMD EPYC 7.2 s were PyTorch's and 8.2 s OpenVINO's."""
    return network.dtype == torch.float32 or torch.cpu.get_capabilities().get("amx_bf16", False)


class Compiled(nn.Module):
    """
    A module of tensors to tensors, converted by OpenVINO when it is first given inputs of new shapes.

    Args:
        module (`nn.Module`): what to convert; `forward` takes tensors and returns a tuple of them.
        exact (`bool`): Compute in float32, also where the processor is quicker in bfloat16.
        fall_back (`bool`): Leave it to PyTorch where the conversion fails; otherwise that is an `FsthError`.
    """

    def __init__(self, module: nn.Module, exact: bool, fall_back: bool):
        super().__init__()
        self.module, self.exact, self.fall_back = module, exact, fall_back
        self._models: dict[tuple, Callable] = {}
        self._lock = threading.Lock()

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        shapes = tuple(tuple(tensor.shape) for tensor in inputs)
        with self._lock:
            if shapes not in self._models:
                self._models[shapes] = self._convert(inputs)
            model = self._models[shapes]
        return model(*inputs)

    def _convert(self, inputs):
        from .openvino_models import convert

        try:
            return convert(self.module, inputs, self.exact)
        except Exception as error:  # whatever a library that is not ours raises
            reason = f"OpenVINO cannot convert the model ({type(error).__name__})"
            if not self.fall_back:
                raise FsthError(f"{reason}: take engine='torch'.") from error
            logger.warning("%s; PyTorch computes the frames, which takes longer.", reason)
            logger.debug("The conversion failed.", exc_info=True)
            return self.module


class Fusing(nn.Module):
    """[`SourceSkips.fuse`] of tensors."""

    def __init__(self, skips: SourceSkips):
        super().__init__()
        self.skips = skips

    def forward(self, drawing, flow, exactness, shade, motions, similarity, *sources):
        features = sources[len(SOURCES) :]
        sources = FsthSources(**dict(zip(SOURCES, sources, strict=False)), features=features)
        known = PortraitFlow(flow, exactness, shade)
        fused = self.skips.fuse(ChosenSources(sources, known, motions, similarity, None), drawing)
        made = fused.composition
        # as it was before it got the dimension of portraits: a view of what is read elsewhere comes out wrong
        return fused.images, fused.gain, made.flow.flatten(0, 1), made.shares, *fused.features


class Generating(nn.Module):
    """[`FsthGenerator.generate`] of tensors, which is traced without what else a `PreTrainedModel` has."""

    generate = FsthGenerator.generate

    def __init__(self, generator: FsthGenerator):
        super().__init__()
        self.adain_sizes = generator.adain_sizes
        for name, module in generator.named_children():
            if name not in ("source_skips", "projection"):
                self.add_module(name, module)

    def forward(self, inputs, adain_parameters, *features):
        return (self.generate(inputs, adain_parameters, features),)


class Adding(nn.Module):
    """One of the [`FsthFacialComponents`]."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x):
        return (self.network(x),)


def compiled_generator(generator: FsthGenerator, fall_back: bool) -> FsthGenerator:
    """A copy of one that is folded, whose networks OpenVINO computes: where to look in float32, what to add in what
    the processor is quickest in."""
    if generator.dtype != torch.float32:
        generator = copy.deepcopy(generator).float()
    made = shallow_copy(generator)
    made.source_skips = shallow_copy(generator.source_skips)
    fusing = Compiled(Fusing(generator.source_skips), True, fall_back)
    generating = Compiled(Generating(generator), False, fall_back)

    def fuse(chosen: ChosenSources, drawing) -> FusedSources:
        known, sources, count = chosen.known, chosen.sources, chosen.similarity.shape[1]
        maps = [getattr(sources, name) for name in SOURCES]
        looked = known.flow, known.exactness, known.shade, chosen.motions
        results = fusing(drawing, *looked, chosen.similarity, *maps, *sources.features)
        images, gain, flow, shares, *features = results
        composition = Composition(
            chosen=chosen.chosen,
            cavities=sources.cavities.unflatten(0, (-1, count)),
            flow=flow.unflatten(0, (-1, count)),
            shares=shares,
            shade=known.shade.permute(0, 3, 1, 2).unflatten(0, (-1, count)),
        )
        return FusedSources(images=images, features=tuple(features), gain=gain, composition=composition)

    made.source_skips.fuse = fuse
    made.generate = lambda inputs, parameters, features: generating(inputs, parameters, *features)[0]
    return made


def compiled_components(components: FsthFacialComponents, fall_back: bool) -> FsthFacialComponents:
    """A copy whose networks OpenVINO computes."""
    made = shallow_copy(components if components.dtype == torch.float32 else copy.deepcopy(components).float())
    for name in made.config.networks:
        made._modules[name] = Substitute(Compiled(Adding(made._modules[name]), False, fall_back))
    return made


class Substitute(nn.Module):
    """Something else that computes a module of one tensor."""

    def __init__(self, compiled: Compiled):
        super().__init__()
        self.compiled = compiled

    def forward(self, x):
        return self.compiled(x)[0]


def shallow_copy(module: nn.Module) -> nn.Module:
    """A copy that shares all weights, and parts of which can be replaced."""
    made = object.__new__(type(module))
    made.__dict__ |= module.__dict__ | {"_modules": dict(module._modules)}
    return made
