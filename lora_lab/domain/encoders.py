"""Weights of the models that read text: BERT and its kin, as transformers has them.

Source of the shapes: the model classes of transformers 5 (``models/*/modeling_*.py``), which the tests build.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_lab.domain.sequence_models import SEQUENCE_MODELS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lora_lab.domain.sheet import Sheet


def _bert_layers(sheet: Sheet, at: str, names: tuple[str, str, str] = ("query", "key", "value")) -> None:
    """Write the layers that BERT, RoBERTa, ELECTRA and DeBERTa have in common."""
    hidden, inner = sheet.number("hidden_size"), sheet.number("intermediate_size")
    for layer in range(sheet.layers("num_hidden_layers")):
        here = f"{at}encoder.layer.{layer}"
        for name in names:
            sheet.linear(f"{here}.attention.self.{name}", (hidden, hidden), bias=True)
        sheet.linear(f"{here}.attention.output.dense", (hidden, hidden), bias=True)
        sheet.norm(f"{here}.attention.output.LayerNorm", hidden)
        sheet.linear(f"{here}.intermediate.dense", (inner, hidden), bias=True)
        sheet.linear(f"{here}.output.dense", (hidden, inner), bias=True)
        sheet.norm(f"{here}.output.LayerNorm", hidden)


def _bert_embeddings(sheet: Sheet, at: str, size: int) -> None:
    sheet.embedding(f"{at}embeddings.word_embeddings", sheet.number("vocab_size"), size)
    sheet.embedding(f"{at}embeddings.position_embeddings", sheet.number("max_position_embeddings"), size)
    sheet.embedding(f"{at}embeddings.token_type_embeddings", sheet.number("type_vocab_size"), size)
    sheet.norm(f"{at}embeddings.LayerNorm", size)


def _plain_classifier(sheet: Sheet, head: str, hidden: int) -> bool:
    """Write one linear layer on top of an encoder; False for a head that is not known."""
    if head in ("SequenceClassification", "TokenClassification"):
        sheet.linear("classifier", (sheet.labels, hidden), bias=True, is_output=True)
    elif head == "MultipleChoice":
        sheet.linear("classifier", (1, hidden), bias=True, is_output=True)
    elif head == "QuestionAnswering":
        sheet.linear("qa_outputs", (sheet.labels, hidden), bias=True)
    else:
        return head == "Model"
    return True


def _deep_classifier(sheet: Sheet, hidden: int) -> bool:
    """Write RoBERTa's classifier of two layers, both of which PEFT trains whole."""
    sheet.linear("classifier.dense", (hidden, hidden), bias=True, is_output=True)
    sheet.linear("classifier.out_proj", (sheet.labels, hidden), bias=True, is_output=True)
    return True


def _predictions(sheet: Sheet, hidden: int) -> None:
    """Write BERT's head of a masked language model; decoder and embedding, and both biases, may be one."""
    is_tied = sheet.flag("tie_word_embeddings", default=True)
    words = sheet.number("vocab_size")
    sheet.bare("cls.predictions.bias", words)
    sheet.linear("cls.predictions.transform.dense", (hidden, hidden), bias=True)
    sheet.norm("cls.predictions.transform.LayerNorm", hidden)
    sheet.linear("cls.predictions.decoder", (words, hidden), is_tied=is_tied, is_output=True)
    sheet.bare("cls.predictions.decoder.bias", words, is_tied=is_tied)


def _bert(sheet: Sheet, head: str) -> bool:
    at = "" if head == "Model" else "bert."
    hidden = sheet.number("hidden_size")
    _bert_embeddings(sheet, at, hidden)
    _bert_layers(sheet, at)
    if head in ("Model", "SequenceClassification", "MultipleChoice", "NextSentencePrediction", "PreTraining"):
        sheet.linear(f"{at}pooler.dense", (hidden, hidden), bias=True)
    if head in ("MaskedLM", "PreTraining"):
        _predictions(sheet, hidden)
    if head in ("NextSentencePrediction", "PreTraining"):
        sheet.linear("cls.seq_relationship", (2, hidden), bias=True)
    return _plain_classifier(sheet, head, hidden) or head in ("MaskedLM", "NextSentencePrediction", "PreTraining")


