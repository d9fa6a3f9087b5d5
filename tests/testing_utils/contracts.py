"""What every network and every person promise, each written once; `test_contracts.py` says of which."""

import copy
import pickle

import numpy as np
import pytest
import torch
from accelerate import cpu_offload

from fsth_hub.models.errors import FsthError
from fsth_hub.models.modeling_fsth import FsthGenerator, FsthPreTrainedModel, ModelSource, is_hooked
from fsth_hub.pipelines.pipeline_fsth import FsthPipeline
from testing_utils.networks import run_network, tiny
from testing_utils.pipelines import StubDetector, frames_of, make_pipeline, picture


META = torch.device("meta")
COPIES = {"copy": copy.deepcopy, "pickle": lambda item: pickle.loads(pickle.dumps(item))}


def equal_states(model: torch.nn.Module, other: torch.nn.Module) -> bool:
    state, other_state = model.state_dict(), other.state_dict()
    return state.keys() == other_state.keys() and all(torch.equal(state[key], other_state[key]) for key in state)


class NetworkContract:
    """
    Attributes:
        network (`type`): whose contract it is.
        shape (`tuple[int, ...]`): of its first output, for two people.
    """

    network: type[FsthPreTrainedModel]
    shape: tuple[int, ...]

    def make(self) -> FsthPreTrainedModel:
        return tiny(self.network)

    @pytest.mark.parametrize(
        "config",
        [{}, {"source_skips": False}, {"source_skips": False, "self_attention": True}],
        ids=["default", "without skips", "paper"],
    )
    def test_output_is_a_dict_or_a_tuple(self, config):
        model = tiny(self.network, **config)
        first, *_ = run_network(model).to_tuple()
        assert first.shape == self.shape and torch.isfinite(first).all()
        assert torch.equal(run_network(model, return_dict=False)[0], first)

    def test_saved_and_loaded_it_is_the_same_to_the_bit(self, tmp_path):
        model = self.make().train()
        run_network(model)  # a training step moves the power-iteration vectors away from what a fresh model has
        model.eval().save_pretrained(tmp_path)
        loaded, info = self.network.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
        assert any("_u" in key for key in model.state_dict()) and equal_states(model, loaded)
        assert not any(tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])
        assert torch.equal(run_network(model).to_tuple()[0], run_network(loaded).to_tuple()[0])

    def test_a_checkpoint_without_a_weight_is_refused(self, tmp_path):
        model = self.make()
        state = model.state_dict()
        *_, last = (name for name, _ in model.named_parameters() if "parametrizations" not in name)
        del state[last]
        model.save_pretrained(tmp_path, state_dict=state)
        with pytest.raises(ValueError, match=last):
            self.network.from_pretrained(tmp_path)

    def test_pickled_weights_are_refused(self, tmp_path):
        with pytest.raises(FsthError, match="pickled weights can run code"):
            self.network.from_pretrained(tmp_path, use_safetensors=False)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_near_single(self, dtype):
        model = self.make()
        single = run_network(model).to_tuple()[0]
        half = run_network(model.to(dtype)).to_tuple()[0]
        assert half.dtype == dtype
        assert (single - half.float()).abs().mean() < 0.05 * single.abs().mean()

    def test_fusing_spectral_norm_changes_nothing(self):
        model = self.make()
        before = run_network(model).to_tuple()[0]
        fused = model.fold_spectral_norm()
        assert torch.equal(run_network(fused).to_tuple()[0], before)
        assert not any("parametrizations" in key for key in fused.state_dict())
        assert torch.equal(run_network(model).to_tuple()[0], before)  # the original goes on, spectral norm and all
        assert torch.equal(run_network(model.fold_spectral_norm()).to_tuple()[0], before)

    def test_every_parameter_learns(self):
        model = self.make().train()
        outputs = [part for part in run_network(model).to_tuple() if isinstance(part, torch.Tensor)]
        sum(part.float().pow(2).sum() for part in outputs).backward()
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []

    @pytest.mark.parametrize("folded", [False, True])
    def test_pickled_it_keeps_its_mode_and_what_is_trained(self, folded):
        network = self.make().fold_spectral_norm() if folded else self.make().train()
        next(network.parameters()).requires_grad_(False)
        other = pickle.loads(pickle.dumps(network))
        assert other.training == network.training and equal_states(network, other)
        assert [p.requires_grad for p in other.parameters()] == [p.requires_grad for p in network.parameters()]


