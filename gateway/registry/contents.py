"""How the contents of files are stored: SHA-256, codec, bytes. Pure.

A packed value is 32 bytes SHA-256 of the content, one byte codec, then the content: zlib if that
is smaller, else as it is.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Final

from gateway.errors import RegistryUnavailable

_RAW: Final = b"\x00"
_ZLIB: Final = b"\x01"
_DIGEST_BYTES: Final = 32
#: Measured on 8 KiB pieces of source text: level 1 packs 86 MB/s to 30 %, level 6 57 MB/s to 26 %.
_LEVEL: Final = 1
#: Shorter contents hardly shrink.
_WORTH_PACKING: Final = 64


def pack(content: bytes) -> bytes:
    """The stored form of ``content``."""
    digest = hashlib.sha256(content).digest()
    if len(content) >= _WORTH_PACKING:
        packed = zlib.compress(content, _LEVEL)
        if len(packed) < len(content):
            return digest + _ZLIB + packed
    return digest + _RAW + content


def unpack(value: bytes) -> bytes:
    """The content of a stored value; ValueError if it is damaged."""
    digest, codec, body = value[:_DIGEST_BYTES], value[_DIGEST_BYTES : _DIGEST_BYTES + 1], b""
    if codec == _RAW:
        body = value[_DIGEST_BYTES + 1 :]
    elif codec == _ZLIB:
        try:
            body = zlib.decompress(value[_DIGEST_BYTES + 1 :])
        except zlib.error as exc:
            raise ValueError(str(exc)) from exc
    else:
        raise ValueError(f"unknown codec {codec!r}")
    if hashlib.sha256(body).digest() != digest:
        raise ValueError("the content does not match its checksum")
    return body


def pack_files(files: Mapping[str, bytes]) -> list[bytes]:
    """Path, stored value, path, stored value ..."""
    packed: list[bytes] = []
    for path, content in files.items():
        packed += (pack_path(path), pack(content))
    return packed


def pack_path(path: str) -> bytes:
    """A path as bytes; odd names (lone surrogates) survive the way back."""
    return path.encode("utf-8", "surrogatepass")


def unpack_files(key: str, stored: Sequence[bytes]) -> dict[str, bytes]:
    """Paths and contents; RegistryUnavailable naming ``key`` and path if one is damaged."""
    files: dict[str, bytes] = {}
    for name, value in zip(stored[::2], stored[1::2], strict=True):
        try:
            files[name.decode("utf-8", "surrogatepass")] = unpack(value)
        except ValueError as exc:
            raise RegistryUnavailable(
                f"the registry holds a damaged file {name!r} in {key}: {exc}"
            ) from exc
    return files
