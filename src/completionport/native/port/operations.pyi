class OverlappedBase:
    """The compiled state of an operation; `completionport.Overlapped` has the documentation."""
