"""Train with Hugging Face's Trainer on a mixture that changes at a step; checkpoints resume at the exact row.

drpruning prepare corpus/ --demo
python docs/examples/hf_trainer.py corpus/ out/
"""

import json
import sys
from pathlib import Path

if len(sys.argv) != 3:
    sys.exit(__doc__)
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

import drpruning as dp

corpus, out = dp.Corpus.open(sys.argv[1]), Path(sys.argv[2])
sampler = dp.DomainSampler(corpus, dict.fromkeys(corpus.domains, 1.0), seq_len=64, batch_size=8, seed=17)


class MixtureTrainer(Trainer):
    def get_train_dataloader(self):  # the sampler handles ranks and states, so accelerate does not prepare it
        inputs = lambda item: {"input_ids": item["tokens"], "labels": item["tokens"]}  # noqa: E731
        return DataLoader(dp.torch.DomainDataset(sampler), batch_size=None, collate_fn=inputs)


class Mixture(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 6:  # or from losses: dp.worst_case, or a strategy of dp.STRATEGIES
            sampler.set_weights({name: number for number, name in enumerate(corpus.domains)})

    def on_save(self, args, state, control, **_):
        (out / f"checkpoint-{state.global_step}" / "sampler.json").write_text(json.dumps(sampler.state_dict()))


config = LlamaConfig(vocab_size=corpus.vocab_size, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
arguments = TrainingArguments(out, max_steps=12, save_steps=4, ignore_data_skip=True, report_to="none")
if last := get_last_checkpoint(out) if out.exists() else None:
    sampler.load_state_dict(json.loads(Path(last, "sampler.json").read_text()))
MixtureTrainer(LlamaForCausalLM(config), arguments, callbacks=[Mixture()]).train(resume_from_checkpoint=last)
