# SPDX-License-Identifier: Apache-2.0
"""What weights begin with where that is not random: new ids as those that they resemble, all ids as the words that
spell them, stage 2 with the embeddings of stage 1 below new layers.

Letters: M pairs of a row and a new feature in it, n features of a field, S slots, T tokens, d_w size of a text state,
E size of a feature embedding.
"""

from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from ..feature_encoding_flip import fields_that_differ
from ..masking_flip import hide_features, hide_tokens, num_reserved_features, pad_rows, unseen_id
from ..modeling_flip_base import evaluating
from ..serving.batching import batches
from ..tabular_backbones_flip import build_backbone


@torch.no_grad()
def grow(model: Any, processor: Any, start: str) -> int:
    """[`FlipPreTrainedModel.resize_feature_embeddings`]."""
    if start not in ("unseen", "mean", "random"):
        raise ValueError(f"start={start!r} is not one of unseen, mean, random")
    extractor, config = getattr(processor, "feature_extractor", processor), model.config
    names, old, new = list(extractor.field_names), config.num_features, extractor.num_features
    problem = None
    if names != config.field_names or new < old:
        problem = f"it has the fields {names} and {new} features, the model {config.field_names} and {old}"
    elif changed := fields_that_differ(extractor, config.num_features, config.feature_digests):
        problem = f"ids that the model has learnt stand for other values of {', '.join(changed)}"
    if problem is not None:
        problem = f"the processor was not extended from that of this model: {problem}"
        raise ValueError(f"{problem}; extend the processor from the model's own folder")
    config.num_features, config.feature_digests = new, extractor.field_digests()
    counts, fields = torch.tensor(extractor.feature_counts), torch.tensor(extractor.feature_fields).long()
    # by what they have: a model that came with code of its own has other classes than ours
    for module in model.modules():
        if hasattr(module, "tables"):  # the ID tower
            for table in module.tables():
                grow_table(table, fields, start, config.tabular_initializer_range)
        elif hasattr(module, "feature_bias"):  # the MTM head
            # ids for unseen values are never asked for, and have no row to copy
            grow_table(module.feature_embeddings, fields, start.replace("unseen", "mean"), config.initializer_range)
            # the noise follows all counts, and the bias of new features starts from theirs
            module.set_feature_counts(counts, fields, num_known=len(module.feature_bias))
    return new - old


def grow_table(table: nn.Embedding, fields: torch.Tensor, start: str, std: float) -> None:
    """A row for each of N features, whose `fields` are `(N,)`, those of known ones unchanged."""
    weight = table.weight
    if len(weight) == len(fields):
        return
    known, new = fields.to(weight.device).split([len(weight), len(fields) - len(weight)])
    if start == "random":
        rows = torch.randn(len(new), weight.shape[1], dtype=weight.dtype, device=weight.device) * std
    elif start == "unseen":
        rows = weight[unseen_id(new)]
    else:
        is_real = torch.arange(len(weight), device=weight.device) >= num_reserved_features(int(fields.max()) + 1)
        group = torch.where(is_real, known, -1) + 1  # 0 for what is no value of a field
        num_groups = int(known.max()) + 2
        sums = weight.new_zeros(num_groups, weight.shape[1]).index_add(0, group, weight)
        sizes = torch.bincount(group, minlength=num_groups).clamp(min=1)
        rows = (sums / sizes[:, None])[new + 1]
    table.weight = nn.Parameter(torch.cat([weight, rows]), requires_grad=weight.requires_grad)
    table.num_embeddings = len(table.weight)


