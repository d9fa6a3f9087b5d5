"""Model cards: what a repository on the hub says of a person or a model. They are made of values alone."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from PIL import Image


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


@dataclass(frozen=True, kw_only=True)
class IdentityFigures:
    """
    What the card of a person says.

    Args:
        method (`str`): of fine-tuning, `"full"` or `"lora"`.
        base_model (`str`): name of the model that was tuned; `owner/name` where it is on the hub.
        base_revision (`str`, *optional*): its commit.
        fingerprint (`str`): of its generator.
        num_portraits, steps (`int`): learned from, and taken.
        history (`list[dict]`): loss terms and held-out score by step.
        crop_size (`int`): side of the head crops in pixels.
        keeps_crops (`bool`): whether the model generates from the crops.
        licence (`dict`): of the base model, [`licence_of`].
        num_photographs (`int`, *optional*, defaults to 0): that are uploaded too.
    """

    method: str
    base_model: str
    base_revision: str | None
    fingerprint: str
    num_portraits: int
    steps: int
    history: list[dict[str, float]]
    crop_size: int
    keeps_crops: bool
    licence: dict[str, str] = field(default_factory=lambda: dict(UNKNOWN_LICENCE))
    num_photographs: int = 0


@dataclass(frozen=True, kw_only=True)
class PipelineFigures:
    """
    What the card of a model says.

    Args:
        base_model (`str`): name of the model that it was loaded from; `owner/name` where that is on the hub.
        size, max_size (`int`): side of what the networks see, and of the largest frames, pixels.
        source_skips (`bool`): whether it has them.
        parameters (`dict[str, int]`): how many each network has, by its name.
    """

    base_model: str
    size: int
    max_size: int
    source_skips: bool
    parameters: dict[str, int]


def write_identity_card(figures: IdentityFigures, preview: Image.Image, folder: str | Path, repo_id: str) -> None:
    """
    Write README.md and preview.jpg for a person who is to be published.

    Args:
        figures ([`IdentityFigures`]): what the card says.
        preview (`PIL.Image.Image`): generated frames.
        folder (`str` or `Path`): where to.
        repo_id (`str`): `owner/name`.
    """
    write_card(identity_card(figures, repo_id), Path(folder))
    # The mark is for those who meet the picture without the card.
    comment = "AI-generated with fsth_hub; not a photograph."
    preview.save(Path(folder, PREVIEW_NAME), quality=90, comment=comment)


def identity_card(figures: IdentityFigures, repo_id: str) -> ModelCard:
    """What [`write_identity_card`] writes."""
    base_model = hub_id(figures.base_model)
    results = held_out_results(figures)
    data = ModelCardData(
        # Absent where the base is not on the hub, as the bundled model is not: the key must name a repository.
        base_model=base_model,
        base_model_relation=base_model and {"full": "finetune", "lora": "adapter"}[figures.method],
        pipeline_tag=TASK,
        # Any name is allowed. Of "diffusers" the page would show a snippet that loads a pipeline, which an identity is
        # not, and fails; of a name that the hub does not know it shows none, and the card's own is what people find.
        library_name="fsth_hub",
        tags=[*TAGS, "fine-tuned"],
        model_name=repo_id.rpartition("/")[2],
        eval_results=results or None,
        **figures.licence,
    )
    return ModelCard.from_template(
        data,
        template_path=TEMPLATES / "identity_card.md",
        repo_id=repo_id,
        method=figures.method,
        base_name=figures.base_model,
        # what to load: the bundled one needs no name; where one is that is not on the hub, readers have to know
        model=base_model or (None if figures.base_model == "bundled" else f"path/to/{figures.base_model}"),
        base_revision=figures.base_revision,
        fingerprint=figures.fingerprint[:12],
        num_portraits=figures.num_portraits,
        num_photographs=figures.num_photographs,
        steps=figures.steps,
        scores=[result.metric_value for result in results],
        held_out=results[0].dataset_name if results else None,
        keeps_crops=figures.keeps_crops,
        size=figures.crop_size,
        consent=CONSENT,
    )


def write_pipeline_card(
    figures: PipelineFigures, folder: str | Path, repo_id: str, source: str | Path | None = None
) -> None:
    """
    Write README.md for a pipeline that is to be published: the one that its model came with, or else a new one.

    Args:
        figures ([`PipelineFigures`]): what a new card says.
        folder (`str` or `Path`): of [`~FsthPipeline.save_pretrained`].
        repo_id (`str`): `owner/name`.
        source (`str` or `Path`, *optional*): the folder that the pipeline was loaded from; by default that one too.
    """
    folder = Path(folder)
    source = Path(folder if source is None else source)
    if (source / CARD_NAME).is_file():
        if source.resolve() != folder.resolve():
            shutil.copyfile(source / CARD_NAME, folder / CARD_NAME)
        return
    base_model = hub_id(figures.base_model)
    data = ModelCardData(
        base_model=base_model, pipeline_tag=TASK, library_name="diffusers", license="unknown", tags=list(TAGS)
    )
    card = ModelCard.from_template(
        data,
        template_path=TEMPLATES / "pipeline_card.md",
        repo_id=repo_id,
        size=figures.size,
        max_size=figures.max_size,
        source_skips=figures.source_skips,
        millions={name: count / 1e6 for name, count in figures.parameters.items()},
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


def held_out_results(figures: IdentityFigures) -> list[EvalResult]:
    """What was measured on pictures that were held out of fine-tuning: before, and at the step that is kept."""
    scores = {entry["step"]: entry["held_out"] for entry in figures.history if "held_out" in entry}
    pictures = "the person's own portraits, held out"
    if figures.num_portraits < 3:  # then none can be, see `fine_tune`
        pictures = "held-out deformations of the person's own portraits"
    names = {0: "content loss before fine-tuning", figures.steps: f"content loss after {figures.steps} steps"}
    if figures.steps == 0:
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
