"""Sound inputs of every format, small, of which the fuzzer makes damaged ones; and the pipeline that takes them."""

import csv
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms
from pillow_heif import register_heif_opener

from fsth_hub.landmarks.arkit import SHAPES
from fsth_hub.landmarks.expression import Expression
from fsth_hub.media.expression_files import write_expressions
from fsth_hub.pipelines.driving import DrivingMotion
from fsth_hub.pipelines.pipeline_fsth import FsthPipeline
from testing_utils.clips import make_clip
from testing_utils.pipelines import ScaledDetector, make_pipeline, picture, tuned_once


PICTURES = ("jpeg", "png", "webp", "heic", "avif")
CLIPS = ("mp4", "mov", "webm", "gif")
MOTIONS = ("motion", "expressions", "livelink", "cues", "tsv")
FORMATS = (*PICTURES, *CLIPS, "safetensors", *MOTIONS, "identity_json", "identity", "model", "zip")


def fuzzed_pipeline() -> FsthPipeline:
    pipe = make_pipeline()
    pipe.detector, pipe.engine = ScaledDetector(), "torch"  # others' threads do not live on in a forked child
    return pipe


def make_seeds(folder: Path, pipe: FsthPipeline) -> dict[str, list[Path]]:
    """Write sound inputs of every format into an empty folder; their files and folders by format."""
    register_heif_opener()
    makers: dict[str, Callable[[Path, FsthPipeline], list[Path]]] = {
        **dict.fromkeys(PICTURES, _pictures),
        **dict.fromkeys(CLIPS, _clips),
        "safetensors": _identities,
        "motion": _motions,
        "expressions": _expressions,
        "livelink": _live_link,
        "cues": _cues,
        "tsv": _tsv,
        "identity_json": _identities,
        "identity": _identities,
        "model": _models,
        "zip": _zips,
    }
    seeds = {}
    for name, make in makers.items():
        place = folder / name
        place.mkdir()
        seeds[name] = make(place, pipe)
    return seeds


def _pictures(place: Path, pipe: FsthPipeline) -> list[Path]:
    name, image = place.name, Image.fromarray(picture(40, 96, 80))
    exif = image.getexif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    kind = {"heic": "HEIF"}.get(name, name.upper())
    plain, marked = place / f"a.{name}", place / f"b.{name}"
    image.save(plain, kind)
    image.save(marked, kind, exif=exif.tobytes(), icc_profile=_profile())
    others = []
    if name == "jpeg":
        others = [(image, {"progressive": True}), (image.convert("CMYK"), {}), (image.convert("L"), {})]
    elif name == "png":
        deep = Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257)
        others = [(image.convert("P"), {}), (image.convert("RGBA"), {}), (deep, {})]
    elif name in ("webp", "avif"):
        frames = [Image.fromarray(picture(shift, 96, 80)) for shift in (10, 20)]
        others = [(image.convert("RGBA"), {}), (image, {"save_all": True, "append_images": frames})]
    for number, (each, options) in enumerate(others):
        each.save(place / f"c{number}.{name}", kind, **options)
    return sorted(place.iterdir())


def _profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _clips(place: Path, pipe: FsthPipeline) -> list[Path]:
    name, frames = place.name, [picture(4 * step) for step in range(5)]
    if name == "gif":
        stills = [Image.fromarray(frame) for frame in frames]
        stills[0].save(place / "a.gif", save_all=True, append_images=stills[1:], duration=40)
        return [place / "a.gif"]
    if name == "webm":
        options = [{"codec": "libvpx", "sound": "libopus"}, {"codec": "libvpx-vp9", "sound": "libopus"}]
    else:
        turned = {"sound": "aac", "rotation": 90}
        options = [{"sound": "aac"}, turned, {"sound": "aac", "options": {"movflags": "faststart+frag_keyframe"}}]
        options += [{"times_ms": [0, 40, 95, 130, 800], "sound": "mp3"}]
    clips = [make_clip(place / f"{number}.{name}", frames, **each) for number, each in enumerate(options)]
    if name == "mp4":  # signed, if c2pa is there
        pipe(picture(), frames[:2], output_path=place / "signed.mp4")
        clips.append(place / "signed.mp4")
    return clips


def _identities(place: Path, pipe: FsthPipeline) -> list[Path]:
    folders = [place / method for method in ("full", "lora")]
    for folder in folders:
        tuned_once(pipe, folder.name).save_pretrained(folder)
    return folders


def _models(place: Path, pipe: FsthPipeline) -> list[Path]:
    pipe.save_pretrained(place / "model")
    return [place / "model"]


def _zips(place: Path, pipe: FsthPipeline) -> list[Path]:
    for folder in _identities(place, pipe):
        with zipfile.ZipFile(place / f"{folder.name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(folder.rglob("*")):
                archive.write(file, file.relative_to(folder))
        shutil.rmtree(folder)
    return sorted(place.iterdir())


def _motions(place: Path, pipe: FsthPipeline) -> list[Path]:
    made = DrivingMotion.from_keyframes([(0, Expression()), (0.2, Expression(smile=1))])
    made.save(place / "a.motion.safetensors", name="A smile", licence="CC0-1.0")
    sound = make_clip(place / "sound.mp4", [picture()] * 5, sound="aac")
    filmed = pipe.read_driving(sound)
    filmed.save(place / "b.motion.safetensors", keep_face_shape=True, sound=True)
    sound.unlink()
    return sorted(place.iterdir())


def _expressions(place: Path, pipe: FsthPipeline) -> list[Path]:
    path = place / "a.expressions.json"
    write_expressions(path, [(0, Expression()), (0.1, Expression(smile=0.5, yaw=8)), (0.2, Expression())], loop=True)
    return [path]


def _live_link(place: Path, pipe: FsthPipeline) -> list[Path]:
    path = place / "a.csv"
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["Timecode", "BlendShapeCount", *SHAPES, "HeadYaw", "HeadPitch", "HeadRoll"])
        for index in range(8):
            values = [0.1 * index] * (len(SHAPES) + 3)
            rows.writerow([f"12:27:50:{2 * index:02d}.000", 61, *values])
    return [path]


def _cues(place: Path, pipe: FsthPipeline) -> list[Path]:
    rhubarb = [{"start": i / 10, "end": (i + 1) / 10, "value": value} for i, value in enumerate("XABC")]
    (place / "a.json").write_text(json.dumps({"metadata": {"duration": 0.4}, "mouthCues": rhubarb}))
    visemes = {"visemes": ["sil", "PP", "aa"], "vtimes": [0, 100, 200], "vdurations": [100, 100, 100]}
    (place / "b.json").write_text(json.dumps(visemes))
    return sorted(place.iterdir())


def _tsv(place: Path, pipe: FsthPipeline) -> list[Path]:
    (place / "a.tsv").write_text("0.00\tX\n0.10\tA\n0.20\tD\n0.30\tX\n")
    return [place / "a.tsv"]
