"""`cloudai completion SHELL`."""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import get_completion_class

PROGRAMS: Final = ("cloudai", "cloudai-master")
SHELLS: Final = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion_command(context: click.Context, shell: str) -> None:
    """Print what makes SHELL complete commands, options and paths of `cloudai` and `cloudai-master`.

    \b
    bash: eval "$(cloudai completion bash)" in ~/.bashrc
    zsh:  eval "$(cloudai completion zsh)" in ~/.zshrc, after compinit
    fish: cloudai completion fish > ~/.config/fish/completions/cloudai.fish
    """
    completion_class = get_completion_class(shell)
    assert completion_class is not None, shell
    for program in PROGRAMS:
        variable = f"_{program}_COMPLETE".replace("-", "_").upper()
        click.echo(completion_class(context.find_root().command, {}, program, variable).source())
