"""The commands of `fsth` about people: fine-tune the model to one, publish them. PyTorch is imported as in main.py."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..landmarks import DEFAULT_DETECTOR, get_detector
from ..models.errors import FsthError
from . import loading as cli_loading
from .checks import check_consent, check_inputs, check_photographs, model_of, precision_of
from .options import (
    PUBLISHING,
    ConsentOption,
    CropOption,
    DetectorOption,
    DeviceOption,
    DtypeOption,
    FaceOption,
    ModelOption,
    PhotographsOption,
    PrivateOption,
    ShotsOption,
)


if TYPE_CHECKING:
    from ..pipelines.identity import FsthTunedPerson


def fine_tune(
    portraits: Annotated[
        list[Path], typer.Argument(metavar="PORTRAIT", help="1 to 64 pictures, or a clip, of one person.")
    ],
    output: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write, for animate --identity.")],
    model: ModelOption = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="At most so many; by default 50 for one picture to 230 for thirty."),
    ] = None,
    method: Annotated[
        Literal["full", "lora"], typer.Option(help="Tune and keep all weights (24 MB), or low-rank updates (1 MB).")
    ] = "full",
    learning_rate: Annotated[
        float | None, typer.Option(metavar="RATE", help="By default 5e-5 for full, 3e-4 for lora.")
    ] = None,
    vgg: Annotated[
        str | None, typer.Option(help="VGG of the content loss: safetensors file or hub id; by default the package's.")
    ] = None,
    face_network: Annotated[str | None, typer.Option(help="The same of a face network; without it left out.")] = None,
    crop: CropOption = True,
    detector: DetectorOption = DEFAULT_DETECTOR,
    face: FaceOption = 0,
    shots: ShotsOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: Annotated[int, typer.Option(help="Of the pictures' order and deformations.")] = 0,
    push_to_hub: Annotated[
        str | None,
        typer.Option(metavar="REPO", help="Publish the result as fsth publish does.", rich_help_panel=PUBLISHING),
    ] = None,
    private: PrivateOption = True,
    consent: ConsentOption = False,
    photographs: PhotographsOption = None,
) -> None:
    """Fine-tune the model to a person; takes minutes.

    For example: fsth fine-tune one.jpg two.jpg --output ada
    """
    photographs = photographs or []
    check_inputs(*portraits)
    if push_to_hub is not None:
        check_consent(consent)
        check_photographs(photographs)
    elif photographs:
        raise FsthError("--include-photograph is for publishing: give --push-to-hub too, or leave it out.")
    from ..finetuning.loop import load_content
    from ..landmarks.portrait_picking import DEFAULT_SHOTS
    from ..pipelines.identity import check_folder

    check_folder(output)
    found_detector, content = get_detector(detector), load_content(vgg, face_network)
    if push_to_hub is not None:
        from ..hub.client import create_repository  # before minutes of tuning, what is refused is refused

        push_to_hub = create_repository(push_to_hub, private=private)
    pipe = cli_loading.load_pipeline(model, device, dtype, discriminator=True)
    pipe.detector = found_detector
    pipe.set_progress_bar_config(disable=None, leave=False, unit=" steps")
    options = {"method": method, "steps": steps, "learning_rate": learning_rate, "content": content, "seed": seed}
    options |= {"face_index": face, "crop": crop, "shots": shots or DEFAULT_SHOTS}
    identity = pipe.fine_tune(portraits, **options)
    identity.save_pretrained(output)
    count = f"{identity.num_portraits} portrait{'s' if identity.num_portraits > 1 else ''}"
    typer.echo(f"{output}: {count}, best after {identity.steps} of {len(identity.history) - 1} steps")
    if push_to_hub is None:
        return
    try:
        push(identity, push_to_hub, private, photographs)
    except FsthError as error:
        again = ["fsth", "publish", output, push_to_hub, "--i-have-consent"] + ["--public"] * (not private)
        again += ["--model", model] if model else []
        again += [word for photograph in photographs for word in ("--include-photograph", photograph)]
        raise FsthError(
            f"{str(error).rstrip('.')}; the identity is in {output}, try again with: {shlex.join(map(str, again))}"
        ) from error


def publish(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A person that fsth fine-tune has written.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="On the hub, like ada/portrait; made if there is none.")],
    model: Annotated[str | None, typer.Option(help="What was tuned, if it is neither bundled nor on the hub.")] = None,
    private: PrivateOption = True,
    revision: Annotated[
        str | None, typer.Option(help="The branch to write; by default main.", rich_help_panel=PUBLISHING)
    ] = None,
    consent: ConsentOption = False,
    photographs: PhotographsOption = None,
) -> None:
    """Publish a fine-tuned person on the Hugging Face hub.

    Log in first: hf auth login

    For example: fsth publish ada ada/portrait --i-have-consent
    """
    photographs = photographs or []
    check_consent(consent)
    check_inputs(folder / "identity.json")
    check_photographs(photographs)
    model_revision = None
    if model is None:
        model, model_revision = model_of(folder)
    # All that is generated is the preview's four frames, for which every machine has a processor.
    pipe = cli_loading.load_pipeline(model, "cpu", precision_of(folder), model_revision)
    identity = pipe.load_identity(folder)
    push(identity, repo, private, photographs, revision)


def push(
    identity: "FsthTunedPerson", repo: str, private: bool, photographs: list[Path], revision: str | None = None
) -> None:
    """Publish a person, to whose publication there is consent, and say where."""
    address = identity.push_to_hub(repo, consent=True, private=private, revision=revision, photographs=photographs)
    typer.echo(address.partition("/commit/")[0])
