"""Tiny networks, and what they are given."""

import torch
import torch.nn.functional as F

from fsth_hub.models.configuration_fsth import FsthConfig
from fsth_hub.models.facial_components import FsthComponentsConfig, FsthFacialComponents
from fsth_hub.models.modeling_fsth import FsthDiscriminator, FsthEmbedder, FsthGenerator


SIZE = 64
NETWORKS = {"embedder": FsthEmbedder, "generator": FsthGenerator, "discriminator": FsthDiscriminator}


def tiny_config(**kwargs) -> FsthConfig:
    tiny = {"image_size": SIZE, "base_channels": 8, "max_channels": 16, "embedding_dim": 12, "num_residual_blocks": 1}
    return FsthConfig(**(tiny | kwargs))


def tiny(network, **kwargs):
    """Always with the same weights; its output is not zero."""
    torch.manual_seed(0)
    model = network(tiny_config(**kwargs)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # zero-started heads would hide what comes before them
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def random_portraits(batch=2, num_portraits=3, size=SIZE):
    """Images and drawings, B x T x 3 x H x W in -1..1, and landmarks, B x T x 78 x 2 pixels; the same every time."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(2, batch * num_portraits, 3, 8, 8, generator=generator) * 2 - 1
    # as smooth as pictures are: noise fades in every pooling, and is another picture when it is warped a little
    smooth = (F.interpolate(part, size, mode="bicubic").clamp(-1, 1) for part in noise)
    images, drawings = (part.unflatten(0, (batch, num_portraits)) for part in smooth)
    landmarks = torch.rand(batch, num_portraits, 78, 2, generator=generator) * size
    landmarks[:, 0, 68:] = float("nan")  # a detector without irises
    return images, drawings, landmarks


def run_network(model, num_portraits=3, **kwargs):
    """The network's output for two people, with as many portraits each, in its own precision."""
    images, drawings, landmarks = random_portraits(num_portraits=num_portraits)
    dtype = model.dtype
    images, drawings = images.to(dtype), drawings.to(dtype)
    embedding = torch.linspace(-1, 1, 2 * 12).view(2, 12).to(dtype)
    if isinstance(model, FsthEmbedder):
        return model(images, drawings, **kwargs)
    if isinstance(model, FsthDiscriminator):
        return model(images[:, 0], drawings[:, 0], embedding, **kwargs)
    adain_parameters = model.project(embedding)
    if not model.config.source_skips:
        return model(drawings[:, 0], adain_parameters, **kwargs)
    sources = model.encode_sources(images, drawings, landmarks)
    return model(drawings[:, 0], adain_parameters, landmarks[:, 1] + 2, sources, **kwargs)


def tiny_components(seed: int = 0) -> FsthFacialComponents:
    """Small networks whose output is not zero."""
    torch.manual_seed(seed)
    config = FsthComponentsConfig(
        mouth_size=32, eye_size=32, mouth_channels=(8, 8, 16), eye_channels=(8, 8, 8), num_middle_blocks=1,
        discriminator_channels=8,
    )  # fmt: skip
    components = FsthFacialComponents(config)
    for network in (components.mouth, components.eye):
        torch.nn.init.normal_(network.head.weight, std=0.3)
    return components.eval()
