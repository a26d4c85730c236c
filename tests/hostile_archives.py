"""Spoilt arrays, archives and images: headers that claim what is not there, payloads that would
run, names that lead elsewhere."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from bezierdistill.data import load_data, read_array
from bezierdistill.data.images import read_images
from bezierdistill.stages.exchange import import_curves
from hostile import Kit, Use
from hostile_mutators import spoil_bytes

KINDS = [
    "<f4",
    "<f8",
    ">f4",
    "<i8",
    "|u1",
    "|b1",
    "|O",
    "<U9",
    "|V8",
    "<M8[s]",
    "<c8",
    "<f16",
    "",
    "f",
    "<f4,<f4",
    "[('a', '|O')]",
]
SHAPES = [
    "(80, 3)",
    "(1000000000000000, 3)",
    "(3, 80)",
    "(0, 3)",
    "(-1, 3)",
    "(80,)",
    "()",
    "(240,)",
    "(True, 240)",
    "(80.0, 3)",
]
SHAPES += [
    "(4294967296, 4294967296, 4294967296)",
    "(" + "1, " * 100 + "240)",
    "[80, 3]",
    "(0, 1000000000000000000000)",
    "80",
    "None",
]
NAMES = [
    "../../x.npy",
    "/tmp/x.npy",
    "..\\x.npy",
    "C:x.npy",
    "",
    "x\n.npy",
    "a/../../x.npy",
    "x.npy",
    "a" * 300,
    "\u202e.npy",
]


class Runs:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mknod, (str(self.marker),)


def npy(array: np.ndarray) -> bytes:
    """The bytes of a .npy."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def objects(marker: Path) -> bytes:
    """A .npy whose objects would run code."""
    return npy(np.array([[Runs(marker), Runs(marker)]] * 80, dtype=object))


def crafted(rng: Random, data: bytes, marker: Path) -> tuple[bytes, str]:
    """A .npy with another header before the same numbers, or one that is spoilt otherwise."""
    if rng.random() < 0.3:
        return spoil_bytes(rng, data)
    if rng.random() < 0.15:
        return rng.choice([objects(marker), pickle.dumps(Runs(marker))]), "objects that run"
    kind, shape, order = (
        rng.choice(KINDS),
        rng.choice(SHAPES),
        rng.choice(["False", "True", "1", "None", "'C'"]),
    )
    kind = kind if kind.startswith("[") else repr(kind)
    header = f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}, }}"
    header = rng.choice(
        [header] * 6
        + [
            header[:-2],
            header[:-1] + "'x': 1}",
            "[" * 5000,
            "__import__('os').abort()",
            header + "\n" * 70000,
        ]
    )
    major, encoded = rng.choice([1, 1, 1, 2, 3, 9]), header.encode("latin1")
    length = rng.choice([len(encoded)] * 6 + [0, 65535, 2**32 - 1])
    packed = struct.pack("<H", min(length, 65535)) if major == 1 else struct.pack("<I", length)
    return b"\x93NUMPY" + bytes([major, 0]) + packed + encoded + data[
        128:
    ], f"header {header[:90]!r} of {length}, version {major}"


def bomb(path: Path, gigabytes: int = 3) -> None:
    """A .npz whose array of zeros unpacks to gigabytes, and says so."""
    numbers = gigabytes * 2**28
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "<f4", "fortran_order": False, "shape": (numbers // 4, 4)}
    )
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = packer.compress(head.getvalue()) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", start + block * (gigabytes * 1024) + packer.flush())
    data = bytearray(path.read_bytes())
    centre = data.rindex(b"PK\x01\x02")
    for kind, size in ((8, 22), (centre + 10, centre + 24)):
        data[kind : kind + 2] = struct.pack("<H", zipfile.ZIP_DEFLATED)
        data[size : size + 4] = struct.pack("<I", 4 * numbers + len(head.getvalue()))
    path.write_bytes(data)


