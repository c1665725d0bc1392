"""Train bigram counts with NumPy alone, on a mixture that follows their losses.

drpruning prepare corpus/ --demo
python docs/examples/numpy_loop.py corpus/
"""

import sys

if len(sys.argv) != 2:
    sys.exit(__doc__)
import numpy as np

import drpruning as dp

corpus = dp.Corpus.open(sys.argv[1])
domains = corpus.domains
sampler = dp.DomainSampler(corpus, dict.fromkeys(domains, 1.0), seq_len=64, batch_size=64, seed=17)
counts = np.ones((corpus.vocab_size, corpus.vocab_size))
sums, rows = np.zeros((2, len(domains)))

while sampler.step < 200:
    batch = next(sampler)
    before, after = batch.tokens[:, :-1], batch.tokens[:, 1:]
    losses = -np.log(counts[before, after] / counts.sum(axis=1)[before]).mean(axis=1)  # nats per token, for each row
    np.add.at(counts, (before, after), 1)
    np.add.at(sums, batch.domains, losses)
    np.add.at(rows, batch.domains, 1)

    if sampler.step % 50 == 0:
        worst = dp.worst_case(sums / rows, p=np.full(len(domains), 1 / len(domains)), rho=0.05, floor=0.2)
        sampler.set_weights(dict(zip(domains, worst.weights, strict=True)))  # from the next batch on
        print(f"step {sampler.step}")
        for name, loss, weight in zip(domains, sums / rows, sampler.weights.values(), strict=True):
            print(f"  {name:10} loss {loss:6.3f}   weight {weight:.3f}   epochs {sampler.epochs[name]:.2f}")
        sums, rows = np.zeros((2, len(domains)))
