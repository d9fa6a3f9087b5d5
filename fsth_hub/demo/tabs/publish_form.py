"""Publishing a visitor's person on the hub: with their own token or login, their consent, and the card shown first."""

import base64
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass

import gradio as gr
from gradio.utils import get_space

from ...hub.model_card import CONSENT, PREVIEW_NAME
from ...models.errors import FsthError
from ..errors import told_to_visitor
from ..jobs import progress_bar
from ..people import in_page_words
from ..studio import Studio


UPLOADS_AT_ONCE = 4


class Publisher:
    """The form's handlers."""

    def __init__(self, studio: Studio):
        self.studio = studio

    def card(self, name: str, request: gr.Request = None) -> str:
        """The card as it will be published, with its picture."""
        with told_to_visitor():
            identity, picture = self.studio.people.get(request).identity, io.BytesIO()
            text = identity.card((name or "").strip() or "your-name/person").text
            identity.preview().save(picture, "JPEG", quality=90)
            return text.replace(
                PREVIEW_NAME, f"data:image/jpeg;base64,{base64.b64encode(picture.getvalue()).decode()}"
            )

    def publish(
        self, name: str, private: bool, consent: bool, token: str | None = None, request: gr.Request = None
    ) -> Iterator[tuple[str, str, str | dict]]:
        """Publish the person with the visitor's own token; gives (said, progress, the token's field)."""
        with told_to_visitor():
            identity = self.studio.people.get(request).identity
            if not consent:
                raise FsthError(
                    f"Nothing was sent: tick the box by which you state that {CONSENT}, then publish again."
                )
            name, token = (name or "").strip(), (token or "").strip()
            if not name:
                raise FsthError("Give the repository a name first, as in your-name/anna.")
            if not token:
                raise FsthError(
                    "Log in first."
                    if on_space()
                    else "Give a token first, of those that may write: on the hub under Settings, Access Tokens."
                )
            yield "", progress_bar(f"Publishing {name}"), ""  # the page forgets the token as it is used
            try:
                address = identity.push_to_hub(name, consent=True, private=private, token=token)
            except FsthError as error:
                reason = in_page_words(str(error))
            else:
                repository = address.partition("/commit/")[0]
                seen_by = (
                    "Only you can see it"
                    if private
                    else "Everyone can see it, unless the repository was private before"
                )
                yield f"Published: [{repository}]({repository}). {seen_by}.", "", ""
                return
            raise FsthError(reason)  # not chained to what may hold the token

    def publish_as_logged_in(
        self,
        name: str,
        private: bool,
        consent: bool,
        request: gr.Request = None,
        login: gr.OAuthToken | None = None,
    ) -> Iterator[tuple[str, str]]:
        """The same on a Space, with the login's token."""
        for said, progress, _ in self.publish(name, private, consent, login and login.token, request):
            yield said, progress


def on_space() -> bool:
    """Whether the page runs in a Space in which visitors can log in."""
    return bool(get_space() and os.environ.get("OAUTH_CLIENT_ID"))


def token_field(info: str, elem_id: str) -> gr.Textbox:
    """A token's field; on a Space visitors log in instead."""
    return gr.Textbox(
        label="Token", info=info, type="password", visible=not on_space(), buttons=[], elem_id=elem_id,
        html_attributes=gr.InputHTMLAttributes(autocomplete="off"),
    )  # fmt: skip


@dataclass(frozen=True)
class PublishForm:
    """What is to be renewed for a new person: the card of the name given, the consent, and what was said last."""

    name: gr.Textbox
    card: gr.Markdown
    consent: gr.Checkbox
    said: gr.Markdown


def publish_form(publisher: Publisher) -> PublishForm:
    """Build what publishing takes, and wire it."""
    with gr.Accordion("Publish to the hub", open=False, elem_id="publish"):
        gr.Markdown(
            "Sent are the learned weights and, of each portrait, the crop of the head, at most 512 x 512 pixels, that "
            "the model generates from: who may see the repository can see them. The photographs are not sent."
        )
        name = gr.Textbox(label="Repository", placeholder="your-name/anna", elem_id="repository")
        private = gr.Checkbox(True, label="Private: only you can see it", elem_id="private")
        with gr.Accordion("The card that will be sent", open=False, elem_id="card-accordion"):
            card = gr.Markdown(max_height=480, elem_id="card")
        consent = gr.Checkbox(False, label=f"I state that {CONSENT}.", elem_id="consent")
        if on_space():
            gr.LoginButton(elem_id="login")
        token = token_field(
            "Of those that may write: on the hub under Settings, Access Tokens. It is not kept.", "token"
        )
        publish = gr.Button("4. Publish", variant="primary", elem_id="publish-button")
        progress = gr.HTML(elem_id="publish-progress", elem_classes="job-progress")
        said = gr.Markdown(elem_id="published")

    hidden = {"show_progress": "hidden"}
    uploads = {"api_name": "publish_person", "concurrency_limit": UPLOADS_AT_ONCE, **hidden}
    name.blur(publisher.card, name, card, api_name="person_card", **hidden)
    inputs, outputs = [name, private, consent], [said, progress]
    if on_space():
        event = publish.click(publisher.publish_as_logged_in, inputs, outputs, **uploads)
    else:
        event = publish.click(publisher.publish, [*inputs, token], [*outputs, token], **uploads)
    event.failure(lambda: ("", ""), None, outputs, api_visibility="private", **hidden)
    return PublishForm(name, card, consent, said)
