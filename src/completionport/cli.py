"""The command line: ``completionport echo`` and ``completionport engines``."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import platform
import signal
import sys
from collections.abc import Sequence

from .engines import ENGINES, default_engine, probe
from .interface.errors import CompletionPortError
from .servers.stream_server import Connection, Handler, Server
from .shared.lines import Lines, LogLines
from .shared.version import VERSION

LAST_WORDS = 1.0
"""Seconds that the end waits for a reader of what was printed."""


class Echo(Handler):
    """The article's server: what comes goes back."""

    def __init__(self, output: Lines, quiet: bool) -> None:
        self._output = output
        self.quiet = quiet

    def connected(self, connection: Connection) -> None:
        # One that has gone already has no address.
        if not self.quiet and connection.peername is not None:
            host, port = connection.peername[:2]
            self._output.say(f"Accept Client:{host}:{port}")

    def received(self, connection: Connection, data: bytes) -> None:
        connection.send(data)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 0, 1 for an error, 2 for a wrong option."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        if options.run is None:
            parser.print_help()
            return 0
        return int(options.run(options))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of the output has gone, as in `completionport engines | head -1`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, ValueError, RuntimeError, CompletionPortError) as error:
        # Without the number, which is for programs.
        text = error.strerror if isinstance(error, OSError) and error.strerror else error
        with contextlib.suppress(OSError, ValueError):
            print(f"completionport: {text}", file=sys.stderr)
        return 1


def _echo(options: argparse.Namespace) -> int:
    # Nobody may be there to read: that is no business of the clients.
    output, errors = Lines(sys.stdout), Lines(sys.stderr)
    log = logging.getLogger("completionport")
    handler = LogLines(errors)
    log.addHandler(handler)
    patience = LAST_WORDS
    try:
        _serve_echo(options, output)
    except SystemExit:  # a second signal
        patience /= 5
        raise
    finally:
        output.finish(patience)
        errors.finish(patience)
        log.removeHandler(handler)
    return 0


def _serve_echo(options: argparse.Namespace, output: Lines) -> None:
    class EchoServer(Server):
        def start(self) -> None:
            # Said once signals are heeded: whoever has read it may end the server by one.
            host, port = self.address[:2]
            where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            output.say(f"Echo server on {where}, engine {self.completion_port.engine}")
            super().start()

    server = EchoServer(
        Echo(output, options.quiet),
        options.host,
        options.port,
        workers=options.workers,
        concurrency=options.concurrency,
        buffer_size=options.buffer_size,
        max_connections=options.max_connections,
        idle_timeout=options.idle_timeout,
        engine=options.engine,
    )
    try:
        server.serve_forever()
    finally:
        numbers = server.stats()
        output.say(
            f"Served {numbers['accepted']} clients, {numbers['received_bytes']} bytes "
            f"in {numbers['received_packets']} packets"
        )


def _engines(options: argparse.Namespace) -> int:
    reports = [probe(name) for name in ENGINES]
    default = default_engine()
    rows = [("engine", "usable", "why not", "what to do")]
    rows += [
        (
            report.name,
            ("yes" if report.usable else "no") + (" (default)" if report.name == default else ""),
            report.reason or "-",
            report.remedy or "-",
        )
        for report in reports
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    if os.environ.get("COMPLETIONPORT_ENGINE"):
        unknown = "" if default in ENGINES else ", which is no engine"
        print(f"\nCOMPLETIONPORT_ENGINE asks for {default}{unknown}, where a port is told none")
    for report in reports:
        if report.features:
            print(f"\n{report.name}: what this kernel has")
            for feature, there in report.features.items():
                print(f"  {'yes' if there else 'no ':<4}{feature}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="completionport", description="I/O completion ports for Python."
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"completionport {VERSION}, Python {platform.python_version()}",
    )
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(metavar="COMMAND")
    echo = commands.add_parser("echo", help="run the echo server of the article")
    echo.set_defaults(run=_echo)
    echo.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    echo.add_argument("--port", type=int, default=5050, help="0 takes a free one (%(default)s)")
    echo.add_argument(
        "--buffer-size", type=int, default=1024, metavar="BYTES", help="64 to 2**20 (%(default)s)"
    )
    echo.add_argument(
        "--workers", type=int, metavar="N", help="threads (8, or twice the concurrency)"
    )
    echo.add_argument(
        "--concurrency", type=int, default=0, metavar="N", help="threads that run at a time"
    )
    echo.add_argument("--engine", choices=ENGINES, help="the best that runs here")
    echo.add_argument("--max-connections", type=int, metavar="N", help="more wait (no limit)")
    echo.add_argument(
        "--idle-timeout", type=float, metavar="SECONDS", help="close silent clients (never)"
    )
    echo.add_argument("--quiet", action="store_true", help="do not print each client")
    engines = commands.add_parser("engines", help="which engines run here, and why not")
    engines.set_defaults(run=_engines)
    return parser


if __name__ == "__main__":
    sys.exit(main())
