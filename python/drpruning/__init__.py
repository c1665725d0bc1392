"""Small language models from large ones, good in every domain."""
