"""Files as tar.gz, in and out. Pure: nothing is read from disk and nothing is written there.

What comes in is read by an extractor of our own: it takes regular files and folders, and refuses
links, devices and whatever else an archive can hold. It knows the ustar form (POSIX.1-2017, pax,
"ustar Interchange Format"), pax' extended headers for paths and sizes, and GNU's long names, which
is what tar programs write. The standard library's ``tarfile`` follows far more, and has looped and
written outside on crafted archives (CVE-2025-8194, CVE-2025-4517).
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from gateway.errors import BadFiles

_BLOCK: Final = 512
#: A header, a long name and padding for each file, and the end of the archive.
_BLOCKS_PER_FILE: Final = 8
_END_BLOCKS: Final = 40
#: Beyond the first MiB, no source code shrinks like this; deflate can, a thousandfold.
_LARGEST_RATIO: Final = 100
_RATIO_FREE_BYTES: Final = 2**20
_STEP_BYTES: Final = 64 * 1024
_GZIP: Final = 16 + zlib.MAX_WBITS
_LONGEST_NAME_BYTES: Final = 16 * 1024

_FILES: Final = (b"0", b"\0", b"7")
_FOLDER: Final = b"5"
_GNU_NAME: Final = b"L"
_GNU_LINK: Final = b"K"
_PAX: Final = b"x"
_PAX_GLOBAL: Final = b"g"
_REFUSED: Final[dict[bytes, str]] = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a named pipe",
    b"S": "a sparse file",
}


@dataclass(frozen=True, slots=True)
class _Entry:
    kind: bytes
    name: str
    content: bytes


def unpack(data: bytes, *, max_files: int, max_bytes: int) -> dict[str, bytes]:
    """The regular files of a tar.gz by path, without a leading ``./``.

    Takes no more memory than a small factor of ``max_bytes``, whatever the archive says. Whether a
    path may be written is the caller's question. Raises BadFiles.
    """
    limit = max_bytes + _BLOCK * (_BLOCKS_PER_FILE * max_files + _END_BLOCKS)
    files: dict[str, bytes] = {}
    for entry in _entries(_decompressed(data, limit)):
        # GNU's and pax' tar write a folder as one more file whose name ends with a slash.
        if entry.kind == _FOLDER or entry.name.endswith("/"):
            continue
        if entry.kind not in _FILES:
            what = _REFUSED.get(entry.kind, "of a kind that is not known here")
            raise BadFiles(f"{entry.name[:200]!r} in the archive is {what}: send files only")
        path = entry.name
        while path.startswith("./"):
            path = path[2:]
        if path in files:
            raise BadFiles(f"{path[:200]!r} is in the archive twice")
        files[path] = entry.content
        if len(files) > max_files:
            raise BadFiles(f"the archive has more than {max_files} files: send fewer")
    return files


def pack(files: Mapping[str, bytes]) -> bytes:
    """The files as tar.gz; the same files give the same bytes."""
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=6, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path, content in sorted(files.items()):
            member = tarfile.TarInfo(path)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def _decompressed(data: bytes, limit: int) -> bytes:
    """The content of a gzip file (RFC 1952), of one or more members; BadFiles beyond ``limit``."""
    out = bytearray()
    largest = max(_RATIO_FREE_BYTES, _LARGEST_RATIO * len(data))
    rest = data
    try:
        while rest:
            member = zlib.decompressobj(_GZIP)
            while True:
                part = member.decompress(rest, _STEP_BYTES)
                out += part
                rest = member.unconsumed_tail
                if len(out) > limit:
                    raise BadFiles(f"the archive has more than {limit} bytes: send less")
                if len(out) > largest:
                    raise BadFiles(
                        f"the archive unpacks to more than {_LARGEST_RATIO} times its size"
                    )
                if member.eof:
                    break
                if not (rest or part):
                    raise BadFiles("the archive is cut off: send all of it")
            # Some programs pad with zeros (RFC 1952 says nothing of them, gzip ignores them).
            rest = member.unused_data.lstrip(b"\0")
    except zlib.error as exc:
        raise BadFiles(f"the archive is no gzip file ({exc})") from exc
    return bytes(out)


def _entries(data: bytes) -> Iterator[_Entry]:
    """The entries of a tar file, long names put together; BadFiles on a malformed one."""
    at = 0
    name, size = "", -1
    while at + _BLOCK <= len(data) and any(data[at : at + _BLOCK]):
        head = data[at : at + _BLOCK]
        _check_sum(head)
        kind = head[156:157]
        length = size if size >= 0 and kind in _FILES else _number(head[124:136])
        at += _BLOCK
        content = data[at : at + length]
        if len(content) < length:
            raise BadFiles("the archive is cut off, or its sizes are wrong: make it anew")
        at += -(-length // _BLOCK) * _BLOCK
        if kind == _GNU_NAME:
            name = _text(_short(content).rstrip(b"\0"))
        elif kind == _PAX:
            records = _pax_records(_short(content))
            name = _text(records.get(b"path", b"")) or name
            size = _pax_size(records)
        elif kind not in (_GNU_LINK, _PAX_GLOBAL):
            yield _Entry(kind, name or _ustar_name(head), content)
            name, size = "", -1


def _check_sum(head: bytes) -> None:
    """The header's bytes added up, its sum counted as spaces."""
    expected = sum(head) - sum(head[148:156]) + 8 * ord(" ")
    if _number(head[148:156]) != expected:
        raise BadFiles("the archive holds something that is no tar file")


def _number(field: bytes) -> int:
    """An octal number, or GNU's binary form for large ones; never negative."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:])
    text = field.strip(b" \0")
    if not all(0x30 <= digit <= 0x37 for digit in text):
        raise BadFiles("the archive holds a number that cannot be read: make it anew")
    return int(text or b"0", 8)


def _ustar_name(head: bytes) -> str:
    name = head[:100].partition(b"\0")[0]
    # In GNU's form ("ustar  ") the place of the prefix holds other things.
    prefix = head[345:500].partition(b"\0")[0] if head[257:263] == b"ustar\0" else b""
    return _text(prefix + b"/" + name if prefix else name)


def _short(content: bytes) -> bytes:
    if len(content) > _LONGEST_NAME_BYTES:
        raise BadFiles("the archive holds an extended header that is too long")
    return content


def _pax_records(content: bytes) -> dict[bytes, bytes]:
    """Records of the form ``length name=value\\n``."""
    records: dict[bytes, bytes] = {}
    while content:
        digits, space, _ = content.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        record = content[len(digits) + 1 : length]
        name, equals, value = record.partition(b"=")
        if not (space and equals and record.endswith(b"\n") and length <= len(content)):
            raise BadFiles("the archive holds an extended header that cannot be read")
        records[name] = value[:-1]
        content = content[length:]
    return records


def _pax_size(records: Mapping[bytes, bytes]) -> int:
    """The size that an extended header gives, -1 if it gives none."""
    if any(name.startswith(b"GNU.sparse") for name in records):
        raise BadFiles("the archive holds a sparse file: send files only")
    size = records.get(b"size")
    if size is None:
        return -1
    if not size.isdigit() or len(size) > 18:
        raise BadFiles("the archive holds a size that cannot be read: make it anew")
    return int(size)


def _text(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as exc:
        raise BadFiles(f"a name in the archive is not UTF-8: {name[:200]!r}") from exc
