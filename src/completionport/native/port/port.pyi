class Port:
    """The compiled port; `completionport.interface.CompletionPort` has its methods."""
