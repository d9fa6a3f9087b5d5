"""Generated output says what it is: a visible mark, container fields, and signed Content Credentials (C2PA).

`inspect` reads the latter two back. c2pa-python signs and verifies (the extra `credentials`); nothing is asked of the
network: no time stamp, no remote manifest, no revocation list.
"""

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .. import __version__
from ..media.containers import is_file, open_binary
from ..media.video import read_metadata
from ..models.errors import FsthError, VideoError
from .signing_key import has_key, own_certificates, pem, signing_key


MARK = "AI-generated"
# The fields that a generated clip carries in its container, whoever passes it on.
OUTPUT_METADATA = {"title": f"{MARK} talking head", "comment": f"{MARK} with fsth_hub; not a recording."}

DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
MODEL, IDENTITY = "fsth_hub.model", "fsth_hub.pipelines.identity"  # parameters of the action c2pa.created
EXTRA = 'pip install "fsth-hub[credentials]"'


# The visible mark.


def add_mark(frame: np.ndarray) -> np.ndarray:
    """
    Draw "AI-generated" into the lower right corner; the same for every frame of a size, which a clip's frames share.

    Args:
        frame: height x width x 3 uint8 RGB.

    Returns:
        A copy of it with the mark; the mark's size is in proportion to the shorter side.
    """
    kept, added, margin = _badge(*frame.shape[:2])
    marked = frame.copy()
    height, width = kept.shape[:2]
    bottom, right = frame.shape[0] - margin, frame.shape[1] - margin
    corner = marked[bottom - height : bottom, right - width : right]
    corner[:] = corner * kept + added
    return marked


@lru_cache(maxsize=8)
def _badge(height: int, width: int) -> tuple[np.ndarray, np.ndarray, int]:
    """What share of a frame's corner stays and what is added to it (h x w x 1, in 0 to 255), and the margin."""
    unit = min(height, width) / 256
    font = ImageFont.load_default(max(1.0, 12 * unit))  # Pillow's own: nothing to ship
    box_width, box_height = round(font.getlength(MARK) + 10 * unit), round(19 * unit)
    box_width, box_height = min(max(1, box_width), width), min(max(1, box_height), height)
    # Pillow's shapes have jagged edges: drawn four times as large.
    box = Image.new("L", (4 * box_width, 4 * box_height))
    ImageDraw.Draw(box).rounded_rectangle((0, 0, 4 * box_width - 1, 4 * box_height - 1), 20 * unit, fill=255)
    text = Image.new("L", (box_width, box_height))
    ImageDraw.Draw(text).text((box_width / 2, box_height / 2), MARK, fill=255, font=font, anchor="mm")
    box, text = (np.asarray(part, np.float32)[..., None] / 255 for part in (box.reduce(4), text))
    # White on a black that lets 40 % through: readable on white, skin and black.
    margin = min(round(7 * unit), height - box_height, width - box_width)
    return (1 - 0.6 * box) * (1 - text), 255 * text, margin


