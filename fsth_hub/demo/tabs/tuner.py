"""What the buttons of the Your person tab do: a person fine-tuned, loaded, tried and saved."""

import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import gradio as gr

from ...models.errors import FsthError, FsthWarning
from ..errors import told_to_visitor
from ..inputs import Portraits, Seen, checked_portraits, chosen_faces, note
from ..jobs import Countdown, Job, JobStopped, progress_bar
from ..people import Kept, download, session_of, unpack, write_file
from ..shipped import FIRST_MOTION
from ..studio import Studio
from .animator import FINE_TUNED, Animator


FILE_NAME = "person.zip"
NOTHING_GAINED = "No step was better than none, so the person looks as without fine-tuning: try other portraits."


class Tuner:
    """Makes, loads, tries and saves people, which are kept in the studio, each for their visitor."""

    def __init__(self, studio: Studio):
        self.studio, self.animator = studio, Animator(studio)

    def fine_tune(
        self,
        portraits: Portraits,
        portraits_seen: list[Seen],
        steps: float | None = None,
        method: str = "full",
        model: str | None = None,
        request: gr.Request = None,
    ) -> Iterator[tuple]:
        """Learn the person; gives (preview, progress, notes, details) meanwhile, the details at the end."""
        with told_to_visitor():
            paths = checked_portraits(portraits)
            for number, path in enumerate(paths, start=1):
                if any(sight.path == path and not sight.crops for sight in portraits_seen):
                    raise FsthError(
                        f"No face was found in portrait {number} ({Path(path).name}): remove it, or add one in which "
                        "the face is seen clearly."
                    )
            yield None, progress_bar("Getting ready"), note(""), ""
            faces = chosen_faces(paths, portraits_seen)
            work = partial(self._fine_tune, paths, faces, int(steps) if steps else None, method, model, request)
            try:
                notes, details = yield from self.studio.worker.stream(
                    session_of(request), work, waiting=lambda bar: (None, bar, note(""), "")
                )
            except JobStopped:
                yield None, "", note(""), "Cancelled."
                return
            yield gr.update(), "", note(notes), details

    def _fine_tune(
        self,
        portraits: list[str],
        faces: list[int],
        steps: int | None,
        method: str,
        model: str | None,
        request: gr.Request | None,
        job: Job,
    ) -> tuple[str, str]:
        """The work itself, on the worker's thread; returns notes and details."""
        from ...finetuning.loop import default_steps

        started, notes = time.monotonic(), []
        pipe = self.studio.pipeline(model)
        job.report((None, progress_bar("Loading what frames are compared by"), note(""), ""))
        content = self.studio.content()
        countdown = Countdown("Learning the face", steps or default_steps(len(portraits)), "step")
        job.report((None, progress_bar("Learning the face"), note(" ".join(notes)), ""))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", FsthWarning)

            def show(step: int, count: int, preview, losses: dict[str, float]) -> None:
                said = [str(warning.message) for warning in caught if warning.category is FsthWarning]
                picture = gr.update() if preview is None else preview
                job.expect(countdown.left(step))
                job.report((picture, countdown(step), note(" ".join([*notes, *said])), ""))

            options = {"method": method, "steps": steps, "content": content, "face_index": faces}
            identity = pipe.fine_tune(portraits, callback=show, **options)
        notes += [str(warning.message) for warning in caught if warning.category is FsthWarning]
        if identity.steps == 0:
            notes.append(NOTHING_GAINED)
        self.studio.people.keep(request, Kept(identity, model))
        return " ".join(notes), f"{describe(identity)} It took {time.monotonic() - started:.0f} s."

    def load_file(self, file: str | None, request: gr.Request = None) -> Iterator[tuple[str, str]]:
        """Load a person from a .zip; gives (progress, details)."""
        with told_to_visitor(), tempfile.TemporaryDirectory(prefix="fsth-") as temporary:
            if not file:
                raise FsthError("Choose the .zip of a person first.")
            folder = unpack(Path(file), Path(temporary, "person"))
            yield from self._load(folder, Path(file).name, request)

    def load_from_hub(
        self, repo_id: str, token: str | None = None, request: gr.Request = None
    ) -> Iterator[tuple[str, str]]:
        """Load a published person; gives (progress, details)."""
        with told_to_visitor(), tempfile.TemporaryDirectory(prefix="fsth-") as temporary:
            repo_id = (repo_id or "").strip()
            if not repo_id:
                raise FsthError("Give the person's name on the hub first, as in owner/name.")
            yield progress_bar(f"Fetching {repo_id}"), ""
            folder = download(repo_id, (token or "").strip(), Path(temporary, "cache"))
            yield from self._load(folder, repo_id, request)

    def _load(self, folder: Path, name: str, request: gr.Request | None) -> Iterator[tuple[str, str]]:
        def work(job: Job) -> str:
            from ...pipelines.identity import FsthIdentity

            job.report((progress_bar(f"Loading {name}"), ""))
            try:
                identity = replace(FsthIdentity.from_pretrained(folder), name=name)
            except FsthError as error:
                raise FsthError(str(error).replace(str(folder), name)) from error
            model = identity.base_model if identity.base_model in self.studio.model_names else None
            self.studio.people.keep(request, Kept(self.studio.pipeline(model).bind(identity), model))
            return f"Loaded {name}. {describe(identity)}"

        try:
            details = yield from self.studio.worker.stream(session_of(request), work, waiting=lambda bar: (bar, ""))
        except JobStopped:
            yield "", "Cancelled."
            return
        yield "", details

    def try_out(
        self,
        driving: str | None,
        driving_seen: list[Seen],
        movement: str | None = None,
        motion_file: str | None = None,
        request: gr.Request = None,
    ) -> Iterator[tuple]:
        """Drive the person as on the Animate tab, or by a motion; gives (clip, preview, progress, details)."""
        if not (driving or movement or motion_file):
            movement = FIRST_MOTION
        options = {"person": FINE_TUNED, "movement": movement, "motion_file": motion_file, "request": request}
        for shown in self.animator.animate(None, driving, [], driving_seen, **options):
            yield shown.result, shown.preview, shown.progress, f"{shown.notes} {shown.details}".strip()

    def save(self, request: gr.Request = None) -> Iterator[str]:
        """The person's file."""
        with told_to_visitor(), tempfile.TemporaryDirectory(prefix="fsth-") as temporary:
            identity, path = self.studio.people.get(request).identity, Path(temporary, FILE_NAME)
            write_file(identity, path)
            yield str(path)

    def load_as_logged_in(
        self, repo_id: str, request: gr.Request = None, login: gr.OAuthToken | None = None
    ) -> Iterator[tuple[str, str]]:
        yield from self.load_from_hub(repo_id, login and login.token, request)

    def leave(self, request: gr.Request) -> None:
        """The visitor has closed the page."""
        self.studio.stop(request)
        self.studio.people.forget(request)


def describe(identity) -> str:
    """What was made of how much, in a line."""
    portraits = "1 portrait" if identity.num_portraits == 1 else f"{identity.num_portraits} portraits"
    weights = {"full": "all weights", "lora": "low-rank updates"}[identity.method]
    return f"Fine-tuned on {portraits}, {weights}, step {identity.steps} kept."
