from completionport.interface.port import Completion as Completion

class OverlappedBase:
    """The compiled state of an operation; `completionport.Overlapped` has the documentation."""
