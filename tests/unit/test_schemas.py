"""The JSON of the API, in and out."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from gateway.api.schemas import CreateSession, PatchFiles, encode_metadata
from gateway.api.views import Urls, timestamp
from gateway.errors import BadFiles, BadRequest


def create(**fields: object) -> CreateSession:
    return CreateSession.model_validate(fields)


def test_a_command_is_a_list_or_a_line_as_in_a_shell() -> None:
    assert create(command="node 'a b.js' {port}").command == ("node", "a b.js", "{port}")
    assert create(command=["node", "a b.js"]).command == ("node", "a b.js")
    with pytest.raises(ValidationError, match="cannot be split"):
        create(command="node 'a")


def test_the_order_of_files_and_variables_makes_no_difference() -> None:
    files = [{"path": "a", "content": "1"}, {"path": "b", "content": "2"}]
    one, other = (
        create(files=files, env={"A": "1", "B": "2"}),
        create(files=files[::-1], env={"B": "2", "A": "1"}),
    )
    assert one.contents() == other.contents()
    assert one.recipe("") == other.recipe("")


def test_package_json_becomes_a_file() -> None:
    assert create(packageJson={"name": "x"}).contents() == {"package.json": b'{\n  "name": "x"\n}'}


def test_contents_are_text_or_base64() -> None:
    assert create(files=[{"path": "a", "content": "ä"}]).contents() == {"a": "ä".encode()}
    file = {"path": "a", "content": "/w==", "encoding": "base64"}
    assert create(files=[file]).contents() == {"a": b"\xff"}
    for content in ("/w=", "ä", "/w==\n", "a b="):
        with pytest.raises(BadFiles, match="no base64"):
            create(files=[{**file, "content": content}]).contents()
    with pytest.raises(BadFiles, match="surrogate"):
        create(files=[{"path": "a", "content": "\ud800"}]).contents()


def test_an_edit_names_each_file_once() -> None:
    write = [{"path": "a", "content": ""}]
    for fields in ({"write": write * 2}, {"write": write, "delete": ["a"]}):
        with pytest.raises(BadFiles, match="twice"):
            PatchFiles.model_validate(fields).contents()


def test_large_metadata_is_refused() -> None:
    assert encode_metadata({"a": [1, None]}) == '{"a":[1,null]}'
    with pytest.raises(BadRequest, match="metadata"):
        encode_metadata({"a": "x" * 17_000})


def test_times_are_rfc_3339() -> None:
    assert timestamp(1_700_000_000_007) == "2023-11-14T22:13:20.007Z"


def test_urls_follow_the_mode_and_the_scheme() -> None:
    path = Urls(base="https://previews.example", preview_domain="")
    assert path.preview("some-id-1") == "https://previews.example/preview/some-id-1/"
    assert path.hmr("some-id-1") == "wss://previews.example/preview/some-id-1/hmr"
    sub = Urls(base="http://localhost:8080", preview_domain="localhost:8080")
    assert sub.preview("some-id-1") == "http://some-id-1.localhost:8080/"
    assert sub.hmr("some-id-1") == "ws://some-id-1.localhost:8080/hmr"
    assert sub.events("some-id-1") == "http://localhost:8080/api/v1/sessions/some-id-1/events"
