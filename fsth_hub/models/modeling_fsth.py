"""Embedder, generator and projection discriminator of "Few-Shot Adversarial Learning of Realistic Neural Talking Head
Models" (arXiv 1905.08233 v2, sections 3.1 to 3.3), as `PreTrainedModel` classes.

Frames and landmark drawings are RGB in [-1, 1], B x 3 x H x W. Shapes in comments are those of the paper preset.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from importlib import import_module
from typing import Self

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .blocks import (
    AdaptiveInstanceNorm,
    AdaptiveResidualBlock,
    ResidualBlock,
    SelfAttention,
    ZeroConv2d,
    downsampling_path,
    spectral_norm,
)
from .configuration_fsth import FsthConfig
from .downloading import FETCH_OPTIONS, fetch
from .errors import FsthError
from .source_skips import Composition, FsthSources, SkipFusion, SourceSkips, enlarge, reduce


# An embedder's lowest map has 4 x 4 positions at 256 pixels. The paper sums over them; their mean times this number
# is that sum at 256 and keeps its scale at the sizes a model is first trained at.
NUM_POOLED_POSITIONS = 16
COMPILED = ("compiler", "_compiled_call_impl")  # what compiling leaves in a network


@dataclass
class FsthEmbedderOutput(ModelOutput):
    """
    Args:
        embedding (`torch.Tensor` of shape `(batch, embedding_dim)`): the person, averaged over the portraits.
        frame_embeddings (`torch.Tensor` of shape `(batch, num_portraits, embedding_dim)`): one per portrait.
    """

    embedding: torch.Tensor | None = None
    frame_embeddings: torch.Tensor | None = None


@dataclass
class FsthGeneratorOutput(ModelOutput):
    """
    Args:
        images (`torch.Tensor` of shape `(batch, 3, height, width)`):
            The frames; in [-1, 1] in the paper preset, and to be clamped to it with source skips.
        warped (`torch.Tensor` of shape `(batch, 3, height, width)`, *optional*):
            The fused warped portraits that the frames started from; `None` without source skips.
        composition ([`Composition`], *optional*): how to put them together anew; `None` without source skips.
    """

    images: torch.Tensor | None = None
    warped: torch.Tensor | None = None
    composition: Composition | None = None


@dataclass
class FsthDiscriminatorOutput(ModelOutput):
    """
    Args:
        scores (`torch.Tensor` of shape `(batch,)`): realism and identity, unbounded (hinge loss, no sigmoid).
        features (`tuple` of `torch.Tensor`): the output of every block, for feature matching.
    """

    scores: torch.Tensor | None = None
    features: tuple[torch.Tensor, ...] | None = None


@dataclass(frozen=True)
class ModelSource:
    """
    Where weights come from.

    Args:
        name (`str`): id of a hub repository, name of a folder, or "bundled".
        revision (`str`, *optional*): the commit, of a repository.
        folder (`str`, *optional*): where the pipeline that they belong to lies on this machine, with its card.
    """

    name: str
    revision: str | None = None
    folder: str | None = None


def runs_hook(method):
    """For what else than `forward` computes with a module's weights: accelerate's hook, which brings these to where
    they are needed, is run as for `forward`."""

    @wraps(method)
    def hooked(self, *args, **kwargs):
        hook = getattr(self, "_hf_hook", None)
        if hook is None:
            return method(self, *args, **kwargs)
        args, kwargs = hook.pre_forward(self, *args, **kwargs)
        return hook.post_forward(self, method(self, *args, **kwargs))

    return hooked


def is_hooked(network: nn.Module) -> bool:
    """Whether accelerate or diffusers move its weights about, as for CPU offload: it cannot be looked at as it is."""
    parts = [network]
    while parts:  # `modules()` takes ten times as long, which is felt where it is asked for each frame
        part = vars(parts.pop())
        if "_hf_hook" in part or "_diffusers_hook" in part:
            return True
        parts += filter(None, part["_modules"].values())
    return False


class FsthPreTrainedModel(PreTrainedModel):
    config_class = FsthConfig
    base_model_prefix = "fsth"
    main_input_name = "images"
    source: ModelSource | None = None
    compiler: Callable | None = None  # what its calls are compiled by

    def _init_weights(self, module):
        if parametrize.is_parametrized(module):
            return  # `spectral_norm` has set the weight together with the power-iteration vectors that belong to it
        if isinstance(module, ZeroConv2d):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, nonlinearity="relu")
            init.zeros_(module.bias)
        elif isinstance(module, (nn.InstanceNorm2d, nn.GroupNorm)):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.uniform_(module.weight, -0.1, 0.1)
        elif isinstance(module, SelfAttention):
            init.zeros_(module.gain)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """As in transformers, but refuses pickles, and checkpoints that lack a weight: an unset one would be noise."""
        if kwargs.get("use_safetensors") is False:
            raise FsthError("`use_safetensors=False` is refused: pickled weights can run code and are never read.")
        # As a folder: of a repository with pickled weights transformers would have a third party make safetensors, and
        # give it the token.
        options = {key: kwargs.pop(key) for key in FETCH_OPTIONS if key in kwargs}
        kwargs |= {"output_loading_info": True, "use_safetensors": True, "ignore_mismatched_sizes": True}
        model, info = super().from_pretrained(fetch(pretrained_model_name_or_path, **options), *args, **kwargs)
        misshapen = {name for name, *_ in info["mismatched_keys"]}
        wrong = sorted({*info["missing_keys"], *info["unexpected_keys"], *misshapen})
        if wrong:
            raise ValueError(
                f"The weights in {pretrained_model_name_or_path} do not fit {cls.__name__} ({len(wrong)} missing, "
                f"unexpected or of another shape, first {wrong[0]}); load a checkpoint of this version of fsth_hub."
            )
        # Loaded tensors lie in the mapped file, at any address; vector units sum in another order there, and frames
        # would differ in their last bits from those of the model that was saved.
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.data = tensor.data.clone()
        if cls._auto_class is None and hasattr(model.config, "auto_map"):
            del model.config.auto_map  # saved again, it would name code that is not saved along
        return (model, info) if output_loading_info else model

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoModel"):
        """As in transformers, and the configuration with it: a network is not found without its configuration."""
        super().register_for_auto_class(auto_class)
        cls.config_class.register_for_auto_class()

    def push_to_hub(self, repo_id: str, *, private: bool = True, **kwargs) -> str:
        """As in transformers, but a new repository is private unless it is to be public."""
        return super().push_to_hub(repo_id, private=private, **kwargs)

    def fold_spectral_norm(self):
        """A copy for inference with spectral norm folded into plain weights: the same output, no power iteration."""
        folded = copy.deepcopy(self).eval()
        for module in folded.modules():
            if parametrize.is_parametrized(module, "weight"):
                # a copy shares its parametrized class with the original, so `remove_parametrizations` would break that
                weight = module.weight.detach().clone()
                module.__class__ = parametrize.type_before_parametrizations(module)
                del module.parametrizations
                module.weight = nn.Parameter(weight)
        return folded

    def compile(self, **options) -> None:
        """As in PyTorch. A pipeline compiles what it makes of the network to generate with alike."""
        self.compile_by(partial(torch.compile, **options))

    def compile_by(self, compiler: Callable | None) -> Self:
        """Compile calls by a function of functions, such as `torch.compile`; `None` for not at all."""
        self.compiler, self._compiled_call_impl = compiler, compiler and compiler(self._call_impl)
        return self

    def __deepcopy__(self, memo):
        """Without hooks: a copy is nobody's to move about. Weights that were offloaded are back in place. Without what
        was compiled, too, which would go on computing with the original's weights."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        own = {name: value for name, value in self.__dict__.items() if name not in COMPILED}
        copied.__dict__.update(copy.deepcopy(own, memo))
        if is_hooked(copied):
            # no import statement: where this file is loaded without its package, it would make accelerate compulsory
            import_module("accelerate.hooks").remove_hook_from_module(copied, recurse=True)
        return copied

    def __reduce__(self):
        """By configuration and weights: PyTorch pickles no module that has spectral norm."""
        network = copy.deepcopy(self) if is_hooked(self) else self
        frozen = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
        return _rebuild, (type(self), self.config, network.state_dict(), frozen, self.training, self.source)


