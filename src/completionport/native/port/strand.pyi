from types import TracebackType
from typing import Any

class Strand:
    @property
    def port(self) -> Any: ...
    @property
    def queued(self) -> int: ...
    def release(self) -> None: ...

class Blocking:
    def __enter__(self) -> None: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
