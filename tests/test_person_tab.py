"""The Your person tab's handlers, over a hub on loopback: made, published, saved, loaded again."""

import base64
import io
import pickle
import re
import tempfile
import time
import traceback
import zipfile
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import gradio.oauth
import numpy as np
import pytest
import torch
from gradio_client import Client, handle_file
from PIL import Image

from fsth_hub.demo import LAUNCH_OPTIONS, create_demo, people
from fsth_hub.demo.inputs import look_at_picture
from fsth_hub.demo.people import Kept, People
from fsth_hub.demo.studio import Studio
from fsth_hub.demo.tabs.animator import FINE_TUNED, Animator
from fsth_hub.demo.tabs.publish_form import Publisher
from fsth_hub.demo.tabs.tuner import NOTHING_GAINED, Tuner
from fsth_hub.finetuning.feature_networks import VGGFeatures
from fsth_hub.finetuning.loop import PixelLoss
from fsth_hub.finetuning.lora import LORA_CONFIG_NAME, LORA_WEIGHTS_NAME
from fsth_hub.hub.model_card import CONSENT
from fsth_hub.landmarks import likeness
from fsth_hub.media.reading import open_clip
from fsth_hub.pipelines.identity import CONFIG_NAME, WEIGHTS_NAME
from testing_utils.demo import left_over
from testing_utils.hub_server import ANN, ANN_READS, BOB
from testing_utils.networks import SIZE
from testing_utils.pipelines import NO_FACE, arrays, clip, make_pipeline, negative, picture


pytestmark = pytest.mark.usefixtures("steps_that_show")

TOKENS = (ANN, ANN_READS, BOB)
ANNA, EVE = (SimpleNamespace(session_hash=name) for name in ("anna", "eve"))  # two visitors


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


@pytest.fixture(scope="module")
def identity(pipe):
    return pipe.fine_tune(picture(), steps=2, method="lora", content=PixelLoss())


@pytest.fixture
def tuner(pipe, tmp_path, monkeypatch):
    workplace = tmp_path / "work"
    workplace.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(workplace))
    studio = Studio((pipe,))
    studio._detector = pipe.detector
    monkeypatch.setattr(studio, "content", PixelLoss)
    yield Tuner(studio)
    assert left_over(workplace) == []


@pytest.fixture
def publisher(tuner):
    return Publisher(tuner.studio)


@pytest.fixture(autouse=True)
def tokens_stay_secret(hub, capfd, caplog):
    yield
    published = [content for repository in hub.repositories.values() for content in repository.files().values()]
    for token in TOKENS:
        assert not any(token in text for text in (*capfd.readouterr(), caplog.text))
        assert not any(token.encode() in content for content in published)


@pytest.fixture
def portraits(files):
    return [(files[0], None)]


@pytest.fixture
def anna(tuner, identity):
    """Her person, kept by the page as fine-tuning does."""
    tuner.studio.people.keep(ANNA, Kept(identity, None))
    return identity


def told(stream) -> str:
    """What a visitor is told of work that must fail; no part of the error names a token."""
    with pytest.raises(gr.Error) as caught:
        list(stream)
    error = caught.value
    while error is not None:
        assert not any(token in "".join(traceback.format_exception(error)) for token in TOKENS)
        error = error.__cause__ or error.__context__
    assert "\n" not in caught.value.message and "hf auth login" not in caught.value.message
    print(caught.value.message)
    return caught.value.message


def draw(tuner, request) -> np.ndarray:
    person = tuner.studio.people.get(request)
    return arrays(tuner.studio.ready.result()(person.identity, clip(0, 20)).frames[0])


def save(tuner, request, path: Path) -> Path:
    saving = tuner.save(request)
    path.write_bytes(Path(next(saving)).read_bytes())
    saving.close()
    return path


