"""The Animate tab: what drives, the options, the button, and the result beside them or, on a phone, below."""

from concurrent.futures import wait
from dataclasses import dataclass
from functools import partial

import gradio as gr

from ...media.motion_files import SHIPPED, list_motions
from ...models.errors import FsthError
from ..errors import told_to_visitor
from ..inputs import (
    MAX_SECONDS,
    Portraits,
    Seen,
    choose_face,
    faces_gallery,
    look_at_first_frame,
    note,
    open_limited,
    show_faces,
)
from ..opening import opening
from ..portrait_panel import PortraitPanel
from ..shipped import FIRST_MOTION, FIRST_PORTRAIT, PORTRAITS, THUMBNAILS
from ..studio import IN_LINE, Studio
from . import AnimatePanel, Page
from .animate_options import options_panel
from .animator import (
    FINE_TUNED,
    SCHEME,
    SHORT,
    Animator,
    Settings,
    driver_of,
    driving_length,
    expected_seconds,
    finished,
    is_whole,
)
from .animator import PORTRAITS as AS_THEY_ARE
from .groups import group_choice, how_many


PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}
LONG = 20  # seconds: from how long a wait on the beginning alone is offered
READY_SECONDS = 60  # how long to wait until it is known how quick this machine is
# On a phone the button comes to the top, and under it lies what is generated.
SHOW_RESULT = """() => {
    if (innerWidth < 700) document.querySelector('#animate').scrollIntoView({block: 'start', behavior: 'smooth'})
}"""
START = "go => {go && document.querySelector('#animate').click()}"
OWN_PORTRAIT = "() => {document.querySelector('#portraits').scrollIntoView({block: 'center', behavior: 'smooth'})}"
NONE_SELECTED = gr.update(selected_index=None)  # or a second click on the same would not be told


@dataclass(frozen=True, eq=False)
class Drivers:
    """What drives: one of a clip, a motion of those that come with the package, and the file of one."""

    clip: gr.Video
    pictures: gr.Gallery
    movement: gr.Radio
    file: gr.File
    notes: gr.Markdown
    faces: gr.Gallery
    seen: gr.State


@dataclass(frozen=True, eq=False)
class Results:
    """The tab's right side."""

    opening: gr.HTML
    result: gr.Video
    preview: gr.Image
    progress: gr.HTML
    notes: gr.Markdown
    after: gr.Column
    save_motion: gr.DownloadButton
    change: gr.Button
    own_portrait: gr.Button
    details: gr.Markdown
    beside: gr.Video

    @property
    def shown(self) -> list:
        """In the order of `Shown`."""
        return [
            self.result, self.beside, self.preview, self.progress, self.details, self.save_motion, self.notes,
        ]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Stages:
    """Shows what belongs to a stage of the work: idle, running or done."""

    animate: gr.Button
    cancel: gr.Button
    results: Results

    def __call__(self, name: str) -> dict:
        running, results = name == "running", self.results
        return {
            self.animate: gr.update(interactive=not running),
            self.cancel: gr.update(visible=running),
            results.opening: gr.update(visible=name == "idle"),
            results.preview: gr.update(visible=running, value=None),
            results.result: gr.update(visible=name == "done"),
            results.after: gr.update(visible=name == "done"),
        }

    @property
    def outputs(self) -> list:
        return list(self("idle"))


