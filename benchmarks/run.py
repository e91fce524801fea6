"""Run the benchmarks and say which of the promised figures hold.

    python benchmarks/run.py echo64            one case
    python benchmarks/run.py all --json FILE   all of them, figures to a file as well

Servers run on one core and the client on another, all servers of a case are kept for all of its
rounds, and each round visits them in another order: what the machine does meanwhile meets all
of them. Rounds are short and many, since a virtual machine changes its speed from one second to
the next. A ratio is taken within each round; the median of the rounds is printed, and beside a
bar the middle half of them.
Exit status: 0 when all bars hold, 1 when one does not or a program failed.
"""

from __future__ import annotations

import argparse
import socket
import sys

from arguments import whole
from harness import PROBLEMS, interleaved, ours, parse, parser, run, script
from processes import HERE, EchoServer, apart, build, hold_idle, load, run_client
from report import Bar, Report, Round, middle, note_disturbance, ratio_bar, ratios, times

IDLE_CONNECTIONS = 9000


def servers(options: argparse.Namespace, *references: str) -> dict[str, list[str]]:
    """The commands of the servers of a case: those to compare with, then the one of each engine."""
    known = {
        "C epoll": [str(build("echo_epoll")), "{port}"],
        "uvloop": script("echo_uvloop.py"),
        "asyncio": script("echo_asyncio.py"),
    }
    commands = {name: known[name] for name in references}
    extra = ["--workers", str(options.workers)] if options.workers is not None else []
    for engine in options.engine:
        commands[ours(engine)] = script("echo_server.py", "--engine", engine, *extra)
    return commands


def throughput(
    title: str,
    commands: dict[str, list[str]],
    load_of: tuple[int, int],
    reference: str,
    options: argparse.Namespace,
    kind: int = socket.SOCK_STREAM,
) -> Report:
    """A closed-loop case: requests a second, latency, and CPU for each request."""
    connections, size = load_of
    by_cpu = "C epoll" if "C epoll" in commands else reference
    columns = ["server", "req/s", f"to {reference}", "p50 us", "p99 us", "CPU us/req"]
    columns += [f"to {by_cpu}", "client busy"]
    clients = "connections" if kind == socket.SOCK_STREAM else "clients with datagrams"
    report = Report(f"{title}: {connections} {clients} of {size} bytes", columns)

    def measure(server: EchoServer) -> Round:
        return load(server, connections, size, options.seconds)

    results = interleaved(
        commands, options.rounds, measure, report.failures, places=apart(), kind=kind
    )
    report.rounds = results
    for name, rounds in results.items():
        report.rows.append(
            [
                name,
                f"{middle(rounds, 'rate'):,.0f}",
                times(ratios(results, name, reference, "rate")),
                f"{middle(rounds, 'p50_us'):,.0f}",
                f"{middle(rounds, 'p99_us'):,.0f}",
                f"{middle(rounds, 'server_cpu_us'):.2f}",
                times(ratios(results, name, by_cpu, "server_cpu_us")),
                f"{middle(rounds, 'client_load'):.0%}",
            ]
        )
    note_disturbance(report)
    return report


def promise(
    report: Report, figure: str, reference: str, limits: dict[str, float], at_least: bool = True
) -> None:
    """The promised ratios to ``reference``, for those engines that were measured."""
    what = "throughput" if figure == "rate" else "CPU for each request"
    for engine, limit in limits.items():
        text = f"{ours(engine)}, {what} against {reference}"
        ratio_bar(report, text, ours(engine), reference, limit, figure, at_least)


def echo64(options: argparse.Namespace) -> Report:
    commands = servers(options, "C epoll", "uvloop")
    report = throughput("echo64", commands, (64, 100), "uvloop", options)
    promise(report, "rate", "uvloop", {"io_uring": 1.05, "epoll": 0.95})
    promise(report, "server_cpu_us", "C epoll", {"io_uring": 1.10}, at_least=False)
    return report


