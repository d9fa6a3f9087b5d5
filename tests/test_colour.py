"""Pictures of every mode and profile come out in sRGB."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from fsth_hub.models import image_loading
from fsth_hub.models.errors import FsthError
from fsth_hub.models.image_loading import load_image
from testing_utils.profiles import SRGB_PRIMARIES, cmyk_profile, grey_profile, rgb_profile


RED, BLUE = (230, 20, 20), (20, 20, 230)
# red and blue are exchanged in it: who ignores it sees it
EXCHANGED = rgb_profile(SRGB_PRIMARIES[::-1])


def flat(colour, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (24, 16), colour)


def colour_of(image) -> np.ndarray:
    loaded = load_image(image)
    assert loaded.dtype == np.uint8 and loaded.shape == (16, 24, 3)
    return loaded[8, 12].astype(int)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff", "avif"])
def test_an_embedded_profile_is_applied(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    flat(RED).save(path, icc_profile=EXCHANGED, quality=95)
    np.testing.assert_allclose(colour_of(path), BLUE, atol=12)
    np.testing.assert_allclose(colour_of(Image.open(path)), BLUE, atol=12)
    flat(RED).save(path, quality=95)
    np.testing.assert_allclose(colour_of(path), RED, atol=6)


def test_a_wider_space_is_made_more_vivid(tmp_path):
    """What Display P3 writes as (200, 60, 60) is redder than that in sRGB, to which its value is computed by hand."""
    primaries = (0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841)
    flat((200, 60, 60)).save(tmp_path / "p3.png", icc_profile=rgb_profile(primaries))
    linear = (np.array([200, 60, 60]) / 255) ** 2.2
    expected = np.linalg.inv(np.array(SRGB_PRIMARIES).T) @ np.array(primaries).T @ linear
    curve = np.where(expected > 0.0031308, 1.055 * expected.clip(1e-9) ** (1 / 2.4) - 0.055, 12.92 * expected)
    np.testing.assert_allclose(colour_of(tmp_path / "p3.png"), (255 * curve).clip(0, 255), atol=2)


def test_pictures_in_srgb_stay_as_they_are(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=profile)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), pixels)


def test_grey_palette_and_transparent_pictures_have_profiles_too(tmp_path):
    encoded = round(255 * (1.055 * (100 / 255) ** (1 / 2.4) - 0.055))  # 100 is a share of light where gamma is 1
    for mode, colour in (("L", 100), ("LA", (100, 255))):
        flat(colour, mode).save(tmp_path / "grey.png", icc_profile=grey_profile(1.0))
        np.testing.assert_allclose(colour_of(tmp_path / "grey.png"), [encoded] * 3, atol=1)
    for mode in ("I;16", "I;16B"):
        deep = np.full((16, 24), 100 * 257, ">u2" if mode == "I;16B" else "<u2")
        Image.frombytes(mode, (24, 16), deep.tobytes()).save(tmp_path / "deep.tiff", icc_profile=grey_profile(1.0))
        np.testing.assert_allclose(colour_of(tmp_path / "deep.tiff"), [encoded] * 3, atol=1)
    flat(RED).quantize(4).save(tmp_path / "palette.png", icc_profile=EXCHANGED)
    np.testing.assert_allclose(colour_of(tmp_path / "palette.png"), BLUE, atol=8)
    flat((*RED, 0), "RGBA").save(tmp_path / "clear.png", icc_profile=EXCHANGED)
    assert colour_of(tmp_path / "clear.png").tolist() == [255] * 3
    flat((*RED, 255), "RGBA").save(tmp_path / "opaque.png", icc_profile=EXCHANGED)
    np.testing.assert_allclose(colour_of(tmp_path / "opaque.png"), BLUE, atol=8)


def test_cmyk_and_lab(tmp_path):
    """The inks' own colours count where the profile tells them: here cyan is a printer's red."""
    inks = flat((255, 0, 0, 0), "CMYK")
    inks.save(tmp_path / "plain.tiff")
    assert colour_of(tmp_path / "plain.tiff").tolist() == [0, 255, 255]
    profile = cmyk_profile(lambda c, m, y, k: np.multiply(1 - k, (100 - 50 * c, 70 * c, 50 * c)))
    for suffix in ("tiff", "jpg"):
        inks.save(tmp_path / f"profile.{suffix}", icc_profile=profile)
        red, green, blue = colour_of(tmp_path / f"profile.{suffix}")
        assert red > 200 and max(green, blue) < 90
    lab = Image.merge("LAB", [Image.new("L", (24, 16), value) for value in (136, 208, 195)])
    lab.save(tmp_path / "lab.tiff")
    red, green, blue = colour_of(tmp_path / "lab.tiff")
    assert red > 200 and max(green, blue) < 90


@pytest.mark.parametrize("broken", ["noise", "cut", "empty", "of another kind"])
def test_a_profile_that_cannot_be_used_is_ignored(tmp_path, broken):
    profiles = {"noise": bytes(range(256)), "cut": EXCHANGED[:200], "empty": b"\0", "of another kind": grey_profile(1)}
    for suffix in ("png", "jpg", "tiff"):
        flat(RED).save(tmp_path / f"a.{suffix}", icc_profile=profiles[broken], quality=95)
        np.testing.assert_allclose(colour_of(tmp_path / f"a.{suffix}"), RED, atol=6)


def test_deep_colours_are_scaled(tmp_path):
    """16 bits for each of red, green, blue and alpha, as a PNG keeps them: made by hand, since Pillow writes none."""
    for channels, kind in ((3, 2), (4, 6), (2, 4)):
        pixel = np.array([[*RED, 255], [200, 255]][channels == 2][:channels], np.uint16) * 257
        rows = b"".join(b"\0" + np.tile(pixel, 24).astype(">u2").tobytes() for _ in range(16))
        file = io.BytesIO(PngImagePlugin._MAGIC)
        file.seek(0, 2)
        PngImagePlugin.putchunk(file, b"IHDR", *(bytes([0, 0, 0, n]) for n in (24, 16)), bytes([16, kind, 0, 0, 0]))
        PngImagePlugin.putchunk(file, b"IDAT", zlib.compress(rows))
        PngImagePlugin.putchunk(file, b"IEND")
        expected = [200] * 3 if channels == 2 else RED
        np.testing.assert_allclose(colour_of(file.getvalue()), expected, atol=1)


def test_large_profiles_and_texts_are_read_within_a_bound(tmp_path, monkeypatch):
    filling = np.random.default_rng(0).bytes(3 * 2**20)
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", filling.hex(), zip=True)
    flat(RED).save(tmp_path / "text.png", pnginfo=text)
    flat(RED).save(tmp_path / "profile.png", icc_profile=EXCHANGED + filling)
    np.testing.assert_allclose(colour_of(tmp_path / "text.png"), RED)
    assert load_image(tmp_path / "profile.png").shape == (16, 24, 3)
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", 2**20)
    monkeypatch.setattr(image_loading, "MAX_PNG_TEXT", 2 * 2**20)
    for name in ("text.png", "profile.png"):
        with pytest.raises(FsthError, match=f"{name} carries a text or colour profile of more than 2 MB"):
            load_image(tmp_path / name)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_eight_orientations(tmp_path, orientation):
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :12], upright[:8, 12:], upright[8:, :12] = RED, BLUE, 128
    # what a camera stores: turned or mirrored so that the tag leads back
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1), 7: upright[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(upright, 3),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), upright)


def test_pictures_are_read_without_copies_and_those_given_stay_as_they_are(monkeypatch):
    """A copy of 64 megapixels takes a quarter of a second."""
    copies, copy = [], Image.Image.copy
    monkeypatch.setattr(Image.Image, "copy", lambda image: copies.append(image) or copy(image))
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "png")
    assert load_image(file.getvalue())[0, 0].tolist() == [255, 0, 0] and not copies
    given = Image.new("RGB", (8, 8), "red")
    given.info["transparency"] = (255, 0, 0)  # what is red is transparent
    assert load_image(given)[0, 0].tolist() == [255, 255, 255]
    assert given.mode == "RGB" and given.getpixel((0, 0)) == (255, 0, 0)


def test_damaged_exif_is_ignored(tmp_path):
    flat(RED).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01")
    np.testing.assert_array_equal(colour_of(tmp_path / "a.png"), RED)


@pytest.mark.parametrize("written", ["png", "jpg", "webp", "gif", "tiff", "bmp", "avif", "heic"])
def test_the_content_decides_and_not_the_name(tmp_path, written):
    import pillow_heif

    pillow_heif.register_heif_opener()
    flat(RED).save(tmp_path / f"a.{written}", quality=95)
    for name in ("b.jpg", "b.png", "b.heic", "b.mp4", "b"):
        (tmp_path / f"a.{written}").rename(tmp_path / name)
        np.testing.assert_allclose(colour_of(tmp_path / name), RED, atol=8)
        (tmp_path / name).rename(tmp_path / f"a.{written}")
