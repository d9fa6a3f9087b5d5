import base64
import json
import os
import re
import shutil
import stat
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import c2pa
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from PIL import Image

from fsth_hub.media.reading import open_clip, read_metadata
from fsth_hub.media.writing import write_clip
from fsth_hub.models.errors import FsthError, VideoError
from fsth_hub.pipelines.identity import FsthIdentity, fingerprint
from fsth_hub.provenance import credentials, signing_key, watermark
from fsth_hub.provenance.credentials import OUTPUT_METADATA, Origin, sign
from fsth_hub.provenance.inspection import inspect
from fsth_hub.provenance.watermark import add_watermark
from testing_utils.clips import make_clip, sound_of
from testing_utils.pipelines import clip, make_pipeline, picture


ORIGIN = Origin("bundled", "ada", (("portrait", "ab" * 32), ("driving clip", None)))
BLACK, SKIN, WHITE = (0, 0, 0), (224, 172, 138), (255, 255, 255)


@pytest.fixture(autouse=True)
def settings(tmp_path, monkeypatch) -> Path:
    """An installation that has no key yet."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    return tmp_path / "settings"


@pytest.fixture
def frames(astronaut_clip) -> list[np.ndarray]:
    return [add_watermark(frame) for frame in astronaut_clip]


@pytest.fixture
def signed(tmp_path, frames) -> Path:
    return write(tmp_path / "signed.mp4", frames)


def write(path: Path, frames, **options) -> Path:
    options = {"metadata": OUTPUT_METADATA, "finish": partial(sign, origin=ORIGIN)} | options
    write_clip(path, frames, 25, **options)
    return path


def flip(path: Path, at: int) -> Path:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    return path


def plain(colour, height: int = 256, width: int = 256) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


# The watermark.


@pytest.mark.parametrize("colour", [BLACK, SKIN, WHITE])
def test_mark_is_legible_in_every_frame_of_a_written_clip(tmp_path, colour):
    write_clip(tmp_path / "plain.mp4", [plain(colour)] * 30, 25)
    write_clip(tmp_path / "marked.mp4", [add_watermark(plain(colour))] * 30, 25)
    without, marked = (np.stack(list(open_clip(tmp_path / name))).astype(int) for name in ("plain.mp4", "marked.mp4"))
    corner = np.abs(marked - without).max(axis=(0, 3)) > 24
    rows, columns = np.nonzero(corner)
    assert 224 < rows.min() and rows.max() < 256 and 140 < columns.min() and columns.max() < 256
    text = watermark._badge(256, 256)[1][..., 0] / 255
    height, width = text.shape
    seen = marked.mean(axis=3)[:, 249 - height : 249, 249 - width : 249]
    # the letters stand out against their box, whatever lies below, and the mark neither fades nor flickers
    for frame in seen:
        assert frame[text > 0.9].mean() - frame[text == 0].mean() > 90
        assert np.corrcoef(frame[3:-3, 5:-5].ravel(), text[3:-3, 5:-5].ravel())[0, 1] > 0.95
    assert seen.std(axis=0).mean() < 1


def test_mark_stays_in_its_corner_and_takes_a_copy(astronaut_clip):
    frame = astronaut_clip[0].copy()
    marked = add_watermark(frame)
    assert np.array_equal(frame, astronaut_clip[0]) and not np.array_equal(frame, marked)
    assert np.array_equal(marked[:224], frame[:224]) and np.array_equal(marked[:, :140], frame[:, :140])
    assert marked.dtype == np.uint8


def test_mark_grows_with_the_frame():
    small = np.asarray(add_watermark(plain(SKIN)), float)
    large = Image.fromarray(add_watermark(plain(SKIN, 1024, 1024))).reduce(4)
    assert np.abs(small - np.asarray(large, float)).mean() < 1
    wide = add_watermark(plain(SKIN, 256, 768))
    assert np.array_equal(wide[:, -256:], small.astype(np.uint8))


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (300, 7), (64, 64), (255, 257), (2160, 3840)])
def test_mark_fits_every_size(size):
    frame = plain(BLACK, *size)
    assert add_watermark(frame).shape == frame.shape
    assert add_watermark(frame).any() or min(size) < 16


# Signing.


def test_signed_clip_plays_as_before_with_its_sound(tmp_path, frames):
    driver = make_clip(tmp_path / "driver.mp4", clip(*range(0, 100, 2)), sound="aac")
    before = write(tmp_path / "before.mp4", frames * 5, audio_from=driver, finish=None)
    after = write(tmp_path / "after.mp4", frames * 5, audio_from=driver)
    assert before.stat().st_size < after.stat().st_size < before.stat().st_size + 8000
    assert np.array_equal(np.stack(list(open_clip(before))), np.stack(list(open_clip(after))))
    assert sound_of(before) == sound_of(after)
    assert read_metadata(after).items() >= OUTPUT_METADATA.items()
    report = inspect(after)
    assert (report.credentials, report.signed_here, report.ai_generated) == ("valid", True, True)
    assert (report.model, report.identity, report.ingredients) == ("bundled", "ada", ("portrait", "driving clip"))
    assert report.software.startswith("fsth_hub 0.") and re.match(r"20\d\d-\d\d-\d\dT", report.created)
    assert "is AI-generated" in report.summary() and "signed by this installation" in report.summary()
    assert json.loads(json.dumps(report.to_dict()))["summary"] == report.summary()


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif"])
def test_pictures_and_gifs_are_signed_too(tmp_path, frames, name):
    path = tmp_path / name
    write_clip(path, frames, 25) if name.endswith("gif") else Image.fromarray(frames[0]).save(path)
    before = np.asarray(Image.open(path).convert("RGB"))
    path.chmod(0o640)
    assert sign(path, ORIGIN)
    assert b"thumbnail" not in path.read_bytes()
    assert np.array_equal(before, np.asarray(Image.open(path).convert("RGB")))
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert inspect(path).credentials == "valid" and inspect(path).ai_generated
    assert inspect(flip(path, -60)).credentials == "changed"


@pytest.mark.parametrize("is_read", [False, True])
def test_manifest_follows_the_standard_and_shows_nobody(tmp_path, is_read):
    portrait, driver = tmp_path / "erika mustermann.jpg", tmp_path / "max.mp4"
    Image.fromarray(picture()).save(portrait)
    make_clip(driver, clip(0, 4, 8))
    pipe = make_pipeline()
    path = tmp_path / "result.mp4"
    pipe([portrait, str(portrait)], pipe.read_driving(driver) if is_read else driver, output_path=path)
    with c2pa.Reader(path) as reader:
        manifest = reader.get_active_manifest()
    (action,) = manifest["assertions"][-1]["data"]["actions"]
    assert action["action"] == "c2pa.created"
    assert action["digitalSourceType"] == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    assert action["softwareAgent"]["name"] == "fsth_hub"
    assert len(action["parameters"]["ingredients"]) == 3
    assert [each["title"] for each in manifest["ingredients"]] == ["portrait 1", "portrait 2", "driving clip"]
    assert {each["relationship"] for each in manifest["ingredients"]} == {"inputTo"}
    assert manifest["ingredients"][0]["instance_id"] == f"sha256:{credentials._sha256(portrait)}"
    assert manifest["ingredients"][2]["instance_id"] == f"sha256:{credentials._sha256(driver)}"
    assert not re.search("thumbnail|mustermann|max", json.dumps(manifest))
    assert manifest["title"] == OUTPUT_METADATA["title"]


def test_a_file_that_cannot_be_signed_stays_as_it_was(tmp_path):
    path = tmp_path / "note.mp4"
    path.write_text("no clip")
    with pytest.raises(FsthError, match="note.mp4 cannot be signed"):
        sign(path, ORIGIN)
    assert path.read_text() == "no clip" and set(os.listdir(tmp_path)) == {"note.mp4", "settings"}


def test_a_clip_appears_signed_or_not_at_all(tmp_path, frames):
    path = tmp_path / "result.mp4"
    path.write_text("before")
    seen = []

    def fail(unfinished):
        seen.append((unfinished.suffix, path.read_text()))
        raise FsthError("no")

    with pytest.raises(FsthError):
        write(path, frames, finish=fail)
    assert seen == [(".mp4", "before")] and path.read_text() == "before" and os.listdir(tmp_path) == ["result.mp4"]


def test_signing_again_replaces_the_credentials(signed):
    sign(signed, Origin("other"))
    report = inspect(signed)
    assert (report.credentials, report.model, report.identity) == ("valid", "other", None)


# Reading back.


@pytest.mark.parametrize("place", ["mdat", "moov", "c2pa.actions.v2"])
def test_one_changed_bit_is_noticed(signed, place):
    flip(signed, signed.read_bytes().rindex(place.encode()) + 200)
    report = inspect(signed)
    assert report.credentials == "changed" and any(problem.endswith("mismatch") for problem in report.problems)
    assert "was changed after it was signed" in report.summary()


def test_what_was_cut_off_or_damaged_is_noticed(signed, tmp_path):
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(signed.read_bytes()[:-2000])
    assert inspect(cut).credentials == "changed"
    damaged = flip(signed, signed.read_bytes().index(b"jumb") + 1)
    assert inspect(damaged).credentials == "invalid" and "damaged or not valid" in inspect(damaged).summary()


def test_reencoding_loses_the_credentials_but_not_the_comment(signed, tmp_path):
    again = write(tmp_path / "again.mp4", open_clip(signed), metadata=read_metadata(signed), finish=None)
    report = inspect(again)
    assert report.credentials == "none" and report.ai_generated and report.model is None
    assert OUTPUT_METADATA["comment"] in report.summary() and "lost them" in report.summary()


def test_gif_comment_is_read(tmp_path, frames):
    assert inspect(write(tmp_path / "a.gif", frames, finish=None)).comment == OUTPUT_METADATA["comment"]


def test_unmarked_files_say_nothing(tmp_path, astronaut, frames):
    Image.fromarray(astronaut).save(tmp_path / "a.png")
    write(tmp_path / "a.mp4", frames, metadata=None, finish=None)
    for name in ("a.png", "a.mp4"):
        report = inspect(tmp_path / name)
        assert report.credentials == "none" and not report.ai_generated
        assert "does not tell whether it is real" in report.summary()


def test_what_is_no_media_is_refused(tmp_path):
    (tmp_path / "note.txt").write_text("AI-generated")
    (tmp_path / "empty.mp4").touch()
    for name in ("note.txt", "empty.mp4"):
        with pytest.raises(FsthError, match=f"{name} is neither a picture nor a clip"):
            inspect(tmp_path / name)
    with pytest.raises(FsthError, match="There is no file"):
        inspect(tmp_path / "missing.mp4")
    with pytest.raises(VideoError):
        read_metadata(tmp_path / "note.txt")


def test_content_counts_and_not_the_suffix(signed, tmp_path):
    shutil.copy(signed, tmp_path / "signed.jpg")
    assert inspect(tmp_path / "signed.jpg").credentials == "valid"


def test_another_installation_is_an_unknown_signer(signed, tmp_path, monkeypatch):
    for name in ("other", "third"):
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / name))
        report = inspect(signed)  # with no key of its own, then with one
        assert (report.credentials, report.signed_here) == ("valid", False)
        assert "an unknown signer" in report.summary() and "Self-made" in report.signer
        assert not (tmp_path / name).exists()
        signing_key.signing_key()
    assert not inspect(signed).signed_here


def test_words_of_strangers_are_made_harmless(signed):
    sign(signed, Origin("\x1b[31m" + "evil\n" * 100))
    report = inspect(signed)
    assert report.model.startswith("[31mevilevil") and len(report.model) == 200
    assert report.summary().isprintable()


def test_a_photograph_with_credentials_is_not_called_generated(tmp_path, astronaut):
    path = tmp_path / "photo.jpg"
    Image.fromarray(astronaut).save(tmp_path / "raw.jpg")
    manifest = ORIGIN.manifest()
    (action,) = manifest["assertions"][0]["data"]["actions"]
    action["digitalSourceType"] = "http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture"
    with credentials._signer(c2pa, signing_key.signing_key()) as signer, c2pa.Builder(manifest) as builder:
        builder.sign_file(str(tmp_path / "raw.jpg"), str(path), signer)
    assert not inspect(path).ai_generated and "without saying that it is AI-generated" in inspect(path).summary()


def test_inspecting_asks_nobody(tmp_path, astronaut):
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Image.fromarray(astronaut).save(tmp_path / "raw.jpg")
    with credentials._signer(c2pa, signing_key.signing_key()) as signer, c2pa.Builder(ORIGIN.manifest()) as builder:
        builder.set_no_embed()
        builder.set_remote_url(f"http://127.0.0.1:{server.server_port}/manifest")
        builder.sign_file(str(tmp_path / "raw.jpg"), str(tmp_path / "remote.jpg"), signer)
    try:
        assert inspect(tmp_path / "remote.jpg").credentials == "none"
        assert not asked
        with pytest.raises(c2pa.C2paError):
            c2pa.Reader(tmp_path / "remote.jpg")
        assert asked  # without our settings it would have asked
    finally:
        server.shutdown()
        server.server_close()


# The key.


def test_own_key_is_private_and_stays(settings, signed):
    folder = settings / "fsth_hub" / "signing"
    assert sorted(os.listdir(folder)) == ["certificates.pem", "key.pem"]
    assert stat.S_IMODE((folder / "key.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    sign(signed, ORIGIN)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert os.listdir(folder.parent) == ["signing"]


def test_concurrent_first_use_makes_one_key(settings, monkeypatch):
    together, make_key = threading.Barrier(4), signing_key._make_key

    def make_together(*paths):
        make_key(*paths)
        together.wait()  # all four have made one, none has put it in its place

    monkeypatch.setattr(signing_key, "_make_key", make_together)
    with ThreadPoolExecutor(4) as pool:
        keys = list(pool.map(lambda _: signing_key.signing_key(), range(4)))
    assert len(set(keys)) == 1 and signing_key.signing_key() == keys[0]
    assert os.listdir(settings / "fsth_hub") == ["signing"]


def test_private_key_appears_nowhere(settings, signed, capfd):
    key = signing_key.signing_key()
    secret = serialization.load_pem_private_key(key.private_key, None).private_numbers().private_value
    body = key.private_key.decode().split("-----")[2].replace("\n", "")
    shown = repr(key) + repr(inspect(signed)) + "".join(capfd.readouterr())
    data = signed.read_bytes() + (settings / "fsth_hub" / "signing" / "certificates.pem").read_bytes()
    assert body not in shown and "PRIVATE" not in shown and str(secret) not in shown
    raw = secret.to_bytes(32, "big")
    assert raw not in data and base64.b64encode(raw) not in data and b"PRIVATE" not in data


def test_a_place_where_no_key_can_be_kept(settings):
    settings.write_text("a file")
    with pytest.raises(FsthError, match="No key to sign with can be kept .* FSTH_C2PA_CERT"):
        signing_key.signing_key()


def give_key(monkeypatch, folder: Path, key, form="PKCS8", encryption=None) -> None:
    """A key of the user's own, with the certificate that an authority made for it."""
    keys = iter([ec.generate_private_key(ec.SECP256R1()), key])
    folder.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(ec, "generate_private_key", lambda curve: next(keys))
        signing_key._make_key(folder / "certificates.pem", folder / "made.pem")
    form = getattr(serialization.PrivateFormat, form)
    encryption = encryption or serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, encryption))
    monkeypatch.setenv("FSTH_C2PA_CERT", str(folder / "certificates.pem"))
    monkeypatch.setenv("FSTH_C2PA_KEY", str(folder / "key.pem"))


