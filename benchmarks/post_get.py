"""`port.post` and `port.get` in pairs in one thread, against `queue.SimpleQueue` put and get."""

from __future__ import annotations

import argparse
import json
import queue
import statistics
import time

from arguments import add_engine, whole

from completionport import CompletionPort


def port_pairs(port: CompletionPort, pairs: int) -> float:
    post, get, key, overlapped = port.post, port.get, object(), object()
    start = time.perf_counter()
    for _ in range(pairs):
        post(1, key, overlapped)
        get()
    return pairs / (time.perf_counter() - start)


def queue_pairs(waiting: queue.SimpleQueue[object], pairs: int) -> float:
    put, get, item = waiting.put, waiting.get, object()
    start = time.perf_counter()
    for _ in range(pairs):
        put(item)
        get()
    return pairs / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_engine(parser)
    parser.add_argument("--rounds", type=whole(), default=7)
    parser.add_argument("--pairs", type=whole(10), default=200_000, help="in each round")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    options = parser.parse_args()
    ports: list[float] = []
    queues: list[float] = []
    waiting: queue.SimpleQueue[object] = queue.SimpleQueue()
    with CompletionPort(engine=options.engine) as port:
        port_pairs(port, options.pairs // 10)
        queue_pairs(waiting, options.pairs // 10)
        for index in range(options.rounds):
            # Who comes first changes, so that neither always finds the warmer machine.
            if index % 2:
                queues.append(queue_pairs(waiting, options.pairs))
            ports.append(port_pairs(port, options.pairs))
            if not index % 2:
                queues.append(queue_pairs(waiting, options.pairs))
        result = {
            "engine": port.engine,
            "port_pairs": statistics.median(ports),
            "queue_pairs": statistics.median(queues),
            "ratio": statistics.median(a / b for a, b in zip(ports, queues, strict=True)),
        }
    if options.json:
        print(json.dumps(result))
        return
    print(f"{'port (' + result['engine'] + ')':20} {result['port_pairs'] / 1e6:6.2f} M pairs/s")
    print(f"{'queue.SimpleQueue':20} {result['queue_pairs'] / 1e6:6.2f} M pairs/s")
    print(f"{'ratio':20} {result['ratio']:6.2f}")


if __name__ == "__main__":
    main()
