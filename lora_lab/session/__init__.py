"""The one library API that both shells call."""

from lora_lab.session.session import Session

__all__ = ["Session"]
