"""Fine-tuning on tiny networks, and the script that fine-tunes many people."""

import json
import re

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from torch import nn

from fsth_hub.finetuning import loop as finetuning
from fsth_hub.finetuning import rehearsal
from fsth_hub.finetuning.episodes import deform, make_episodes
from fsth_hub.finetuning.loop import METHODS, PixelLoss, default_steps, fine_tune, load_content
from fsth_hub.finetuning.lora import merge
from fsth_hub.models.errors import FsthError, FsthMemoryError
from fsth_hub.pipelines.identity import FsthIdentity
from testing_utils.networks import NETWORKS, SIZE, random_portraits, tiny
from testing_utils.pipelines import make_pipeline
from testing_utils.shards import landmarks
from training import fine_tune as script


def portraits(count: int) -> tuple[torch.Tensor, ...]:
    """One picture, each time two pixels further to the right, and its landmarks with it; all of it is figure."""
    images, drawings, _ = random_portraits(batch=1, num_portraits=1)
    images, drawings = (
        torch.cat([part.roll(2 * index, dims=-1) for index in range(count)], dim=1) for part in (images, drawings)
    )
    points = torch.from_numpy(np.stack([landmarks(2 * index) for index in range(count)]))
    return images, drawings, points[None], torch.ones_like(images[:, :, :1])


def networks(**kwargs) -> list[nn.Module]:
    return [tiny(network, **kwargs) for network in NETWORKS.values()]


def tune(count=1, given=None, content=None, **options):
    return fine_tune(*(given or networks()), *portraits(count), content or PixelLoss(), **{"steps": 2} | options)


# Episodes.


def test_landmarks_move_with_the_picture():
    points = torch.tensor([[24.0, 20.5], [40.5, 22.0], [31.0, 44.5]]).repeat(26, 1)  # 78 x 2
    points[77] = torch.nan
    ys, xs = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    spots = [torch.exp(-((xs - x) ** 2 + (ys - y) ** 2) / 8) for x, y in points[:3]]  # one in each colour
    images = 2 * torch.stack(spots).repeat(6, 3, 1, 1, 1) - 1
    heads = torch.tensor([False, False, True]).repeat(6, 1)
    mattes = (images[:, :, 1:2] + 1) / 2  # what is figure is the second spot
    rng = torch.Generator().manual_seed(0)
    moved, moved_points, moved_mattes = deform(images, points.expand(6, 3, 78, 2), mattes, heads, rng)
    light = (moved + 1).clamp(min=0) ** 2
    centres = torch.stack([(light * grid).sum((-2, -1)) / light.sum((-2, -1)) for grid in (xs, ys)], dim=-1)
    assert (centres - moved_points[:, :, :3]).abs().max() < 0.7
    assert moved_mattes.shape == mattes.shape
    light = moved_mattes[:, :, 0] ** 2
    centres = torch.stack([(light * grid).sum((-2, -1)) / light.sum((-2, -1)) for grid in (xs, ys)], dim=-1)
    assert (centres - moved_points[:, :, 1]).abs().max() < 0.7
    distances = (moved_points[..., :3, :] - points[:3]).norm(dim=-1).mean(dim=-1)  # 6 x 3
    assert distances.max() > 2 and moved_points[..., 77, :].isnan().all()
    # the frames of an episode move alike, half of the episodes not at all; a head moves in any, within its frame
    assert torch.allclose(moved[:, 0], moved[:, 1], atol=1e-5)
    still = distances[:, 0] < 1e-3
    assert 0 < still.sum() < 6 and (distances[still, 2] > 0.5).all()
    assert torch.allclose(moved[still, 0], images[still, 0], atol=1e-5)
    assert torch.allclose(moved[still][..., 0, :], images[still][..., 0, :], atol=0.02)


