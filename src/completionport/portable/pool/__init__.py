"""The threads for what would block the caller, and the files whose operations they run."""
