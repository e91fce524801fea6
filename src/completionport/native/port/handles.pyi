class Handle:
    """The compiled handle; `completionport.interface.Handle` has its methods."""
