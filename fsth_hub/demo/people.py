"""Visitors' fine-tuned people: to whom each belongs, and the ways into and out of the page: a file, and the hub.

A file or repository of somebody's is not trusted: two files of known names are taken out of it, within a limit, and
nothing is ever unpickled.
"""

import shutil
import tempfile
import threading
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import gradio as gr
from huggingface_hub import HfApi, snapshot_download

from ..finetuning.names import LORA_CONFIG_NAME, LORA_WEIGHTS_NAME
from ..hub.model_card import CARD_NAME, PREVIEW_NAME
from ..models.downloading import LOG_IN, explain
from ..models.errors import FsthError
from ..pipelines.names import COMPONENTS_FOLDER, CONFIG_NAME, WEIGHTS_NAME


if TYPE_CHECKING:
    from ..pipelines.identity import FsthTunedPerson


KEEP_SECONDS = 3600
MAX_PEOPLE = 32  # with the bundled model 24 MB of weights each, and up to 60 MB of portraits ready to be driven
MAX_BYTES = 256 * 2**20  # of a person from a file or the hub
NEEDED = {CONFIG_NAME, WEIGHTS_NAME}
LORA = {LORA_CONFIG_NAME, LORA_WEIGHTS_NAME}  # where the person was tuned by LoRA
READ = NEEDED | LORA | {f"{COMPONENTS_FOLDER}/{name}" for name in LORA}
ALLOWED = READ | {CARD_NAME, PREVIEW_NAME}


@dataclass(frozen=True)
class Kept:
    """A person, and the name of the page's model that generates them."""

    identity: "FsthTunedPerson"
    model: str | None


class People:
    """One fine-tuned person of each visitor, seen by nobody else, until they leave or an hour has passed."""

    def __init__(self):
        self._kept: dict[str | None, tuple[Kept, threading.Timer]] = {}  # the oldest first
        self._lock = threading.RLock()

    def keep(self, request: gr.Request | None, person: Kept) -> None:
        """Keep a person in place of the visitor's earlier one. Of too many, the oldest goes."""
        session = session_of(request)
        end = threading.Timer(KEEP_SECONDS, self._drop, (session, person))
        end.daemon = True
        with self._lock:
            self._drop(session)
            self._kept[session] = person, end
            if len(self._kept) > MAX_PEOPLE:
                self._drop(next(iter(self._kept)))
        end.start()

    def _drop(self, session: str | None, person: Kept | None = None) -> None:
        """Forget the session's person, if it is this one."""
        with self._lock:
            kept, end = self._kept.get(session, (None, None))
            if kept is not None and (person is None or person is kept):
                end.cancel()
                del self._kept[session]

    def find(self, request: gr.Request | None) -> Kept | None:
        return self._kept.get(session_of(request), (None, None))[0]

    def get(self, request: gr.Request | None) -> Kept:
        """The visitor's person; raises `FsthError` where there is none."""
        person = self.find(request)
        if person is None:
            raise FsthError(
                'There is no fine-tuned person of yours here: make or load one under "Your person"; it is kept for '
                "an hour, and no longer than the page is open."
            )
        return person

    def forget(self, request: gr.Request | None) -> None:
        self._drop(session_of(request))


def session_of(request: gr.Request | None) -> str | None:
    """Whose request it is; None for a caller in this process. Those who do not say get nothing to share."""
    if request is None:
        return None
    if not request.session_hash:
        raise FsthError("This needs a session: give the request a session_hash of your own.")
    return request.session_hash


def write_file(identity: "FsthTunedPerson", path: Path) -> None:
    """Write a person as a .zip of their folder, which takes the file's name: safetensors, JSON, card and preview."""
    with tempfile.TemporaryDirectory(prefix="fsth-") as temporary:
        folder = Path(temporary, path.stem)
        identity.save_pretrained(folder)
        identity.write_card(folder, path.stem)
        with zipfile.ZipFile(path, "w") as archive:  # stored: weights cannot be made smaller
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                archive.write(file, f"{folder.name}/{file.relative_to(folder).as_posix()}")


def unpack(path: Path, folder: Path) -> Path:
    """Take out of a .zip what a person is made of, into a new folder; raises `FsthError` where it holds other things.

    The names in the archive, whatever they are, do not tell where anything is written.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {}
            for entry in archive.infolist():
                if entry.is_dir():
                    continue
                parts = PurePosixPath(entry.filename).parts
                # as it is, or in a folder of any name
                name = next((n for n in map("/".join, (parts, parts[1:])) if n in ALLOWED), None)
                if name is None or name in entries or not {"..", "/"}.isdisjoint(parts):
                    raise FsthError(
                        f"{path.name} holds {entry.filename[:100]!r}, which is no part of a person: give a file as "
                        "this page saves it."
                    )
                entries[name] = entry
            if not NEEDED.issubset(entries):
                raise FsthError(
                    f"{path.name} holds no person: it needs {CONFIG_NAME} and {WEIGHTS_NAME}, as this page saves them."
                )
            check_size(path.name, sum(entry.file_size for entry in entries.values()))
            (folder / COMPONENTS_FOLDER).mkdir(parents=True)
            for name in READ & entries.keys():  # no more than an entry's stated size is ever read of it
                with archive.open(entries[name]) as packed, open(folder / name, "wb") as file:
                    shutil.copyfileobj(packed, file)
        return folder
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        if isinstance(error, FsthError):
            raise
        raise FsthError(f"{path.name} is not a .zip that can be read: give a file as this page saves it.") from error


def download(repo_id: str, token: str | None, folder: Path) -> Path:
    """Fetch a person from the hub into a folder of the visitor's own, with their token alone.

    Not by `hub.fetch`: it would take a name for a folder of this machine, its owner's login for the visitor's, and
    out of the cache a private person whom another visitor had loaded.
    """
    token = token or False
    try:
        api = HfApi(token=token)
        commit = api.model_info(repo_id).sha
        files = api.list_repo_tree(repo_id, revision=commit, recursive=True)
        sizes = {file.path: file.size for file in files if file.path in READ}
        reason = None
    except Exception as error:  # as in `hub.fetch`
        reason = explain(error, token=token)
    if reason is None:
        if not NEEDED.issubset(sizes):
            raise FsthError(f"'{repo_id}' on the hub holds no person made with this software: check the name.")
        check_size(repo_id, sum(sizes.values()))
        try:
            options = {"revision": commit, "token": token, "cache_dir": folder, "allow_patterns": list(READ)}
            return Path(snapshot_download(repo_id, **options))
        except Exception as error:
            reason = explain(error, commit, token)
    raise FsthError(in_page_words(f"The hub does not give '{repo_id}': {reason}."))


def check_size(name: str, size: int) -> None:
    if size > MAX_BYTES:
        raise FsthError(f"{name} is too large: a person of at most {MAX_BYTES // 2**20} MB can be loaded here.")


def in_page_words(text: str) -> str:
    """A sentence of `fsth_hub.hub`, which is for the command line, for the page."""
    return text.replace(LOG_IN, "give a token of yours (on the hub: Settings, Access Tokens) that may do it")