@pytest.mark.parametrize(
    "key, form",
    [
        (ec.generate_private_key(ec.SECP256R1()), "TraditionalOpenSSL"),
        (ec.generate_private_key(ec.SECP384R1()), "PKCS8"),
        (ed25519.Ed25519PrivateKey.generate(), "PKCS8"),
        (rsa.generate_private_key(65537, 2048), "TraditionalOpenSSL"),
    ],
    ids=["p256", "p384", "ed25519", "rsa"],
)
def test_given_key_signs(tmp_path, settings, monkeypatch, astronaut, key, form):
    give_key(monkeypatch, tmp_path / "given", key, form)
    Image.fromarray(astronaut).save(tmp_path / "a.png")
    assert sign(tmp_path / "a.png", ORIGIN) and inspect(tmp_path / "a.png").signed_here
    assert not settings.exists()
    monkeypatch.delenv("FSTH_C2PA_CERT"), monkeypatch.delenv("FSTH_C2PA_KEY")
    assert not inspect(tmp_path / "a.png").signed_here


def test_the_same_serial_number_of_another_authority_is_another_signer(tmp_path, monkeypatch, frames):
    monkeypatch.setattr(x509, "random_serial_number", lambda: 7)
    signed = write(tmp_path / "signed.mp4", frames)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "other"))
    signing_key.signing_key()
    assert inspect(signed).credentials == "valid" and not inspect(signed).signed_here


