"""The command line of ``preview-gateway``."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import uvloop
from pydantic_core import PydanticUndefined

from gateway import __version__
from gateway.client import Client, Event
from gateway.errors import GatewayError, SettingsError, SpawnFailed
from gateway.findings import Finding, Verdict
from gateway.folder import Folder
from gateway.install_agent import install_agent
from gateway.proxy.build import BUILD
from gateway.registry.url import without_passwords
from gateway.settings import PREFIX, Settings, is_loopback, load_settings
from gateway.telemetry import configure_logging
from gateway.up import sentence, up

if TYPE_CHECKING:
    from gateway.app import Gateway

_BAD_USAGE: Final = 2
#: How long `up` bears with a gateway that cannot answer before it says so.
_UP_SECONDS: Final = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of the console script; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        command: Callable[[argparse.Namespace], int] = options.command
        return command(options)
    except SettingsError as exc:
        return _say_failure(exc, status=_BAD_USAGE)
    except GatewayError as exc:
        return _say_failure(exc, status=1)
    except BrokenPipeError:
        # Who read the output has seen enough; nothing may be flushed into the closed pipe at exit.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - open until the end
        return 128 + signal.SIGPIPE


def _say_failure(exc: GatewayError, *, status: int) -> int:
    if isinstance(exc, SpawnFailed) and exc.log_tail:
        print(exc.log_tail, file=sys.stderr)
    print(f"preview-gateway: {exc}", file=sys.stderr)
    return status


# -- options ---------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="preview-gateway",
        description="Dev servers at stable URLs, from any replica, with working HMR.",
    )
    version = f"{__version__} (data plane: {BUILD})"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(required=True, title="commands", metavar="COMMAND")

    command = commands.add_parser("serve", help="run a replica")
    command.usage = "preview-gateway serve [SETTINGS]"
    _add_settings(command)
    command.set_defaults(command=_serve)

    command = commands.add_parser("up", help="show a folder live in a browser, until Ctrl-C")
    command.usage = "preview-gateway up [--open] [--json] [SETTINGS] DIR"
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

    command = commands.add_parser(
        "install-agent", help="copy what runs in a preview's pod into a folder"
    )
    command.add_argument("dir", type=Path, metavar="DIR")
    command.set_defaults(command=_install_agent)

    command = commands.add_parser("doctor", help="find out what is wrong, and what to do about it")
    command.add_argument(
        "id", metavar="ID", nargs="?", default="", help="look at this session, too (wakes it)"
    )
    _add_client(command)
    command.set_defaults(command=_doctor)

    command = commands.add_parser("check-config", help="check the settings and print them")
    command.usage = "preview-gateway check-config [--json] [SETTINGS]"
    _add_settings(command)
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(command=_check_config)

    command = commands.add_parser(
        "openapi", help="print the document of the HTTP API (OpenAPI 3.1)"
    )
    command.set_defaults(command=_openapi)
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
            on_or_off = argparse.BooleanOptionalAction
            group.add_argument(flag, action=on_or_off, default=argparse.SUPPRESS, help=text)
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
    token = options.token or _token(settings)
    # Somebody waits at a terminal: what does not answer is said at once.
    return Client(_url(options, settings), token=token, patience_seconds=0)


def _own_client(settings: Settings) -> Client:
    """A client of the gateway that answers, or is to answer, on this machine."""
    return Client(_local_url(settings), token=_token(settings), patience_seconds=_UP_SECONDS)


def _url(options: argparse.Namespace, settings: Settings) -> str:
    """Where the gateway is that a command talks to."""
    return str(options.url) or settings.public_url or _local_url(settings)


def _local_url(settings: Settings) -> str:
    """Where a gateway with these settings answers on this machine."""
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what is listened on
    host = everywhere.get(settings.host, settings.host)
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


def _token(settings: Settings) -> str:
    return settings.api_tokens[0].get_secret_value() if settings.api_tokens else ""


# -- commands --------------------------------------------------------------------------------------


def _run(main: Coroutine[Any, Any, None]) -> int:
    """Run a command; SIGINT and SIGTERM cancel it, so that it cleans up, and give the status."""
    signals: list[int] = []

    async def run() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def cancel(number: int) -> None:
            # Once: what is cleaned up takes a limited time, and is not to be left half done.
            if not signals and task is not None:
                task.cancel()
            signals.append(number)

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, cancel, number)
        await main

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(run())
        except asyncio.CancelledError:
            return 128 + (signals[0] if signals else signal.SIGTERM)
    return 0


def _serve(options: argparse.Namespace) -> int:
    from gateway.app import serve  # not above: commands without a gateway start twice as fast

    settings = _settings(options)
    configure_logging(settings.log_level, form=settings.log_format)

    def ready(gateway: Gateway) -> None:
        print(f"preview-gateway serves {gateway.url}", flush=True)

    return _run(serve(settings, ready=ready))


def _up(options: argparse.Namespace) -> int:
    from gateway.app import Gateway

    settings = _settings(options)
    configure_logging("warning")
    folder = Folder(options.dir)

    def tell(event: str, **data: Any) -> None:
        text = json.dumps({"event": event, **data}) if options.json else sentence(event, data)
        print(text, flush=True)

    async def run() -> None:
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(_own_client(settings))
            if not settings.port or not await client.alive():
                gateway = Gateway(settings)
                await gateway.open()
                stack.push_async_callback(gateway.close)
                client = await stack.enter_async_context(_own_client(gateway.settings))
                tell("serving", url=_local_url(gateway.settings))
            await up(client, folder, tell=tell, open_browser=options.open)

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
            if options.follow:
                async with aclosing(client.events(options.id)) as events:
                    async for event in events:
                        _show(event, as_json=options.json)
                return
            text = await client.logs(options.id, tail=options.tail)
        print(json.dumps({"lines": text.splitlines()}) if options.json else text, end="")

    return _run(run())


def _show(event: Event, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"id": event.id, "type": event.type, "data": event.data}), flush=True)
    elif event.type == "log":
        print(*event.data["lines"], sep="\n", flush=True)
    elif event.type == "end":
        print(f"-- {event.data['state']}: {event.data['reason']}", flush=True)


def _stop(options: argparse.Namespace) -> int:
    async def run() -> None:
        async with _client(options) as client:
            answer = await client.stop(options.id)
        if options.json:
            print(json.dumps(answer))
        else:
            was = "was already" if answer["alreadyStopped"] else "is"
            print(f"{answer['id']} {was} {answer['state']}: {answer['reason']}")

    return _run(run())


def _install_agent(options: argparse.Namespace) -> int:
    """For the init container of a preview's pod: what runs there is one file."""
    try:
        install_agent(options.dir)
    except OSError as exc:
        print(f"preview-gateway: {options.dir}: {exc.strerror}", file=sys.stderr)
        return 1
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from gateway.doctor import Doctor  # not above: it loads the registry's client
    from gateway.registry.examine import embedded_url, examine

    settings = load_settings()
    url = _url(options, settings)
    limit_seconds = settings.registry_timeout_seconds
    registry = settings.redis_url
    if not registry and is_loopback(urlsplit(url).hostname or ""):
        registry = embedded_url(settings.data_dir)
    findings: list[Finding] = []

    async def run() -> None:
        doctor = Doctor(
            url,
            token=options.token or _token(settings),
            examine=partial(examine, registry, limit_seconds=limit_seconds) if registry else None,
            replicas_needed=settings.registry_replicas,
        )
        async with doctor, aclosing(doctor.look(options.id)) as found:
            async for finding in found:
                findings.append(finding)
                if not options.json:
                    _show_finding(finding)

    status = _run(run())
    failed = sum(finding.verdict is Verdict.FAILURE for finding in findings)
    if options.json:
        shown = {"ok": not failed, "findings": [asdict(finding) for finding in findings]}
        print(json.dumps(shown, indent=2))
    elif not status:
        print(f"{failed} of {len(findings)} findings are failures" if failed else "all is well")
    return status or (1 if failed else 0)


def _show_finding(finding: Finding) -> None:
    """At once, so that a look that takes a while shows how far it is."""
    print(f"{finding.verdict:<9}{finding.about}: {finding.check}: {finding.detail}", flush=True)
    if finding.remedy:
        print(f"{'':<9}-> {finding.remedy}", flush=True)


def _check_config(options: argparse.Namespace) -> int:
    settings = _settings(options)
    # JSON mode masks secrets; the registry's URL may hold a password, too.
    shown = settings.model_dump(mode="json")
    shown["redis_url"] = without_passwords(settings.redis_url)
    if options.json:
        print(json.dumps(shown, indent=2))
        return 0
    for name, value in shown.items():
        text = ",".join(map(str, value)) if isinstance(value, list) else value
        print(f"{PREFIX}{name.upper()}={text}")
    return 0


def _openapi(_: argparse.Namespace) -> int:
    from gateway.api.catalogue import document  # not above: see _serve

    print(json.dumps(document(), indent=2))
    return 0
