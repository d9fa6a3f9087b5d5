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


def check_group(
    face: int | list[int] | Literal["all"],
    driving_face: int | list[int] | Literal["all"],
    portraits: list[Path],
    identities: list[str],
    paste_back: bool,
    crop: bool,
) -> bool:
    """Whether people are to be animated within a photograph, several faces of it or who was fine-tuned; a sentence
    where that does not go with the rest."""
    if not portraits and not identities:
        raise FsthError("Give either portraits or the --identity of a fine-tuned person.")
    if isinstance(face, int) and not isinstance(driving_face, int):
        text = "all" if driving_face == "all" else ",".join(map(str, driving_face))
        raise FsthError(f"--driving-face {text} is for several faces of a picture: give them by --face, too.")
    if not portraits:
        if len(identities) > 1:
            raise FsthError("Several people move in a photograph of them: give it, and --paste-back.")
        if face != 0:
            raise FsthError("--face chooses a face of portraits: leave it out where only an --identity is given.")
        if paste_back:
            raise FsthError("--paste-back needs the photograph to put the head back into: give it, too.")
        return False
    if isinstance(face, int) and not identities:
        return False
    text = "all" if face == "all" else str(face) if isinstance(face, int) else ",".join(map(str, face))
    option = f"--face {text}" if not isinstance(face, int) else "--identity"
    if len(portraits) != 1:
        raise FsthError(f"{option} takes one photograph of the group, and nothing else.")
    if not paste_back or not crop:
        hint = "add --paste-back" if crop else "leave out --no-crop"
        raise FsthError(f"{option} puts heads back into the photograph: {hint}.")
    if face != "all" and len(identities) > (count := len(face) if isinstance(face, list) else 1):
        raise FsthError(f"There are {len(identities)} people for {count} faces: name more of them by --face.")
    return True


def check_size(size: int | None) -> None:
    """Refuse a size of frames that no model generates; how small one may be is the model's to say."""
    if size is None:
        return
    from ..pipelines.names import MAX_SIZE

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
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise FsthError(f"{identity} holds no identity that can be read: make one with fsth fine-tune.") from error


def precision_of(identity: Path) -> str:
    """The numbers that an identity in a folder is saved in, as `--dtype` names them: loaded in others it changes."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(identity / "identity.safetensors", "pt") as file:
            return str(file.get_tensor("adain_parameters").dtype).removeprefix("torch.")
    except (OSError, SafetensorError) as error:
        raise FsthError(f"The identity in {identity} is damaged; make or fetch it again.") from error
