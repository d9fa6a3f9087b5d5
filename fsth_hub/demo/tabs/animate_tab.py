"""The Animate tab: a driving clip in, a talking head out, generated before the visitor's eyes."""

import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import gradio as gr
import numpy as np

from ...landmarks.motion import MAX_STRENGTH
from ...landmarks.smoothing import DEFAULT_SMOOTHING, MAX_SMOOTHING
from ...media.reading import open_clip
from ...models.errors import FsthError, FsthWarning
from ...pipelines.person import DEFAULT_SIZE
from ...pipelines.side_by_side import write_side_by_side
from ..errors import told_to_visitor
from ..inputs import (
    MAX_SECONDS,
    Portraits,
    Seen,
    checked_portraits,
    choose_face,
    chosen_faces,
    faces_gallery,
    look_at_first_frame,
    note,
    open_limited,
    show_faces,
)
from ..jobs import Countdown, Job, JobStopped, progress_bar
from ..people import Kept
from ..studio import DRIVER, HEAVY, PORTRAIT, Studio
from . import AnimatePanel, Page


if TYPE_CHECKING:
    from ...pipelines.pipeline_fsth import FsthPipeline
    from ...pipelines.pipeline_output import FsthReport


PREVIEW_SECONDS = 0.2  # between two preview pictures
CLIP_NAME, SIDE_BY_SIDE_NAME, DETAILS_NAME = "talking_head.mp4", "side_by_side.mp4", "details.md"
PORTRAITS, FINE_TUNED = "portraits", "fine-tuned"  # who is animated
SIZES = (256, DEFAULT_SIZE, 1024)  # of frames, pixels


@dataclass(frozen=True)
class Settings:
    """What the visitor chose under Options, in the order of the page's fields."""

    motion: str = "relative"
    max_frames: float | None = None
    model: str | None = None
    motion_strength: float = 1.0
    smoothing: float = DEFAULT_SMOOTHING
    paste_back: bool = False
    watermark: bool = True
    size: int = DEFAULT_SIZE

    def pipeline_arguments(self) -> dict:
        names = ["motion", "smoothing", "paste_back", "watermark"]
        names += ["motion_strength"] * (self.motion == "relative")  # the pipeline has none for absolute motion
        # the default is the pipeline's to fill in: it is another one for what is pasted back, and there are models
        # that generate one size alone
        names += ["size"] * (self.size != DEFAULT_SIZE)
        return {name: getattr(self, name) for name in names}

    @property
    def are_defaults(self) -> bool:
        return replace(self, model=None) == Settings()


