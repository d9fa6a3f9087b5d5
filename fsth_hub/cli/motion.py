"""`fsth motion`: what drives a portrait without a clip. PyTorch is imported as in main.py."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..landmarks import DEFAULT_DETECTOR, get_detector
from ..models.errors import FsthError
from .checks import check_inputs, check_output
from .options import CropOption, DetectorOption


if TYPE_CHECKING:
    import numpy as np

    from ..landmarks import LandmarkDetector
    from ..media.reading import Clip
    from ..pipelines.driving import DrivingMotion

MOTION_FILE = ".motion.safetensors"

app = typer.Typer(no_args_is_help=True, help="Motions: list those that ship, save that of a clip, show one.")


@app.command("list")
def list_shipped() -> None:
    """List the motions that come with the package, for --driving motion:NAME."""
    from ..media.motion_files import list_motions

    for motion in list_motions():
        typer.echo(f"motion:{motion.name:12} {motion.title:16} {motion.seconds:g} s")


@app.command()
def save(
    source: Annotated[
        Path, typer.Argument(metavar="CLIP", help="A clip, or .expressions.json, a Live Link Face .csv, mouth cues.")
    ],
    output: Annotated[Path, typer.Option(help=f"The file to write: {MOTION_FILE}.")],
    name: Annotated[str | None, typer.Option(help="What people call it.", show_default=False)] = None,
    loop: Annotated[bool, typer.Option("--loop", help="Make it one that can be repeated without a jump.")] = False,
    keep_face_shape: Annotated[
        bool,
        typer.Option("--keep-face-shape", help="Keep the driver's proportions, which are left out otherwise."),
    ] = False,
    sound: Annotated[bool, typer.Option("--sound", help="Keep the sound; a voice is personal.")] = False,
    crop: CropOption = True,
    detector: DetectorOption = DEFAULT_DETECTOR,
    face: Annotated[
        int, typer.Option(min=0, metavar="N", help="Which face of the clip's first frame, the largest being 0.")
    ] = 0,
) -> None:
    """Save how somebody moves, without any picture of them.

    For example: fsth motion save nod.mp4 --output nod.motion.safetensors --loop
    """
    check_inputs(source)
    check_output(output, (".safetensors",), inputs=[source])
    if not output.name.lower().endswith(MOTION_FILE):
        raise FsthError(f"{output.name} cannot be written: its name must end in {MOTION_FILE}.")
    motion = _motion_of(source, detector, face, crop)
    motion.save(output, name=name, loop=loop, keep_face_shape=keep_face_shape, sound=sound)
    saved = type(motion).load(output)
    typer.echo(f"{output}: {_summary(saved)}, {output.stat().st_size / 1000:.0f} kB")


@app.command()
def show(
    motion: Annotated[str, typer.Argument(metavar="MOTION", help="A motion's file, or motion:NAME.")],
    output: Annotated[
        Path | None, typer.Option(help="Draw its landmarks into this .mp4 or .gif.", show_default=False)
    ] = None,
) -> None:
    """Say what a motion is, and draw its landmarks."""
    from ..pipelines.driving import DrivingMotion

    if output is not None:
        check_output(output, (".mp4", ".gif"), inputs=[Path(motion)])
    read = DrivingMotion.load(motion)
    if output is not None:
        from ..media.writing import write_clip

        write_clip(output, read.drawings(), read.fps, read.audio_from)
    name = read.name or Path(motion).name
    typer.echo(f"{name}: {_summary(read)}, made of {read.origin}" + (f"; {read.licence}" if read.licence else ""))


def read_driver(driving: str, seconds: float | None) -> "tuple[DrivingMotion | Path, Path | None]":
    """What drives, for the pipeline, and its file, unless it comes with the package."""
    from ..media.motion_files import SCHEME, is_motion
    from ..pipelines.driving import DrivingMotion

    path = None if driving.startswith(SCHEME) else Path(driving)
    if path is not None and not is_motion(driving):
        if seconds is not None:
            raise FsthError("--seconds is for motions, which can be repeated: of a clip take the first --frames.")
        return path, path
    motion = DrivingMotion.load(driving)
    return motion if seconds is None else motion.looped(seconds), path


@contextmanager
def follow_ahead(
    driver: Path, detector: "LandmarkDetector", face: int, crop: bool, max_frames: int | None
) -> "Iterator[Callable[[], DrivingMotion]]":
    """
    Follow the face of a clip in a thread, while the model is loaded, which keeps one core busy: gives what waits for
    the motion. Whoever leaves early waits for no more than a frame.
    """
    from ..media.reading import open_clip

    clip, is_left = open_clip(driver, max_frames=max_frames), threading.Event()

    def follow() -> "DrivingMotion":
        return _follow(clip, detector, face, crop, is_left)

    with ThreadPoolExecutor(1, "fsth-driving") as pool:
        try:
            yield pool.submit(follow).result
        finally:
            is_left.set()


def black_frames(motion: "DrivingMotion") -> "list[np.ndarray]":
    """Pictures for a motion that has none, on which its landmarks are drawn."""
    import numpy as np

    return [np.zeros((round(motion.box.side), round(motion.box.side), 3), np.uint8)] * len(motion.landmarks)


def _motion_of(source: Path, detector: str, face: int, crop: bool) -> "DrivingMotion":
    """Read where no networks are needed: the pipeline is not loaded."""
    from ..media.motion_files import is_motion
    from ..pipelines.driving import DrivingMotion

    if is_motion(source):
        return DrivingMotion.load(source)
    from ..media.reading import open_clip

    return _follow(open_clip(source), get_detector(detector), face, crop, is_left=threading.Event())


def _follow(
    clip: "Clip", detector: "LandmarkDetector", face: int, crop: bool, is_left: threading.Event
) -> "DrivingMotion":
    """Follow the face of a clip, with a progress bar; nothing comes of it once it is left."""
    from tqdm import tqdm

    from ..landmarks.expression import CROP_SIDE
    from ..pipelines.driving import read_motion

    with tqdm(total=clip.frame_count, disable=None, leave=False, unit=" frames") as bar:

        def progress() -> None:
            if is_left.is_set():
                raise CancelledError
            bar.update()

        return read_motion(clip, detector, face, crop, CROP_SIDE, progress)


def _summary(motion: "DrivingMotion") -> str:
    face = "the driver's proportions" if motion.face == "driver" else "nobody's proportions"
    sound = "with sound" if motion.audio_from is not None else "without sound"
    repeats = "can be repeated" if motion.loop else "does not repeat"
    return f"{motion.seconds:.1f} s at {motion.fps:g} fps, {repeats}, {face}, {sound}"
