"""Damaged and dishonest files, made of sound ones: of bytes, of JSON, of safetensors, of containers, of text."""

import json
import math
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path


NUMBERS = (0, 1, 2, 255, 256, 4096, 0x7FFF, 0xFFFF, 0x10000, 0xFFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
HEADERS = (
    b"\xff\xd8\xff\xe0\x00\x10JFIF\x00", b"\x89PNG\r\n\x1a\n", b"RIFF\xff\xff\xff\x7fWEBPVP8X", b"GIF89a",
    b"\x00\x00\x00\x1cftypheic", b"\x00\x00\x00\x1cftypavif", b"\x00\x00\x00\x20ftypisom", b"\x1aE\xdf\xa3",
    b"%!PS-Adobe-3.0", b"PK\x03\x04", b"\x80\x04\x95", b"#EXTM3U\n/etc/passwd\n", b"\x00" * 16,
)  # fmt: skip
# of mp4 and its kin; those in which others lie are walked
ATOMS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"moof", b"traf", b"mvex", b"iprp", b"ipco", b"dinf")
VALUES = (
    None, True, False, -1, 0, 1, 2**31, 2**63, 10**400, -(10**400), 0.5, 1e-320, 1e308, math.nan, math.inf, -math.inf,
    "", "x", "NaN", "../../etc/passwd", "a" * 5000, "\x00\x1b[31m\n", "\ud800", [], [[]], {}, {"a": 1}, [1, "2", None],
    [1e9] * 20,
)  # fmt: skip
SAME_WIDTH = {"F32": ("I32", "U32"), "F16": ("BF16", "I16"), "U8": ("I8", "BOOL", "F8_E4M3"), "I64": ("F64", "U64")}
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "C64", "", "x", 3)
CELLS = (
    "",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "-1",
    "1e9",
    "0x10",
    "１",
    "a",
    "\t",
    '"',
    "'",
    "\x00",
    "99:99:99:99",
    "1" * 400,
)

Mutation = Callable[[bytes, random.Random], bytes]


def number(rng: random.Random) -> int:
    return rng.choice(NUMBERS) if rng.random() < 0.8 else rng.getrandbits(32)


# Any bytes.


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    data = bytearray(data)
    for _ in range(rng.choice((1, 2, 8, 64))):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def flip_early_bits(data: bytes, rng: random.Random) -> bytes:
    """In the header, where it matters."""
    return flip_bits(data[:200], rng) + data[200:]


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.choice((0, 1, 8, 12, 30, len(data) - 1, rng.randrange(len(data) + 1)))]


def write_number(data: bytes, rng: random.Random) -> bytes:
    size = rng.choice((1, 2, 4))
    value = (number(rng) & (1 << 8 * size) - 1).to_bytes(size, rng.choice(("big", "little")))
    at = rng.randrange(max(1, min(len(data), rng.choice((64, 1024, len(data) + 1)))))
    return data[:at] + value + data[at + size :]