class Animator:
    """The tab's handlers; all that belongs to a visitor comes and goes as arguments."""

    def __init__(self, studio: Studio):
        self.studio = studio

    def look_at_clip(self, driving: str | None) -> tuple[dict, list[Seen], dict]:
        """Show the faces of a clip just given, and what is wrong with it."""
        if not driving:
            return show_faces([], "Clip"), [], note("")
        try:
            clip, sight = open_limited(driving), look_at_first_frame(self.studio, driving)
        except FsthError as error:
            return show_faces([], "Clip"), [], note(str(error))
        notes = []
        if not sight.crops:
            notes.append("No face was found in the clip's first second: choose one in which a face is seen clearly.")
        if len(sight.crops) > 1:
            notes.append("Several faces were found: click the one to follow.")
        if clip.duration and clip.duration > MAX_SECONDS:
            notes.append(f"The clip is {clip.duration:.0f} s long: its first {MAX_SECONDS} s are used.")
        return show_faces([sight], "Driver"), [sight], note(" ".join(notes))

    def choose_driver(self, seen: list[Seen], event: gr.SelectData) -> tuple[dict, list[Seen]]:
        seen = choose_face(seen, event.index)
        return show_faces(seen, "Driver"), seen

    def animate(
        self,
        portraits: Portraits,
        driving: str | None,
        portraits_seen: list[Seen],
        driving_seen: list[Seen],
        motion: str = "relative",
        max_frames: float | None = None,
        model: str | None = None,
        motion_strength: float = 1.0,
        smoothing: float = DEFAULT_SMOOTHING,
        paste_back: bool = False,
        watermark: bool = True,
        person: str = PORTRAITS,
        size: int = DEFAULT_SIZE,
        request: gr.Request = None,
    ) -> Iterator[tuple]:
        """Generate the clip; gives (result, side by side, preview, progress, settings), the first two at the end."""
        model = model or self.studio.model_names[0]
        settings = Settings(motion, max_frames, model, motion_strength, smoothing, paste_back, watermark, size)
        with told_to_visitor(), tempfile.TemporaryDirectory(prefix="fsth-") as folder:
            own = self.studio.people.get(request) if person == FINE_TUNED else None
            paths = [] if own else checked_portraits(portraits)
            if not driving:
                raise FsthError("Add a driving clip first: upload one, record one, or take the example.")
            faces = chosen_faces(paths, portraits_seen), chosen_faces([driving], driving_seen)[0]
            # not for every choice of options: there are as many as would fill the disk
            files = [*paths, driving] if settings.are_defaults and not own else []
            kept = self.studio.kept_result(files, {**asdict(settings), "faces": faces})
            if kept and (kept / DETAILS_NAME).is_file():
                yield *clips_in(kept), None, "", (kept / DETAILS_NAME).read_text()
                return
            yield None, None, None, progress_bar("Getting ready"), ""
            work = partial(self._generate, own or paths, driving, faces, settings, Path(folder))
            try:
                report, said = yield from self.studio.worker.stream(request and request.session_hash, work)
            except JobStopped:
                yield None, None, None, "", "Cancelled."
                return
            details = f"{said} {describe(settings, report, own)}".lstrip()
            if kept:
                try:
                    shutil.copytree(folder, kept, dirs_exist_ok=True)
                    (kept / DETAILS_NAME).write_text(details)  # last: it says that the clips are whole
                except OSError:  # the disk is full: the next visitor's is drawn again
                    shutil.rmtree(kept, ignore_errors=True)
            yield *clips_in(folder), None, "", details

    def _generate(
        self,
        portraits: list[str] | Kept,
        driving: str,
        faces: tuple[list[int], int],
        settings: Settings,
        folder: Path,
        job: Job,
    ) -> tuple["FsthReport", str]:
        """The work itself, on the worker's thread: writes both clips, returns the pipeline's report and warnings."""
        own = portraits if isinstance(portraits, Kept) else None
        pipe = self.studio.pipeline(own.model if own else settings.model)
        clip = open_limited(driving, int(settings.max_frames) if settings.max_frames else None)
        following, drawing, shown = Countdown("Following the driver's face", clip.frame_count), None, 0.0

        def read():
            for index, picture in enumerate(clip.read(), start=1):
                if index % 10 == 1:
                    job.report((None, None, None, following(index), ""))
                yield picture

        def show(pipe: "FsthPipeline", index: int, count: int, frame: np.ndarray) -> None:
            nonlocal drawing, shown
            drawing = drawing or Countdown("Drawing", count)
            last = index + 1 == count
            if last or time.monotonic() - shown > PREVIEW_SECONDS:
                shown = time.monotonic()
                job.report((None, None, frame, drawing(index + 1), ""))

        def drawn_frames(output):
            laying_out = Countdown("Putting side by side", output.report.num_frames)
            result = open_clip(folder / CLIP_NAME, fps=output.fps, allow_still=True)
            for index, frame in enumerate(result, start=1):
                if index % 10 == 1:
                    job.report((None, None, gr.skip(), laying_out(index), ""))
                yield frame

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", FsthWarning)
            output = pipe(
                own.identity if own else portraits,
                replace(clip, read=read),
                face_index=0 if own else faces[0],
                driving_face_index=faces[1],
                output_path=folder / CLIP_NAME,
                callback_on_frame_end=show,
                **settings.pipeline_arguments(),
            )
        said = [str(warning.message) for warning in caught if warning.category is FsthWarning]
        beside, frames = folder / SIDE_BY_SIDE_NAME, drawn_frames(output)
        portrait, whole = (own.identity.crops[0], True) if own else (portraits[0], settings.paste_back)
        write_side_by_side(beside, portrait, clip, output, frames, pipe.size, whole=whole)
        return output.report, " ".join(said)