def test_a_certificate_of_the_same_authority_is_another_signer(settings, signed):
    """Whoever has a certificate of the authority that made ours is not us."""
    chain = signing_key.own_certificates()[0]
    (settings / "fsth_hub" / "signing" / "certificates.pem").write_bytes(
        signing_key.pem(chain[1]) + signing_key.pem(chain[1])
    )
    report = inspect(signed)
    assert report.credentials == "valid" and not report.signed_here


def test_keys_that_cannot_be_used(tmp_path, monkeypatch):
    key = ec.generate_private_key(ec.SECP256R1())
    give_key(monkeypatch, tmp_path / "given", key)
    pipe, right = make_pipeline(), (tmp_path / "given" / "key.pem").read_text()

    def refused(message: str) -> None:
        drawn = []
        with pytest.raises(FsthError, match=message) as error:
            path = tmp_path / "result.mp4"
            pipe(picture(), clip(0), output_path=path, callback_on_frame_end=lambda *args: drawn.append(args))
        assert not drawn  # it is said before the work and not after it
        assert "PRIVATE" not in str(error.getrepr(chain=True)) and not (tmp_path / "result.mp4").exists()

    (tmp_path / "given" / "key.pem").write_text(right[:60] + right[80:])
    refused("holds no private key")
    password = serialization.BestAvailableEncryption(b"secret")
    (tmp_path / "given" / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, password)
    )
    refused("without a passphrase")
    (tmp_path / "given" / "key.pem").write_bytes(signing_key.pem(ec.generate_private_key(ec.SECP256R1())))
    refused("is not that of the key")
    monkeypatch.setenv("FSTH_C2PA_KEY", str(tmp_path / "missing.pem"))
    refused("missing.pem cannot be read")
    monkeypatch.delenv("FSTH_C2PA_KEY")
    refused("belong together")


