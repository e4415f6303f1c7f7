"""URLs of servers as people may see them: without what must stay secret."""

from __future__ import annotations

import re

__all__ = ["MASK", "mask_url"]

#: What is shown in place of a secret.
MASK = "**"

# Several servers stand in one setting, joined by ";". A password may hold one too, so only one before a scheme cuts.
_JOINT = re.compile(r";(?=[A-Za-z][\w+.-]*://)")
_URL = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*://)(?P<rest>.*)", re.DOTALL)
_SECRET_PARAMETER = re.compile(
    r"(?P<name>[?&;][^=&;]*(?:pass(?:word|wd)?|pwd|secret|token|credential|key)[^=&;]*=)[^&;#]*",
    re.IGNORECASE,
)


def mask_url(url: str) -> str:
    """`url` (or several, joined by ``;``) with the password, and parameters named like one, replaced by ``**``.

    Meant for logs and banners: where a password holds characters that should have been percent-encoded,
    rather too much is hidden than too little.

    >>> mask_url("redis://:s3cret@localhost:6379/0")
    'redis://:**@localhost:6379/0'
    """
    return ";".join(_mask_one(each) for each in _JOINT.split(url))


def _mask_one(url: str) -> str:
    found = _URL.fullmatch(url)
    if found is None:
        return url
    rest = found["rest"]
    user, secret, host = _userinfo(rest)
    if secret:
        rest = f"{user}:{MASK}{host}"
    return found["scheme"] + _SECRET_PARAMETER.sub(rf"\g<name>{MASK}", rest)


def _userinfo(rest: str) -> tuple[str, str, str]:
    """Cut what follows ``://`` into user, password, and the rest from its ``@`` on; no password: ""."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, colon, after = authority.partition(":")
    if not colon:
        return "", "", rest
    if "@" not in authority and (after.isdigit() or not after):
        return "", "", rest  # host:port
    if "@" in user:
        return "", "", rest  # user@host:port
    # The last "@" ends the password, but not one in the parameters after a well-formed authority.
    end = rest.find("?", rest.find("@"))
    at = rest.rfind("@", 0, end if end > 0 else len(rest))
    if at < 0:
        return "", "", rest
    return user, rest[len(user) + 1 : at], rest[at:]
