"""A clip among the portraits: the frames that serve best stand in its place."""

import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import gradio as gr

from ..media.reading import holds_clip
from ..models.errors import FsthError, FsthWarning
from .inputs import MAX_PORTRAITS, Portraits, existing, note, open_limited
from .studio import Studio


SHOTS = 8  # of a clip


def take_frames(studio: Studio, portraits: Portraits) -> Iterator[tuple]:
    """Frames of each clip in its place, with what they are there for; gives (portraits, notes).

    A clip that cannot be used goes, and the note says why.
    """
    clips = [path for path, _ in portraits or [] if Path(path).is_file() and holds_clip(path)]
    if not clips:
        yield gr.skip(), gr.skip()
        return
    yield gr.skip(), note("The clip is being looked through for the frames that serve best as portraits.")
    taken, said = [], []
    with tempfile.TemporaryDirectory(prefix="fsth-") as folder:
        for path, caption in portraits:
            if path not in clips:
                taken.append((path, caption))
                continue
            shots = min(SHOTS, MAX_PORTRAITS - len(portraits) + len(clips))
            try:
                frames, words = studio.worker.submit(_pick, studio, path, max(1, shots // len(clips))).result()
            except FsthError as error:
                said.append(str(error))
                continue
            said += words
            for index, frame in enumerate(frames, start=1):
                file = Path(folder, f"{Path(path).stem}-{index}.png")
                frame.image.save(file)
                taken.append((str(file), f"{frame.time:.1f} s: {frame.why}"))
        yield taken or None, note(" ".join(said))


def _pick(studio: Studio, path: str, shots: int) -> tuple[list, list[str]]:
    """On the worker's thread: the frames, and what the visitor should know of them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FsthWarning)
        frames = studio.pipeline().pick_portraits(open_limited(existing(path)), shots)
    return frames, [str(warning.message) for warning in caught if warning.category is FsthWarning]
