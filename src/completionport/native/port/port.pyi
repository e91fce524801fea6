class Port:
    """The compiled port; `completionport.CompletionPort` has its methods."""
