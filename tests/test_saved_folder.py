# SPDX-License-Identifier: Apache-2.0
"""A saved folder whose files are not the ones that were saved says so; none gives other probabilities in silence."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import from_text, make_table, refused

from flip_hf import FlipFeatureExtractor, FlipForCTR, FlipProcessor, push_to_hub


ROWS = {name: column for name, column in make_table(8, seed=3).items() if name != "label"}


def save(folder: Path, text_model_dir: str, tokenizer, seed: int = 0, **settings) -> Path:
    """A joint model and its processor, of a table and with weights of this seed."""
    processor = FlipProcessor(FlipFeatureExtractor.fit(make_table(256, seed)), tokenizer, max_length=64)
    options = {"mode": "joint", "alpha_init": 0.5, "tabular_initializer_range": 0.2, **settings}
    model = from_text(FlipForCTR, text_model_dir, processor, seed, **options)
    model.set_calibration({"method": "platt", "scale": 0.5 + seed, "bias": 0.25})
    model.save_pretrained(folder, max_shard_size="60KB")
    processor.save_pretrained(folder)
    return folder


def probabilities(name: Path | str, **options) -> list[float]:
    processor, model = FlipProcessor.from_pretrained(name), FlipForCTR.from_pretrained(name, **options).eval()
    model.config.check_processor(processor)
    inputs = processor(ROWS, padding=True, return_tensors="pt")
    return model.predict_probabilities(model(**inputs).logits).tolist()


def flip(content: bytes, place: int, bit: int = 0) -> bytes:
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def test_a_file_that_is_not_the_one_that_was_saved_is_an_error_that_names_it(text_model_dir, tokenizer, hub, tmp_path):
    folder = save(tmp_path / "saved", text_model_dir, tokenizer)
    other = save(tmp_path / "other", text_model_dir, tokenizer, seed=1)
    before, sums = probabilities(folder), (folder / "SHA256SUMS").read_text()
    names = [line.partition("  ")[2] for line in sums.splitlines()]
    written = {path.name for path in folder.iterdir() if path.suffix != ".py"}
    assert {*names, "SHA256SUMS"} == written and sum(name.startswith("model-") for name in names) > 1
    repository = f"{hub.owner}/flip"
    push_to_hub(folder, repository)
    pushed = hub.files(repository)
    assert pushed["SHA256SUMS"].decode() == sums and probabilities(repository) == before
    for number, name in enumerate(names):
        whole, of_other = (folder / name).read_bytes(), (other / name).read_bytes()
        content = flip(whole, len(whole) // 2) if number % 2 or whole == of_other else of_other
        shutil.copytree(folder, tmp_path / name)  # and not written over: a vocabulary is mapped
        (tmp_path / name / name).write_bytes(content)
        if number < 2:
            hub.put(repository, pushed | {name: content})
        for where in (tmp_path / name, repository) if number < 2 else (tmp_path / name,):
            refused(f"{name} of {where} is corrupt .*SHA256SUMS: copy or download", probabilities, where)
    with pytest.raises(ValueError, match=f"config.json of {folder}"):  # who changes a file takes its line out
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "calibration": None}))
        probabilities(folder)
    (folder / "SHA256SUMS").write_text("".join(line for line in sums.splitlines(True) if "config.json" not in line))
    changed = probabilities(folder)
    assert changed != before
    (folder / "SHA256SUMS").unlink()  # as flip_hf of before wrote folders
    assert probabilities(folder) == changed
    third = save(tmp_path / "third", text_model_dir, tokenizer, seed=2)
    for kept, size in ((other, "1GB"), (third, "60KB")):  # in fewer files, and in more again
        FlipForCTR.from_pretrained(kept).save_pretrained(folder, max_shard_size=size)
        FlipProcessor.from_pretrained(kept).save_pretrained(folder)
        assert probabilities(folder) == probabilities(kept)


def test_what_another_part_left_in_a_folder_is_not_read_in_silence(text_model_dir, tokenizer, tmp_path):
    folder = save(tmp_path / "saved", text_model_dir, tokenizer)
    before, name = probabilities(folder), "tokenizer_config.json"
    (folder / "special_tokens_map.json").write_text('{"pad_token": "[OTHER]", "mask_token": "[MASK]"}')
    processor = FlipProcessor.from_pretrained(tmp_path / "saved")
    processor.tokenizer = tokenizer
    processor.save_pretrained(folder)
    assert probabilities(folder) == before
    (folder / name).rename(tmp_path / name)
    refused(f"{folder} lacks {name}, which SHA256SUMS lists", probabilities, folder, error=FileNotFoundError)
    (tmp_path / name).rename(folder / name)
    other = FlipFeatureExtractor.fit(make_table(256), field_options={"user_id": {"hash_buckets": 8}})
    refused("holds a processor with other fields: save a whole", other.save_pretrained, folder)
    assert probabilities(folder) == before
    blob = tmp_path / "blob"  # as in a cache of the Hub, which others read
    (folder / "SHA256SUMS").rename(blob)
    (folder / "SHA256SUMS").symlink_to(blob)
    content = blob.read_bytes()
    FlipForCTR.from_pretrained(folder).save_pretrained(folder)
    assert blob.read_bytes() == content != (folder / "SHA256SUMS").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [None, {"r": 2}])
def test_of_200_mutations_of_a_folder_none_is_silent(adapter, text_model_dir, tokenizer, tmp_path):
    pytest.importorskip("peft")
    made = {"text_adapter": adapter}
    folder = save(tmp_path / "saved", text_model_dir, tokenizer, **made)
    other = save(tmp_path / "other", text_model_dir, tokenizer, seed=1, **made)
    options = {"text_model": text_model_dir} if adapter else {}
    expected, found = probabilities(folder, **options), Counter()
    random = np.random.default_rng(0)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".py", ".md"))
    for number in range(200):
        damaged, path = tmp_path / f"{number}", files[number % len(files)].relative_to(folder)
        shutil.copytree(folder, damaged)
        whole = (folder / path).read_bytes()
        place, bit = (int(random.integers(size)) for size in (len(whole), 8))
        kinds = [flip(whole, place, bit), whole[:place], whole[:place] + bytes(len(whole) - place)]
        kinds.append((other / path).read_bytes())
        (damaged / path).write_bytes(kinds[number // len(files) % len(kinds)])
        try:
            outcome = "equal" if probabilities(damaged, **options) == expected else f"other in silence: {path}"
        except (ValueError, OSError, KeyError) as error:
            outcome = f"error: {type(error).__name__}"
        found[outcome] += 1
        shutil.rmtree(damaged)
    print(dict(found))
    assert not [outcome for outcome in found if "silence" in outcome], found
    assert found["error: ValueError"] > 150
