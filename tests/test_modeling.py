import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch.utils._python_dispatch import TorchDispatchMode

from fsth_hub.models.blocks import NORM_EPS, instance_norm
from fsth_hub.models.configuration_fsth import FsthConfig
from fsth_hub.models.landmark_layout import FACE, LEFT_EYE
from fsth_hub.models.modeling_fsth import FsthDiscriminator, FsthEmbedder, FsthGenerator
from fsth_hub.models.source_skips import MAX_FUSED, PLACE_SHARE, SIMILARITY_WIDTH, landmark_similarity
from testing_utils.networks import NETWORKS, SIZE, random_portraits, run_network, tiny, tiny_config


@pytest.mark.parametrize(
    "network, millions", [(FsthEmbedder, 14.83), (FsthGenerator, 37.91), (FsthDiscriminator, 19.55)]
)
def test_paper_parameter_counts(network, millions):
    with torch.device("meta"):
        model = network(FsthConfig.paper())
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.02)


def test_paper_projection_has_two_numbers_for_each_adaptive_channel():
    with torch.device("meta"):
        model = FsthGenerator(FsthConfig.paper())
    assert sum(model.adain_sizes) == 13_056


def test_networks_work_at_their_own_size_and_frames_keep_theirs():
    large, small = (tiny(FsthGenerator, image_size=128, network_size=size) for size in (None, 64))
    assert large.config.working_size == 128 and small.config.working_size == 64
    small.load_state_dict(large.state_dict())
    images, drawings, landmarks = random_portraits(size=128)
    embedding = torch.linspace(-1, 1, 2 * 12).view(2, 12)
    outputs, seen = {}, {}
    for name, model in (("large", large), ("small", small)):
        sources = model.encode_sources(images, drawings, landmarks)
        model.encoder[0].register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0].shape}))
        outputs[name] = model(drawings[:, 0], model.project(embedding), landmarks[:, 1] + 2, sources)
    assert seen == {"large": (2, 6, 128, 128), "small": (2, 6, 64, 64)}
    for output in outputs.values():
        assert output.images.shape == output.warped.shape == (2, 3, 128, 128)
        assert output.composition.flow.shape[2:4] == (128, 128)
    assert outputs["small"].composition.residual.shape[-1] == 64
    # the portraits are warped at full size whatever the networks' is
    detail = (outputs["large"].warped - F.avg_pool2d(outputs["large"].warped, 3, 1, 1)).abs().mean()
    assert (outputs["small"].warped - F.avg_pool2d(outputs["small"].warped, 3, 1, 1)).abs().mean() > 0.7 * detail

    for network in (FsthEmbedder, FsthDiscriminator):
        model = tiny(network, image_size=128, network_size=64)
        blocks = model.blocks[0]
        blocks.register_forward_pre_hook(lambda _, args: seen.update(other=args[0].shape[-1]))
        person = () if network is FsthEmbedder else (embedding,)
        model(*(x if network is FsthEmbedder else x[:, 0] for x in (images, drawings)), *person)
        assert seen["other"] == 64


@pytest.mark.parametrize("size", [40, 72, 256])
def test_network_sizes_that_cannot_be_are_refused(size):
    with pytest.raises(StrictDataclassClassValidationError, match="network_size must be a multiple of 16"):
        FsthConfig(image_size=128, network_size=size)
    with pytest.raises(StrictDataclassClassValidationError, match="source skips"):
        FsthConfig.paper(network_size=64)


def test_untrained_generator_draws_grey_and_not_noise_that_saturation_would_hide():
    torch.manual_seed(0)
    model = FsthGenerator(tiny_config(source_skips=False))
    assert not run_network(model).images.any()
    torch.optim.SGD(model.parameters(), 1.0).step(lambda: (run_network(model).images.mean() - 1).square().backward())
    assert run_network(model).images.any()  # but it learns


@pytest.mark.parametrize("network", NETWORKS.values())
def test_activations_keep_their_scale(network):
    """A network whose activations fade layer by layer does not learn in any time that people have."""
    torch.manual_seed(0)
    model = network(FsthConfig())
    scales = []
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d) and type(module).__name__ != "ZeroConv2d":
            module.register_forward_hook(lambda module, inputs, output: scales.append(output.std().item()))
    images, drawings, landmarks = random_portraits(batch=1, num_portraits=1, size=256)
    embedding = FsthEmbedder(model.config)(images, drawings).embedding
    if network is FsthEmbedder:
        model(images, drawings)
    elif network is FsthDiscriminator:
        model(images[:, 0], drawings[:, 0], embedding)
    else:
        sources = model.encode_sources(images, drawings, landmarks)
        model(drawings[:, 0], model.project(embedding), landmarks[:, 0], sources)
    assert len(scales) > 10
    assert 0.05 < min(scales) and max(scales) < 20


def test_embedding_is_the_mean_over_portraits():
    model = tiny(FsthEmbedder)
    images, drawings, _ = random_portraits()
    output = model(images, drawings)
    alone = [model(images[:, k : k + 1], drawings[:, k : k + 1]).embedding for k in range(3)]
    assert torch.allclose(output.embedding, torch.stack(alone).mean(dim=0), atol=1e-5)


def test_untrained_generator_starts_from_the_warped_portrait():
    torch.manual_seed(0)
    model = FsthGenerator(tiny_config()).eval()
    output = run_network(model)
    assert torch.equal(output.images, output.warped)


