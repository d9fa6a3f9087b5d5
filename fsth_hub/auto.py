"""Registers the networks and the image processor with transformers' Auto classes, once, when it is imported.

`fsth_hub` imports it as soon as one of its classes is asked for. The files of `models/` do not register themselves:
they are also shipped to people who load them without this package, whose Auto classes are theirs.
"""

from transformers import AutoConfig, AutoImageProcessor, AutoModel

from .models.configuration_fsth import FsthConfig
from .models.facial_components import FsthComponentDiscriminators, FsthComponentsConfig, FsthFacialComponents
from .models.image_processing_fsth import FsthImageProcessor
from .models.modeling_fsth import FsthDiscriminator, FsthEmbedder, FsthGenerator


# Several networks share a configuration; transformers picks by its `architectures`.
NETWORKS = {
    FsthConfig: (FsthEmbedder, FsthGenerator, FsthDiscriminator),
    FsthComponentsConfig: (FsthFacialComponents, FsthComponentDiscriminators),
}

for config, networks in NETWORKS.items():
    AutoConfig.register(config.model_type, config)
    AutoModel.register(config, networks)
AutoImageProcessor.register(FsthConfig, image_processor_classes={"pil": FsthImageProcessor})
