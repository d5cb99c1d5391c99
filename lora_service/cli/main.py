"""The program ``lora-service``: its commands, and a user's mistake as one sentence.

A command's module is imported when the command is called, and only then: the list of commands needs none of them.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib import import_module

import click

from lora_service import __version__
from lora_service.errors import LoraServiceError


@dataclass(frozen=True)
class LazyCommand:
    """A command that is not imported yet.

    Args:
        module: its module in this package.
        attribute: its name there.
        help: the first sentence of its help, for the list of commands.
    """

    module: str
    attribute: str
    help: str

    def load(self) -> click.Command:
        """Import the command."""
        return getattr(import_module(f"lora_service.cli.{self.module}"), self.attribute)  # type: ignore[no-any-return]


COMMANDS = {
    "demo": LazyCommand(
        "train_and_generate",
        "demo_command",
        "Teach the embedded model a subject it has never seen, and show it on one sheet.",
    ),
    "check": LazyCommand("check", "check_command", "Show what a training would use of pictures, without training."),
    "train": LazyCommand(
        "train_and_generate", "train_command", "Teach what the pictures in ZIP show, and write one LoRA file."
    ),
    "train-many": LazyCommand(
        "train_many",
        "train_many_command",
        "Do the trainings of JOBS.JSONL together, on one base and in the same batches.",
    ),
    "generate": LazyCommand(
        "train_and_generate", "generate_command", "Draw PROMPT; <1> in it is what the first --lora learned."
    ),
    "grid": LazyCommand(
        "grid",
        "grid_command",
        "Draw each PROMPT with each --lora at each scale from the same seed, on one labelled sheet.",
    ),
    "inspect": LazyCommand("lora_files", "inspect_command", "Show what a LoRA file holds."),
    "convert": LazyCommand("lora_files", "convert_command", "Write a LoRA file in another format."),
    "merge": LazyCommand("lora_files", "merge_command", "Add LoRA files at their scales into one."),
    "resize": LazyCommand("lora_files", "resize_command", "Write a LoRA file with a lower rank."),
    "compare": LazyCommand("lora_files", "compare_command", "Compare two LoRA files, block by block."),
    "resolve": LazyCommand(
        "links", "resolve_command", "Show what would be fetched for LINK, without asking the network."
    ),
    "cache": LazyCommand("links", "cache_group", "Look at the downloaded LoRAs, or remove them."),
    "serve": LazyCommand(
        "hosting", "serve_command", "Run Cog's own HTTP server without Docker, and restart its worker when it dies."
    ),
    "up": LazyCommand(
        "gateway",
        "up_command",
        "Serve Replicate's HTTP API v1, with a queue that outlives restarts, in front of both servers.",
    ),
    "batch": LazyCommand(
        "batch", "batch_command", "Run each line of JOBS.JSONL through a gateway, and write one file of results."
    ),
    "token": LazyCommand("gateway", "token_group", "Make or remove the tokens of the gateway's users."),
    "download-base": LazyCommand("hosting", "download_base_command", "Fetch the base model NAME from the hub."),
}


class LazyGroup(click.Group):
    """The commands of ``COMMANDS``, each imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return COMMANDS[cmd_name].load() if cmd_name in COMMANDS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.exceptions.NoSuchCommand(args[0], possibilities=COMMANDS, ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help) for name, command in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def cli() -> None:
    """Teach Stable Diffusion a face, an object or a style, and draw with what it learned."""


def main() -> None:
    """Run the command line; a user's mistake is one sentence on standard error and exit status 2."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        click.echo(f"error: {error.format_message()}", err=True)
        sys.exit(2)
    except LoraServiceError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except BrokenPipeError:
        # Whoever reads the output has gone, like head; what is left to be flushed must not fail at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        click.echo(f"error: {error.strerror or error}{place}", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("stopped", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
