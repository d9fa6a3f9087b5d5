"""Colour profiles (ICC, version 2), made by hand."""

import struct

import numpy as np


# Of sRGB, as profiles have them: XYZ under D50.
SRGB_PRIMARIES = (0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7139)
WHITE = (0.9642, 1.0, 0.8249)


def rgb_profile(primaries=SRGB_PRIMARIES, gamma: float = 2.2) -> bytes:
    """Of three primaries (XYZ) and a gamma."""
    tags = {f"{name}XYZ": _xyz(place) for name, place in zip("rgb", primaries, strict=True)}
    return _profile("RGB ", "XYZ ", tags | {f"{name}TRC": _curve(gamma) for name in "rgb"})


def grey_profile(gamma: float) -> bytes:
    return _profile("GRAY", "XYZ ", {"kTRC": _curve(gamma)})


def cmyk_profile(lab_of) -> bytes:
    """`lab_of`: what the inks (c, m, y, k, each 0 or 1) look like, Lab; between them it is linear."""
    grid = [lab_of(*(number >> shift & 1 for shift in (3, 2, 1, 0))) for number in range(16)]
    colours = [(round(light * 2.55), round(a + 128), round(b + 128)) for light, a, b in grid]
    straight = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + b"".join(map(_fixed, np.eye(3).ravel()))
    table += straight * 4 + bytes(sum(colours, ())) + straight * 3
    return _profile("CMYK", "Lab ", {"A2B0": table})


def _profile(space: str, connection: str, tags: dict[str, bytes]) -> bytes:
    tags = {"wtpt": _xyz(WHITE), "cprt": b"text" + bytes(4) + b"none\0", "desc": _description("made")} | tags
    offset, table, data = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, tag in tags.items():
        table += struct.pack(">4sII", name.encode(), offset + len(data), len(tag))
        data += tag + bytes(-len(tag) % 4)
    kind = "prtr" if space == "CMYK" else "mntr"
    header = struct.pack(
        ">I4xI4s4s4s", offset + len(data), 0x02400000, kind.encode(), space.encode(), connection.encode()
    )
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + b"".join(map(_fixed, WHITE))
    return header.ljust(128, b"\0") + table + data


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _xyz(place) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(map(_fixed, place))


def _curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))


def _description(text: str) -> bytes:
    return b"desc" + bytes(4) + struct.pack(">I", len(text) + 1) + text.encode() + bytes(1 + 8 + 3 + 67)
