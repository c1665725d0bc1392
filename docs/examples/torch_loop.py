"""Train a torch model on a mixture that follows its losses; resume from the checkpoint when started again.

drpruning prepare corpus/ --demo
python docs/examples/torch_loop.py corpus/ checkpoint.pt
"""

import sys
from pathlib import Path

if len(sys.argv) != 3:
    sys.exit(__doc__)
import torch
from torch import nn

import drpruning as dp

corpus, checkpoint = dp.Corpus.open(sys.argv[1]), Path(sys.argv[2])
domains = corpus.domains
sampler = dp.DomainSampler(corpus, dict.fromkeys(domains, 1.0), seq_len=64, batch_size=64, seed=17)
device = "cuda" if torch.cuda.is_available() else "cpu"
model = nn.Sequential(nn.Embedding(corpus.vocab_size, 32), nn.Linear(32, corpus.vocab_size)).to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
parts = {"model": model, "optimizer": optimizer, "sampler": sampler}
if checkpoint.exists():
    for name, state in torch.load(checkpoint).items():
        parts[name].load_state_dict(state)

for item in dp.torch.to_device(sampler, device):  # tokens, domains and rows are on the device
    logits = model(item["tokens"][:, :-1])
    losses = nn.functional.cross_entropy(logits.transpose(1, 2), item["tokens"][:, 1:], reduction="none").mean(dim=1)
    losses.mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    if sampler.step % 20 == 0:
        by_domain = [losses[item["domains"] == number].mean().item() for number in range(len(domains))]
        worst = dp.worst_case(by_domain, p=[1 / len(domains)] * len(domains), rho=0.05, floor=0.2)
        sampler.set_weights(dict(zip(domains, worst.weights, strict=True)))  # from the next batch on
        torch.save({name: part.state_dict() for name, part in parts.items()}, checkpoint)
        print(sampler.step, dict(zip(domains, by_domain, strict=True)))
    if sampler.step == 60:
        break
