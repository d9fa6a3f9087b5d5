import io
import json
import struct
import subprocess
import sys
import zlib

import numpy as np
import pillow_heif
import pytest
import torch
from PIL import Image

from fsth_hub.models.cropping import CropBox
from fsth_hub.models.errors import FsthError
from fsth_hub.models.image_loading import load_image
from fsth_hub.models.image_processing_fsth import FsthImageProcessor, denormalize, normalize
from fsth_hub.models.landmark_drawing import rasterize_landmarks
from fsth_hub.models.modeling_fsth import FsthEmbedder, FsthGenerator
from testing_utils.networks import SIZE, tiny
from testing_utils.paths import PORTRAIT


RED, BLUE, GREY = (230, 20, 20), (20, 20, 230), (120, 120, 120)


@pytest.fixture
def picture() -> np.ndarray:
    """Every corner differs, so that a turn or a flip is seen: red and blue above, grey and white below."""
    image = np.full((48, 64, 3), GREY, np.uint8)
    image[:24, :32], image[:24, 32:], image[36:, 48:] = RED, BLUE, 255
    return image


@pytest.fixture
def points() -> np.ndarray:
    """A face of 78 points in a picture of 200 x 160, 78 x 2 float32."""
    return np.random.default_rng(0).uniform((60, 40), (120, 110), (78, 2)).astype(np.float32)


def assert_close(image: np.ndarray, expected: np.ndarray, tolerance: float = 0):
    assert image.dtype == np.uint8 and image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).mean() <= tolerance


# load_image


@pytest.mark.parametrize("name, tolerance", [
    ("a.png", 0), ("a.bmp", 0), ("a.tiff", 0), ("a.gif", 1), ("a.jpg", 4), ("a.webp", 4), ("a.avif", 4), ("a.heic", 4),
])  # fmt: skip
def test_files(tmp_path, picture, name, tolerance):
    pillow_heif.register_heif_opener()  # for saving here; that loading needs no such line is tested below
    Image.fromarray(picture).save(tmp_path / name)
    assert_close(load_image(tmp_path / name), picture, tolerance)
    assert_close(load_image(str(tmp_path / name)), picture, tolerance)


def test_heic_needs_no_preparation(tmp_path, picture, monkeypatch):
    """Where Pillow has not heard of HEIC yet."""
    pillow_heif.from_pillow(Image.fromarray(picture)).save(tmp_path / "a.heic")
    Image.init()
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    monkeypatch.setattr(Image, "OPEN", {name: opener for name, opener in Image.OPEN.items() if name != "HEIF"})
    assert_close(load_image(tmp_path / "a.heic"), picture, 4)


@pytest.mark.parametrize("suffix", ["jpg", "heic"])
@pytest.mark.parametrize("orientation, turn", [(3, 2), (6, 1), (8, 3)])
def test_the_cameras_orientation_is_applied(tmp_path, picture, suffix, orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(picture, turn)))
    path = tmp_path / f"a.{suffix}"
    if suffix == "heic":
        pillow_heif.from_pillow(stored).save(path, exif=exif.tobytes())
    else:
        stored.save(path, exif=exif)
    assert_close(load_image(path), picture, 4)


def test_modes(tmp_path, picture):
    image = Image.fromarray(picture)
    grey = np.repeat(np.asarray(image.convert("L"))[..., None], 3, axis=2)
    image.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert_close(load_image(tmp_path / "cmyk.jpg"), picture, 4)
    assert_close(load_image(image.convert("L")), grey)
    assert_close(load_image(image.convert("P")), np.asarray(image.convert("P").convert("RGB")))
    assert_close(load_image(image.convert("YCbCr")), picture, 2)
    assert_close(load_image(image.convert("1")), np.asarray(image.convert("1").convert("RGB")))


@pytest.mark.parametrize("name, dtype", [("a.png", "<u2"), ("a.tiff", "<u2"), ("b.tiff", ">u2")])
def test_16_bits_are_scaled(tmp_path, picture, name, dtype):
    grey = picture[..., 0]
    deep = grey.astype(np.uint16) * 257
    mode = "I;16B" if dtype == ">u2" else "I;16"
    Image.frombytes(mode, (64, 48), deep.astype(dtype).tobytes()).save(tmp_path / name)
    assert_close(load_image(tmp_path / name), np.repeat(grey[..., None], 3, axis=2))


