class Handle:
    """The compiled handle; `completionport.Handle` has its methods."""