def build_arrays(assets: Path, folder: Path) -> None:
    """An array, an archive of several, and pairs to import."""
    x = np.load(assets / "data.npz")["x"]
    np.save(folder / "data.npy", x)
    np.savez(folder / "data.npz", x=x, labels=np.arange(80) % 2)
    np.savez_compressed(
        folder / "packed.npz",
        train_images=x,
        test_images=x[:70],
        train_conditions=x,
        test_conditions=x[:70],
    )
    np.save(folder / "z0.npy", x)
    np.save(folder / "z1.npy", x + 1)


def spoil_arrays(rng: Random, kit: Kit) -> str:
    """Spoil one of the files; an archive in its members or as a whole."""
    path = rng.choice(sorted(kit.folder.iterdir()))
    (kit.folder / "chosen").write_text(path.name)
    if path.suffix == ".npy":
        data, done = crafted(rng, path.read_bytes(), kit.marker)
        path.write_bytes(data)
        return f"{path.name}: {done}"
    if rng.random() < 0.4:
        data, done = spoil_bytes(rng, path.read_bytes())
        path.write_bytes(data)
        return f"{path.name}: {done}"
    if rng.random() < 0.08:
        bomb(path)
        return f"{path.name}: a bomb"
    return f"{path.name}: {_spoil_members(rng, path, kit.marker)}"


def _spoil_members(rng: Random, path: Path, marker: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        members = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    k, how = (
        rng.randrange(len(members)),
        rng.choice(["member", "member", "twice", "name", "claim", "method", "nest"]),
    )
    name, data = members[k]
    done = how
    if how == "member":
        data, done = crafted(rng, data, marker)
    elif how == "name":
        name = rng.choice(NAMES)
    elif how == "twice":
        members.append((name, objects(marker)))
    elif how == "nest":
        data = path.read_bytes()
    members[k] = (name, data)
    packing: int = rng.choice(
        [
            zipfile.ZIP_STORED,
            zipfile.ZIP_DEFLATED,
            *([zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA] if how == "method" else []),
        ]
    )
    with zipfile.ZipFile(path, "w", packing) as archive:
        for member, content in members:
            archive.writestr(
                zipfile.ZipInfo(member) if member else zipfile.ZipInfo("/"), content, packing
            )
    if how == "claim":
        whole = bytearray(path.read_bytes())
        centre = whole.index(b"PK\x01\x02")
        where = rng.choice(
            [8, 10, 16, 20, 24, 28, 42]
        )  # flags, method, checksum, sizes, length of the name, place
        whole[centre + where : centre + where + 2] = rng.randbytes(2)
        path.write_bytes(whole)
        done = f"claim at {where}"
    return done


def arrays_read(_: Random, kit: Kit) -> Callable[[], object]:
    """Read the spoilt file as data or as samples."""
    path = kit.folder / (
        (kit.folder / "chosen").read_text() if (kit.folder / "chosen").exists() else "data.npz"
    )

    def read() -> None:
        read_array(path)
        load_data(str(path)).real(4, 0, "test")

    return read


def arrays_used(rng: Random, kit: Kit) -> list[object]:
    """A command that reads it."""
    chosen = kit.folder / "chosen"
    path = kit.folder / (chosen.read_text() if chosen.exists() else "data.npz")
    if path.name.startswith("z"):
        return ["store", "import", kit.folder, "--teacher", kit.assets / "plain", "--out", kit.out]
    tiny = [
        "--steps",
        1,
        "--batch",
        4,
        "--network.width",
        8,
        "--network.depth",
        1,
        "--loop.accelerator",
        "cpu",
    ]
    return rng.choice(
        [
            ["evaluate", "--samples", path, "--data", kit.assets / "data.npz"],
            [
                "sample",
                "--model",
                kit.assets / "vectors",
                "--conditions",
                path,
                "--count",
                8,
                "--out",
                kit.out / "s.npz",
            ],
            ["train", "--data", path, "--out", kit.out, *tiny],
            ["train", "--data", f"{path}@key=x", "--out", kit.out, *tiny],
        ]
    )


def build_tar(assets: Path, folder: Path) -> None:
    """A WebDataset of eight rows."""
    x = np.load(assets / "data.npz")["x"]
    write_tar(
        folder / "curves.tar",
        [(f"{row:03d}.points.npy", npy(x[row : row + 3])) for row in range(8)],
    )


def write_tar(path: Path, members: list[tuple[str, Any]], form: int = tarfile.USTAR_FORMAT) -> None:
    """A tar of files (bytes) or of other kinds of members (a header)."""
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in members:
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            data = content if isinstance(content, bytes) else b""
            info.size = len(data) or info.size
            archive.addfile(info, io.BytesIO(data) if isinstance(content, bytes) else None)


def spoil_tar(rng: Random, kit: Kit) -> str:
    """Spoil the archive's bytes, a member, its name or kind; or the headers, with their checksums
    made to fit."""
    path = kit.folder / "curves.tar"
    with tarfile.open(path) as archive:
        members: list[tuple[str, Any]] = [(m.name, archive.extractfile(m).read()) for m in archive]  # pyright: ignore[reportOptionalMemberAccess]
    k, how = (
        rng.randrange(len(members)),
        rng.choice(["bytes", "member", "name", "kind", "header", "pax", "packed"]),
    )
    name, data = members[k]
    if how in ("bytes", "packed"):
        data, done = spoil_bytes(rng, path.read_bytes())
        path.write_bytes(zlib.compress(data) if how == "packed" else data)
        return f"{how}: {done}"
    if how == "header":
        return _spoil_header(rng, path)
    if how == "member":
        data, how = crafted(rng, data, kit.marker)
        members[k] = (name, data)
    elif how == "name":
        how = rng.choice(
            [*NAMES, "000", "000.", ".npy", "000.points.npy.npy", "x/000.z0.npy", "000.cond.npy"]
        )
        members[k] = (how, data)
    elif how == "kind":
        info = tarfile.TarInfo(name)
        info.type, info.linkname = (
            rng.choice([b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"S", b"V", b"Z"]),
            "/etc/passwd",
        )
        members[k], how = (name, info), f"kind {info.type!r}"
    else:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        info.pax_headers = rng.choice(
            [
                {"path": "../../x.points.npy"},
                {"size": "1000000000000000"},
                {"size": "-1"},
                {"GNU.sparse.map": "0,9"},
                {"mtime": "x"},
            ]
        )
        info.pax_headers |= rng.choice(
            [{}, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}, {"x" * 1000: "y" * 10**5}]
        )
        how = f"pax {str(info.pax_headers)[:80]}"
        members[k] = (name, info)
    write_tar(path, members, tarfile.PAX_FORMAT if how.startswith("pax") else tarfile.GNU_FORMAT)
    return f"member {k}: {how[:100]}"


