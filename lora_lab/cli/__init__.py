"""The command line: parses, asks the session, prints."""

from lora_lab.cli.main import run

__all__ = ["run"]