@pytest.mark.parametrize("own, numbers", [(True, {1, 2, 3, 4, 5}), (False, {4})])
def test_portraits_are_drawn_from_each_other(own, numbers):
    images = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, SIZE, SIZE) / 10
    _, _, points, _ = portraits(5)
    mattes = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 1, SIZE, SIZE) / 10
    rng = torch.Generator().manual_seed(0)
    counts, with_itself = set(), 0
    for _ in range(20):
        episodes = make_episodes(images, points[0], mattes, [0, 3], rng, own)
        # a tint of a few percent does not change the number
        shown = (episodes.images.mean(dim=(2, 3, 4)) * 10).round().tolist()
        assert (episodes.mattes.mean(dim=(2, 3, 4)) * 10).round().tolist() == shown
        counts.add(len(shown[0]) - 1)
        for episode, (target, *sources) in enumerate(shown):
            assert target == [0, 3][episode] and len(set(sources)) == len(sources)
            for position, source in enumerate(sources, start=1):
                if source == target:
                    with_itself += 1
                    pair = episodes.landmarks[episode, 0], episodes.landmarks[episode, position]
                    assert (pair[0] - pair[1]).norm(dim=-1).mean() > 0.3
    assert counts == numbers and bool(with_itself) == own


def test_a_lone_portrait_is_drawn_from_its_changed_self():
    images, _, points, mattes = portraits(1)
    episodes = make_episodes(images[0], points[0], mattes[0], [0] * 8, torch.Generator().manual_seed(0))
    target, source = episodes.landmarks.unbind(dim=1)
    assert ((target - source).norm(dim=-1).mean(dim=1) > 0.3).all()
    assert (episodes.images[:, 0] - episodes.images[:, 1]).abs().mean() > 0.01
    assert not torch.equal(episodes.landmark_images[:, 0], episodes.landmark_images[:, 1])


def test_default_steps():
    assert [default_steps(count) for count in (1, 30, 64)] == [50, 230, 230]
    assert 50 < default_steps(4) < default_steps(8) < 230


