"""`fsth express`: a picture of a person with another expression. PyTorch is imported as in main.py."""

from pathlib import Path
from typing import Annotated

import typer

from ..landmarks import DEFAULT_DETECTOR, get_detector
from ..models.errors import FsthError
from . import loading as cli_loading
from .checks import check_inputs, check_output, check_size, model_of
from .options import (
    CredentialsOption,
    CropOption,
    DetectorOption,
    DeviceOption,
    DtypeOption,
    FaceOption,
    ModelOption,
    PasteBackOption,
    SizeOption,
    WatermarkOption,
)


def express(
    *,
    portraits: Annotated[
        list[Path] | None, typer.Argument(metavar="PORTRAIT", help="Pictures of one person.", show_default=False)
    ] = None,
    output: Annotated[Path, typer.Option(help="The picture to write: .png.")],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=X",
            help="Of the expression, such as smile=0.6; can be repeated. Without it they are listed.",
            show_default=False,
        ),
    ] = None,
    identity: Annotated[
        str | None, typer.Option(help="A fine-tuned person instead of portraits: folder or hub id.")
    ] = None,
    model: ModelOption = None,
    size: SizeOption = None,
    paste_back: PasteBackOption = False,
    crop: CropOption = True,
    detector: DetectorOption = DEFAULT_DETECTOR,
    face: FaceOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    watermark: WatermarkOption = True,
    credentials: CredentialsOption = True,
) -> None:
    """Show a person with another expression.

    For example: fsth express portrait.jpg --set smile=0.6 --set yaw=8 --output smiling.png
    """
    from ..landmarks.expression import CONTROLS, Expression

    if not settings:
        ranges = (f"{name} ({each.low:g} to {each.high:g})" for name, each in CONTROLS.items())
        raise FsthError(f"Give at least one --set NAME=X; there are: {', '.join(ranges)}.")
    expression = Expression.of(dict(_setting(text) for text in settings))
    portraits = portraits or []
    if bool(portraits) == (identity is not None):
        raise FsthError("Give either portraits or the --identity of a fine-tuned person.")
    if identity is not None and (paste_back or face):
        raise FsthError("--paste-back and --face are for portraits: leave them out where an --identity is given.")
    check_inputs(*portraits)
    check_output(output, (".png",), inputs=portraits)
    check_size(size)
    found_detector, revision = get_detector(detector), None
    if identity is not None:
        from ..models.downloading import fetch

        identity = fetch(identity)
        if model is None:
            model, revision = model_of(identity)
    pipe = cli_loading.load_pipeline(model, device, dtype, revision)
    pipe.detector = found_detector
    picture = pipe.express(
        portraits if identity is None else pipe.load_identity(identity),
        expression,
        crop=crop,
        face_index=face,
        size=size,
        paste_back=paste_back,
        output_path=output,
        watermark=watermark,
        credentials=credentials,
    )
    typer.echo(f"{output}: {picture.width} x {picture.height} pixels")


def _setting(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name.strip(), float(value)
    except ValueError:
        raise FsthError(f"--set takes a name and a number, as in smile=0.6, not '{text}'.") from None