def animate_tab(page: Page) -> None:
    """Build the tab and wire it; the page gets what it shares."""
    studio, portraits, animator = page.studio, page.portraits, Animator(page.studio)
    animator.take_shipped()
    with gr.Row():
        with gr.Column(min_width=300, elem_id="driving-column"):
            drivers = _drivers(studio)
            person = gr.Radio(
                [("The portraits, as they are", AS_THEY_ARE), ("Your fine-tuned person", FINE_TUNED)],
                value=AS_THEY_ARE,
                label="Person",
                visible=False,
                elem_id="person",
            )
            faces, driving_faces, look_after_driver = group_choice(portraits, drivers.seen)
            *options, size, regions = options_panel(studio)
            expected = gr.Markdown(elem_id="expected")
            short = gr.Checkbox(False, label=f"Only the first {SHORT} s", visible=False, elem_id="short")
            with gr.Row():
                animate = gr.Button("3. Animate", variant="primary", scale=2, min_width=120, elem_id="animate")
                cancel = gr.Button("Cancel", visible=False, scale=1, min_width=100, elem_id="cancel")
        with gr.Column(min_width=300, elem_id="result-column"):
            results = _results()

    stages = Stages(animate, cancel, results)
    source, who = [drivers.clip, drivers.movement, drivers.file], [faces, portraits.seen]
    look_after_driver(_wire_drivers(studio, drivers).then)
    _wire_time(studio, source, options[1], expected, short, who)
    _wire_pairs(studio, animator, portraits, drivers, results, stages)

    started = animate.click(partial(stages, "running"), None, stages.outputs, **PRIVATE)
    animate.click(None, None, None, js=SHOW_RESULT, api_visibility="private")
    animation = started.then(
        animator.animate,
        # programs may give what was there before by position: what is new comes last
        inputs=[
            portraits.gallery, drivers.clip, portraits.seen, drivers.seen, *options, person, size, regions,
            drivers.movement, drivers.file, faces, driving_faces,
        ],
        outputs=results.shown,
        api_name="animate",
        show_progress="minimal",
        show_progress_on=results.progress,
        **IN_LINE,
    )  # fmt: skip
    animation.success(partial(stages, "done"), None, stages.outputs, **PRIVATE)
    animation.success(_beside_if_any, results.beside, results.beside, **PRIVATE)
    cancelled = cancel.click(studio.stop, cancels=animation, queue=False, api_name="cancel")
    # said here, since Gradio's page may no longer hear what a cancelled event says at its end
    for ended_early, said in ((animation.failure, gr.skip()), (cancelled.then, "Cancelled.")):
        ended = {results.progress: "", results.beside: gr.update(visible=False), results.notes: said}
        ended_early(lambda ended=ended: stages("idle") | ended, None, [*stages.outputs, *ended], **PRIVATE)
    portraits.gallery.change(lambda: AS_THEY_ARE, None, person, **PRIVATE)  # new portraits are meant to be used
    results.own_portrait.click(None, None, None, js=OWN_PORTRAIT, api_visibility="private")
    results.own_portrait.click(lambda: None, None, portraits.gallery, **PRIVATE)
    page.animation = AnimatePanel(drivers.clip, drivers.seen, drivers.movement, drivers.file, person, results.change)


def _drivers(studio: Studio) -> Drivers:
    clip = gr.Video(label="2. Driving clip", sources=["upload", "webcam"], height=220, elem_id="driving")
    pictures = gr.Gallery(
        motion_pictures(studio, None),
        label="Or a motion",
        columns=4,
        height="auto",
        object_fit="contain",
        allow_preview=False,
        interactive=False,
        buttons=[],
        elem_id="motions",
        elem_classes="thumbnails",
    )
    motions = [(motion.title, motion.name) for motion in list_motions()]
    movement = gr.Radio(motions, label="Motion to take", visible=False, elem_id="movement")
    with gr.Accordion("A motion from a file", open=False, elem_id="motion-from-file"):
        file = gr.File(
            label=".motion.safetensors, .expressions.json, Live Link Face (.csv), mouth cues (.json, .tsv)",
            file_types=[".safetensors", ".json", ".csv", ".tsv"],
            height=110,
            elem_id="motion-file",
        )
    notes = gr.Markdown(visible=False, elem_id="driving-notes", elem_classes="notes")
    faces = faces_gallery("Whose motion will be taken", "driving-faces")
    return Drivers(clip, pictures, movement, file, notes, faces, gr.State([]))


