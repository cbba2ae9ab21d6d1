"""tar.gz in and out: what tar programs write comes in, what could do harm does not."""

from __future__ import annotations

import gzip
import io
import random
import shutil
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from gateway.archive import pack, unpack
from gateway.errors import BadFiles

MIB: Final = 2**20
FILES: Final = {
    "package.json": b"{}",
    "src/main.js": b"x" * 5000,
    "empty": b"",
    "src/" + "long/" * 60 + "ä.js": b"deep",
    "n" * 120: b"a long name alone",
}


def extract(data: bytes, *, max_files: int = 100, max_bytes: int = MIB) -> dict[str, bytes]:
    return unpack(data, max_files=max_files, max_bytes=max_bytes)


def made(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar file of these members."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def of_kind(kind: bytes, name: str = "x") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.linkname = "/etc/passwd"
    return member


def head(name: bytes = b"x", size: bytes = b"00000000000", kind: bytes = b"0") -> bytes:
    """A ustar header with a true sum, and anything at all in its other fields."""
    block = bytearray(512)
    block[: len(name)] = name
    block[124 : 124 + len(size)] = size
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257:263] = b"ustar\0"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(records: bytes) -> bytes:
    padding = -len(records) % 512
    return head(b"pax", b"%011o" % len(records), b"x") + records + bytes(padding)


def test_what_is_packed_comes_back() -> None:
    assert extract(pack(FILES)) == FILES
    assert extract(pack({})) == {}
    assert pack(FILES) == pack(dict(reversed(FILES.items())))


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_what_pythons_tar_writes_comes_in(form: int) -> None:
    members = [(tarfile.TarInfo(name), content) for name, content in FILES.items()]
    folder = of_kind(tarfile.DIRTYPE, "src/")
    assert extract(gzip.compress(made((folder, b""), *members, form=form))) == FILES


def test_long_paths_of_ustar_come_in() -> None:
    name = "folder/" * 20 + "file"
    assert extract(gzip.compress(made((tarfile.TarInfo(name), b"1"), form=tarfile.USTAR_FORMAT)))[
        name
    ]


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar program")
@pytest.mark.parametrize("form", ["gnu", "pax", "ustar", "v7", "oldgnu"])
def test_what_the_tar_program_writes_comes_in(tmp_path: Path, form: str) -> None:
    files = {"a/b.js": b"b" * 700, "c": b"", "a/" + "d" * 80: b"d"}
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    command = ["tar", f"--format={form}", "-C", str(tmp_path), "-czf", "-", "."]
    archive = subprocess.run(command, check=True, capture_output=True).stdout
    assert extract(archive) == files


def test_binary_sizes_and_sizes_of_extended_headers_count() -> None:
    binary = head(size=b"\x80" + (3).to_bytes(11)) + b"abc".ljust(512, b"\0")
    assert extract(gzip.compress(binary)) == {"x": b"abc"}
    extended = pax(b"9 size=3\n") + head() + b"abc".ljust(512, b"\0")
    assert extract(gzip.compress(extended)) == {"x": b"abc"}


def test_global_headers_and_long_link_names_are_passed_over() -> None:
    passed = head(b"g", kind=b"g") + head(b"k", kind=b"K")
    assert extract(gzip.compress(passed + head())) == {"x": b""}


def test_a_file_of_several_gzip_members_is_one() -> None:
    tar = made((tarfile.TarInfo("a"), b"1" * 600))
    data = gzip.compress(tar[:700]) + gzip.compress(tar[700:]) + bytes(40)
    assert extract(data) == {"a": b"1" * 600}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a named pipe"),
        (b"Z", "not known here"),
    ],
)
def test_fault_36_whatever_is_no_file_is_refused(kind: bytes, words: str) -> None:
    block = head(kind=kind)
    with pytest.raises(BadFiles, match=words):
        extract(gzip.compress(block))


def test_fault_36_sparse_files_are_refused() -> None:
    with pytest.raises(BadFiles, match="sparse"):
        extract(gzip.compress(head(kind=b"S")))
    with pytest.raises(BadFiles, match="sparse"):
        extract(gzip.compress(pax(b"22 GNU.sparse.major=1\n") + head()))


