"""The Expression tab's handlers, in this process and over Gradio's own client."""

from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from fsth_hub.demo import LAUNCH_OPTIONS, create_demo
from fsth_hub.demo.studio import Studio
from fsth_hub.demo.tabs.expressions import MAX_KEYFRAMES, PRESETS, Expressions
from fsth_hub.landmarks.expression import CONTROLS, Expression
from fsth_hub.media.reading import open_clip
from fsth_hub.pipelines.driving import DrivingMotion
from fsth_hub.provenance.inspection import inspect
from fsth_hub.provenance.watermark import add_watermark
from testing_utils.paths import PORTRAIT
from testing_utils.pipelines import make_pipeline


@pytest.fixture
def studio():
    pipe = make_pipeline()
    studio = Studio((pipe,))
    studio._detector = pipe.detector
    return studio


@pytest.fixture
def expressions(studio):
    return Expressions(studio)


@pytest.fixture
def driven(studio, monkeypatch):
    """The motions that the pipeline was given."""
    pipe, motions = studio.ready.result(), []
    drive = pipe.drive
    monkeypatch.setattr(pipe, "drive", lambda person, motion, *a, **k: motions.append(motion) or drive(person, motion))
    return motions


def values_of(**values) -> list[float]:
    return [getattr(Expression(**values), name) for name in CONTROLS]


def test_each_slider_reaches_the_face(expressions, studio, files, driven):
    """By its place; the picture is marked, as all that is generated."""
    gallery = [(files[0], None)]
    for name, control in CONTROLS.items():
        picture, *left = expressions.preview(None, gallery, [], False, *values_of(**{name: control.high}))
        (points,) = driven[-1].landmarks
        assert np.allclose(points, Expression(**{name: control.high}).landmarks())
    pipe = studio.ready.result()
    (frame,) = pipe.drive(pipe.embed(files[0]), driven[-1])
    assert np.array_equal(picture, add_watermark(frame)) and not np.array_equal(picture, frame)


def test_the_left_follows_the_right_while_both_are_ticked(expressions, files, driven):
    arguments = None, [(files[0], None)], []
    values = values_of(eye_right=-1, brow_right=0.5, eye_left=1)
    assert expressions.preview(*arguments, True, *values)[1:] == (-1, 0.5)
    both = Expression(eye_right=-1, eye_left=-1, brow_right=0.5, brow_left=0.5)
    assert np.allclose(driven[-1].landmarks[0], both.landmarks())
    assert expressions.preview(*arguments, False, *values)[1:] == (1, 0)


def test_portraits_are_embedded_once_for_each_visitor(expressions, studio, files, monkeypatch):
    pipe, asked, gallery = studio.ready.result(), [], [(files[0], None)]
    embed = pipe.embed
    monkeypatch.setattr(pipe, "embed", lambda *args: asked.append(args) or embed(*args))
    anna, bob = (SimpleNamespace(session_hash=name) for name in ("anna", "bob"))
    for request in (anna, anna, bob, anna):
        expressions.preview(request, gallery, [], True, *values_of())
    assert len(asked) == 2
    expressions.forget(anna)
    expressions.preview(anna, gallery, [], True, *values_of())
    assert len(asked) == 3 and list(expressions._people) == ["bob", "anna"]
    with pytest.raises(gr.Error, match="Add at least one portrait"):
        expressions.preview(anna, [], [], True, *values_of())


def test_presets_differ(expressions, files):
    """All are expressions that there are, and none is another."""
    assert len({tuple(preset.to_dict().items()) for preset in PRESETS.values()}) == len(PRESETS) == 6
    assert PRESETS["Neutral"] == Expression() and PRESETS["Wink"].eye_left < PRESETS["Wink"].eye_right


def test_strip_becomes_a_motion_and_a_clip(expressions, files, tmp_path):
    strip, pictures = [], None
    with pytest.raises(gr.Error, match="Add a portrait first"):
        expressions.add(strip, pictures, None, *values_of())
    chosen = [Expression(), Expression(smile=0.8)]
    for expression in chosen:
        picture = np.zeros((64, 64, 3), np.uint8)
        strip, pictures = expressions.add(strip, pictures, picture, *values_of(**expression.to_dict()))
        if len(strip) == 1:
            assert list(expressions.save_motion(strip, 0.4, False)) == [None]
            with pytest.raises(gr.Error, match="at least two expressions"):
                list(expressions.make_clip([(files[0], None)], [], strip, 0.4, False))
    assert [caption for _, caption in pictures] == ["1", "2"]
    (motion,) = (DrivingMotion.load(path) for path in expressions.save_motion(strip, 0.4, False))
    expected = DrivingMotion.from_keyframes([(0, chosen[0]), (0.4, chosen[1])])
    assert np.allclose(motion.landmarks, expected.landmarks)
    for update, _ in expressions.make_clip([(files[0], None)], [], strip, 0.4, False):
        if update["value"]:
            assert open_clip(update["value"]).frame_count == 11 and inspect(update["value"]).ai_generated
            break
    else:
        raise AssertionError("no clip")
    with pytest.raises(gr.Error, match=f"takes {MAX_KEYFRAMES} expressions"):
        expressions.add([{}] * MAX_KEYFRAMES, None, picture, *values_of())


def test_a_picture_for_programs(tmp_path, monkeypatch):
    """By the controls' names: the whole photograph, marked and signed."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    demo = create_demo(make_pipeline())
    url = demo.launch(prevent_thread_lock=True, quiet=True, **LAUNCH_OPTIONS)[1]
    client = Client(url, verbose=False, download_files=tmp_path)
    parameters = client.view_api(return_format="dict")["named_endpoints"]["/express"]["parameters"]
    assert [parameter["parameter_name"] for parameter in parameters] == ["portraits", *CONTROLS]
    portraits = [{"image": handle_file(PORTRAIT), "caption": None}]
    path = client.predict(portraits=portraits, smile=0.6, api_name="/express")
    assert Image.open(path).size == Image.open(PORTRAIT).size and Path(path).suffix == ".png"
    assert inspect(path).ai_generated and inspect(path).credentials == "valid"
    with pytest.raises(AppError, match="greater than maximum value 1"):
        client.predict(portraits=portraits, smile=3, api_name="/express")
    demo.close()
