"""Who keeps which contract of `testing_utils/contracts.py`."""

import numpy as np
import torch

from fsth_hub.finetuning.lora import PREFIX
from fsth_hub.models.modeling_fsth import FsthDiscriminator, FsthEmbedder, FsthGenerator
from testing_utils.contracts import NetworkContract, PersonContract
from testing_utils.networks import SIZE, tiny
from testing_utils.pipelines import frames_of, make_pipeline, picture, tuned_once


class TestEmbedder(NetworkContract):
    network, shape = FsthEmbedder, (2, 12)


class TestGenerator(NetworkContract):
    network, shape = FsthGenerator, (2, 3, SIZE, SIZE)


class TestDiscriminator(NetworkContract):
    network, shape = FsthDiscriminator, (2,)


class TestEmbeddedPerson(PersonContract):
    def make(self, pipe):
        return pipe.embed(picture())

    def test_any_pipeline_of_the_model_draws_them(self, pipe):
        person = self.make(pipe)
        frames = frames_of(pipe, person)
        pipe.to(dtype=torch.bfloat16)
        assert np.array_equal(frames_of(make_pipeline(**self.config), person), frames)

    def test_another_generator_is_seen(self, pipe):
        person = self.make(pipe)
        assert len(pipe.generator_for(person).bottleneck) == 1
        pipe.generator = tiny(FsthGenerator, num_residual_blocks=2, **self.config)
        assert len(pipe.generator_for(person).bottleneck) == 2


class TestPaperPerson(TestEmbeddedPerson):
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