def test_fine_tuned_person_is_shown_as_it_is_learned(tuner, portraits):
    outputs = list(tuner.fine_tune(portraits, [], 2, "lora", request=ANNA))
    assert any(isinstance(output[0], np.ndarray) for output in outputs)
    assert any("Learning the face: step 1 of 2" in output[1] for output in outputs)
    assert "Fine-tuned on 1 portrait, low-rank updates, step 2 kept." in outputs[-1][3]
    assert NOTHING_GAINED not in outputs[-1][2]["value"]
    assert tuner.studio.people.get(ANNA).identity.method == "lora"


def test_made_published_loaded(tuner, publisher, anna, hub):
    *_, (said, progress, token) = publisher.publish("anna", True, True, ANN, ANNA)
    assert "/ann/anna)" in said and "Only you" in said and (progress, token) == ("", "")
    repository = hub.repositories["ann/anna"]
    assert repository.private and {CONFIG_NAME, WEIGHTS_NAME, "README.md"} < repository.files().keys()
    assert CONSENT.encode() in repository.files()["README.md"]
    *_, (_, details) = tuner.load_from_hub("ann/anna", ANN, EVE)
    assert "Loaded ann/anna. Fine-tuned on 1 portrait" in details
    assert np.array_equal(draw(tuner, ANNA), draw(tuner, EVE))


def test_saved_and_loaded(tuner, anna, tmp_path):
    file = save(tuner, ANNA, tmp_path / "person.zip")
    with zipfile.ZipFile(file) as archive:
        names = {CONFIG_NAME, WEIGHTS_NAME, LORA_CONFIG_NAME, LORA_WEIGHTS_NAME, "README.md", "preview.jpg"}
        assert set(archive.namelist()) == {f"person/{name}" for name in names}
    *_, (_, details) = tuner.load_file(str(file), EVE)
    assert "Loaded person.zip" in details and np.array_equal(draw(tuner, ANNA), draw(tuner, EVE))


def test_person_of_a_large_portrait(tuner, publisher, files, tmp_path, monkeypatch):
    """Learned at 64 pixels; shown in the card, kept, loaded and tried at the 150 that the portrait has."""
    photograph, pipe = tmp_path / "large.png", tuner.studio.ready.result()
    Image.fromarray(picture(0, 300, 300)).save(photograph)
    points = pipe.detector.points
    large = (points(picture()) - [30, 34]) * np.float32(150 / 51) + 150
    monkeypatch.setattr(
        pipe.detector, "points", lambda image: large.astype(np.float32) if len(image) == 300 else points(image)
    )
    outputs = list(tuner.fine_tune([(str(photograph), None)], [], 2, request=ANNA))
    assert {output[0].shape for output in outputs if isinstance(output[0], np.ndarray)} == {(SIZE, SIZE, 3)}
    identity = tuner.studio.people.get(ANNA).identity
    side = identity.max_size
    assert 2 * SIZE < side == identity.crops.shape[1] // 2 * 2
    encoded = re.search(r"data:image/jpeg;base64,([^)]*)", publisher.card("ann/anna", ANNA))[1]
    assert Image.open(io.BytesIO(base64.b64decode(encoded))).size == (4 * side, side)
    assert f"Crops of the head, {len(identity.crops[0])} x" in publisher.card("ann/anna", ANNA)
    list(tuner.load_file(str(save(tuner, ANNA, tmp_path / "person.zip")), EVE))
    tried = [(open_clip(clip).width, said) for clip, *_, said in tuner.try_out(files[1], [], request=EVE) if clip]
    assert tried[0][0] == side
    assert f"{side} x {side} pixels (the portrait has no more), fine-tuned person" in tried[0][1]


def test_card_is_seen_before_it_is_sent(tuner, publisher, anna, hub):
    hub.requests.clear()
    card = publisher.card("ann/anna", ANNA)
    assert "# ann/anna" in card and CONSENT in card and "(data:image/jpeg;base64," in card
    assert not card.startswith("---") and hub.requests == []


