"""What a README's front matter says of a repository."""

from __future__ import annotations

from typing import Any

from hubserver.store import Commit


def front_matter(text: str) -> dict[str, Any] | None:
    """Read the YAML between the first two lines of dashes.

    Raises
    ------
    ValueError
        it is no mapping, or no YAML.
    """
    import yaml

    lines = text.replace("\r\n", "\n").split("\n")
    if lines[0] != "---" or "---" not in lines[1:]:
        return None
    try:
        document = yaml.safe_load("\n".join(lines[1 : lines.index("---", 1)]))
    except yaml.YAMLError as error:
        raise ValueError(f"Invalid YAML: {error}") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ValueError("The metadata is no mapping")
    return document


def complaints(text: str) -> tuple[list[str], list[str]]:
    """Errors and warnings of a card, as ``/api/validate-yaml`` finds them."""
    try:
        card = front_matter(text)
    except ValueError as error:
        return [str(error)], []
    if not card:
        return [], ["empty or missing yaml metadata in repo card"]
    errors = [
        f'"{key}" must be a string' for key in ("license", "library_name", "pipeline_tag", "license_name")
        if key in card and not isinstance(card[key], str)
    ]  # fmt: skip
    for key in ("tags", "base_model", "datasets", "language"):
        value = card.get(key, [])
        if not isinstance(value, str) and not (isinstance(value, list) and all(isinstance(v, str) for v in value)):
            errors.append(f'"{key}" must be a string or a list of strings')
    bases = card.get("base_model", [])
    bases = [bases] if isinstance(bases, str) else bases if isinstance(bases, list) else []
    errors += [f'"base_model" {base!r} is no model id' for base in bases if str(base).count("/") != 1]
    if card.get("base_model_relation", "adapter") not in ("adapter", "merge", "quantized", "finetune"):
        errors.append('"base_model_relation" must be one of adapter, merge, quantized, finetune')
    if card.get("license") == "other" and not card.get("license_name"):
        errors.append('"license_name" is required with "license: other"')
    return errors, []


def card_data(commit: Commit) -> dict[str, Any]:
    """The front matter of a commit's README; nothing where there is none or it is wrong."""
    readme = commit.files.get("README.md")
    if readme is None or readme.data is None:
        return {}
    try:
        return front_matter(readme.data.decode("utf-8", "replace")) or {}
    except ValueError:
        return {}


def tags_of(commit: Commit, card: dict[str, Any]) -> list[str]:
    """The tags a repository gets from its card and its files."""
    tags = [card["library_name"]] if card.get("library_name") else []
    if any(path.endswith(".safetensors") for path in commit.files):
        tags.append("safetensors")
    tags += [str(tag) for tag in card.get("tags") or []]
    bases = card.get("base_model") or []
    for base in [bases] if isinstance(bases, str) else bases:
        tags.append(f"base_model:{base}")
        if relation := card.get("base_model_relation"):
            tags.append(f"base_model:{relation}:{base}")
    if card.get("license"):
        tags.append(f"license:{card['license']}")
    return list(dict.fromkeys([*tags, "region:us"]))
