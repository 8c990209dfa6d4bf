"""Files read as documents: Markdown, plain text, HTML and PDF, cut into sections by their headings.

Only text is taken. What cannot be read raises `UnreadableDocument`, so that one bad file costs no other.
"""

import codecs
import logging
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from handlers_cli.html_reader import HtmlReader
from handlers_cli.markdown_reader import fill_from_markdown
from handlers_cli.outline import Outline, Section

MAX_BYTES = 64 * 1024 * 1024


class UnreadableDocument(Exception):
    """A file that gives no document; the message says why and names no path."""


@dataclass(frozen=True, slots=True)
class Document:
    source: str
    title: str
    """The first heading, or what the file itself says, or else its name."""
    sections: tuple[Section, ...]


Reader = Callable[[bytes], tuple[str, tuple[Section, ...]]]
"""Gives a title, which may be empty, and the sections."""


def read_document(path: Path, source: str) -> Document:
    """Read a file as what its suffix says; one with an unknown suffix as plain text.

    Args:
        source: the name by which the document is known.

    Raises:
        UnreadableDocument: it cannot be opened, is too large, or is not what its suffix says.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UnreadableDocument(f"has {size} bytes, more than {MAX_BYTES}")
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableDocument(error.strerror or str(error)) from error
    title, sections = READERS.get(path.suffix.lower(), read_text)(data)
    return Document(source, title or path.stem, sections)


def decode(data: bytes) -> str:
    """Text in UTF-8 or, by its byte order mark, UTF-16; anything else is read as Windows-1252.

    Raises:
        UnreadableDocument: it holds zero bytes, which no text does.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = data.decode("utf-16", errors="replace")
    elif b"\x00" in data:
        raise UnreadableDocument("is a binary file")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("cp1252", errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_text(data: bytes) -> tuple[str, tuple[Section, ...]]:
    """Plain text: one section, a block a paragraph."""
    outline = Outline()
    outline.paragraphs(decode(data))
    return "", outline.sections()


def read_markdown(data: bytes) -> tuple[str, tuple[Section, ...]]:
    """Markdown: headings of both kinds, fenced code, tables; the title of its front matter comes first."""
    outline = Outline()
    fill_from_markdown(outline, decode(data))
    return outline.title, outline.sections()


def read_html(data: bytes) -> tuple[str, tuple[Section, ...]]:
    """HTML: what a reader of the page sees of its text; scripts, styles and navigation left out."""

    charset = re.search(rb"""<meta[^>]{1,200}charset=["']?([\w-]+)""", data[:4096], re.IGNORECASE)
    if charset and not data.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        with suppress(LookupError, UnicodeError):  # a wrong declaration is no reason to give up
            data = data.decode(charset[1].decode("ascii", errors="replace")).encode()
    outline = Outline()
    title = HtmlReader(outline).read(decode(data))
    return title or outline.title, outline.sections()


def read_pdf(data: bytes) -> tuple[str, tuple[Section, ...]]:
    """The text layer of a PDF, a section a page.

    Raises:
        UnreadableDocument: it is damaged, encrypted, or has no text (as scans have none).
    """
    from pypdf import PdfReader

    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it remarks on every small fault of a file
    try:
        pdf = PdfReader(BytesIO(data))
        if pdf.is_encrypted and not pdf.decrypt(""):
            raise UnreadableDocument("is encrypted")
        pages = [page.extract_text().encode(errors="replace").decode() for page in pdf.pages]  # no half surrogates
        title = (pdf.metadata.title if pdf.metadata else None) or ""
    except UnreadableDocument:
        raise
    except Exception as error:  # a damaged file can make pypdf raise nearly anything
        raise UnreadableDocument(f"is no readable PDF: {type(error).__name__}: {str(error)[:100]}") from error
    sections = []
    for number, text in enumerate(pages, 1):
        outline = Outline()
        outline.paragraphs(re.sub(r"(?<=[a-z])-\n(?=[a-z])", "", text))
        sections += [Section((), section.blocks, page=number) for section in outline.sections()]
    if not sections:
        raise UnreadableDocument("has no text: are its pages scanned?")
    return str(title).strip(), tuple(sections)


READERS: dict[str, Reader] = {
    **dict.fromkeys((".md", ".markdown", ".mdx"), read_markdown),
    **dict.fromkeys((".txt", ".text", ".rst"), read_text),
    **dict.fromkeys((".html", ".htm", ".xhtml"), read_html),
    ".pdf": read_pdf,
}
