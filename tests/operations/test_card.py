"""The card: metadata that the Hub reads, a person's words kept, nothing from a file obeyed."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

from lora_lab.domain.sharing import CardFacts
from lora_lab.errors import FileFormatError
from lora_lab.operations.card import (
    card_of,
    inherited_licence,
    metadata_of,
    split_card,
    task_of_model,
)
from lora_lab.operations.card_subject import CardSubject

ADAPTER = CardSubject("me/sql-expert", False, ("org/tiny",), "CAUSAL_LM", {"license": "apache-2.0"})
RECEIPT = {
    "operation": "merge",
    "arguments": {"adapters": ["a", "b"], "base": "tiny", "strengths": [0.5, 1.0], "rounding": "nearest"},
    "inputs": [
        {"locator": "a", "path": "a", "sha256": {"adapter_model.safetensors": "1" * 64}},
        {"locator": "tiny", "path": "tiny", "sha256": {"model.safetensors": "2" * 64}},
    ],
    "versions": {"lora_lab": "0.1.0"},
    "modules": [
        {"module": "m.q_proj", "changed_fraction": 0.5, "intended_norm": 2.0, "realised_norm": 2.0}
        | {"realised_cosine": 0.99, "effective_strength": 0.98}
    ],
}


def test_metadata_of_an_adapter_is_what_the_hub_filters_by() -> None:
    data = ModelCard(card_of(ADAPTER, None)).data
    assert data.base_model == "org/tiny"
    assert data.library_name == "peft"
    assert data.pipeline_tag == "text-generation"
    assert data.license == "apache-2.0"
    assert data.to_dict()["base_model_relation"] == "adapter"
    assert {"lora", "base_model:adapter:org/tiny"} <= set(data.tags or [])


@pytest.mark.parametrize(
    ("adapters", "bases", "relation"),
    [(["a"], ("org/tiny",), "finetune"), (["a", "b"], ("org/tiny",), "merge"), ([], ("org/tiny", "x/y"), "merge")],
)
def test_a_model_is_a_merge_of_several_and_a_finetune_of_one(
    adapters: list[str], bases: tuple[str, ...], relation: str
) -> None:
    receipt = {**RECEIPT, "arguments": {"adapters": adapters}}
    found = metadata_of(CardSubject("me/m", True, bases, receipt=receipt))
    assert found["base_model_relation"] == relation
    assert found["library_name"] == "transformers"
    assert "merge" in found["tags"]


def test_what_is_not_known_is_not_there() -> None:
    found = metadata_of(CardSubject("me/m", True))
    assert found == {"library_name": "transformers", "tags": ["lora-lab"]}
    assert "license" not in metadata_of(replace(ADAPTER, licence={}))
    assert "pipeline_tag" not in metadata_of(replace(ADAPTER, task="SOMETHING"))


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("LlamaForCausalLM", "CAUSAL_LM"),
        ("GPT2LMHeadModel", "CAUSAL_LM"),
        ("BertForSequenceClassification", "SEQ_CLS"),
        ("BertModel", None),
    ],
)
def test_a_models_task_is_that_of_its_head(architecture: str, task: str | None) -> None:
    assert task_of_model({"architectures": [architecture]}) == task
    assert task_of_model({"architectures": "x"}) is None


# Licences


def test_a_licence_is_inherited_whole_or_not_at_all() -> None:
    other = {"license": "other", "license_name": "llama", "license_link": "LICENSE"}
    assert inherited_licence([CardFacts("o/b", licence=other)]) == (other, ())
    licence, findings = inherited_licence([CardFacts("o/b")])
    assert licence == {}
    assert findings[0].code == "no_licence"
    assert "--license" in findings[0].message


def test_licences_that_differ_give_none_and_are_named() -> None:
    licence, findings = inherited_licence(
        [CardFacts("o/b", licence={"license": "mit"}), CardFacts("o/a", licence={"license": "cc-by-nc-4.0"})]
    )
    assert licence == {}
    assert findings[0].code == "licences_differ"
    assert "cc-by-nc-4.0" in findings[0].message


# A card that is there

OWN = "---\r\nlicense: mit  # mine\r\ntags:\r\n- sql\r\n---\r\n\r\n# My adapter\r\n\r\nI trained it on **my** data.\r\n"


def test_a_persons_card_keeps_every_word_and_key() -> None:
    card = card_of(ADAPTER, OWN)
    kept = OWN.replace("\r\n", "\n").rstrip()
    for line in kept.splitlines():
        assert line in card.splitlines()
    data, text = split_card(card)
    assert data["license"] == "mit"
    assert data["tags"] == ["sql"]
    assert data["base_model"] == "org/tiny"
    assert "# mine" in card
    assert text.index("my** data") < text.index("<!-- lora-lab: begin")


def test_a_card_made_twice_is_the_card_made_once() -> None:
    once = card_of(ADAPTER, OWN)
    assert card_of(ADAPTER, once) == once
    made = card_of(ADAPTER, None)
    assert card_of(ADAPTER, made) == made


def test_only_what_stands_between_the_marks_is_made_anew() -> None:
    before = card_of(ADAPTER, None).replace("# sql-expert", "# A title of my own") + "\nAnd a last word.\n"
    after = card_of(CardSubject("me/m", True, ("org/tiny",), receipt=RECEIPT), before)
    assert "# A title of my own" in after
    assert after.endswith("And a last word.\n")
    assert "## Fidelity" in after
    assert "PeftModel" not in after


_LINES = st.text("ab#-*:\n\\ <>", max_size=60)


@given(_LINES, _LINES)
def test_whatever_stands_in_a_card_stays(above: str, below: str) -> None:
    """Any text around the marks survives, whatever is made anew between them."""
    own = f"---\nlicense: mit\n---\n# T\n{above}\n"
    first = card_of(ADAPTER, own)
    assert own.partition("# T")[2].rstrip() in first
    second = card_of(CardSubject("me/m", True, receipt=RECEIPT), first + below)
    assert own.partition("# T")[2].rstrip() in second
    assert second.endswith(below)


@pytest.mark.parametrize("front", ["a: [", "- a", "a: *b", "!!python/object:os.system x"])
def test_front_matter_that_is_no_mapping_is_refused(front: str) -> None:
    with pytest.raises(FileFormatError, match="front matter"):
        card_of(ADAPTER, f"---\n{front}\n---\n# T\n")


# The text


def test_names_from_files_are_not_obeyed() -> None:
    name = "<script>x</script> | `[a](javascript:1)` \x1b[31m\n# H"
    receipt = {
        **RECEIPT,
        "operation": name,
        "arguments": {"method": name, name: name, "adapters": [name]},
        "inputs": [{"locator": name, "path": name, "sha256": {}}],
        "versions": {name: name},
        "modules": [{**RECEIPT["modules"][0], "module": name}],  # type: ignore[index]
    }
    card = card_of(CardSubject("me/m", True, ("org/tiny",), receipt=receipt), None)
    assert "\x1b" not in card
    outside_code = re.sub(r"`[^`\n]*`", "", card)
    assert "<script>" not in outside_code
    assert "](javascript" not in outside_code.replace("\\]", "")
    assert "\n# H" not in card
    rows = [line for line in card.splitlines() if line.startswith("|")]
    for line in rows:
        assert len(re.findall(r"(?<!\\)\|", line)) >= 3


def test_a_table_has_as_many_cells_as_columns() -> None:
    card = card_of(CardSubject("me/m", True, ("org/tiny",), receipt=RECEIPT), None)
    tables = re.findall(r"(?:^\|.*\n)+", card, flags=re.MULTILINE)
    assert len(tables) == 3
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.strip().splitlines()}) == 1
    assert "| `m.q_proj` | 0.5000 | 2.000 | 2.000 | 0.9900 | 0.9800 |" in card


def test_replay_is_offered_only_where_others_can_reach_every_input() -> None:
    assert "replay" not in card_of(CardSubject("me/m", True, receipt=RECEIPT), None)
    reachable = {**RECEIPT, "inputs": [{"locator": "o/a@c", "path": "o/a@c", "sha256": {}}]}
    assert "lora-lab replay" in card_of(CardSubject("me/m", True, receipt=reachable), None)


def test_front_matter_is_yaml_whatever_the_names() -> None:
    subject = CardSubject("me/m", False, ("org/no: yes",), "CAUSAL_LM", {"license": "- x: 'y'"})
    data, _ = split_card(card_of(subject, None))
    assert data["base_model"] == "org/no: yes"
    assert data["license"] == "- x: 'y'"
    assert yaml.safe_dump(data)
