"""Fine-tuning of the facial components to a person: what teaches them, what they keep, and where it is kept."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel

from fsth_hub.demo.people import unpack, write_file
from fsth_hub.finetuning import components as tuning
from fsth_hub.finetuning import loop
from fsth_hub.finetuning.component_crops import cut_crops, open_part, part_openings, warp_crops
from fsth_hub.finetuning.components import ComponentTuner, PersonCrops
from fsth_hub.finetuning.feature_networks import VGGFeatures, load_weights
from fsth_hub.finetuning.loop import METHODS, PixelLoss, load_content, with_heads
from fsth_hub.finetuning.lora import LORA_CONFIG_NAME, LORA_WEIGHTS_NAME, merge
from fsth_hub.models.aligned_crops import PARTS, align, blend_mask, sample_crops, to_aligned
from fsth_hub.models.errors import FsthError
from fsth_hub.models.landmark_flow import pixel_grid, portrait_flow, warp
from fsth_hub.models.landmark_layout import LEFT_EYE, OUTER_LIPS
from fsth_hub.models.source_skips import cavity_colours
from fsth_hub.pipelines.identity import COMPONENTS_FOLDER, CONFIG_NAME, FsthIdentity
from testing_utils.faces import frontal_face
from testing_utils.networks import tiny_components
from testing_utils.pipelines import frames_of, make_pipeline, negative, picture, tuned


PORTRAIT_SIZE, CROP_SIZE = 128, 32


@pytest.fixture
def features(vgg_with_heads) -> VGGFeatures:
    return VGGFeatures(load_weights(vgg_with_heads))


def portraits(*openings: float) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Smooth pictures, each of its own, of faces with mouths that are open so far."""
    rng = torch.Generator().manual_seed(0)
    noise = 2 * torch.rand(len(openings), 3, 8, 8, generator=rng) - 1
    images = torch.nn.functional.interpolate(noise, PORTRAIT_SIZE, mode="bicubic").clamp(-1, 1)
    return list(images), [frontal_face(opening=each, size=PORTRAIT_SIZE)[0] for each in openings]


def aligned(network: str, **face) -> tuple:
    part = next(part for part in PARTS.values() if part.network == network)
    return cut_crops(torch.zeros(1, 3, 64, 64), frontal_face(size=64, **face), part, CROP_SIZE)[1], part


@pytest.mark.parametrize("name", PARTS)
def test_crops_are_warped_as_frames_are(name):
    """What the components are taught with is what they are given: with lids that meet, lashes, and a dark mouth."""
    part, size = PARTS[name], 64
    noise = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0)) + 0.5
    image = torch.nn.functional.interpolate(noise, 256, mode="bicubic").clamp(-1, 1)
    source, driving = frontal_face(opening=2.0), frontal_face(opening=20.0, closed=True)
    known = portrait_flow(driving, source, 256)
    frame, shade = warp(image, known.flow, pixel_grid(256, 256, "cpu"), "bicubic"), known.shade.permute(0, 3, 1, 2)
    frame = shade * frame + (1 - shade) * cavity_colours(image[:, None], source[:, None])[:, 0]
    alignment = align(driving, part, 256)
    expected = sample_crops(frame, alignment, size)
    crops, points = cut_crops(image, source, part, size)
    warped = warp_crops(crops, to_aligned(driving, alignment, part, 256), points, part, size)
    assert ((warped - expected) * blend_mask(size)).abs().mean() < 0.012  # eyes with neither: 0.025


@pytest.mark.parametrize("network", ["mouth", "eye"])
def test_lips_and_lids_are_open_as_asked_and_never_cross(network):
    points, part = aligned(network)
    for opening in (0.0, 0.1, 0.35):
        moved = open_part(points, torch.tensor([opening]), part)
        assert part_openings(moved.numpy(), part)[0] == pytest.approx(opening, abs=0.02)
        for upper, lower in ((61, 67), (62, 66), (63, 65)) if network == "mouth" else ((37, 41), (38, 40)):
            assert moved[0, lower, 1] >= moved[0, upper, 1]
    still = torch.equal(moved[0, LEFT_EYE], points[0, LEFT_EYE])
    assert still and not torch.equal(moved[0, OUTER_LIPS], points[0, OUTER_LIPS]) == (network == "mouth")
    now = torch.from_numpy(part_openings(points.numpy(), part))
    assert torch.allclose(open_part(points, now, part), points, atol=1e-5)


