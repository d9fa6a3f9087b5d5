"""What the commands of `fsth` look at first: loading and tuning take long, so what can be known to fail fails before.

PyTorch is imported by those that need it, as in main.py.
"""

import json
import os
from pathlib import Path
from typing import Literal

from ..models.errors import FsthError, FsthNotFoundError
from ..saving import check_file


def check_inputs(*paths: Path) -> None:
    """Refuse files that do not exist."""
    for path in paths:
        if not path.is_file():
            raise FsthNotFoundError(f"There is no file {path}: check the path.")


def check_output(path: Path, suffixes: tuple[str, ...], inputs: list[Path]) -> None:
    """Refuse a file that could not be written, or that would replace one of the inputs."""
    if path.suffix.lower() not in suffixes:
        raise FsthError(f"{path.name} cannot be written: its name must end in {' or '.join(suffixes)}.")
    if os.path.realpath(path) in [os.path.realpath(other) for other in inputs]:
        raise FsthError(f"{path} would replace a file that is needed: give another name.")
    check_file(path)


def read_faces(option: str, text: str) -> int | list[int] | Literal["all"]:
    """A number of a face, or several (0,2), or "all", as an option of this name says it."""
    if text == "all":
        return text
    numbers = text.split(",")
    if not all(number.isascii() and number.isdigit() for number in numbers):
        raise FsthError(f"{option} must be the number of a face, several such as 0,2, or all, and not {text}.")
    return int(text) if len(numbers) == 1 else [int(number) for number in numbers]


def check_group(
    face: int | list[int] | Literal["all"],
    driving_face: int | list[int] | Literal["all"],
    portraits: list[Path],
    paste_back: bool,
    crop: bool,
) -> bool:
    """Whether several faces of a picture are to be animated; a sentence where that does not go with the rest."""
    if isinstance(face, int):
        if not isinstance(driving_face, int):
            text = "all" if driving_face == "all" else ",".join(map(str, driving_face))
            raise FsthError(f"--driving-face {text} is for several faces of a picture: give them by --face, too.")
        return False
    text = "all" if face == "all" else ",".join(map(str, face))
    if len(portraits) != 1:
        raise FsthError(f"--face {text} takes one photograph of the group, and nothing else.")
    if not paste_back or not crop:
        hint = "add --paste-back" if crop else "leave out --no-crop"
        raise FsthError(f"--face {text} puts several heads back into the photograph: {hint}.")
    return True


def check_size(size: int | None) -> None:
    """Refuse a size of frames that no model generates; how small one may be is the model's to say."""
    if size is None:
        return
    from ..pipelines.person import MAX_SIZE

    if size % 2 or not 0 < size <= MAX_SIZE:
        raise FsthError(f"--size must be an even number of pixels, at most {MAX_SIZE}, not {size}.")


def check_consent(given: bool) -> None:
    """Refuse to publish a person without the statement that they agreed."""
    if not given:
        from ..hub.model_card import CONSENT

        raise FsthError(f"Publishing needs --i-have-consent, by which you state that {CONSENT}.")


def check_photographs(paths: list[Path]) -> None:
    """Refuse files that are no pictures."""
    from ..models.image_loading import load_image

    for path in paths:
        load_image(path)


def model_of(identity: Path) -> tuple[str, str | None] | tuple[None, None]:
    """Hub id and revision of the model that an identity in a folder was tuned from, if it came from the hub."""
    try:
        config = json.loads((identity / "identity.json").read_text())
        name = config["base_model"]
        # a local model goes by its folder's name alone
        return (name, config.get("base_revision")) if "/" in name else (None, None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FsthError(f"{identity} holds no identity that can be read: make one with fsth fine-tune.") from error


def precision_of(identity: Path) -> str:
    """The numbers that an identity in a folder is saved in, as `--dtype` names them: loaded in others it changes."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(identity / "identity.safetensors", "pt") as file:
            return str(file.get_tensor("adain_parameters").dtype).removeprefix("torch.")
    except (OSError, SafetensorError) as error:
        raise FsthError(f"The identity in {identity} is damaged; make or fetch it again.") from error