def _rebuild(network_class, config, state, frozen, training, source):
    """What a pickle of a network is loaded with."""
    with torch.device("meta"):
        network = network_class(config)
    if not any("parametrizations" in name for name in state):
        network = network.fold_spectral_norm()
    network.load_state_dict(state, assign=True)
    for name in frozen:
        network.get_parameter(name).requires_grad_(False)
    network.source = source
    return network.train(training)


class FsthEmbedder(FsthPreTrainedModel):
    """The embedder E: portraits and their landmark drawings to one identity embedding (section 3.2)."""

    def __init__(self, config: FsthConfig):
        super().__init__(config)
        channels = config.channels(6)
        self.blocks = downsampling_path(6, channels, config.self_attention)
        # the paper's embedding is as wide as the last map; a narrower or wider one needs a projection
        same = config.embedding_dim == channels[-1]
        self.projection = nn.Identity() if same else spectral_norm(nn.Linear(channels[-1], config.embedding_dim))
        self.post_init()

    def forward(self, images, landmark_images, return_dict: bool = True) -> FsthEmbedderOutput | tuple:
        """
        Args:
            images (`torch.Tensor` of shape `(batch, num_portraits, 3, height, width)`): portraits in [-1, 1].
            landmark_images (`torch.Tensor` of the same shape): their landmark drawings in [-1, 1].
            return_dict (`bool`, *optional*, defaults to `True`): an [`FsthEmbedderOutput`] or a plain tuple.
        """
        h = torch.cat([landmark_images, images], dim=2).flatten(0, 1)  # BK x 6 x 256 x 256
        h = reduce(h, self.config.working_size)
        for block in self.blocks:
            h = block(h)  # BK x 64 x 128 x 128 ... BK x 512 x 4 x 4
        pooled = F.relu(h).mean(dim=(2, 3)) * NUM_POOLED_POSITIONS  # BK x 512
        frame_embeddings = self.projection(pooled).unflatten(0, images.shape[:2])  # B x K x 512
        output = FsthEmbedderOutput(embedding=frame_embeddings.mean(dim=1), frame_embeddings=frame_embeddings)
        return output if return_dict else output.to_tuple()