def _results() -> Results:
    at_once = opening("opening")
    result = gr.Video(label="Result", interactive=False, autoplay=True, visible=False, height=420, elem_id="result")
    preview = gr.Image(
        label="Being generated", format="jpeg", height=360, buttons=[], interactive=False, visible=False,
        alt_text="The frame being generated", elem_id="preview",
    )  # fmt: skip
    progress = gr.HTML(elem_id="progress", elem_classes="job-progress")
    notes = gr.Markdown(elem_id="result-notes")
    with gr.Column(visible=False, elem_id="after") as after:
        with gr.Row():
            change = gr.Button("Change the expression", size="sm", min_width=120, elem_id="change-expression")
            save_motion = gr.DownloadButton("Save this motion", size="sm", min_width=120, elem_id="save-motion")
            own_portrait = gr.Button("Take my own portrait", size="sm", min_width=120, elem_id="own-portrait")
        with gr.Accordion("Details", open=False, elem_id="details-panel"):
            details = gr.Markdown(elem_id="details")
    beside = gr.Video(label="Side by side", interactive=False, visible=False, height=200, elem_id="side-by-side")
    return Results(
        at_once, result, preview, progress, notes, after, save_motion, change, own_portrait, details, beside
    )


def motion_pictures(studio: Studio, chosen: str | None) -> list[tuple[str, str]]:
    """The motions that come with the package, as a gallery takes them; the chosen one is marked."""
    return [
        (studio.copy_of(THUMBNAILS / f"{motion.name}.webp"), f"{'✓ ' * (motion.name == chosen)}{motion.title}")
        for motion in list_motions()
    ]


def look_at_clip(studio: Studio, driving: str | None) -> tuple[dict, list[Seen], dict]:
    """Show the faces of a clip just given, and what is wrong with it."""
    if not driving:
        return show_faces([], "Clip"), [], note("")
    try:
        clip, sight = open_limited(driving), look_at_first_frame(studio, driving)
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


def _wire_drivers(studio: Studio, drivers: Drivers) -> gr.events.Dependency:
    """One thing drives: what is given last takes the place of the others; gives what looks at a clip."""
    looked = drivers.clip.change(
        partial(look_at_clip, studio), drivers.clip, [drivers.faces, drivers.seen, drivers.notes], **PRIVATE
    )

    def without_motion() -> tuple[None, None, dict]:
        return None, None, _marked(studio, None)

    drivers.clip.input(without_motion, None, [drivers.movement, drivers.file, drivers.pictures], **PRIVATE)
    drivers.file.upload(without_motion, None, [drivers.movement, drivers.clip, drivers.pictures], **PRIVATE)

    def choose_driver(seen: list[Seen], event: gr.SelectData) -> tuple[dict, list[Seen]]:
        seen = choose_face(seen, event.index)
        return show_faces(seen, "Driver"), seen

    drivers.faces.select(choose_driver, drivers.seen, [drivers.faces, drivers.seen], **PRIVATE)
    return looked


def _wire_time(
    studio: Studio, source: list, max_frames: gr.Number, expected: gr.Markdown, short: gr.Checkbox, who: list
) -> None:
    """Say before the start how long it will take; where that is long, offer the beginning alone."""

    def expect(clip, movement, file, max_frames, is_short, faces, seen) -> tuple[str, dict]:
        wait([studio.ready], READY_SECONDS)  # or those who choose at once would never be told
        words, can_be_cut = expected_time(studio, clip, movement, file, max_frames, how_many(faces, seen))
        return words, gr.update(visible=is_short or can_be_cut)

    def cut(is_short: bool, clip, movement, file) -> int | None:
        with told_to_visitor():
            return round(SHORT * driving_length(driver_of(clip, movement, file))[1]) if is_short else None

    gr.on(
        [*(part.change for part in source), max_frames.change, who[0].change],
        expect,
        [*source, max_frames, short, *who],
        [expected, short],
        trigger_mode="always_last",
        **PRIVATE,
    )
    short.input(cut, [short, *source], max_frames, **PRIVATE)

    def lengthen(is_short: bool):  # another clip: what was cut was the last one
        return (False, None) if is_short else (gr.skip(), gr.skip())

    gr.on([part.change for part in source], lengthen, short, [short, max_frames], **PRIVATE)


