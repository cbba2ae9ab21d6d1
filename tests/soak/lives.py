"""Sessions that come and go while the traffic runs: by the API, by SIGKILL, by both."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any, Final

from bench.proxy.frames import frame
from tests.e2e.listening import Listening, listen
from tests.soak.content import content
from tests.soak.traffic import Round, expect, request
from tests.soak.wire import WrongAnswer
from tests.soak.world import DevServer, World

_SESSIONS: Final = "/api/v1/sessions"
#: A few, begun anew again and again: what is remembered of an ended session is kept for a day.
_IDS: Final = [f"soak-session-{number}" for number in range(8)]
#: A dev server that the gateway itself starts; it says its process id.
_APP: Final[dict[str, Any]] = {
    "files": [
        {
            "path": "app.py",
            "content": """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = str(os.getpid()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
address = os.environ["HOST"], int(os.environ["PORT"])
http.server.ThreadingHTTPServer(address, Handler).serve_forever()
""",
        }
    ],
    "command": [sys.executable, "app.py"],
}


async def end_of(listening: Listening, generation: int) -> None:
    """Wait for the end of one generation; the stream tells of those before, too."""
    begun = False
    while (event := await listening.next()) is not None:
        if event.type == "state":
            begun = begun or event.data["generation"] == generation
        elif event.type == "end" and begun:
            return
    raise WrongAnswer(f"the stream is over before generation {generation}")


async def session(world: World) -> None:
    """Created, asked for at once, listened to, stopped twice, gone."""
    session_id = world.dice.choice(_IDS)
    preview, stop = f"/preview/{session_id}/plain/1/1024", f"{_SESSIONS}/{session_id}/stop"
    body = {"id": session_id, "target": world.stable.server.target}
    generation = (await world.api.create(body))["generation"]
    async with (
        listen(f"{world.api.url}{_SESSIONS}/{session_id}/events") as listening,
        world.connect() as wire,
    ):
        await wire.send(request(preview))
        wanted = content(world.stable.server.who, 1, 1024)
        expect((await wire.response()).body, wanted, "a new session")
        for already in (False, True):
            status, stopped = await world.api.call("POST", stop)
            if (status, stopped["alreadyStopped"]) != (200, already):
                raise WrongAnswer(f"stop: {status} {stopped}")
        await end_of(listening, generation)
        await wire.send(request(preview))
        await wire.response(allowed=(410,))


async def spawned(world: World) -> None:
    """A dev server that the gateway starts, and that is stopped or killed."""
    session_id = "soak-spawned"
    generation = (await world.api.create({"id": session_id, **_APP}, ready=True))["generation"]
    async with world.connect() as wire:
        await wire.send(request(f"/preview/{session_id}/"))
        pid = int((await wire.response()).body)
        if world.dice.random() < 0.5:
            status, _ = await world.api.call("POST", f"{_SESSIONS}/{session_id}/stop")
            if status != 200:
                raise WrongAnswer(f"stop: {status}")
        else:
            os.kill(pid, signal.SIGKILL)
        async with listen(f"{world.api.url}{_SESSIONS}/{session_id}/events") as listening:
            await end_of(listening, generation)
        await wire.send(request(f"/preview/{session_id}/"))
        await wire.response(allowed=(410,))


async def unknown(world: World) -> None:
    """Nobody ever registers it."""
    async with world.connect() as wire:
        await wire.send(request(f"/preview/soak-unknown-{world.dice.randrange(50)}/"))
        await wire.response(allowed=(404,))


async def change(world: World) -> None:
    """SIGKILL of a dev server; its session ends and begins anew with one on another port."""
    preview = world.changing
    successor = await DevServer.start(f"changing-{preview.generation + 1}")
    await preview.server.kill()
    await asyncio.sleep(world.dice.random() / 5)
    await world.api.call("POST", f"{_SESSIONS}/{preview.id}/stop")
    preview.server = successor
    await world.begin(preview)
    preview.generation += 1
    await asyncio.sleep(1.0)


async def changing(world: World) -> None:
    """A right answer or an honest failure, never an answer of a generation that is over."""
    preview = world.changing
    async with world.connect() as wire:
        for _ in range(20):
            generation = preview.generation
            try:
                await wire.send(request(preview.path("plain/1/4096")))
                response = await wire.response(allowed=(200, 410, 502, 503), provoked=True)
            except (ConnectionError, asyncio.IncompleteReadError):
                return  # cut off on the way: it can be seen
            if response.status == 200:
                known = range(generation, preview.generation + 2)
                if response.body not in [content(f"changing-{n}", 1, 4096) for n in known]:
                    raise WrongAnswer(f"not from generation {generation} or a later one")
            await asyncio.sleep(0.01)


async def changing_socket(world: World) -> None:
    """A socket to it ends when its dev server does."""
    async with world.connect() as wire:
        if (await wire.upgrade(world.changing.path("echo"))).status != 101:
            return
        try:
            for _ in range(60):
                await wire.send(frame(b"still there?", masked=True))
                _, data = await wire.message()
                expect(data, b"still there?", "echo of the changing one")
                await asyncio.sleep(0.05)
        except ConnectionError:
            return


LIVES: Final[tuple[Round, ...]] = (
    session,
    spawned,
    unknown,
    change,
    changing,
    changing_socket,
)
