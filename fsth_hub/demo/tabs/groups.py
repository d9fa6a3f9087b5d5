"""Who moves where one picture shows several people: the one who was clicked, everybody, or some of them."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import gradio as gr

from ...checks import read_faces
from ...landmarks import set_upright
from ...landmarks.group_tracking import large_faces
from ...models.errors import FsthError
from ...models.image_loading import load_image
from ..inputs import Seen, show_faces
from ..portrait_panel import PortraitPanel


if TYPE_CHECKING:
    from ...pipelines.identity import FsthTunedPerson
    from ...pipelines.pipeline_fsth import FsthPipeline


CLICKED, ALL = "", "all"  # or numbers, as the command line takes them: 0,2
PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}


def is_group(faces: str) -> bool:
    """Whether these are several faces of one picture."""
    return faces != CLICKED and not isinstance(read_faces("faces", faces), int)


def how_many(faces: str, seen: list[Seen]) -> int:
    """People who move, as far as they are known."""
    if not is_group(faces):
        return 1
    named = read_faces("faces", faces)
    return sum(len(sight.crops) for sight in seen) or 1 if named == ALL else len(named)


def check_group(portraits: list[str]) -> None:
    """Refuse (`FsthError`) several pictures of a group."""
    if len(portraits) > 1:
        raise FsthError(
            f"Several people move in one photograph of them, and here are {len(portraits)} portraits: keep the one "
            "that shows them all."
        )


def named_faces(faces: str, driving_faces: str, clicked: list[int], clicked_driver: int) -> tuple[list[int], int]:
    """The face of each portrait, and that of the driver: what was named, or else what was clicked."""
    taken = clicked if faces == CLICKED else [read_faces("faces", faces)] * len(clicked)
    if driving_faces in (CLICKED, ALL):
        return taken, clicked_driver
    driver = read_faces("driving_faces", driving_faces)
    if not isinstance(driver, int):
        raise FsthError("driving_faces are for several faces of a picture: name these by faces, too.")
    return taken, driver


def group_of(
    pipe: "FsthPipeline",
    photograph: str,
    faces: str,
    driving_faces: str,
    clicked: list[int],
    clicked_driver: int,
    own: "FsthTunedPerson | None",
) -> dict:
    """Who moves in a photograph, who drives them and who is known, as the pipeline takes it.

    Args:
        own: The visitor's fine-tuned person, whose face was clicked.
    """
    faces = read_faces("faces", faces)
    drivers = clicked_driver if driving_faces == CLICKED else read_faces("driving_faces", driving_faces)
    people = []
    if own:
        if faces == ALL:
            found = set_upright(load_image(photograph), pipe.detector)[1]
            faces = large_faces(found) if found else [0]
        if clicked[0] not in faces:
            raise FsthError("Your fine-tuned person has the face that was clicked, which is none of those that move.")
        people = [own if number == clicked[0] else None for number in faces]
    return {"faces": faces, "driving_faces": [drivers] if isinstance(drivers, int) else drivers, "people": people}


def group_choice(portraits: PortraitPanel, driving_seen: gr.State) -> tuple[gr.Textbox, gr.Textbox, Callable]:
    """Who moves and who drives them, shown where there is a choice.

    Returns:
        What the Animate tab's endpoint takes as `faces` and `driving_faces`, and what is to be called with an event
        that has changed the driver.
    """
    who = gr.Radio(
        [("The face that is clicked", CLICKED), ("Everybody in the picture", ALL)],
        value=CLICKED,
        label="Who moves",
        info="Everybody: all heads move, and go back into the photograph.",
        visible=False,
        elem_id="who-moves",
    )
    drivers = gr.Radio(
        [("Each as one person of the clip, from left to right", ALL), ("All as the one who is clicked", CLICKED)],
        value=ALL,
        label="Whose motion they take",
        visible=False,
        elem_id="who-drives",
    )
    # Programs give these by name, also numbers of faces; the page, its choices, without asking the server.
    faces = gr.Textbox(CLICKED, label="faces", visible=False)
    driving_faces = gr.Textbox(ALL, label="driving_faces", visible=False)
    for choice, text in ((who, faces), (drivers, driving_faces)):
        choice.input(None, choice, text, js="choice => choice", api_visibility="private")

    def can_choose_driver(who: str, seen: list[Seen]) -> dict:
        return gr.update(visible=who == ALL and any(len(sight.crops) > 1 for sight in seen))

    def choose(who: str, seen: list[Seen], driving_seen: list[Seen]) -> tuple[dict, dict]:
        return show_faces(seen, "Portrait", everybody=who == ALL), can_choose_driver(who, driving_seen)

    def begin_again(seen: list[Seen]) -> tuple[dict, str, dict]:
        is_choice = len(seen) == 1 and len(seen[0].crops) > 1
        return gr.update(value=CLICKED, visible=is_choice), CLICKED, gr.update(visible=False)

    who.input(choose, [who, portraits.seen, driving_seen], [portraits.faces, drivers], **PRIVATE)
    # the key changes with the pictures, and the same face can be clicked again
    gr.on(
        [portraits.key.change, portraits.faces.select], begin_again, portraits.seen, [who, faces, drivers], **PRIVATE
    )

    def look_after(event: Callable) -> None:
        event(can_choose_driver, [who, driving_seen], drivers, **PRIVATE)

    return faces, driving_faces, look_after
