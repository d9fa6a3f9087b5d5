"""The `fsth` command: animate a portrait, fine-tune a person, look at landmarks, see what is installed.

PyTorch and diffusers are imported by the commands that need them, so that `fsth --help` answers at once.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer.core import TyperGroup

from .errors import FsthError, NoFaceError


if TYPE_CHECKING:
    import numpy as np

    from .landmarks import LandmarkDetector
    from .pipeline_fsth import FsthPipeline

PACKAGES = ("fsth-hub", "torch", "transformers", "diffusers", "opencv-python", "av", "gradio")
CLIPS = (".mp4", ".gif")


class OneLineErrors(TyperGroup):
    """Says what is wrong with an input in one line, without a traceback, and exits with 1."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except FsthError as error:
            typer.echo(f"fsth: error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    help="Few-shot talking heads: a portrait moves as the person in a driving clip does.",
)

ModelOption = Annotated[str | None, typer.Option(help="Folder or hub id; by default the model in the package.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps, ...")]
DtypeOption = Annotated[Literal["auto", "float32", "bfloat16", "float16"], typer.Option(help="Numbers to compute in.")]
DetectorOption = Annotated[str, typer.Option(help="mediapipe (offline) or face-alignment (fetches its weights).")]
FaceOption = Annotated[int, typer.Option(min=0, help="Which face of the picture, counted from 0, the largest.")]


@app.command()
def animate(
    *,
    portraits: Annotated[
        list[Path] | None, typer.Argument(metavar="PORTRAIT", help="Pictures of one person.", show_default=False)
    ] = None,
    driving: Annotated[Path, typer.Option(help="The clip whose motion to take.")],
    output: Annotated[Path, typer.Option(help="The clip to write: .mp4, with the driver's sound, or .gif.")],
    identity: Annotated[
        Path | None, typer.Option(help="Folder of a fine-tuned person (fsth fine-tune), instead of portraits.")
    ] = None,
    model: ModelOption = None,
    motion: Annotated[
        Literal["relative", "absolute"],
        typer.Option(help="Move the portrait by the driver's change, or take the driver's landmarks as they are."),
    ] = "relative",
    crop: Annotated[
        bool, typer.Option("--crop/--no-crop", help="--no-crop: the inputs are square head crops already.")
    ] = True,
    detector: DetectorOption = "mediapipe",
    face: FaceOption = 0,
    driving_face: Annotated[int, typer.Option(min=0, help="The same for the first frame of the clip.")] = 0,
    frames: Annotated[int | None, typer.Option(min=1, help="Make no more than so many frames.")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: Annotated[int, typer.Option(help="For PyTorch's random numbers.")] = 0,
    report_path: Annotated[
        Path | None, typer.Option("--json", metavar="REPORT", help="Write a report here; - prints it.")
    ] = None,
) -> None:
    """Animate a person of whom there are one or more portraits, or who was fine-tuned.

    For example: fsth animate portrait.jpg --driving driver.mp4 --output result.mp4
    """
    to_stdout = report_path == Path("-")
    # Loading and drawing take long: what can be known to fail fails first.
    portraits = portraits or []
    if bool(portraits) == (identity is not None):
        raise FsthError("Give either portraits or the --identity of a fine-tuned person.")
    if identity is not None:
        check_inputs(identity / "identity.json")
    check_inputs(*portraits, driving)
    check_output(output, CLIPS, inputs=[*portraits, driving])
    if report_path is not None and not to_stdout:
        check_output(report_path, (".json",), inputs=[output])
    from .landmarks import get_detector

    found_detector = get_detector(detector)
    pipe = load_pipeline(model, device, dtype)
    pipe.detector = found_detector
    import torch

    from .identity import FsthIdentity

    torch.manual_seed(seed)
    result = pipe(
        portraits if identity is None else FsthIdentity.from_pretrained(identity, pipe),
        driving,
        motion=motion,
        crop=crop,
        face_index=face,
        driving_face_index=driving_face,
        num_frames=frames,
        output_path=output,
    )
    report = result.report | {
        "output": str(output),
        "model": model or "bundled",
        "motion": motion,
        "detector": detector,
        "device": str(pipe.device),
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "seed": seed,
        "versions": versions(),
    }
    if report_path is not None:
        text = json.dumps(report, indent=2)
        typer.echo(text) if to_stdout else report_path.write_text(text + "\n")
    seconds = sum(report["seconds"].values())
    sound = "with sound" if report["sound"] and output.suffix.lower() == ".mp4" else "without sound"
    summary = f"{output}: {report['frames']} frames at {report['fps']:g} fps, {sound}, {seconds:.1f} s"
    typer.echo(summary, err=to_stdout)


@app.command("fine-tune")
def fine_tune(
    portraits: Annotated[list[Path], typer.Argument(metavar="PORTRAIT", help="1 to 64 pictures of one person.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write, for animate --identity.")],
    model: ModelOption = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="At most so many; by default 50 for one picture to 230 for thirty.")
    ] = None,
    vgg: Annotated[str | None, typer.Option(help="VGG of the content loss: safetensors file or hub id.")] = None,
    face_network: Annotated[str | None, typer.Option(help="The same of a face network; without it left out.")] = None,
    crop: Annotated[
        bool, typer.Option("--crop/--no-crop", help="--no-crop: the pictures are square head crops already.")
    ] = True,
    detector: DetectorOption = "mediapipe",
    face: FaceOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: Annotated[int, typer.Option(help="Of the pictures' order and deformations.")] = 0,
) -> None:
    """Fine-tune the model to a person, for a better likeness; takes minutes.

    For example: fsth fine-tune one.jpg two.jpg --output ada
    """
    check_inputs(*portraits)
    from .finetuning import load_content
    from .identity import check_folder
    from .landmarks import get_detector

    check_folder(output)
    found_detector, content = get_detector(detector), load_content(vgg, face_network)
    pipe = load_pipeline(model, device, dtype)
    pipe.detector = found_detector
    pipe.set_progress_bar_config(disable=None, leave=False, unit=" steps")
    identity = pipe.fine_tune(portraits, steps=steps, content=content, seed=seed, face_index=face, crop=crop)
    identity.save_pretrained(output)
    count = f"{identity.num_portraits} portrait{'s' if identity.num_portraits > 1 else ''}"
    typer.echo(f"{output}: {count}, best after {identity.steps} of {len(identity.history) - 1} steps")


