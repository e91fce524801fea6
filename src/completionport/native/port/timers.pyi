class Timer:
    """The compiled timer; `completionport.Timer` has its methods."""
