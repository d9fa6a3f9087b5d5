"""A pipeline on its way to the hub, with a card that tells its figures."""

from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from ..hub.client import create_repository, publish
from ..hub.model_card import PipelineFigures, write_pipeline_card
from ..hub.remote_code import add_code
from ..saving import workplace
from .names import MAX_SIZE


if TYPE_CHECKING:
    from .pipeline_fsth import FsthPipeline


def publish_pipeline(
    pipe: "FsthPipeline",
    repo_id: str,
    *,
    variant: str | None,
    private: bool,
    revision: str | None,
    token: str | bool | None,
    commit_message: str,
    include_code: bool,
) -> str:
    """As [`FsthPipeline.push_to_hub`]."""
    networks = {name: part for name, part in pipe.components.items() if isinstance(part, PreTrainedModel)}
    figures = PipelineFigures(
        base_model=pipe.model_name,
        size=pipe.size,
        max_size=MAX_SIZE,
        source_skips=pipe.generator.config.source_skips,
        parameters={name: network.num_parameters() for name, network in networks.items()},
    )
    with workplace() as temporary:
        folder = Path(temporary, "pipeline")
        pipe.save_pretrained(folder, variant=variant)
        if include_code:
            add_code(folder, pipe.component_classes())
        repo_id = create_repository(repo_id, private=private, token=token)  # with its owner, for the card
        write_pipeline_card(figures, folder, repo_id, pipe.model_source.folder)
        return publish(folder, repo_id, revision=revision, token=token, commit_message=commit_message)
