"""What a file says of its own origin: its Content Credentials, checked, and the fields of its container."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from ..media.reading import read_metadata
from ..models.errors import FsthError, FsthNotFoundError, VideoError
from .credentials import IDENTITY, MODEL, load_c2pa, printable
from .signing_key import own_certificates, pem
from .watermark import WATERMARK


EXTRA = 'pip install "fsth-hub[credentials]"'


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
        model: What it was generated with.
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
        raise FsthNotFoundError(f"There is no file {path}: check the path.")
    credentials = _read_credentials(path)
    container = _read_container(path)
    if container is None and credentials["credentials"] in ("none", "unchecked"):
        raise FsthError(f"{path.name} is neither a picture nor a clip that can be read, or it is damaged.")
    fields = {name.lower(): value for name, value in (container or {}).items()}
    comment = printable(fields.get("comment")) or printable(fields.get("title"))
    credentials["ai_generated"] |= WATERMARK.lower() in (comment or "").lower()
    return OriginReport(file=printable(path.name) or "The file", comment=comment, **credentials)


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
    c2pa = load_c2pa()
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
        return {"credentials": "invalid", "ai_generated": False, "problems": (printable(error),)}
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
        "signer": printable(signature.get("common_name")) or printable(signature.get("issuer")),
        "signed_here": trusted and serial in own_serials,
        "software": printable(" ".join(filter(None, (generator.get("name"), generator.get("version"))))),
        "model": printable(parameters.get(MODEL)),
        "identity": printable(parameters.get(IDENTITY)),
        "created": printable(created.get("when")),
        "ingredients": tuple(printable(each.get("title")) or "untitled" for each in manifest.get("ingredients") or []),
        "problems": problems,
    }


def _actions(manifest: dict) -> list[dict]:
    assertions = [each for each in manifest.get("assertions", []) if each["label"].startswith("c2pa.actions")]
    return [action for each in assertions for action in each["data"].get("actions", [])]
