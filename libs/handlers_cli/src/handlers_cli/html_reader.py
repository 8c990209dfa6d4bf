"""HTML as an outline of headings and blocks."""

from html.parser import HTMLParser

from handlers_cli.outline import Kind, Outline

_LEFT_OUT = {"script", "style", "template", "noscript", "svg", "nav"}
_BLOCKS = {
    *(
        "address",
        "article",
        "aside",
        "blockquote",
        "body",
        "dd",
        "details",
        "div",
        "dl",
        "dt",
        "fieldset",
        "figcaption",
    ),
    *("figure", "footer", "form", "header", "hr", "html", "main", "p", "section", "summary"),
}
_LISTS = {"ul", "ol", "menu"}
_HEADINGS = {f"h{level}": level for level in range(1, 7)}


class HtmlReader(HTMLParser):
    """Fills an outline. Tags that are never closed, or closed twice, cost no text outside scripts and navigation."""

    def __init__(self, outline: Outline) -> None:
        super().__init__(convert_charrefs=True)
        self._outline = outline
        self._title = ""
        self._text: list[str] = []
        self._line = 1
        self._kind: Kind = "prose"
        self._heading = 0
        self._lists = 0
        self._in_title = False
        self._left_out: list[str] = []

    def read(self, text: str) -> str:
        """Read the whole page; its title, empty where it has none."""
        self.feed(text)
        self.close()
        self._flush()
        return " ".join(self._title.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _LEFT_OUT:
            self._left_out.append(tag)
        elif tag == "title":
            self._in_title = True
        elif tag in _HEADINGS:
            self._flush()
            self._heading = _HEADINGS[tag]
        elif tag in {"pre", "table"}:
            self._flush("code" if tag == "pre" else "table")
        elif tag in _LISTS:
            self._border()
            self._lists += 1
        elif tag == "li":
            self._newline("- ")
        elif tag in {"br", "tr"}:
            self._newline()
        elif tag in {"td", "th"}:
            if self._text and not self._text[-1].endswith("\n"):
                self._text.append(" | ")
        elif tag in _BLOCKS:
            self._border()

    def handle_endtag(self, tag: str) -> None:
        if tag in self._left_out:
            del self._left_out[self._left_out.index(tag) :]
        elif tag == "title":
            self._in_title = False
        elif tag in _HEADINGS or tag in {"pre", "table"}:
            self._flush()
        elif tag in _LISTS:
            self._lists = max(0, self._lists - 1)
            self._border()
        elif tag in _BLOCKS:
            self._border()

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self._title += data
        elif not self._left_out:
            if self._kind != "code":
                # Line breaks of the source mean nothing; those in the text stand for tags.
                data = " ".join(data.split()).join((data[:1].isspace() * " ", data[-1:].isspace() * " "))
            if not self._text and data.strip():
                self._line = self.getpos()[0]
            if self._text or data.strip():
                self._text.append(data)

    def _newline(self, marker: str = "") -> None:
        if self._text:
            self._text.append(f"\n{marker}")
        elif marker:
            self._line = self.getpos()[0]
            self._text.append(marker)

    def _border(self) -> None:
        """A paragraph begins or ends: a new block, but not within a list or a table, which stay whole."""
        if self._kind == "prose" and not self._lists:
            self._flush()
        elif self._kind != "code" and self._text:
            self._text.append(" ")

    def _flush(self, kind: Kind = "prose") -> None:
        text = "".join(self._text)
        if self._kind != "code":
            text = "\n".join(" ".join(line.split()) for line in text.split("\n") if line.strip(" -"))
        if self._heading:
            self._outline.heading(self._heading, text, self._line)
        else:
            self._outline.block(text, self._line, self._kind)
        self._text, self._kind, self._heading = [], kind, 0
