"""How long work takes on this machine, so that visitors know before it starts."""

import time
from typing import TYPE_CHECKING

from ..landmarks.expression import Expression
from ..models.image_loading import load_image
from ..pipelines.driving import DrivingMotion


if TYPE_CHECKING:
    from ..pipelines.pipeline_fsth import FsthPipeline
    from ..pipelines.pipeline_output import FsthReport


class Pace:
    """What was measured last; nothing is guessed before.

    Args:
        starting: Until the first frame, s.
        following, generating: Of a frame of a clip, and of one that is generated, s.
    """

    def __init__(self):
        self.starting = self.following = self.generating = None

    def measure(self, pipe: "FsthPipeline", portrait: str) -> None:
        """Generate a few frames of a portrait, of which the first makes everything ready; on the worker's thread."""
        image = load_image(portrait)
        person = pipe.embed(image)
        begun = time.monotonic()
        faces = pipe.detector.detect(image)
        self.starting = time.monotonic() - begun
        begun = time.monotonic()
        pipe.detector.track(image, faces[0])
        self.following = time.monotonic() - begun
        for _ in pipe.drive(person, DrivingMotion.from_expressions([Expression()] * 3)):
            self.generating, begun = time.monotonic() - begun, time.monotonic()

    def learn(self, report: "FsthReport") -> None:
        """Take over what a clip took."""
        self.starting = report.seconds["embed"]
        self.generating = report.seconds["frames"] / report.num_frames
        if report.seconds["landmarks"] > 0.01 * report.num_frames * self.generating:  # a motion needs no following
            self.following = report.seconds["landmarks"] / report.num_frames

    def estimate(self, frames: int, followed: bool) -> float | None:
        """Seconds for so many frames; None before anything was measured.

        Args:
            frames: How many.
            followed: Of a clip, in which the driver's face is followed first.
        """
        if self.generating is None:
            return None
        return self.starting + frames * (self.generating + (self.following if followed else 0))
