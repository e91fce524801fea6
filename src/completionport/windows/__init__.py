"""The engine ``iocp``: the completion ports of Windows, through ctypes."""
