"""The networks that the scripts train: new, or those of an earlier run."""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import parametrize

from fsth_hub.models.configuration_fsth import FsthConfig
from fsth_hub.models.modeling_fsth import FsthDiscriminator, FsthEmbedder, FsthGenerator


POWER_ITERATIONS = 15


class MetaLearner(nn.Module):
    """Embedder and generator as one module, so that distributed training sees one forward pass."""

    def __init__(self, embedder: FsthEmbedder, generator: FsthGenerator):
        super().__init__()
        self.embedder = embedder
        self.generator = generator

    def forward(self, images, landmark_images, landmarks, mattes):
        """Generate frame 0 of each episode from the person of frames 1 .. K; B x (1 + K) x ..."""
        sources = images[:, 1:], landmark_images[:, 1:]
        embedder_output = self.embedder(*sources)
        adain_parameters = self.generator.project(embedder_output.embedding)
        if self.generator.config.source_skips:
            pyramid = self.generator.encode_sources(*sources, landmarks[:, 1:], mattes[:, 1:])
            output = self.generator(landmark_images[:, 0], adain_parameters, landmarks[:, 0], pyramid)
        else:
            output = self.generator(landmark_images[:, 0], adain_parameters)
        return output.images, output.warped, embedder_output.frame_embeddings


def load_networks(folder: Path) -> tuple[FsthEmbedder, FsthGenerator, FsthDiscriminator]:
    """The networks of a pipeline's folder, in float32."""
    networks = {"embedder": FsthEmbedder, "generator": FsthGenerator, "discriminator": FsthDiscriminator}
    return tuple(network.from_pretrained(folder / name, dtype=torch.float32) for name, network in networks.items())


def build_networks(args: argparse.Namespace, num_clips: int) -> tuple[FsthEmbedder, FsthGenerator, FsthDiscriminator]:
    """Those of `--pretrained`, or new ones, with a vector in the discriminator for each clip."""
    if not args.pretrained:
        make_config = FsthConfig.paper if args.preset == "paper" else FsthConfig
        names = ("image_size", "network_size", "self_attention", "source_skips")
        options = {name: getattr(args, name) for name in names}
        networks = [network(make_config(**options)) for network in (FsthEmbedder, FsthGenerator)]
        return *networks, FsthDiscriminator(make_config(**options, num_identities=num_clips))
    embedder, generator, saved = load_networks(args.pretrained)
    network_size = args.network_size or saved.config.network_size
    sizes = {"image_size": args.image_size, "network_size": network_size and min(network_size, args.image_size)}
    for network in (embedder, generator):
        network.config.update(sizes)
    # a saved discriminator knows no training video: W starts anew, the rest goes on
    changes = sizes | {"num_identities": num_clips}
    discriminator = FsthDiscriminator(FsthConfig(**saved.config.to_diff_dict() | changes))
    discriminator.load_state_dict(saved.state_dict(), strict=False)
    return embedder.train(), generator.train(), discriminator


def settle_spectral_norm(network: nn.Module):
    """Bring the power iteration of averaged weights to its end: the vectors that came with them are other weights'."""
    network.train()
    with torch.no_grad():
        for module in network.modules():
            if parametrize.is_parametrized(module, "weight"):
                for _ in range(POWER_ITERATIONS):
                    module.weight  # noqa: B018 (in training mode every look at it is one iteration)
    network.eval()
