"""The one gate between text that came from a file or a server and anything that shows it.

A tensor may be called ``[@click=app.quit]x[/]`` or carry ``ESC ] 52`` (a clipboard write) in its name; the format
allows both. :func:`safe_text` turns every character that a terminal or a reader would obey into a visible escape.
Markup needs no escaping here: whoever draws the result passes it as plain text, never as markup.
"""

from __future__ import annotations

import re
import unicodedata

# Cc: C0, DEL, C1. Cf: bidirectional overrides, zero-width and tag characters. Cs: lone surrogates.
# Zl, Zp: separators that a terminal may treat as a new line. Co, Cn: private use and unassigned, of any width.
_UNSAFE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})

# An access token of the Hub: a prefix and a long run of letters and digits, which no module is called by.
_TOKEN = re.compile(r"\b(?:hf|api_org)_(?:(?:oauth|jwt)_[\w.-]{16,}|[A-Za-z0-9]{20,})")


def safe_text(text: object, *, limit: int | None = None) -> str:
    r"""Show `text` as one harmless line.

    Parameters
    ----------
    text : anything; ``str()`` of it is shown
    limit : most characters of the result; longer text loses its middle to ``…``

    Examples
    --------
    >>> safe_text("plain name")
    'plain name'
    >>> print(safe_text("a\x1b]52;c;AA\x07b\u202e"))
    a\x1b]52;c;AA\x07bU+202E
    >>> safe_text("0123456789", limit=5)
    '01…89'
    """
    raw = str(text)
    shown = raw if raw.isascii() and raw.isprintable() else "".join(map(_shown, raw))
    if limit is not None and len(shown) > limit:
        head = limit // 2
        tail = limit - 1 - head
        shown = shown[:head] + "…" + (shown[-tail:] if tail else "")
    return shown


def token_in(text: str) -> re.Match[str] | None:
    """The first thing in `text` that looks like an access token."""
    return _TOKEN.search(text)


def without_tokens(text: str, *known: str | None) -> str:
    """`text` with whatever looks like an access token struck out, and those that are `known` too.

    Examples
    --------
    >>> without_tokens("Bearer hf_abcdefghijklmnopqrstuvwxyz is wrong")
    'Bearer hf_… is wrong'
    """
    for token in known:
        if token:
            text = text.replace(token, "hf_…")
    return _TOKEN.sub("hf_…", text)


def is_suspicious(text: str) -> bool:
    """Say whether `text` holds a character that :func:`safe_text` would have to escape."""
    return any(unicodedata.category(character) in _UNSAFE_CATEGORIES for character in text)


def _shown(character: str) -> str:
    if unicodedata.category(character) not in _UNSAFE_CATEGORIES:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"U+{code:04X}"