# The pipeline.


def test_pipeline_marks_and_signs(tmp_path):
    pipe = make_pipeline()
    drawn = [np.asarray(frame) for frame in pipe(picture(), clip(0, 20), watermark=False).frames[0]]
    output = pipe(picture(), clip(0, 20))
    assert all(np.array_equal(add_watermark(a), b) for a, b in zip(drawn, output.frames[0], strict=True))
    assert output.report.watermark and output.report.credentials
    output.save(tmp_path / "saved.mp4")
    pipe(picture(), clip(0, 20), output_path=tmp_path / "streamed.mp4", watermark=False)
    for name in ("saved.mp4", "streamed.mp4"):
        report = inspect(tmp_path / name)
        assert (report.credentials, report.model) == ("valid", "unnamed")
        assert report.ingredients == ("portrait", "driving clip")


def test_credentials_can_be_switched_off(tmp_path, settings):
    pipe = make_pipeline()
    pipe(picture(), clip(0, 20), output_path=tmp_path / "a.mp4", credentials=False)
    output = pipe(picture(), clip(0, 20), credentials=False)
    output.save(tmp_path / "b.mp4")
    assert output.report.watermark and not output.report.credentials
    for name in ("a.mp4", "b.mp4"):
        report = inspect(tmp_path / name)
        assert report.credentials == "none" and report.ai_generated
    assert not settings.exists()


