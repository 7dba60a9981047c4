"""What a store answers in XML."""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element, ParseError, fromstring

from .faults import RequestError
from .requests import Answer

_NAMESPACE = re.compile(r'\sxmlns="[^"]*"')
_REFERENCE = re.compile(r"&#(?:x([0-9A-Fa-f]{1,8})|([0-9]{1,8}));")
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def parsed(answer: Answer) -> Element:
    """An answer without its namespaces: servers do not agree about them.

    Keys may hold characters that XML cannot. Each becomes U+FFFD, so that such a key does not hide all the others.

    Raises:
        RequestError: it is no XML, or declares entities.
    """
    if b"<!DOCTYPE" in answer.body or b"<!ENTITY" in answer.body:
        raise RequestError(200, "", "its answer declares entities")
    text = _NAMESPACE.sub("", answer.body.decode("utf-8", "replace")).lstrip()
    try:
        return fromstring(_NO_XML.sub("\ufffd", _REFERENCE.sub(_possible, text)).encode())
    except ParseError as error:
        raise RequestError(200, "", "its answer is not XML") from error


def _possible(reference: re.Match[str]) -> str:
    code = int(reference[1], 16) if reference[1] else int(reference[2])
    return reference[0] if code < 0x110000 and not _NO_XML.match(chr(code)) else "\ufffd"


def text(element: Element, name: str) -> str:
    return element.findtext(name) or ""