def echo1000(options: argparse.Namespace) -> Report:
    commands = servers(options, "C epoll", "uvloop")
    report = throughput("echo1000", commands, (1000, 1000), "uvloop", options)
    promise(report, "rate", "uvloop", {"io_uring": 1.3, "epoll": 1.0})
    return report


def udp64(options: argparse.Namespace) -> Report:
    commands = {
        "uvloop": script("udp_asyncio.py", "--uvloop"),
        "asyncio": script("udp_asyncio.py"),
    }
    for engine in options.engine:
        commands[ours(engine)] = script("udp_server.py", "--engine", engine)
    report = throughput("udp64", commands, (64, 100), "uvloop", options, socket.SOCK_DGRAM)
    promise(report, "rate", "uvloop", {"io_uring": 1.1, "epoll": 1.1})
    return report


def article(options: argparse.Namespace) -> Report:
    commands = servers(argparse.Namespace(engine=[], workers=None), "C epoll", "asyncio")
    for engine in options.engine:
        commands[ours(engine)] = script("echo_article.py", "--engine", engine)
    report = throughput("article", commands, (64, 100), "asyncio", options)
    promise(report, "rate", "asyncio", {"io_uring": 0.8, "epoll": 0.8})
    return report


def win32(options: argparse.Namespace) -> Report:
    commands = servers(argparse.Namespace(engine=[], workers=None), "C epoll", "asyncio")
    for engine in options.engine:
        commands[ours(engine)] = script("echo_article.py", "--engine", engine)
        commands[f"win32 {engine}"] = script("echo_win32.py", "--engine", engine)
    return throughput("win32", commands, (64, 100), "asyncio", options)


def idle(options: argparse.Namespace) -> Report:
    columns = ["server", "bytes each", "connected s", "all served s", "lost"]
    report = Report(f"idle: {IDLE_CONNECTIONS} connections that say nothing", columns)
    commands = servers(options, "uvloop")
    # Memory once used is not given back, so each round takes fresh servers. Three are plenty:
    # memory hardly varies.
    rounds = min(options.rounds, 3)

    def measure(server: EchoServer) -> Round:
        return hold_idle(server, IDLE_CONNECTIONS)

    report.rounds = interleaved(
        commands, rounds, measure, report.failures, places=apart(), fresh=True
    )
    for name, found in report.rounds.items():
        lost = sum(entry["lost"] for entry in found)
        each = middle(found, "bytes_each")
        connected = middle(found, "connect_seconds")
        served = middle(found, "served_seconds")
        report.rows.append([name, f"{each:,.0f}", f"{connected:.2f}", f"{served:.2f}", str(lost)])
        if name != "uvloop":
            worst = max(entry["served_seconds"] for entry in found)
            report.bars += [
                Bar(f"{name}, bytes of memory for each connection", each, 1300, at_least=False),
                Bar(f"{name}, seconds until all are served, worst round", worst, 2, at_least=False),
                Bar(f"{name}, connections lost", lost, 0, at_least=False),
            ]
    return report


def side_by_side(
    options: argparse.Namespace,
    title: str,
    figures: dict[str, str],
    program: str,
    promised: tuple[str, float],
    cores: set[int] | None,
) -> Report:
    """A program that measures the port and what it is compared with, by itself and in turn.

    ``figures``: what it prints for the two, and how the table calls them.
    ``promised``: the least ratio, and of what it is. ``cores``: where it runs, None where it
    chooses by itself.
    """
    what, limit = promised
    report = Report(title, ["engine", *figures.values(), "ratio"])
    for engine in options.engine:
        command = [sys.executable, str(HERE / program), "--json", "--engine", engine]
        try:
            found = run_client([*command, "--rounds", str(options.rounds)], 120, cores)
        except PROBLEMS as failure:
            report.failures[ours(engine)] = str(failure)
            continue
        shown = [f"{found[key]:,.0f}" for key in figures]
        report.rows.append([engine, *shown, times([found["ratio"]])])
        report.rounds[ours(engine)] = [found]
        bar = Bar(f"{ours(engine)}, {what}", found["ratio"], limit, at_least=True)
        if "middle_half_low" in found:
            bar.middle_half = found["middle_half_low"], found["middle_half_high"]
        report.bars.append(bar)
    return report


