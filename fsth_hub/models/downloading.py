"""What loading fetches from the Hugging Face hub, and a sentence for what goes wrong there.

The token is the hub's own (`hf auth login` or HF_TOKEN) or given. The client's errors can quote a request, and with it
the token: so they are neither shown nor chained, and no raise stands inside an `except`, where Python would keep them.
The causes go to this module's logger at DEBUG, with the tokens blacked out.
"""

import logging
import re
from pathlib import Path

from huggingface_hub import get_token, snapshot_download
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

from .errors import FsthNotFoundError


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
