"""Model cards: what a repository on the hub says of a person or a model, with a picture of generated frames."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from PIL import Image

from .image_processing_fsth import FsthImageProcessor
from .landmark_layout import INNER_LIPS, JAW, OUTER_LIPS
from .landmarks.pose import Pose
from .person import DEFAULT_SIZE, MAX_SIZE


if TYPE_CHECKING:
    from .identity import FsthIdentity
    from .pipeline_fsth import FsthPipeline

TEMPLATES = Path(__file__).parent / "templates"
CARD_NAME, PREVIEW_NAME = "README.md", "preview.jpg"

# What whoever publishes a person states; a clause, for it stands in cards, messages and beside ticked boxes.
CONSENT = (
    "the person shown has agreed to the fine-tuning and to its publication, or that what is shown is a work in the "
    "public domain"
)

UNKNOWN_LICENCE = {"license": "unknown"}  # the hub's word
TASK = "image-to-video"  # of those that the hub knows the nearest
TAGS = ["talking-head", "few-shot", "portrait-animation", "face-reenactment"]

# The preview's poses: a turn in radians, as far as one portrait can well be followed, and the way of the lower lip in
# hundredths of the distance between the eyes, the jaw going along with it.
TURN, OPENING, JAW_SHARE = 0.25, 12, 0.8
LOWER_LIPS = np.r_[OUTER_LIPS[7:], INNER_LIPS[5:]]
LOWER_LIPS_SHARES = np.array([0.5, 1, 1, 1, 0.5, 1, 1, 1])  # less near the corners
CHIN = JAW[3:-3]
CHIN_SHARES = JAW_SHARE * np.sin(np.linspace(0, np.pi, len(CHIN)))


def write_identity_card(identity: "FsthIdentity", folder: str | Path, repo_id: str) -> None:
    """
    Write README.md and preview.jpg for a person who is to be published.

    Args:
        identity ([`FsthIdentity`]): who is shown; drawn for the preview.
        folder (`str` or `Path`): with all else that is uploaded: the card says whether photographs are among it.
        repo_id (`str`): `owner/name`.
    """
    write_card(identity_card(identity, Path(folder), repo_id), Path(folder))
    # The mark is for those who meet the picture without the card.
    comment = "AI-generated with fsth_hub; not a photograph."
    draw_preview(identity).save(Path(folder, PREVIEW_NAME), quality=90, comment=comment)


def identity_card(identity: "FsthIdentity", folder: Path, repo_id: str) -> ModelCard:
    """What [`write_identity_card`] writes."""
    base_model = hub_id(identity.base_model)
    source = identity.base_generator.source
    licence = licence_of(Path(source.folder)) if source is not None and source.folder else UNKNOWN_LICENCE
    results = held_out_results(identity)
    data = ModelCardData(
        # Absent where the base is not on the hub, as the bundled model is not: the key must name a repository.
        base_model=base_model,
        base_model_relation=base_model and {"full": "finetune", "adapter": "adapter"}[identity.kind],
        pipeline_tag=TASK,
        # Any name is allowed. Of "diffusers" the page would show a snippet that loads a pipeline, which an identity is
        # not, and fails; of a name that the hub does not know it shows none, and the card's own is what people find.
        library_name="fsth_hub",
        tags=[*TAGS, "fine-tuned"],
        model_name=repo_id.rpartition("/")[2],
        eval_results=results or None,
        **licence,
    )
    photographs = folder / "photographs"
    return ModelCard.from_template(
        data,
        template_path=TEMPLATES / "identity_card.md",
        repo_id=repo_id,
        kind=identity.kind,
        base_name=identity.base_model,
        # what to load: the bundled one needs no name; where one is that is not on the hub, readers have to know
        model=base_model or (None if identity.base_model == "bundled" else f"path/to/{identity.base_model}"),
        base_revision=identity.base_revision,
        fingerprint=identity.fingerprint[:12],
        num_portraits=identity.num_portraits,
        num_photographs=len(list(photographs.iterdir())) if photographs.is_dir() else 0,
        steps=identity.steps,
        scores=[result.metric_value for result in results],
        held_out=results[0].dataset_name if results else None,
        keeps_crops=identity.sources is not None,
        size=identity.crops.shape[1],
        consent=CONSENT,
    )


def write_pipeline_card(pipe: "FsthPipeline", folder: str | Path, repo_id: str) -> None:
    """
    Write README.md for a pipeline that is to be published: the one that its model came with, or else a new one.

    Args:
        pipe ([`FsthPipeline`]): as saved into the folder.
        folder (`str` or `Path`): of [`~FsthPipeline.save_pretrained`].
        repo_id (`str`): `owner/name`.
    """
    folder = Path(folder)
    source = Path(pipe.model_source.folder or folder)  # a pipeline made of networks comes from nowhere
    if (source / CARD_NAME).is_file():
        if source.resolve() != folder.resolve():
            shutil.copyfile(source / CARD_NAME, folder / CARD_NAME)
        return
    base_model = hub_id(pipe.model_name)
    networks = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    data = ModelCardData(
        base_model=base_model, pipeline_tag=TASK, library_name="diffusers", license="unknown", tags=list(TAGS)
    )
    card = ModelCard.from_template(
        data,
        template_path=TEMPLATES / "pipeline_card.md",
        repo_id=repo_id,
        size=pipe.size,
        max_size=MAX_SIZE,
        source_skips=pipe.generator.config.source_skips,
        millions={name: sum(p.numel() for p in network.parameters()) / 1e6 for name, network in networks.items()},
    )
    write_card(card, folder)


def write_card(card: ModelCard, folder: Path) -> None:
    (folder / CARD_NAME).write_text(f"{str(card).rstrip()}\n", encoding="utf-8")


def hub_id(model_name: str) -> str | None:
    """The name of a model if it is one on the hub; `None` for the bundled one and for a local folder's name."""
    return model_name if "/" in model_name else None


