"""The traffic of the soak test. Each function is one round of one kind of client."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import Final

from bench.proxy.cases import BROWSER_FIELDS
from bench.proxy.frames import frame
from tests.protocol.test_malformed import CHUNKS, REFUSED
from tests.soak.content import content, receipt
from tests.soak.wire import Wire, WrongAnswer
from tests.soak.world import World

Round = Callable[[World], Awaitable[None]]
#: A few, so that what the gateway remembers of field lines is soon complete.
_SIZES: Final = (0, 1, 100, 1_024, 16_384, 65_536, 100_000, 262_144)
_BIG_BYTES: Final = 2_000_000
_MALFORMED: Final = (*REFUSED.values(), *CHUNKS.values())


def expect(found: bytes, wanted: bytes, what: str) -> None:
    """Every byte counts."""
    if found != wanted:
        raise WrongAnswer(f"{what}: {len(found)} bytes for {len(wanted)}: {found[:100]!r}")


def request(target: str, *fields: str, method: str = "GET") -> bytes:
    """A request head."""
    lines = (f"{method} {target} HTTP/1.1", "Host: localhost", *fields)
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def fetch(world: World, wire: Wire, kind: str, *fields: str, size: int = -1) -> None:
    """GET from the preview that is stable."""
    seed = world.dice.randrange(200)
    size = world.dice.choice(_SIZES) if size < 0 else size
    await wire.send(request(world.stable.path(f"{kind}/{seed}/{size}"), *fields))
    response = await wire.response()
    expect(response.body, content(world.stable.server.who, seed, size), f"{kind} {seed} {size}")


# -- requests --------------------------------------------------------------------------------------


async def keep_alive(world: World) -> None:
    async with world.connect() as wire:
        for _ in range(50):
            await fetch(world, wire, "plain")
        await wire.send(request(world.stable.path("plain/1/100"), method="HEAD"))
        await wire.response(to="HEAD")
        await wire.send(request(world.stable.path("nothing")))
        await wire.response(allowed=(404,))


async def browser(world: World) -> None:
    """Six connections at once, as a browser has them for a page."""

    async def load() -> None:
        async with world.connect() as wire:
            for _ in range(10):
                await fetch(world, wire, "plain", *BROWSER_FIELDS)

    await asyncio.gather(*(load() for _ in range(6)))


async def download(world: World) -> None:
    async with world.connect() as wire:
        await fetch(world, wire, "chunked", size=_BIG_BYTES)
        await fetch(world, wire, "plain", size=_BIG_BYTES)


async def upload(world: World) -> None:
    """With the length, then in chunks of all sizes."""
    data = content("client", world.dice.randrange(200), world.dice.choice((*_SIZES, _BIG_BYTES)))
    wanted = receipt(world.stable.server.who, len(data), hashlib.sha256(data).hexdigest())
    target = world.stable.path("upload")
    async with world.connect() as wire:
        await wire.send(request(target, f"Content-Length: {len(data)}", method="POST") + data)
        expect((await wire.response()).body, wanted, "upload")
        await wire.send(request(target, "Transfer-Encoding: chunked", method="POST"))
        while data:
            size = world.dice.choice((1, 1_000, 40_000, 300_000))
            part, data = data[:size], data[size:]
            await wire.send(b"%x\r\n%b\r\n" % (len(part), part))
        await wire.send(b"0\r\n\r\n")
        expect((await wire.response()).body, wanted, "upload in chunks")


async def pipeline(world: World) -> None:
    who, seeds = world.stable.server.who, [world.dice.randrange(200) for _ in range(40)]
    async with world.connect() as wire:
        wanted = b"".join(request(world.stable.path(f"plain/{seed}/1024")) for seed in seeds)
        await wire.send(wanted)
        for seed in seeds:
            expect((await wire.response()).body, content(who, seed, 1024), "pipelined")


# -- slow, aborted, malformed ----------------------------------------------------------------------


async def slow_reader(world: World) -> None:
    who, seed = world.stable.server.who, world.dice.randrange(200)
    async with world.connect() as wire:
        await wire.send(request(world.stable.path(f"plain/{seed}/{_BIG_BYTES}")))
        head = await wire.head()
        body = b""
        while len(body) < int(head.fields["content-length"]):
            body += await wire.reader.read(40_000)
            await asyncio.sleep(0.01)
        expect(body, content(who, seed, _BIG_BYTES), "read slowly")


async def slow_writer(world: World) -> None:
    """The head byte by byte, the content in drops."""
    data = content("client", 1, 4_000)
    wanted = receipt(world.stable.server.who, len(data), hashlib.sha256(data).hexdigest())
    target = world.stable.path("upload")
    async with world.connect() as wire:
        for byte in request(target, f"Content-Length: {len(data)}", method="POST"):
            await wire.send(bytes([byte]))
            await asyncio.sleep(0.001)
        for begin in range(0, len(data), 100):
            await wire.send(data[begin : begin + 100])
            await asyncio.sleep(0.01)
        expect((await wire.response()).body, wanted, "written slowly")


async def aborted(world: World) -> None:
    """Clients that die somewhere on the way, by a reset or an end of stream."""
    whole = request(world.stable.path(f"chunked/1/{_BIG_BYTES}"))
    target = world.stable.path("upload")
    half = request(target, "Content-Length: 500000", method="POST") + bytes(200_000)
    hanging = request(world.stable.path("hang"))
    beginnings = (b"", whole[:7], whole[:-2], whole, whole + whole, half, hanging, half[:300])
    for beginning in beginnings:
        async with world.connect() as wire:
            await wire.send(beginning)
            if beginning.startswith(whole):
                await wire.head()
            await asyncio.sleep(world.dice.random() / 20)
            if world.dice.random() < 0.7:
                wire.reset()


async def malformed(world: World) -> None:
    for data in world.dice.sample(_MALFORMED, 10):
        async with world.connect() as wire:
            await wire.send(data)
            wire.writer.write_eof()
            response = await wire.response(allowed=range(400, 506), provoked=True)
            if response.status not in (400, 408, 414, 417, 431, 501, 505):
                raise WrongAnswer(f"{data!r} is answered with {response.status}")
            await wire.at_end()


# -- streams and sockets ---------------------------------------------------------------------------


async def events(world: World) -> None:
    who, count = world.stable.server.who, world.dice.choice((5, 50))
    wanted = b"".join(b"id: %d\ndata: %b\n\n" % (n, who.encode()) for n in range(count))
    async with world.connect() as wire:
        await wire.send(request(world.stable.path(f"events/{count}")))
        if count == 5:
            expect((await wire.response()).body, wanted, "events")
        else:
            await wire.head()
            await wire.reader.readuntil(b"id: 3\n")
            wire.reset()


async def socket(world: World) -> None:
    """Messages come back; then either side ends, in one of the ways there are."""
    how = world.dice.choice(("close frame", "reset", "end", "server"))
    target = world.stable.path("echo/10" if how == "server" else "echo")
    async with world.connect() as wire:
        if (await wire.upgrade(target)).status != 101:
            raise WrongAnswer("no socket")
        for number in range(10 if how == "server" else 20):
            size = world.dice.choice((0, 100, 200, 5_000, 70_000))
            data = content("client", number, size)
            await wire.send(frame(data, masked=True))
            opcode, echoed = await wire.message()
            expect(echoed, data, f"echo (opcode {opcode})")
        if how == "reset":
            wire.reset()
        elif how == "close frame":
            await wire.send(frame(b"\x03\xe8", opcode=8, masked=True))
            if (await wire.message())[0] != 8:
                raise WrongAnswer("no close frame came back")
            await wire.at_end()
        elif how == "server":
            await asyncio.wait_for(wire.at_end(), 2.0)


async def refused_socket(world: World) -> None:
    """A refusal passes as it is, and the connection may be used on."""
    async with world.connect() as wire:
        response = await wire.upgrade(world.stable.path("refuse"))
        body = await wire.reader.readexactly(int(response.fields["content-length"]))
        expect(body, b"no sockets here", f"refusal ({response.status})")
        if "close" not in response.fields.get("connection", ""):
            await fetch(world, wire, "plain")


async def unanswered_socket(world: World) -> None:
    async with world.connect() as wire:
        response = await wire.upgrade(world.stable.path("silence"))
        if response.status != 504:
            raise WrongAnswer(f"an upgrade without an answer is answered with {response.status}")


# -- dev servers that fail -------------------------------------------------------------------------


async def truncated(world: World) -> None:
    """Half of a content is never taken for the whole."""
    async with world.connect() as wire:
        await wire.send(request(world.stable.path("cut/50000")))
        head = await wire.head()
        body = await wire.at_end()
        if len(body) >= int(head.fields["content-length"]):
            raise WrongAnswer("half of a content became a whole one")
        expect(body, content(world.stable.server.who, 0, 25_000)[: len(body)], "truncated")


async def no_http(world: World) -> None:
    async with world.connect() as wire:
        await wire.send(request(world.stable.path("garbage")))
        await wire.response(allowed=(502,), provoked=True)


STEADY: Final[tuple[Round, ...]] = (
    keep_alive,
    browser,
    download,
    upload,
    pipeline,
    slow_reader,
    slow_writer,
    aborted,
    malformed,
    events,
    socket,
    refused_socket,
    unanswered_socket,
    truncated,
    no_http,
)