class PersonContract:
    """A person is drawn right wherever pipeline and person lie, and whatever becomes of them."""

    config: dict = {}

    @pytest.fixture
    def pipe(self) -> FsthPipeline:
        return make_pipeline(**self.config)

    def make(self, pipe: FsthPipeline):
        """The person, for a pipeline of `make_pipeline`."""
        raise NotImplementedError

    def change(self, pipe: FsthPipeline, person) -> None:
        """Change the weights that draw this person, in place."""
        pipe.generator.head.bias -= 0.3

    def test_two_runs_are_equal_and_nothing_in_the_networks_moves(self, pipe):
        person, networks = self.make(pipe), (pipe.embedder, pipe.generator, pipe.discriminator)
        before = [copy.deepcopy(network) for network in networks]
        frames = frames_of(pipe, person)
        assert np.array_equal(frames_of(pipe, person), frames) and not np.array_equal(*frames)
        assert all(network.training for network in networks) and all(map(equal_states, networks, before))

    def test_follows_the_pipelines_precision(self, pipe):
        person = self.make(pipe)
        single = frames_of(pipe, person)
        half = frames_of(pipe.to(dtype=torch.bfloat16), person)
        assert half.std() > 1 and 0 < np.abs(single.astype(int) - half).mean() < 2
        assert person.adain_parameters.dtype == torch.float32  # they are kept as they were

    def test_follows_the_pipelines_device(self, pipe):
        person = self.make(pipe)
        pipe.to(META)
        generator = pipe.generator_for(person)
        parameters, sources = person.inputs(META, generator.dtype)
        tensors = [parameters, *generator.parameters(), *generator.buffers()]
        if sources is not None:
            tensors += [*sources.to_tuple()[:-1], *sources.features]
        assert all(tensor.device == META for tensor in tensors)
        assert person.adain_parameters.device.type == "cpu"

    def test_weights_are_made_ready_once(self, pipe, monkeypatch):
        person = self.make(pipe)
        before = frames_of(pipe, person)
        made, fold = [], FsthPreTrainedModel.fold_spectral_norm
        monkeypatch.setattr(FsthPreTrainedModel, "fold_spectral_norm", lambda self: made.append(self) or fold(self))
        ready = pipe.generator_for(person)
        assert np.array_equal(frames_of(pipe, person), before)
        assert pipe.generator_for(person) is ready and not made
        with torch.no_grad():
            self.change(pipe, person)
        assert not np.array_equal(frames_of(pipe, person), before)
        assert pipe.generator_for(person) is not ready
        assert pipe.generator_for(person).dtype != pipe.to(torch.bfloat16).generator_for(person).dtype

    @pytest.mark.parametrize("way", ["model", "sequential"])
    def test_offloaded_pipeline_draws_the_same(self, pipe, way):
        networks = (pipe.embedder, pipe.generator, pipe.discriminator)
        for network in networks:
            network.eval()
        person = self.make(pipe)
        expected = [frames_of(pipe, one).astype(int) for one in (person, picture())]
        offload(pipe, way)
        resting = META if way == "sequential" else torch.device("cpu")
        for one, frames in zip((person, picture()), expected, strict=True):
            assert is_hooked(pipe.generator) and pipe.generator.device == resting
            assert (np.abs(frames_of(pipe, one) - frames) <= 1).all()
        assert is_hooked(pipe.generator) and pipe.generator.device == resting

    @pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
    def test_copies_of_what_was_used_draw_the_same(self, pipe, copied):
        pipe.generator.source = ModelSource("ann/heads", "0123")
        person = self.make(pipe)
        expected = frames_of(pipe, person)
        other, someone = copied(pipe), copied(person)
        assert type(other.generator) is FsthGenerator and other.generator is not pipe.generator
        assert (other.model_name, other.model_revision) == ("ann/heads", "0123")
        for drawing, drawn in ((pipe, someone), (other, person), (other, someone)):
            assert np.array_equal(frames_of(drawing, drawn), expected)
        with torch.no_grad():  # they are independent
            other.generator.head.bias += 1
        assert np.array_equal(frames_of(pipe, person), expected)


class PipelineContract(PersonContract):
    """
    What a pipeline promises, to whom it embeds.

    Attributes:
        config (`dict`): of its networks, what is not the default of `tiny_config`.
    """

    def make(self, pipe):
        return pipe.embed(picture())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_saved_and_loaded_it_draws_the_same_bits(self, pipe, tmp_path, dtype):
        pipe.to(dtype=dtype).save_pretrained(tmp_path)
        loaded = FsthPipeline.from_pretrained(tmp_path, dtype=dtype, detector=StubDetector())
        loaded.set_progress_bar_config(disable=True)
        assert loaded.size == pipe.size and loaded.image_processor.side == pipe.image_processor.side
        frames = [frames_of(one, self.make(one)) for one in (pipe, loaded)]
        assert np.array_equal(*frames) and frames[0].std() > 1

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


def offload(pipe: FsthPipeline, way: str) -> None:
    """To the processor from the processor, as there may be no other device."""
    if way == "model":
        pipe.enable_model_cpu_offload(device="cpu")
    else:  # what `enable_sequential_cpu_offload` does, but that says "cpu:0", which moves parameters for ever
        for network in (pipe.embedder, pipe.generator, pipe.discriminator):
            cpu_offload(network, torch.device("cpu"))
