"""The options of `fsth` that several commands have."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..landmarks import describe_detectors


OUTPUT, PUBLISHING = "Output", "Publishing"  # headings in the help

ModelOption = Annotated[str | None, typer.Option(help="Folder or hub id; by default the model in the package.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps, ...")]
DtypeOption = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(metavar="TYPE", help="Numbers to compute in: auto, float32, bfloat16 or float16."),
]
EngineOption = Annotated[
    Literal["auto", "torch", "openvino"],
    typer.Option(
        metavar="NAME",
        help="What computes frames: torch, openvino (on processors, quicker), or auto: the latter where installed.",
    ),
]
DetectorOption = Annotated[str, typer.Option(help=f"What finds the landmarks: {describe_detectors()}.")]
CropOption = Annotated[
    bool, typer.Option("--crop/--no-crop", help="--no-crop: the inputs are square head crops already.")
]
FaceOption = Annotated[
    int, typer.Option(min=0, metavar="N", help="Which face of the picture, counted from 0, the largest.")
]

FacesOption = Annotated[
    str,
    typer.Option(
        metavar="N",
        help="Which face of the picture, counted from 0, the largest. With --paste-back several, such as 0,2, or all, "
        "from left to right.",
    ),
]
ShotsOption = Annotated[
    int | None,
    typer.Option(
        min=1, max=64, metavar="N", help="Portraits to take of a clip of the person; by default 8.", show_default=False
    ),
]

SizeOption = Annotated[
    int | None,
    typer.Option(
        metavar="PIXELS",
        help="Side of the frames, 256 to 1024, even; never more than the portrait has. By default 512, or with "
        "--paste-back what the head has there.",
        show_default=False,
    ),
]
PasteBackOption = Annotated[bool, typer.Option("--paste-back", help="Put the head back into the first portrait.")]
WatermarkOption = Annotated[
    bool,
    typer.Option("--watermark/--no-watermark", help='Draw "AI-generated" into the corner.', rich_help_panel=OUTPUT),
]
CredentialsOption = Annotated[
    bool,
    typer.Option("--credentials/--no-credentials", help="Sign with Content Credentials.", rich_help_panel=OUTPUT),
]

PrivateOption = Annotated[
    bool,
    typer.Option("--private/--public", help="Who can see a repository that is new.", rich_help_panel=PUBLISHING),
]
ConsentOption = Annotated[
    bool,
    typer.Option(
        "--i-have-consent",
        help="You state that the person shown has agreed to the fine-tuning and to its publication, or that what is "
        "shown is a work in the public domain.",
        rich_help_panel=PUBLISHING,
    ),
]
PhotographsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--include-photograph",
        metavar="FILE",
        help="Publish this photograph too, without its metadata; can be repeated. Others stay here, but not the "
        "crops of the head, at most 512 pixels wide and high, that the model generates from.",
        show_default=False,
        rich_help_panel=PUBLISHING,
    ),
]
