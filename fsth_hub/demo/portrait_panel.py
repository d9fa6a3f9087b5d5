"""The portraits' part of the page, which all tabs share."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gradio as gr

from ..models.errors import FsthError, NoFaceError
from .clip_portraits import take_frames
from .inputs import Portraits, Seen, checked_portraits, choose_face, faces_gallery, look_at_picture, note, show_faces
from .shipped import PORTRAITS, portrait_path
from .studio import Studio


@dataclass(frozen=True)
class PortraitPanel:
    """The portraits, which all tabs share: the galleries and the session's `list[Seen]`."""

    gallery: gr.Gallery
    shipped: gr.Gallery  # the portraits that come with the package
    faces: gr.Gallery  # all that were found, of which a click chooses
    seen: gr.State
    key: gr.State  # changes with the files and the faces chosen
    look_after: Callable[[Callable], None]  # shows the faces once an event has filled the gallery


def portrait_panel(studio: Studio) -> PortraitPanel:
    """Build the portraits' part of the page."""

    def look(portraits: Portraits, seen: list[Seen]) -> tuple[dict, list[Seen], dict, list]:
        known = {sight.path: sight for sight in seen}
        sights, notes = [], []
        try:
            paths = checked_portraits(portraits) if portraits else []
        except FsthError as error:
            return show_faces([], "Portrait"), [], note(str(error)), []
        for number, path in enumerate(paths, start=1):
            try:
                sights.append(known.get(path) or look_at_picture(studio, path))
                if not sights[-1].crops:
                    raise NoFaceError(
                        f"No face was found in portrait {number} ({Path(path).name}): remove it, or add one in which "
                        "the face is seen clearly."
                    )
            except FsthError as error:
                notes.append(str(error))
        if any(len(sight.crops) > 1 for sight in sights):
            several = "click the one to animate" + ", or let everybody move in Animate" * (len(sights) == 1)
            notes.append(f"Several faces were found: {several}.")
        return show_faces(sights, "Portrait"), sights, note(" ".join(notes)), key_of(sights)

    def choose(seen: list[Seen], event: gr.SelectData) -> tuple[dict, list[Seen], list]:
        seen = choose_face(seen, event.index)
        return show_faces(seen, "Portrait"), seen, key_of(seen)

    def key_of(seen: list[Seen]) -> list[tuple[str, int]]:
        return [(sight.path, sight.chosen) for sight in seen]

    gallery = gr.Gallery(
        label="1. Portraits",
        type="filepath",
        format="png",
        file_types=["image", "video"],
        sources=["upload", "webcam", "clipboard"],
        columns=2,
        fit_columns=False,  # a single one would be as wide as the box, and cut below
        height=240,
        object_fit="contain",
        buttons=[],
        elem_id="portraits",
    )
    shipped = gr.Gallery(
        [(str(portrait_path(portrait.name)), portrait.title) for portrait in PORTRAITS],
        label="No picture at hand? Click one",
        columns=len(PORTRAITS),
        height="auto",
        object_fit="cover",
        allow_preview=False,
        interactive=False,
        buttons=[],
        elem_id="shipped-portraits",
        elem_classes="thumbnails",
    )
    clip_notes = gr.Markdown(visible=False, elem_id="portrait-clip-notes", elem_classes="notes")
    notes = gr.Markdown(visible=False, elem_id="portrait-notes", elem_classes="notes")
    faces = faces_gallery("What will be animated", "portrait-faces")
    seen, key = gr.State([]), gr.State([])

    def look_after(event: Callable) -> None:
        event(look, [gallery, seen], [faces, seen, notes, key], api_visibility="private", show_progress="hidden")

    taken = gallery.change(
        partial(take_frames, studio), gallery, [gallery, clip_notes], concurrency_limit=None,
        api_visibility="private", show_progress="hidden",
    )  # fmt: skip
    look_after(taken.success)
    faces.select(choose, seen, [faces, seen, key], api_visibility="private", show_progress="hidden")
    return PortraitPanel(gallery, shipped, faces, seen, key, look_after)