@torch.no_grad()
def warm_start_features(
    model: Any, processor: Any, rows: Any, features: Any, into: Any, max_rows: int, batch_size: int
) -> np.ndarray:
    """
    [`FlipForPreTraining.warm_start_features`]: grows the models, and gives each new feature the mean of its known
    relatives' rows, in every table. `max_rows` are read for one feature, `batch_size` at a time.

    The masked-feature head reads a row in which the new value is hidden, in the ids and in the text, and says how well
    each known feature of the field fits in its place: its scores without the bias, which would prefer what is frequent
    to what is alike. Their softmax, averaged over the rows of the new feature, are the weights.
    """
    extractor, head, device = processor.feature_extractor, model.mtm_head, model.device
    if head is None:
        raise ValueError("mtm_weight=0: without masked tabular modelling no head says what a new id resembles")
    if features is None:
        features = np.arange(model.config.num_features, extractor.num_features)
    if not len(features):
        raise ValueError("the processor has no feature that the model has not: extend it first (extractor.extend)")
    tables = [head.feature_embeddings]
    for one in [model] if into is None else [model, into]:
        if one.flip.tabular is None:
            raise ValueError('the model to start has no ID tower (mode "text"): it reads no ids')
        one.resize_feature_embeddings(processor)
        tables += one.flip.tabular.tables()

    encoded, slot_fields = processor.encode(rows), np.asarray(extractor.slot_fields)
    is_new = np.isin(encoded.feature_ids, features)
    row, slot = np.nonzero(is_new)
    found = pd.DataFrame({"feature": encoded.feature_ids[row, slot], "row": row, "field": slot_fields[slot]})
    found = found.sort_values("feature", kind="stable").groupby("feature").head(max_rows)  # (M, 3)
    # to the model a new id is one that it has never seen
    feature_ids = np.where(is_new, unseen_id(slot_fields), encoded.feature_ids).astype(np.int64)
    with evaluating(model):
        for field, of_field in found.groupby("field"):
            is_known = (extractor.feature_fields == field) & (extractor.feature_counts > 0)
            is_known[: extractor.num_reserved_features] = is_known[features] = False
            known = torch.from_numpy(np.flatnonzero(is_known)).to(device)  # (n,)
            hidden_ids = hide_features(feature_ids, np.arange(extractor.num_fields) == field, extractor)
            tokens = hide_tokens(encoded.tokens, encoded.token_fields == field, processor.tokenizer.mask_token_id)
            hidden = encoded._replace(tokens=tokens, feature_ids=hidden_ids)
            new, position = np.unique(of_field["feature"], return_inverse=True)
            sums = [table.weight.new_zeros(len(new), table.weight.shape[1]) for table in tables]
            places = torch.from_numpy(position).to(device).split(batch_size)
            parts = batches(hidden, of_field["row"].to_numpy(), "joint", processor, batch_size)
            for place, arrays in zip(places, parts, strict=True):
                ids, input_ids, mask = (torch.from_numpy(array).to(device) for array in arrays.values())
                states, _ = model.flip.encode_text(input_ids, mask)
                predicted = head.predict(model.flip.tabular(ids).vector, states, mask)[:, field]  # (batch, E)
                weights = (predicted @ head.feature_embeddings.weight[known].T).float().softmax(-1)  # (batch, n)
                for total, table in zip(sums, tables, strict=True):
                    total.index_add_(0, place, weights.to(total.dtype) @ table.weight[known])
            num_rows = torch.from_numpy(np.bincount(position)).to(device)
            for total, table in zip(sums, tables, strict=True):
                table.weight[torch.from_numpy(new).to(device).long()] = total / num_rows[:, None]
    return np.unique(found["feature"])


