"""Who keeps which contract of `testing_utils/contracts.py`."""

from fsth_hub.finetuning.lora import PREFIX
from fsth_hub.models.modeling_fsth import FsthDiscriminator, FsthEmbedder, FsthGenerator
from testing_utils.contracts import NetworkContract, PersonContract, PipelineContract
from testing_utils.networks import SIZE
from testing_utils.pipelines import tuned_once


class TestEmbedder(NetworkContract):
    network, shape = FsthEmbedder, (2, 12)


class TestGenerator(NetworkContract):
    network, shape = FsthGenerator, (2, 3, SIZE, SIZE)


class TestDiscriminator(NetworkContract):
    network, shape = FsthDiscriminator, (2,)


class TestPipeline(PipelineContract):
    pass


class TestPaperPipeline(PipelineContract):
    config = {"source_skips": False}


class TestTunedPerson(PersonContract):
    def make(self, pipe):
        return tuned_once(pipe, "full")

    def change(self, pipe, person):
        person.generator.head.bias -= 0.3


class TestPersonOfLoRA(PersonContract):
    def make(self, pipe):
        return tuned_once(pipe, "lora")

    def change(self, pipe, person):
        person.weights[f"{PREFIX}head.lora_B.weight"] -= 0.3
