"""Pictures of any mode and colour profile in sRGB, which is what networks, clips and screens take."""

import io

import numpy as np
from PIL import Image, ImageCms


def to_srgb(image: Image.Image) -> Image.Image:
    """
    A picture in the colours that its embedded profile gives it: RGB, or RGBA where any of it is transparent. Without a
    profile it is taken for sRGB, and so it is with one that is damaged or of another kind than the picture.
    """
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    # no copy where none is needed: a picture may have 64 megapixels
    plain = image if image.mode == "RGB" and alpha is None else image.convert("RGB")
    if profile := image.info.get("icc_profile"):
        plain = _through(image, plain, profile) or plain
    if alpha is not None:
        plain.putalpha(alpha)
    return plain


def _through(image: Image.Image, plain: Image.Image, data: bytes) -> Image.Image | None:
    """The picture (`plain` being the same as RGB) as the profile shows it, or None where it changes nothing."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        space = profile.profile.xcolor_space.strip()
        if space == "RGB":
            pixels = plain
        elif space == "GRAY" and image.mode in ("1", "L", "LA", "La"):
            pixels = image.convert("L")
        elif space == image.mode.upper():  # CMYK, LAB
            pixels = image
        else:
            return None
        shown = ImageCms.profileToProfile(pixels, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except Exception:  # lcms raises nearly anything for damaged profiles; the picture is there all the same
        return None
    # what names sRGB itself differs by rounding
    if np.abs(np.subtract(shown, plain, dtype=np.int16)).max() <= 1:
        return None
    return shown