@pytest.mark.parametrize("network", ["mouth", "eye"])
def test_the_truth_is_a_portrait_s_own_crop_and_its_sources_are_other_ones(network, monkeypatch):
    images, landmarks = portraits(10.0, 30.0, 5.0)
    crops = PersonCrops(network, CROP_SIZE, images, landmarks)
    monkeypatch.setattr(tuning, "OTHER_SHARE", 1.0)
    batch = crops.pairs(np.random.default_rng(0), [1], 6)
    start = (crops.images.shape[-1] - CROP_SIZE) // 2
    own = crops.images[..., start : start + CROP_SIZE, start : start + CROP_SIZE]
    numbers = [(own - image).abs().flatten(1).amax(dim=1).argmin().item() for image in batch["images"]]
    sources = [(own - image).abs().flatten(1).amax(dim=1).argmin().item() for image in batch["portraits"]]
    assert {number // crops.num_parts for number in numbers} == {1}
    assert {number // crops.num_parts for number in sources} == {0, 2}
    assert all(a % crops.num_parts == b % crops.num_parts for a, b in zip(numbers, sources, strict=True))
    alone = PersonCrops(network, CROP_SIZE, images[:1], landmarks[:1]).pairs(np.random.default_rng(0), [0], 4)
    assert (alone["portraits"] - alone["images"]).abs().amax() > 0.05  # itself with another expression


def test_an_opening_that_a_portrait_shows_is_no_news():
    crops = PersonCrops("mouth", CROP_SIZE, *portraits(0.0, 12.0))
    crops._made_up = lambda *_: torch.tensor([*crops.openings, crops.openings.max() + 0.2]).float()
    news = crops.made_up(np.random.default_rng(0), 3)["news"]
    assert news[:2].abs().max() < 1e-5 and news[2] == 1


@pytest.mark.parametrize("method", METHODS)
def test_components_learn_the_person_and_leave_their_origin_as_it_was(method, features, monkeypatch):
    monkeypatch.setitem(tuning.LEARNING_RATES, method, 3e-3)
    monkeypatch.setattr(tuning, "KEEP_WEIGHT", 0.0)  # what is kept here is noise
    components = tiny_components()
    before = {name: tensor.clone() for name, tensor in components.state_dict().items()}
    tuner = ComponentTuner(components, method, *portraits(14.0, 0.0, 3.0), [0, 1], [2], features, 0)
    scores = [tuner.evaluate(0)]
    for step in range(1, 4):
        for _ in range(5):
            terms = tuner.step()
        scores.append(tuner.evaluate(step))
    assert set(terms) == {f"{network}_{term}" for network in ("mouth", "eye") for term in ("pixel", "lpips", "keep")}
    assert tuner.best_score == min(scores) < 0.98 * scores[0] and tuner.best_step == int(np.argmin(scores))
    best = tuner.best_components()
    tuner.tuned = best
    assert tuner.evaluate(0) == pytest.approx(min(scores), rel=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in components.state_dict().items())


def test_openings_that_no_portrait_shows_are_kept_as_they_were(features, monkeypatch):
    """Portraits with closed mouths alone must not take away what the component knew of open ones."""
    monkeypatch.setitem(tuning.LEARNING_RATES, "full", 3e-3)
    drift = {}
    for weight in (0.0, tuning.KEEP_WEIGHT):
        monkeypatch.setattr(tuning, "KEEP_WEIGHT", weight)
        tuner = ComponentTuner(tiny_components(), "full", *portraits(0.0), [0], [0], features, 0)
        for _ in range(8):
            tuner.step()
        examples = tuner.crops["mouth"].made_up(np.random.default_rng(9), 16)
        inputs = [examples[name] for name in ("warped", "portraits", "masks", "portrait_masks")]
        with torch.no_grad():
            change = tuner.tuned.generate("mouth", *inputs) - tuner.before.generate("mouth", *inputs)
        drift[weight] = change[examples["news"] == 1].abs().mean().item()
    assert drift[tuning.KEEP_WEIGHT] < 0.8 * drift[0.0]


def test_what_crops_are_compared_by_has_heads():
    content = load_content()
    assert with_heads(content) is content.backbone
    assert len(with_heads(PixelLoss()).heads) == 4


# In a pipeline.


@pytest.fixture
def pipe(vgg_with_heads, monkeypatch):
    monkeypatch.setattr(loop, "BUNDLED_VGG", vgg_with_heads)  # for `PixelLoss` has no network
    for method in METHODS:
        monkeypatch.setitem(tuning.LEARNING_RATES, method, 5e-3)
    evaluate = ComponentTuner.evaluate

    def last_is_best(self, step):
        self.best = None
        return evaluate(self, step)

    monkeypatch.setattr(ComponentTuner, "evaluate", last_is_best)
    return with_components()


def with_components(seed: int = 0):
    pipe = make_pipeline()
    pipe.register_modules(facial_components=tiny_components(seed))
    return pipe


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("method", METHODS)
def test_an_identity_keeps_its_components(pipe, method, tmp_path):
    before = {name: tensor.clone() for name, tensor in pipe.facial_components.state_dict().items()}
    made = tuned(pipe, picture(), negative(picture(9)), method=method)
    assert {"mouth_pixel", "eye_lpips", "mouth_keep"} <= made.history[1].keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in pipe.facial_components.state_dict().items())
    made.save_pretrained(tmp_path / "ada")
    nested = {f"{COMPONENTS_FOLDER}/{name}" for name in (LORA_CONFIG_NAME, LORA_WEIGHTS_NAME)}
    assert nested & files_of(tmp_path / "ada") == (nested if method == "lora" else set())
    loaded = pipe.load_identity(tmp_path / "ada")
    own = loaded.tuned_components(pipe.facial_components).state_dict()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in own.items())
    frames = frames_of(pipe, made)
    assert np.array_equal(frames_of(pipe, loaded), frames)
    loaded.component_weights = loaded.components = None  # the pipeline's own then
    assert not np.array_equal(frames_of(pipe, loaded), frames)


