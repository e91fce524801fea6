"""Echo server on uvloop: the same Protocol as in `echo_asyncio.py`, on libuv."""

from __future__ import annotations

import uvloop
from echo_asyncio import arguments, serve

if __name__ == "__main__":
    uvloop.run(serve(arguments(__doc__).port))
