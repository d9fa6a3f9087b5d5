"""The command `fsth portraits`: frames of a clip that serve as portraits. PyTorch is imported as in main.py."""

from pathlib import Path
from typing import Annotated

import typer

from ..landmarks import DEFAULT_DETECTOR, get_detector
from ..models.errors import FsthError
from ..saving import whole_file
from .checks import check_inputs
from .options import CropOption, DetectorOption, FaceOption, ShotsOption


def portraits(
    clip: Annotated[Path, typer.Argument(help="A clip of the person.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write the pictures to.")],
    shots: ShotsOption = None,
    crop: CropOption = True,
    detector: DetectorOption = DEFAULT_DETECTOR,
    face: FaceOption = 0,
) -> None:
    """Pick the frames of a clip that serve best as its person's portraits.

    fsth animate and fsth fine-tune take clips too, and pick the same.

    For example: fsth portraits person.mp4 --output portraits
    """
    check_inputs(clip)
    if output.exists() and not output.is_dir():
        raise FsthError(f"{output} is a file: give the name of a folder.")
    from tqdm import tqdm

    from ..landmarks.portrait_picking import DEFAULT_SHOTS
    from ..media.reading import open_clip
    from ..pipelines.portrait_picking import pick_portraits

    opened, found_detector = open_clip(clip, allow_still=True), get_detector(detector)
    with tqdm(total=opened.frame_count, disable=None, leave=False, unit=" frames") as progress:
        picked = pick_portraits(opened, found_detector, shots or DEFAULT_SHOTS, face, crop, progress.update)
    output.mkdir(parents=True, exist_ok=True)
    for number, portrait in enumerate(picked, start=1):
        path = output / f"{clip.stem}-{number:02}.png"
        with whole_file(path) as unfinished:
            portrait.image.save(unfinished)
        typer.echo(f"{path}: {portrait.time:.2f} s, {portrait.why}")
