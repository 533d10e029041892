"""Bytes as text: UTF-8, UTF-16 with a mark, or the encoding that a page declares."""

from __future__ import annotations

import codecs

from edge.documents.readers import Unreadable

__all__ = ["decode"]


def decode(data: bytes, declared: str = "") -> str:
    """Return a text with line ends as "\\n".

    Args:
        data: the whole file.
        declared: name of the encoding, as a page says; an unknown one counts as none.

    Raises:
        Unreadable: it is binary, or in another encoding.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    else:
        encoding = "utf-8-sig"
        if declared and not data.startswith(codecs.BOM_UTF8):
            try:
                encoding = codecs.lookup(declared).name
                data[:1].decode(encoding)  # some codecs of Python make bytes of bytes
            except (LookupError, ValueError):
                encoding = "utf-8-sig"
    try:
        text = data.decode(encoding)
    except (UnicodeDecodeError, LookupError) as error:
        at = f" (byte {error.start:,})" if isinstance(error, UnicodeDecodeError) else ""
        name = "UTF-8" if encoding == "utf-8-sig" else encoding.upper()
        raise Unreadable(f"it is not {name} text{at}; convert it, for example with iconv -t UTF-8") from None
    if "\0" in text:
        raise Unreadable("it is a binary file")
    return text.replace("\r\n", "\n").replace("\r", "\n")