def _roberta(sheet: Sheet, head: str) -> bool:
    at = "" if head == "Model" else "roberta."
    hidden = sheet.number("hidden_size")
    _bert_embeddings(sheet, at, hidden)
    _bert_layers(sheet, at)
    if head in ("Model", "MultipleChoice"):
        sheet.linear(f"{at}pooler.dense", (hidden, hidden), bias=True)
    if head == "SequenceClassification":
        return _deep_classifier(sheet, hidden)
    if head == "MaskedLM":
        is_tied = sheet.flag("tie_word_embeddings", default=True)
        words = sheet.number("vocab_size")
        sheet.bare("lm_head.bias", words)
        sheet.linear("lm_head.dense", (hidden, hidden), bias=True)
        sheet.norm("lm_head.layer_norm", hidden)
        sheet.linear("lm_head.decoder", (words, hidden), is_tied=is_tied, is_output=True)
        sheet.bare("lm_head.decoder.bias", words, is_tied=is_tied)
        return True
    return _plain_classifier(sheet, head, hidden)


def _electra(sheet: Sheet, head: str) -> bool:
    at = "" if head == "Model" else "electra."
    hidden, size = sheet.number("hidden_size"), sheet.number("embedding_size")
    _bert_embeddings(sheet, at, size)
    if size != hidden:
        sheet.linear(f"{at}embeddings_project", (hidden, size), bias=True)
    _bert_layers(sheet, at)
    if head == "SequenceClassification":
        return _deep_classifier(sheet, hidden)
    if head == "PreTraining":
        sheet.linear("discriminator_predictions.dense", (hidden, hidden), bias=True)
        sheet.linear("discriminator_predictions.dense_prediction", (1, hidden), bias=True)
        return True
    if head == "MultipleChoice":
        return False
    return _plain_classifier(sheet, head, hidden)