@app.command()
def landmarks(
    file: Annotated[Path, typer.Argument(help="A picture or a clip.")],
    output: Annotated[Path, typer.Option(help="For a picture .png, for a clip .mp4 or .gif.")],
    detector: DetectorOption = "mediapipe",
    face: FaceOption = 0,
) -> None:
    """Draw the landmarks over a picture or clip, to see whether they fit."""
    check_inputs(file)
    check_output(output, (".png", *CLIPS), inputs=[file])
    from PIL import Image

    from .image_processing_fsth import load_image
    from .landmark_drawing import overlaid
    from .landmarks import get_detector
    from .video import open_clip, write_clip

    found_detector = get_detector(detector)
    if output.suffix.lower() in CLIPS:
        clip = open_clip(file)
        pictures = overlaid_clip(show_progress(clip, clip.frame_count), found_detector, face, file.name)
        count = write_clip(output, pictures, clip.fps, clip.audio_path)
        typer.echo(f"{output}: {count} frames at {clip.fps:g} fps")
        return
    image = load_image(file)
    faces = found_detector.detect(image)
    if not faces:
        raise NoFaceError(f"No face was found in {file.name}; use a picture in which the face is seen clearly.")
    if face >= len(faces):
        raise FsthError(f"Face {face} was asked for, but {file.name} shows {len(faces)}, counted from 0.")
    Image.fromarray(overlaid(image, faces[face].points)).save(output)
    typer.echo(f"{output}: face {face} of {len(faces)}, score {faces[face].score:.2f}")


