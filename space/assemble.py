"""Assemble the Space: write the folder that is pushed, check it, and push it where asked to.

    python space/assemble.py OUT
    python space/assemble.py OUT --push OWNER/NAME

The package goes in as source, with the bundled model: it is in no registry, and a Space installs requirements.txt
before it has any other file of the repository, so that a wheel beside it would not be found. The requirements are
those of pyproject.toml in the versions of constraints.txt, with Content Credentials, OpenVINO and the login of
the hub.
"""

import argparse
import re
import shutil
import sys
import tempfile
import tomllib
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, SpaceCard, SpaceHardware
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # runs from a checkout that is not installed

from fsth_hub.models.downloading import explain
from fsth_hub.models.errors import FsthError


FILES = {
    "README.md": "space/README.md",
    "app.py": "space/app.py",
    "zero_gpu.py": "space/zero_gpu.py",
    "packages.txt": "space/packages.txt",
    "thumbnail.jpg": "docs/figure.jpg",
    "LICENSE": "LICENSE",
    "LICENSE-WEIGHTS": "LICENSE-WEIGHTS",
    "NOTICE": "NOTICE",
    "fsth_hub": "fsth_hub",
}
WRITTEN = {"requirements.txt", ".gitattributes"}
EXTRAS = ("credentials", "fast")
LARGE_FILES = ("*.jpg", "*.mp4", "*.onnx", "*.safetensors", "*.tflite", "*.webp")  # stored by Git LFS
MAX_SIZE = 10 * 2**20  # of a file that the hub takes without LFS
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
MAX_DESCRIPTION = 60  # letters that the hub shows


def assemble(out: Path, repo_id: str | None = None) -> None:
    """
    Write the folder of the Space, whole and checked or not at all.

    Args:
        out: A folder that does not exist or is empty.
        repo_id: Where it will be pushed; the thumbnail's address, which has to be absolute, depends on it.

    Raises:
        FsthError: There is something in the folder already, or what was assembled would not run as a Space.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FsthError(f"{out} is not an empty folder: give another, or remove it.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".space-", dir=out.parent) as temporary:
        folder = Path(temporary, "space")
        folder.mkdir()
        for name, source in FILES.items():
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copyfile(ROOT / source, folder / name)
        (folder / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements()))
        rules = (f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LARGE_FILES)
        (folder / ".gitattributes").write_text("".join(rules))
        if repo_id:
            card = SpaceCard.load(folder / "README.md")
            card.data["thumbnail"] = f"{HfApi().endpoint}/spaces/{repo_id}/resolve/main/{card.data['thumbnail']}"
            card.save(folder / "README.md")
        if problems := check(folder):
            raise FsthError("This would not run as a Space: " + "; ".join(problems) + ".")
        folder.replace(out)


def versions() -> dict[str, str]:
    """The versions of constraints.txt by canonical name."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {
        canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines) if version
    }


def requirements() -> list[str]:
    """What the package needs on a Space, each in the version that it was tested with."""
    project, pins = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"], versions()
    lines = list(project["dependencies"])
    for extra in EXTRAS:
        lines += project["optional-dependencies"][extra]
    pinned = []
    for requirement in map(Requirement, lines):
        name, extras = canonicalize_name(requirement.name), set(requirement.extras)
        if name == "gradio":
            extras.add("oauth")
        pinned.append(name + (f"[{','.join(sorted(extras))}]" if extras else "") + f"=={pins[name]}")
    return sorted(pinned)


def check(folder: Path) -> list[str]:
    """What is wrong with a Space's folder, in words; an empty list where nothing is."""
    problems = []
    if strangers := {path.name for path in folder.iterdir()} ^ (FILES.keys() | WRITTEN):
        problems.append(f"{', '.join(sorted(strangers))} should not be there, or is missing")
    rules = [line.split()[0] for line in (folder / ".gitattributes").read_text().splitlines() if "filter=lfs" in line]
    for path in sorted(path for path in folder.rglob("*") if not path.is_dir()):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            problems.append(f"{name} is a link")
        elif (path.stat().st_size > MAX_SIZE or _is_binary(path)) and not any(fnmatch(path.name, r) for r in rules):
            problems.append(f"{name} is large or no text, and .gitattributes has no rule that gives it to LFS")
    for package in (folder / "packages.txt").read_text().splitlines():
        if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]+", package):
            problems.append(f"packages.txt names '{package}', which is no package (comments are not understood there)")
    return problems + _check_front_matter(folder)


def _check_front_matter(folder: Path) -> list[str]:
    try:
        card = SpaceCard.load(folder / "README.md", ignore_metadata_errors=False).data.to_dict()
    except Exception as error:  # of YAML, or of what it says
        return [f"the front matter of README.md cannot be read ({type(error).__name__})"]
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    right = {
        "title": bool(card.get("title")),
        "sdk": card.get("sdk") == "gradio",
        "sdk_version": card.get("sdk_version") == versions()["gradio"],
        "python_version": str(card.get("python_version")) in SpecifierSet(python),
        "app_file": (folder / str(card.get("app_file"))).is_file(),
        "suggested_hardware": card.get("suggested_hardware") in [hardware.value for hardware in SpaceHardware],
        "colorFrom": card.get("colorFrom") in COLOURS,
        "colorTo": card.get("colorTo") in COLOURS,
        "short_description": 0 < len(card.get("short_description", "")) <= MAX_DESCRIPTION,
        "thumbnail": (folder / str(card.get("thumbnail")).rpartition("/")[2]).is_file(),
    }
    return [f"{name} of README.md cannot be '{card.get(name)}'" for name, is_right in right.items() if not is_right]


def _is_binary(path: Path) -> bool:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return True
    return False


def push(folder: Path, repo_id: str) -> str:
    """
    Upload the folder in one commit, with which files that are no longer in it go; returns the commit's address.

    A new Space is private until its owner opens it in its settings; one that is there stays as it is.

    Raises:
        FsthError: The Space cannot be written to; nothing there has changed then.
    """
    api, options = HfApi(), {"repo_type": "space"}
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    try:
        api.create_repo(repo_id, private=True, exist_ok=True, space_sdk="gradio", **options)
        gone = set(api.list_repo_files(repo_id, **options)) - paths.keys()
        operations = [CommitOperationAdd(name, path) for name, path in sorted(paths.items())]
        operations += [CommitOperationDelete(name) for name in sorted(gone)]
        return api.create_commit(repo_id, operations, commit_message="Update the demo", **options).commit_url
    except Exception as error:  # of the hub, the network, the disk; its own words may quote the token
        reason = explain(error)
    raise FsthError(f"The Space '{repo_id}' was not changed: {reason}; the folder {folder} stays as it is.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write, which must not exist or be empty")
    parser.add_argument("--push", metavar="OWNER/NAME", help="the Space to upload it to; a new one is private")
    args = parser.parse_args()
    try:
        assemble(args.out, args.push)
        print(push(args.out, args.push) if args.push else args.out)
    except FsthError as error:
        sys.exit(f"assemble.py: error: {error}")


if __name__ == "__main__":
    main()
