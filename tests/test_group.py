"""Several people of one photograph, driven by one clip."""

import json
from dataclasses import fields

import av
import numpy as np
import pytest
import torch
from PIL import Image

from fsth_hub.finetuning.lora import merge
from fsth_hub.landmarks import Face, GroupTracker
from fsth_hub.media.paste_back import GroupPasteBack, PasteBack
from fsth_hub.models.cropping import CropBox
from fsth_hub.models.errors import FsthError, NoFaceError
from fsth_hub.models.folding import fold
from fsth_hub.pipelines import identity, pipeline_fsth
from fsth_hub.pipelines.identity import FsthIdentity
from fsth_hub.provenance.inspection import inspect
from testing_utils.clips import make_clip
from testing_utils.command_line import assert_one_line_error, run
from testing_utils.networks import SIZE
from testing_utils.pipelines import (
    NO_FACE,
    CrowdDetector,
    arrays,
    make_pipeline,
    negative,
    picture,
    row,
    tuned_once,
)


def middles(found) -> list[int | None]:
    return [None if face is None else round(float(np.mean(face.box[::2]))) // SIZE for face in found]


@pytest.fixture
def pipe():
    pipe = make_pipeline()
    pipe.detector = CrowdDetector()
    return pipe


def changed(frames, still) -> list[float]:
    """How much each square of a row changes from the first frame to the last."""
    difference = np.abs(arrays(frames)[-1].astype(int) - arrays(frames)[0]).mean(axis=(0, 2))
    return [float(part.mean()) for part in np.split(difference, still.shape[1] // SIZE)]


# Following


def test_all_are_followed_from_left_to_right_and_some_by_their_size():
    frames = [row(0, 4, 8), row(4, 8, 12)]
    track = GroupTracker(CrowdDetector())
    assert [middles(track(image)) for image in frames] == [[0, 1, 2]] * 2
    assert middles(GroupTracker(CrowdDetector(), [0])(frames[0])) == [1]  # the largest
    assert track.trackers[2].shots == ((0, 2),)


def test_faces_are_looked_for_once_in_a_frame():
    detector = CrowdDetector()
    track = GroupTracker(detector)
    for _ in range(4):
        track(row(0, 0, 0))
    assert (detector.detected, detector.tracked) == (1, 9)


def test_who_is_gone_does_not_take_another_s_face_and_comes_back():
    track = GroupTracker(CrowdDetector())
    seen = [track(image) for image in (row(0, 0), row(NO_FACE, 0), row(NO_FACE, 0), row(0, 0))]
    assert [middles(found) for found in seen] == [[0, 1], [None, 1], [None, 1], [0, 1]]


def test_frames_before_the_first_face_count():
    track = GroupTracker(CrowdDetector())
    assert track(row(NO_FACE, NO_FACE)) is None and middles(track(row(0, 0))) == [0, 1]
    assert track.waited == 1 and track.trackers[1].shots == ((0, 2),)
    with pytest.raises(NoFaceError, match="Face 2 .* was asked for, but the clip begins with 2"):
        GroupTracker(CrowdDetector(), [2])(row(0, 0))


def test_passers_by_are_none_of_all():
    class Passer(CrowdDetector):
        def faces(self, image):
            large, small = super().faces(image)
            middle = small.points.mean(axis=0)
            return [large, Face(middle + 0.2 * (small.points - middle), 1.0)]

    assert middles(GroupTracker(Passer())(row(0, 0))) == [0]
    assert middles(GroupTracker(Passer(), [0, 1])(row(0, 0))) == [0, 1]


# Putting together


def test_squares_that_overlap_are_each_their_own_face_s():
    """Black and white heads in a grey photograph, a quarter of a square apart: each is itself at its face."""
    photograph = np.full((200, 300, 3), 128, np.uint8)
    paste = GroupPasteBack(photograph, [CropBox(50, 40, 120), CropBox(80, 40, 120)])
    black, white = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)
    result = paste([black, white])[:, :, 0].astype(int)
    assert result[110, 110] == 0 and result[110, 140] == 255
    line = result[110, 100:150]
    assert (np.diff(line) >= -1).all() and np.diff(line).max() < 40  # softly
    assert (result[:, :50] == 128).all() and (result[:40] == 128).all()
    swapped = GroupPasteBack(photograph, [CropBox(80, 40, 120), CropBox(50, 40, 120)])([white, black])
    assert np.array_equal(swapped[:, :, 0], result)


def test_one_head_is_put_back_as_by_itself(astronaut):
    box, frame = CropBox(120, 10, 220), np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    assert np.array_equal(GroupPasteBack(astronaut, [box])([frame]), PasteBack(astronaut, box)(frame))


# Driving


def test_one_drives_all_and_the_rest_of_the_photograph_stays(pipe):
    photograph = row(0, 0, 0)
    result = pipe.animate_group(photograph, [picture(0), picture(20)], watermark=False)
    assert arrays(result.frames[0]).shape == (2, SIZE, 3 * SIZE, 3)
    assert min(changed(result.frames[0], photograph)) > 0.3
    assert len(result.report.portrait_boxes) == 3
    lefts = [box.left for box in result.report.portrait_boxes]
    assert lefts == sorted(lefts)
    assert pipe.detector.detected <= 6  # the photograph in four turns at most, and the clip once


def test_chosen_faces_move_and_others_stay(pipe):
    photograph = row(0, 0, 0)
    result = pipe.animate_group(photograph, [picture(0), picture(20)], faces=[0], watermark=False)  # in the middle
    left, middle, right = changed(result.frames[0], photograph)
    assert middle > 0.3 and left < 0.2 * middle and right < 0.2 * middle


def test_each_is_driven_by_their_own(pipe):
    photograph, driving = row(0, 0), [row(0, 0), row(0, 20)]  # the right one moves
    left, right = changed(pipe.animate_group(photograph, driving, watermark=False).frames[0], photograph)
    assert right > 0.3 and left < 0.2 * right
    options = {"faces": [0, 1], "watermark": False}
    left, right = changed(
        pipe.animate_group(photograph, driving, driving_faces=[1, 0], **options).frames[0], photograph
    )
    assert left > 0.3 and right < 0.2 * left
    # three people and two drivers: the third goes with the first
    one, two, three = changed(pipe.animate_group(row(0, 0, 0), driving, watermark=False).frames[0], row(0, 0, 0))
    assert two > 0.3 and max(one, three) < 0.3 * two


def test_motion_that_was_read_drives_all(pipe):
    motion = pipe.read_driving([picture(0), picture(20)])
    result = pipe.animate_group(row(0, 0), motion, watermark=False, num_frames=2)
    assert min(changed(result.frames[0], row(0, 0))) > 0.3
    with pytest.raises(FsthError, match="driving_faces are of a clip"):
        pipe.animate_group(row(0, 0), motion, driving_faces=[0])


# People who are known


@pytest.mark.parametrize("method", ["full", "lora"])
def test_who_was_fine_tuned_takes_the_place_of_a_face(pipe, method):
    """By place in the list; the photograph stays the first portrait, and who is not known is as before."""
    photograph, anna = row(0, 0), tuned_once(pipe, method)
    anna.name = "anna"
    options = {"driving": [picture(0), picture(20)], "watermark": False}
    plain = arrays(pipe.animate_group(photograph, **options).frames[0]).astype(int)
    for people, face in (([anna], 0), ([None, anna], 1), ((anna, None), 0)):
        result = pipe.animate_group(photograph, people=people, **options)
        difference = np.abs(arrays(result.frames[0]) - plain).mean(axis=(0, 1, 3))
        sides = [float(part.mean()) for part in np.split(difference, 2)]
        assert sides[face] > 1 and sides[1 - face] == 0
        assert result.origin.identity == "anna"
    assert len(result.report.portrait_boxes) == 2
    # driven by others of the person's portraits, too, but not from their pose
    drawn, generate_frames = [], pipe.generate_frames
    pipe.generate_frames = lambda *arguments: drawn.append(arguments) or generate_frames(*arguments)
    pipe.animate_group(photograph, people=[anna], **options)
    person = drawn[0][1]
    assert len(person.crops) == 1 + anna.num_portraits == person.sources.images.shape[1] and len(person.boxes) == 1
    assert np.array_equal(person.crops[1], anna.crops[0])
    assert torch.equal(person.sources.images[:, 1:], anna.sources.images)
    assert np.allclose(person.landmarks, person.sources.landmarks[0, 0])


def test_a_lora_is_merged_once_for_all_photographs(pipe, monkeypatch):
    anna, merged = tuned_once(pipe, "lora"), []
    monkeypatch.setattr(identity, "merge", lambda *networks: merged.append(networks) or merge(*networks))
    for photograph in (row(0, 0), row(4, 8)):
        pipe.animate_group(photograph, [picture(20)], people=[anna])
    pipe.generator_for(anna)
    assert len(merged) == 1 and merged[0] == (pipe.generator, anna.weights)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_who_was_fine_tuned_is_made_ready_once(pipe, method, monkeypatch):
    """For all photographs, as long as their weights are what they were."""
    photograph, anna, folded = row(0, 0), tuned_once(pipe, method), []
    monkeypatch.setattr(pipeline_fsth, "fold", lambda generator: folded.append(generator) or fold(generator))

    def frame(person):
        return arrays(pipe.animate_group(photograph, [picture(20)], people=[person]).frames[0])

    first, again = frame(anna), frame(anna)
    pipe.generator_for(anna)
    assert len(folded) == 2 and np.array_equal(first, again)  # the person's and the pipeline's
    other = tuned_once(pipe, method)
    assert np.array_equal(frame(other), first) and len(folded) == 3
    for weights in (other.generator.state_dict() if method == "full" else other.weights).values():
        weights.mul_(1.1)
    assert not np.array_equal(frame(other), first) and len(folded) == 4


def test_who_was_embedded_from_other_portraits_keeps_them(pipe):
    photograph = row(0, 0)
    bob = pipe.embed([negative(picture(0)), picture(8)])
    options = {"driving": [picture(0), picture(20)], "watermark": False}
    plain, known = (
        arrays(pipe.animate_group(photograph, people=people, **options).frames[0]).astype(int)
        for people in ([], [None, bob])
    )
    left, right = np.split(np.abs(known - plain).mean(axis=(0, 1, 3)), 2)
    assert right.mean() > 0.2 and left.max() == 0
    signed = pipe.animate_group(photograph, people=[bob], driving=options["driving"])
    assert signed.origin.identity is None


def test_people_who_do_not_fit_are_refused(pipe):
    bob, clip = pipe.embed(picture(0)), [picture(0)]
    with pytest.raises(FsthError, match="There are 3 people for 2 faces of the photograph"):
        pipe.animate_group(row(0, 0), clip, people=[bob, bob, bob])
    with pytest.raises(FsthError, match="people must be persons, of pipe.embed"):
        pipe.animate_group(row(0, 0), clip, people="anna")
    data = tuned_once(pipe, "lora")
    data = FsthIdentity(**{field.name: getattr(data, field.name) for field in fields(FsthIdentity)} | {"name": "ada"})
    with pytest.raises(FsthError, match=r"'ada' must be made ready first: pipe.bind\(identity\)"):
        pipe.animate_group(row(0, 0), clip, people=[data])


# Everything else that drives, and what cannot be done


def test_motions_by_name_regions_and_another_sound(pipe, tmp_path):
    voice = make_clip(tmp_path / "voice.mp4", [picture(0)] * 3, sound="aac")
    options = {"num_frames": 3, "regions": "mouth", "sound": voice}
    result = pipe.animate_group(row(0, 0), "motion:nod", **options)
    assert result.report.sound and [title for title, _ in result.origin.ingredients] == ["portrait", "motion"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"faces": [0, 2]}, "Face 2 was asked for, but the photograph shows 2, counted from 0."),
        ({"driving_faces": [1]}, "Face 1 .* but the clip begins with 1"),
        ({"faces": [1, 1]}, "Each face can be named once"),
        ({"faces": "both"}, 'faces must be "all" or numbers of faces'),
        ({"faces": []}, 'faces must be "all" or numbers of faces'),
        ({"faces": [-1]}, 'faces must be "all" or numbers of faces'),
        ({"motion_strength": 7}, "motion_strength must be"),
    ],
)
def test_what_cannot_be_done_is_said(pipe, options, words):
    with pytest.raises(FsthError, match=words):
        pipe.animate_group(row(0, 0), [picture(0), picture(20)], **options)


