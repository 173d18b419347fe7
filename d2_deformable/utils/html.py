"""Content-Security-Policy of the pages that this package writes."""

import base64
import hashlib
import re


def content_policy(page: str, *others: str) -> str:
    """Content-Security-Policy by which a page loads nothing but images in data URLs.

    Of inline styles and scripts, only those of `page` count, by their hashes: text that was taken
    for HTML by mistake, such as the name of a class, cannot run.

    Args:
        page: HTML without text of others.
        others: directives to add, such as "connect-src 'self'".
    """
    allowed = [f"{tag}-src {' '.join(hashes)}" for tag in _INLINE if (hashes := _hashes(page, tag))]
    fixed = ("default-src 'none'", "img-src data:", "base-uri 'none'", "form-action 'none'")
    return "; ".join([*fixed, *allowed, *others])


_INLINE = ("style", "script")


def _hashes(page: str, tag: str) -> list[str]:
    contents = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    digests = (hashlib.sha256(content.encode()).digest() for content in contents)
    return [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]