# Tuning.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method, source_skips", [("full", True), ("full", False), ("lora", True)])
def test_given_networks_stay_as_they_are(dtype, method, source_skips):
    given = [network.to(dtype) for network in networks(source_skips=source_skips)]
    before = [{name: tensor.clone() for name, tensor in network.state_dict().items()} for network in given]
    grads = [[parameter.requires_grad for parameter in network.parameters()] for network in given]
    tuned = tune(2, given, method=method, steps=3, learning_rate=1e-3)
    for network, state, grad in zip(given, before, grads, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
        assert [parameter.requires_grad for parameter in network.parameters()] == grad
        assert not network.training and network.dtype == dtype
    assert tuned.generator.dtype == tuned.adain_parameters.dtype == torch.float32
    assert not tuned.generator.training and len(tuned.history) == 4
    assert not any(parameter.requires_grad for parameter in tuned.generator.parameters())


@pytest.mark.parametrize("count, method, rate", [(1, "full", 2e-3), (3, "full", 2e-3), (3, "lora", 1e-2)])
def test_what_is_held_out_comes_nearer(count, method, rate):
    given = networks()
    tuned = tune(count, given, method=method, steps=20, learning_rate=rate, adversarial_weight=0.0)
    scores = [entry["held_out"] for entry in tuned.history if "held_out" in entry]
    assert tuned.best_step > 0 and min(scores) < 0.98 * scores[0]
    start = given[1].project(given[0](*portraits(count)[:2]).embedding)
    assert not torch.allclose(tuned.adain_parameters, start, atol=1e-3)  # psi' is tuned too
    assert all(set(entry) >= {"step", "pixel", "feature_matching", "discriminator"} for entry in tuned.history[1:])


def test_shut_eyes_stay_as_they_were(monkeypatch):
    given = networks()
    start = given[1].project(given[0](*portraits(1)[:2]).embedding)
    images, _, points, mattes = (part[0] for part in portraits(1))

    def forgotten(weight: float) -> float:
        monkeypatch.setattr(rehearsal, "WEIGHT", weight)
        options = {"steps": 20, "learning_rate": 2e-3, "adversarial_weight": 0.0}
        tuned = tune(1, given, **options)
        assert all("rehearsal" in entry for entry in tuned.history[1:])
        monkeypatch.setattr(rehearsal, "WEIGHT", 1.0)
        again = rehearsal.Rehearsal(given[1], start, images, points, mattes, seed=7)
        with torch.no_grad():
            return sum(again.term(tuned.generator, tuned.adain_parameters).item() for _ in range(8))

    assert 0 < forgotten(100.0) < 0.7 * forgotten(0.0)


def test_discriminator_learns_to_tell_them_apart():
    history = tune(4, steps=30, learning_rate=1e-9, discriminator_lr=1e-3).history
    values = [entry["discriminator"] for entry in history[1:]]
    assert np.mean(values[-5:]) < 0.8 * np.mean(values[:5])


@pytest.mark.parametrize("count, method", [(3, "full"), (1, "lora")])
def test_same_seed_same_weights(monkeypatch, count, method):
    scripted(monkeypatch, 3 * [3, 2, 1])
    first, again, other = (tune(count, method=method, steps=2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.adain_parameters, again.adain_parameters)
    assert torch.equal(first.generator.head.weight, again.generator.head.weight)
    assert not torch.equal(first.adain_parameters, other.adain_parameters)


def test_source_skips_rest_while_the_generator_around_them_is_tuned(monkeypatch):
    scripted(monkeypatch, [3, 2, 1])
    given = networks()
    tuned = tune(given=given, steps=2, learning_rate=1e-3)
    before, after = (dict(network.named_parameters()) for network in (given[1], tuned.generator))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    skips = {name for name in before if name.startswith("source_skips.")}
    assert skips and not changed & skips
    # at either end and in between; psi' is tuned in the projection's place
    assert changed >= {"head.weight", "image_fusion.weight", "fusions.0.conv2.weight"}
    assert any(name.startswith("encoder.") for name in changed)


def test_of_lora_only_low_ranks_and_psi_are_tuned(monkeypatch):
    scripted(monkeypatch, [3, 2, 1])
    given = networks()
    tuned = tune(method="lora", given=given, steps=2)
    assert tuned.best_step == 2
    before, after = given[1].fold_spectral_norm().state_dict(), tuned.generator.state_dict()
    changed = {name.removesuffix(".weight") for name in before if not torch.equal(before[name], after[name])}
    assert changed == {re.fullmatch(r"base_model\.model\.(.+)\.lora_[AB]\.weight", name)[1] for name in tuned.lora}
    start = given[1].project(given[0](*portraits(1)[:2]).embedding)
    assert not torch.equal(tuned.adain_parameters, start)
    # what is kept is what draws
    kept = merge(given[1], tuned.lora).state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in kept.items())


@pytest.mark.filterwarnings("ignore:Portrait")
@pytest.mark.parametrize("method, count", [("full", 64), ("lora", 16)])
def test_many_portraits(method, count):
    history = tune(count, method=method, steps=1).history
    held_out = [entry["held_out"] for entry in history if "held_out" in entry]
    assert len(held_out) == 2 and all(map(np.isfinite, held_out))


def scripted(monkeypatch, scores):
    """Let what is held out be judged like this, and remember psi' each time."""
    seen = []

    def evaluate(generator, adain_parameters, content, held_out):
        seen.append(adain_parameters.detach().clone())
        return scores[len(seen) - 1], torch.zeros(3, SIZE, SIZE)

    monkeypatch.setattr(finetuning, "evaluate", evaluate)
    monkeypatch.setattr(finetuning, "EVALUATE_EVERY", 1)
    monkeypatch.setattr(finetuning, "PATIENCE", 3)
    return seen


@pytest.mark.parametrize("method", METHODS)
def test_best_weights_are_kept_and_no_steps_wasted(monkeypatch, method):
    seen = scripted(monkeypatch, [5, 4, 3, 2, 3, 3, 3, 1])
    tuned = tune(method=method, steps=7)
    assert tuned.best_step == 3 and len(seen) == 1 + 6  # three looks without improvement
    assert torch.equal(tuned.adain_parameters, seen[3]) and not torch.equal(seen[3], seen[6])


@pytest.mark.parametrize("method", METHODS)
def test_where_nothing_helps_the_start_is_kept(monkeypatch, method):
    seen = scripted(monkeypatch, [1, 2, 3, 4, 5])
    given = networks()
    tuned = tune(method=method, given=given, steps=10)
    assert tuned.best_step == 0 and torch.equal(tuned.adain_parameters, seen[0])
    state = (given[1].fold_spectral_norm() if method == "lora" else given[1]).state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in tuned.generator.state_dict().items())