def insert(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice((bytes(rng.randrange(1, 4096)), rng.randbytes(64), data[:512])) + data[at:]


def cut_out(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at + rng.choice((1, 4, 64, 1024)) :]


def swap_header(data: bytes, rng: random.Random) -> bytes:
    header = rng.choice(HEADERS)
    return header + data[rng.choice((0, len(header))) :]


def append(data: bytes, rng: random.Random) -> bytes:
    return data + rng.choice((data, bytes(1000), rng.randbytes(100), rng.choice(HEADERS)))


BYTES: tuple[Mutation, ...] = (
    flip_bits, flip_early_bits, truncate, write_number, write_number, insert, cut_out, swap_header, append,
)  # fmt: skip


# Containers: lengths, dimensions and fields, with checksums that fit.


def _chunks(data: bytes, kind: str) -> list[tuple[int, int, int]]:
    """Of each chunk its place, that of its content, and its end."""
    found = []
    if kind == "png":
        at = 8
        while at + 12 <= len(data):
            end = at + 12 + int.from_bytes(data[at : at + 4], "big")
            found.append((at, at + 8, min(end, len(data))))
            at = end
    elif kind == "webp":
        at = 12
        while at + 8 <= len(data):
            size = int.from_bytes(data[at + 4 : at + 8], "little")
            found.append((at, at + 8, min(at + 8 + size, len(data))))
            at += 8 + size + size % 2
    elif kind == "jpeg":
        at = 2
        while at + 4 <= len(data) and data[at] == 0xFF:
            end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
            found.append((at, at + 4, min(end, len(data))))
            at = end
    elif kind in ("mp4", "mov", "heic", "avif"):
        found = _atoms(data, 0, len(data))
    return found


def _atoms(data: bytes, at: int, end: int) -> list[tuple[int, int, int]]:
    found = []
    while at + 8 <= end:
        size, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if size < 8:
            break
        found.append((at, at + 8, min(at + size, end)))
        if name in ATOMS or name == b"meta":
            found += _atoms(data, at + 8 + 4 * (name == b"meta"), min(at + size, end))
        at += size
    return found


def in_chunk(kind: str) -> Mutation:
    """Change the length, the name or the content of a chunk, or drop, double or move it."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        chunks = _chunks(data, kind)
        if not chunks:
            return write_number(data, rng)
        start, content, end = rng.choice(chunks)
        match rng.randrange(6):
            case 0:
                place, size = (start + 2, 2) if kind == "jpeg" else (start + 4 * (kind == "webp"), 4)
                order = "little" if kind == "webp" else "big"
                length = rng.choice((number(rng), end - content + rng.choice((-8, -1, 1, 8))))
                data = data[:place] + (length % (1 << 8 * size)).to_bytes(size, order) + data[place + size :]
            case 1:
                data = data[:start] + data[end:]
            case 2:
                data = data[:end] + data[start:end] * rng.choice((1, 1, 200)) + data[end:]
            case _:
                size = rng.choice((1, 2, 4))
                at = content + rng.randrange(max(1, min(end - content, rng.choice((24, 100, 10_000)))))
                order = "little" if kind == "webp" else "big"
                data = data[:at] + (number(rng) % (1 << 8 * size)).to_bytes(size, order) + data[at + size :]
        return mend_png(data) if kind == "png" and rng.random() < 0.8 else data

    return mutate


def mend_png(data: bytes) -> bytes:
    """Checksums that fit, so that what is wrong is looked at."""
    for start, content, end in _chunks(data, "png"):
        if end - 4 >= content:
            checksum = zlib.crc32(data[start + 4 : end - 4]).to_bytes(4, "big")
            data = data[: end - 4] + checksum + data[end:]
    return data


def huge(kind: str) -> Mutation:
    """Dimensions that a small file cannot have."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        sides = [rng.choice((1, 0, 7680, 8000, 16383, 30_000, 65_535)) for _ in range(2)]
        if kind == "png":
            sides = [rng.choice((0, 1, 7999, 16_000, 100_000, 2**31 - 1)) for _ in range(2)]
            return mend_png(data[:16] + struct.pack(">II", *sides) + data[24:])
        if kind == "gif":
            return data[:6] + struct.pack("<HH", *sides) + data[10:]
        if kind == "jpeg":
            for start, content, _ in _chunks(data, kind):
                if data[start + 1] in (0xC0, 0xC2):
                    return data[: content + 1] + struct.pack(">HH", *sides) + data[content + 5 :]
        if kind == "webp":
            at = data.find(b"VP8X")
            if at > 0:
                size = b"".join((side or 2**24 - 1).to_bytes(3, "little") for side in sides)
                return data[: at + 12] + size + data[at + 18 :]
            at = data.find(b"\x9d\x01\x2a")
            return data[: at + 3] + struct.pack("<HH", *sides) + data[at + 7 :]
        if kind in ("heic", "avif"):
            at = data.find(b"ispe")
            return data[: at + 8] + struct.pack(">II", *sides) + data[at + 16 :]
        if kind in ("mp4", "mov"):
            at = data.find(rng.choice((b"avc1", b"avc1", b"tkhd")))
            place = at + (28 if data[at : at + 4] == b"avc1" else 80)
            size = struct.pack(">HH", *sides) if data[at : at + 4] == b"avc1" else struct.pack(">HHHH", *sides, *sides)
            return data[:place] + size + data[place + len(size) :]
        at = max(data.find(b"\xb0"), data.find(b"\x9d\x01\x2a") + 2)  # of webm: the track's width, or the first frame
        return data[: at + 1] + struct.pack(">HHH", *sides, sides[0]) + data[at + 7 :]

    return mutate


def times(data: bytes, rng: random.Random) -> bytes:
    """Durations, time scales and edit lists of an mp4."""
    name = rng.choice(
        (b"mvhd", b"mdhd", b"stts", b"ctts", b"elst", b"tkhd", b"stsz", b"stsc", b"stco", b"tfdt", b"trun")
    )
    at = data.find(name)
    if at < 0:
        return write_number(data, rng)
    at += rng.choice((8, 12, 16, 20, 24))
    return data[:at] + number(rng).to_bytes(4, "big") + data[at + 4 :]


# JSON.


def in_json(data: bytes, rng: random.Random) -> bytes:
    """Delete, retype, double or bury a value, or something of another kind."""
    tree = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 2))):
        tree = _changed(tree, rng)
    if rng.random() < 0.05:
        return b"[" * 100_000
    if rng.random() < 0.05:
        return b'{"a":' * 20_000 + b"1" + b"}" * 20_000
    text = json.dumps(tree)
    return rng.choice(
        (text.encode(),) * 8 + (text.encode("utf-16"), b"\xef\xbb\xbf" + text.encode(), text.encode()[:-1])
    )


