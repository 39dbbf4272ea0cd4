"""``mistamover completion``: the script by which a shell completes our commands."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from mistamover.cli.help import Command
from mistamover.errors import Exit


@click.command(cls=Command, short_help="Print the script that completes commands in a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> int:
    """Print the script by which SHELL completes commands, options and file names.

    Where it belongs:

        bash, in ~/.bashrc:  eval "$(mistamover completion bash)"
        zsh, in ~/.zshrc:    eval "$(mistamover completion zsh)"
        fish, once:          mistamover completion fish >~/.config/fish/completions/mistamover.fish
    """
    made = get_completion_class(shell)
    assert made is not None  # noqa: S101 - click has all of the choices
    click.echo(made(context.find_root().command, {}, "mistamover", "_MISTAMOVER_COMPLETE").source())
    return Exit.DONE
