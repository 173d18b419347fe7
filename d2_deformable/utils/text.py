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


def one_line(value, longest: int = 200) -> str:
    """Format text from a file, or an error, as one printable line, cut after `longest` letters."""
    try:
        text = " ".join(str(value).split()) or type(value).__name__
    except ValueError:  # Python refuses to write integers of thousands of digits
        text = f"a huge {type(value).__name__}"
    text = text if len(text) <= longest else f"{text[:longest]}..."
    return "".join(c if c.isprintable() else "?" for c in text)
