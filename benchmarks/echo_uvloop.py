"""Echo server on uvloop: the same Protocol as in `echo_asyncio.py`, on libuv."""

from __future__ import annotations

import uvloop
from echo_asyncio import arguments, divide, serve

if __name__ == "__main__":
    options = arguments(__doc__)
    uvloop.run(serve(options, *divide(options)))
