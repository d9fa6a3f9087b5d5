"""The one exception that callers of fsth_hub need to catch: its message is a sentence for the person who sees it."""


class FsthError(ValueError):
    """An input that cannot be used. The message says in one sentence what is wrong and what to do about it."""


class FsthMemoryError(FsthError):
    """The machine's memory is too small for what was asked."""


class FsthNotFoundError(FsthError, OSError):
    """A file, folder or repository that is not there, may not be seen or cannot be reached; an `OSError`, as in Python
    and in the hub's own client."""


class FsthWarning(UserWarning):
    """A sentence for the person who sees it about an input that can be used but may disappoint."""


class NoFaceError(FsthError):
    """No face was found in a portrait or in a whole clip."""


class VideoError(FsthError):
    """A file that is not a readable clip, or a clip that cannot be written."""
