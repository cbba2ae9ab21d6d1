"""The command line: ``preview-gateway serve | up | ls | logs | stop | check-config``."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import uvloop
from pydantic_core import PydanticUndefined

from gateway import __version__
from gateway.app import Gateway, serve
from gateway.client import Client
from gateway.errors import GatewayError, SettingsError, SpawnFailed
from gateway.folder import Folder
from gateway.settings import PREFIX, Settings, load_settings
from gateway.telemetry import configure_logging
from gateway.up import up

_BAD_USAGE: Final = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of the console script; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        command: Callable[[argparse.Namespace], int] = options.command
        return command(options)
    except SettingsError as exc:
        print(f"preview-gateway: {exc}", file=sys.stderr)
        return _BAD_USAGE
    except BaseExceptionGroup as group:
        return _say_failure(_first(group))
    except GatewayError as exc:
        return _say_failure(exc)
    except KeyboardInterrupt:
        return 130


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    inner: BaseException = group
    while isinstance(inner, BaseExceptionGroup):
        inner = inner.exceptions[0]
    return inner


def _say_failure(exc: BaseException) -> int:
    if not isinstance(exc, GatewayError):
        raise exc
    if isinstance(exc, SpawnFailed) and exc.log_tail:
        print(exc.log_tail, file=sys.stderr)
    print(f"preview-gateway: {exc}", file=sys.stderr)
    return 1


# -- options ---------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="preview-gateway",
        description="Dev servers at stable URLs, from any replica, with working HMR.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("serve", help="run a replica")
    _add_settings(command)
    command.set_defaults(command=_serve)

    command = commands.add_parser("up", help="show a folder live in a browser, until Ctrl-C")
    command.add_argument("dir", type=Path, metavar="DIR", help="folder with a package.json")
    command.add_argument("--open", action="store_true", help="open it in a browser")
    command.add_argument("--json", action="store_true", help="one JSON object a line")
    _add_settings(command)
    command.set_defaults(command=_up)

    command = commands.add_parser("ls", help="list sessions")
    command.add_argument("--state", default="", help="only sessions in this state")
    _add_client(command)
    command.set_defaults(command=_ls)

    command = commands.add_parser("logs", help="show a session's log")
    command.add_argument("id", metavar="ID")
    command.add_argument("-f", "--follow", action="store_true", help="go on with new lines")
    command.add_argument("--tail", type=int, default=500, help="lines to begin with")
    _add_client(command)
    command.set_defaults(command=_logs)

    command = commands.add_parser("stop", help="stop a session")
    command.add_argument("id", metavar="ID")
    _add_client(command)
    command.set_defaults(command=_stop)

    command = commands.add_parser("check-config", help="check the settings and print them")
    _add_settings(command)
    command.set_defaults(command=_check_config)
    return parser


def _add_settings(command: argparse.ArgumentParser) -> None:
    """Every setting as a flag; what is not given stays with the environment."""
    group = command.add_argument_group("settings (each also as an environment variable)")
    for name, field in Settings.model_fields.items():
        flag = "--" + name.replace("_", "-")
        default = field.get_default(call_default_factory=True)
        shown = "" if default in ("", [], PydanticUndefined) else f" [{default}]"
        text = f"{field.description}{shown} {PREFIX}{name.upper()}".replace("%", "%%")
        if field.annotation is bool:
            group.add_argument(
                flag, action="store_const", const=True, default=argparse.SUPPRESS, help=text
            )
        else:
            group.add_argument(flag, metavar="VALUE", default=argparse.SUPPRESS, help=text)


def _settings(options: argparse.Namespace) -> Settings:
    given = {name: value for name, value in vars(options).items() if name in Settings.model_fields}
    return load_settings(given)


def _add_client(command: argparse.ArgumentParser) -> None:
    command.add_argument("--url", default="", help="address of a gateway [from the settings]")
    command.add_argument("--token", default="", help="API token [the first of GATEWAY_API_TOKENS]")
    command.add_argument("--json", action="store_true", help="print JSON")


def _client(options: argparse.Namespace) -> Client:
    settings = load_settings()
    tokens = [token.get_secret_value() for token in settings.api_tokens]
    host = "127.0.0.1" if settings.host == "0.0.0.0" else settings.host  # noqa: S104 - compared
    url = options.url or settings.public_url or f"http://{host}:{settings.port}"
    return Client(url, token=options.token or (tokens[0] if tokens else ""))


# -- commands --------------------------------------------------------------------------------------


def _run(main: Coroutine[Any, Any, None]) -> int:
    """Run a command; SIGTERM ends it like Ctrl-C, with everything cleaned up."""

    async def run() -> None:
        task = asyncio.current_task()
        if task is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        await main

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(run())
        except asyncio.CancelledError:
            return 143
    return 0


def _serve(options: argparse.Namespace) -> int:
    settings = _settings(options)
    configure_logging(settings.log_level)

    def ready(gateway: Gateway) -> None:
        print(f"preview-gateway serves {gateway.url}", flush=True)

    return _run(serve(settings, ready=ready))


def _up(options: argparse.Namespace) -> int:
    settings = _settings(options)
    configure_logging("warning")
    folder = Folder(options.dir)

    def say(text: str) -> None:
        if not options.json:
            print(text, flush=True)

    def report(event: str, **data: Any) -> None:
        if options.json:
            print(json.dumps({"event": event, **data}), flush=True)

    async def run() -> None:
        tokens = [token.get_secret_value() for token in settings.api_tokens]
        url = f"http://{settings.host}:{settings.port}"
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(Client(url, token=(tokens or [""])[0]))
            if not settings.port or not await client.alive():
                gateway = Gateway(settings)
                await gateway.open()
                stack.push_async_callback(gateway.close)
                url = gateway.url
                client = await stack.enter_async_context(Client(url, token=(tokens or [""])[0]))
                say(f"serving      {url}")
            await up(client, folder, say=say, open_browser=options.open, report=report)

    return _run(run())


def _ls(options: argparse.Namespace) -> int:
    async def run() -> None:
        async with _client(options) as client:
            sessions = await client.sessions(state=options.state)
        if options.json:
            print(json.dumps(sessions, indent=2))
            return
        if not sessions:
            print("no sessions")
            return
        print(f"{'ID':<42}{'STATE':<12}{'OWNER':<24}CREATED")
        for session in sessions:
            print(
                f"{session['id']:<42}{session['state']:<12}{session['owner']:<24}"
                f"{session['createdAt']}"
            )

    return _run(run())


def _logs(options: argparse.Namespace) -> int:
    async def run() -> None:
        async with _client(options) as client:
            if not options.follow:
                print(await client.logs(options.id, tail=options.tail), end="")
                return
            async for event in client.events(options.id):
                if options.json:
                    print(json.dumps({"id": event.id, "type": event.type, "data": event.data}))
                elif event.type == "log":
                    print(*event.data["lines"], sep="\n", flush=True)
                elif event.type == "end":
                    print(f"-- {event.data['state']}: {event.data.get('reason', '')}")

    return _run(run())


def _stop(options: argparse.Namespace) -> int:
    async def run() -> None:
        async with _client(options) as client:
            answer = await client.stop(options.id)
        if options.json:
            print(json.dumps(answer))
        else:
            again = " already" if answer["alreadyStopped"] else ""
            print(f"{answer['id']} is{again} {answer['state']}: {answer['reason']}")

    return _run(run())


def _check_config(options: argparse.Namespace) -> int:
    settings = _settings(options)
    for name in Settings.model_fields:
        print(f"{PREFIX}{name.upper()}={getattr(settings, name)}")
    return 0