@torch.no_grad()
def start_from_words(model: Any, processor: Any, text_model: Any = None, batch_size: int = 256) -> np.ndarray:
    """
    Starts the id embedding of every feature that the text spells from the words that spell it, before a training.

    The language model reads the sentence of the value ("genre is Drama."); the mean of its states is projected to the
    first E principal components of the field's values, and the field scaled so that its embeddings are as large as
    random ones (root mean square `config.tabular_initializer_range`). Ours, not of the paper.

    Args:
        model ([`FlipForPreTraining`], [`FlipForCTR`] or [`FlipModel`]): fresh, with an ID tower.
        processor ([`FlipProcessor`]): of the model, with the tokenizer of the language model.
        text_model (`PreTrainedModel`, *optional*): an encoder or decoder; default: the model's text tower.
        batch_size (`int`): sentences read at a time. The states of one field are held together: n x d_w floats.

    Returns:
        `np.ndarray`: ids of the features that were started. Those of fields without text (`view="tabular"`,
        statistics) or without vocabulary (hashed), and the reserved ones, keep the rows they have.
    """
    model.config.check_processor(processor)
    text_model = model.text_tower if text_model is None else text_model
    tokenizer, extractor = processor.tokenizer, processor.feature_extractor
    if text_model is None:
        raise ValueError(
            f"this {type(model).__name__} has no text tower (mode {model.config.mode!r}): pass text_model="
        )
    if tokenizer is None:
        raise ValueError("this processor has no tokenizer: build it with that of the language model")
    tower = getattr(model, "flip", model).tabular
    if tower is None or tower.embeddings is None:
        raise ValueError(f"mode {model.config.mode!r} with backbone {model.config.backbone!r} embeds no ids")
    weight, started = tower.embeddings.weight, [np.zeros(0, np.int64)]
    for index in extractor.text_fields:
        field = extractor.fields[index]
        features = np.flatnonzero(extractor.feature_fields == index)
        features = features[features >= extractor.num_reserved_features]
        if not field.num_slots or getattr(field, "hash_buckets", None) or len(features) < 2:
            continue  # one value has nothing to differ from
        before, after = processor.wording.around(index)
        before = before.removeprefix(processor.separator)
        sentences = [f"{before}{value}{after}" for value in extractor.decode(features)]
        texts = list(map(tuple, tokenizer(sentences, truncation=True, max_length=processor.max_length)["input_ids"]))
        numbers = {text: number for number, text in enumerate(sorted(dict.fromkeys(texts), key=len))}
        states = _states(text_model, list(numbers), processor.pad_token_id, batch_size)  # (n, d_w) of distinct texts
        states = (states - states.mean(0)).double()
        _, directions = torch.linalg.eigh(states.T @ states)  # ascending
        rows = states @ directions.flip(1)[:, : weight.shape[1]]  # (n, at most E)
        rows = F.pad(rows, (0, weight.shape[1] - rows.shape[1]))
        rows *= model.config.tabular_initializer_range / rows.square().mean().sqrt().clamp(min=1e-9)
        weight[torch.from_numpy(features).to(weight.device)] = rows[[numbers[text] for text in texts]].to(weight)
        started.append(features)
    return np.concatenate(started)


def _states(text_model: Any, texts: list[tuple[int, ...]], pad: int, batch_size: int) -> torch.Tensor:
    """Texts, as tokens -> the mean state of each, `(len(texts), d_w)`, float32, on the CPU."""
    means = []
    with evaluating(text_model):
        for start in range(0, len(texts), batch_size):
            batch = texts[start : start + batch_size]
            padded = pad_rows(np.concatenate(batch), np.array(list(map(len, batch))), pad)
            input_ids, mask = (torch.from_numpy(one).to(text_model.device) for one in padded)
            states = text_model(input_ids=input_ids, attention_mask=mask).last_hidden_state.float()  # (B, T, d_w)
            means.append((torch.einsum("bt,btd->bd", mask.float(), states) / mask.sum(1, keepdim=True)).cpu())
    return torch.cat(means)


def restart_backbone(model: Any) -> None:
    """
    Begins the backbone of a model's ID tower anew, at random; feature embeddings and language model keep what stage 1
    taught them. (The paper finetunes all of the tower.) Call it after `from_pretrained` and before a training, which
    may be resumed, and take `FlipCTRArguments(embedding_learning_rate=)` as well where few labels are known.
    `docs/method.md` says when it pays.

    Args:
        model ([`FlipForCTR`]): of mode `"tabular"` or `"joint"`; `ValueError` if it has no ID tower.
    """
    tower = getattr(model, "flip", model).tabular
    if tower is None:
        raise ValueError(f"mode {model.config.mode!r} has no ID tower whose backbone could begin anew")
    backbone = build_backbone(model.config)
    backbone.apply(tower._init_weights)
    tower.backbone = backbone.to(tower.device, tower.dtype).train(tower.training)