def test_what_is_transparent_becomes_white(tmp_path, picture):
    alpha = np.full((48, 64, 1), 255, np.uint8)
    alpha[:24, :32], alpha[:24, 32:] = 0, 128
    expected = picture.copy()
    expected[:24, :32] = 255
    expected[:24, 32:] = np.array(BLUE) * 128 / 255 + 127
    rgba = np.concatenate([picture, alpha], axis=2)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    for image in (tmp_path / "a.png", Image.fromarray(rgba), rgba):
        assert_close(load_image(image), expected, 0.5)
    palette = Image.fromarray(picture).quantize(8)
    palette.save(tmp_path / "p.png", transparency=palette.getpixel((0, 0)))
    assert_close(load_image(tmp_path / "p.png")[:24, :32], expected[:24, :32])
    assert_close(load_image(Image.fromarray(rgba).convert("LA"))[:24, :32], expected[:24, :32])


def test_first_picture_of_an_animation(tmp_path, picture):
    frames = [Image.fromarray(picture), Image.fromarray(255 - picture)]
    for name in ("a.gif", "a.webp", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert_close(load_image(tmp_path / name), picture, 4)


def test_arrays_and_tensors(picture):
    grey = np.repeat(picture[..., :1], 3, axis=2)
    same = [
        picture, picture.astype(np.uint16) * 257, picture / 255, (picture / 255).astype(np.float32),
        torch.from_numpy(picture).movedim(-1, 0), torch.from_numpy(picture / 255).movedim(-1, 0).requires_grad_(),
        np.asfortranarray(picture),
    ]  # fmt: skip
    for image in same:
        assert_close(load_image(image), picture)
        assert load_image(image).flags.c_contiguous
    assert_close(load_image(torch.from_numpy(picture / 255).movedim(-1, 0).bfloat16()), picture, 0.5)
    for image in (picture[..., 0], picture[..., :1], torch.from_numpy(picture[None, ..., 0].copy())):
        assert_close(load_image(image), grey)


def huge_png(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises width x height pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, data, b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_picture_is_one_sentence(tmp_path, picture):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:5000])
    (tmp_path / "large.png").write_bytes(huge_png(10_000, 8_000))
    (tmp_path / "bomb.png").write_bytes(huge_png(60_000, 60_000))
    (tmp_path / "text.jpg").write_text("not a picture " * 50)
    (tmp_path / "script.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    (tmp_path / "empty.png").touch()
    for name, reason in {
        "cut.png": "damaged", "large.png": "too large", "bomb.png": "too large", "text.jpg": "not a picture",
        "script.png": "not a picture", "empty.png": "not a picture", "missing.png": "no picture at", ".": "no picture",
    }.items():  # fmt: skip
        with pytest.raises(FsthError, match=reason) as caught:
            load_image(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    for absent in (tmp_path / "missing.png", tmp_path, "https://example.org/b.jpg"):
        with pytest.raises(OSError, match="no picture at"):
            load_image(absent)
    with pytest.raises(FsthError, match="download"):
        load_image("https://example.org/a.jpg")
    for image in (
        picture.astype(np.float32), picture / 127.5 - 1, np.full((4, 4, 3), np.nan), picture.astype(np.int64),
        picture[None], np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4, 3), np.uint8), torch.zeros(1, 3, 4, 4), None, [],
    ):  # fmt: skip
        with pytest.raises(FsthError):
            load_image(image)


# FsthImageProcessor


def test_every_value_survives_the_round_trip():
    ramp = np.arange(256, dtype=np.uint8).repeat(48).reshape(64, 64, 3)
    processor = FsthImageProcessor(size=64)
    images = processor.preprocess(ramp).images
    np.testing.assert_array_equal(load_image((ramp / 255).astype(np.float32) - 1e-6), ramp)
    assert images.shape == (1, 1, 3, 64, 64) and images.dtype == torch.float32
    assert (images.min(), images.max()) == (-1, 1)
    np.testing.assert_array_equal(processor.postprocess(images[0])[0], ramp)
    np.testing.assert_array_equal(np.asarray(processor.postprocess(images[0], output_type="pil")[0]), ramp)
    assert (denormalize(normalize(images)) - images).abs().max() < 1e-4


