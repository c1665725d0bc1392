"""Printed forms of what commands compute: tables and lines on the terminal, and the same as JSON-able data."""