def _spoil_header(rng: Random, path: Path) -> str:
    data = bytearray(path.read_bytes())
    start = 512 * rng.choice(
        [k for k in range(len(data) // 512) if data[512 * k + 257 : 512 * k + 262] == b"ustar"]
    )
    field, size = rng.choice(
        [(0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (345, 155)]
    )
    value = rng.choice(
        [
            b"\xff" * size,
            b"\x80" + b"\xff" * (size - 1),
            b"7" * size,
            b"-1".ljust(size, b"\x00"),
            rng.randbytes(size),
        ]
    )
    data[start + field : start + field + size] = value[:size]
    data[start + 148 : start + 156] = b" " * 8
    data[start + 148 : start + 156] = b"%06o\x00 " % sum(data[start : start + 512])
    path.write_bytes(data)
    return f"header at {start}: {size} bytes from {field}"


def tar_imported(_: Random, kit: Kit) -> Callable[[], object]:
    """Import it."""
    return lambda: import_curves(kit.folder / "curves.tar", kit.assets / "plain", kit.out)


def tar_used(rng: Random, kit: Kit) -> list[object]:
    """The command that imports it."""
    more = rng.choice([[], ["--points", "uint8"], ["--units", "data"]])
    return [
        "store",
        "import",
        kit.folder,
        "--teacher",
        kit.assets / "plain",
        "--out",
        kit.out,
        *more,
    ]


def build_images(_: Path, folder: Path) -> None:
    """Images of two classes, of every kind, and packed JPEG files."""
    rng = np.random.default_rng(0)
    for k in range(68):
        (folder / f"class{k % 2}").mkdir(exist_ok=True)
        image = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
        image.save(folder / f"class{k % 2}" / f"{k:02d}.{('png', 'jpg', 'bmp', 'webp')[k % 4]}")
    files = [(folder / "class1" / f"{k:02d}.jpg").read_bytes() for k in range(1, 68, 4)] * 4
    packed = np.frombuffer(b"".join(files), np.uint8)
    np.savez(
        folder / "packed.npz", train_jpeg=packed, train_offsets=np.cumsum([0, *map(len, files)])
    )


def spoil_images(rng: Random, kit: Kit) -> str:
    """Spoil an image, what it claims, or where packed ones start."""
    if rng.random() < 0.2:
        with np.load(kit.folder / "packed.npz") as held:
            offsets, packed = held["train_offsets"].copy(), held["train_jpeg"].copy()
        offsets[rng.randrange(len(offsets))] = rng.choice([-1, 0, 7, 10**15, 2**62])
        offsets = rng.choice(
            [
                offsets,
                offsets.astype(np.uint64),
                offsets.astype(np.float32),
                offsets[:, None],
                offsets[::-1],
            ]
        )
        packed[rng.randrange(len(packed))] ^= 255
        np.savez(kit.folder / "packed.npz", train_jpeg=packed, train_offsets=offsets)
        return "offsets"
    path = rng.choice(sorted(kit.folder.glob("class*/*")))
    data, how = path.read_bytes(), rng.random()
    if how < 0.5:
        data, done = spoil_bytes(rng, data)
    elif how < 0.8:
        data, done = _claiming(rng, path.suffix, data)
    else:
        data, done = rng.choice(
            [
                (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "PostScript"),
                (b"GIF89a" + bytes(50), "a GIF"),
                (b"", "nothing"),
                (b"P6 60000 60000 255\n", "a PPM"),
                (b"<svg/>", "an SVG"),
            ]
        )
        if rng.random() < 0.3:
            path.unlink()
            path.symlink_to(path)
            return f"{path.name}: a link to itself"
    path.write_bytes(data)
    return f"{path.name}: {done}"


def _claiming(rng: Random, suffix: str, data: bytes) -> tuple[bytes, str]:
    """An image that claims another size than it has."""
    width, height = (rng.choice([0, 1, 9, 60_000, 2**31 - 1, 2**32 - 1]) for _ in range(2))
    spoilt = bytearray(data)
    if suffix == ".png":
        spoilt[16:24] = struct.pack(">II", width, height)
        spoilt[29:33] = struct.pack(">I", zlib.crc32(spoilt[12:29]))
    elif suffix == ".bmp":
        spoilt[18:26] = struct.pack("<II", width, height)
    elif suffix == ".jpg":
        start = spoilt.index(b"\xff\xc0")
        spoilt[start + 5 : start + 9] = struct.pack(">HH", height % 65536, width % 65536)
    else:
        spoilt[20:30] = rng.randbytes(10)
    return bytes(spoilt), f"claims {width} x {height}"


def images_read(rng: Random, kit: Kit) -> Callable[[], object]:
    """Read all of them."""
    path = rng.choice([kit.folder, kit.folder, kit.folder / "packed.npz"])
    return lambda: (
        read_images(path)
        if path.is_dir() and rng.random() < 0.5
        else load_data(str(path)).real(4, 0, "test")
    )


def images_used(rng: Random, kit: Kit) -> list[object]:
    """A command that reads them."""
    path = rng.choice([kit.folder, kit.folder / "class0", kit.folder / "packed.npz"])
    tiny = [
        "--steps",
        1,
        "--batch",
        4,
        "--network.width",
        8,
        "--network.depth",
        1,
        "--loop.accelerator",
        "cpu",
    ]
    return [
        "train",
        "--data",
        f"{path}{rng.choice(['', '@8x8', '@rgb', '@class1', '@crop4x4'])}",
        "--out",
        kit.out,
        *tiny,
    ]


ARRAYS: dict[Use, float] = {arrays_read: 3, arrays_used: 1}
TARS: dict[Use, float] = {tar_imported: 3, tar_used: 1}
PICTURES: dict[Use, float] = {images_read: 4, images_used: 1}