class FsthGenerator(FsthPreTrainedModel):
    """The generator G: a landmark drawing to a frame, under a person's AdaIN parameters (section 3.2).

    With `config.source_skips` it also looks at the portraits: their features, warped to the driving landmarks, enter
    the decoder, which predicts what to add to the warped portrait.
    """

    def __init__(self, config: FsthConfig):
        super().__init__(config)
        channels = config.channels(4)  # 64, 128, 256, 512
        in_channels = 6 if config.source_skips else 3
        self.encoder = downsampling_path(in_channels, channels, config.self_attention, instance_norm=True)
        self.bottleneck = nn.ModuleList(
            AdaptiveResidualBlock(channels[-1], channels[-1], upsample=False)
            for _ in range(config.num_residual_blocks)
        )
        inputs, outputs = [channels[-1]] + channels[:0:-1], channels[::-1]  # 512 512 256 128, 512 256 128 64
        self.decoder = nn.ModuleList(AdaptiveResidualBlock(i, o) for i, o in zip(inputs, outputs, strict=True))
        self.attention = SelfAttention(outputs[1]) if config.self_attention else nn.Identity()
        self.final_norm = AdaptiveInstanceNorm(channels[0])
        if config.source_skips:
            self.source_skips = SourceSkips(config)
            # one per decoder resolution, 1/8, 1/4 and 1/2 of the frame, and one at its full resolution
            self.fusions = nn.ModuleList(
                SkipFusion(encoded + source, decoded)
                for encoded, source, decoded in zip(channels[2::-1], channels[2::-1], outputs[:3], strict=True)
            )
            self.image_fusion = nn.Conv2d(6, channels[0], 3, padding=1)
        # From an orthogonal start the first frames are noise, and the quickest way out of noise is to drive tanh into
        # saturation: within six steps most of a frame is white, and stays so for hundreds (training/LOG.md).
        self.head = ZeroConv2d(channels[0], 3, 3, padding=1)

        norms = [module for module in self.modules() if isinstance(module, AdaptiveInstanceNorm)]
        self.adain_sizes = [norm.num_parameters for norm in norms]
        self.projection = spectral_norm(nn.Linear(config.embedding_dim, sum(self.adain_sizes)))
        self.post_init()

    @runs_hook
    def project(self, embedding):
        """The person's AdaIN parameters, psi = P e (section 3.2): B x embedding_dim to B x sum(adain_sizes)."""
        return self.projection(embedding)

    @runs_hook
    def encode_sources(self, images, landmark_images, landmarks, mattes=None) -> FsthSources:
        """The portraits' feature pyramids and layers, once for a person; see [`SourceSkips.encode`] for shapes."""
        return self.source_skips.encode(images, landmark_images, landmarks, mattes)

    def forward(
        self,
        landmark_images,
        adain_parameters,
        landmarks=None,
        sources: FsthSources | None = None,
        return_images: bool = True,
        return_dict: bool = True,
    ) -> FsthGeneratorOutput | tuple:
        """
        Args:
            landmark_images (`torch.Tensor` of shape `(batch, 3, height, width)`): landmark drawings in [-1, 1].
            adain_parameters (`torch.Tensor` of shape `(batch, sum(adain_sizes))`):
                Of [`FsthGenerator.project`], or tuned for a person.
            landmarks (`torch.Tensor` of shape `(batch, 78, 2)`, *optional*):
                The points that were rasterized, pixels, x then y, NaN where absent; with source skips only.
            sources (`FsthSources`, *optional*): of [`FsthGenerator.encode_sources`]; with source skips only.
            return_images (`bool`, *optional*, defaults to `True`):
                With source skips `False` leaves out the frames, for who puts them together by their composition.
            return_dict (`bool`, *optional*, defaults to `True`): an [`FsthGeneratorOutput`] or a plain tuple.
        """
        if not self.config.source_skips:
            output = FsthGeneratorOutput(images=torch.tanh(self.generate(landmark_images, adain_parameters)))
            return output if return_dict else output.to_tuple()
        fused = self.source_skips(sources, landmark_images, landmarks)
        inputs = reduce(torch.cat([landmark_images, fused.images], dim=1), self.config.working_size)
        residual = self.generate(inputs, adain_parameters, fused.features)
        residual = residual * fused.gain.to(residual.dtype)
        composition = Composition(**fused.composition, residual=residual)
        images = fused.images + enlarge(residual, fused.images.shape[-1]) if return_images else None
        output = FsthGeneratorOutput(images=images, warped=fused.images, composition=composition)
        return output if return_dict else output.to_tuple()

    def generate(self, inputs, adain_parameters, source_features=()) -> torch.Tensor:
        """
        The networks alone.

        Args:
            inputs (`torch.Tensor` of shape `(batch, 3 or 6, height, width)`):
                Landmark drawings in [-1, 1], with source skips beside the fused warped portraits.
            adain_parameters (`torch.Tensor` of shape `(batch, sum(adain_sizes))`): as in [`~FsthGenerator.forward`].
            source_features (`Sequence` of `torch.Tensor`, *optional*): of [`FusedSources`]; with source skips only.

        Returns:
            `torch.Tensor` of shape `(batch, 3, height, width)`: what the frames, or their residuals, are made of.
        """
        x, encoded = inputs, []
        for block in self.encoder:
            x = block(x)
            encoded.append(x)  # B x 64 x 128 x 128 ... B x 512 x 16 x 16

        parameters = iter(adain_parameters.split(self.adain_sizes, dim=1))
        for block in self.bottleneck:
            x = block(x, next(parameters), next(parameters))  # B x 512 x 16 x 16
        for level, block in enumerate(self.decoder):
            if source_features and level > 0:
                x = x + self.fusions[level - 1](encoded[3 - level], source_features[3 - level])
            x = block(x, next(parameters), next(parameters))  # B x 512 x 32 x 32 ... B x 64 x 256 x 256
            if level == 1:
                x = self.attention(x)

        if source_features:
            x = x + self.image_fusion(inputs)
        return self.head(F.relu(self.final_norm(x, next(parameters)), inplace=True))  # B x 3 x 256 x 256


