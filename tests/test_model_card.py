"""Cards: what they say, that the hub can read it, and the preview."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from fsth_hub.finetuning.loop import PixelLoss
from fsth_hub.hub.model_card import CONSENT, PipelineFigures, identity_card, licence_of, write_pipeline_card
from fsth_hub.landmarks.pose import MEAN_FACE, Pose
from fsth_hub.models.landmark_layout import FACE, INNER_LIPS, JAW, LEFT_EYE, NOSE_BRIDGE, RIGHT_EYE
from fsth_hub.pipelines.pipeline_fsth import FsthPipeline
from fsth_hub.pipelines.preview import generate_preview, preview_landmarks
from testing_utils.paths import BUNDLED_CARD
from testing_utils.pipelines import make_pipeline, picture, tuned


pytestmark = pytest.mark.filterwarnings("ignore:Portrait")


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


@pytest.fixture(scope="module")
def identity(pipe):
    identity = tuned(pipe)
    identity.history[0]["held_out"], identity.history[2]["held_out"] = 5.25, 4.123456
    identity.steps = 2
    return identity


@pytest.fixture
def card_of(identity):
    def card_of(**changes) -> ModelCard:
        return identity_card(replace(identity.figures(), **changes), "ann/portrait")

    return card_of


def figures_of(pipe: FsthPipeline, base_model: str = "unnamed") -> PipelineFigures:
    networks = {name: getattr(pipe, name) for name in ("embedder", "generator", "discriminator")}
    return PipelineFigures(
        base_model=base_model,
        size=pipe.size,
        max_size=1024,
        source_skips=pipe.generator.config.source_skips,
        parameters={name: network.num_parameters() for name, network in networks.items()},
    )


def front_matter(path: Path) -> dict:
    return yaml.safe_load(path.read_text().split("---\n")[1])


def test_front_matter_is_what_the_hub_reads(identity, tmp_path):
    identity.write_card(tmp_path, "ann/portrait")
    card = ModelCard.load(tmp_path / "README.md")
    data = front_matter(tmp_path / "README.md")
    assert data == card.data.to_dict()  # ModelCardData understands all of it
    ModelCard(str(card)).save(tmp_path / "again.md")
    assert (tmp_path / "again.md").read_text() == (tmp_path / "README.md").read_text()
    assert (data["pipeline_tag"], data["library_name"], data["license"]) == ("image-to-video", "fsth_hub", "unknown")
    assert "talking-head" in data["tags"]
    before, after = card.data.eval_results
    assert (before.metric_value, after.metric_value) == (5.25, 4.1235)
    assert "before" in before.metric_name and "after 2 steps" in after.metric_name
    assert "deformations" in before.dataset_name and card.data.model_name == "portrait"


def test_card_says_what_people_need_to_know(card_of):
    text = card_of().text
    assert f"states that {CONSENT}." in text
    assert "one photograph" in text and "Steps: 2." in text and "Method: full" in text and "5.25 and 4.12" in text
    assert "No original photographs." in text and "Crops of the head, 64 x 64 pixels" in text
    for words in ("Must not be used for", "AI-generated", "arxiv.org/abs/1905.08233", "(preview.jpg)", "`unnamed`"):
        assert words in text
    assert not re.search(r"{{|{%|None|\n\n\n", text)


def test_what_the_card_tells_to_run_is_python(card_of):
    for revision, loaded in ((None, '"ann/base"'), ("abc", '"ann/base", revision="abc"')):
        code = re.search(r"```python\n(.*?)```", card_of(base_model="ann/base", base_revision=revision).text, re.S)[1]
        compile(code, "card", "exec")
        assert f"FsthPipeline.from_pretrained({loaded})" in code and 'load_identity("ann/portrait")' in code
        assert len(code.split("\n\n")[1].splitlines()) == 3
    assert "FsthPipeline.from_pretrained()\n" in card_of(base_model="bundled").text
    text = card_of(base_model="a-folder").text
    assert 'from_pretrained("path/to/a-folder")' in text and "result.mp4 --model path/to/a-folder\n" in text


@pytest.mark.parametrize("method, relation", [("full", "finetune"), ("lora", "adapter")])
def test_base_model_is_named_where_the_hub_has_it(card_of, method, relation):
    data = card_of(base_model="ann/base", method=method).data
    assert (data.base_model, data.base_model_relation) == ("ann/base", relation)
    for name in ("bundled", "a-folder"):
        data = card_of(base_model=name, method=method).data.to_dict()
        assert "base_model" not in data and "base_model_relation" not in data


def test_identity_inherits_the_licence_of_its_base(identity, pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "README.md").write_bytes(BUNDLED_CARD.read_bytes())
    generator = FsthPipeline.from_pretrained(tmp_path / "base").generator
    card = replace(identity, base_generator=generator, base_model="bundled").card("ann/portrait")
    assert (card.data.license, card.data.license_name) == ("other", "research-and-non-commercial")
    assert "for research and non-commercial use" in card.text and "comes with the package" in card.text


@pytest.mark.parametrize(
    "card, found",
    [
        (None, {"license": "unknown"}),
        ("no front matter", {"license": "unknown"}),
        ("---\n[broken\n---\n", {"license": "unknown"}),
        ("---\nlicense: [mit]\n---\n", {"license": "unknown"}),
        ("---\nlicense: mit\ntags: [x]\n---\n", {"license": "mit"}),
        ("---\nlicense_name: own\nlicense_link: LICENSE\n---\n", {"license": "unknown", "license_name": "own"}),
        ("---\nlicense: other\nlicense_link: https://a.b\n---\n", {"license": "other", "license_link": "https://a.b"}),
    ],
)  # fmt: skip
def test_licence_is_what_the_models_card_says(card, found, tmp_path):
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert licence_of(tmp_path) == found


def test_added_photographs_are_counted(card_of):
    text = card_of(num_photographs=2).text
    assert "In `photographs/`, 2 that the owner chose to add" in text and "No original photographs" not in text


def test_tuning_that_did_not_help_is_said(card_of, identity):
    card = card_of(steps=0)
    assert len(card.data.eval_results) == 1 and "no step was better than none" in card.text
    assert card_of(history=[]).data.eval_results is None


def test_preview_moves_head_and_mouth():
    points = Pose(np.eye(3), 0.8, np.array([128.0, 120.0])).project(MEAN_FACE).astype(np.float32)
    own, left, right, opened = preview_landmarks(points)
    assert np.array_equal(own, points)

    def nose(points):  # its tip, from the middle between the eyes, pixels to the right
        return points[NOSE_BRIDGE[-1], 0] - points[np.r_[RIGHT_EYE, LEFT_EYE], 0].mean()

    assert nose(left) < -5 and abs(nose(own)) < 1 and nose(right) > 5
    moved = opened - own
    assert (moved[INNER_LIPS[5:], 1] > 5).all() and moved[JAW[8], 1] > 5
    still = np.setdiff1d(FACE, np.r_[JAW, 55:60, 65:68])
    assert np.abs(moved[still]).max() < 1e-3


def test_preview_is_generated(identity, pipe, tmp_path):
    """Frames of the identity's own generator, the first in the portrait's pose; none is a photograph."""
    strip = np.asarray(generate_preview(identity, identity.generator))
    assert strip.shape == (pipe.size, 4 * pipe.size, 3)
    frames = np.split(strip, 4, axis=1)
    assert np.array_equal(frames[0], pipe.generate_frame(pipe.generator_for(identity), identity, identity.landmarks))
    assert len({frame.tobytes() for frame in frames}) == 4
    with torch.no_grad():
        other = pipe.embed(picture())
    assert not np.array_equal(frames[0], pipe.generate_frame(pipe.generator_for(), other, identity.landmarks))
    identity.write_card(tmp_path, "ann/portrait")
    with Image.open(tmp_path / "preview.jpg") as saved:
        assert saved.size == (4 * pipe.size, pipe.size) and b"AI-generated" in saved.info["comment"]
        assert np.abs(np.asarray(saved).astype(int) - strip).mean() < 12
        assert not saved.getexif()


def test_preview_and_card_are_of_the_crops_own_size(pipe, tmp_path):
    """Not of the size that the networks see."""
    crops, points = picture(height=151, width=151), pipe.detector.points(picture()) * np.float32(151 / 64)
    options = {"steps": 1, "content": PixelLoss()}
    identity = pipe.fine_tune_crops([crops], [points], **options)
    identity.write_card(tmp_path, "ann/portrait")
    with Image.open(tmp_path / "preview.jpg") as saved:
        assert saved.size == (4 * 150, 150)
    assert "Crops of the head, 151 x 151 pixels" in (tmp_path / "README.md").read_text()
    first = np.asarray(generate_preview(identity, identity.generator))[:, :150]
    assert np.array_equal(first, pipe.generate_frame(pipe.generator_for(identity), identity, identity.landmarks, 150))
    without = make_pipeline(source_skips=False)  # which draws one size alone
    identity = without.fine_tune_crops([crops], [points], **options)
    assert generate_preview(identity, identity.generator).size == (4 * without.size, without.size)


# Pipelines.


def test_a_pipeline_keeps_the_card_it_came_with(bundled, tmp_path):
    write_pipeline_card(figures_of(bundled), tmp_path, "ann/model", bundled.model_source.folder)
    assert (tmp_path / "README.md").read_bytes() == BUNDLED_CARD.read_bytes()


def test_a_pipeline_without_a_card_gets_one(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    write_pipeline_card(figures_of(pipe), tmp_path, "ann/model")
    card = ModelCard.load(tmp_path / "README.md")
    assert front_matter(tmp_path / "README.md") == card.data.to_dict()
    assert (card.data.pipeline_tag, card.data.library_name) == ("image-to-video", "diffusers")
    count = sum(p.numel() for p in pipe.generator.parameters()) / 1e6
    assert f"generator: {count:.2f} M parameters" in card.text and 'from_pretrained("ann/model")' in card.text
    assert "\n\n- With source skips: the networks see 64 x 64 pixels" in card.text and "1024 x 1024.\n" in card.text
    assert not re.search(r"{{|{%|None", card.text)
    # and what is then written by hand stays
    (tmp_path / "README.md").write_text("by hand")
    loaded = FsthPipeline.from_pretrained(tmp_path)
    write_pipeline_card(figures_of(loaded), tmp_path, "ann/model", loaded.config["_name_or_path"])
    assert (tmp_path / "README.md").read_text() == "by hand"


def test_a_pipeline_without_source_skips_says_its_only_size(tmp_path):
    write_pipeline_card(figures_of(make_pipeline(source_skips=False)), tmp_path, "ann/model")
    assert "\n\n- 64 x 64 pixels, without source skips.\n" in (tmp_path / "README.md").read_text()
