"""Commands whose help keeps its examples as they were written: the paragraphs that are indented."""

from __future__ import annotations

from inspect import cleandoc
from typing import Any

import click


class Command(click.Command):
    """A command."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **_keeping_examples(options))


class Group(click.Group):
    """A group of commands."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **_keeping_examples(options))


def _keeping_examples(options: dict[str, Any]) -> dict[str, Any]:
    """Mark indented paragraphs for click, which would fill them like all others."""
    paragraphs = cleandoc(options.get("help") or "").split("\n\n")
    text = "\n\n".join(f"\b\n{part}" if part.startswith(" ") else part for part in paragraphs)
    return options | {"help": text}