def test_postprocess_clamps_and_rounds():
    values = torch.tensor([-3.0, -1.0, 0.0, 0.999, 1.0, 7.0])
    images = values.repeat(2, 3, 1, 1).requires_grad_()  # 2 x 3 x 1 x 6
    for image in FsthImageProcessor().postprocess(images):
        assert image.dtype == np.uint8 and image.shape == (1, 6, 3)
        assert image[0, :, 1].tolist() == [0, 0, 128, 255, 255, 255]
    short = torch.linspace(-1, 1, 3000).reshape(1, 3, 10, 100).bfloat16()
    np.testing.assert_array_equal(*(FsthImageProcessor().postprocess(i)[0] for i in (short, short.float())))


def test_pictures_of_any_kind_make_one_batch(tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "a.png")
    processor = FsthImageProcessor(size=32)
    kinds = [tmp_path / "a.png", Image.fromarray(picture), picture, torch.from_numpy(picture / 255).movedim(-1, 0)]
    kinds += [(tmp_path / "a.png").read_bytes(), io.BytesIO((tmp_path / "a.png").read_bytes())]
    images = processor(kinds).images
    assert images.shape == (1, 6, 3, 32, 32)
    assert (images == images[0, 0]).all()
    corner = (images[0, 0, :, 2, 2] + 1) * 127.5
    np.testing.assert_allclose(corner, RED, atol=1)
    stacked = np.stack([picture, 255 - picture])
    batch = processor(stacked).images
    np.testing.assert_array_equal(batch[:, 0], images[:, 0])
    np.testing.assert_allclose((batch[0, 1, :, 2, 2] + 1) * 127.5, 255 - np.array(RED), atol=1)
    for people in (stacked[:, None], torch.from_numpy(stacked[:, None]).movedim(-1, 2), [[picture], [255 - picture]]):
        np.testing.assert_array_equal(processor(people).images, batch.movedim(0, 1))


def test_what_the_processor_gives_is_what_the_networks_take(picture, points):
    """Two people with three portraits each."""
    embedder, generator = tiny(FsthEmbedder).eval(), tiny(FsthGenerator).eval()
    processor = FsthImageProcessor(size=SIZE)
    people, landmarks = [[picture] * 3, [255 - picture] * 3], np.stack([[points / 3] * 3] * 2)
    inputs = processor(people, landmarks)
    assert list(inputs) == processor.model_input_names
    assert inputs.images.shape == inputs.landmark_images.shape == (2, 3, 3, SIZE, SIZE)
    output = embedder(**inputs)
    assert output.frame_embeddings.shape == (2, 3, 12)
    sources = generator.encode_sources(**processor(people, landmarks, return_landmarks=True))
    assert sources.images.shape == (2, 3, 3, SIZE, SIZE)
    alone = processor(people[1], landmarks[1])
    torch.testing.assert_close(embedder(**alone).embedding, output.embedding[1:])


def test_flags_are_honoured_as_in_transformers(points):
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    processor = FsthImageProcessor(size=32)
    plain = torch.from_numpy(image).movedim(-1, 0).float()
    flags = {"do_resize": False, "do_rescale": False, "do_normalize": False}
    assert torch.equal(processor(image, **flags).images[0, 0], plain)
    assert torch.equal(processor(image, **flags | {"do_rescale": True}).images[0, 0], plain / 255)
    assert torch.equal(processor(image, do_resize=False).images[0, 0], plain / 127.5 - 1)
    given = processor(image, points / 3, return_landmarks=True, **flags)
    np.testing.assert_array_equal(given.landmarks[0, 0], points / 3)
    assert given.landmark_images.shape == (1, 1, 3, 64, 64) and given.landmark_images.max() == 255
    assert FsthImageProcessor(size=32, do_rescale=False, do_normalize=False)(image).images.max() > 200
    with pytest.raises(FsthError, match="square and of one size"):
        processor([image, image[:32, :32]], do_resize=False)


def test_what_the_processor_cannot_take_is_one_sentence(picture, points):
    processor = FsthImageProcessor(size=32)
    for images, landmarks, options, words in [
        ([], None, {}, "at least one"),
        ([[picture], [picture] * 2], None, {}, "as many of each"),
        (picture, points[:68], {}, "landmarks must be 78 x 2"),
        (picture, None, {"return_landmarks": True}, "return_landmarks needs"),
        (picture[0, 0], None, {}, "must be H x W"),
        (picture.transpose(2, 0, 1), None, {}, "H x W x C where it is an array"),
        (torch.from_numpy(picture), None, {}, "C x H x W where it is a tensor"),
    ]:
        with pytest.raises(FsthError, match=words):
            processor(images, landmarks, **options)
    with pytest.raises(TypeError, match="unknown"):
        processor(picture, unknown=True)