# Content Credentials.


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
    def of(cls, model: str, person, portraits: list | None, driver_file) -> "Origin":
        """
        Of a person driven by a clip; portraits (`None` for a person who was read before) and clip that are files get
        their SHA-256 noted.
        """
        portraits = person.boxes if portraits is None else portraits
        titles = ["portrait"] if len(portraits) == 1 else [f"portrait {n}" for n in range(1, len(portraits) + 1)]
        sources = zip([*titles, "driving clip"], [*portraits, driver_file], strict=True)
        ingredients = tuple((title, _sha256(source)) for title, source in sources)
        return cls(model, getattr(person, "name", None), ingredients)

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
        Whether the file was signed; it is not where c2pa-python is not installed.

    Raises:
        FsthError: The key cannot be used or made, or the file cannot be signed.
    """
    c2pa = _load_c2pa()
    if c2pa is None:
        return False
    path = Path(path).resolve()
    settings = {"builder": {"thumbnail": {"enabled": False}}}
    try:
        with tempfile.TemporaryDirectory(prefix=".fsth-", dir=path.parent) as folder:
            signed = Path(folder, path.name)
            with _signer(c2pa) as signer, c2pa.Context.from_dict(settings) as context:
                with c2pa.Builder(origin.manifest(), context=context) as builder:
                    builder.sign_file(str(path), str(signed), signer)
            shutil.copymode(path, signed)
            signed.replace(path)
    except OSError as error:
        raise FsthError(f"{path.name} cannot be signed: {error.strerror}.") from error
    except c2pa.C2paError as error:
        raise FsthError(f"{path.name} cannot be signed: {_text(error)}.") from error
    return True


def check_credentials() -> bool:
    """Whether output will be signed here; `FsthError` at once for a key that `sign` would refuse after minutes. Makes
    none."""
    c2pa = _load_c2pa()
    if c2pa is not None and has_key():
        _signer(c2pa).close()
    return c2pa is not None


def _signer(c2pa):
    key = signing_key()
    try:
        return c2pa.Signer.from_info(
            c2pa.C2paSignerInfo(key.algorithm.encode(), key.certificates, key.private_key, None)
        )
    except c2pa.C2paError as error:
        raise FsthError(f"The key or its certificates cannot be used for signing: {_text(error)}.") from error


def _load_c2pa():
    try:
        import c2pa
        import cryptography  # noqa: F401
    except (ImportError, OSError):  # not installed, or without a native library for this system
        return None
    return c2pa


# Reading it back.


@dataclass(frozen=True)
class OriginReport:
    """What a file says about where it comes from, in its own words: a signature keeps them, it does not prove them.

    Args:
        file: Its name.
        credentials: "valid"; "changed" after it was signed; "invalid" (damaged, or an expired certificate, ...);
            "none"; "unchecked" where c2pa-python is not installed.
        ai_generated: Whether its credentials or its container say so. False says nothing about the opposite.
        signer: Who signed, as the certificate names them.
        signed_here: Whether that is this installation's key (or the one given by environment variables).
        software: What made it, with version.
        model: What it was drawn with.
        identity: The fine-tuned identity that it shows.
        created: When, ISO 8601.
        ingredients: Titles of what went in.
        comment: The container's comment or else its title, which anybody can write.
        problems: C2PA's codes for what is wrong.
    """

    file: str
    credentials: Literal["valid", "changed", "invalid", "none", "unchecked"]
    ai_generated: bool = False
    signer: str | None = None
    signed_here: bool = False
    software: str | None = None
    model: str | None = None
    identity: str | None = None
    created: str | None = None
    ingredients: tuple[str, ...] = ()
    comment: str | None = None
    problems: tuple[str, ...] = ()

    def summary(self) -> str:
        """One sentence for the person who asks."""
        says = f'its container says "{self.comment}", which anybody can write or remove'
        if self.credentials == "unchecked":
            known = says if self.ai_generated else "its container does not say that it is AI-generated"
            return f"The credentials of {self.file} cannot be checked here ({EXTRA}); {known}."
        if self.credentials == "none":
            if self.ai_generated:
                return f"{self.file} has no credentials, or lost them on the way; {says}."
            return f"{self.file} carries no credentials and no mark, which does not tell whether it is real."
        claim = f"made by {self.software or 'unknown software'}"
        claim += f" with the model {self.model}" if self.model else ""
        claim += f" and the identity {self.identity}" if self.identity else ""
        claim += f" on {self.created[:10]}" if self.created else ""
        claim = f"AI-generated, {claim}" if self.ai_generated else f"{claim}, without saying that it is AI-generated"
        if self.credentials == "changed":
            return f"{self.file} was changed after it was signed; its credentials, which no longer hold, say: {claim}."
        if self.credentials == "invalid":
            return f"The credentials of {self.file} are damaged or not valid ({', '.join(self.problems)})."
        signer = "this installation" if self.signed_here else f'an unknown signer, "{self.signer}"'
        return f"{self.file} is {claim}; signed by {signer}, and unchanged since."

    def to_dict(self) -> dict[str, Any]:
        """All fields, and the sentence, for JSON."""
        return asdict(self) | {"summary": self.summary()}


def inspect(path: str | os.PathLike) -> OriginReport:
    """
    Read what a picture or clip says about its origin, and whether it was changed since it was signed.

    Raises:
        FsthError: There is no such file, or it is neither a picture nor a clip.
    """
    path = Path(path)
    if not path.is_file():
        raise FsthError(f"There is no file {path}: check the path.")
    credentials = _read_credentials(path)
    container = _read_container(path)
    if container is None and credentials["credentials"] in ("none", "unchecked"):
        raise FsthError(f"{path.name} is neither a picture nor a clip that can be read, or it is damaged.")
    fields = {name.lower(): value for name, value in (container or {}).items()}
    comment = _text(fields.get("comment")) or _text(fields.get("title"))
    credentials["ai_generated"] |= MARK.lower() in (comment or "").lower()
    return OriginReport(file=_text(path.name) or "The file", comment=comment, **credentials)


def _read_container(path: Path) -> dict | None:
    try:
        with Image.open(path) as image:
            return dict(image.info)
    except Exception:  # not a picture, or a damaged one: Pillow raises nearly anything
        pass
    try:
        return read_metadata(path)
    except VideoError:
        return None


def _read_credentials(path: Path) -> dict[str, Any]:
    """Fields of the report."""
    c2pa = _load_c2pa()
    if c2pa is None:
        return {"credentials": "unchecked", "ai_generated": False}
    own = own_certificates()
    settings = {
        "verify": {"verify_trust": True, "remote_manifest_fetch": False, "ocsp_fetch": False},
        "trust": {"trust_anchors": "".join(pem(each).decode() for chain in own for each in chain) or None},
    }
    try:
        # From a stream, by content: a suffix may be wrong.
        with path.open("rb") as file, c2pa.Context.from_dict(settings) as context:
            with c2pa.Reader("", file, context=context) as reader:
                store = json.loads(reader.json())
    except OSError as error:
        raise FsthError(f"{path.name} cannot be read: {error.strerror}.") from error
    except c2pa.C2paError as error:
        absent = isinstance(error, c2pa.C2paError.ManifestNotFound | c2pa.C2paError.NotSupported)
        if absent or str(error).startswith("Remote:"):  # the file carries an address only, which is not asked
            return {"credentials": "none", "ai_generated": False}
        return {"credentials": "invalid", "ai_generated": False, "problems": (_text(error),)}
    return _report(store, {str(chain[0].serial_number) for chain in own})


def _report(store: dict, own_serials: set[str]) -> dict[str, Any]:
    manifest = store["manifests"][store["active_manifest"]]
    failures = store["validation_results"]["activeManifest"]["failure"]
    problems = tuple(failure["code"] for failure in failures if failure["code"] != "signingCredential.untrusted")
    credentials = "valid" if store["validation_state"] in ("Valid", "Trusted") else "invalid"
    if any(code.endswith(".mismatch") for code in problems):
        credentials = "changed"
    signature = manifest.get("signature_info") or {}
    # An authority that signed our certificate has signed others too: the serial number tells them apart.
    trusted, serial = store["validation_state"] == "Trusted", signature.get("cert_serial_number")
    generator = (manifest.get("claim_generator_info") or [{}])[0]
    created = next((action for action in _actions(manifest) if action.get("action") == "c2pa.created"), {})
    parameters = created.get("parameters") or {}
    everywhere = [action for each in store["manifests"].values() for action in _actions(each)]
    return {
        "credentials": credentials,
        # also in the manifest of a file from which this one was made with other software
        "ai_generated": any(
            str(action.get("digitalSourceType")).lower().endswith("trainedalgorithmicmedia") for action in everywhere
        ),
        "signer": _text(signature.get("common_name")) or _text(signature.get("issuer")),
        "signed_here": trusted and serial in own_serials,
        "software": _text(" ".join(filter(None, (generator.get("name"), generator.get("version"))))),
        "model": _text(parameters.get(MODEL)),
        "identity": _text(parameters.get(IDENTITY)),
        "created": _text(created.get("when")),
        "ingredients": tuple(_text(each.get("title")) or "untitled" for each in manifest.get("ingredients") or []),
        "problems": problems,
    }


def _actions(manifest: dict) -> list[dict]:
    assertions = [each for each in manifest.get("assertions", []) if each["label"].startswith("c2pa.actions")]
    return [action for each in assertions for action in each["data"].get("actions", [])]


def _text(value) -> str | None:
    """A stranger's words, fit for a terminal and one line."""
    value = value.decode(errors="replace") if isinstance(value, bytes) else str("" if value is None else value)
    return "".join(letter for letter in value if letter.isprintable())[:200] or None
