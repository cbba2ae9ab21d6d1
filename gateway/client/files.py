"""Files on their way to the API and back."""

from __future__ import annotations

import base64
from collections.abc import Mapping

from gateway.client.answers import SourceFile


def encoded_files(files: Mapping[str, bytes]) -> list[SourceFile]:
    """Files as the API takes them: text as it is, anything else in base64."""
    encoded: list[SourceFile] = []
    for path, content in files.items():
        try:
            encoded.append({"path": path, "content": content.decode()})
        except UnicodeDecodeError:
            text = base64.b64encode(content).decode()
            encoded.append({"path": path, "content": text, "encoding": "base64"})
    return encoded


def decoded_file(file: SourceFile) -> bytes:
    """The content of a file as the API gives it."""
    if file.get("encoding") == "base64":
        return base64.b64decode(file["content"])
    return file["content"].encode()
