"""The Your person tab: the portraits' person fine-tuned, tried, kept as a file or published; or loaded again."""

import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import gradio as gr

from ...finetuning.loop import METHODS, PixelLoss, default_steps
from ...models.errors import FsthError, FsthWarning
from ...pipelines.identity import FsthIdentity
from ..errors import told_to_visitor
from ..inputs import Portraits, Seen, checked_portraits, chosen_faces, note
from ..jobs import Countdown, Job, JobStopped, progress_bar
from ..people import Kept, download, session_of, unpack, write_file
from ..studio import DRIVER, HEAVY, Studio
from . import Page
from .animate_tab import FINE_TUNED, PORTRAITS, Animator
from .publish_form import Publisher, on_space, publish_form, token_field


MAX_STEPS = 500
FILE_NAME = "person.zip"
SIMPLER_LOSS = (
    "The network that compares details (VGG19) cannot be fetched from the hub: pixels are compared instead, which "
    "keeps less detail."
)
NOTHING_GAINED = "No step was better than none, so the person is drawn as without fine-tuning: try other portraits."


class Tuner:
    """The tab's handlers; the people are kept in the studio, each for their visitor."""

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
                notes, details = yield from self.studio.worker.stream(session_of(request), work)
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
        started, notes = time.monotonic(), []
        pipe = self.studio.pipeline(model)
        job.report((None, progress_bar("Loading what frames are compared by"), note(""), ""))
        content = self.studio.content()
        if isinstance(content, PixelLoss):
            notes.append(SIMPLER_LOSS)
        countdown = Countdown("Learning the face", steps or default_steps(len(portraits)), "step")
        job.report((None, progress_bar("Learning the face"), note(" ".join(notes)), ""))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", FsthWarning)

            def show(step: int, count: int, preview, losses: dict[str, float]) -> None:
                said = [str(warning.message) for warning in caught if warning.category is FsthWarning]
                picture = gr.update() if preview is None else preview
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
            job.report((progress_bar(f"Loading {name}"), ""))
            try:
                identity = replace(FsthIdentity.from_pretrained(folder), name=name)
            except FsthError as error:
                raise FsthError(str(error).replace(str(folder), name)) from error
            model = identity.base_model if identity.base_model in self.studio.model_names else None
            self.studio.people.keep(request, Kept(self.studio.pipeline(model).bind(identity), model))
            return f"Loaded {name}. {describe(identity)}"

        yield progress_bar("Waiting for its turn"), ""
        try:
            details = yield from self.studio.worker.stream(session_of(request), work)
        except JobStopped:
            yield "", "Cancelled."
            return
        yield "", details

    def try_out(self, driving: str | None, driving_seen: list[Seen], request: gr.Request = None) -> Iterator[tuple]:
        """Drive the person with the Animate tab's clip, or the example's where there is none."""
        driving, seen = (driving, driving_seen) if driving else (str(DRIVER), [])
        animation = self.animator.animate(None, driving, [], seen, person=FINE_TUNED, request=request)
        for result, _, *others in animation:  # without side by side
            yield result, *others

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

    def stage(self, name: str, request: gr.Request = None) -> tuple[dict, ...]:
        """Updates of `stage_parts` for a stage of the work: idle, running, tuned, loaded or tried."""
        running, exists = name == "running", self.studio.people.find(request) is not None
        return (
            *[gr.update(interactive=not running)] * 3,
            gr.update(visible=running),
            gr.update(visible=not running and not exists),
            gr.update(visible=running, value=None) if name != "tuned" else gr.update(visible=True),
            gr.update(visible=exists),
            gr.update(visible=name == "tried"),
            gr.update(visible=exists, value=FINE_TUNED)
            if name in ("tuned", "loaded")
            else gr.update(visible=exists, **({} if exists else {"value": PORTRAITS})),
        )


def describe(identity) -> str:
    """What was made of how much, in a line."""
    portraits = "1 portrait" if identity.num_portraits == 1 else f"{identity.num_portraits} portraits"
    weights = {"full": "all weights", "lora": "low-rank updates"}[identity.method]
    return f"Fine-tuned on {portraits}, {weights}, step {identity.steps} kept."


