"""From masks to plain models: extract the kept units, write a Hugging Face folder or a GGUF file."""
