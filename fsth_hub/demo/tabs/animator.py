"""What the Animate tab does: a clip or a motion in, a talking head out, generated before the visitor's eyes."""

import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import gradio as gr
import numpy as np

from ...landmarks.regions import REGIONS
from ...landmarks.smoothing import DEFAULT_SMOOTHING
from ...media.motion_files import SUFFIX
from ...media.reading import open_clip
from ...models.errors import FsthError, FsthWarning
from ...pipelines.driving import DrivingMotion, file_of
from ...pipelines.names import DEFAULT_SIZE
from ...pipelines.side_by_side import write_side_by_side
from ..errors import told_to_visitor
from ..inputs import MAX_SECONDS, Portraits, Seen, checked_portraits, chosen_faces, existing, open_limited
from ..jobs import Countdown, Job, JobStopped, progress_bar
from ..people import Kept
from ..shipped import PAIRS, clip_of, portrait_path
from ..studio import BUNDLED, Studio
from .groups import ALL, CLICKED, check_group, group_of, how_many, is_group, named_faces


if TYPE_CHECKING:
    from ...pipelines.pipeline_fsth import FsthPipeline
    from ...pipelines.pipeline_output import FsthReport


PREVIEW_SECONDS = 0.2  # between two preview pictures
CLIP_NAME, SIDE_BY_SIDE_NAME, DETAILS_NAME = "talking_head.mp4", "side_by_side.mp4", "details.md"
PORTRAITS, FINE_TUNED = "portraits", "fine-tuned"  # who is animated
SIZES = (256, DEFAULT_SIZE, 1024)  # of frames, pixels
SCHEME = "motion:"
SHORT = 5  # seconds, how much of a long clip is offered


class Shown(NamedTuple):
    """What the page shows while it works, and at the end.

    Args:
        result, beside: The clip, and side by side with what it was made of; at the end.
        preview: The last frame, H x W x 3 uint8; until then.
        progress: A bar as HTML.
        details: Settings and figures.
        motion: The file of the motion that drove.
        notes: What the visitor should know.
    """

    result: str | None = None
    beside: str | None = None
    preview: np.ndarray | None = None
    progress: str = ""
    details: str = ""
    motion: str | None = None
    notes: str = ""