def clips_in(folder: str | Path) -> tuple[str, str]:
    """The result, and side by side."""
    return str(Path(folder, CLIP_NAME)), str(Path(folder, SIDE_BY_SIDE_NAME))


def describe(settings: Settings, report: "FsthReport", own: Kept | None = None) -> str:
    """Settings and figures of a clip, shown beside it: the same inputs and settings give the same clip."""
    seconds, missing = sum(report.seconds.values()), len(report.frames_without_face)
    parts = [f"{report.num_frames} frames at {report.fps:.4g} per second, generated in {seconds:.0f} s"]
    size = f"{'the head ' if settings.paste_back else ''}{report.size} x {report.size} pixels"
    # it may be smaller for other reasons: the model's only size, or a photograph that was reduced
    parts += [f"{size} (the portrait has no more)" if report.size == report.max_size < settings.size else size]
    parts += ["fine-tuned person"] if own else []
    parts += [f"{settings.motion} motion"]
    if settings.motion == "relative":
        parts[-1] += f" of strength {settings.motion_strength:g}"
    parts += [f"smoothing {settings.smoothing:g} s"] + ["pasted back into the photograph"] * settings.paste_back
    parts += [f"model {own.model if own and own.model else settings.model}"]
    parts += ["with" if settings.watermark else "without"]
    parts[-1] += " a visible mark, " + ("signed" if report.credentials else "not signed")
    held = f" In {missing} frames the driver's face was not found; the last pose is held there." if missing else ""
    return ", ".join(parts) + f". The same inputs and settings give the same pictures.{held}"


STAGES = ("idle", "running", "done")


def stage(name: str) -> tuple[dict, ...]:
    """Updates of (animate, cancel, placeholder, preview, result, side by side) for a stage of the work."""
    running = name == "running"
    return (
        gr.update(interactive=not running),
        gr.update(visible=running),
        gr.update(visible=name == "idle"),
        gr.update(visible=running, value=None),
        gr.update(visible=name == "done"),
        gr.update(visible=name == "done"),
    )


def animate_tab(page: Page) -> None:
    """Build the tab and wire it; the page gets what it shares."""
    studio, portraits = page.studio, page.portraits
    animator = Animator(studio)
    with gr.Row():
        with gr.Column(min_width=300, elem_id="driving-column"):
            driving = gr.Video(label="2. Driving clip", sources=["upload", "webcam"], height=300, elem_id="driving")
            notes = gr.Markdown(visible=False, elem_id="driving-notes", elem_classes="notes")
            faces, seen = faces_gallery("Whose motion will be taken", "driving-faces"), gr.State([])
            examples = gr.Examples(
                [[[str(PORTRAIT)], str(DRIVER)]],
                inputs=[portraits.gallery, driving],
                example_labels=["Astronaut (NASA), generated driver"],
                label="No pictures at hand? Click to see it move",
                elem_id="examples",
            )
            person = gr.Radio(
                [("The portraits, as they are", PORTRAITS), ("Your fine-tuned person", FINE_TUNED)],
                value=PORTRAITS,
                label="Person",
                visible=False,
                elem_id="person",
            )
            *options, size = _options(studio)
            with gr.Row():
                animate = gr.Button("3. Animate", variant="primary", scale=2, min_width=120, elem_id="animate")
                cancel = gr.Button("Cancel", visible=False, scale=1, min_width=100, elem_id="cancel")
        with gr.Column(min_width=300, elem_id="result-column"):
            placeholder = gr.Markdown("The animated portrait will appear here.", elem_id="placeholder")
            result = gr.Video(
                label="Result", interactive=False, autoplay=True, visible=False, height=420, elem_id="result"
            )
            preview = gr.Image(
                label="Being generated", format="jpeg", height=360, buttons=[], interactive=False, visible=False,
                alt_text="The frame being generated", elem_id="preview",
            )  # fmt: skip
            progress = gr.HTML(elem_id="progress", elem_classes="job-progress")
            details = gr.Markdown(elem_id="details")
            beside = gr.Video(
                label="Side by side", interactive=False, visible=False, height=200, elem_id="side-by-side"
            )  # fmt: skip

    private = {"api_visibility": "private", "show_progress": "hidden"}
    driving.change(animator.look_at_clip, driving, [faces, seen, notes], **private)
    faces.select(animator.choose_driver, seen, [faces, seen], **private)

    stages = [animate, cancel, placeholder, preview, result, beside]
    started = animate.click(partial(stage, "running"), None, stages, **private)
    # a gallery does not report a change by an example
    portraits.look_after(examples.load_input_event.success)
    examples.load_input_event.success(None, js="() => document.querySelector('#animate').click()", **private)
    animation = started.then(
        animator.animate,
        # the size last: programs may give what was there before it by position
        inputs=[portraits.gallery, driving, portraits.seen, seen, *options, person, size],
        outputs=[result, beside, preview, progress, details],
        api_name="animate",
        show_progress="minimal",
        show_progress_on=progress,
        **HEAVY,
    )
    animation.success(lambda: stage("done"), None, stages, **private)
    cancelled = cancel.click(studio.stop, cancels=animation, queue=False, api_name="cancel")
    for ended_early in (animation.failure, cancelled.then):
        ended_early(lambda: (*stage("idle"), ""), None, [*stages, progress], **private)
    portraits.gallery.change(lambda: PORTRAITS, None, person, **private)  # new portraits are meant to be used
    page.animation = AnimatePanel(driving, seen, person)


