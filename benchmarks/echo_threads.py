"""Echo server with a thread for each connection: `socketserver.ThreadingTCPServer`."""

from __future__ import annotations

import argparse
import socketserver

from work import add_options, work_of


class ThreadingServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    add_options(parser)
    options = parser.parse_args()
    work = work_of(options)

    class Echo(socketserver.StreamRequestHandler):
        disable_nagle_algorithm = True

        def handle(self) -> None:
            receive, send = self.request.recv, self.request.sendall
            while data := receive(16384):
                if work:
                    work(data)
                send(data)

    ThreadingServer(("127.0.0.1", options.port), Echo).serve_forever()


if __name__ == "__main__":
    main()
