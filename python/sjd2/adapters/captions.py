"""Captions as LlamaGen's text encoder was given them in training: cleaned of what the web puts around words."""

from __future__ import annotations

import html
import re
import unicodedata
from urllib.parse import unquote_plus

__all__ = ["clean_caption"]

_Rule = tuple[re.Pattern[str], str]


def _rules(*pairs: tuple[str, str]) -> list[_Rule]:
    return [(re.compile(pattern), replacement) for pattern, replacement in pairs]


_FILE_KINDS = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"

_LINKS = _rules(
    ("<person>", "person"),
    (r"\b(?:https?:/*|www[.:])\S*", ""),
    (r"\b[a-z0-9.-]+\.(?:com|co|ru|net|org|edu|gov|it)\b(?:/\S*)?(?!@)", ""),
    (r"<[^<>]*>", ""),  # tags
)

_MARKS = _rules(
    (r"@\w+\b", ""),  # people
    (r"[\u31c0-\u9fff]+", ""),  # Chinese, Japanese, Korean
    (r"[`´«»“”¨]", '"'),
    (r"[‘’]", "'"),
    (r"&quot;?|&amp", ""),
    (r"\d{1,3}(?:\.\d{1,3}){3}", " "),  # addresses
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),
    (r"#(?:\d{1,3}|\d{5,})\b", ""),  # numbers of articles
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.(?:{_FILE_KINDS})", ""),
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)

_WORDS = _rules(
    (r"\b[a-z]{1,3}\d{3,15}\b", ""),  # numbers of models
    (r"\b[a-z]+\d+[a-z]+\b", ""),
    (r"\b\d+[a-z]+\d+\b", ""),
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{_FILE_KINDS})(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-z]+\d+[a-z]+\d+[a-z\d]*\b", " "),
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),  # sizes
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"'](.+)[\"']$", r"\1"),
    (r"^['_,:;-]", ""),
    (r"['_,:+-]$", ""),
    (r"^\.\S+$", ""),
)


def _applied(rules: list[_Rule], text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


def _cleaned_once(text: str) -> str:
    text = html.unescape(_applied(_LINKS, unquote_plus(text).strip().lower()))
    text = "".join("-" if unicodedata.category(character) == "Pd" else character for character in text)
    text = _applied(_MARKS, text)
    if len(re.findall("[-_]", text)) > 3:  # words in the place of spaces
        text = re.sub("[-_]", " ", text)
    return _applied(_WORDS, html.unescape(html.unescape(text)).strip()).strip()


def clean_caption(text: str) -> str:
    """``text`` in lower case, without links, markup, file names, numbers of articles and most punctuation; cleaned twice, as published.

    Example:
        >>> clean_caption("A “Red” Fox (in the snow)…  see https://foxes.org/17.jpg")
        'a "red" fox in the snow … see'
    """
    return _cleaned_once(_cleaned_once(text))
