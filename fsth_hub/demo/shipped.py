"""What comes with the package for those who have nothing at hand: portraits, and clips made of them beforehand."""

from dataclasses import dataclass
from pathlib import Path


EXAMPLES = Path(__file__).parents[1] / "examples"
THUMBNAILS, CLIPS = EXAMPLES / "motions", EXAMPLES / "clips"
OPENING, OPENING_PORTRAIT = EXAMPLES / "opening.mp4", "mona_lisa"


@dataclass(frozen=True)
class ShippedPortrait:
    """A painting.

    Args:
        name: Of its file.
        title, painter, year: For people.
    """

    name: str
    title: str
    painter: str
    year: str


PORTRAITS = (
    ShippedPortrait("mona_lisa", "Mona Lisa", "Leonardo da Vinci", "about 1503"),
    ShippedPortrait("girl_with_a_pearl_earring", "Girl with a Pearl Earring", "Johannes Vermeer", "about 1665"),
    ShippedPortrait("lady_with_an_ermine", "Lady with an Ermine", "Leonardo da Vinci", "about 1490"),
    ShippedPortrait("la_velata", "La Velata", "Raphael", "about 1516"),
)
# What a click shows at once: each portrait with the first motion, and the first portrait with some others.
FIRST_PORTRAIT, FIRST_MOTION = "mona_lisa", "nod"
PAIRS = (
    *((portrait.name, FIRST_MOTION) for portrait in PORTRAITS),
    *((FIRST_PORTRAIT, motion) for motion in ("smile", "blink")),
)


def portrait_path(name: str) -> Path:
    return EXAMPLES / "portraits" / f"{name}.jpg"


def clip_of(portrait: str, motion: str) -> Path:
    """Where the clip of a pair lies, if it is one of `PAIRS`."""
    return CLIPS / f"{portrait}-{motion}.mp4"
