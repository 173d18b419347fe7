"""Stand-in until the module of the same name is merged."""


class FileFormatError(ValueError):
    """A file that is not what its name or its use says."""