def _deberta_v2(sheet: Sheet, head: str) -> bool:
    at = "" if head == "Model" else "deberta."
    hidden = sheet.number("hidden_size")
    size = sheet.number("embedding_size", default=hidden)
    words, positions = sheet.number("vocab_size"), sheet.number("max_position_embeddings")
    sheet.embedding(f"{at}embeddings.word_embeddings", words, size)
    if sheet.flag("position_biased_input", default=True):
        sheet.embedding(f"{at}embeddings.position_embeddings", positions, size)
    if sheet.value("type_vocab_size"):
        sheet.embedding(f"{at}embeddings.token_type_embeddings", sheet.number("type_vocab_size"), size)
    if size != hidden:
        sheet.linear(f"{at}embeddings.embed_proj", (hidden, size))
    sheet.norm(f"{at}embeddings.LayerNorm", hidden)
    _bert_layers(sheet, at, ("query_proj", "key_proj", "value_proj"))
    is_relative = sheet.flag("relative_attention", default=False)
    if is_relative:
        _relative_positions(sheet, at, hidden, positions)
    if "layer_norm" in [part.strip() for part in sheet.text("norm_rel_ebd", "none").lower().split("|")]:
        sheet.norm(f"{at}encoder.LayerNorm", hidden)
    kernel = sheet.value("conv_kernel_size")
    if kernel:
        groups = sheet.number("conv_groups", default=1)
        sheet.conv(f"{at}encoder.conv.conv", (hidden, hidden // groups, sheet.number("conv_kernel_size")))
        sheet.norm(f"{at}encoder.conv.LayerNorm", hidden)
    if head in ("SequenceClassification", "MultipleChoice"):
        pooled = sheet.number("pooler_hidden_size", default=hidden)
        sheet.linear("pooler.dense", (pooled, pooled), bias=True)
    if head == "MaskedLM" and sheet.flag("legacy", default=True):
        _predictions(sheet, size)
        return size == hidden
    return _plain_classifier(sheet, head, hidden)


def _relative_positions(sheet: Sheet, at: str, hidden: int, positions: int) -> None:
    """Write DeBERTa's embedding of distances, and the projections of them where they have their own."""
    buckets, most = sheet.value("position_buckets"), sheet.value("max_relative_positions")
    reach = positions
    if isinstance(most, int) and most >= 1:
        reach = most
    if isinstance(buckets, int) and buckets > 0:
        reach = buckets
    sheet.embedding(f"{at}encoder.rel_embeddings", 2 * reach, hidden)
    if sheet.flag("share_att_key", default=False):
        return
    kinds = sheet.value("pos_att_type")
    said = kinds.split("|") if isinstance(kinds, str) else kinds if isinstance(kinds, list) else []
    for layer in range(sheet.layers("num_hidden_layers")):
        for kind, name in (("c2p", "pos_key_proj"), ("p2c", "pos_query_proj")):
            if kind in said:
                sheet.linear(f"{at}encoder.layer.{layer}.attention.self.{name}", (hidden, hidden), bias=True)


def _modernbert(sheet: Sheet, head: str) -> bool:
    at = "" if head == "Model" else "model."
    hidden, inner = sheet.number("hidden_size"), sheet.number("intermediate_size")
    words = sheet.number("vocab_size")
    bias = sheet.flag("attention_bias", default=False)
    mlp_bias = sheet.flag("mlp_bias", default=False)
    norm_bias = sheet.flag("norm_bias", default=False)
    sheet.embedding(f"{at}embeddings.tok_embeddings", words, hidden)
    sheet.norm(f"{at}embeddings.norm", hidden, bias=norm_bias)
    for layer in range(sheet.layers("num_hidden_layers")):
        here = f"{at}layers.{layer}"
        sheet.linear(f"{here}.attn.Wqkv", (3 * hidden, hidden), bias=bias)
        sheet.linear(f"{here}.attn.Wo", (hidden, hidden), bias=bias)
        sheet.linear(f"{here}.mlp.Wi", (2 * inner, hidden), bias=mlp_bias)
        sheet.linear(f"{here}.mlp.Wo", (hidden, inner), bias=mlp_bias)
        for name in ("attn_norm", "mlp_norm") if layer else ("mlp_norm",):  # the first layer's input is normed before
            sheet.norm(f"{here}.{name}", hidden, bias=norm_bias)
    sheet.norm(f"{at}final_norm", hidden, bias=norm_bias)
    if head == "Model":
        return True
    sheet.linear("head.dense", (hidden, hidden), bias=sheet.flag("classifier_bias", default=False))
    sheet.norm("head.norm", hidden, bias=norm_bias)
    if head == "MaskedLM":
        is_tied = sheet.flag("tie_word_embeddings", default=True)
        decoder_bias = sheet.flag("decoder_bias", default=True)
        sheet.linear("decoder", (words, hidden), bias=decoder_bias, is_tied=is_tied, is_output=True)
        return True
    return head != "QuestionAnswering" and _plain_classifier(sheet, head, hidden)


def _distilbert(sheet: Sheet, head: str) -> bool:
    hidden, inner = sheet.number("dim", default=768), sheet.number("hidden_dim", default=3072)
    words = sheet.number("vocab_size", default=30522)
    at = "" if head == "Model" else "distilbert."
    sheet.embedding(f"{at}embeddings.word_embeddings", words, hidden)
    sheet.embedding(f"{at}embeddings.position_embeddings", sheet.number("max_position_embeddings", default=512), hidden)
    sheet.norm(f"{at}embeddings.LayerNorm", hidden)
    for layer in range(sheet.layers("n_layers", default=6)):
        here = f"{at}transformer.layer.{layer}"
        for name in ("q_lin", "k_lin", "v_lin", "out_lin"):
            sheet.linear(f"{here}.attention.{name}", (hidden, hidden), bias=True)
        sheet.norm(f"{here}.sa_layer_norm", hidden)
        sheet.linear(f"{here}.ffn.lin1", (inner, hidden), bias=True)
        sheet.linear(f"{here}.ffn.lin2", (hidden, inner), bias=True)
        sheet.norm(f"{here}.output_layer_norm", hidden)
    if head in ("SequenceClassification", "MultipleChoice"):
        sheet.linear("pre_classifier", (hidden, hidden), bias=True)
    if head == "MaskedLM":
        is_tied = sheet.flag("tie_word_embeddings", default=True)
        sheet.linear("vocab_transform", (hidden, hidden), bias=True)
        sheet.norm("vocab_layer_norm", hidden)
        sheet.linear("vocab_projector", (words, hidden), bias=True, is_tied=is_tied, is_output=True)
        return True
    return _plain_classifier(sheet, head, hidden)


ENCODERS: Final[Mapping[str, Callable[[Sheet, str], bool]]] = {
    "bert": _bert,
    "roberta": _roberta,
    "xlm-roberta": _roberta,
    "electra": _electra,
    "deberta-v2": _deberta_v2,
    "modernbert": _modernbert,
    "distilbert": _distilbert,
    **SEQUENCE_MODELS,
}
