"""Makes transformers' Auto classes and diffusers' base class of pipelines know the classes of this package, without
importing transformers or diffusers before they are needed.

Importing them and PyTorch takes seconds, and neither `fsth --help` nor the landmarks need them. So each kind of class
is registered right after the module that defines its Auto class or base class has been imported, or at once where
that has happened already.
"""

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.util import find_spec


AUTO = "transformers.models.auto"


def _register_config(auto):
    from .models.configuration_fsth import FsthConfig

    auto.AutoConfig.register(FsthConfig.model_type, FsthConfig, exist_ok=True)


def _register_networks(auto):
    from .models.configuration_fsth import FsthConfig
    from .models.modeling_fsth import FsthDiscriminator, FsthEmbedder, FsthGenerator

    # one configuration for all three; transformers picks by its `architectures`
    auto.AutoModel.register(FsthConfig, (FsthEmbedder, FsthGenerator, FsthDiscriminator), exist_ok=True)


def _register_image_processor(auto):
    from .models.configuration_fsth import FsthConfig
    from .models.image_processing_fsth import FsthImageProcessor

    auto.AutoImageProcessor.register(FsthConfig, image_processor_classes={"pil": FsthImageProcessor}, exist_ok=True)


def _register_pipeline(_):
    try:
        import_module("fsth_hub.pipelines.pipeline_fsth")  # which registers itself, now or when it is through
    except ImportError:
        pass  # a training machine, which has no OpenCV


REGISTER = {
    "diffusers.pipelines.pipeline_utils": _register_pipeline,
    f"{AUTO}.configuration_auto": _register_config,
    f"{AUTO}.modeling_auto": _register_networks,
    f"{AUTO}.image_processing_auto": _register_image_processor,
}


class _RegisterAfterImport(MetaPathFinder):
    """Has the other finders find the module, and registers our classes once it has been executed."""

    def __init__(self):
        self.waiting = set(REGISTER)

    def find_spec(self, name, path=None, target=None):
        if name not in self.waiting:
            return None
        self.waiting.discard(name)  # before the other finders are asked, or this one would be asked again
        spec = find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            REGISTER[name](module)

        spec.loader.exec_module = exec_module
        return spec


def register() -> None:
    """Called once, when the package is imported."""
    finder = _RegisterAfterImport()
    for name in REGISTER:
        if name in sys.modules:
            finder.waiting.discard(name)
            REGISTER[name](import_module(name))
    sys.meta_path.insert(0, finder)
