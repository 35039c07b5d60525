# SPDX-License-Identifier: Apache-2.0
"""Seconds of a training step and bytes of an id for each `embedding_optim`, from ten thousand ids to ten million.

    python examples/benchmarks/embedding_optimizers.py

A step is forward, backward, gradient norm and clipping, update and `zero_grad` on invented rows, whose ids are drawn
evenly: no id is frequent, the worst there is for a cache. Stage 2 is FLIP_ID with the L2 penalty; stage 1 has a
language model of one small layer, so that the tables weigh as much as they can. After each step one is made on the
pace maker, `"lazy_adamw"` with the first of `--num_ids`, and the ratio is the median over such pairs, of CPU seconds:
of computing, whatever else the machine does. Bytes are of weights, gradients and state, for one id of all tables.
"""

import argparse
import gc
import statistics
import tempfile
import time

import torch
from transformers import BertConfig

from flip_hf import FlipConfig, FlipCTRArguments, FlipForCTR, FlipForPreTraining
from flip_hf.training.optimization import RowGradients, make_optimizer, parameter_groups


NUM_TOKENS = 40
KINDS = ["lazy_adamw", "rowwise_adagrad", "adamw"]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_ids", type=int, nargs="+", default=[10_000, 100_000, 1_000_000, 10_000_000])
    parser.add_argument("--stages", type=int, nargs="+", default=[2, 1], choices=[1, 2])
    parser.add_argument(
        "--batch_size", type=int, nargs=2, default=[64, 512], help="Rows of a step, in stages 1 and 2."
    )
    parser.add_argument("--num_fields", type=int, default=10)
    parser.add_argument("--embedding_size", type=int, default=32, help="Numbers in an id's embedding.")
    parser.add_argument("--steps", type=int, default=20, help="Timed steps (three more warm up).")
    parser.add_argument("--max_gb", type=float, default=8.0, help="What would take more is left out.")
    parser.add_argument("--threads", type=int, default=2, help="torch threads.")
    return parser.parse_args()


class Training:
    """One model and its steps."""

    def __init__(self, stage: int, kind: str, num_ids: int, arguments: argparse.Namespace):
        fields = [{"name": f"f{k}"} for k in range(arguments.num_fields)]
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 1}
        text = BertConfig(vocab_size=1000, **sizes)
        size = {"feature_embedding_size": arguments.embedding_size, "mtm_embedding_size": arguments.embedding_size}
        config = FlipConfig(fields=fields, num_features=num_ids, text_config=text, mode="tabular", **size)
        torch.manual_seed(0)
        self.model = (FlipForPreTraining if stage == 1 else FlipForCTR)(config).train()
        self.shape = (arguments.batch_size[stage - 1], arguments.num_fields)
        self.stage, self.arguments = stage, arguments
        with tempfile.TemporaryDirectory() as folder:
            args = FlipCTRArguments(folder, embedding_optim=kind, use_cpu=True)
        groups = parameter_groups(self.model, 1e-3, 1e-4, 1e-3)
        self.optimizer = make_optimizer(self.model, groups, torch.optim.AdamW, {"fused": True}, args)

    def batch(self) -> dict[str, torch.Tensor]:
        config = self.model.config
        ids = torch.randint(config.num_reserved_features, config.num_features, self.shape)
        if self.stage == 2:
            return {"feature_ids": ids, "labels": torch.randint(2, self.shape[:1]).float()}
        tokens = torch.randint(10, 1000, (self.shape[0], NUM_TOKENS))
        masked = torch.where(torch.rand(tokens.shape) < 0.15, 4, tokens)
        hidden = torch.where(torch.rand(ids.shape) < 0.15, 1, ids)
        inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "masked_input_ids": masked}
        return {**inputs, "feature_ids": ids, "masked_feature_ids": hidden}

    def step(self) -> tuple[float, float]:
        """Seconds on the clock, and CPU seconds."""
        batch = self.batch()
        start = time.perf_counter(), time.process_time()
        self.model.zero_grad()  # the last step's
        self.model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(RowGradients(self.model).parameters(), 1.0)
        self.optimizer.step()
        return time.perf_counter() - start[0], time.process_time() - start[1]

    def tables(self) -> list[torch.nn.Parameter]:
        return [p for p in self.model.parameters() if len(p) == self.model.config.num_features]

    def bytes_of_an_id(self) -> float:
        held = [one for p in self.tables() for one in (p, *self.optimizer.state[p].values()) if one.dim()]
        held += [p.grad for p in self.tables() if not p.grad.is_sparse]
        return sum(one.numel() * one.element_size() for one in held) / self.model.config.num_features


def measure(training: Training, pace: Training, steps: int) -> list[float]:
    """Medians of seconds of a step, of its CPU seconds, and of the ratio of these to the pace maker's."""
    pairs = [(training.step(), pace.step()) for _ in range(steps + 3)][3:]
    rows = [(*ours, ours[1] / other[1]) for ours, other in pairs]
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    size = f"{arguments.num_fields} fields, embeddings of {arguments.embedding_size}"
    print(f"torch {torch.__version__}, {arguments.threads} threads, {size}")
    for stage in arguments.stages:
        pace = Training(stage, "lazy_adamw", arguments.num_ids[0], arguments)
        print(f"stage {stage}, {pace.shape[0]} rows: ids, optimiser, ms, CPU ms, times the pace, bytes an id")
        for num_ids in arguments.num_ids:
            for kind in KINDS:
                numbers = (arguments.embedding_size + 1) * {1: 2, 2: 1}[stage] * num_ids
                if numbers * 4 * {"adamw": 4, "lazy_adamw": 3, "rowwise_adagrad": 1}[kind] > arguments.max_gb * 1e9:
                    continue
                training = Training(stage, kind, num_ids, arguments)
                clock, cpu, ratio = measure(training, pace, arguments.steps)
                times = f"{1000 * clock:10.1f} {1000 * cpu:10.1f} {ratio:8.2f}"
                print(f"{num_ids:11,} {kind:16} {times} {training.bytes_of_an_id():6.0f}", flush=True)
                del training
                gc.collect()


if __name__ == "__main__":
    main()
