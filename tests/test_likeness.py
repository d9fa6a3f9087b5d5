"""Portraits of two people in one list."""

import warnings

import numpy as np
import pytest
import typer

from fsth_hub.cli.main import OneLineErrors
from fsth_hub.landmarks.likeness import proportions, warn_of_strangers
from fsth_hub.models.errors import FsthWarning
from testing_utils.faces import face


def embeddings(*unlike: float) -> np.ndarray:
    """T x 8, so far from each other that the last ones lie by so much beside the first."""
    values = np.ones((len(unlike), 8))
    values[:, 0] += np.array(unlike) * np.sqrt(8)
    return values


def said(*arguments) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_strangers(*arguments)
    return [str(warning.message) for warning in caught]


def test_proportions_are_the_persons_and_not_the_poses():
    still = proportions(face())
    for other in (face(yaw=25, pitch=10, roll=20), face(scale=1.7, centre=(300.0, 90.0)), face(eyes=2, mouth=30)):
        assert np.linalg.norm(proportions(other) - still, axis=1).mean() < 0.02
    assert np.linalg.norm(proportions(face(width=1.2)) - still, axis=1).mean() > 0.06


def test_the_odd_one_out_is_named():
    one, other = face(), face(width=1.3)
    (words,) = said(embeddings(0, 0.3), [one, other])
    assert words.startswith("Portrait 2 seems to show another person than portrait 1,")
    for place in range(4):
        faces, values = [one] * 4, [0.0] * 4
        faces[place], values[place] = other, 0.4
        (words,) = said(embeddings(*values), faces)
        assert f"Portrait {place + 1} seems to show another person than the other portraits," in words


def test_one_person_in_other_light_or_with_another_face_is_not_warned_of():
    one, other = face(), face(width=1.3)
    assert said(embeddings(0), [one]) == []
    assert said(embeddings(0, 0.4), [one, face(yaw=15, eyes=2, mouth=20)]) == []  # other light
    assert said(embeddings(0, 0.05), [one, other]) == []
    assert said(embeddings(0, 0.02, 0.04, 0.06), [one, one, one, other]) == []
    assert said(embeddings(0, float("nan")), [one, other]) == []
    without_irises = face(width=1.3)
    without_irises[68:] = np.nan
    assert len(said(embeddings(0, 0.4), [one, without_irises])) == 1


def test_the_warning_is_of_the_packages_kind():
    with pytest.warns(FsthWarning, match="Portrait 2"):
        warn_of_strangers(embeddings(0, 0.4), [face(), face(width=1.3)])


def test_the_command_says_a_warning_in_one_line(capfd):
    app = typer.Typer(cls=OneLineErrors)

    @app.callback()
    def group():
        pass

    @app.command()
    def warned():
        warn_of_strangers(embeddings(0, 0.4), [face(), face(width=1.3)])

    app(["warned"], standalone_mode=False)
    said = capfd.readouterr().err
    assert said.startswith("fsth: warning: Portrait 2 seems") and said.count("\n") == 1