def test_landmarks_are_drawn_and_follow_the_size(points):
    images = [np.zeros((160, 200, 3), np.uint8)] * 2
    processor = FsthImageProcessor(size=64)
    features = processor.preprocess(images, np.stack([points, points + 1]), return_landmarks=True)
    scale = np.array([64 / 200, 64 / 160])
    assert features.landmarks.shape == (1, 2, 78, 2) and features.landmarks.dtype == torch.float32
    np.testing.assert_allclose(features.landmarks[0, 1], (points + 1) * scale, atol=1e-4)
    drawings = features.landmark_images[0]
    assert drawings.shape == (2, 3, 64, 64) and drawings.dtype == torch.float32
    expected = rasterize_landmarks(points * scale, 64)
    assert expected.max() > 100
    np.testing.assert_array_equal(processor.postprocess(drawings)[0], expected)
    np.testing.assert_array_equal(processor.rasterize(features.landmarks[0].numpy()), drawings)
    np.testing.assert_array_equal(processor.rasterize(features.landmarks[0, 0].numpy()), drawings[:1])
    assert isinstance(processor.preprocess(images[:1], points, return_tensors="np").landmark_images, np.ndarray)


def test_unknown_points_are_not_drawn(points):
    points[68:] = np.nan
    processor = FsthImageProcessor(size=64)
    features = processor.preprocess(np.zeros((64, 64, 3), np.uint8), points[None], return_landmarks=True)
    assert features.landmarks.isnan().sum() == 20
    assert not features.landmark_images.isnan().any()


def test_pictures_and_landmarks_must_match(points):
    with pytest.raises(FsthError, match="2 pictures but landmarks for 1"):
        FsthImageProcessor(size=64).preprocess([np.zeros((64, 64, 3), np.uint8)] * 2, [points])


def test_crop_fits_what_preprocess_takes(points):
    image = np.zeros((160, 200, 3), np.uint8)
    x, y = points[30].round().astype(int)
    image[y - 2 : y + 3, x - 2 : x + 3] = 255  # a mark upon one point
    processor = FsthImageProcessor(size=64)
    crop, inside, box = processor.crop(image, points)
    assert crop.shape == (64, 64, 3) and inside.dtype == np.float32
    rows, columns = np.nonzero(crop[..., 0] > 127)
    centre = np.array([columns.mean(), rows.mean()]) + 0.5
    np.testing.assert_allclose(centre, inside[30], atol=1)
    features = processor.preprocess(crop, inside, return_landmarks=True)
    np.testing.assert_array_equal(features.landmarks[0, 0], inside)  # no second scaling
    whole = CropBox(20, 0, 160)
    crop, inside, box = processor.crop(image, points, whole)
    assert box == whole
    np.testing.assert_allclose(inside, (points - [20, 0]) * 0.4, atol=1e-4)
    rows, columns = np.nonzero(crop[..., 0] > 127)
    np.testing.assert_allclose([columns.mean() + 0.5, rows.mean() + 0.5], inside[30], atol=1)


def test_saves_and_loads(tmp_path, picture):
    FsthImageProcessor(size=64).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    flags = dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), True)
    assert saved == {"image_processor_type": "FsthImageProcessor", "size": {"height": 64, "width": 64}} | flags
    processor = FsthImageProcessor.from_pretrained(tmp_path)
    assert processor.side == 64
    np.testing.assert_array_equal(processor(picture).images, FsthImageProcessor(size=64)(picture).images)
    assert processor(picture, size=32).images.shape == (1, 1, 3, 32, 32)
    assert FsthImageProcessor().side == 256


@pytest.mark.parametrize("size", [{"height": 64, "width": 32}, {"shortest_edge": 64}])
def test_only_squares(size):
    with pytest.raises(FsthError, match="square"):
        FsthImageProcessor(size=size)


def test_files_are_looked_at_without_pytorch():
    code = (
        "import sys; import fsth_hub.media.reading; from fsth_hub.models.image_loading import load_image; "
        f"load_image({str(PORTRAIT)!r}); sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
