"""The page where one picture shows several people, and how programs ask for them."""

from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from fsth_hub.demo import create_demo
from fsth_hub.demo.inputs import choose_face, look_at_picture, show_faces
from fsth_hub.demo.people import Kept
from fsth_hub.demo.studio import Studio
from fsth_hub.demo.tabs.animator import FINE_TUNED, Animator
from fsth_hub.media.reading import open_clip
from fsth_hub.provenance.inspection import inspect
from testing_utils.clips import make_clip
from testing_utils.networks import SIZE
from testing_utils.pipelines import CrowdDetector, make_pipeline, picture, row, tuned_once


@pytest.fixture
def studio():
    pipe = make_pipeline()
    pipe.detector = CrowdDetector()
    studio = Studio((pipe,))
    studio._detector = pipe.detector
    return studio


@pytest.fixture
def files(tmp_path) -> tuple[str, str]:
    """Three people, and a clip of two of whom the right one moves."""
    group, clip = tmp_path / "group.png", tmp_path / "two.mp4"
    Image.fromarray(row(0, 0, 0)).save(group)
    make_clip(clip, [row(0, shift) for shift in (0, 0, 120)])
    return str(group), str(clip)


@pytest.fixture
def asked(studio, monkeypatch) -> list[dict]:
    """Of the pipeline."""
    asked, pipe = [], studio.ready.result()
    animate_group, animate = pipe.animate_group, type(pipe).__call__

    def group(photograph, driving, **options):
        asked.append({name: options[name] for name in ("faces", "driving_faces", "people")})
        return animate_group(photograph, driving, **options)

    def one(pipe, portraits, driving, **options):
        asked.append({name: options[name] for name in ("face_index", "driving_face_index")})
        return animate(pipe, portraits, driving, **options)

    monkeypatch.setattr(pipe, "animate_group", group)
    monkeypatch.setattr(type(pipe), "__call__", one)
    return asked


def last(steps):
    *_, shown = steps
    return shown


def test_everybody_moves_in_the_whole_picture(studio, files, asked):
    group, clip = files
    steps = Animator(studio).animate([(group, None)], clip, [], [], faces="all")
    for shown in steps:
        if shown.result:
            result, beside = open_clip(shown.result), open_clip(shown.beside)
            assert (result.width, result.height, result.frame_count) == (3 * SIZE, SIZE, 3)
            assert (beside.width, beside.height) == (7 * SIZE, SIZE)
            assert inspect(shown.result).credentials == "valid"
            assert "3 people, the largest head" in shown.details and "pasted back" in shown.details
            assert Path(shown.motion).name == "two.motion.safetensors"
    assert asked == [{"faces": "all", "driving_faces": "all", "people": []}]


def test_some_are_named_and_all_take_the_motion_of_the_one_who_is_clicked(studio, files, asked):
    group, clip = files
    sight = look_at_picture(studio, group)
    driver = choose_face([look_at_picture(studio, group)], 1)
    driver = [SimpleNamespace(path=clip, chosen=driver[0].chosen)]
    animate = Animator(studio).animate
    last(animate([(group, None)], clip, [sight], driver, faces="0,2", driving_faces="", max_frames=1))
    last(animate([(group, None)], clip, [sight], driver, faces="all", driving_faces="1,0", max_frames=1))
    last(animate([(group, None)], None, [], [], faces="all", driving_faces="", movement="nod", max_frames=1))
    assert [tuple(one.values())[:2] for one in asked] == [([0, 2], [1]), ("all", [1, 0]), ("all", "all")]
    # one face by its number, as a click would choose it
    last(animate([(group, None)], clip, [], [], faces="1", driving_faces="1", max_frames=1))
    last(animate([(group, None)], clip, choose_face([sight], 2), driver, max_frames=1))
    assert [tuple(one.values()) for one in asked[3:]] == [([1], 1), ([2], 1)]


def test_pace_is_not_learned_of_groups(studio, files):
    """A frame of theirs takes several times as long as one person's."""
    studio.ready.result()
    before = vars(studio.pace).copy()
    last(Animator(studio).animate([(files[0], None)], files[1], [], [], faces="all", max_frames=1))
    assert vars(studio.pace) == before


def test_ones_own_person_has_the_face_that_was_clicked(studio, files, asked):
    group, clip = files
    anna = tuned_once(studio.ready.result(), "lora")
    studio.people.keep(None, Kept(anna, None))
    seen = choose_face([look_at_picture(studio, group)], 1)
    animate = Animator(studio).animate
    last(animate([(group, None)], clip, seen, [], faces="all", person=FINE_TUNED, max_frames=1))
    assert asked[0]["faces"][1] == 0  # the largest is in the middle
    assert [known is anna for known in asked[0]["people"]] == [number == 1 for number in asked[0]["faces"]]
    with pytest.raises(gr.Error, match="none of those that move"):
        last(animate([(group, None)], clip, seen, [], faces="0,2", person=FINE_TUNED))
    studio.people.forget(None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"faces": "left"}, "faces must be the number of a face, several such as 0,2, or all, and not left"),
        ({"faces": "0,7"}, "Face 7 was asked for, but group.png shows 3"),
        ({"faces": "all", "driving_faces": "2"}, "Face 2 .* but the clip begins with 2"),
        ({"faces": "all", "driving_faces": "both"}, "driving_faces must be the number"),
        ({"driving_faces": "0,1"}, "driving_faces are for several faces"),
    ],
)
def test_what_cannot_be_done_is_said(studio, files, options, words):
    with pytest.raises(gr.Error, match=words):
        last(Animator(studio).animate([(files[0], None)], files[1], [], [], **options))


def test_several_pictures_are_no_group(studio, files):
    with pytest.raises(gr.Error, match="one photograph of them, and here are 2 portraits"):
        last(Animator(studio).animate([(files[0], None)] * 2, files[1], [], [], faces="all"))
    with pytest.raises(gr.Error, match="Add at least one portrait"):
        last(Animator(studio).animate(None, files[1], [], [], faces="all"))


def handler(demo, name: str, *outputs: str):
    """Of the page's events, the one of this name that changes parts with these names."""
    ids = {part.elem_id: part._id for part in demo.blocks.values()}
    wanted = {ids[output] for output in outputs}
    (found,) = {
        fn.fn
        for fn in demo.fns.values()
        if getattr(fn.fn, "__name__", "") == name and wanted <= {part._id for part in fn.outputs}
    }
    return found


def test_the_choice_is_offered_where_there_is_one(studio, files, tmp_path):
    """One picture with several faces; the drivers where the clip has several too; and a new picture begins again."""
    demo = create_demo(studio.ready.result())
    Image.fromarray(picture(0)).save(tmp_path / "one.png")
    group, one = (look_at_picture(studio, path) for path in (files[0], str(tmp_path / "one.png")))
    begin_again = handler(demo, "begin_again", "who-moves")
    for seen, visible in (([group], True), ([one], False), ([group, one], False), ([], False)):
        who, faces, drivers = begin_again(seen)
        assert (who["visible"], who["value"], faces, drivers["visible"]) == (visible, "", "", False)
    choose = handler(demo, "choose", "who-drives", "portrait-faces")
    shown, drivers = choose("all", [group], [group])
    assert drivers["visible"] and all("used" in caption for _, caption in shown["value"])
    assert not np.array_equal(shown["value"][1][0], show_faces([group], "Portrait")["value"][1][0])  # not dimmed
    assert not choose("all", [group], [one])[1]["visible"] and not choose("", [group], [group])[1]["visible"]
    demo.close()
