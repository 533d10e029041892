"""Small PDF and Word files, written by hand, and hostile ones."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

__all__ = ["docx_bomb", "make_docx", "make_encrypted_pdf", "make_pdf", "pdf_bomb"]

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
STYLES = f"""<w:styles {W}>
<w:style w:styleId="Heading1"><w:name w:val="heading 1"/></w:style>
<w:style w:styleId="Berschrift2"><w:name w:val="Heading 2"/></w:style>
<w:style w:styleId="Own"><w:name w:val="My chapter"/><w:pPr><w:outlineLvl w:val="0"/></w:pPr></w:style>
</w:styles>"""


def make_pdf(pages: Sequence[Sequence[str]], *, title: str = "", outline: Mapping[str, int] | None = None) -> bytes:
    """Return a PDF of pages of lines. `outline` has entries with their pages, from 0."""
    n_pages = len(pages)
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(n_pages))
    entries = list((outline or {}).items())
    first_entry = 4 + 2 * n_pages
    root = f"<< /Type /Catalog /Pages 2 0 R{f' /Outlines {first_entry} 0 R' if entries else ''} >>"
    objects = [root.encode(), f"<< /Type /Pages /Kids [{kids}] /Count {n_pages} >>".encode()]
    objects.append(b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    for number, lines in enumerate(pages):
        shown = " ".join(f"({line}) Tj 0 -14 Td" for line in lines)
        content = f"BT /F1 10 Tf 20 750 Td {shown} ET".encode("latin-1")
        resources = "/Resources << /Font << /F1 3 0 R >> >> /MediaBox [0 0 600 800]"
        objects.append(f"<< /Type /Page /Parent 2 0 R {resources} /Contents {5 + 2 * number} 0 R >>".encode())
        objects.append(f"<< /Length {len(content)} >>\nstream\n".encode() + content + b"\nendstream")
    if entries:
        last = first_entry + len(entries)
        objects.append(f"<< /First {first_entry + 1} 0 R /Last {last} 0 R /Count {len(entries)} >>".encode())
        for number, (name, page) in enumerate(entries, first_entry + 1):
            after = f"/Next {number + 1} 0 R" if number < last else ""
            target = f"/Parent {first_entry} 0 R {after} /Dest [{4 + 2 * page} 0 R /Fit]"
            objects.append(f"<< /Title ({name}) {target} >>".encode())
    objects.append(f"<< /Title ({title}) >>".encode())
    return _file(objects, f"/Info {len(objects)} 0 R")


def make_encrypted_pdf() -> bytes:
    """Return a PDF that no empty password opens."""
    encrypt = f"<< /Filter /Standard /V 1 /R 2 /P -4 /O <{'41' * 32}> /U <{'42' * 32}> >>"
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [] /Count 0 >>", encrypt.encode()]
    return _file(objects, f"/Encrypt 3 0 R /ID [<{'43' * 16}> <{'43' * 16}>]")


def pdf_bomb() -> bytes:
    """Return a PDF of a few kB whose page unpacks to hundreds of megabytes of text."""
    packer = zlib.compressobj(9)
    line = b"(boom boom boom boom) Tj 0 -1 Td\n" * 32768
    content = packer.compress(b"BT /F1 10 Tf 20 750 Td ")
    content += b"".join(packer.compress(line) for _ in range(256)) + packer.compress(b" ET") + packer.flush()
    twice = zlib.compress(content, 9)
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [4 0 R] /Count 1 >>"]
    objects.append(b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    resources = b"/Resources << /Font << /F1 3 0 R >> >> /MediaBox [0 0 600 800]"
    objects.append(b"<< /Type /Page /Parent 2 0 R " + resources + b" /Contents 5 0 R >>")
    about = f"<< /Length {len(twice)} /Filter [/FlateDecode /FlateDecode] >>\nstream\n".encode()
    objects.append(about + twice + b"\nendstream")
    return _file(objects)


def _file(objects: Sequence[bytes], trailer: str = "") -> bytes:
    data, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(data))
        data += f"{number} 0 obj\n".encode() + content + b"\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    head = f"xref\n0 {len(places) + 1}\n0000000000 65535 f \n{table}"
    end = f"trailer << /Size {len(places) + 1} /Root 1 0 R {trailer} >>\nstartxref\n{len(data)}\n%%EOF\n"
    return data + head.encode() + end.encode()


def make_docx(paragraphs: Sequence[tuple[str, str] | Sequence[Sequence[str]]], *, before: str = "") -> bytes:
    """Return a Word document of (style, text) and of tables, each a list of rows of cells. `before` precedes the body."""
    body = "".join(_paragraph(*one) if isinstance(one[0], str) else _table(one) for one in paragraphs)  # type: ignore[arg-type]
    document = f"<?xml version='1.0'?>{before}<w:document {W}><w:body>{body}</w:body></w:document>"
    return _zip({"word/document.xml": document.encode(), "word/styles.xml": STYLES.encode()})


def docx_bomb() -> bytes:
    """Return a small Word document that unpacks to gigabytes."""
    head, end = f"<w:document {W}><w:body>".encode(), b"</w:body></w:document>"
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("word/document.xml", "w") as file:
        file.write(head)
        for _ in range(260):
            file.write(b" " * (1 << 20))
        file.write(end)
    return target.getvalue()


def _paragraph(style: str, text: str) -> str:
    mark = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f"<w:p>{mark}<w:r><w:t>{escape(text)}</w:t></w:r></w:p>"


def _table(rows: Sequence[Sequence[str]]) -> str:
    cells = ("".join(f"<w:tc>{_paragraph('', cell)}</w:tc>" for cell in row) for row in rows)
    return f"<w:tbl>{''.join(f'<w:tr>{row}</w:tr>' for row in cells)}</w:tbl>"


def _zip(files: Mapping[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return target.getvalue()
