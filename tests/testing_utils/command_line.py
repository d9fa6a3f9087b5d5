"""The command line, in this process."""

import numpy as np
from typer.testing import CliRunner

from fsth_hub.cli import main as cli
from fsth_hub.media.reading import open_clip


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def assert_one_line_error(result, *words):
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("fsth: error: ") and result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


def read(path):
    return np.stack(list(open_clip(path)))  # N x H x W x 3