def post_get(options: argparse.Namespace) -> Report:
    figures = {"port_pairs": "port pairs/s", "queue_pairs": "SimpleQueue pairs/s"}
    title = "post_get: pairs of post and get in one thread"
    return side_by_side(
        options,
        title,
        figures,
        "post_get.py",
        ("post and get against SimpleQueue", 0.5),
        apart().server,
    )


def sendfile(options: argparse.Namespace) -> Report:
    figures = {"port_rate": "port MiB/s", "socket_rate": "socket.sendfile MiB/s"}
    title = "sendfile: 1 GiB over loopback"
    return side_by_side(
        # It has a process of its own on each of two cores.
        options,
        title,
        figures,
        "sendfile.py",
        ("sendfile against socket.sendfile", 1.0),
        None,
    )


def zero_copy(options: argparse.Namespace) -> Report:
    columns = ["network", "bytes", "send MiB/s", "zero-copy MiB/s", "ratio"]
    columns += ["CPU us/MiB", "zero-copy CPU us/MiB", "ratio", "copied"]
    report = Report("zero_copy: send with and without zero_copy, io_uring", columns)
    for network, size in (
        *(("loopback", size) for size in (16384, 262144, 1048576)),
        *(("sink", size) for size in (10240, 20000, 50000)),
    ):
        command = [sys.executable, str(HERE / "zero_copy.py"), network, str(size), "--json"]
        try:
            # It takes both cores itself.
            found = run_client([*command, "--rounds", str(options.rounds)], 120, None)
        except PROBLEMS as failure:
            report.failures[f"{network}, {size:,} bytes"] = str(failure)
            continue
        report.rows.append(
            [
                network,
                f"{size:,}",
                f"{found['send_rate']:,.0f}",
                f"{found['zero_copy_rate']:,.0f}",
                times([found["ratio"]]),
                f"{found['send_cpu_us']:,.0f}",
                f"{found['zero_copy_cpu_us']:,.0f}",
                times([found["cpu_ratio"]]),
                f"{found['copied']:.0%}",
            ]
        )
        report.rounds[f"{network} {size}"] = [found]
    return report


def timers(options: argparse.Namespace) -> Report:
    columns = ["engine", "set ns", "fire ns", "cancel ns", "bytes each", "to uvloop"]
    report = Report("timers: a million set and fired, against uvloop's call_later", columns)
    # A round takes some ten seconds, and a million timers vary little.
    rounds = str(min(options.rounds, 3))

    def row(name: str, figures: dict[str, float], ratio: str) -> None:
        keys = ("set_ns", "fire_ns", "cancel_ns", "bytes_each")
        report.rows.append([name, *(f"{figures[key]:,.0f}" for key in keys), ratio])

    for engine in options.engine:
        command = [sys.executable, str(HERE / "timers.py"), "--json", "--engine", engine]
        try:
            found = run_client([*command, "--rounds", rounds], 170, apart().server)
        except PROBLEMS as failure:
            report.failures[ours(engine)] = str(failure)
            continue
        row(engine, found["ours"], times([found["ratio"]]))
        row("uvloop beside it", found["uvloop"], "1.00")
        report.rounds[ours(engine)] = [found]
        what = f"{ours(engine)}, timers set and fired against uvloop"
        report.bars.append(Bar(what, found["ratio"], 2.0, at_least=True))
    return report


CASES = {
    function.__name__: function
    for function in (
        echo64,
        echo1000,
        udp64,
        sendfile,
        zero_copy,
        article,
        win32,
        idle,
        post_get,
        timers,
    )
}


def main() -> int:
    made = parser(__doc__, CASES, rounds=20, seconds=0.6)
    made.add_argument("--workers", type=whole(), help="of Server; its own default when left out")
    return run(CASES, parse(made))


if __name__ == "__main__":
    sys.exit(main())