def _options(studio: Studio) -> list[gr.components.Component]:
    """The options, closed at first, in the order of `Settings`."""
    with gr.Accordion("Options", open=False, elem_id="options"):
        motion = gr.Radio(
            [("Relative", "relative"), ("Absolute", "absolute")],
            value="relative",
            label="Motion",
            info="Relative: the portrait changes as the driver does. Absolute: it takes the driver's pose as it "
            "is, and with it the shape of the driver's face.",
            elem_id="motion",
        )
        strength = gr.Slider(
            0,
            MAX_STRENGTH,
            1,
            step=0.05,
            label="Motion strength",
            info="1 moves as far as the driver, 0 not at all. For relative motion.",
            elem_id="motion-strength",
        )
        smoothing = gr.Slider(
            0,
            MAX_SMOOTHING,
            DEFAULT_SMOOTHING,
            step=0.01,
            label="Smoothing",
            info="Seconds, against a trembling of the landmarks; more makes the motion softer.",
            elem_id="smoothing",
        )
        paste_back = gr.Checkbox(
            False,
            label="Paste back into the photograph",
            info="The first portrait comes to life as a whole picture.",
            elem_id="paste-back",
        )
        watermark = gr.Checkbox(
            True,
            label='Visible "AI-generated" mark',
            info="In the lower right corner. The file says so too, with the mark or without.",
            elem_id="watermark",
        )
        size = gr.Radio(
            [(f"{side} x {side}", side) for side in SIZES],
            value=DEFAULT_SIZE,
            label="Size",
            info="Pixels, never more than the portrait has. "
            f"Pasted back, {DEFAULT_SIZE} stands for as many as the photograph has.",
            elem_id="size",
        )
        max_frames = gr.Number(
            label="Maximum number of frames",
            info=f"Empty for the whole clip, of which {MAX_SECONDS} s at most are used.",
            value=None,
            precision=0,
            minimum=1,
            elem_id="max-frames",
        )
        model = gr.Dropdown(
            studio.model_names,
            value=studio.model_names[0],
            label="Model",
            visible=len(studio.model_names) > 1,
            elem_id="model",
        )
    motion.change(
        lambda motion: gr.update(interactive=motion == "relative"),
        motion,
        strength,
        api_visibility="private",
        show_progress="hidden",
    )
    return [motion, max_frames, model, strength, smoothing, paste_back, watermark, size]
