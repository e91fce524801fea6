class Timer:
    """The compiled timer; `completionport.interface.Timer` has its methods."""