def _changed(tree, rng: random.Random):
    if not isinstance(tree, dict | list) or not tree or rng.random() < 0.05:
        return _near(tree, rng) if rng.random() < 0.4 else rng.choice(VALUES)
    key = rng.choice(list(tree) if isinstance(tree, dict) else range(len(tree)))
    fate = rng.random()
    if fate < 0.2:
        del tree[key]
    elif fate < 0.3 and isinstance(tree, dict):
        tree[rng.choice(("", "x", f"{key} ", "auto_map", "_class_name", "t"))] = tree.pop(key)
    elif fate < 0.4 and isinstance(tree, list):
        tree += [tree[key]] * rng.choice((1, 1, 20_000))
    else:
        tree[key] = _changed(tree[key], rng)
    return tree


def _near(value, rng: random.Random):
    """Another value of the same kind."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int):
        return rng.choice((value + 1, value - 1, -value, 0, 2 * value, 10**6, 2**31))
    if isinstance(value, float):
        return rng.choice((-value, value * 1000, value + 1e9, 1e300, round(value) if math.isfinite(value) else 0))
    if isinstance(value, str):
        return rng.choice((value[:-1], value + "x", value.upper(), "../" + value, ""))
    return type(value)()


# Safetensors.


def in_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Change the header: types, shapes, places, names, metadata; or the numbers."""
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    name = rng.choice([name for name in header if name != "__metadata__"])
    entry = header[name]
    match rng.randrange(12):
        case 0:
            entry["dtype"] = rng.choice((*DTYPES, *SAME_WIDTH.get(entry["dtype"], ()) * 6))
        case 1:  # half of them of as many numbers
            shape = entry["shape"]
            fitting = (shape[::-1], [*shape, 1], [1, *shape], [math.prod(shape)], [1] * 30 + shape)
            entry["shape"] = rng.choice((*fitting, [], [0], [2**62, 2**62], [-1], "x"))
        case 2:
            entry["data_offsets"] = rng.choice(([0, 0], [0, 2**63], [8, 4], [0, len(body)], [0, len(body) + 1], None))
        case 3:
            header[rng.choice(("x", "", "../x", "crops", "landmarks"))] = header.pop(name)
        case 4:
            header["__metadata__"] = _changed(header.get("__metadata__") or {"a": "b"}, rng)
        case 5:
            header = _changed(header, rng)
        case 6:  # of no length: shape and place agree
            start = entry["data_offsets"][0] if isinstance(entry.get("data_offsets"), list) else 0
            entry.update(shape=[0, *entry["shape"][1:]], data_offsets=[start, start])
        case _:
            return data[: 8 + size] + _strange_numbers(body, entry, rng)
    text = json.dumps(header).encode()
    length = rng.choice((len(text),) * 8 + (len(text) + 1, 0, 2**63, 100_000_001))
    return length.to_bytes(8, "little") + text + body


