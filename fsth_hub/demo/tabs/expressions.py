"""What the Expression tab does: a portrait with another expression, and motions made of some of them."""

import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from inspect import Parameter, signature
from pathlib import Path

import gradio as gr
import numpy as np

from ...landmarks.expression import CONTROLS, Expression
from ...landmarks.keyframes import Keyframe
from ...media.motion_files import SUFFIX
from ...models.errors import FsthError
from ...pipelines.driving import DrivingMotion
from ...provenance.watermark import add_watermark
from ..errors import told_to_visitor
from ..inputs import Portraits, Seen, checked_portraits, chosen_faces
from ..studio import Studio
from .animator import Animator, Shown


MAX_PEOPLE = 16  # whose portraits are ready: up to 60 MB each
MAX_KEYFRAMES = 24
PRESETS = {
    "Neutral": Expression(),
    "Smile": Expression(smile=0.8, mouth=0.15, brow_right=0.2, brow_left=0.2),
    "Surprised": Expression(brow_right=0.9, brow_left=0.9, eye_right=0.8, eye_left=0.8, mouth=0.6, pucker=0.2),
    "Wink": Expression(eye_left=-1, brow_left=-0.3, smile=0.5, roll=4),
    "Sceptical": Expression(brow_right=0.9, brow_left=-0.6, frown=0.3, eye_left=-0.3, gaze_x=0.3, smile=-0.2, yaw=6),
    "Asleep": Expression(eye_right=-1, eye_left=-1, pitch=12, roll=8, mouth=0.1),
}
# What goes together while "both" is ticked: the person's left follows the right.
PAIRED = {"eye_right": "eye_left", "brow_right": "brow_left"}

Strip = list[dict[str, float]]  # expressions, as `Expression.to_dict` gives them


class Expressions:
    """The tab's handlers.

    Whose portraits are ready to be drawn is kept here and not in a `gr.State`: Gradio keeps a state for an hour after
    the page was closed.
    """

    def __init__(self, studio: Studio):
        self.studio, self.animator = studio, Animator(studio)
        self._people: dict[str | None, tuple[tuple, object]] = {}  # by session, the oldest first
        self._lock = threading.Lock()

    def forget(self, request: gr.Request) -> None:
        """The visitor has closed the page."""
        with self._lock:
            self._people.pop(request.session_hash, None)

    def preview(
        self, request: gr.Request | None, portraits: Portraits, seen: list[Seen], together: bool, *values
    ) -> tuple[np.ndarray, float, float]:
        """The first portrait with the expression, H x W x 3 uint8, and the left eye and brow that go with it."""
        with told_to_visitor():
            paths = checked_portraits(portraits)
            values = dict(zip(CONTROLS, values, strict=True))
            if together:
                values |= {left: values[right] for right, left in PAIRED.items()}
            work = self._draw, request and request.session_hash, paths, chosen_faces(paths, seen), Expression(**values)
            return self.studio.worker.submit(*work).result(), *(values[left] for left in PAIRED.values())

    def _draw(self, session: str | None, paths: list[str], faces: list[int], expression: Expression) -> np.ndarray:
        """On the worker's thread."""
        pipe, key = self.studio.pipeline(), (*paths, *faces)
        with self._lock:
            known, person = self._people.get(session, (None, None))
        if known != key:
            person = pipe.embed(paths, faces)
            with self._lock:
                self._people.pop(session, None)
                self._people[session] = key, person
                if len(self._people) > MAX_PEOPLE:
                    del self._people[next(iter(self._people))]
        (frame,) = pipe.drive(person, DrivingMotion.from_expressions([expression]))
        return add_watermark(frame)

    def save(self, portraits: Portraits, seen: list[Seen], *values) -> Iterator[str]:
        """The first portrait as a whole picture, with the expression: a marked and signed PNG."""
        with told_to_visitor(), tempfile.TemporaryDirectory(prefix="fsth-") as folder:
            paths, expression = checked_portraits(portraits), Expression(**dict(zip(CONTROLS, values, strict=True)))
            path, faces = Path(folder, "expression.png"), chosen_faces(paths, seen)

            def work() -> None:
                self.studio.pipeline().express(paths, expression, face_index=faces, paste_back=True, output_path=path)

            self.studio.worker.submit(work).result()
            yield str(path)

    def add(self, strip: Strip, pictures: list | None, picture: np.ndarray | None, *values) -> tuple[Strip, list]:
        """The strip with one expression more, and its picture."""
        with told_to_visitor():
            if picture is None:
                raise FsthError("Add a portrait first, and choose an expression.")
            if len(strip) >= MAX_KEYFRAMES:
                raise FsthError(f"The strip is full: it takes {MAX_KEYFRAMES} expressions.")
            expression = Expression(**dict(zip(CONTROLS, values, strict=True)))
            return [*strip, expression.to_dict()], [*(pictures or []), (picture, f"{len(strip) + 1}")]

    def save_motion(self, strip: Strip, step: float, loop: bool) -> Iterator[str | None]:
        """The strip as a motion's file, once it is one."""
        with told_to_visitor(), tempfile.TemporaryDirectory(prefix="fsth-") as folder:
            yield str(write_motion(strip, step, loop, Path(folder))) if len(strip) > 1 else None

    def make_clip(
        self,
        portraits: Portraits,
        seen: list[Seen],
        strip: Strip,
        step: float,
        loop: bool,
        request: gr.Request = None,
    ) -> Iterator[tuple]:
        """The strip as a clip; gives (clip, progress)."""
        with told_to_visitor(), tempfile.TemporaryDirectory(prefix="fsth-") as folder:
            file = str(write_motion(strip, step, loop, Path(folder)))
            for shown in self.animator.animate(portraits, None, seen, [], motion_file=file, request=request):
                yield _clip_and_progress(shown)


def _clip_and_progress(shown: Shown) -> tuple[dict, str]:
    return gr.update(value=shown.result, visible=bool(shown.result)), shown.progress or shown.notes


def write_motion(strip: Strip, step: float, loop: bool, folder: Path) -> Path:
    """A motion from expression to expression, each `step` seconds after the last."""
    if len(strip) < 2:
        raise FsthError("Add at least two expressions to the strip first.")
    keyframes: list[Keyframe] = [(index * step, Expression.of(values)) for index, values in enumerate(strip)]
    path = folder / f"expressions{SUFFIX}"
    DrivingMotion.from_keyframes(keyframes, loop=loop).save(path, name="Expressions")
    return path


def by_name(handler, first: tuple[str, ...]):
    """The handler with a name for each control's value, which programs give it by: `client.predict(smile=0.6, ...)`.

    Args:
        handler: Takes arguments of the names `first`, and then the controls' values.
    """
    named, parameters = partial(handler), signature(handler).parameters
    controls = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=0.0) for name in CONTROLS]
    named.__signature__ = signature(handler).replace(parameters=[*map(parameters.get, first), *controls])
    return named
