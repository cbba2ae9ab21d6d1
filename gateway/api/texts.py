"""What the document of the API says in prose."""

from __future__ import annotations

from typing import Any, Final

DESCRIPTION: Final = """\
JSON in camelCase. With `GATEWAY_API_TOKENS` set, every call but `/livez`, `/readyz` and
`/api/v1/openapi.json` needs `Authorization: Bearer <token>`; [access.md](access.md) says what each
token is good for. Errors are `application/problem+json` (RFC 9457):

```json
{"title": "Session exists with other content", "status": 409,
 "code": "session_conflict", "detail": "..."}
```

`code` is stable, `detail` says what to do. 503 always carries `Retry-After`. Fields are taken as
their type says: `"60"` is no number. Fields and parameters that there are not are refused, and so
is a parameter that comes twice. Bodies without files may have 256 KiB, others
`GATEWAY_MAX_API_BODY_BYTES`; more is 413, and too many large ones at the same time are 503
`overloaded`. A body with a `Content-Encoding` is 415. Answers may get further members: skip those
that you do not know.

Where there is `GET` there is `HEAD`. Any other method is 405, with those that there are in
`Allow`, and `OPTIONS` names them, too. Another type of content than a call takes is 415, with the
right one in `Accept`. `Accept` of a request is not looked at: each answer has the type that is
written here.

A call for a session that is still being registered waits for it: to read or change it for
`GATEWAY_STATUS_WAIT_SECONDS`, to post an event for `GATEWAY_EVENT_WAIT_SECONDS`, to open its
stream for `GATEWAY_STREAM_WAIT_SECONDS`. Then it is 404 `session_not_found` with `sessionId` and
`waitedSeconds`. A change of a session that has ended is 410 `session_ended` with its `state` and
`reason`.
"""

TAGS: Final = {
    "sessions": "Create, read, change and end sessions.",
    "files": "The files of a session, as JSON or as tar.gz.",
    "events": "What happens to a session, and what clients have to say about it.",
    "access": "What lets others see one session. 429 `limit_reached` with `Retry-After` and "
    "`limit` is the answer to calls beyond [the limits](access.md#limits).",
    "replicas": "The gateway itself.",
    "older shapes": """\
Calls for code that was written against older gateways. They wait like those above, take further
fields and parameters without a word, and need an API token of the scope `admin`. Errors have the
members of a problem document and those of the older shape: for `/kontext/preview` `{success:
false, error, sessionId, retries}`, for the others `{error: <code>, session_id}`.

A session that is made without files is `registered`, and stays so until a create call with its id
brings files, a command or a target; then it keeps its events, and its metadata if there is none
new. It can be written to, stopped and deleted like any other, and requests for its preview wait
for content as for a dev server that starts.""",
}

SECURITY: Final[dict[str, dict[str, Any]]] = {
    "token": {
        "type": "http",
        "scheme": "bearer",
        "description": "One of `GATEWAY_API_TOKENS`, or for some calls a session token. The scope "
        "that a call names is the least that is enough: `read`, `create` or `admin`.",
    },
    "ticket": {
        "type": "apiKey",
        "in": "query",
        "name": "token",
        "description": "A ticket from `POST .../ticket`, which opens one event stream once, within "
        "30 s; never an API token.",
    },
}