class FsthDiscriminator(FsthPreTrainedModel):
    """The projection discriminator D: r = V(x, y) . (W_i + w_0) + b (section 3.2)."""

    def __init__(self, config: FsthConfig):
        super().__init__(config)
        channels = config.channels(6)
        self.blocks = downsampling_path(6, channels, config.self_attention)
        self.blocks.append(ResidualBlock(channels[-1], channels[-1], downsample=False))
        same = config.embedding_dim == channels[-1]
        self.projection = nn.Identity() if same else spectral_norm(nn.Linear(channels[-1], config.embedding_dim))
        self.realism = spectral_norm(nn.Linear(config.embedding_dim, 1))  # w_0 and b
        # W itself carries no spectral norm: dividing it by its norm over all videos would leave each W_i far from the
        # embedding that it has to match, and fine-tuning replaces W_i by that embedding.
        self.identities = nn.Embedding(config.num_identities, config.embedding_dim) if config.num_identities else None
        self.post_init()

    def forward(
        self, images, landmark_images, identity_embedding, return_dict: bool = True
    ) -> FsthDiscriminatorOutput | tuple:
        """
        Args:
            images (`torch.Tensor` of shape `(batch, 3, height, width)`): real or generated frames in [-1, 1].
            landmark_images (`torch.Tensor` of the same shape): their landmark drawings in [-1, 1].
            identity_embedding (`torch.Tensor` of shape `(batch, embedding_dim)`):
                The person's W_i, of `identities(index)` or tuned.
            return_dict (`bool`, *optional*, defaults to `True`): an [`FsthDiscriminatorOutput`] or a plain tuple.
        """
        h = reduce(torch.cat([landmark_images, images], dim=1), self.config.working_size)  # B x 6 x 256 x 256
        features = []
        for block in self.blocks:
            h = block(h)
            features.append(h)  # B x 64 x 128 x 128 ... B x 512 x 4 x 4
        pooled = F.relu(h).mean(dim=(2, 3)) * NUM_POOLED_POSITIONS  # B x 512
        vector = self.projection(pooled)  # B x 512
        scores = (vector * identity_embedding).sum(dim=1) + self.realism(vector).squeeze(1)  # B
        output = FsthDiscriminatorOutput(scores=scores, features=tuple(features))
        return output if return_dict else output.to_tuple()