@pytest.mark.parametrize("method", METHODS)
def test_preview_is_of_the_frames_that_the_pipeline_generates(pipe, method):
    made = tuned(pipe, method=method)

    def previewed() -> np.ndarray:
        first = np.asarray(made.preview())[:, : pipe.size]
        assert np.array_equal(first, pipe.generate_frame(pipe.generator_for(made), made, made.landmarks))
        return first

    own = previewed()
    made.component_weights = made.components = None  # the pipeline's own then
    pipelines = previewed()
    made.base_components = pipe.facial_components = None
    assert len({frame.tobytes() for frame in (own, pipelines, previewed())}) == 3


def test_low_rank_updates_of_components_are_pefts(pipe, tmp_path):
    made = tuned(pipe, method="lora")
    made.save_pretrained(tmp_path / "ada")
    theirs = PeftModel.from_pretrained(pipe.facial_components, tmp_path / "ada" / COMPONENTS_FOLDER).merge_and_unload()
    ours = merge(tiny_components(), made.component_weights)
    assert all(torch.allclose(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())


@pytest.mark.parametrize("method", METHODS)
def test_other_components_are_refused_in_a_sentence(pipe, method, tmp_path):
    tuned(pipe, method=method).save_pretrained(tmp_path / "ada")
    for other in (with_components(seed=1), make_pipeline()):
        with pytest.raises(FsthError, match="other facial components") as caught:
            other.load_identity(tmp_path / "ada")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
def test_identities_without_components_go_with_any(pipe, method, tmp_path):
    tuned(make_pipeline(), method=method).save_pretrained(tmp_path / "ada")
    path = tmp_path / "ada" / CONFIG_NAME
    config = json.loads(path.read_text())
    assert config.pop("components_fingerprint") is None
    path.write_text(json.dumps(config))  # as they were written before
    loaded = pipe.load_identity(tmp_path / "ada")
    assert loaded.component_weights is None and loaded.tuned_components(pipe.facial_components) is (
        pipe.facial_components
    )
    frames_of(pipe, loaded)


@pytest.mark.parametrize("method", METHODS)
def test_components_that_are_missing_are_damage(pipe, method, tmp_path):
    made = tuned(pipe, method=method)
    made.component_weights = {name: tensor[:1] for name, tensor in made.component_weights.items()}
    made.save_pretrained(tmp_path / "cut")
    with pytest.raises(FsthError, match="damaged"):
        pipe.load_identity(tmp_path / "cut")
    made.component_weights = None if method == "full" else made.component_weights
    made.save_pretrained(tmp_path / "none")
    if method == "lora":
        (tmp_path / "none" / COMPONENTS_FOLDER / LORA_WEIGHTS_NAME).unlink()
    with pytest.raises(FsthError, match="damaged"):
        FsthIdentity.from_pretrained(tmp_path / "none")


def test_a_file_of_the_page_holds_them_too(pipe, tmp_path):
    made = tuned(pipe, method="lora")
    write_file(made, tmp_path / "ada.zip")
    folder = unpack(tmp_path / "ada.zip", tmp_path / "ada")
    assert f"{COMPONENTS_FOLDER}/{LORA_WEIGHTS_NAME}" in files_of(folder)
    assert np.array_equal(frames_of(pipe, pipe.load_identity(folder)), frames_of(pipe, made))
