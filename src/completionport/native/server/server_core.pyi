from completionport.handler import Handler
from completionport.interface import CompletionPort
from completionport.server import Server
from completionport.service import Core

def ServerCore(
    port: CompletionPort,
    handler: Handler,
    server: Server,
    *,
    buffer_size: int,
    max_connections: int | None,
    idle_timeout: float | None,
    send_limit: int,
) -> Core: ...
