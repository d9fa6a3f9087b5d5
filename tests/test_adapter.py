"""Low-rank updates of a tiny generator: added, kept, merged."""

import pytest
import torch
from test_modeling import run, tiny
from torch import nn

from fsth_hub.adapter import RANK, add_lora, get_adapter, lora_parameters, merge, start_lora
from fsth_hub.modeling_fsth import FsthGenerator


def trained(generator: FsthGenerator, rank: int = RANK) -> FsthGenerator:
    """As if after training: neither A nor B is zero."""
    tuned = add_lora(generator, rank)
    start_lora(tuned, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, tensor in lora_parameters(tuned).items():
            if name.endswith("lora_B"):
                tensor.add_(0.05 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)))
            tensor.copy_(tensor.half())
    return tuned


@pytest.mark.parametrize("source_skips", [True, False])
def test_every_convolution_but_those_of_the_source_skips_is_trained(source_skips):
    generator = tiny(FsthGenerator, source_skips=source_skips)
    tuned = add_lora(generator)
    convolutions = [name for name, module in generator.named_modules() if isinstance(module, nn.Conv2d)]
    own = [name for name in convolutions if "source_skips" not in name]
    assert "head" in own and (len(own) < len(convolutions)) == source_skips
    assert lora_parameters(tuned).keys() == {f"{name}.lora_{part}" for name in own for part in "AB"}
    trainable = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    assert set(trainable) == set(lora_parameters(tuned).values())


def test_untrained_it_draws_as_the_generator_does():
    generator = tiny(FsthGenerator)
    tuned = add_lora(generator)
    start_lora(tuned, torch.Generator().manual_seed(0))
    assert torch.allclose(run(tuned).images, run(generator).images, atol=1e-5)
    plain = generator.fold_spectral_norm().state_dict()
    merged = merge(generator, get_adapter(tuned)).state_dict()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in merged.items())


def test_start_is_by_the_seed_alone():
    generator, starts = tiny(FsthGenerator), []
    for seed in (0, 0, 1):
        tuned = add_lora(generator)
        start_lora(tuned, torch.Generator().manual_seed(seed))
        starts.append(lora_parameters(tuned)["head.lora_A"])
    assert torch.equal(*starts[:2]) and not torch.equal(*starts[1:]) and starts[0].std() > 0


@pytest.mark.parametrize("rank", [RANK, 3])
def test_merged_weights_draw_what_was_trained(rank):
    generator = tiny(FsthGenerator)
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    tuned = trained(generator, rank)
    adapter = get_adapter(tuned)
    assert all(tensor.dtype == torch.float16 for tensor in adapter.values())
    merged = merge(generator, adapter)
    # plain: a frame costs what it did
    assert merged.state_dict().keys() == generator.fold_spectral_norm().state_dict().keys()
    assert not any(parameter.requires_grad for parameter in merged.parameters()) and not merged.training
    assert torch.allclose(run(merged).images, run(tuned).images, atol=1e-4)
    assert (run(merged).images - run(generator).images).abs().mean() > 0.01
    assert all(torch.equal(tensor, before[name]) for name, tensor in generator.state_dict().items())


def test_merging_keeps_the_precision_and_gives_the_same_bits_every_time():
    generator = tiny(FsthGenerator).to(torch.bfloat16)
    adapter = get_adapter(trained(generator))
    first, second = (merge(generator, adapter).state_dict() for _ in range(2))
    assert all(tensor.dtype == torch.bfloat16 and torch.equal(tensor, second[name]) for name, tensor in first.items())
