from typing import Any

class Handle:
    """The compiled handle; `completionport.interface.Handle` has its methods and their types."""

    @property
    def key(self) -> Any: ...
    @property
    def file(self) -> Any: ...
