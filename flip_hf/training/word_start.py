# SPDX-License-Identifier: Apache-2.0
"""Id embeddings that start as what a language model says of the words behind the ids.

Letters: n features of a field, T tokens, d_w size of a text state, E size of a feature embedding.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..masking_flip import pad_rows
from ..modeling_flip_base import evaluating


@torch.no_grad()
def start_from_words(model: Any, processor: Any, text_model: Any = None, batch_size: int = 256) -> np.ndarray:
    """
    Starts the id embedding of every feature that the text spells from the words that spell it, before a training.

    The language model reads the sentence of the value ("genre is Drama."); the mean of its states is projected to the
    first E principal components of the field's values, and the field scaled so that its embeddings are as large as
    random ones (root mean square `config.tabular_initializer_range`): how far values of a field are apart is what the
    language model says, and values of equal tokens have equal rows. Ours, not of the paper.

    Args:
        model ([`FlipForPreTraining`], [`FlipForCTR`] or [`FlipModel`]): fresh, with an ID tower.
        processor ([`FlipProcessor`]): of the model, with the tokenizer of the language model.
        text_model (`PreTrainedModel`, *optional*): an encoder or decoder; default: the model's text tower.
        batch_size (`int`): sentences read at a time. The states of one field are held together: n x d_w floats.

    Returns:
        `np.ndarray`: ids of the features that were started. Those of fields without text (`view="tabular"`,
        statistics) or without vocabulary (hashed), and the reserved ones, keep the rows they have.

    Raises:
        ValueError: if there is no language model, no tokenizer, or no table of id embeddings (`"lr"`).
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
        states = _states(
            text_model, list(numbers), processor.pad_token_id, batch_size
        )  # (n, d_w) of those that differ
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


__all__ = ["start_from_words"]
