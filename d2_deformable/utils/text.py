"""Counts in messages."""


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