@app.command()
def info(model: ModelOption = None, device: DeviceOption = "auto", dtype: DtypeOption = "auto") -> None:
    """Show versions, device, the model's size and the detectors."""
    pipe = load_pipeline(model, device, dtype)
    from .pipeline_fsth import BUNDLED_MODEL

    rows = versions()
    rows |= {"device": pipe.device, "dtype": str(pipe.dtype).removeprefix("torch."), "model": model or BUNDLED_MODEL}
    for name in ("embedder", "generator", "discriminator"):
        count = sum(parameter.numel() for parameter in getattr(pipe, name).parameters())
        rows[name] = f"{count / 1e6:.2f} M parameters"
    folder = Path(model or BUNDLED_MODEL)
    if folder.is_dir():
        size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
        rows["checkpoint"] = f"{size / 1e6:.1f} MB"
    rows["detectors"] = "mediapipe (offline), face-alignment (fetches its weights on first use)"
    for name, value in rows.items():
        typer.echo(f"{name:14} {value}")


def check_inputs(*paths: Path) -> None:
    """Refuse files that do not exist."""
    for path in paths:
        if not path.is_file():
            raise FsthError(f"There is no file {path}: check the path.")


def check_output(path: Path, suffixes: tuple[str, ...], inputs: list[Path]) -> None:
    """Refuse a file that could not be written, or that would replace one of the inputs."""
    if path.suffix.lower() not in suffixes:
        raise FsthError(f"{path.name} cannot be written: its name must end in {' or '.join(suffixes)}.")
    if path.is_dir():
        raise FsthError(f"{path} is a folder: give the name of a file to write.")
    if path.resolve() in [other.resolve() for other in inputs]:
        raise FsthError(f"{path} would replace a file that is needed: give another name.")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise FsthError(f"There is no folder {folder} to write {path.name} into: make it first.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise FsthError(f"{path.name} cannot be written into {folder}: {error.strerror}.") from error


def load_pipeline(model: str | None, device: str, dtype: str) -> "FsthPipeline":
    """Load a model, and set its progress bars up for a terminal."""
    import torch

    silence_libraries()
    from .pipeline_fsth import FsthPipeline

    if device != "auto":
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # no such name; built without it; no such GPU
            raise FsthError(f"The device '{device}' cannot be used here: try --device auto.") from error
    torch_dtype = dtype if dtype == "auto" else getattr(torch, dtype)
    pipe = FsthPipeline.from_pretrained(model, device=device, dtype=torch_dtype)
    # None: no bar where stderr is not a terminal.
    pipe.set_progress_bar_config(disable=None, leave=False, unit=" frames")
    return pipe


def silence_libraries() -> None:
    """Leave stderr to our own progress and errors: loading a model prints five bars and a warning otherwise."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def show_progress(frames: Iterable["np.ndarray"], count: int | None) -> Iterator["np.ndarray"]:
    """The frames, with a progress bar on stderr where that is a terminal."""
    from tqdm import tqdm

    return tqdm(frames, total=count, disable=None, leave=False, unit=" frames")


def versions() -> dict[str, str]:
    """Of Python and of the packages that matter for a result."""
    return {"python": sys.version.split()[0]} | {name: version(name) for name in PACKAGES}


def overlaid_clip(
    frames: Iterable["np.ndarray"], detector: "LandmarkDetector", face_index: int, name: str
) -> Iterator["np.ndarray"]:
    """A clip's frames with the landmarks of one face drawn over them; where it is gone the frame is left as it is."""
    from .landmark_drawing import overlaid
    from .landmarks import track_clip

    found = False
    frames, tracked = tee(frames)
    for image, face in zip(frames, track_clip(tracked, detector, face_index), strict=True):
        found = found or face is not None
        yield image if face is None else overlaid(image, face.points)
    if not found:
        raise NoFaceError(f"No face was found in {name}; use a clip in which the face is seen clearly.")


def main() -> None:
    """Entry point of the `fsth` command."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")  # read when OpenCV is loaded
    app(prog_name="fsth")
