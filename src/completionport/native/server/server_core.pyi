from completionport.interface.port import CompletionPort
from completionport.servers.service import Core
from completionport.servers.stream_server import Handler, Server

def ServerCore(
    port: CompletionPort,
    handler: Handler,
    server: Server,
    *,
    buffer_size: int,
    max_connections: int | None,
    idle_timeout: float | None,
    send_limit: int,
    inherits_nodelay: bool,
) -> Core: ...
