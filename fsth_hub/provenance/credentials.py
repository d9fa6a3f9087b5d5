"""Content Credentials (C2PA): generated output says, signed, what it is and what it was made from.

c2pa-python signs and verifies (the extra `credentials`); nothing is asked of the network: no time stamp, no remote
manifest, no revocation list.
"""

import hashlib
import io
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from .. import __version__
from ..media.containers import is_file, open_binary
from ..models.errors import FsthError, FsthWarning
from ..saving import reason, whole_file
from .signing_key import NoKeyError, SigningKey, has_key, signing_key
from .watermark import WATERMARK


# The fields that a generated clip carries in its container, whoever passes it on.
OUTPUT_METADATA = {"title": f"{WATERMARK} talking head", "comment": f"{WATERMARK} with fsth_hub; not a recording."}
PICTURE_METADATA = OUTPUT_METADATA | {"title": f"{WATERMARK} portrait", "comment": f"{WATERMARK} with fsth_hub."}

DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
# Parameters of the action c2pa.created; in files that exist, so no names of modules.
MODEL, IDENTITY = "fsth_hub.model", "fsth_hub.identity"


@dataclass(frozen=True)
class Origin:
    """What Content Credentials tell of how a file came about.

    Args:
        model: Name of the model.
        identity: Name of the fine-tuned identity.
        ingredients: (title, SHA-256 of the file in hex or None) of what went in. No file names, which may be a
            person's, and no thumbnails: a face is personal.
    """

    model: str
    identity: str | None = None
    ingredients: tuple[tuple[str, str | None], ...] = ()

    @classmethod
    def of(cls, model: str, person, portraits: list | None, driver: tuple[str, object] | None = None) -> "Origin":
        """
        Of a person; portraits (`None` for a person who was read before) and the driver, a title and a source, that
        are files get their SHA-256 noted.
        """
        portraits = person.boxes if portraits is None else portraits
        titles = ["portrait"] if len(portraits) == 1 else [f"portrait {n}" for n in range(1, len(portraits) + 1)]
        sources = [*zip(titles, portraits, strict=True), *([driver] if driver else [])]
        ingredients = tuple((title, _sha256(source)) for title, source in sources)
        return cls(model, printable(getattr(person, "name", None)), ingredients)

    def manifest(self) -> dict:
        """The C2PA manifest that claims this, to be signed."""
        agent = {"name": "fsth_hub", "version": __version__}
        parameters = {MODEL: self.model} if self.identity is None else {MODEL: self.model, IDENTITY: self.identity}
        ingredients = []
        for title, digest in self.ingredients:
            ingredients.append({"title": title, "label": title, "relationship": "inputTo"})
            if digest is not None:
                ingredients[-1]["instance_id"] = f"sha256:{digest}"
        created = {
            "action": "c2pa.created",
            "when": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "digitalSourceType": DIGITAL_SOURCE_TYPE,
            "softwareAgent": agent,
            "parameters": parameters | {"ingredientIds": [title for title, _ in self.ingredients]},
        }
        return {
            "claim_generator_info": [agent],
            "title": OUTPUT_METADATA["title"],
            "ingredients": ingredients,
            "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [created]}}],
        }


def _sha256(source) -> str | None:
    if not is_file(source):
        return None
    with open_binary(source) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sign(path: str | os.PathLike, origin: Origin) -> bool:
    """
    Write Content Credentials into a finished file (mp4, gif, png, jpg, webp): whole, or the file stays as it was.

    The key is that of `FSTH_C2PA_CERT` and `FSTH_C2PA_KEY` (PEM files: certificates from the signer's own upwards, and
    the private key); without them one that this installation makes for itself on first use. It proves that a file
    has not been changed since, but nobody vouches for who made it: elsewhere its signer reads as unknown.

    Returns:
        Whether the file was signed; it is not where c2pa-python is not installed, nor, with an `FsthWarning`, where no
        key can be kept.

    Raises:
        FsthError: The key cannot be used or made, or the file cannot be signed.
    """
    c2pa = load_c2pa()
    if c2pa is None:
        return False
    path = Path(path)
    try:
        key = signing_key()
    except NoKeyError as error:
        _warn_unsigned(error)
        return False
    # In a thread: c2pa reads and writes in callbacks, where an interrupt of the main thread would be lost.
    with whole_file(path) as signed, ThreadPoolExecutor(1) as thread:
        try:
            thread.submit(_write_signed, c2pa, key, path, signed, origin).result()
        except (c2pa.C2paError, OSError) as error:
            raise FsthError(f"{path.name} cannot be signed: {printable(reason(error))}.") from error
    return True


class _Disk(io.FileIO):
    """Keeps the error of which c2pa only says that there was one."""

    error: OSError | None = None

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


def _write_signed(c2pa, key: SigningKey, path: Path, signed: Path, origin: Origin) -> None:
    disk, settings = _Disk(signed, "w+"), {"builder": {"thumbnail": {"enabled": False}}}
    try:
        with io.BufferedRandom(disk) as target, path.open("rb") as source, _signer(c2pa, key) as signer:
            with c2pa.Context.from_dict(settings) as context:
                with c2pa.Builder(origin.manifest(), context=context) as builder:
                    builder.sign(signer, path.suffix[1:].lower(), source, target)
    except c2pa.C2paError as error:
        raise disk.error or error from error


def check_credentials() -> bool:
    """Whether output will be signed here, told by an `FsthWarning` where it will not for want of a key; `FsthError`
    at once for a given key that `sign` would refuse after minutes. Makes none."""
    c2pa = load_c2pa()
    try:
        if c2pa is not None and has_key():
            _signer(c2pa, signing_key()).close()
    except NoKeyError as error:
        _warn_unsigned(error)
        return False
    return c2pa is not None


def _warn_unsigned(error: NoKeyError) -> None:
    warnings.warn(f"What is generated will not be signed. {error}", FsthWarning, stacklevel=3)


def _signer(c2pa, key: SigningKey):
    try:
        return c2pa.Signer.from_info(
            c2pa.C2paSignerInfo(key.algorithm.encode(), key.certificates, key.private_key, None)
        )
    except c2pa.C2paError as error:
        raise FsthError(f"The key or its certificates cannot be used for signing: {printable(error)}.") from error


def load_c2pa():
    """The module c2pa, or None where it cannot be used: signing and reading then do without."""
    try:
        import c2pa
        import cryptography  # noqa: F401
    except (ImportError, OSError):  # not installed, or without a native library for this system
        return None
    return c2pa


def printable(value) -> str | None:
    """A stranger's words, fit for a terminal and one line: at most 200 characters; None where nothing is left."""
    value = value.decode(errors="replace") if isinstance(value, bytes) else str("" if value is None else value)
    return "".join(letter for letter in value if letter.isprintable())[:200] or None
