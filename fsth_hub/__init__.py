"""Few-shot talking heads that anyone can use (arXiv 1905.08233)."""

from importlib import import_module

from .auto import register


__version__ = "0.1.0"

# Imported on first use: training needs the networks on machines that have neither diffusers nor OpenCV.
_MODULES = {
    "FsthConfig": "models.configuration_fsth",
    "FsthDiscriminator": "models.modeling_fsth",
    "FsthEmbedder": "models.modeling_fsth",
    "FsthError": "models.errors",
    "FsthGenerator": "models.modeling_fsth",
    "FsthIdentity": "pipelines.identity",
    "FsthImageProcessor": "models.image_processing_fsth",
    "FsthPipeline": "pipelines.pipeline_fsth",
    "FsthTunedPerson": "pipelines.identity",
    "NoFaceError": "models.errors",
    "VideoError": "models.errors",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'fsth_hub' has no attribute '{name}'")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]


register()