def test_identity_is_named(tmp_path):
    pipe = make_pipeline()
    person = pipe.embed([picture(), picture(9)])
    made = FsthIdentity(
        method="full",
        weights=pipe.generator.state_dict(),
        adain_parameters=person.adain_parameters,
        crops=np.zeros((2, pipe.size, pipe.size, 3), np.uint8),
        crop_landmarks=np.stack([person.landmarks] * 2),
        boxes=person.boxes,
        base_model=pipe.model_name,
        fingerprint=fingerprint(pipe.generator),
        steps=0,
    )
    made.save_pretrained(tmp_path / "ada")
    identity = pipe.load_identity(tmp_path / "ada")
    pipe(identity, clip(0, 20)).save(tmp_path / "result.mp4")
    report = inspect(tmp_path / "result.mp4")
    assert (report.model, report.identity) == ("unnamed", "ada")
    assert report.ingredients == ("portrait 1", "portrait 2", "driving clip")


def test_without_c2pa_clips_are_written_unsigned(tmp_path, signed, monkeypatch):
    monkeypatch.setitem(sys.modules, "c2pa", None)  # importing it fails
    output = make_pipeline()(picture(), clip(0, 20), output_path=tmp_path / "result.mp4")
    assert not output.report.credentials and len(list(open_clip(tmp_path / "result.mp4"))) == 2
    report = inspect(signed)
    assert report.credentials == "unchecked" and report.ai_generated and "cannot be checked here" in report.summary()
    monkeypatch.undo()
    assert inspect(tmp_path / "result.mp4").credentials == "none"