def person_tab(page: Page) -> None:
    """Build the tab and wire it."""
    studio, portraits, animation = page.studio, page.portraits, page.animation
    tuner, publisher = Tuner(studio), Publisher(studio)
    with gr.Row():
        with gr.Column(min_width=300, elem_id="person-settings"):
            gr.Markdown(
                "From the portraits the model learns this one person: minutes on a processor. Several portraits of "
                "different poses help most. The person is yours alone, for an hour or until you close the page; "
                "save the file to keep it."
            )
            options = _options(studio)
            with gr.Row():
                tune = gr.Button("2. Fine-tune", variant="primary", scale=2, min_width=120, elem_id="fine-tune")
                cancel = gr.Button("Cancel", visible=False, scale=1, min_width=100, elem_id="person-cancel")
            with gr.Accordion("Or load a person", open=False, elem_id="load-person"):
                file = gr.File(label="File (.zip)", file_types=[".zip"], height=120, elem_id="person-file")
                load_file = gr.Button("Load the file", elem_id="load-file")
                repo_id = gr.Textbox(label="Name on the hub", placeholder="owner/name", elem_id="person-id")
                hub_token = token_field("Only for a private one. It is not kept.", "load-token")
                load_hub = gr.Button("Load from the hub", elem_id="load-hub")
        with gr.Column(min_width=300, elem_id="person-column"):
            placeholder = gr.Markdown("What the model learns will appear here.", elem_id="person-placeholder")
            preview = gr.Image(
                label="As learned so far", format="jpeg", height=360, buttons=[], interactive=False, visible=False,
                alt_text="The face as the model draws it", elem_id="person-preview",
            )  # fmt: skip
            result = gr.Video(
                label="Your person", interactive=False, autoplay=True, visible=False, height=420,
                elem_id="person-result",
            )  # fmt: skip
            progress = gr.HTML(elem_id="person-progress", elem_classes="job-progress")
            notes = gr.Markdown(visible=False, elem_id="person-notes", elem_classes="notes")
            details = gr.Markdown(elem_id="person-details")
            with gr.Column(visible=False, elem_id="person-kept") as kept:
                with gr.Row():
                    try_out = gr.Button("3. Try it", min_width=120, elem_id="try-person")
                    save = gr.DownloadButton("Save as a file", min_width=120, elem_id="save-person")
                form = publish_form(publisher)

    private = {"api_visibility": "private", "show_progress": "hidden"}

    def stage(name: str):
        def update(request: gr.Request):  # Gradio gives a partial no request
            return tuner.stage(name, request)

        return update

    stages = [tune, try_out, load_hub, cancel, placeholder, preview, kept, result, animation.person]
    shown = [preview, progress, notes, details]
    # what each button does: its work, the name for programs, inputs, outputs, the stage that it ends with
    works = {
        tune: (tuner.fine_tune, "fine_tune", [portraits.gallery, portraits.seen, *options], shown, "tuned", HEAVY),
        try_out: (
            tuner.try_out,
            "try_person",
            [animation.driving, animation.driving_seen],
            [result, preview, progress, details],
            "tried",
            HEAVY,
        ),
        load_file: (tuner.load_file, "load_person_file", [file], [progress, details], "loaded", {}),
        load_hub: (
            tuner.load_as_logged_in if on_space() else tuner.load_from_hub,
            "load_person",
            [repo_id] if on_space() else [repo_id, hub_token],
            [progress, details],
            "loaded",
            {},
        ),
    }
    events = []
    for button, (work, api_name, inputs, outputs, end, place) in works.items():
        started = button.click(stage("running"), None, stages, **private)
        event = started.then(
            work, inputs, outputs, api_name=api_name, show_progress="minimal", show_progress_on=progress, **place
        )
        done = event.success(stage(end), None, stages, **private)
        event.failure(stage("idle"), None, stages, **private).then(lambda: "", None, progress, **private)
        if end in ("tuned", "loaded"):
            done.success(lambda: (False, ""), None, [form.consent, form.said], **private)  # that was another's
            visibility = "public" if end == "tuned" else "private"  # the same for all, and for programs once
            saved = done.success(
                tuner.save, None, save, api_name="save_person", api_visibility=visibility, show_progress="hidden"
            )
            saved.success(publisher.card, form.name, form.card, **private)
        events.append(event)
    events[-1].then(lambda: "", None, hub_token, **private)  # the page forgets it when it was used
    cancelled = cancel.click(studio.stop, cancels=events, queue=False, api_name="cancel_person")
    cancelled.then(stage("idle"), None, stages, **private).then(
        lambda: ("", "Cancelled."), None, [progress, details], **private
    )
    page.blocks.unload(tuner.leave)


def _options(studio: Studio) -> list[gr.components.Component]:
    """Steps, method and model, closed at first."""
    with gr.Accordion("Options", open=False, elem_id="person-options"):
        return [
            gr.Number(
                label="Steps",
                info="Empty for as many as suit the number of portraits: 50 for one to 230 for thirty.",
                value=None,
                precision=0,
                minimum=1,
                maximum=MAX_STEPS,
                elem_id="steps",
            ),
            gr.Radio(
                [("All weights", "full"), ("Low-rank updates (LoRA): a small file", "lora")],
                value=METHODS[0],
                label="What is learned",
                elem_id="method",
            ),
            gr.Dropdown(
                studio.model_names,
                value=studio.model_names[0],
                label="Model",
                visible=len(studio.model_names) > 1,
                elem_id="person-model",
            ),
        ]
