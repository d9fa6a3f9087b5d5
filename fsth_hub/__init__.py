"""Few-shot talking heads that anyone can use (arXiv 1905.08233).

Once a class has been asked for, as by `from fsth_hub import FsthGenerator`, transformers' Auto classes know the
networks and the image processor; `DiffusionPipeline` knows the pipeline after `from fsth_hub import FsthPipeline`.
"""

from importlib import import_module

from .models.errors import FsthError, NoFaceError, VideoError


__version__ = "0.1.0"

# Imported on first use: PyTorch takes seconds, which `fsth --help` does not need, and training needs the networks on
# machines that have neither diffusers nor OpenCV.
_MODULES = {
    "DrivingMotion": "pipelines.driving",
    "Expression": "landmarks.expression",
    "FsthComponentDiscriminators": "models.facial_components",
    "FsthComponentsConfig": "models.facial_components",
    "FsthConfig": "models.configuration_fsth",
    "FsthDiscriminator": "models.modeling_fsth",
    "FsthEmbedder": "models.modeling_fsth",
    "FsthFacialComponents": "models.facial_components",
    "FsthGenerator": "models.modeling_fsth",
    "FsthIdentity": "pipelines.identity",
    "FsthImageProcessor": "models.image_processing_fsth",
    "FsthPipeline": "pipelines.pipeline_fsth",
    "FsthTunedPerson": "pipelines.identity",
}

__all__ = ["FsthError", "NoFaceError", "VideoError", *sorted(_MODULES)]


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'fsth_hub' has no attribute '{name}'")
    import_module(".auto", __name__)
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
