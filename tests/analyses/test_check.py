"""Whether an adapter lands: places, shapes, dead modules, saved tensors, and what a person should know before."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_lab import Session
from lora_lab.analyses.check import Check, fingerprint_of
from lora_lab.domain.adapter import Adapter, DeltaKind, Effect, Feature, SavedRole, SavedTensor
from lora_lab.domain.base import Base
from lora_lab.domain.dtypes import DType
from lora_lab.domain.report import Report
from lora_lab.domain.tensors import FileStamp, TensorRef
from lora_lab.errors import AdapterError, CancelledError, CompatibilityError, NumericalError
from lora_lab.extension.contracts import Analysis, AnalysisContext, Need

STAMP = FileStamp("/somewhere/model.safetensors", 4000, 7, 7, 7)
Shape = tuple[int, ...]
Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]


def ref(name: str, shape: Shape, dtype: DType = DType.BF16) -> TensorRef:
    return TensorRef(STAMP, name, dtype, shape, 0, 0)


def base_of(
    weights: Mapping[str, Shape], *, dtype: DType = DType.BF16, name: str = "base", **configuration: Any
) -> Base:
    tensors = {f"{module}.weight": ref(f"{module}.weight", shape, dtype) for module, shape in weights.items()}
    return Base(name, name, f"/somewhere/{name}", tensors, (STAMP,), configuration)


def pair(outputs: int, inputs: int, rank: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(outputs * 1000 + inputs)
    return torch.randn(rank, inputs, generator=generator), torch.randn(outputs, rank, generator=generator)


LAYERS = {
    f"layers.{layer}.attn.{name}": shape for layer in (0, 1, 10) for name, shape in {"q": (8, 6), "v": (4, 6)}.items()
}
FITTING: Factors = {module: pair(*shape) for module, shape in LAYERS.items()}


@pytest.fixture
def check(make_adapter: Callable[..., Any]) -> Callable[..., Report]:
    """Check {module: (lora_A, lora_B)} against a base."""

    def run(
        factors: Factors,
        base: Base,
        *,
        modules: tuple[str, ...] = (),
        change: Callable[[Adapter], Adapter] = lambda adapter: adapter,
        reader: Any = None,
        **fields: Any,
    ) -> Report:
        adapter, memory = make_adapter(factors, **{"base_model": "org/base", **fields})
        context = AnalysisContext(subjects=(change(adapter),), reader=reader or memory, base=base, modules=modules)
        return Check().run(context)

    return run


def codes(report: Report) -> list[str]:
    return [finding.code for finding in report.findings]


def test_everything_lands(check: Callable[..., Report]) -> None:
    report = check(FITTING, base_of(LAYERS))
    document = report.to_json()
    assert report.verdict is True
    assert (document["ok"], document["matched"], document["prefix"]) == (True, 6, "")
    assert document["unmatched"] == document["shape_mismatch"] == document["dead"] == document["warnings"] == []
    assert document["modules"][-1] == {
        "module": "layers.10.attn.v",
        "tensor": "layers.10.attn.v.weight",
        "shape": [4, 6],
        "dtype": "BF16",
    }


def test_a_prefix_is_told(check: Callable[..., Report]) -> None:
    prefixed = {f"bert.{module}": factors for module, factors in FITTING.items()}
    document = check(prefixed, base_of(LAYERS)).to_json()
    assert (document["ok"], document["matched"], document["prefix"]) == (True, 6, "bert. removed")
    assert document["modules"][0]["tensor"] == "layers.0.attn.q.weight"


def test_a_module_without_a_place_has_suggestions(check: Callable[..., Report]) -> None:
    report = check({**FITTING, "layers.1.attn.qq": pair(8, 6)}, base_of(LAYERS))
    document = report.to_json()
    assert (report.verdict, document["matched"]) == (False, 6)
    (lost,) = document["unmatched"]
    assert lost["module"] == "layers.1.attn.qq"
    assert "layers.1.attn.q" in lost["suggestions"]


def test_another_shape_is_no_landing(check: Callable[..., Report]) -> None:
    report = check(FITTING, base_of({**LAYERS, "layers.1.attn.q": (8, 12)}))
    document = report.to_json()
    assert (report.verdict, document["matched"]) == (False, 5)
    assert document["shape_mismatch"] == [
        {"module": "layers.1.attn.q", "tensor": "layers.1.attn.q.weight", "expected": [8, 6], "got": [8, 12]}
    ]


def test_modules_restrict_what_is_asked(check: Callable[..., Report]) -> None:
    base = base_of({**LAYERS, "layers.1.attn.q": (8, 12)})
    report = check(FITTING, base, modules=("layers.0.*",))
    assert report.verdict is True
    assert [row["module"] for row in report.table("modules").rows] == ["layers.0.attn.q", "layers.0.attn.v"]
    assert report.table("shape_mismatch").rows == ()
    assert check(FITTING, base, modules=("layers.1.*",)).verdict is False
    deeper = {**FITTING, "layers.99.attn.q": pair(8, 6)}
    assert check(deeper, base, modules=("layers.0.*",)).table("unmatched").rows == ()


def test_another_architecture_is_named(check: Callable[..., Report]) -> None:
    other = {f"h.{layer}.attn.{name}": (9, 9) for layer in range(4) for name in ("c_attn", "c_proj")}
    report = check(FITTING, base_of(other, model_type="gpt2"))
    assert (report.verdict, report.to_json()["matched"]) == (False, 0)
    (finding,) = report.findings
    assert finding.code == "wrong_architecture"
    assert "of the family 'gpt2'" in finding.message
    assert "for q, v in 3 layers, and the base has c_attn, c_proj in 4 layers" in finding.message


def test_a_shallower_base_says_how_many_layers_it_has(check: Callable[..., Report]) -> None:
    shallow = {module: shape for module, shape in LAYERS.items() if ".10." not in module}
    report = check(FITTING, base_of(shallow))
    assert codes(report) == ["layers_missing"]
    assert report.findings[0].message == "2 modules belong to layers 10 to 10, and 'base' has layers 0 to 1."


def test_two_places_are_a_finding_and_no_crash(check: Callable[..., Report]) -> None:
    twice = {f"{tower}.{module}": shape for tower in ("text", "vision") for module, shape in LAYERS.items()}
    report = check(FITTING, base_of(twice))
    document = report.to_json()
    assert (report.verdict, document["ok"], document["matched"], document["prefix"]) == (False, False, 0, "")
    assert codes(report) == ["ambiguous"]
    assert "prefixes fit equally well" in report.findings[0].message


UNSOUND = ["layers.0.attn.q", "layers.0.attn.v", "layers.1.attn.v"]


class TestDead:
    """Modules whose ΔW is zero land, and do nothing."""

    @pytest.mark.parametrize(
        ("kill", "reason"),
        [
            (lambda a, b: b.zero_(), "lora_B is zero"),
            (lambda a, b: a.zero_(), "lora_A is zero"),
            (lambda a, b: (a[0].zero_(), b[:, 1].zero_()), "meets a zero row"),
        ],
    )
    def test_zero_factors(self, check: Callable[..., Report], kill: Callable[..., Any], reason: str) -> None:
        factors = {module: pair(*shape) for module, shape in LAYERS.items()}
        kill(*factors["layers.1.attn.q"])
        lora_A, lora_B = factors["layers.1.attn.q"]
        assert not (lora_B @ lora_A).any()
        report = check(factors, base_of(LAYERS))
        (dead,) = report.table("dead").rows
        assert dead["module"] == "layers.1.attn.q"
        assert reason in dead["reason"]
        assert report.verdict is True

    def test_a_zero_scaling(self, check: Callable[..., Report]) -> None:
        report = check(FITTING, base_of(LAYERS), scaling=0.0)
        assert {row["reason"] for row in report.table("dead").rows} == {"the scaling is zero"}
        assert len(report.table("dead").rows) == 6

    def test_a_living_module_with_zeros_is_not_dead(self, check: Callable[..., Report]) -> None:
        factors = {module: pair(*shape) for module, shape in LAYERS.items()}
        factors["layers.1.attn.q"][1][:, 0].zero_()
        assert check(factors, base_of(LAYERS)).table("dead").rows == ()

    def test_unsound_factors_are_named_and_the_rest_is_looked_at(
        self, check: Callable[..., Report], make_adapter: Callable[..., Any]
    ) -> None:
        factors = {module: pair(*shape) for module, shape in LAYERS.items()}
        factors["layers.10.attn.v"][1].zero_()
        _, memory = make_adapter(factors)

        class Failing:
            def factors_of(self, deltas: Any) -> Any:
                for delta, held in memory.factors_of(deltas):
                    if delta.module in UNSOUND:
                        raise NumericalError(f"{delta.module} holds NaN.")
                    yield delta, held

        report = check(factors, base_of(LAYERS), reader=Failing())
        unsound = [finding for finding in report.findings if finding.code == "unsound_factors"]
        assert [finding.module for finding in unsound] == UNSOUND
        assert [row["module"] for row in report.table("dead").rows] == ["layers.10.attn.v"]
        assert (report.verdict, report.to_json()["matched"]) == (False, 6)

    def test_it_can_be_cancelled(self, make_adapter: Callable[..., Any]) -> None:
        class Impatient:
            def __init__(self) -> None:
                self.steps = 0

            def advance(self, done: int, total: int, what: str = "") -> None:
                del done, total, what
                self.steps += 1

            def rows(self, table: str, rows: Any) -> None:
                raise AssertionError

            def is_cancelled(self) -> bool:
                return self.steps >= 2

        adapter, memory = make_adapter(FITTING)
        with pytest.raises(CancelledError):
            Check().run(AnalysisContext((adapter,), memory, base_of(LAYERS), observer=Impatient()))
        assert len(memory.asked) == 3


class TestNames:
    """Which base the adapter says it was trained on."""

    @pytest.mark.parametrize(
        ("said", "base", "expected"),
        [
            ("org/base", "base", []),
            ("org/Base/", "base", []),
            ("org/base@main", "base", []),
            ("C:\\models\\base", "base", []),
            ("org/other", "base", ["base_model_differs"]),
            (None, "base", ["base_model_unsaid"]),
            ("", "base", ["base_model_unsaid"]),
        ],
    )
    def test_the_last_part_counts(
        self, check: Callable[..., Report], said: str | None, base: str, expected: list[str]
    ) -> None:
        report = check(FITTING, base_of(LAYERS, name=base, _name_or_path=f"org/{base}"), base_model=said)
        assert codes(report) == expected
        assert report.verdict is True

    def test_the_configuration_s_name_counts_too(self, check: Callable[..., Report]) -> None:
        base = base_of(LAYERS, name="snapshot", _name_or_path="somebody/base")
        assert codes(check(FITTING, base)) == []


class TestQuantised:
    """A base that is not the numbers the adapter was trained on, or not their shapes."""

    def test_packed_weights(self, check: Callable[..., Report]) -> None:
        packed = {module: (rows * columns // 2, 1) for module, (rows, columns) in LAYERS.items()}
        base = base_of(packed, dtype=DType.U8, quantization_config={"quant_method": "bitsandbytes"})
        report = check(FITTING, base)
        assert codes(report) == ["quantised_base"]
        assert "quant_method bitsandbytes, 6 weights of dtype U8" in report.findings[0].message
        assert (report.verdict, len(report.table("shape_mismatch").rows)) == (False, 6)

    def test_scaled_weights_keep_their_shape(self, check: Callable[..., Report]) -> None:
        report = check(FITTING, base_of(LAYERS, dtype=DType.F8_E4M3))
        assert codes(report) == ["quantised_base"]
        assert report.verdict is True


class TestVocabulary:
    """A vocabulary that was resized says on which side it has how many rows."""

    def test_of_an_output_layer(self, check: Callable[..., Report]) -> None:
        factors = {**FITTING, "lm_head": pair(52, 6)}
        report = check(factors, base_of({**LAYERS, "lm_head": (50, 6)}))
        assert codes(report) == ["vocabulary_resized"]
        assert "the adapter has 52 rows for 'lm_head', the base 50" in report.findings[0].message
        assert report.verdict is False

    def test_of_an_embedding(self, check: Callable[..., Report]) -> None:
        def embed(adapter: Adapter) -> Adapter:
            *others, last = adapter.deltas
            changed = replace(last, kind=DeltaKind.EMBEDDING, shape=(52, 6))
            return replace(adapter, deltas=(*others, changed))

        factors = {**FITTING, "embed_tokens": (torch.randn(2, 52), torch.randn(6, 2))}
        report = check(factors, base_of({**LAYERS, "embed_tokens": (50, 6)}), change=embed)
        assert codes(report) == ["vocabulary_resized"]

    def test_of_a_saved_embedding(self, check: Callable[..., Report]) -> None:
        saved = SavedTensor("embed_tokens", SavedRole.EMBEDDING_LAYER, ref("x.embed_tokens.weight", (52, 6)))
        report = check(FITTING, base_of({**LAYERS, "embed_tokens": (50, 6)}), saved=(saved,))
        assert codes(report) == ["vocabulary_resized"]
        assert report.verdict is True


def token_config(tokens: object) -> dict[str, Any]:
    return {"trainable_token_indices": tokens}


class TestSaved:
    """Saved modules, biases and trained tokens have places too."""

    def saved(
        self, module: str, shape: Shape, role: SavedRole = SavedRole.MODULES_TO_SAVE, leaf: str = "weight"
    ) -> Any:
        return (SavedTensor(module, role, ref(f"base_model.model.{module}.{leaf}", shape)),)

    def test_in_its_place(self, check: Callable[..., Report]) -> None:
        report = check(FITTING, base_of({**LAYERS, "score": (3, 6)}), saved=self.saved("score", (3, 6)))
        assert codes(report) == []

    def test_under_the_moved_path(self, check: Callable[..., Report]) -> None:
        prefixed = {f"bert.{module}": factors for module, factors in FITTING.items()}
        report = check(prefixed, base_of({**LAYERS, "pooler": (3, 6)}), saved=self.saved("bert.pooler", (3, 6)))
        assert codes(report) == []

    def test_without_a_place_it_is_told_and_lands(self, check: Callable[..., Report]) -> None:
        report = check(FITTING, base_of(LAYERS), saved=self.saved("score", (3, 6)))
        assert codes(report) == ["saved_without_place"]
        assert report.verdict is True

    def test_of_another_shape(self, check: Callable[..., Report]) -> None:
        report = check(FITTING, base_of({**LAYERS, "score": (2, 6)}), saved=self.saved("score", (77, 6)))
        assert codes(report) == ["saved_shape_differs"]
        assert "77×6, the base's has 2×6" in report.findings[0].message

    @pytest.mark.parametrize("tokens", [[3, 9], {"embed_tokens": [9]}, None])
    def test_tokens_in_their_embedding(self, check: Callable[..., Report], tokens: object) -> None:
        saved = self.saved("embed_tokens", (2, 6), SavedRole.TRAINABLE_TOKENS, "trainable_tokens_delta")
        base = base_of({**LAYERS, "embed_tokens": (10, 6)})
        report = check(FITTING, base, saved=saved, configuration=token_config(tokens))
        assert (codes(report), report.verdict) == ([], True)

    @pytest.mark.parametrize(
        ("rows", "said"),
        [({"embed_tokens": (9, 6)}, "token 9"), ({"embed_tokens": (10, 5)}, "6 columns"), ({}, "no embedding")],
    )
    def test_tokens_that_do_not_fit(self, check: Callable[..., Report], rows: dict[str, Shape], said: str) -> None:
        saved = self.saved("embed_tokens", (2, 6), SavedRole.TRAINABLE_TOKENS, "trainable_tokens_delta")
        report = check(FITTING, base_of({**LAYERS, **rows}), saved=saved, configuration=token_config([3, 9]))
        assert (codes(report), report.verdict) == (["tokens_without_place"], False)
        assert said in report.findings[0].message


def test_a_feature_that_no_file_explains_is_told(check: Callable[..., Report]) -> None:
    refused = Feature("corda", "CorDA", Effect.REFUSED, "the base was changed.")
    report = check(FITTING, base_of(LAYERS), features=(refused,))
    assert [(finding.code, finding.message) for finding in report.findings] == [
        ("refused", "CorDA: the base was changed.")
    ]
    assert report.verdict is False


class TestFingerprint:
    """The same headers, the same fingerprint; anything else, another."""

    def test_it_forgets_folder_date_and_order(self) -> None:
        base = base_of(LAYERS)
        elsewhere = replace(
            base,
            path="/elsewhere",
            tensors=dict(reversed(base.tensors.items())),
            shards=(replace(STAMP, path="/elsewhere/model.safetensors", mtime_ns=99, inode=99),),
        )
        assert fingerprint_of(base) == fingerprint_of(elsewhere)
        assert len(fingerprint_of(base)) == 64

    @pytest.mark.parametrize(
        "other",
        [
            base_of({**LAYERS, "layers.0.attn.q": (8, 7)}),
            base_of({**LAYERS, "more": (1, 1)}),
            base_of(LAYERS, dtype=DType.F16),
            replace(base_of(LAYERS), shards=(replace(STAMP, size_bytes=4001),)),
            replace(base_of(LAYERS), shards=(replace(STAMP, path="/somewhere/other.safetensors"),)),
        ],
    )
    def test_it_tells_headers_apart(self, other: Base) -> None:
        assert fingerprint_of(base_of(LAYERS)) != fingerprint_of(other)

    def test_it_is_what_its_formula_says(self) -> None:
        import hashlib

        base = base_of({"a": (1, 2)})
        lines = '["file", "model.safetensors", 4000]\n["tensor", "a.weight", "BF16", [1, 2]]'
        assert fingerprint_of(base) == hashlib.sha256(lines.encode()).hexdigest()


def test_a_checkpoint_is_no_adapter() -> None:
    with pytest.raises(AdapterError, match="'base' is a full checkpoint, expected an adapter"):
        Check().run(AnalysisContext((base_of(LAYERS),), None, base_of(LAYERS)))  # type: ignore[arg-type]


def test_a_configuration_is_no_base(check: Callable[..., Report]) -> None:
    with pytest.raises(CompatibilityError, match="configuration without weights"):
        check(FITTING, base_of({}))


def test_every_quantity_is_declared(check: Callable[..., Report]) -> None:
    assert isinstance(Check(), Analysis)
    assert Check.base is Need.REQUIRED
    broken: Factors = {**FITTING, "layers.1.attn.qq": pair(8, 6)}
    broken["layers.0.attn.v"] = (torch.zeros(2, 6), torch.zeros(4, 2))
    report = check(broken, base_of({**LAYERS, "layers.1.attn.q": (8, 12)}))
    assert all(report.table(name).rows for name in ("unmatched", "shape_mismatch", "dead", "modules"))
    for table in report.tables:
        assert all(list(row) == [column.id for column in table.columns] for row in table.rows)
    assert set(report.scalars[0].values) == {column.id for column in report.scalars[0].columns}
    promised = {"ok", "matched", "prefix", "unmatched", "shape_mismatch", "dead", "base_fingerprint"}
    assert promised <= set(json.loads(json.dumps(report.to_json(), allow_nan=False)))


class TestSamples:
    """Real files, through the session."""

    def test_every_sample_lands(self, samples: Path) -> None:
        for name in ("banking77-r8-seed0", "banking77-dora", "banking77-patterns", "snips-r8"):
            report = Session().analyze("check", [str(samples / name)], base=str(samples / "base"))
            assert report.verdict is True
            assert report.to_json()["matched"] == 28
            assert report.table("dead").rows == ()

    def test_an_adapter_of_another_model_does_not(self, samples: Path, tmp_path: Path) -> None:
        source = samples / "banking77-r8-seed0"
        tensors = {
            name.replace("self_attn", "attention"): tensor
            for name, tensor in load_file(source / "adapter_model.safetensors").items()
        }
        document = json.loads((source / "adapter_config.json").read_text())
        (tmp_path / "adapter_config.json").write_text(json.dumps({**document, "base_model_name_or_path": "org/other"}))
        save_file(tensors, tmp_path / "adapter_model.safetensors")
        report = Session().analyze("check", [str(tmp_path)], base=str(samples / "base"))
        assert report.verdict is False
        assert report.to_json()["matched"] == 12
        assert len(report.table("unmatched").rows) == 16
        assert all(row["suggestions"] for row in report.table("unmatched").rows)