def expected_time(studio: Studio, clip, movement, file, max_frames, people: int = 1) -> tuple[str, bool]:
    """How long it will take for so many people, in words (none where nothing drives, or nothing was measured yet), and
    whether that is long for what could be cut."""
    try:
        driver = driver_of(clip, movement, file)
        frames, seconds, can_be_cut = expected_seconds(studio, driver, max_frames, people)
    except FsthError:
        return "", False
    if seconds is None:
        return "", False
    words = f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
    return f"{frames} frames: about {words} on this machine.", seconds > LONG and can_be_cut


def _wire_pairs(
    studio: Studio,
    animator: Animator,
    portraits: PortraitPanel,
    drivers: Drivers,
    results: Results,
    stages: Stages,
) -> None:
    """A click on a portrait or a motion starts; with what is there already, or with the first of the other kind."""
    go = gr.Checkbox(False, visible=False, elem_id="go")  # no `State`: those are not sent to scripts

    def take(pictures: Portraits, driver: str, changed: dict) -> dict:
        """Show the pair's result at once if it is there, or else have it generated."""
        kept = animator.kept([pictures[0][0]], driver, ([0], 0), Settings(model=studio.model_names[0]))
        if len(pictures) > 1 or not kept or not is_whole(kept):
            return changed | {go: True}
        shown = dict(zip(results.shown, finished(kept), strict=True))
        updates = stages("done") | {results.beside: _beside_if_any(shown.pop(results.beside)), go: False}
        return (
            changed
            | updates
            | {
                part: gr.update(value=value, visible=True) if part is results.result else value
                for part, value in shown.items()
                if part is not results.preview
            }
        )

    def take_portrait(clip, movement, file, event: gr.SelectData) -> dict:
        pictures = [(studio.portrait(PORTRAITS[event.index].name), None)]
        changed = {portraits.gallery: pictures, portraits.shipped: NONE_SELECTED}
        with told_to_visitor():
            if not (clip or movement or file):
                movement = FIRST_MOTION
                changed |= {drivers.movement: movement, drivers.pictures: _marked(studio, movement)}
            return take(pictures, driver_of(clip, movement, file), changed)

    def take_motion(pictures: Portraits, event: gr.SelectData) -> dict:
        movement = SHIPPED[event.index]
        changed = {drivers.movement: movement, drivers.clip: None, drivers.file: None}
        changed |= {drivers.pictures: _marked(studio, movement)}
        if not pictures:
            pictures = [(studio.portrait(FIRST_PORTRAIT), None)]
            changed |= {portraits.gallery: pictures, portraits.shipped: NONE_SELECTED}
        with told_to_visitor():
            return take(pictures, SCHEME + movement, changed)

    outputs = [portraits.gallery, portraits.shipped, drivers.clip, drivers.movement, drivers.file, drivers.pictures]
    outputs += [*results.shown, *(part for part in stages.outputs if part not in results.shown), go]
    source = [drivers.clip, drivers.movement, drivers.file]
    for pictures, handler, inputs in (
        (portraits.shipped, take_portrait, source),
        (drivers.pictures, take_motion, [portraits.gallery]),
    ):
        taken = pictures.select(handler, inputs, outputs, **PRIVATE)
        taken.success(None, go, None, js=START, api_visibility="private")
        taken.success(None, None, None, js=SHOW_RESULT, api_visibility="private")
        portraits.look_after(taken.success)  # a gallery reports no change that the page itself made


def _marked(studio: Studio, movement: str | None) -> dict:
    return gr.update(value=motion_pictures(studio, movement), selected_index=None)


def _beside_if_any(path: str | None) -> dict:
    return gr.update(value=path, visible=bool(path))
