"""How good a finished model is: held-out losses, tasks of lm-evaluation-harness, the domain benchmark."""