def _strange_numbers(body: bytes, entry: dict, rng: random.Random) -> bytes:
    start, end = entry["data_offsets"]
    width = {"F32": 4, "F16": 2, "BF16": 2}.get(entry["dtype"], 1)
    patterns = {
        4: [struct.pack("<f", value) for value in (math.nan, math.inf, -math.inf, 3e38, 1e-45, 0.0, -1.0, 1e6)],
        2: [b"\x00\x7e", b"\x00\x7c", b"\x00\xfc", b"\xff\x7b", b"\x00\x00"],
        1: [b"\x00", b"\xff"],
    }
    pattern, count = rng.choice(patterns[width]), (end - start) // width
    if rng.random() < 0.5:
        return body[:start] + pattern * count + body[end:]
    at = start + width * rng.randrange(max(1, count))
    return body[:at] + pattern + body[at + width :]


# Text in rows.


def in_rows(data: bytes, rng: random.Random) -> bytes:
    separator = "\t" if b"\t" in data else ","
    rows = [row.split(separator) for row in data.decode("utf-8", "replace").splitlines()] or [[""]]
    for _ in range(rng.choice((1, 1, 3))):
        row = rng.choice(rows)
        if not row:
            continue
        column = rng.randrange(len(row))
        match rng.randrange(5):
            case 0:
                del row[column]
            case 1:
                rows += [row] * rng.choice((1, 1, 3000))
            case 2:
                rng.shuffle(rows)
            case _:
                row[column] = rng.choice(CELLS)
    text = rng.choice(("\n", "\n", "\r\n", "\r")).join(separator.join(row) for row in rows)
    return text.encode(rng.choice(("utf-8", "utf-8", "utf-8", "utf-16", "utf-32")), "replace")


# All of them, by format.


def mutations_of(kind: str, path: Path) -> tuple[Mutation, ...]:
    """What can be done to a file of a format."""
    if path.suffix == ".json":
        return (in_json,) * 50 + BYTES
    if path.suffix == ".safetensors":
        return (in_safetensors,) * 50 + BYTES
    if path.suffix in (".csv", ".tsv"):
        return (in_rows,) * 50 + BYTES
    if kind in ("mp4", "mov"):
        return (in_chunk(kind),) * 4 + (times,) * 3 + (huge(kind),) + BYTES
    if kind in ("jpeg", "png", "webp", "heic", "avif"):
        return (in_chunk(kind),) * 6 + (huge(kind),) * 3 + BYTES
    if kind in ("gif", "webm"):
        return (huge(kind),) * 2 + BYTES
    return BYTES


def damage(kind: str, place: Path, rng: random.Random) -> None:
    """Damage a file, or one or two files of a folder, in place."""
    if place.is_file():
        _damage_file(kind, place, rng)
        return
    files = sorted(path for path in place.rglob("*") if path.is_file())
    if kind == "safetensors":
        files = [path for path in files if path.suffix == ".safetensors"]
    elif kind == "identity_json":
        files = [path for path in files if path.suffix == ".json"]
    for path in rng.sample(files, min(len(files), rng.choice((1, 1, 1, 1, 2)))):
        if rng.random() < 0.04:
            path.unlink()
        else:
            _damage_file(kind, path, rng)


def _damage_file(kind: str, path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    for _ in range(rng.choice((1, 1, 1, 1, 2, 3))):
        try:
            data = rng.choice(mutations_of(kind, path))(data, rng)
        except (ValueError, LookupError, TypeError, RecursionError, struct.error):  # an earlier one left too little
            data = flip_bits(data, rng)
    path.write_bytes(data)