def test_nothing_is_sent_without_consent(tuner, publisher, anna, hub):
    hub.requests.clear()
    assert f"Nothing was sent: tick the box by which you state that {CONSENT}" in told(
        publisher.publish("anna", True, False, ANN, ANNA)
    )
    assert "Give the repository a name" in told(publisher.publish(" ", True, True, ANN, ANNA))
    # the login of the machine (HF_TOKEN is ann's) is its owner's, not every visitor's
    assert "Give a token first" in told(publisher.publish("anna", True, True, "", ANNA))
    assert hub.requests == []


def test_token_leaves_the_page_as_it_is_used(tuner, publisher, anna):
    publishing = publisher.publish("anna", True, True, BOB[:-1], ANNA)
    assert next(publishing)[2] == ""
    assert "give a token of yours" in told(publishing)
    assert "this login may not write there" in told(publisher.publish("ann/anna", True, True, ANN_READS, ANNA))


def test_upload_that_broke_off_is_tried_again(tuner, publisher, anna, hub, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with hub.losing("PUT"):
        assert "broke off and changed nothing there" in told(publisher.publish("anna", True, True, ANN, ANNA))
    assert hub.repositories["ann/anna"].files().keys() == {".gitattributes"}
    *_, (said, _, _) = publisher.publish("anna", True, True, ANN, ANNA)
    assert "Published" in said and WEIGHTS_NAME in hub.repositories["ann/anna"].files()


def test_only_ones_own_private_people_are_loaded(tuner, publisher, anna, hub):
    list(publisher.publish("anna", True, True, ANN, ANNA))
    list(tuner.load_from_hub("ann/anna", ANN, ANNA))
    for token in ("", BOB):  # no login of the machine's, nothing out of a cache
        assert "there is no such repository, or it is private" in told(tuner.load_from_hub("ann/anna", token, EVE))
    assert "it needs a login that the hub accepts" in told(tuner.load_from_hub("ann/anna", "hf_Wrong", EVE))
    assert tuner.studio.people.find(EVE) is None


def test_names_that_give_nothing(tuner, publisher, anna, hub, tmp_path, monkeypatch):
    anna.save_pretrained(tmp_path / "runs" / "anna")
    monkeypatch.chdir(tmp_path)  # a folder of the machine is no name on the hub
    assert "there is no such repository" in told(tuner.load_from_hub("runs/anna", ANN, EVE))
    assert "no valid id" in told(tuner.load_from_hub(str(tmp_path / "runs" / "anna"), ANN, EVE))
    assert "as in owner/name" in told(tuner.load_from_hub(" ", "", EVE))
    hub.add("ann/else", {"weights.bin": pickle.dumps("evil")}, private=False)
    assert "'ann/else' on the hub holds no person" in told(tuner.load_from_hub("ann/else", "", EVE))
    list(publisher.publish("anna", True, True, ANN, ANNA))
    monkeypatch.setattr(people, "MAX_BYTES", 1000)
    assert "ann/anna is too large" in told(tuner.load_from_hub("ann/anna", ANN, EVE))


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["../identity.json", WEIGHTS_NAME], "'../identity.json', which is no part"),
        (["/etc/identity.json", WEIGHTS_NAME], "no part of a person"),
        (["a/b/identity.json", WEIGHTS_NAME], "no part of a person"),
        ([CONFIG_NAME, WEIGHTS_NAME, "weights.ckpt"], "'weights.ckpt', which is no part"),
        ([CONFIG_NAME, "a/identity.json", WEIGHTS_NAME], "no part of a person"),
        ([CONFIG_NAME], "holds no person"),
        ([CONFIG_NAME, WEIGHTS_NAME], "damaged"),
    ],
)
def test_strange_archives(names, says, tuner, tmp_path):
    file = tmp_path / "strange.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, pickle.dumps({"generator": 1}))
    said = told(tuner.load_file(str(file), ANNA))
    assert says in said and "strange.zip" in said and str(tmp_path) not in said
    assert tuner.studio.people.find(ANNA) is None


