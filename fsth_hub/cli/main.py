"""The `fsth` command: animate a portrait, look at landmarks, at a file's origin, at what is installed.

PyTorch and diffusers are imported by the commands that need them, so that `fsth --help` answers at once.
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer.core import TyperGroup

from ..checks import read_faces
from ..landmarks import DEFAULT_DETECTOR, describe_detectors, get_detector
from ..models.errors import FsthError, NoFaceError
from ..saving import whole_file, write_json
from . import loading as cli_loading
from . import motion as cli_motion
from . import people as cli_people
from . import portraits as cli_portraits
from .batch import batch
from .checks import check_group, check_inputs, check_output, check_size, model_of
from .ending import one_sentence, set_up_process
from .express import express
from .options import (
    OUTPUT,
    CredentialsOption,
    CropOption,
    DetectorOption,
    DeviceOption,
    DtypeOption,
    EngineOption,
    FaceOption,
    FacesOption,
    ModelOption,
    PasteBackOption,
    ShotsOption,
    SizeOption,
    WatermarkOption,
)


if TYPE_CHECKING:
    import numpy as np

PACKAGES = ("fsth-hub", "torch", "transformers", "diffusers", "opencv-python", "av", "gradio")
CLIPS = (".mp4", ".gif")


class OneLineErrors(TyperGroup):
    """Says what is wrong with an input in one line, without a traceback, and exits with 1; a warning is a line."""

    def invoke(self, ctx):
        with one_sentence():
            return super().invoke(ctx)


app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    help="Few-shot talking heads: a portrait moves as the person in a driving clip does.",
)


@app.command()
def animate(
    *,
    portraits: Annotated[
        list[Path] | None,
        typer.Argument(metavar="PORTRAIT", help="Pictures or a clip of one person.", show_default=False),
    ] = None,
    driving: Annotated[
        str,
        typer.Option(help="What moves it: a clip, or a motion: motion:nod, .motion.safetensors, ...", metavar="FILE"),
    ],
    output: Annotated[Path, typer.Option(help="The clip to write: .mp4, with the driver's sound, or .gif.")],
    identity: Annotated[
        list[str] | None,
        typer.Option(
            help="A fine-tuned person instead of portraits: folder or hub id. With a photograph and --paste-back its "
            "first face; repeated, its faces in the order of --face.",
            show_default=False,
        ),
    ] = None,
    model: ModelOption = None,
    motion: Annotated[
        Literal["relative", "absolute"],
        typer.Option(
            metavar="MODE",
            help="relative: move the portrait by the driver's change; absolute: take the driver's landmarks as they "
            "are.",
        ),
    ] = "relative",
    motion_strength: Annotated[
        float, typer.Option(min=0, max=2, metavar="X", help="0 stays still, 1 as far as the driver, up to 2.")
    ] = 1.0,
    smoothing: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, metavar="SECONDS", help="Against trembling landmarks; by default 0.03, 0 for none."
        ),
    ] = None,
    size: SizeOption = None,
    regions: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Move these alone: head, brows, eyes, gaze, mouth, as in eyes,mouth.",
            show_default=False,
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            metavar="S", help="Repeat (or cut) a motion, which is no clip, to this length.", show_default=False
        ),
    ] = None,
    sound: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The sound to take instead of the driver's: wav, m4a, a clip, ..."),
    ] = None,
    paste_back: PasteBackOption = False,
    crop: CropOption = True,
    detector: DetectorOption = DEFAULT_DETECTOR,
    face: FacesOption = "0",
    shots: ShotsOption = None,
    driving_face: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="The same for the first frame of the clip. By default 0; for several faces all, who drive one each, "
            "and begin again where they are fewer.",
            show_default=False,
        ),
    ] = None,
    frames: Annotated[int | None, typer.Option(min=1, metavar="N", help="Make no more than so many frames.")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    engine: EngineOption = "auto",
    beside: Annotated[
        Path | None,
        typer.Option(
            "--side-by-side",
            metavar="PATH",
            help="Write portrait, driver with landmarks and result beside each other, too.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    watermark: WatermarkOption = True,
    credentials: CredentialsOption = True,
    report_path: Annotated[
        Path | None,
        typer.Option("--json", metavar="REPORT", help="Write a report here; - prints it.", rich_help_panel=OUTPUT),
    ] = None,
) -> None:
    """Animate a person: portraits, or one who was fine-tuned; or several people of one photograph.

    For example: fsth animate portrait.jpg --driving driver.mp4 --output result.mp4
    """
    face = read_faces("--face", face)
    driving_face = read_faces("--driving-face", driving_face or ("0" if isinstance(face, int) else "all"))
    to_stdout = report_path == Path("-")
    # Loading and drawing take long: what can be known to fail fails first.
    portraits, identities = portraits or [], identity or []
    is_group = check_group(face, driving_face, portraits, identities, paste_back, crop)
    driver, driving_path = cli_motion.read_driver(driving, seconds)
    inputs = [*portraits, *[driving_path] * (driving_path is not None), *[sound] * (sound is not None)]
    check_inputs(*inputs)
    check_output(output, CLIPS, inputs=inputs)
    if beside is not None:
        check_output(beside, CLIPS, inputs=[*inputs, output])
    if motion == "absolute" and motion_strength != 1:
        raise FsthError("--motion-strength is for relative motion: leave it out, or leave out --motion absolute.")
    if report_path is not None and not to_stdout:
        check_output(report_path, (".json",), inputs=[output])
    check_size(size)
    from ..landmarks.portrait_picking import DEFAULT_SHOTS
    from ..landmarks.regions import check_regions
    from ..landmarks.smoothing import DEFAULT_SMOOTHING
    from ..media.reading import holds_clip

    regions = None if regions is None else check_regions([name.strip() for name in regions.split(",")])
    smoothing, shots = DEFAULT_SMOOTHING if smoothing is None else smoothing, shots or DEFAULT_SHOTS
    found_detector = get_detector(detector)
    model_revision = None
    if identities:
        from ..models.downloading import fetch

        identities = [fetch(name) for name in identities]
        if model is None:
            model, model_revision = model_of(identities[0])
    ahead = nullcontext(lambda: driver)
    if isinstance(driver, Path) and not is_group:
        ahead = cli_motion.follow_ahead(driver, found_detector, driving_face, crop, frames)
    with ahead as followed:
        pipe = cli_loading.load_pipeline(model, device, dtype, model_revision, engine)
        pipe.detector = found_detector
        people = [pipe.load_identity(name) for name in identities]
        moving = followed()
    person = portraits or people[0]
    if beside is not None and person is portraits and not is_group and holds_clip(portraits[0]):
        # the first of them is shown
        person = [*pipe.pick_portraits(portraits[0], shots, face, crop), *portraits[1:]]
    options = {"motion": motion, "regions": regions, "motion_strength": motion_strength, "smoothing": smoothing}
    options |= {"size": size, "sound": sound, "num_frames": frames, "output_path": output}
    options |= {"watermark": watermark, "credentials": credentials}
    if is_group:
        faces = [[one] if isinstance(one, int) else one for one in (face, driving_face)]
        result = pipe.animate_group(portraits[0], moving, *faces, people=people, **options)
    else:
        options |= {"paste_back": paste_back, "crop": crop, "shots": shots}
        result = pipe(person, moving, face_index=face, driving_face_index=driving_face, **options)
    if beside is not None:
        from ..media.reading import open_clip
        from ..pipelines.portrait_picking import photograph_of
        from ..pipelines.side_by_side import write_side_by_side

        portrait = photograph_of(person[0]) if portraits else person.crops[0]
        clip = open_clip(output, fps=result.fps, allow_still=True)
        frames = show_progress(clip, result.report.num_frames)
        whole = paste_back or not portraits
        pictures = driver if driver is driving_path else cli_motion.black_frames(driver)
        write_side_by_side(beside, portrait, pictures, result, frames, pipe.size, whole)
    report = result.report.to_dict() | {
        "output": str(output),
        "model": model or "bundled",
        "driving": driving,
        "regions": regions,
        "motion": motion,
        "motion_strength": motion_strength,
        "smoothing": smoothing,
        "size_asked": size,
        "paste_back": paste_back,
        "side_by_side": beside and str(beside),
        "detector": detector,
        "device": str(pipe.device),
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "versions": versions(),
    }
    if report_path is not None:
        typer.echo(json.dumps(report, indent=2)) if to_stdout else write_json(report_path, report)
    made = result.report
    sound = "with sound" if made.sound and output.suffix.lower() == ".mp4" else "without sound"
    people = f"{len(made.portrait_boxes)} people, the largest head " if is_group else ""
    pixels = f"{people or 'the head ' * paste_back}{made.size} x {made.size} pixels"
    if size is not None and made.size == made.max_size < size:
        pixels += " (the portrait has no more)"
    seconds = sum(made.seconds.values())
    summary = f"{output}: {made.num_frames} frames at {made.fps:g} fps, {pixels}, {sound}, {seconds:.1f} s"
    typer.echo(summary, err=to_stdout)
    if len(made.shots) > 1:
        typer.echo(f"The driving clip has {len(made.shots)} shots: each moves from a pose of its own.", err=to_stdout)
    if made.frames_without_face:
        gone = f"{len(made.frames_without_face)} of {made.num_frames} frames"
        typer.echo(f"No face was found in {gone} of the driving clip: the pose before is held there.", err=to_stdout)


app.command("fine-tune")(cli_people.fine_tune)
app.command()(cli_people.publish)
app.command()(express)
app.add_typer(cli_motion.app, name="motion")
app.command()(cli_portraits.portraits)
app.command()(batch)


@app.command()
def landmarks(
    file: Annotated[Path, typer.Argument(help="A picture or a clip.")],
    output: Annotated[Path, typer.Option(help="For a picture .png, for a clip .mp4 or .gif.")],
    detector: DetectorOption = DEFAULT_DETECTOR,
    face: FaceOption = 0,
) -> None:
    """Draw the landmarks over a picture or clip: do they fit?"""
    check_inputs(file)
    check_output(output, (".png", *CLIPS), inputs=[file])
    from PIL import Image

    from ..landmarks import set_upright
    from ..media.landmark_overlay import overlaid, overlaid_clip
    from ..media.reading import open_clip
    from ..media.writing import write_clip
    from ..models.image_loading import load_image

    found_detector = get_detector(detector)
    if output.suffix.lower() in CLIPS:
        clip = open_clip(file)
        pictures = overlaid_clip(show_progress(clip, clip.frame_count), found_detector, face, file.name)
        count = write_clip(output, pictures, clip.fps, clip.audio_from)
        typer.echo(f"{output}: {count} frames at {clip.fps:g} fps")
        return
    image, faces, _ = set_upright(load_image(file), found_detector)
    if not faces:
        raise NoFaceError(f"No face was found in {file.name}; use a picture in which the face is seen clearly.")
    if face >= len(faces):
        raise FsthError(f"Face {face} was asked for, but {file.name} shows {len(faces)}, counted from 0.")
    with whole_file(output) as unfinished:
        Image.fromarray(overlaid(image, faces[face].points)).save(unfinished)
    typer.echo(f"{output}: face {face} of {len(faces)}, score {faces[face].score:.2f}")


@app.command("inspect")
def inspect_file(
    file: Annotated[Path, typer.Argument(help="A picture or a clip.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print all that was read, as JSON.")] = False,
) -> None:
    """Say what a file tells of its origin, and if it was changed since.

    It is read, and nothing is sent; whatever is found, the exit code is 0.
    """
    from ..provenance.inspection import inspect

    report = inspect(file)
    typer.echo(json.dumps(report.to_dict(), indent=2) if as_json else report.summary())


@app.command()
def info(model: ModelOption = None, device: DeviceOption = "auto", dtype: DtypeOption = "auto") -> None:
    """Show versions, device, the model's size and the detectors."""
    pipe = cli_loading.load_pipeline(model, device, dtype, discriminator=True)
    from ..pipelines.engines import pick_engine
    from ..pipelines.loading import BUNDLED_MODEL

    rows = versions()
    rows |= {"device": pipe.device, "dtype": str(pipe.dtype).removeprefix("torch.")}
    rows |= {"engine": pick_engine("auto", pipe.generator), "model": model or BUNDLED_MODEL}
    networks = {name: part for name, part in pipe.components.items() if hasattr(part, "num_parameters")}
    rows |= {name: f"{network.num_parameters() / 1e6:.2f} M parameters" for name, network in networks.items()}
    folder = Path(model or BUNDLED_MODEL)
    if folder.is_dir():
        size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
        rows["checkpoint"] = f"{size / 1e6:.1f} MB"
    rows["detectors"] = describe_detectors()
    for name, value in rows.items():
        typer.echo(f"{name:18} {value}")


def show_progress(frames: Iterable["np.ndarray"], count: int | None) -> Iterator["np.ndarray"]:
    """The frames, with a progress bar on stderr where that is a terminal."""
    from tqdm import tqdm

    return tqdm(frames, total=count, disable=None, leave=False, unit=" frames")


def versions() -> dict[str, str]:
    """Of Python and of the packages that matter for a result."""
    return {"python": sys.version.split()[0]} | {name: version(name) for name in PACKAGES}


def main() -> None:
    """Entry point of the `fsth` command."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")  # read when OpenCV is loaded
    set_up_process()
    with one_sentence():  # what lies before a command: help that cannot be printed
        app(prog_name="fsth")
