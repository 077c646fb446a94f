"""Measurements of the project against its bars. Nothing in the packages imports from here."""
