"""Publishing a trained model on the hub. The token is the hub's own (`hf auth login` or HF_TOKEN) and never shown."""

from pathlib import Path

from huggingface_hub import HfApi

from fsth_hub.errors import FsthError


def prepare_repository(repo: str, public: bool):
    """Before training: the repository exists, private unless it did before or is to be public, and may be written to.

    Raises:
        FsthError: there is no login, or none that may write to `repo`.
    """
    try:
        HfApi().whoami()
    except Exception as error:  # only its type is shown: a message may quote the request, and the token with it
        raise FsthError(
            f"--push_to_hub {repo} needs a login: run `hf auth login` or set HF_TOKEN ({type(error).__name__})."
        ) from None
    try:
        HfApi().create_repo(repo, private=not public, exist_ok=True)
    except Exception as error:
        raise FsthError(
            f"--push_to_hub {repo} cannot be written to with this login ({type(error).__name__})."
        ) from None


def push_model(folder: Path, repo: str) -> str:
    """Uploads a model's folder, each network in its own below it, and returns the address of the commit."""
    try:
        commit = HfApi().upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload the trained networks")
    except Exception as error:
        raise FsthError(
            f"The model is in {folder}, but could not be uploaded to {repo} ({type(error).__name__}); "
            f"try `hf upload {repo} {folder}`."
        ) from None
    return commit.commit_url
