"""Configuration shared by the three networks of arXiv 1905.08233: exactly the choices their constructors make."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class FsthConfig(PreTrainedConfig):
    r"""
    Configuration of [`FsthEmbedder`], [`FsthGenerator`] and [`FsthDiscriminator`]. The defaults are the small preset
    that ships with the package; [`FsthConfig.paper`] is the paper.

    Args:
        image_size (`int`, *optional*, defaults to 256):
            Side of the square frames in pixels; a multiple of 64, the resolution lost by the embedder.
        network_size (`int`, *optional*):
            Side in pixels of what the networks work on, a multiple of 16, from 64 to `image_size`, its default:
            what they are given is reduced to it, and flow and residual are enlarged. With source skips only.
        base_channels (`int`, *optional*, defaults to 32):
            Channels after the first block of each network; each further resolution doubles them.
        max_channels (`int`, *optional*, defaults to 256):
            Upper bound of that doubling.
        embedding_dim (`int`, *optional*, defaults to 256):
            Size N of the identity embedding.
        num_residual_blocks (`int`, *optional*, defaults to 3):
            Residual blocks at the generator's lowest resolution, 1/16 of the frame.
        self_attention (`bool`, *optional*, defaults to `False`):
            Self-attention at 1/8 resolution in every downsampling path and 1/4 resolution in the generator's decoder
            (paper section 3.2; the author's later code leaves it out).
        source_skips (`bool`, *optional*, defaults to `True`):
            Whether the generator also looks at the portraits: their features, warped by landmarks, enter its decoder,
            which then predicts what to add to the warped portrait. The paper's generator sees the embedding alone.
        num_identities (`int`, *optional*, defaults to 0):
            Rows of the discriminator's person matrix W, one per training video; 0 once meta-training is over.
    """

    model_type = "fsth"

    image_size: int = 256
    network_size: int | None = None
    base_channels: int = 32
    max_channels: int = 256
    embedding_dim: int = 256
    num_residual_blocks: int = 3
    self_attention: bool = False
    source_skips: bool = True
    num_identities: int = 0

    @classmethod
    def paper(cls, **kwargs) -> "FsthConfig":
        """The networks of the paper, without self-attention: 14.83 M, 37.91 M and 19.55 M parameters."""
        paper = {"base_channels": 64, "max_channels": 512, "embedding_dim": 512, "num_residual_blocks": 4}
        return cls(**(paper | {"source_skips": False} | kwargs))

    def validate_image_size(self):
        if self.image_size < 64 or self.image_size % 64:
            raise ValueError(f"image_size must be a positive multiple of 64, not {self.image_size}.")

    def validate_network_size(self):
        size = self.network_size
        if size is None or size == self.image_size:
            return
        if not self.source_skips:
            raise ValueError("network_size needs source skips: without them frames come from the networks alone.")
        if not 64 <= size <= self.image_size or size % 16:
            raise ValueError(
                f"network_size must be a multiple of 16 from 64 to image_size ({self.image_size}), not {size}."
            )

    @property
    def working_size(self) -> int:
        """Side in pixels of what the networks work on."""
        return self.network_size or self.image_size

    def channels(self, num_levels: int) -> list[int]:
        """Channels of each resolution, from 1/2 of the frame downwards."""
        return [min(self.base_channels * 2**level, self.max_channels) for level in range(num_levels)]