def test_empty_photographs_clips_and_albums_are_refused(pipe):
    with pytest.raises(NoFaceError, match="No face was found in the clip"):
        pipe.animate_group(row(0, 0), [picture(NO_FACE)] * 2)
    with pytest.raises(FsthError, match="Give one photograph of the group, not 2"):
        pipe.animate_group([row(0, 0), row(0, 0)], [picture(0)])
    pipe.detector.faces = lambda image: []
    with pytest.raises(NoFaceError, match="No face was found in the photograph"):
        pipe.animate_group(row(0, 0), [picture(0)])


def test_files_are_written_marked_signed_and_reported(pipe, tmp_path):
    clip = make_clip(tmp_path / "driver.mp4", [picture(shift) for shift in (0, 8, 16)], sound="aac")
    Image.fromarray(row(0, 0)).save(tmp_path / "group.png")
    seen = []
    result = pipe.animate_group(
        tmp_path / "group.png", clip, output_path=tmp_path / "out.mp4", callback_on_frame_end=lambda *a: seen.append(a)
    )
    assert result.frames is None and result.report.sound and result.report.num_frames == 3
    assert [(index, total) for _, index, total, _ in seen] == [(0, 3), (1, 3), (2, 3)]
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.audio and "AI-generated" in container.metadata["comment"]
    found = inspect(tmp_path / "out.mp4")
    assert found.credentials == "valid" and list(found.to_dict()["ingredients"]) == ["portrait", "driving clip"]


