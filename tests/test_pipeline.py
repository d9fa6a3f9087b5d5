import io
import socket
import weakref
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image

from fsth_hub.device import default_dtype
from fsth_hub.landmarks import motion as motion_module
from fsth_hub.media.reading import open_clip
from fsth_hub.models import downloading
from fsth_hub.models.cropping import crop_box, to_crop
from fsth_hub.models.errors import FsthError, FsthNotFoundError, NoFaceError, VideoError
from fsth_hub.models.landmark_layout import FACE, interocular
from fsth_hub.models.modeling_fsth import FsthEmbedder
from fsth_hub.pipelines.pipeline_fsth import FsthPipeline
from testing_utils.clips import make_clip
from testing_utils.networks import SIZE, tiny
from testing_utils.pipelines import NO_FACE, ScaledDetector, StubDetector, arrays, clip, make_pipeline, picture


@pytest.fixture
def pipe():
    return make_pipeline()


def spy_on_points(pipe, monkeypatch) -> list[np.ndarray]:
    """The landmarks of every frame that is drawn."""
    points, generate_frames = [], pipe.generate_frames
    monkeypatch.setattr(pipe, "generate_frames", lambda *args: points.extend(args[2]) or generate_frames(*args))
    return points


# The bundled model, with the real detector.


def test_bundled_model_loads_without_network(monkeypatch):
    def no_network(*args):
        raise AssertionError("the bundled model must not reach for the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(downloading, "snapshot_download", no_network)
    pipe = FsthPipeline.from_pretrained()
    assert pipe.generator.dtype == pipe.embedder.dtype == torch.float32 and pipe.device.type == "cpu"
    assert not any(network.training for network in (pipe.embedder, pipe.generator, pipe.discriminator))


def test_bundled_model_draws_the_face_where_the_driver_leads_it(bundled, astronaut, astronaut_clip, monkeypatch):
    drawn = spy_on_points(bundled, monkeypatch)
    output = bundled(astronaut, astronaut_clip[::4], reference_frame=0)
    assert len(output.frames[0]) == 3 and all(frame.size == (256, 256) for frame in output.frames[0])
    # the head wanders to the left as the window wanders to the right
    assert np.ptp([points[FACE, 0].mean() for points in drawn]) > 10
    for frame, points in zip(output.frames[0], drawn, strict=True):
        (face,) = bundled.detector.detect(np.asarray(frame))
        distance = np.linalg.norm(face.points[FACE] - points[FACE], axis=1).mean()
        assert distance < 0.1 * interocular(points)
    # and it is her photograph that moves: her own pose gives the photograph back
    crop = bundled.image_processor.crop(astronaut, bundled.detector.detect(astronaut)[0].points)[0]
    assert np.abs(arrays(output.frames[0])[0].astype(int) - crop).mean() < 12


# Saving and loading.


def test_pickled_weights_are_not_read(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    (tmp_path / "generator" / "model.safetensors").unlink()
    torch.save(pipe.generator.state_dict(), tmp_path / "generator" / "pytorch_model.bin")
    with pytest.raises(FsthError, match="cannot be loaded"):
        FsthPipeline.from_pretrained(tmp_path)


def test_damaged_weights_are_refused(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    weights = tmp_path / "embedder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(FsthError, match=f"{tmp_path.name} cannot be loaded"):
        FsthPipeline.from_pretrained(tmp_path)


def test_weights_of_another_shape_or_another_pipeline_are_refused(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    tiny(FsthEmbedder, embedding_dim=10).save_pretrained(tmp_path / "generator")
    with pytest.raises(FsthError, match="cannot be loaded"):
        FsthPipeline.from_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}')
    with pytest.raises(FsthError, match="holds no pipeline"):
        FsthPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["no/such-model", "/no/such/folder", "no such name"])
def test_unknown_model_is_one_sentence(name, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FsthError, match=f"There is no folder '{name}', and the hub does not give it either"):
        FsthPipeline.from_pretrained(name, cache_dir=tmp_path)


def test_folder_without_pipeline_is_refused(tmp_path):
    with pytest.raises(FsthError, match="holds no pipeline"):
        FsthPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("capability, dtype", [("amx_bf16", torch.bfloat16), ("avx2", torch.float32)])
def test_default_dtype_is_what_the_processor_computes_with(capability, dtype, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True})
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")  # whatever these tests run on
    assert default_dtype(torch.device("cpu")) == dtype
    assert default_dtype(torch.device("mps")) == torch.float32
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert default_dtype(torch.device("cuda")) == torch.float32  # a GPU that only emulates it


# Portraits.


def test_any_kind_of_portrait_is_the_same_person(pipe, tmp_path):
    image = picture(8)
    path = tmp_path / "portrait.png"
    Image.fromarray(image).save(path)
    tensor = torch.from_numpy(image).movedim(-1, 0)
    kinds = [image, image[None], [image], path, str(path), Image.open(path), path.read_bytes(), open(path, "rb")]
    kinds += [io.BytesIO(path.read_bytes()), [path], (path for _ in range(1)), image / 255, tensor, tensor[None]]
    persons = [pipe.embed(portrait) for portrait in kinds]
    for person in persons:
        assert torch.equal(person.adain_parameters, persons[0].adain_parameters)
        assert np.array_equal(person.landmarks, persons[0].landmarks)
    assert len(persons[0].boxes) == 1
    assert np.allclose(persons[0].boxes[0], crop_box(pipe.detector.points(image)))


def test_several_portraits_are_one_person(pipe):
    first, second = picture(0), picture(20)
    second[1:] = 255 - second[1:]
    person = pipe.embed([first, Image.fromarray(second)])
    assert person.sources.images.shape == (1, 2, 3, SIZE, SIZE)
    assert len(person.boxes) == 2 and person.boxes[0] != person.boxes[1]
    alone = [pipe.embed(portrait).adain_parameters for portrait in (first, second)]
    bias = pipe.generator.project(torch.zeros(1, 12))
    # psi = P mean(e): the means of what each portrait gives alone
    assert torch.allclose(person.adain_parameters - bias, torch.stack(alone).mean(dim=0) - bias, atol=1e-5)
    assert not torch.allclose(*alone, atol=1e-4)


@pytest.mark.parametrize("side, kept", [(40, SIZE), (301, 301), (1500, 1024)])
def test_crops_are_kept_as_large_as_they_are(pipe, side, kept):
    pipe.detector = ScaledDetector()
    image = picture(height=side, width=side)
    person = pipe.embed(image, crop=False)
    assert person.crops[0].shape == (kept, kept, 3) and person.max_size == kept // 2 * 2
    assert person.sources.images.shape[-1] == person.sources.mattes.shape[-1] == SIZE
    assert np.allclose(person.landmarks, pipe.detector.points(image) * SIZE / side, atol=1e-3)
    if kept == side:
        assert np.abs(person.crops[0].astype(int) - image).max() <= 1
    assert np.ptp(person.sources.mattes.numpy()) >= 0 and person.sources.mattes.max() == 1


def test_a_head_is_cut_out_at_its_own_size(pipe):
    pipe.detector = ScaledDetector()
    person = pipe.embed(picture(height=700, width=700))
    assert 500 < len(person.crops[0]) == round(person.boxes[0].side) < 700


def test_portraits_of_different_sizes_are_one_person(pipe):
    pipe.detector = ScaledDetector()
    sides = [300, 100, SIZE]
    person = pipe.embed(
        [picture(shift, side, side) for shift, side in zip((0, 8, 20), sides, strict=True)], crop=False
    )
    assert [len(crop) for crop in person.crops] == sides
    assert person.sources.images.shape == (1, 3, 3, SIZE, SIZE)
    frames = arrays(pipe(person, clip(0, 8, 20), crop=False).frames[0])
    assert frames.shape == (3, 300, 300, 3)
    # the first portrait says how large they are
    swapped = pipe.embed([picture(8, 100, 100), picture(0, 300, 300)], crop=False)
    assert pipe(swapped, clip(0), crop=False).frames[0][0].size == (100, 100)


def test_larger_crops_of_a_known_face_are_scaled_with_their_landmarks(pipe):
    points = pipe.detector.points(picture())
    large = np.asarray(Image.fromarray(picture()).resize((2 * SIZE, 2 * SIZE)))
    person = pipe.embed_crops([large], [2 * points])
    assert np.allclose(person.landmarks, points, atol=1e-4)


def test_face_index_chooses_the_face(pipe):
    pipe.detector = StubDetector(num_faces=2)
    boxes = [pipe.embed(picture(), face_index=index).boxes[0] for index in (0, 1)]
    assert boxes[1].left - boxes[0].left == pytest.approx(3, abs=1e-4)


@pytest.mark.parametrize(
    "portraits, options, error, message",
    [
        ([], {}, FsthError, "at least one portrait"),
        ([picture(), picture(NO_FACE)], {}, NoFaceError, "No face was found in portrait 2"),
        (picture(), {"face_index": 2}, FsthError, "Face 2 was asked for, but portrait 1 shows 1"),
        (picture(), {"face_index": -1}, FsthError, "Face -1 was asked for"),
        (picture(width=2 * SIZE), {"crop": False}, FsthError, "portrait 1 is 128 x 64"),
        ("no_such.jpg", {}, FsthError, "no_such.jpg"),
    ],
)
def test_bad_portraits_are_one_sentence(pipe, portraits, options, error, message):
    with pytest.raises(error, match=message):
        pipe.embed(portraits, **options)


# Driving.


def test_embed_once_drive_many(pipe):
    person = pipe.embed(picture())
    assert pipe.detector.detected == 1
    first = pipe(person, clip(0, 20, 40))
    pipe(person, clip(40, 0))
    assert pipe.detector.detected == 1 + 2 and pipe.detector.tracked == 2 + 1  # clips alone, one detection for each
    motion = pipe.read_driving(clip(0, 20, 40))
    detected = pipe.detector.detected
    assert np.array_equal(arrays(pipe(person, motion).frames[0]), arrays(first.frames[0]))
    assert pipe.detector.detected == detected


def test_a_person_with_a_generator_of_their_own_is_drawn_by_it(pipe):
    person = pipe.embed(picture())
    other = make_pipeline()
    with torch.no_grad():
        other.generator.head.bias += 0.2
    tuned = replace(person, generator=other.generator)
    drawn = [arrays(pipe(one, clip(0, 20)).frames[0]) for one in (person, tuned)]
    assert not np.array_equal(*drawn)
    assert np.array_equal(drawn[1], arrays(other(person, clip(0, 20)).frames[0]))


def test_paper_networks_draw_too():
    pipe = make_pipeline(source_skips=False)
    person = pipe.embed(picture())
    assert person.sources is None
    frames = arrays(pipe(person, clip(0, 40)).frames[0])
    assert frames.shape == (2, SIZE, SIZE, 3) and not np.array_equal(*frames)


def test_absolute_motion_keeps_the_drivers_landmarks(pipe, monkeypatch):
    driver = clip(0, 20, 40)
    drawn = spy_on_points(pipe, monkeypatch)
    pipe(driver[0], driver, motion="absolute", crop=False, smoothing=0)
    assert np.array_equal(drawn, [pipe.detector.points(frame) for frame in driver])


def test_relative_motion_starts_from_the_portrait(pipe, monkeypatch):
    drawn = spy_on_points(pipe, monkeypatch)
    portrait = picture(60)
    person = pipe.embed(portrait, crop=False)
    pipe(person, clip(0, 4, 8), motion="relative", reference_frame=1, crop=False, smoothing=0)
    # the driver moves a pixel a frame, and is smaller than the steps at which motion is softened
    middles = [points[FACE, 0].mean() for points in drawn]
    assert np.allclose(drawn[1], person.landmarks, atol=0.01)
    assert np.diff(middles) == pytest.approx([1, 1], abs=0.1)


def test_without_reference_the_frame_most_like_the_portrait_counts(pipe, monkeypatch):
    drawn = spy_on_points(pipe, monkeypatch)
    person, motion = pipe.embed(picture()), pipe.read_driving(clip(0, 20, 40))
    monkeypatch.setattr(motion_module, "pick_reference", lambda portrait, frames: 2)
    list(pipe.drive(person, motion))
    assert np.allclose(drawn[2], person.landmarks, atol=0.01) and not np.allclose(drawn[0], drawn[2], atol=1)


def test_motion_strength_of_nothing_is_a_still_portrait(pipe, monkeypatch):
    drawn = spy_on_points(pipe, monkeypatch)
    person = pipe.embed(picture())
    pipe(person, clip(0, 20, 40), motion_strength=0)
    assert np.allclose(drawn, person.landmarks, atol=0.01)


def test_smoothing_is_what_the_driver_is_drawn_with(pipe, monkeypatch):
    drawn = spy_on_points(pipe, monkeypatch)
    motion = pipe.read_driving(clip(0, 4, 0, 4, 0, 4))
    person = pipe.embed(picture())
    found = motion.landmarks.copy()
    trembles = []
    for smoothing in (0, 0.05):
        drawn.clear()
        pipe(person, motion, motion="absolute", smoothing=smoothing)
        trembles.append(np.abs(np.diff(drawn, n=2, axis=0)).mean())
        assert smoothing or np.array_equal(drawn, found)
    assert trembles[1] < 0.5 * trembles[0]
    assert all(map(np.array_equal, motion.landmarks, found))


@pytest.mark.parametrize("kind", ["array", "file", "pil", "several"])
def test_pasted_back_head_moves_in_its_photograph(pipe, tmp_path, kind):
    photograph = picture(height=151, width=121)
    path = tmp_path / "portrait.png"
    Image.fromarray(photograph).save(path)
    portraits = {"array": photograph, "file": path, "pil": Image.open(path), "several": [path, picture()]}[kind]
    result = tmp_path / "result.mp4"
    pipe(portraits, clip(0, 20), paste_back=True, output_path=result)
    (frame, _) = open_clip(result)
    assert frame.shape == (150, 120, 3)
    frames = arrays(pipe(portraits, clip(0, 20), paste_back=True, watermark=False).frames[0])
    box = pipe.embed(photograph).boxes[0]
    outside = np.ones((150, 120), bool)
    outside[: int(box.top + box.side) + 1, max(0, int(box.left)) : int(box.left + box.side) + 1] = False
    assert np.array_equal(frames[1][outside], photograph[:150, :120][outside])
    assert not np.array_equal(frames[1], frames[0])


def test_pasting_back_needs_the_photograph(pipe):
    with pytest.raises(FsthError, match="paste_back needs the photograph"):
        pipe(pipe.embed(picture()), clip(0, 20), paste_back=True)


def test_a_frame_without_face_holds_the_last_pose(pipe):
    output = pipe(picture(), clip(0, 20, NO_FACE, NO_FACE, 40))
    frames = arrays(output.frames[0])
    assert output.report.frames_without_face == (2, 3)
    assert np.array_equal(frames[1], frames[2]) and np.array_equal(frames[1], frames[3])
    assert not np.array_equal(frames[3], frames[4])


def test_num_frames_and_fps(pipe):
    output = pipe(picture(), clip(*range(0, 20, 2)), num_frames=4, fps=10)
    assert len(output.frames[0]) == output.report.num_frames == 4
    assert output.fps == output.report.fps == 10


def test_driving_box_fits_the_clip(pipe):
    motion = pipe.read_driving(clip(0, 20, 40))
    assert np.allclose(motion.box, crop_box(pipe.detector.points(picture(20))), atol=1e-3)  # the median place
    points = pipe.detector.points(picture(40))
    assert np.array_equal(motion.landmarks[2], to_crop(points, motion.box, SIZE))


@pytest.mark.parametrize(
    "driving, options, error, message",
    [
        (clip(NO_FACE, NO_FACE), {}, NoFaceError, "No face was found in the clip"),
        (clip(0, 1), {"driving_face_index": 1}, NoFaceError, "Face 1"),
        ([picture(width=2 * SIZE)] * 2, {"crop": False}, FsthError, "the clip is 128 x 64"),
        (clip(0, 1), {"reference_frame": 2}, FsthError, "reference_frame=2 is no frame"),
        (clip(0, NO_FACE), {"reference_frame": 1}, FsthError, "reference_frame=1 is no frame"),
        (clip(0, 1), {"motion": "sideways"}, FsthError, "motion must be 'relative' or 'absolute', not 'sideways'"),
        (clip(0, 1), {"motion_strength": 3}, FsthError, "motion_strength must be a number from 0 to 2, not 3"),
        (clip(0, 1), {"smoothing": -1}, FsthError, "smoothing, in seconds, must be a number from 0 to 1, not -1"),
        ([], {}, VideoError, "empty"),
        ("no_such.mp4", {}, FsthNotFoundError, "no_such.mp4"),
    ],
)
def test_bad_driving_is_one_sentence_and_writes_nothing(pipe, driving, options, error, message, tmp_path):
    with pytest.raises(error, match=message):
        pipe(picture(), driving, output_path=tmp_path / "result.mp4", **options)
    assert list(tmp_path.iterdir()) == []


# Sizes.


@pytest.mark.parametrize(
    "side, size, expected",
    [
        (600, None, 512),
        (600, 256, 256),
        (600, 320, 320),
        (600, 600, 600),
        (600, 1024, 600),
        (301, None, 300),
        (301, 512, 300),
        (1500, 1024, 1024),
        (1500, None, 512),
        (40, None, SIZE),
        (600, SIZE, SIZE),
    ],
)
def test_frames_are_as_large_as_is_wanted_and_the_portrait_is(pipe, side, size, expected):
    pipe.detector = ScaledDetector()
    person = pipe.embed(picture(height=side, width=side), crop=False)
    output = pipe(person, clip(0), size=size, crop=False, watermark=False)
    assert output.frames[0][0].size == (expected, expected)
    assert output.report.size == expected
    assert output.report.max_size == max(SIZE, min(side, 1024)) // 2 * 2
    drawn = pipe.generate_frame(pipe.generator, person, person.landmarks, size)
    assert drawn.shape == (expected, expected, 3)


def test_frames_of_all_sizes_are_the_same_picture(pipe):
    pipe.detector = ScaledDetector()
    person = pipe.embed(picture(height=512, width=512), crop=False)
    large, small = (pipe.generate_frame(pipe.generator, person, person.landmarks + 1, size) for size in (512, 256))
    reduced = np.asarray(Image.fromarray(large).resize((256, 256), Image.Resampling.BICUBIC))
    assert np.abs(reduced.astype(int) - small).mean() < 1.5 < small.std()


@pytest.mark.parametrize("size", [SIZE + 1, SIZE - 2, 1026, 0, -2])
def test_sizes_that_cannot_be_are_one_sentence(pipe, size, tmp_path):
    with pytest.raises(FsthError, match=f"size must be an even number from {SIZE} to 1024, not {size}\\.$"):
        pipe(picture(), clip(0), size=size, output_path=tmp_path / "result.mp4")
    assert list(tmp_path.iterdir()) == []


def test_paper_networks_have_one_size():
    pipe = make_pipeline(source_skips=False)
    pipe.detector = ScaledDetector()
    person = pipe.embed(picture(height=512, width=512), crop=False)
    for size in (None, SIZE):
        output = pipe(person, clip(0), size=size, crop=False)
        assert output.frames[0][0].size == (SIZE, SIZE) and output.report.size == SIZE
    with pytest.raises(FsthError, match=f"generates frames of {SIZE} x {SIZE} pixels alone"):
        pipe(person, clip(0), size=2 * SIZE)


# Streams.


def test_drive_draws_a_frame_when_it_is_asked_for(pipe, monkeypatch):
    person, motion = pipe.embed(picture()), pipe.read_driving(clip(0, 20, 40))
    drawn = spy_on_points(pipe, monkeypatch)
    frames = pipe.drive(person, motion)
    assert len(drawn) == 0
    for count in (1, 2):
        next(frames)
        assert len(drawn) == count


def test_streaming_holds_few_frames(pipe, tmp_path):
    alive = {"driver": [], "drawn": []}

    class Driver:
        """Makes each frame when it is read."""

        def __len__(self):
            return 12

        def __getitem__(self, index):
            if index >= len(self):
                raise IndexError
            frame = picture(4 * index)
            alive["driver"].append(weakref.ref(frame))
            assert sum(reference() is not None for reference in alive["driver"]) < 5
            return frame

    calls = []

    def callback(pipe, index, count, frame):
        calls.append((index, count, frame.shape))
        alive["drawn"].append(weakref.ref(frame))
        assert sum(reference() is not None for reference in alive["drawn"]) < 5

    path = tmp_path / "result.mp4"
    output = pipe(picture(), Driver(), output_path=path, callback_on_frame_end=callback)
    assert calls == [(index, 12, (SIZE, SIZE, 3)) for index in range(12)]
    assert output.frames is None and len(list(open_clip(path))) == 12
    with pytest.raises(FsthError, match="already been written"):
        output.save(tmp_path / "again.mp4")


def test_callback_that_gives_up_leaves_no_file(pipe, tmp_path):
    def callback(pipe, index, count, frame):
        if index == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe(picture(), clip(0, 20, 40), output_path=tmp_path / "result.mp4", callback_on_frame_end=callback)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("streamed", [True, False])
def test_written_clip_has_the_drivers_sound_and_says_what_it_is(pipe, tmp_path, streamed):
    driver = make_clip(tmp_path / "driver.mp4", [np.full((SIZE, SIZE, 3), 40, np.uint8)] * 50, sound="aac")
    path = tmp_path / "result.mp4"
    output = pipe(picture(), driver, output_path=path if streamed else None, num_frames=10)
    if not streamed:
        assert output.save(path) == 10
    assert output.audio_from == driver and output.report.sound
    with av.open(str(path)) as container:
        assert "AI-generated" in container.metadata["title"] and "AI-generated" in container.metadata["comment"]
        assert container.streams.audio[0].codec_context.name == "aac"
        assert container.duration / av.time_base == pytest.approx(10 / 25, abs=0.06)
        assert sum(1 for _ in container.decode(video=0)) == 10