def test_archives_that_cannot_be_read(tuner, anna, tmp_path, monkeypatch):
    file = save(tuner, ANNA, tmp_path / "person.zip")
    whole = file.read_bytes()
    middle = len(whole) // 2  # among the weights
    for broken in (b"no archive", whole[:middle], whole[:middle] + b"\0" * 100 + whole[middle + 100 :]):
        file.write_bytes(broken)
        assert "person.zip is not a .zip that can be read" in told(tuner.load_file(str(file), EVE))
    assert "Choose the .zip" in told(tuner.load_file(None, EVE))
    file.write_bytes(whole)
    monkeypatch.setattr(people, "MAX_BYTES", 1000)
    assert "person.zip is too large" in told(tuner.load_file(str(file), EVE))


def test_person_of_another_model(tuner, anna, tmp_path, monkeypatch):
    file = save(tuner, ANNA, tmp_path / "person.zip")
    monkeypatch.setattr(tuner, "studio", Studio((make_pipeline(source_skips=False),)))
    said = told(tuner.load_file(str(file), EVE))
    assert "person.zip" in said and "was fine-tuned from another model" in said


def test_animates_the_fine_tuned_person(tuner, anna, files, portraits, monkeypatch):
    drawn, pipe = [], tuner.studio.ready.result()
    call = type(pipe).__call__
    monkeypatch.setattr(
        type(pipe), "__call__", lambda self, who, *a, **k: drawn.append(who) or call(self, who, *a, **k)
    )
    animator = Animator(tuner.studio)
    for person in ("portraits", FINE_TUNED):
        list(animator.animate(portraits, files[1], [], [], max_frames=2, person=person, request=ANNA))
    assert drawn == [[files[0]], anna]
    *_, (result, _, _, details) = tuner.try_out(files[1], [], request=ANNA)  # needs no portraits any longer
    assert result and drawn[-1] is anna and "fine-tuned person, relative motion" in details
    assert "no fine-tuned person of yours" in told(tuner.try_out(files[1], [], request=EVE))


def test_try_takes_the_example_where_there_is_no_clip(tuner, anna, monkeypatch):
    clips = []
    monkeypatch.setattr(Animator, "_generate", lambda self, who, driving, *_: clips.append(driving) or 1 / 0)
    assert "not your fault" in told(tuner.try_out(None, [], request=ANNA))
    assert clips == ["motion:nod"]


def test_portraits_that_do_not_fit(tuner, portraits, tmp_path, monkeypatch):
    monkeypatch.setattr(likeness, "OTHER_FACE", -1)  # all faces that the stub finds are of one shape
    wall, stranger = tmp_path / "wall.png", tmp_path / "bob.png"
    Image.fromarray(picture(NO_FACE)).save(wall)
    Image.fromarray(negative(picture(9))).save(stranger)
    seen = [look_at_picture(tuner.studio, path) for path in (portraits[0][0], str(wall))]
    said = told(tuner.fine_tune([*portraits, (str(wall), None)], seen, 2, request=ANNA))
    assert "No face was found in portrait 2 (wall.png)" in said
    assert "No face was found in wall.png" in told(tuner.fine_tune([(str(wall), None)], [], 2, request=ANNA))
    assert "Add at least one portrait" in told(tuner.fine_tune([], [], 2, request=ANNA))
    assert tuner.studio.people.find(ANNA) is None
    *_, (_, _, notes, details) = tuner.fine_tune([*portraits, (str(stranger), None)], [], 2, request=ANNA)
    assert "seems to show another person" in notes["value"] and "Fine-tuned on 2 portraits" in details


