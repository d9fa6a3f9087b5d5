"""What people do with a file, in a child process that may write into one folder alone."""

import os
import sys
import warnings
from pathlib import Path

from fsth_hub.demo.people import unpack
from fsth_hub.media.reading import open_clip, read_metadata
from fsth_hub.media.sound import read_sound
from fsth_hub.models.errors import FsthError
from fsth_hub.pipelines.driving import DrivingMotion
from fsth_hub.pipelines.pipeline_fsth import FsthPipeline
from fsth_hub.provenance.inspection import inspect
from testing_utils.pipelines import clip, picture

from .seeds import CLIPS, MOTIONS, PICTURES


FRAMES = 2


class SeveralWays:
    """Goes on after a refusal, for a file is put to several uses; the last refusal is told."""

    def __init__(self):
        self.refusals: list[str] = []

    def __call__(self, use, *args, **kwargs):
        try:
            return use(*args, **kwargs)
        except FsthError as error:
            self.refusals.append(str(error))


def use(kind: str, path: Path, pipe: FsthPipeline, out: Path) -> list[str]:
    """Put a file or folder to all the uses that its format has; the sentences with which it was refused."""
    attempt = SeveralWays()
    if kind in PICTURES:
        attempt(pipe, path, clip(0, 20), paste_back=True, output_path=out / "result.mp4", credentials=False)
        attempt(pipe.embed, path.read_bytes())
        attempt(inspect, path)
        if kind in ("png", "webp"):  # they may move
            attempt(lambda: sum(1 for _ in open_clip(path, max_frames=100, allow_still=True)))
    elif kind in CLIPS:
        options = {"num_frames": FRAMES, "credentials": False}
        attempt(pipe, picture(), path, output_path=out / "result.mp4", **options)
        attempt(lambda: sum(1 for _ in open_clip(path, max_frames=500, allow_still=True)))
        if kind != "gif":
            attempt(pipe, picture(), clip(0, 20), sound=path, output_path=out / "dubbed.mp4", **options)
            attempt(read_sound, path, 10)
        attempt(read_metadata, path)
        attempt(inspect, path)
    elif kind in MOTIONS:
        motion = attempt(DrivingMotion.load, path)
        if motion is not None:
            options = {"num_frames": FRAMES, "credentials": False}
            attempt(pipe, picture(), motion, output_path=out / "result.mp4", **options)
            attempt(motion.save, out / "again.motion.safetensors")
            attempt(lambda: motion.looped().first(FRAMES))
    elif kind == "model":
        loaded = attempt(FsthPipeline.from_pretrained, path, engine="torch")
        if loaded is not None:
            loaded.set_progress_bar_config(disable=True)
            loaded.detector = pipe.detector
            attempt(loaded, picture(), clip(0), credentials=False)
            attempt(loaded.save_pretrained, out / "again")
    else:
        if kind == "zip":
            path = attempt(unpack, path, out / "person")
        person = None if path is None else attempt(pipe.load_identity, path)
        if person is not None:
            attempt(pipe, person, clip(0), output_path=out / "result.mp4", credentials=False)
            attempt(person.save_pretrained, out / "again")
    return attempt.refusals


def confine(*allowed: Path) -> None:
    """From now on, for good, writing anywhere else in this process ends it with an error that nobody catches."""
    places = tuple(os.path.realpath(place) for place in allowed)

    def is_allowed(path) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return True  # a descriptor
        path = os.path.realpath(os.fsdecode(path))
        return path.startswith("/dev/") or any(path == place or path.startswith(place + os.sep) for place in places)

    def watch(event: str, args: tuple) -> None:
        written = ()
        if event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            written = args[:1]
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod"):
            written = args[:1]
        elif event in ("os.rename", "os.link", "os.symlink"):
            written = args[:2] if event == "os.rename" else args[1:2]
        elif event in ("subprocess.Popen", "os.exec", "os.system", "socket.connect", "pickle.find_class"):
            _say(f"{event} {args[:2]}")
        for path in written:
            # what is removed relative to a descriptor (shutil.rmtree) was opened by a path
            if not (event in ("os.remove", "os.rmdir") and args[-1] not in (-1, None)) and not is_allowed(path):
                _say(f"{event} {path}")

    sys.addaudithook(watch)
    warnings.simplefilter("ignore")


def _say(what: str) -> None:
    sys.stderr.write(f"OUTSIDE: {what}\n")
    sys.stderr.flush()
    os._exit(70)
