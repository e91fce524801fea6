from completionport.interface.port import CompletionPort
from completionport.servers.datagram_server import DatagramHandler, DatagramServer
from completionport.servers.service import Core

def DatagramCore(
    port: CompletionPort,
    handler: DatagramHandler,
    server: DatagramServer,
    *,
    buffer_size: int,
    send_limit: int,
) -> Core: ...
