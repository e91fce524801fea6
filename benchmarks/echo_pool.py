"""Echo server on a `completionport.WorkerPool`: the low-level API in many threads.

What belongs to a connection is kept as in `echo_article.py`.
"""

from __future__ import annotations

import argparse
import signal
import socket

from echo_article import welcome
from work import add_options, work_of

from completionport import Completion, CompletionPort, Operation, WorkerPool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--engine", help="the best one here when left out")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--buffer-size", type=int, default=1024)
    add_options(parser)
    options = parser.parse_args()
    work = work_of(options)
    port = CompletionPort(engine=options.engine)
    listener = socket.create_server(("127.0.0.1", options.port), backlog=4096)
    listening = port.associate(listener, None)
    accepting = listening.accept()

    def target(done: Completion) -> None:
        transferred, key, io, error = done
        if io is accepting:
            if error is None:
                welcome(port, io.result(), options.buffer_size)
            listening.accept(accepting)
            return
        try:
            if error is not None or not (transferred or io.operation is Operation.SEND):
                key.handle.close()
            elif io.operation is Operation.RECV:
                data = io.view[:transferred]
                if work:
                    work(data)
                key.handle.send(data, 0, io)
            else:
                key.handle.recv(io.buffer, 0, io)
        except OSError:
            key.handle.close()

    WorkerPool(port, target, options.workers, daemon=True).start()
    signal.pause()


if __name__ == "__main__":
    main()