def test_callback_sees_every_step_and_some_previews():
    calls = []
    tune(steps=12, callback=lambda *args: calls.append(args))
    assert [(step, steps) for step, steps, _, _ in calls] == [(step, 12) for step in range(1, 13)]
    previews = {step: preview for step, _, preview, _ in calls if preview is not None}
    assert set(previews) == {10, 12} and previews[10].shape == (3, SIZE, SIZE) and previews[10].abs().max() <= 1
    assert all(terms["pixel"] > 0 for _, _, _, terms in calls)


@pytest.mark.parametrize("method", METHODS)
def test_callback_ends_it(method):
    class Stopped(Exception):
        pass

    def stop(step, *_):
        if step == 2:
            raise Stopped

    with pytest.raises(Stopped):  # which is not the error of a bad input
        tune(method=method, steps=100, callback=stop)


class BrokenLoss(PixelLoss):
    def forward(self, fake, real, points):
        return {"pixel": super().forward(fake, real, points)["pixel"] * torch.nan}


@pytest.mark.parametrize(
    "count, options, message",
    [
        (0, {}, "1 to 64 portraits, not 0"),
        (65, {}, "1 to 64 portraits, not 65"),
        (65, {"method": "lora"}, "1 to 64 portraits, not 65"),
        (1, {"steps": 0}, "at least one step"),
        (1, {"method": "half"}, "full or lora, not 'half'"),
        (1, {"learning_rate": 0.0}, "learning_rate must be a number above 0"),
        (1, {"learning_rate": float("nan")}, "learning_rate must be a number above 0"),
        (1, {"batch_size": 0}, "batch_size must be at least one frame"),
        (1, {"content": BrokenLoss()}, "not finite at step 1: fine-tune with a learning_rate lower than 5e-05"),
        (1, {"content": BrokenLoss(), "method": "lora"}, "a learning_rate lower than 0.0003"),
    ],
)
def test_what_cannot_work_is_one_sentence(count, options, message):
    images = torch.zeros(1, count, 3, SIZE, SIZE)
    given = (images, images, torch.zeros(1, count, 78, 2), images[:, :, :1])
    given = portraits(count) if count == 1 else given
    content = options.pop("content", PixelLoss())
    with pytest.raises(FsthError, match=message):
        fine_tune(*networks(), *given, content, **options)


@pytest.mark.parametrize("fits, method", [(2, "full"), (1, "full"), (0, "full"), (2, "lora"), (0, "lora")])
def test_too_little_memory_is_tried_again_with_half(monkeypatch, fits, method):
    sizes, generate_targets = [], finetuning.generate_targets

    def crowded(generator, adain_parameters, episodes):
        if torch.is_grad_enabled():
            sizes.append(len(episodes.images))
            if sizes[-1] > fits:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate much.")
        return generate_targets(generator, adain_parameters, episodes)

    monkeypatch.setattr(finetuning, "generate_targets", crowded)
    if fits:
        assert len(tune(4, method=method, batch_size=4).history) == 3
        assert sizes == ([4, 2, 2] if fits == 2 else [4, 2, 1, 1])
    else:
        with pytest.raises(FsthMemoryError, match="more memory, even with one frame"):
            tune(4, method=method, batch_size=4)
        assert sizes == [4, 2, 1]