@dataclass(frozen=True)
class Settings:
    """What the visitor chose under Options, in the order of the page's fields; and who moves, and who drives them."""

    motion: str = "relative"
    max_frames: float | None = None
    model: str | None = None
    motion_strength: float = 1.0
    smoothing: float = DEFAULT_SMOOTHING
    paste_back: bool = False
    watermark: bool = True
    size: int = DEFAULT_SIZE
    regions: tuple[str, ...] = REGIONS
    faces: str = CLICKED
    driving_faces: str = ALL

    @property
    def is_group(self) -> bool:
        """Whether several faces of one picture move."""
        return is_group(self.faces)

    def pipeline_arguments(self) -> dict:
        names = ["motion", "smoothing", "watermark"] + ["paste_back"] * (not self.is_group)
        # the pipeline has none of these for absolute motion
        names += ["motion_strength", "regions"] * (self.motion == "relative")
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
        regions: list[str] = REGIONS,
        movement: str | None = None,
        motion_file: str | None = None,
        faces: str = CLICKED,
        driving_faces: str = ALL,
        request: gr.Request = None,
    ) -> Iterator[Shown]:
        """Generate the clip: what is shown meanwhile, and at last the clip."""
        model = model or self.studio.model_names[0]
        settings = (motion, max_frames, model, motion_strength, smoothing, paste_back, watermark, size, tuple(regions))
        settings = Settings(*settings, faces, driving_faces)
        with told_to_visitor(), tempfile.TemporaryDirectory(prefix="fsth-") as folder:
            own = self.studio.people.get(request) if person == FINE_TUNED else None
            paths = [] if own and not settings.is_group else checked_portraits(portraits)
            driver = driver_of(driving, movement, motion_file)
            chosen = chosen_faces(paths, portraits_seen), chosen_faces([driver], driving_seen)[0]
            if settings.is_group:
                check_group(paths)
            else:
                chosen = named_faces(faces, driving_faces, *chosen)
            kept = None if own else self.kept(paths, driver, chosen, settings)
            if kept and is_whole(kept):
                yield finished(kept)
                return
            people = how_many(settings.faces, portraits_seen)
            expected = expected_seconds(self.studio, driver, settings.max_frames, people)[1]
            yield Shown(progress=progress_bar("Getting ready"))
            work = partial(self._generate, paths, driver, chosen, settings, own, Path(folder))
            try:
                report, said = yield from self.studio.worker.stream(
                    request and request.session_hash, work, expected, lambda bar: Shown(progress=bar)
                )
            except JobStopped:
                yield Shown(notes="Cancelled.")
                return
            if not settings.is_group:  # a frame of several people takes several times as long
                self.studio.pace.learn(report)
            Path(folder, DETAILS_NAME).write_text(describe(settings, report, own))
            if kept:
                try:
                    shutil.copytree(folder, kept, ignore=shutil.ignore_patterns(DETAILS_NAME), dirs_exist_ok=True)
                    shutil.copyfile(Path(folder, DETAILS_NAME), kept / DETAILS_NAME)  # last: it says that all is there
                except OSError:  # the disk is full: the next visitor's is drawn again
                    shutil.rmtree(kept, ignore_errors=True)
            yield finished(Path(folder))._replace(notes=said)

    def kept(self, portraits: list[str], driver: str, faces: tuple[list[int], int], settings: Settings) -> Path | None:
        """Where the result of an example is kept; None for everybody's own files."""
        # not for every choice of options, nor of several portraits: there are as many as would fill the disk
        if len(portraits) != 1 or not settings.are_defaults:
            return None
        return self.studio.kept_result([*portraits, file_of(driver)], {**asdict(settings), "faces": faces})

    def take_shipped(self) -> None:
        """Keep the results that came with the package, as if a visitor had asked for them."""
        for portrait, motion in PAIRS:
            settings, path = Settings(model=BUNDLED), clip_of(portrait, motion)
            kept = self.kept([str(portrait_path(portrait))], SCHEME + motion, ([0], 0), settings)
            if path.is_file() and not is_whole(kept):
                kept.mkdir()
                shutil.copyfile(path, kept / CLIP_NAME)
                shutil.copy(file_of(SCHEME + motion), kept)
                clip = open_clip(path)
                (kept / DETAILS_NAME).write_text(
                    f"{clip.frame_count} frames at {clip.fps:.4g} per second, {clip.width} x {clip.height} pixels, "
                    "generated beforehand by the bundled model."
                )

    def _generate(
        self,
        portraits: list[str],
        driver: str,
        faces: tuple[list[int], int],
        settings: Settings,
        own: Kept | None,
        folder: Path,
        job: Job,
    ) -> tuple["FsthReport", str]:
        """The work itself, on the worker's thread: writes the clips and the motion, returns report and warnings."""
        pipe = self.studio.pipeline(own.model if own else settings.model)
        count = int(settings.max_frames) if settings.max_frames else None
        drawing, shown, preview = None, 0.0, None

        def show(pipe: "FsthPipeline", index: int, count: int, frame: np.ndarray) -> None:
            nonlocal drawing, shown, preview
            drawing = drawing or Countdown("Drawing", count)
            last = index + 1 == count
            job.expect(drawing.left(index + 1) or job.left)
            if last or time.monotonic() - shown > PREVIEW_SECONDS:
                shown, preview = time.monotonic(), frame
                job.report(Shown(preview=frame, progress=drawing(index + 1)))

        def drawn_frames(output):
            laying_out = Countdown("Putting side by side", output.report.num_frames)
            result = open_clip(folder / CLIP_NAME, fps=output.fps, allow_still=True)
            for index, frame in enumerate(result, start=1):
                if index % 10 == 1:  # once more: `gr.skip` makes a component anew, which Gradio keeps with the session
                    job.report(Shown(preview=preview, progress=laying_out(index)))
                yield frame

        clip, source, limit = driving_pictures(driver, count, job)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", FsthWarning)
            options = {"num_frames": limit, "output_path": folder / CLIP_NAME, "callback_on_frame_end": show}
            options |= settings.pipeline_arguments()
            if settings.is_group:
                drivers = ALL if is_made(driver) else settings.driving_faces
                chosen = group_of(pipe, portraits[0], settings.faces, drivers, *faces, own and own.identity)
                output = pipe.animate_group(portraits[0], source, **chosen, **options)
            else:
                chosen = {"face_index": 0 if own else faces[0], "driving_face_index": faces[1]}
                output = pipe(own.identity if own else portraits, source, **chosen, **options)
        said = [str(warning.message) for warning in caught if warning.category is FsthWarning]
        beside, frames = folder / SIDE_BY_SIDE_NAME, drawn_frames(output)
        whole = settings.paste_back or settings.is_group or not portraits
        portrait = portraits[0] if portraits else own.identity.crops[0]
        write_side_by_side(beside, portrait, clip, output, frames, pipe.size, whole=whole)
        if is_made(driver):
            shutil.copy(file_of(driver), folder)
        else:
            output.driving.save(folder / f"{Path(driver).stem}{SUFFIX}", name=Path(driver).stem[:100])
        return output.report, " ".join(said)


