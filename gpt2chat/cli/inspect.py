"""`gpt2chat inspect`: what a checkpoint says about itself."""

from __future__ import annotations

import json

import click

from gpt2chat.cli.options import ModelName
from gpt2chat.cli.terminal import SETTINGS, reports_errors


@click.command("inspect", context_settings=SETTINGS)
@click.argument("checkpoint", type=ModelName())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@reports_errors
def inspect_command(checkpoint: str, as_json: bool) -> None:
    """Show what CHECKPOINT (a .pt file or a model's name) holds, without running anything in it.

    \b
    Examples:
      gpt2chat inspect trained_model.pt
      gpt2chat inspect demo --json
    """
    from gpt2chat import pretrained

    loaded = pretrained.load(checkpoint)
    facts = {
        "model": pretrained.describe(loaded),
        "config": loaded.config.to_dict(),
        "template": loaded.template.name,
        "examples": len(loaded.examples),
        "taught": len(loaded.taught),
        "steps": loaded.history[-1]["step"] if loaded.history else 0,
        "can_resume": loaded.training is not None,
        "about": loaded.about,
    }
    if as_json:
        click.echo(json.dumps(facts))
    else:
        for name, value in facts.items():
            click.echo(f"{name:10} {value if isinstance(value, (str, int)) else json.dumps(value)}")