# The command line


def test_command_animates_a_group(tmp_path, monkeypatch):
    from fsth_hub.cli import main as cli

    monkeypatch.setattr(cli, "get_detector", lambda name: CrowdDetector())
    make_pipeline().save_pretrained(tmp_path / "model")
    clip = make_clip(tmp_path / "driver.mp4", [picture(shift) for shift in (0, 8, 16)])
    Image.fromarray(row(0, 0, 0)).save(tmp_path / "group.png")
    options = ["--driving", clip, "--output", tmp_path / "out.mp4", "--model", tmp_path / "model", "--device", "cpu"]
    group = ["animate", tmp_path / "group.png", *options]
    for faces, count in (("all", 3), ("0,2", 2)):
        result = run(*group, "--face", faces, "--paste-back", "--json", "-")
        assert result.exit_code == 0, result.output
        assert len(json.loads(result.stdout)["portrait_boxes"]) == count and f"{count} people" in result.stderr
    assert_one_line_error(run(*group, "--face", "all"), "--face all", "add --paste-back")
    assert_one_line_error(run(*group, "--face", "0,7", "--paste-back"), "Face 7", "group.png shows 3")
    for wrong in ("left", "-1", "0,,1", "1.5"):
        assert_one_line_error(run(*group, f"--face={wrong}"), "--face", "all")
    assert_one_line_error(run(*group, "--driving-face", "all"), "--driving-face all", "several faces")
    for name, method in (("anna", "full"), ("bob", "lora")):
        tuned_once(make_pipeline(), method).save_pretrained(tmp_path / name)
    known = [*group, "--paste-back", "--identity", tmp_path / "anna"]
    both = [*known, "--identity", tmp_path / "bob"]
    for more, count in (([*both, "--face", "1,0,2"], 3), (known, 1)):
        result = run(*more, "--json", "-", "--side-by-side", tmp_path / "beside.mp4")
        assert result.exit_code == 0, result.output
        assert len(json.loads(result.stdout)["portrait_boxes"]) == count
        assert inspect(tmp_path / "out.mp4").identity == ("anna, bob" if count == 3 else "anna")
    assert_one_line_error(run(*both), "2 people for 1 face", "--face")
    assert_one_line_error(run(*group, "--identity", tmp_path / "anna"), "--identity", "add --paste-back")
    alone = ["animate", *options, "--identity", tmp_path / "anna"]
    assert_one_line_error(run(*alone, "--identity", tmp_path / "bob"), "Several people", "--paste-back")
    assert_one_line_error(run(*alone, "--paste-back"), "--paste-back", "photograph")
    two = ["animate", tmp_path / "group.png", tmp_path / "group.png", *options, "--face", "all", "--paste-back"]
    assert_one_line_error(run(*two), "one photograph")