def test_equal_portraits_count_as_one():
    model = tiny(FsthGenerator)
    images, drawings, landmarks = (part[:, :1] for part in random_portraits())
    adain_parameters = torch.zeros(2, sum(model.adain_sizes))
    frames = []
    for count in (1, 4):
        repeated = (part.expand(-1, count, *part.shape[2:]) for part in (images, drawings, landmarks))
        sources = model.encode_sources(*repeated)
        frames.append(model(drawings[:, 0], adain_parameters, landmarks[:, 0] + 3, sources).images)
    assert torch.allclose(*frames, atol=1e-4)


def test_wrong_size_is_refused():
    with pytest.raises(Exception, match="multiple of 64"):
        FsthConfig(image_size=100)


def test_the_portrait_most_like_the_frame_counts_most():
    model = tiny(FsthGenerator)
    images, drawings, landmarks = random_portraits(batch=1, num_portraits=2)
    landmarks = 20 + landmarks / 4
    sources = model.encode_sources(images, drawings, landmarks)
    alone = model.encode_sources(images[:, 1:], drawings[:, 1:], landmarks[:, 1:])
    adain_parameters = torch.zeros(1, sum(model.adain_sizes))
    driving = landmarks[:, 1] + torch.tensor([2.0, 1.0])  # the second portrait's face, elsewhere
    both, one = (model(drawings[:, 0], adain_parameters, driving, s).warped for s in (sources, alone))
    assert torch.allclose(both, one, atol=1e-3)


def test_only_the_portraits_most_like_each_frame_are_fused():
    model = tiny(FsthGenerator)
    count = MAX_FUSED + 2
    images, drawings, landmarks = random_portraits(num_portraits=count)
    drawing, driving = drawings[:, 0], 20 + landmarks[:, 1] / 4
    ranks = torch.stack([torch.arange(count), torch.arange(count).roll(3)])  # another order for each frame
    landmarks = driving[:, None] + 0.02 * ranks[:, :, None, None]  # so near that those who are fused all count
    adain_parameters = torch.zeros(2, sum(model.adain_sizes))

    def fuse(images, drawings, landmarks):
        sources = model.encode_sources(images, drawings, landmarks)
        return model(drawing, adain_parameters, driving, sources).warped

    everybody = fuse(images, drawings, landmarks)
    nearest = ranks.argsort(dim=1)[:, :MAX_FUSED]
    rows = torch.arange(2)[:, None]
    alone = fuse(images[rows, nearest], drawings[rows, nearest], landmarks[rows, nearest])
    assert torch.allclose(everybody, alone, atol=1e-4)
    for rank in range(count):
        changed = images.clone()
        changed[ranks == rank] *= -1
        assert torch.equal(fuse(changed, drawings, landmarks), everybody) == (rank >= MAX_FUSED)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_instance_norm_is_pytorchs(memory_format):
    x = (torch.randn(2, 3, 8, 8) * 2 + 5).to(memory_format=memory_format)
    scale, shift = torch.randn(2, 2, 3)
    expected = F.instance_norm(x, eps=NORM_EPS) * scale[:, :, None, None] + shift[:, :, None, None]
    assert torch.allclose(instance_norm(x, scale, shift), expected, atol=1e-4)


def test_similarity_is_of_pose_and_eyes_and_a_little_of_place():
    source = torch.rand(1, 78, 2) * SIZE
    source[:, 68:] = float("nan")
    angle = torch.tensor(0.3)
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    moved = 1.2 * source @ turn + torch.tensor([3.0, -2.0])
    place = (moved - source)[:, FACE].norm(dim=-1).mean() * 2 / SIZE
    assert landmark_similarity(source, source, SIZE) == pytest.approx(0, abs=1e-3)
    expected = -PLACE_SHARE * place / SIMILARITY_WIDTH
    assert landmark_similarity(moved, source, SIZE).item() == pytest.approx(expected.item(), rel=1e-3)

    def moved_points(points) -> float:
        changed = source.clone()
        changed[:, points] += torch.tensor([0.02, -0.02]).repeat(len(points) // 2)[:, None] * SIZE
        return landmark_similarity(changed, source, SIZE).item()

    brow = np.arange(17, 23)
    assert moved_points(LEFT_EYE) < moved_points(brow) < 0  # as many points
    # of a mouth only the place counts, or each syllable would take another portrait
    assert moved_points(np.arange(61, 67)) > 0.3 * moved_points(brow)


class Operations(TorchDispatchMode):
    """Notes what is computed, by name."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.names.add(operation._schema.name.removeprefix("aten::"))
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("network", NETWORKS.values())
def test_on_the_meta_device_nothing_is_computed_and_all_buffers_have_their_shapes(network):
    config = tiny_config()
    with Operations() as seen, torch.device("meta"):
        model = network(config)
    assert not seen.names & {"mv", "dot", "linalg_vector_norm"}  # of which spectral norm is made
    real = network(config)
    tensors = real.state_dict()
    assert {name: (t.shape, t.dtype) for name, t in model.state_dict().items()} == {
        name: (t.shape, t.dtype) for name, t in tensors.items()
    }
    model.load_state_dict(tensors, assign=True)
    assert torch.equal(run_network(model.eval()).to_tuple()[0], run_network(real.eval()).to_tuple()[0])