def is_made(driver: str) -> bool:
    """Whether it is a motion, and no clip."""
    return driver.startswith(SCHEME) or driver.lower().endswith((".safetensors", ".json", ".csv", ".tsv"))


def driver_of(driving: str | None, movement: str | None, motion_file: str | None) -> str:
    """What drives: a file, or the name of a motion that comes with the package."""
    given = [source for source in (driving, movement and SCHEME + movement, motion_file) if source]
    if not given:
        raise FsthError("Add a driving clip first, or click one of the motions below it.")
    if len(given) > 1:
        raise FsthError("Give one thing that drives: a clip, a motion, or the file of one.")
    return given[0] if given[0].startswith(SCHEME) else existing(given[0])


def driving_length(driver: str) -> tuple[int, float, bool]:
    """How many frames it has (0 where its file does not say), how many per second, and whether it is a clip."""
    if is_made(driver):
        motion = DrivingMotion.load(driver)
        return min(len(motion.landmarks), round(MAX_SECONDS * motion.fps)), motion.fps, False
    clip = open_limited(driver)
    count = clip.frame_count or (round(clip.duration * clip.fps) if clip.duration else 0)
    return min(count, round(MAX_SECONDS * clip.fps)), clip.fps, True


def expected_seconds(
    studio: Studio, driver: str, max_frames: float | None, people: int = 1
) -> tuple[int, float | None, bool]:
    """How many frames it drives (0 where nobody knows), how long so many people's will take, s (None where nothing was
    measured yet), and whether they are more than `SHORT` seconds."""
    length, rate, followed = driving_length(driver)
    frames = min(length, int(max_frames)) if max_frames else length
    return frames, studio.pace.estimate(people * frames, followed) if frames else None, frames > SHORT * rate


def driving_pictures(driver: str, count: int | None, job: Job) -> tuple[object, object, int | None]:
    """The driver's pictures (black for a motion, which has none), what the pipeline is given, and of how many frames.

    Args:
        driver: As `driver_of` gives it.
        count: No more frames than that.
        job: Is told how far the clip has been read.
    """
    if is_made(driver):
        motion = DrivingMotion.load(driver)
        limit = min(count or len(motion.landmarks), round(MAX_SECONDS * motion.fps), len(motion.landmarks))
        return [np.zeros((motion.size, motion.size, 3), np.uint8)] * limit, driver, limit
    clip = open_limited(driver, count)
    following = Countdown("Following the driver's face", clip.frame_count)

    def read():
        for index, picture in enumerate(clip.read(), start=1):
            if index % 10 == 1:
                job.report(Shown(progress=following(index)))
            yield picture

    return clip, replace(clip, read=read), None


def is_whole(folder: Path) -> bool:
    return (folder / DETAILS_NAME).is_file()


def finished(folder: Path) -> Shown:
    """A result, whole in its folder."""
    beside, motion = folder / SIDE_BY_SIDE_NAME, next(folder.glob("*.motion.*"), None)
    return Shown(
        result=str(folder / CLIP_NAME),
        beside=str(beside) if beside.is_file() else None,
        details=(folder / DETAILS_NAME).read_text(),
        motion=motion and str(motion),
    )


def describe(settings: Settings, report: "FsthReport", own: Kept | None = None) -> str:
    """Settings and figures of a clip, shown beside it: the same inputs and settings give the same clip."""
    seconds, missing = sum(report.seconds.values()), len(report.frames_without_face)
    parts = [f"{report.num_frames} frames at {report.fps:.4g} per second, generated in {seconds:.0f} s"]
    head = f"{len(report.portrait_boxes)} people, the largest head " if settings.is_group else ""
    size = f"{head or 'the head ' * settings.paste_back}{report.size} x {report.size} pixels"
    # it may be smaller for other reasons: the model's only size, or a photograph that was reduced
    parts += [f"{size} (the portrait has no more)" if report.size == report.max_size < settings.size else size]
    parts += ["fine-tuned person"] if own else []
    parts += [f"{settings.motion} motion"]
    if settings.motion == "relative":
        parts[-1] += f" of strength {settings.motion_strength:g}"
        parts[-1] += f" of {', '.join(settings.regions)} alone" if settings.regions != REGIONS else ""
    pasted = settings.paste_back or settings.is_group
    parts += [f"smoothing {settings.smoothing:g} s"] + ["pasted back into the photograph"] * pasted
    parts += [f"model {own.model if own and own.model else settings.model}"]
    parts += ["with" if settings.watermark else "without"]
    parts[-1] += " a visible mark, " + ("signed" if report.credentials else "not signed")
    held = f" In {missing} frames the driver's face was not found; the last pose is held there." if missing else ""
    return ", ".join(parts) + f". The same inputs and settings give the same pictures.{held}"