def test_other_errors_are_not_taken_for_too_little_memory():
    def attempt(batch_size):
        raise RuntimeError("of another kind")

    with pytest.raises(RuntimeError, match="of another kind"):
        finetuning.with_less_memory(attempt, 2)


def test_content_loss_needs_no_network_and_a_given_one_is_loaded_or_named(vgg, tmp_path):
    images = torch.rand(2, 3, SIZE, SIZE)
    terms = load_content(vgg)(images[:1], images[1:], portraits(1)[2][0])
    assert terms.keys() == {"vgg", "parts"}  # it has no heads for LPIPS
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(FsthError, match="broken.safetensors"):
        load_content(tmp_path / "broken.safetensors")
    content = load_content()  # conftest's hub answers nothing
    assert len(content.backbone.stages) == len(content.backbone.heads) == 4
    equal, other = (content(image, images[:1], portraits(1)[2][0]) for image in (images[:1], images[1:]))
    assert equal.keys() == {"vgg", "lpips", "parts"}
    assert all(equal[name] == 0 < other[name] for name in equal)


# The script.


@pytest.fixture
def model(tmp_path):
    make_pipeline().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def run(model, vgg, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def run(people, **options):
        AcceleratorState._reset_state(reset_partial_state=True)
        options = {"output_dir": tmp_path / "identities", "model": model, "vgg": vgg, "steps": 2} | options
        script.main([str(people), *(word for name, value in options.items() for word in (f"--{name}", str(value)))])
        return json.loads((tmp_path / "identities" / "summary.json").read_text())

    return run


def test_script_makes_an_identity_of_every_person_once(run, shards, tmp_path, monkeypatch):
    made = []
    save_pretrained = FsthIdentity.save_pretrained

    def save(identity, folder):
        if len(made) == 1:
            raise KeyboardInterrupt  # killed while the second is being written
        made.append(folder.name)
        save_pretrained(identity, folder)

    monkeypatch.setattr(FsthIdentity, "save_pretrained", save)
    with pytest.raises(KeyboardInterrupt):
        run(shards, shots=3)
    assert [path.name for path in (tmp_path / "identities").iterdir()] == ["ann"]
    before = (tmp_path / "identities" / "ann" / "identity.json").stat().st_mtime_ns
    made.clear()
    summary = run(shards, shots=3, method="lora")
    assert made == ["bob"] and summary.keys() == {"ann", "bob"}
    assert (tmp_path / "identities" / "ann" / "identity.json").stat().st_mtime_ns == before
    for row in summary.values():
        assert row["num_portraits"] == 3 and row["held_out_after"] <= row["held_out_before"]
    pipe = make_pipeline()
    loaded = pipe.load_identity(tmp_path / "identities" / "bob")
    assert loaded.num_portraits == 3 and loaded.method == "lora"
    assert [summary[name]["method"] for name in ("ann", "bob")] == ["full", "lora"]


def test_script_goes_on_after_a_person_without_a_face(run, tmp_path, astronaut):
    for name, picture in {"ada": astronaut, "wall": np.zeros_like(astronaut)}.items():
        (tmp_path / "people" / name).mkdir(parents=True)
        Image.fromarray(picture).save(tmp_path / "people" / name / "picture.png")
    with pytest.raises(SystemExit, match="1 of 2 people"):
        run(tmp_path / "people")
    summary = json.loads((tmp_path / "identities" / "summary.json").read_text())
    assert summary["ada"]["num_portraits"] == 1 and "No face" in summary["wall"]["error"]


def test_script_refuses_a_folder_without_people(run, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FsthError, match="neither shards nor folders"):
        run(tmp_path / "empty")
