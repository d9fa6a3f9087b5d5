"""How the commands of `fsth` load a model. PyTorch is imported as in main.py."""

from typing import TYPE_CHECKING

from ..garbage import no_collection
from ..models.errors import FsthError


if TYPE_CHECKING:
    from ..pipelines.pipeline_fsth import FsthPipeline


def load_pipeline(
    model: str | None,
    device: str,
    dtype: str,
    revision: str | None = None,
    engine: str = "auto",
    discriminator: bool = False,
) -> "FsthPipeline":
    """Load a model, without the discriminator unless it is asked for: only fine-tuning needs one. Its progress bars
    are set up for a terminal."""
    with no_collection():
        import torch

        silence_libraries()
        from ..device import default_device, default_dtype
        from ..pipelines.pipeline_fsth import FsthPipeline

        if device == "auto":
            device = default_device()
        else:
            try:
                torch.empty(0, device=device)
            except (RuntimeError, AssertionError) as error:  # no such name; built without it; no such GPU
                raise FsthError(f"The device '{device}' cannot be used here: try --device auto.") from error
        precision = default_dtype(torch.device(device)) if dtype == "auto" else getattr(torch, dtype)
        left_out = {} if discriminator else {"discriminator": None}
        options = {"dtype": precision, "revision": revision, "engine": engine}
        pipe = FsthPipeline.from_pretrained(model, **options, **left_out).to(device)
    # None: no bar where stderr is not a terminal.
    pipe.set_progress_bar_config(disable=None, leave=False, unit=" frames")
    return pipe


def silence_libraries() -> None:
    """Leave stderr to our own progress and errors: loading a model prints five bars and a warning otherwise."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
