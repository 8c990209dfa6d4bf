"""Markdown that arrives in pieces, as the plain text that a voice reads.

What is dropped and what stays is decided from the text alone, never from where it was cut into pieces: a construct
whose end may still come is held back, up to a bounded number of characters, after which it is taken for plain text.
So the work is linear in the text, and a stray bracket delays the voice, but never stops it.
"""

from collections.abc import Callable

from handler_core import speech_syntax as syntax
from handler_core.speech_line import Line

_MORE = -1
"""Returned instead of a position: what comes next decides."""


class PlainText:
    """Turns Markdown into what a voice reads, with the separators of `speech_line`.

    >>> text = PlainText()
    >>> text.feed("Use **bo"), text.feed("ld** [1"), text.feed("]."), text.close()
    ('Use bo', 'ld', '.', '')
    """

    def __init__(self) -> None:
        self._line = Line()
        self._raw = ""
        self._before = "\n"  # the character before the one that is looked at
        self._at_start = True  # of a line
        self._block = False  # in a line that is a block of its own: a heading, an item, a row
        self._fence = ""  # what closes the code that is dropped
        self._brackets = 0
        self._final = False
        self._inline: dict[str, Callable[[int], int]] = {
            "\n": self._newline,
            "`": self._backticks,
            "*": self._stars,
            "_": self._underscores,
            "~": self._tildes,
            "[": self._bracket,
            "]": self._closing_bracket,
            "!": self._exclamation,
            "<": self._tag,
            "|": self._pipe,
            "\\": self._backslash,
            "h": self._address,
            "w": self._address,
        }

    def feed(self, piece: str) -> str:
        """Add a piece; returns the plain text that is certain now."""
        self._raw += piece
        return self._read()

    def close(self) -> str:
        """No more text: returns the rest."""
        self._final = True
        rest = self._read()
        if self._block:
            self._line.stop()
        return rest + self._line.take()

    def _read(self) -> str:
        at = 0
        while at < len(self._raw):
            if self._fence:
                end = self._in_fence(at)
            elif self._at_start:
                end = self._line_start(at)
            else:
                end = self._in_line(at)
            if end == _MORE:
                break
            if end > at:
                self._before = self._raw[end - 1]
            at = end
        self._raw = self._raw[at:]
        return self._line.take()

    def _known(self, until: int) -> bool:
        """Whether all is here that a decision about the text up to `until` may take into account."""
        return self._final or len(self._raw) >= until

    # Blocks

    def _line_start(self, at: int) -> int:
        raw = self._raw
        rule = syntax.RULE.match(raw, at, at + syntax.WINDOW)
        end = rule.end() if rule else at
        if end == at + syntax.WINDOW:
            return end
        if end == len(raw):
            return end if self._final else _MORE
        if raw[end] == "\n":
            self._end_block()
            self._line.paragraph()
            return end + 1
        blank = syntax.BLANK.match(raw, at)
        return self._marker(blank.end() if blank else at)

    def _marker(self, at: int) -> int:
        """What kind of line it is; another marker may follow the first, as in `- > text`."""
        raw, first = self._raw, self._raw[at]
        if first in "~[#-*+•‣◦" and not self._known(at + 8):
            return _MORE
        if first == ">":
            return at + 1
        if first == "|":
            return self._begin_block(at + 1)
        if raw.startswith("~~~", at):
            return self._open_fence(at)
        if match := syntax.HEADING.match(raw, at) or syntax.BULLET.match(raw, at):
            return self._begin_block(match.end())
        if self._block and (match := syntax.TASK.match(raw, at)):
            return match.end()
        if first.isdigit():
            if not self._final and syntax.UNFINISHED_NUMBER.match(raw, at):
                return _MORE
            if match := syntax.NUMBERED.match(raw, at):
                self._begin_block(at)
                self._line.write(match[1] + ".")
                at = match.end()
        self._at_start = False
        return at

    def _begin_block(self, end: int) -> int:
        self._line.paragraph()
        self._block = True
        return end

    def _end_block(self) -> None:
        if self._block:
            self._line.stop()
        self._block = False
        self._at_start = True
        self._brackets = 0

    def _newline(self, at: int) -> int:
        self._end_block()
        self._line.line()
        return at + 1

    def _open_fence(self, at: int) -> int:
        end = at
        while end < len(self._raw) and self._raw[end] == self._raw[at] and end < at + syntax.WINDOW:
            end += 1
        if not self._known(end + 1) and end < at + syntax.WINDOW:
            return _MORE
        self._fence = self._raw[at:end]
        self._end_block()
        self._line.paragraph()
        return end

    def _in_fence(self, at: int) -> int:
        found = self._raw.find(self._fence, at)
        if found < 0:
            kept = len(self._raw) if self._final else len(self._raw) - len(self._fence) + 1
            return kept if kept > at else _MORE
        end = found + len(self._fence)
        self._fence = ""
        return end

    # In a line

    def _in_line(self, at: int) -> int:
        raw = self._raw
        special = syntax.SPECIAL.search(raw, at)
        if special is None:
            unfinished = None if self._final else syntax.UNFINISHED_URL.search(raw, max(at, len(raw) - 8))
            end = unfinished.start() if unfinished else len(raw)
        else:
            end = special.start()
        if end > at:
            self._line.write(raw[at:end])
            return end
        if special is None:
            return _MORE
        first = special[0][0]
        return self._inline[first](at) if first in self._inline else self._symbol(at, first)

    def _symbol(self, at: int, symbol: str) -> int:
        if syntax.IS_ARROW(symbol):
            self._line.pause()
        elif syntax.IS_EMOJI(symbol):
            self._line.space()
            self._line.gap()
        elif symbol == syntax.JOINER and not syntax.IS_EMOJI(self._before) and self._before != "\ufe0f":
            self._line.write(symbol)  # it shapes letters in some scripts
        return at + 1

    def _pipe(self, at: int) -> int:
        self._line.pause()
        return at + 1

    def _run(self, at: int) -> int:
        """Where the run of the character at `at` ends, 16 characters on at most; or `_MORE`."""
        end = at + 1
        while end < at + 16 and self._raw[end : end + 1] == self._raw[at]:
            end += 1
        return end if self._known(end + 1) else _MORE

    def _backticks(self, at: int) -> int:
        opened = self._run(at)
        if opened == _MORE:
            return _MORE
        fence = self._raw[at:opened]
        if len(fence) > 2:
            return self._open_fence(at)
        end = self._raw.find(fence, opened, opened + syntax.CODE)
        newline = self._raw.find("\n", opened, opened + syntax.CODE)
        if end >= 0 and not 0 <= newline < end:
            self._code(self._raw[opened:end])
            return end + len(fence)
        if newline < 0 and not self._known(opened + syntax.CODE):
            return _MORE
        return opened  # no code, a stray backtick

    def _code(self, code: str) -> None:
        """Words are read, such as the name of a setting or a command; code proper is not."""
        if syntax.WORDS.fullmatch(code):
            self._line.write(code.strip().removesuffix("()").replace("_", " ").replace("--", " ").strip())
        else:
            self._line.gap()

    def _stars(self, at: int) -> int:
        end = self._run(at)
        if end == _MORE:
            return _MORE
        before, after = self._before, self._raw[end : end + 1] or "\n"
        spaced = before.isspace() and after.isspace()
        times = end - at == 1 and _is_ascii_word(before) and _is_ascii_word(after)
        if spaced or times:
            self._line.write(self._raw[at:end])
        return end

    def _underscores(self, at: int) -> int:
        end = self._run(at)
        if end != _MORE and self._before.isalnum() and self._raw[end : end + 1].isalnum():
            self._line.space()
        return end

    def _tildes(self, at: int) -> int:
        end = self._run(at)
        if end == at + 1:
            self._line.write("~")
        return end

    def _bracket(self, at: int) -> int:
        if marker := syntax.MARKER.match(self._raw, at, at + syntax.WINDOW):
            self._line.gap()
            self._brackets += 1
            return marker.end() - 1  # a target may follow, as after any bracket
        if not self._known(at + syntax.WINDOW) and syntax.UNFINISHED_MARKER.match(self._raw, at):
            return _MORE
        self._brackets += 1
        return at + 1

    def _closing_bracket(self, at: int) -> int:
        if not self._known(at + 2):
            return _MORE
        following = self._raw[at + 1 : at + 2]
        if self._brackets and following in syntax.AFTER_BRACKET and not syntax.MARKER.match(self._raw, at + 1):
            whole, unfinished = syntax.AFTER_BRACKET[following]
            if match := whole.match(self._raw, at, at + syntax.URL):
                self._brackets -= 1
                return match.end()
            if not self._known(at + syntax.URL) and unfinished.match(self._raw, at):
                return _MORE
        self._brackets = max(0, self._brackets - 1)
        return at + 1

    def _exclamation(self, at: int) -> int:
        if not self._known(at + 2):
            return _MORE
        if image := syntax.IMAGE.match(self._raw, at, at + syntax.CODE):
            self._line.gap()
            self._brackets += 1
            return image.end()
        if not self._known(at + syntax.CODE) and syntax.UNFINISHED_IMAGE.match(self._raw, at):
            return _MORE
        self._line.write("!")
        return at + 1

    def _tag(self, at: int) -> int:
        if not self._known(at + 2):
            return _MORE
        if tag := syntax.TAG.match(self._raw, at, at + syntax.CODE):
            self._tagged(tag[0][1:-1], (tag[1] or "").lower())
            return tag.end()
        if not self._known(at + syntax.CODE) and syntax.UNFINISHED_TAG.match(self._raw, at):
            return _MORE
        self._line.write("<")
        return at + 1

    def _tagged(self, content: str, name: str) -> None:
        if not name and not content.startswith("!"):
            self._line.write(syntax.host(content) if "://" in content else content)
        elif syntax.BLOCK_TAG(name):
            self._line.line()
        elif name in {"td", "th"}:
            self._line.pause()

    def _backslash(self, at: int) -> int:
        if not self._known(at + 2):
            return _MORE
        escaped = self._raw[at + 1 : at + 2]
        if escaped in syntax.PUNCTUATION:
            self._line.write(" " if escaped == "_" else escaped)
            return at + 2
        if escaped != "\n":
            self._line.write("\\")
        return at + 1

    def _address(self, at: int) -> int:
        match = syntax.ADDRESS.match(self._raw, at, at + syntax.URL)
        end = match.end() if match else at + 1
        if end == len(self._raw) and not self._known(at + syntax.URL):
            return _MORE
        address = self._raw[at:end].rstrip(".,:;!?'~_" if "(" in self._raw[at:end] else ".,:;!?'~_)")
        self._line.write(syntax.host(address))
        return at + len(address)


def _is_ascii_word(character: str) -> bool:
    return character.isascii() and character.isalnum()