def test_a_path_is_passed_on_as_it_is_for_the_caller_to_judge() -> None:
    names = ("../../etc/x", "/etc/x", "a/../../b")
    members = [(tarfile.TarInfo(name), b"") for name in names]
    assert set(extract(gzip.compress(made(*members)))) == set(names)


def test_a_file_that_comes_twice_is_refused() -> None:
    twice = made((tarfile.TarInfo("a"), b"1"), (tarfile.TarInfo("./a"), b"2"))
    with pytest.raises(BadFiles, match="twice"):
        extract(gzip.compress(twice))


def test_fault_36_a_bomb_is_refused_in_bounded_memory() -> None:
    """1 GiB of zeros in 1 MB: neither the ratio nor the size gets past."""
    bomb = gzip.compress(bytes(64 * MIB)) * 16
    tracemalloc.start()
    with pytest.raises(BadFiles, match="more than 100 times"):
        extract(bomb, max_bytes=2**40)
    with pytest.raises(BadFiles, match="bytes: send less"):
        extract(bomb, max_bytes=16 * MIB)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 320 * MIB  # the first one: 100 times its 1 MB, while a buffer grows
    assert len(bomb) < 2 * MIB


def test_fault_36_a_size_that_the_archive_only_claims_takes_no_memory() -> None:
    tracemalloc.start()
    for size in (b"77777777777", b"\x80" + b"\xff" * 11):
        with pytest.raises(BadFiles, match="cut off"):
            extract(gzip.compress(head(size=size)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MIB


def test_too_many_files_are_refused() -> None:
    with pytest.raises(BadFiles, match="more than 3 files"):
        extract(pack({str(n): b"" for n in range(4)}), max_files=3)


def zipped(data: bytes) -> bytes:
    """The same at any time: tests are named after it, and each worker collects them."""
    return gzip.compress(data, mtime=0)


CUT: Final = zipped(made((tarfile.TarInfo("a"), random.Random(1).randbytes(9000))))  # noqa: S311


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"no archive", "no gzip"),
        (b"PK\x03\x04", "no gzip"),
        (zipped(b"a" * 512), "number"),
        (zipped(b"1" * 512), "no tar"),
        (CUT[:-20], "cut off"),
        (CUT[:5], "cut off"),
        (CUT[:-8] + b"\0" * 8, "no gzip"),
        (zipped(head(size=b"-1")), "number"),
        (zipped(head(b"\xff")), "UTF-8"),
        (zipped(head(b"L", b"%011o" % 20000, b"L") + bytes(20480)), "too long"),
        *(
            (zipped(pax(records) + head()), "cannot be read")
            for records in (
                b"x",
                b"7 path\n",
                b"0 a=b\n",
                b"99 a=b\n",
                b"6 a=bc",
                b"123456789 a=b\n",
                b"11 size=-1\n",
                b"12 size=+13\n",
                b"28 size=9999999999999999999\n",
            )
        ),
    ],
)
def test_what_is_damaged_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(BadFiles, match=words):
        extract(data)


def test_whatever_comes_in_is_files_or_a_clear_refusal() -> None:
    chance = random.Random(36)  # noqa: S311
    tar = made(*((tarfile.TarInfo(name), content) for name, content in FILES.items()))

    def flipped(data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(chance.randint(1, 8)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        return bytes(changed)

    def mended(data: bytes) -> bytes:
        """With true sums, so that what is behind them is reached."""
        changed = bytearray(flipped(data))
        at = chance.randrange(0, len(changed), 512)
        changed[at + 148 : at + 156] = b" " * 8
        changed[at + 148 : at + 156] = b"%06o\0 " % sum(changed[at : at + 512])
        return bytes(changed)

    ways: list[Callable[[bytes], bytes]] = [flipped, mended]
    for number in range(2000):
        try:
            extract(gzip.compress(ways[number % 2](tar), compresslevel=1))
        except BadFiles as exc:
            assert len(str(exc)) < 1000  # noqa: PT017 - either outcome is right