def test_memory_that_is_full(tuner, portraits, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(PixelLoss, "forward", full)
    assert "The machine's memory is full" in told(tuner.fine_tune(portraits, [], 2, request=ANNA))


def test_cancelled_or_left_nothing_remains(tuner, anna, portraits):
    """An earlier person stays where the next one was cancelled, and goes where the page is closed."""
    for end in (tuner.studio.stop, tuner.leave):
        learning = tuner.fine_tune(portraits, [], 500, request=ANNA)
        while "step" not in next(learning)[1]:
            pass
        end(ANNA)
        assert list(learning)[-1][3] == "Cancelled."
        kept = tuner.studio.people.find(ANNA)
        assert kept.identity is anna if end == tuner.studio.stop else kept is None


def test_people_are_their_visitors_own(monkeypatch):
    monkeypatch.setattr(people, "KEEP_SECONDS", 0.3)
    monkeypatch.setattr(people, "MAX_PEOPLE", 2)
    visitors = [SimpleNamespace(session_hash=name) for name in "abc"]
    kept = People()
    for visitor in visitors:
        kept.keep(visitor, visitor)
    assert [kept.find(visitor) for visitor in visitors] == [None, *visitors[1:]]
    kept.forget(visitors[1])
    assert [kept.find(visitor) for visitor in visitors] == [None, None, visitors[2]]
    time.sleep(0.2)
    kept.keep(visitors[2], "newer")
    kept._drop("c", visitors[2])  # the older one's hour ended just now
    time.sleep(0.2)
    assert kept.find(visitors[2]) == "newer"
    time.sleep(0.2)
    assert kept.find(visitors[2]) is None
    with pytest.raises(ValueError, match="session_hash"):
        kept.keep(SimpleNamespace(session_hash=None), "everybody's")


def test_login_on_a_space(tuner, publisher, anna, hub, monkeypatch):
    for variable in ("OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL"):
        monkeypatch.setenv(variable, "of the Space")
        monkeypatch.setattr(gradio.oauth, variable, "of the Space")  # read when Gradio is imported
    monkeypatch.setenv("SYSTEM", "spaces")
    monkeypatch.setenv("SPACE_ID", "ann/space")
    demo = create_demo(tuner.studio.ready.result())
    parts = {part["props"].get("elem_id"): part["props"] for part in demo.get_config_file()["components"]}
    assert "login" in parts and not parts["token"]["visible"] and not parts["load-token"]["visible"]
    assert "Log in first." in told(publisher.publish_as_logged_in("anna", True, True, ANNA))
    login = gr.OAuthToken(ANN, "write-repos", 0)
    *_, (said, _) = publisher.publish_as_logged_in("anna", False, True, ANNA, login)
    assert "Everyone can see it" in said and not hub.repositories["ann/anna"].private
    *_, (_, details) = tuner.load_as_logged_in("ann/anna", EVE, login)
    assert "Loaded" in details


def test_for_programs(tuner, files, hub, tmp_path, monkeypatch):
    """Each client's person is its own; the token's field comes back empty."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    demo = create_demo(tuner.studio.ready.result())
    demo.studio._detector = tuner.studio._detector
    url = demo.launch(prevent_thread_lock=True, quiet=True, **LAUNCH_OPTIONS)[1]
    try:
        client, stranger = (Client(url, verbose=False, download_files=tmp_path) for _ in range(2))
        portraits = [{"image": handle_file(files[0]), "caption": None}]
        *_, details = client.predict(portraits, 2, "lora", api_name="/fine_tune")
        assert "Fine-tuned on 1 portrait" in details
        assert zipfile.is_zipfile(client.predict(api_name="/save_person"))
        assert "# ann/anna" in client.predict("ann/anna", api_name="/person_card")
        said, _, token = client.predict("anna", True, True, ANN, api_name="/publish_person")
        assert "ann/anna" in said and token == "" and "ann/anna" in hub.repositories
        with pytest.raises(ValueError, match="no fine-tuned person of yours"):
            stranger.predict(api_name="/save_person")
    finally:
        demo.close()


def test_what_compares_frames_is_loaded_once_and_needs_no_network():
    studio = Studio((make_pipeline(),))
    content = studio.content()
    assert isinstance(content.backbone, VGGFeatures) and studio.content() is content
