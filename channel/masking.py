"""URLs as messages may show them: without what may be a secret in them."""

import re
from typing import Final


_MODEL: Final = re.compile(r"openai(?:-chat)?:(?:(?!//)[^@])*@")
_USERINFO: Final = re.compile(r"//.*@", re.DOTALL)
_REST: Final = re.compile(r"[?#].+", re.DOTALL)


def masked(text: str) -> str:
    """Return a URL, or `openai:<model>@<base url>`, without credentials, query and fragment.

    It need not be well formed: what stands before the last `@` is taken for credentials, wherever
    the host may have been meant to begin.
    """
    found = _MODEL.match(text)
    model, url = (text[: found.end()], text[found.end() :]) if found else ("", text)
    if "//" in url:
        url = _USERINFO.sub("//…@", url, count=1)
    elif "@" in url:
        url = f"…@{url.rpartition('@')[2]}"
    return model + _REST.sub("?…", url, count=1)
