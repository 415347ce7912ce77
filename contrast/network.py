"""Whether a server can be reached, so that no download is tried without a network."""

import functools
import re
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.request import build_opener

TIMEOUT = 4.0  # seconds within which a server has to respond


def is_reachable(url: str) -> bool:
    """Whether a server, or the proxy on the way to it, sends any response within `TIMEOUT` seconds.

    What is no URL has no server.
    """
    try:
        build_opener().open(url, timeout=TIMEOUT).close()
    except HTTPError:  # a response, too
        return True
    except (OSError, HTTPException, ValueError):
        return False
    return True


@functools.cache
def look_for_the_hub() -> None:
    """Call this before Hugging Face's libraries download: without a network they then use only their cache.

    Otherwise they repeat each request for half a minute and print a line for each attempt.
    """
    from huggingface_hub import constants

    if not is_reachable(constants.ENDPOINT):
        constants.HF_HUB_OFFLINE = True


def without_secrets(text: str) -> str:
    """The text with every URL reduced to its host and path: user, password and query may contain secrets."""
    text = re.sub(r"(?<=://)[^/\s]*@", "", text)
    return re.sub(r"(://[^?\s'\"]*)\?((?!,\s*\w+://)[^\s'\"\]])*", r"\1", text)
