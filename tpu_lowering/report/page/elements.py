"""HTML elements. A child that is plain text is escaped, so that only what is made here is markup."""

from __future__ import annotations

import html


class Markup(str):
    """Text that is HTML already."""


VOID = frozenset(("br", "meta", "rect", "line", "path"))
"""Elements without content, or of SVG without any here."""


def element(tag: str, /, *children: str | None, **attributes: str | int | float | bool | None) -> Markup:
    """An element.

    Args:
        tag: its name.
        children: its content. ``None`` is left out; a ``Markup`` stays as it is, any other text is escaped.
        attributes: its attributes; ``class_`` is written ``class``, and ``_`` in others as ``-``. ``True`` is one
            without a value; ``None``, ``False`` and "" are left out.
    """
    given = "".join(_attribute(key, value) for key, value in attributes.items())
    if tag in VOID and not children:
        return Markup(f"<{tag}{given}>" if tag in ("br", "meta") else f"<{tag}{given}/>")
    return Markup(f"<{tag}{given}>{joined(*children)}</{tag}>")


def joined(*children: str | None) -> Markup:
    """Several pieces, one after the other."""
    return Markup(
        "".join(child if isinstance(child, Markup) else html.escape(child) for child in children if child is not None)
    )


def _attribute(key: str, value: str | int | float | bool | None) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    if value is None or value is False or value == "":
        return ""
    return f' {name}="{html.escape(str(value))}"'
