"""Markdown's marks, as patterns: each with the one that tells whether text may still become it."""

import re
from urllib.parse import urlsplit

WINDOW = 128
"""Characters looked at to tell what a line begins with, and the longest citation marker."""
CODE = 200
"""The longest inline code, tag and text that stands for an image."""
URL = 2048
"""The longest address."""

EMOJI = (
    "\U0001f000-\U0001faff\u2600-\u2775\u2794-\u27bf\u2139\u2b00-\u2bff\u2300-\u23ff\u25a0-\u25ff\u3030\u303d\u3297\u3299"
    "\U000e0020-\U000e007f"
)
ARROWS = "\u2190-\u21ff\u27f0-\u27ff"
# Variation selectors and keycaps, and what is no character to a voice (nor, the surrogates, to a JSON body).
UNSEEN = "\ufe0e\ufe0f\u20e3\x00-\x08\x0e-\x1b\x7f\xad\u200b\u2060\ufeff\ud800-\udfff"
JOINER = "\u200d"

SPECIAL = re.compile(rf"[\n`*_~\[\]!<|\\{ARROWS}{EMOJI}{UNSEEN}{JOINER}]|https?://|www\.")
UNFINISHED_URL = re.compile(r"(?:h|ht|htt|https?:?/?|w|ww|www)\Z")
IS_EMOJI = re.compile(f"[{EMOJI}]").match
IS_ARROW = re.compile(f"[{ARROWS}]").match

# A line of these alone has nothing to say: a rule, an underline, a table's second line, an empty item.
RULE = re.compile(r"[ \t\r>|:=*_+#-]*")
BLANK = re.compile(r"[ \t\r]*")
HEADING = re.compile(r"#{1,6}[ \t]")
BULLET = re.compile(r"[-*+•‣◦][ \t]")
TASK = re.compile(r"\[[ xX]\][ \t]")
NUMBERED = re.compile(r"(\d{1,9})[.)](?=[ \t])")
UNFINISHED_NUMBER = re.compile(r"\d{1,9}[.)]?\Z")

MARKER = re.compile(r"\[(?:\d{1,3}(?:\s?,\s?\d{1,3}){0,19}|\^\w{1,32})\]")
UNFINISHED_MARKER = re.compile(r"\[(?:[\d\s,]*|\^\w{0,32})\Z")
# An image needs its target, for `Yes![1]` is none.
IMAGE = re.compile(r"!\[[^\]\n]*(?=\]\()")
UNFINISHED_IMAGE = re.compile(r"!\[[^\]\n]*\]?\Z")
PATH = r"\]\([ \t]*(?:[^()\s]|\([^()\s]*\))*"
TARGET = re.compile(PATH + r"""(?:[ \t]+(?:"[^"\n]*"|'[^'\n]*'))?[ \t]*\)""")
UNFINISHED_TARGET = re.compile(PATH + r"""(?:\([^()\s]*|[ \t]+(?:"[^"\n]*"?|'[^'\n]*'?)?[ \t]*)?\Z""")
REFERENCE = re.compile(r"\]\[[^\[\]\n]*\]")
UNFINISHED_REFERENCE = re.compile(r"\]\[[^\[\]\n]*\Z")
AFTER_BRACKET = {"(": (TARGET, UNFINISHED_TARGET), "[": (REFERENCE, UNFINISHED_REFERENCE)}
TAG = re.compile(r"<(?:https?://|/?([A-Za-z][A-Za-z0-9]*)(?=[\s/>])|!--|[\w.+-]+@)[^<>\n]*>")
UNFINISHED_TAG = re.compile(r"<(?:/?(?:[A-Za-z][A-Za-z0-9]*(?:[\s/:@.+-][^<>\n]*)?)?|![^<>\n]*)\Z")
ADDRESS = re.compile(r"(?:https?://|www\.)[!#-)+-;=?-Z_a-z~]*")
WORDS = re.compile(r"[\w\s.,:/@#%+'&~$-]{1,60}(?:\(\))?")
PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
BLOCK_TAG = re.compile(r"br|p|div|li|ul|ol|tr|table|blockquote|h[1-6]|hr|pre").fullmatch


def host(address: str) -> str:
    """What is read of an address: `docs.python.org` of `https://docs.python.org/3/`."""
    try:
        name = urlsplit(address if "://" in address else f"//{address}").hostname or ""
    except ValueError:  # such as an unclosed bracket
        return ""
    return name.removeprefix("www.")
