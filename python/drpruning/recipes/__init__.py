"""Recipes shipped with the package: one commented YAML file each."""
