"""Low-rank updates of a tiny generator: added, kept, merged."""

import json
import warnings

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from fsth_hub.finetuning.lora import RANK, add_lora, get_lora, load_lora, lora_parameters, merge, save_lora, start_lora
from fsth_hub.models.modeling_fsth import FsthGenerator
from testing_utils.networks import run_network, tiny


def trained(generator: FsthGenerator, rank: int = RANK) -> FsthGenerator:
    """As if after training: neither A nor B is zero."""
    tuned = add_lora(generator, rank)
    start_lora(tuned, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, tensor in lora_parameters(tuned).items():
            if ".lora_B." in name:
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
    assert lora_parameters(tuned).keys() == {
        f"base_model.model.{name}.lora_{part}.weight" for name in own for part in "AB"
    }
    trainable = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    assert set(trainable) == set(lora_parameters(tuned).values())


def test_untrained_it_draws_as_the_generator_does():
    generator = tiny(FsthGenerator)
    tuned = add_lora(generator)
    start_lora(tuned, torch.Generator().manual_seed(0))
    assert torch.allclose(run_network(tuned).images, run_network(generator).images, atol=1e-5)
    plain = generator.fold_spectral_norm().state_dict()
    merged = merge(generator, get_lora(tuned)).state_dict()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in merged.items())


def test_start_is_by_the_seed_alone():
    generator, starts = tiny(FsthGenerator), []
    for seed in (0, 0, 1):
        tuned = add_lora(generator)
        start_lora(tuned, torch.Generator().manual_seed(seed))
        starts.append(lora_parameters(tuned)["base_model.model.head.lora_A.weight"])
    assert torch.equal(*starts[:2]) and not torch.equal(*starts[1:]) and starts[0].std() > 0


@pytest.mark.parametrize("rank", [RANK, 3])
def test_merged_weights_draw_what_was_trained(rank):
    generator = tiny(FsthGenerator)
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    tuned = trained(generator, rank)
    lora = get_lora(tuned)
    assert all(tensor.dtype == torch.float16 for tensor in lora.values())
    merged = merge(generator, lora)
    # plain: a frame costs what it did
    assert merged.state_dict().keys() == generator.fold_spectral_norm().state_dict().keys()
    assert not any(parameter.requires_grad for parameter in merged.parameters()) and not merged.training
    assert torch.allclose(run_network(merged).images, run_network(tuned).images, atol=1e-4)
    assert (run_network(merged).images - run_network(generator).images).abs().mean() > 0.01
    assert all(torch.equal(tensor, before[name]) for name, tensor in generator.state_dict().items())


def test_merging_keeps_the_precision_and_gives_the_same_bits_every_time():
    generator = tiny(FsthGenerator).to(torch.bfloat16)
    lora = get_lora(trained(generator))
    first, second = (merge(generator, lora).state_dict() for _ in range(2))
    assert all(tensor.dtype == torch.bfloat16 and torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("source_skips", [True, False])
def test_peft_itself_loads_what_is_saved(tmp_path, source_skips):
    generator = tiny(FsthGenerator, source_skips=source_skips)
    lora = get_lora(trained(generator, rank=3))
    save_lora(lora, tmp_path, "ann/base")
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of keys that are missing or left over
        loaded = PeftModel.from_pretrained(tiny(FsthGenerator, source_skips=source_skips), tmp_path)
    assert loaded.peft_config["default"].base_model_name_or_path == "ann/base"
    expected = run_network(merge(generator, lora)).images
    assert torch.allclose(run_network(loaded).images, expected, atol=1e-4)
    assert (expected - run_network(generator).images).abs().mean() > 0.01


def test_what_peft_itself_saves_is_read(tmp_path):
    generator = tiny(FsthGenerator)
    lora = get_lora(trained(generator))
    save_lora(lora, tmp_path, "ann/base")
    PeftModel.from_pretrained(generator, tmp_path).save_pretrained(tmp_path / "again")
    again = load_lora(tmp_path / "again")
    assert again.keys() == lora.keys() == load_lora(tmp_path).keys()
    assert all(torch.equal(tensor.half(), lora[name]) for name, tensor in again.items())


@pytest.mark.parametrize(
    "config, tensors",
    [
        ({"r": 4}, {}),
        ({"lora_alpha": 16}, {}),
        ({"peft_type": "LOHA"}, {}),
        ({"use_dora": True}, {}),
        ({}, {"base_model.model.head.lora_A.weight": torch.zeros(4, 8, 3, 3)}),
        ({}, {"base_model.model.head.lora_B.weight": torch.zeros(3, 8, 1, 1, dtype=torch.int32)}),
        ({}, {"base_model.model.tail.lora_A.weight": torch.zeros(8, 8, 3, 3)}),
        ({}, {"base_model.model.head.lora_magnitude_vector": torch.zeros(8)}),
    ],
)
def test_other_or_damaged_lora_is_refused(tmp_path, config, tensors):
    save_lora(get_lora(trained(tiny(FsthGenerator))), tmp_path, "ann/base")
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    weights = load_file(tmp_path / "adapter_model.safetensors")
    save_file(weights | tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError):
        load_lora(tmp_path)
