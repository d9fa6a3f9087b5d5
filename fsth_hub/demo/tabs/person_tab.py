"""The Your person tab: the portraits' person fine-tuned, tried, kept as a file or published; or loaded again."""

from collections.abc import Callable
from dataclasses import dataclass, field

import gradio as gr

from ...finetuning.names import METHODS
from ..studio import IN_LINE, Studio
from . import AnimatePanel, Page
from .animator import FINE_TUNED, PORTRAITS
from .publish_form import Publisher, PublishForm, on_space, publish_form, token_field
from .tuner import Tuner


MAX_STEPS = 500
HIDDEN = {"api_visibility": "private", "show_progress": "hidden"}


@dataclass(frozen=True, eq=False)
class Settings:
    """The tab's left side: what is to be learned, or loaded."""

    options: list[gr.components.Component]  # steps, method, model
    tune: gr.Button
    cancel: gr.Button
    file: gr.File
    load_file: gr.Button
    repo_id: gr.Textbox
    hub_token: gr.Textbox
    load_hub: gr.Button


@dataclass(frozen=True, eq=False)
class Results:
    """The tab's right side: how it goes, and what to do with the person."""

    placeholder: gr.Markdown
    preview: gr.Image
    result: gr.Video
    progress: gr.HTML
    notes: gr.Markdown
    details: gr.Markdown
    kept: gr.Column  # the rest, once there is a person
    try_out: gr.Button
    save: gr.DownloadButton
    form: PublishForm


@dataclass(frozen=True, eq=False)
class Task:
    """What a button starts.

    Args:
        button: Which.
        work: A handler of the tuner's.
        api_name: Its name for programs.
        inputs, outputs: Of the handler.
        stage: The tab's when the work has been done, see `stage_updates`.
        options: Further ones of the event.
    """

    button: gr.Button
    work: Callable
    api_name: str
    inputs: list[gr.components.Component]
    outputs: list[gr.components.Component]
    stage: str
    options: dict = field(default_factory=dict)


def person_tab(page: Page) -> None:
    """Build the tab and wire it."""
    tuner, publisher = Tuner(page.studio), Publisher(page.studio)
    with gr.Row():
        with gr.Column(min_width=300, elem_id="person-settings"):
            settings = _settings(page.studio)
        with gr.Column(min_width=300, elem_id="person-column"):
            results = _results(publisher)

    shown = [results.preview, results.progress, results.notes, results.details]
    said = [results.progress, results.details]
    portraits, animation, tried = page.portraits, page.animation, [results.result, results.preview, *said]
    fine_tuning = [portraits.gallery, portraits.seen, *settings.options]
    driving = [animation.driving, animation.driving_seen, animation.movement, animation.motion_file]
    load, account = (tuner.load_as_logged_in, []) if on_space() else (tuner.load_from_hub, [settings.hub_token])
    tasks = (
        Task(settings.tune, tuner.fine_tune, "fine_tune", fine_tuning, shown, "tuned", IN_LINE),
        Task(results.try_out, tuner.try_out, "try_person", driving, tried, "tried", IN_LINE),
        Task(settings.load_file, tuner.load_file, "load_person_file", [settings.file], said, "loaded", IN_LINE),
        Task(settings.load_hub, load, "load_person", [settings.repo_id, *account], said, "loaded", IN_LINE),
    )
    show = StageSwitch(page.studio, settings, results, animation)
    events = {}
    for task in tasks:
        events[task.button], done = _wire(task, show, results.progress)
        if task.stage in ("tuned", "loaded"):
            _renew(results, done, tuner, publisher, public=task.button is settings.tune)
    events[settings.load_hub].then(lambda: "", None, settings.hub_token, **HIDDEN)  # the page forgets it once used
    cancelled = settings.cancel.click(
        page.studio.stop, cancels=list(events.values()), queue=False, api_name="cancel_person"
    )
    show("idle", cancelled.then).then(lambda: ("", "Cancelled."), None, said, **HIDDEN)
    page.blocks.unload(tuner.leave)


def _settings(studio: Studio) -> Settings:
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
    return Settings(options, tune, cancel, file, load_file, repo_id, hub_token, load_hub)


def _results(publisher: Publisher) -> Results:
    placeholder = gr.Markdown("What the model learns will appear here.", elem_id="person-placeholder")
    preview = gr.Image(
        label="As learned so far", format="jpeg", height=360, buttons=[], interactive=False, visible=False,
        alt_text="The face as the model generates it", elem_id="person-preview",
    )  # fmt: skip
    result = gr.Video(
        label="Your person", interactive=False, autoplay=True, visible=False, height=420, elem_id="person-result"
    )
    progress = gr.HTML(elem_id="person-progress", elem_classes="job-progress")
    notes = gr.Markdown(visible=False, elem_id="person-notes", elem_classes="notes")
    details = gr.Markdown(elem_id="person-details")
    with gr.Column(visible=False, elem_id="person-kept") as kept:
        with gr.Row():
            try_out = gr.Button("3. Try it", min_width=120, elem_id="try-person")
            save = gr.DownloadButton("Save as a file", min_width=120, elem_id="save-person")
        form = publish_form(publisher)
    return Results(placeholder, preview, result, progress, notes, details, kept, try_out, save, form)


@dataclass(frozen=True, eq=False)
class StageSwitch:
    """Shows, after an event, what belongs to a stage of the work: idle, running, tuned, loaded or tried."""

    studio: Studio
    settings: Settings
    results: Results
    animation: AnimatePanel

    def __call__(self, name: str, after: Callable) -> gr.events.Dependency:
        """Switch after what `after` listens to, such as `event.success`."""

        def update(request: gr.Request):
            return self.updates(name, self.studio.people.find(request) is not None)

        return after(update, None, list(self.updates("idle", False)), **HIDDEN)

    def updates(self, name: str, exists: bool) -> dict:
        """By component, `exists` being whether the visitor has a person."""
        settings, results, running = self.settings, self.results, name == "running"
        person = {"visible": exists}
        if name in ("tuned", "loaded"):
            person["value"] = FINE_TUNED
        elif not exists:
            person["value"] = PORTRAITS
        return {
            **{b: gr.update(interactive=not running) for b in (settings.tune, results.try_out, settings.load_hub)},
            settings.cancel: gr.update(visible=running),
            results.placeholder: gr.update(visible=not running and not exists),
            results.preview: gr.update(visible=True) if name == "tuned" else gr.update(visible=running, value=None),
            results.kept: gr.update(visible=exists),
            results.result: gr.update(visible=name == "tried"),
            self.animation.person: gr.update(**person),
        }


def _wire(task: Task, show: StageSwitch, progress: gr.HTML) -> tuple:
    """Have the button do its task; returns the event of the work and that after which the tab shows its end."""
    event = show("running", task.button.click).then(
        task.work,
        task.inputs,
        task.outputs,
        api_name=task.api_name,
        show_progress="minimal",
        show_progress_on=progress,
        **task.options,
    )
    done = show(task.stage, event.success)
    show("idle", event.failure).then(lambda: "", None, progress, **HIDDEN)
    return event, done


def _renew(results: Results, done, tuner: Tuner, publisher: Publisher, public: bool) -> None:
    """Once there is another person: consent and what was said were the last one's, file and card are new."""
    form = results.form
    done.success(lambda: (False, ""), None, [form.consent, form.said], **HIDDEN)
    visibility = "public" if public else "private"  # the same for all, and for programs once
    saved = done.success(
        tuner.save, None, results.save, api_name="save_person", api_visibility=visibility, show_progress="hidden"
    )
    saved.success(publisher.card, form.name, form.card, **HIDDEN)


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
