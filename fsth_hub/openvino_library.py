"""OpenVINO, where it is installed (the extra `fast`): what computes networks quickly on processors."""

import sys
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec


def is_installed() -> bool:
    return find_spec("openvino") is not None


@contextmanager
def untold():
    """Within it, importing OpenVINO or parts of it does not tell its makers so over the internet."""
    silenced = "openvino_telemetry" not in sys.modules
    if silenced:
        sys.modules["openvino_telemetry"] = None  # cannot be imported, and OpenVINO does without
    try:
        yield
    finally:
        if silenced:
            del sys.modules["openvino_telemetry"]


@cache
def load_openvino():
    with untold():
        import openvino
    return openvino


@cache
def core():
    return load_openvino().Core()
