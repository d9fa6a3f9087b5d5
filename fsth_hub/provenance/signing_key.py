"""The key that signs Content Credentials: one that is given, or one that this installation makes for itself."""

import os
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import typer

from ..models.errors import FsthError
from ..saving import reason, workplace


CERTIFICATE_VARIABLE, KEY_VARIABLE = "FSTH_C2PA_CERT", "FSTH_C2PA_KEY"
KEY_YEARS = 30  # without a third party's time stamp a signature ends with its certificate


class NoKeyError(FsthError):
    """No key was given, and this installation cannot keep one of its own, or cannot read it any longer."""


@dataclass(frozen=True)
class SigningKey:
    """A private key and the certificates that go with it, the signer's own first, as PEM."""

    algorithm: str
    certificates: bytes
    private_key: bytes = field(repr=False)


def given_names() -> list[str]:
    """The environment variables that are set."""
    return [name for name in (CERTIFICATE_VARIABLE, KEY_VARIABLE) if os.environ.get(name)]


def signing_key() -> SigningKey:
    """
    The key to sign with: that of `FSTH_C2PA_CERT` and `FSTH_C2PA_KEY` (PEM files), or this installation's own, which
    is made on first use.

    Raises:
        FsthError: It cannot be used; [`NoKeyError`] where it is the installation's own, or that cannot be made.
    """
    try:
        return _signing_key()
    except FsthError as error:
        if given_names():
            raise
        raise NoKeyError(str(error)) from error


def _signing_key() -> SigningKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    given = [Path(os.environ[name]) for name in given_names()]
    if len(given) == 1:
        raise FsthError(f"{CERTIFICATE_VARIABLE} and {KEY_VARIABLE} belong together: set both, or neither.")
    certificate_path, key_path = given or _own_key()
    certificates = _read_certificates(certificate_path)
    try:
        key = serialization.load_pem_private_key(key_path.read_bytes(), password=None)
    except OSError as error:
        raise FsthError(f"The signing key {key_path} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError, UnsupportedAlgorithm):  # Without the cause: it may quote the key.
        raise FsthError(f"{key_path} holds no private key in PEM without a passphrase.") from None
    if key.public_key() != certificates[0].public_key():
        raise FsthError(f"The first certificate in {certificate_path} is not that of the key in {key_path}.")
    if isinstance(key, ec.EllipticCurvePrivateKey):
        algorithm = {256: "es256", 384: "es384", 521: "es512"}.get(key.key_size)
    else:
        kinds = {rsa.RSAPrivateKey: "ps256", ed25519.Ed25519PrivateKey: "ed25519"}
        algorithm = next((name for kind, name in kinds.items() if isinstance(key, kind)), None)
    if algorithm is None:
        raise FsthError(f"The key in {key_path} is of a kind that C2PA does not know: give an EC, RSA or Ed25519 key.")
    return SigningKey(algorithm, b"".join(map(pem, certificates)), pem(key))


def has_key() -> bool:
    """Whether there is a key already; `NoKeyError` where there is none and `signing_key` could not make one."""
    if given_names():
        return True
    folder = _own_folder()
    try:
        if folder.exists():
            return True
        with workplace(next(parent for parent in folder.parents if parent.exists())):
            return False
    except OSError as error:
        raise _no_place(reason(error)) from error


def own_certificates() -> list[list]:
    """Chains of certificates of the given key and of the self-made one, those that exist and, of the latter, can be
    read."""
    given = os.environ.get(CERTIFICATE_VARIABLE)
    chains = [_read_certificates(Path(given))] if given and Path(given).is_file() else []
    with suppress(FsthError):
        chains.append(_read_certificates(_own_folder() / "certificates.pem"))
    return chains


def _own_folder() -> Path:
    folder = Path(typer.get_app_dir("fsth_hub"), "signing")
    if not folder.is_absolute():  # nobody says where home is, or a variable says nonsense
        raise NoKeyError(
            f"There is no home directory to keep a key in: set HOME, or {CERTIFICATE_VARIABLE} and {KEY_VARIABLE}."
        )
    return folder


def _own_key() -> tuple[Path, Path]:
    """Certificates and key of this installation; both appear at once, and what is there is never replaced."""
    folder = _own_folder()
    try:
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with workplace(folder.parent) as temporary:
                whole = Path(temporary, "signing")
                whole.mkdir(mode=0o700)
                _make_key(whole / "certificates.pem", whole / "key.pem")
                try:
                    whole.rename(folder)
                except OSError:  # another process was first: its key is the one
                    if not folder.exists():
                        raise
    except OSError as error:
        raise _no_place(reason(error)) from error
    return folder / "certificates.pem", folder / "key.pem"


def _no_place(why: str) -> NoKeyError:
    return NoKeyError(
        f"No key to sign with can be kept in {_own_folder()}: {why}; set {CERTIFICATE_VARIABLE} and "
        f"{KEY_VARIABLE}, or switch credentials off."
    )


def _make_key(certificate_path: Path, key_path: Path) -> None:
    """C2PA refuses a certificate that signs itself: an authority is made, signs the key's, and is forgotten."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    authority, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    now = datetime.now(UTC)
    unused = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    unused = dict.fromkeys((*unused, "encipher_only", "decipher_only"), False)

    def name(common_name: str) -> x509.Name:
        # nothing of the machine or its user; C2PA wants a country and an organisation
        oids = (NameOID.COUNTRY_NAME, NameOID.ORGANIZATION_NAME, NameOID.COMMON_NAME)
        values = ("XX", "fsth_hub (self-made key)", common_name)
        return x509.Name([x509.NameAttribute(oid, value) for oid, value in zip(oids, values, strict=True)])

    def certificate(common_name: str, public_key, is_authority: bool) -> x509.CertificateBuilder:
        usage = {"digital_signature": not is_authority, "key_cert_sign": is_authority, "crl_sign": is_authority}
        return (
            x509.CertificateBuilder(name("Self-made authority"), name(common_name), public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))  # clocks differ
            .not_valid_after(now + timedelta(days=365 * KEY_YEARS))
            .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
            .add_extension(x509.KeyUsage(**usage, **unused), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
        )

    email = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])  # one of those that C2PA accepts
    certificates = [
        certificate("Self-made key of an installation", key.public_key(), False).add_extension(email, critical=False),
        certificate("Self-made authority", authority.public_key(), True),
    ]
    certificate_path.write_bytes(b"".join(pem(each.sign(authority, hashes.SHA256())) for each in certificates))
    key_path.touch(mode=0o600)
    key_path.write_bytes(pem(key))


def pem(item) -> bytes:
    """A certificate or a private key as PEM."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    if hasattr(item, "private_bytes"):
        return item.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())  # the form that c2pa takes
    return item.public_bytes(Encoding.PEM)


def _read_certificates(path: Path) -> list:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise FsthError(f"The certificates {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise FsthError(f"{path} holds no certificates in PEM.") from error
