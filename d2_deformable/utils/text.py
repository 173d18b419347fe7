"""Text in messages and names."""


def is_text(name: str) -> bool:
    """Whether a string can be written to a file: JSON and YAML can hold half a character."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def count(n: int, things: str) -> str:
    """Write a number with its noun, in the singular or plural.

    Args:
        things: for one; its first word is the noun, e.g. "class without an object".

    Example:
        >>> count(1, "class without an object"), count(2, "class without an object")
        ('1 class without an object', '2 classes without an object')
    """
    noun, space, rest = things.partition(" ")
    ending = "" if n == 1 else "es" if noun.endswith(("s", "x")) else "s"
    return f"{n:,} {noun}{ending}{space}{rest}"
