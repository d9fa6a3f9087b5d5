"""The Hugging Face hub: folders fetched from it, folders published on it, and a sentence for what goes wrong.

The token is the hub's own (`hf auth login` or HF_TOKEN) or given. The client's errors can quote a request, and with it
the token: so they are neither shown nor chained, and no raise stands inside an `except`, where Python would keep them.
The causes go to this module's logger at DEBUG, with the tokens blacked out.
"""

import logging
import re
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .errors import FsthError, FsthNotFoundError


# What loading may read. Pickled weights, which could run code, are not even downloaded, and no photographs either.
FETCHED = ["*.json", "*.safetensors", "*.py", "*.md"]
FETCH_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
LOG_IN = "run `hf auth login` or set HF_TOKEN"
SECRET = re.compile(r"hf_\w+|(?<=bearer )[^\s,;]+", re.IGNORECASE)

logger = logging.getLogger(__name__)


def fetch(
    name: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """
    The folder of a model or identity: a local one as it is, a hub repository's from the cache or downloaded into it.

    Args:
        name (`str` or `Path`): A folder or the id of a hub repository.
        revision (`str`, *optional*, defaults to `"main"`): Branch, tag or commit of the repository.
        token, cache_dir, local_files_only, force_download: as in `huggingface_hub.snapshot_download`.

    Returns:
        `Path`: The folder; of a repository its last part is the hash of the commit.

    Raises:
        FsthNotFoundError: There is neither, it may not be seen, or it cannot be downloaded whole.
    """
    if Path(name).is_dir():
        return Path(name)
    options = {"revision": revision, "token": token, "cache_dir": cache_dir}
    options |= {"local_files_only": local_files_only, "force_download": force_download}
    try:
        return Path(snapshot_download(str(name), allow_patterns=FETCHED, **options))
    except Exception as error:  # of the hub, the network, the disk, and of whatever the client is built on
        reason = explain(error, revision, token)
    raise FsthNotFoundError(f"There is no folder '{name}', and the hub does not give it either: {reason}.")


def create_repository(repo_id: str, *, private: bool = True, token: str | bool | None = None) -> str:
    """
    A model repository that can be published to: created if there is none; returns its full id.

    Args:
        repo_id (`str`): `owner/name`, or a name alone for the owner of the token.
        private (`bool`, *optional*, defaults to `True`):
            Of a new repository; one that is there stays as it is, and is refused if it is public and this is `True`.
        token (`str` or `bool`, *optional*): By default the hub's login or HF_TOKEN.

    Raises:
        FsthError: There is no login, or none that may write to the repository, or everyone could see it.
    """
    api = HfApi(token=token)
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        api.auth_check(repo_id, write=True)
        is_private = api.model_info(repo_id).private
        reason = None
    except Exception as error:
        reason = explain(error, token=token)
    if reason:
        raise FsthError(f"'{repo_id}' cannot be published to: {reason}.")
    if private and not is_private:
        raise FsthError(
            f"'{repo_id}' is there already and everyone can see it: choose another name, or say that it may be public."
        )
    return repo_id


def publish(
    folder: str | Path,
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
) -> str:
    """
    Upload a folder into a repository of [`create_repository`], in one commit: whole or not at all. Other files there
    stay.

    Args:
        folder (`str` or `Path`): All that is in it is uploaded.
        repo_id (`str`): `owner/name`.
        revision (`str`, *optional*, defaults to `"main"`): The branch, made from the main one if it is new.
        token (`str` or `bool`, *optional*): as in [`create_repository`].
        commit_message (`str`, *optional*): By default it says what uploaded it.

    Returns:
        `str`: The address of the commit.

    Raises:
        FsthError: The repository cannot be written to, or the upload broke off; the folder stays as it is.
    """
    api = HfApi(token=token)
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    try:
        if revision is not None and not revision.startswith("refs/pr/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        # `upload_folder` may split what it uploads into several commits
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files],
            commit_message=commit_message or "Upload with fsth_hub",
            revision=revision,
        )
        return commit.commit_url
    except Exception as error:
        reason = explain(error, revision, token)
    raise FsthError(
        f"The upload to '{repo_id}' broke off and changed nothing there: {reason}; nothing is lost here, so do the "
        "same again, and what has arrived will not be sent twice."
    )


def scrub(text: str, token: str | bool | None = None) -> str:
    """A text without the tokens that it may quote: the given one, that of the login, and all that look like one."""
    for secret in (token, get_token()):
        if isinstance(secret, str) and secret:
            text = text.replace(secret, "***").replace(repr(secret)[1:-1], "***")
    return SECRET.sub("***", text)


def explain(error: Exception, revision: str | None = None, token: str | bool | None = None) -> str:
    """Why the hub's client gave up, without its own words, which may quote a token and are logged without it."""
    logger.debug("The hub's client gave up: %s", scrub(f"{type(error).__name__}: {error}", token))
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, HFValidationError):
        return "it is no valid id of a repository, which looks like 'owner/name'"
    if isinstance(error, GatedRepoError):
        return f"its owner grants access one by one; ask on its page, then {LOG_IN}"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"there is no such repository, or it is private and this login may not see it; check the id, or {LOG_IN}"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"the repository has no revision '{revision}'"
    if isinstance(error, (LocalTokenNotFoundError, UnicodeError)) or status == 401:
        return f"it needs a login that the hub accepts; {LOG_IN}"
    if status == 403:
        return "this login may not write there; use a token of its owner with permission to write"
    if isinstance(error, LocalEntryNotFoundError):
        return "the hub cannot be reached or is not asked, and the cache does not hold it whole; check the network"
    if isinstance(error, OfflineModeIsEnabled):
        return "the hub is not asked while HF_HUB_OFFLINE is set"
    if status is not None:
        return f"the hub answered with error {status}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    return f"the connection failed ({type(error).__name__}); check the network"
