"""Publishing on the Hugging Face hub; errors and tokens are treated as in `models/downloading.py`."""

import threading
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi

from ..models.downloading import explain
from ..models.errors import FsthError


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
        additions = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
        _send_large_files(api, repo_id, additions, revision)
        commit = api.create_commit(
            repo_id,
            additions,
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


def _send_large_files(api: HfApi, repo_id: str, additions: list[CommitOperationAdd], revision: str | None) -> None:
    """
    Upload what the commit will only refer to. An interrupt ends it at once: the file that is on its way is sent by a
    thread for which nobody waits, and the client's own threads, which a process would wait for, have nothing to do
    where it gets one file at a time.
    """
    stopped, errors = threading.Event(), []

    def send() -> None:
        try:
            for addition in additions:
                if stopped.is_set():
                    return
                api.preupload_lfs_files(repo_id, [addition], revision=revision, free_memory=False)
        except BaseException as error:  # whose thread it is raises it
            errors.append(error)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    try:
        sender.join()
    finally:
        stopped.set()
    if errors:
        raise errors[0]
