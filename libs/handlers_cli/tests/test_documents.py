"""Files of each kind as documents: their sections and blocks, and what is said of those that cannot be read."""

from io import BytesIO
from pathlib import Path

import pytest
from pypdf import PdfWriter

from handlers_cli.documents import (
    MAX_BYTES,
    Document,
    UnreadableDocument,
    read_document,
    read_html,
    read_markdown,
    read_pdf,
    read_text,
)
from handlers_cli.outline import Block, Section


def pdf(*pages: str) -> bytes:
    """The least PDF with a text on each page."""
    kids = " ".join(f"{3 + 2 * n} 0 R" for n in range(len(pages)))
    bodies = ["<< /Type /Catalog /Pages 2 0 R >>", f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>"]
    font = "<< /Font << /F << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >>"
    for n, text in enumerate(pages):
        shown = " ".join(f"({line}) Tj 0 -14 Td" for line in text.split("\n"))
        stream = f"BT /F 12 Tf 72 700 Td {shown} ET"
        bodies.append(f"<< /Type /Page /Parent 2 0 R /Resources {font} /Contents {4 + 2 * n} 0 R >>")
        bodies.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    data, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(bodies, 1):
        offsets.append(len(data))
        data += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    size = len(bodies) + 1
    start = f"trailer << /Size {size} /Root 1 0 R >>\nstartxref\n{len(data)}\n%%EOF"
    return data + f"xref\n0 {size}\n0000000000 65535 f \n{table}{start}".encode()


def test_markdown_is_cut_at_headings_into_blocks_with_their_lines() -> None:
    text = """intro

# Title #
First paragraph,
two lines.

- a
- b

## Code
```python
# no heading

x = 1
```
after
| a | b |
|---|---|
| 1 | 2 |

Under
=====
last
"""
    title, sections = read_markdown(text.encode())
    assert title == "Title"
    assert sections == (
        Section((), (Block("intro", 1),)),
        Section(("Title",), (Block("First paragraph,\ntwo lines.", 4), Block("- a\n- b", 7))),
        Section(
            ("Title", "Code"),
            (
                Block("```python\n# no heading\n\nx = 1\n```", 11, "code"),
                Block("after", 16),
                Block("| a | b |\n|---|---|\n| 1 | 2 |", 17, "table"),
            ),
        ),
        Section(("Under",), (Block("last", 23),)),
    )


def test_a_heading_path_is_left_where_a_heading_of_its_level_comes() -> None:
    _, sections = read_markdown(b"# A\n1\n### B\n2\n## C\n3\n# D\n4\n")
    assert [section.headings for section in sections] == [("A",), ("A", "B"), ("A", "C"), ("D",)]


def test_a_heading_without_text_below_is_itself_text() -> None:
    _, sections = read_markdown(b"# A\n## B\n## C\ntext\n# D\n")
    assert [(section.headings, [block.text for block in section.blocks]) for section in sections] == [
        (("A", "B"), ["B"]),
        (("A", "C"), ["text"]),
        (("D",), ["D"]),
    ]


def test_front_matter_gives_the_title_and_no_text() -> None:
    title, sections = read_markdown(b"---\ntitle: 'From the front'\ntags: [a]\n---\n# Heading\ntext\n")
    assert title == "From the front"
    assert sections == (Section(("Heading",), (Block("text", 6),)),)


@pytest.mark.parametrize("text", ["---\nno end", "```\nno end\n# x", "#", "# \n", "", "\n\n", "-" * 10, "#no heading"])
def test_unfinished_markdown_is_read_all_the_same(text: str) -> None:
    _, sections = read_markdown(text.encode())
    kept = "".join(block.text for section in sections for block in section.blocks)
    assert kept.strip("#-` \n") == text.strip("#-` \n")


@pytest.mark.parametrize("line", ["# " + " " * 100_000 + "x", "`" * 100_000 + "x", "#" * 100_000])
def test_a_hostile_line_takes_no_longer_than_another(line: str) -> None:
    read_markdown(line.encode())


@pytest.mark.parametrize(
    "data",
    [
        "Grüße — Ω".encode(),
        "\ufeffGrüße — Ω".encode(),
        "\ufeffGrüße — Ω".encode("utf-16-le"),
        "\ufeffGrüße — Ω".encode("utf-16-be"),
    ],
)
def test_text_is_decoded_by_its_mark(data: bytes) -> None:
    assert read_text(data)[1] == (Section((), (Block("Grüße — Ω", 1),)),)


def test_text_of_an_old_encoding_is_read_as_windows_1252() -> None:
    assert read_text("Grüße “x”".encode("cp1252"))[1][0].blocks[0].text == "Grüße “x”"


def test_paragraphs_of_plain_text_keep_their_lines_whatever_ends_them() -> None:
    _, (section,) = read_text(b"\r\n\r\none\r\nmore\r\n  \r\n\r\ntwo\rlast")
    assert section.blocks == (Block("one\nmore", 3), Block("two\nlast", 7))


def test_html_gives_the_visible_text_by_headings() -> None:
    page = b"""<!doctype html><html><head><title>The
      page</title><style>p { color: red }</style></head><body>
    <nav><a href=x>Menu</a></nav><script>if (a < b) alert("x")</script>
    <h1>Main <em>head</em></h1><p>One &amp; <b>two</b>
      three.<br>Four.</p>
    <ul><li>a<li>b <ul><li>c</ul></ul>
    <pre>def f():
    return 1</pre>
    <table><tr><th>k<th>v</tr><tr><td>1</td><td>2</td></tr></table>
    <h2>Sub</h2>tail</body></html>"""
    title, sections = read_html(page)
    assert title == "The page"
    assert sections == (
        Section(
            ("Main head",),
            (
                Block("One & two three.\nFour.", 4),
                Block("- a\n- b\n- c", 6),
                Block("def f():\n    return 1", 7, "code"),
                Block("k | v\n1 | 2", 9, "table"),
            ),
        ),
        Section(("Main head", "Sub"), (Block("tail", 10),)),
    )


def test_html_is_decoded_by_what_it_declares() -> None:
    page = '<meta charset="iso-8859-5"><p>Привет'.encode("iso-8859-5")
    assert read_html(page)[1][0].blocks[0].text == "Привет"
    assert read_html(b'<meta charset="no-such"><p>x')[1][0].blocks[0].text == "x"


def test_html_with_tags_out_of_order_loses_no_text() -> None:
    _, sections = read_html(b"</p></pre><h2>a</h3><p>b<div>c</h1>d<td>e<table>f<p>g")
    words = {word for section in sections for block in section.blocks for word in block.text.split()}
    assert words | {name for section in sections for name in section.headings} >= set("abcdefg")


def test_a_pdf_has_a_section_for_each_page() -> None:
    _, sections = read_pdf(pdf("First page, exam-\nple text.", "", "Third."))
    assert [(section.page, section.blocks[0].text) for section in sections] == [
        (1, "First page, example text."),
        (3, "Third."),
    ]


def encrypted() -> bytes:
    writer = PdfWriter(BytesIO(pdf("secret")))
    writer.encrypt("password", algorithm="RC4-128")
    out = BytesIO()
    writer.write(out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.pdf", b"not a pdf", "is no readable PDF"),
        ("a.pdf", pdf("x")[:200], "is no readable PDF|has no text"),
        ("a.pdf", pdf(""), "has no text: are its pages scanned"),
        ("a.pdf", encrypted(), "is encrypted"),
        ("a.md", b"\x89PNG\x00\x00", "is a binary file"),
        ("a.unknown", b"\x00", "is a binary file"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    file = tmp_path / name
    file.write_bytes(data)
    with pytest.raises(UnreadableDocument, match=reason):
        read_document(file, name)


def test_a_file_too_large_is_not_loaded(tmp_path: Path) -> None:
    file = tmp_path / "a.md"
    with file.open("wb") as opened:
        opened.truncate(MAX_BYTES + 1)
    with pytest.raises(UnreadableDocument, match="more than"):
        read_document(file, "a.md")


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnreadableDocument, match="No such file"):
        read_document(tmp_path / "none.md", "none.md")


def test_the_name_of_the_file_is_its_title_where_it_has_no_other(tmp_path: Path) -> None:
    file = tmp_path / "notes.TXT"
    file.write_text("text")
    assert read_document(file, "x/notes.TXT") == Document("x/notes.TXT", "notes", (Section((), (Block("text", 1),)),))