def licence_of(model: Path) -> dict[str, str]:
    """
    What a model's own card says of its licence, for what is made from the model inherits it.

    Unknown where there is no card or it does not say. A link to a file of the model's
    repository would lead nowhere from another one and is left out.
    """
    try:
        data = ModelCard.load(model / CARD_NAME, ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError, yaml.YAMLError):  # a card is written by hand: it may be anything
        data = {}
    found = {key: data[key] for key in ("license", "license_name", "license_link") if isinstance(data.get(key), str)}
    if "://" not in found.get("license_link", ""):
        found.pop("license_link", None)
    return UNKNOWN_LICENCE | found


def held_out_results(identity: "FsthIdentity") -> list[EvalResult]:
    """What was measured on pictures that were held out of fine-tuning: before, and at the step that is kept."""
    scores = {entry["step"]: entry["held_out"] for entry in identity.history if "held_out" in entry}
    pictures = "the person's own portraits, held out"
    if identity.num_portraits < 3:  # then none can be, see `fine_tune`
        pictures = "held-out deformations of the person's own portraits"
    names = {0: "content loss before fine-tuning", identity.steps: f"content loss after {identity.steps} steps"}
    if identity.steps == 0:
        names = {0: "content loss, no step being better than none"}
    return [
        EvalResult(
            task_type=TASK,
            task_name="self-reenactment",
            dataset_type="held-out-portraits",  # nowhere on the hub: they are the person's own
            dataset_name=pictures,
            metric_type="content-loss",
            metric_name=name,
            metric_value=round(float(scores[step]), 4),
        )
        for step, name in names.items()
        if step in scores
    ]


def preview_landmarks(points: np.ndarray) -> list[np.ndarray]:
    """
    A portrait's landmarks (78 x 2, pixels) in four poses: its own, turned to the picture's left and to its right, and
    with the mouth opened.
    """
    pose = Pose.of(points)
    upright = pose.lift(points)  # 78 x 3
    turned = []
    for angle in (TURN, -TURN):
        cos, sin = np.cos(angle), np.sin(angle)
        turn = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
        turned.append(replace(pose, rotation=turn @ pose.rotation).project(upright))
    opened = upright.copy()
    opened[LOWER_LIPS, 1] += OPENING * LOWER_LIPS_SHARES
    opened[CHIN, 1] += OPENING * CHIN_SHARES
    return [np.asarray(moved, np.float32) for moved in (points, *turned, pose.project(opened))]


@torch.no_grad()
def draw_preview(identity: "FsthIdentity") -> Image.Image:
    """Four frames side by side that the identity's generator draws, as large as its portraits have them; no photograph
    is among them."""
    generator = identity.tuned_generator().fold_spectral_norm()
    adain_parameters, sources = identity.inputs(generator.device, generator.dtype)
    processor = FsthImageProcessor(size=generator.config.image_size)
    side, frames = min(DEFAULT_SIZE, identity.max_size), []
    for points in preview_landmarks(identity.landmarks):
        drawing = processor.draw(points).to(generator.device, generator.dtype, memory_format=torch.channels_last)
        points = torch.from_numpy(points)[None].to(generator.device)  # 1 x 78 x 2
        output = generator(drawing, adain_parameters, points, sources)
        if output.composition is None:
            frames += processor.postprocess(output.images)
        else:
            frames.append(identity.compositor(side)(output.composition))
    return Image.fromarray(np.concatenate(frames, axis=1))
