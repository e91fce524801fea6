from completionport.datagram_handler import DatagramHandler
from completionport.datagram_server import DatagramServer
from completionport.interface import CompletionPort
from completionport.service import Core

def DatagramCore(
    port: CompletionPort,
    handler: DatagramHandler,
    server: DatagramServer,
    *,
    buffer_size: int,
    send_limit: int,
) -> Core: ...
