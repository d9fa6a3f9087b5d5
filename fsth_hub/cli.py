"""The `fsth` command: animate a portrait, fine-tune and publish a person, look at landmarks, see what is installed.

PyTorch and diffusers are imported by the commands that need them, so that `fsth --help` answers at once.
"""

import json
import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer.core import TyperGroup

from .cli_checks import check_consent, check_inputs, check_output, check_photographs, model_of, precision_of
from .cli_options import (
    PUBLISHING,
    ConsentOption,
    DetectorOption,
    DeviceOption,
    DtypeOption,
    FaceOption,
    ModelOption,
    PhotographsOption,
    PrivateOption,
)
from .errors import FsthError, NoFaceError


if TYPE_CHECKING:
    import numpy as np

    from .identity import FsthIdentity
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


@app.command()
def animate(
    *,
    portraits: Annotated[
        list[Path] | None, typer.Argument(metavar="PORTRAIT", help="Pictures of one person.", show_default=False)
    ] = None,
    driving: Annotated[Path, typer.Option(help="The clip whose motion to take.")],
    output: Annotated[Path, typer.Option(help="The clip to write: .mp4, with the driver's sound, or .gif.")],
    identity: Annotated[
        str | None, typer.Option(help="A fine-tuned person instead of portraits: folder or hub id.")
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
    driving_face: Annotated[
        int, typer.Option(min=0, metavar="N", help="The same for the first frame of the clip.")
    ] = 0,
    frames: Annotated[int | None, typer.Option(min=1, metavar="N", help="Make no more than so many frames.")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: Annotated[int, typer.Option(help="For PyTorch's random numbers.")] = 0,
    report_path: Annotated[
        Path | None, typer.Option("--json", metavar="REPORT", help="Write a report here; - prints it.")
    ] = None,
) -> None:
    """Animate a person: portraits, or one who was fine-tuned.

    For example: fsth animate portrait.jpg --driving driver.mp4 --output result.mp4
    """
    to_stdout = report_path == Path("-")
    # Loading and drawing take long: what can be known to fail fails first.
    portraits = portraits or []
    if bool(portraits) == (identity is not None):
        raise FsthError("Give either portraits or the --identity of a fine-tuned person.")
    check_inputs(*portraits, driving)
    check_output(output, CLIPS, inputs=[*portraits, driving])
    if report_path is not None and not to_stdout:
        check_output(report_path, (".json",), inputs=[output])
    from .landmarks import get_detector

    found_detector = get_detector(detector)
    model_revision = None
    if identity is not None:
        from .hub import fetch

        identity = fetch(identity)
        if model is None:
            model, model_revision = model_of(identity)
    pipe = load_pipeline(model, device, dtype, model_revision)
    pipe.detector = found_detector
    import torch

    torch.manual_seed(seed)
    result = pipe(
        portraits if identity is None else pipe.load_identity(identity),
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
        int | None,
        typer.Option(min=1, metavar="N", help="At most so many; by default 50 for one picture to 230 for thirty."),
    ] = None,
    kind: Annotated[
        Literal["full", "adapter"] | None,
        typer.Option(help="Keep all weights (21 MB), or low-rank updates (1 MB)."),
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
    from .finetuning import load_content
    from .identity import check_folder
    from .landmarks import get_detector

    check_folder(output)
    found_detector, content = get_detector(detector), load_content(vgg, face_network)
    if push_to_hub is not None:
        from .hub import create_repository

        push_to_hub = create_repository(push_to_hub, private=private)
    pipe = load_pipeline(model, device, dtype)
    pipe.detector = found_detector
    pipe.set_progress_bar_config(disable=None, leave=False, unit=" steps")
    options = {} if kind is None else {"kind": kind}
    options |= {"steps": steps, "content": content, "seed": seed, "face_index": face, "crop": crop}
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


@app.command()
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
    # All that is drawn is the preview's four frames, for which every machine has a processor.
    pipe = load_pipeline(model, "cpu", precision_of(folder), model_revision)
    identity = pipe.load_identity(folder)
    from .hub import create_repository

    push(identity, create_repository(repo, private=private), private, photographs, revision)


@app.command()
def landmarks(
    file: Annotated[Path, typer.Argument(help="A picture or a clip.")],
    output: Annotated[Path, typer.Option(help="For a picture .png, for a clip .mp4 or .gif.")],
    detector: DetectorOption = "mediapipe",
    face: FaceOption = 0,
) -> None:
    """Draw the landmarks over a picture or clip: do they fit?"""
    check_inputs(file)
    check_output(output, (".png", *CLIPS), inputs=[file])
    from PIL import Image

    from .image_processing_fsth import load_image
    from .landmark_overlay import overlaid, overlaid_clip
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
    from .pretrained import BUNDLED_MODEL

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


def push(
    identity: "FsthIdentity", repo: str, private: bool, photographs: list[Path], revision: str | None = None
) -> None:
    """Publish a person, to whose publication there is consent, and say where."""
    address = identity.push_to_hub(repo, consent=True, private=private, revision=revision, photographs=photographs)
    typer.echo(address.partition("/commit/")[0])


def load_pipeline(model: str | None, device: str, dtype: str, revision: str | None = None) -> "FsthPipeline":
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
    pipe = FsthPipeline.from_pretrained(model, device=device, dtype=torch_dtype, revision=revision)
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


def main() -> None:
    """Entry point of the `fsth` command."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")  # read when OpenCV is loaded
    app(prog_name="fsth")
